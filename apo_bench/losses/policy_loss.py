"""What a policy loss is: the protocol that training calls, and the view of a micro-batch that a loss reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, Protocol, get_args, runtime_checkable

from annotated_types import Ge, Gt, Lt
from torch import Tensor

from apo_bench.errors import InputError

Reads = Literal["demonstrations", "pairs", "unpaired", "groups"]
READS: tuple[Reads, ...] = get_args(Reads)
Denominator = Literal["items", "tokens"]
Positive = Annotated[float, Gt(0)]  # field types for losses: what an experiment file gives is checked against them
NotNegative = Annotated[float, Ge(0)]
FlipRate = Annotated[float, Ge(0), Lt(0.5)]  # of preferences that are the wrong way round


@dataclass(frozen=True)
class View:
    """A micro-batch of B items with S sides each, padded to T tokens.

    Sides are the responses of one item: the one of a demonstration; chosen and rejected of a pair; that of unpaired data, and behind it
    the mismatched one if there is one; the n of a group, in sampling order.

    logps (B, S, T): log-probability of each response token under the policy, given those before it; 0 off the response.
    mask (B, S, T): 1 on response tokens. reference_logps (B, S, T): as logps, under the reference, for losses with `needs_reference`.
    scores (B, S): the reward model's, of groups. labels (B,) bool: whether a response is desirable, of unpaired data.
    log_collision (B, S, T): log of the sum of the squared probabilities of all next tokens where a response token stands, under the
    policy and without gradient: how likely two draws are the same token. For losses with `also_reads = ("log_collision",)`.
    entropy (B, S, T): of the next token where a response token stands, in nats, with gradient. For `also_reads = ("entropy",)`.
    advantages (B,) or (B, 1, T) and old_logps (B, S, T): of online algorithms, see `online_algorithm`.
    Raises InputError for a field that the data do not have.
    """

    logps: Tensor
    mask: Tensor
    optional: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def lengths(self) -> Tensor:
        """Response tokens of each side, (B, S)."""
        return self.mask.sum(dim=-1)

    @property
    def response_logps(self) -> Tensor:
        """Log-probability of each whole response, summed over its tokens, (B, S)."""
        return (self.logps * self.mask).sum(dim=-1)

    @property
    def reference_logps(self) -> Tensor:
        return self._optional("reference_logps", "it needs a reference: set needs_reference = True and train with reference=")

    @property
    def reference_response_logps(self) -> Tensor:
        """As `response_logps`, under the reference, (B, S)."""
        return (self.reference_logps * self.mask).sum(dim=-1)

    @property
    def scores(self) -> Tensor:
        return self._optional("scores", 'only data of losses with reads = "groups" have it')

    @property
    def labels(self) -> Tensor:
        return self._optional("labels", 'only data of losses with reads = "unpaired" have it')

    @property
    def log_collision(self) -> Tensor:
        return self._optional("log_collision", 'only losses with also_reads = ("log_collision",) have it')

    @property
    def entropy(self) -> Tensor:
        return self._optional("entropy", 'only losses with also_reads = ("entropy",) have it')

    @property
    def advantages(self) -> Tensor:
        return self._optional("advantages", "only online algorithms have it")

    @property
    def old_logps(self) -> Tensor:
        return self._optional("old_logps", "only online algorithms have it")

    def _optional(self, name: str, why: str) -> Tensor:
        if name not in self.optional:
            raise InputError(f"the loss reads view.{name}, which is not there: {why}")
        return self.optional[name]


@runtime_checkable
class PolicyLoss(Protocol):
    """A policy's loss: a frozen dataclass, whose class and fields name what was trained with it.

    `reads`: the data it is trained on. `needs_reference`: whether it compares with a reference policy. A loss may also set

    - `denominator = "tokens"`: an update's sum of terms is divided by its response tokens, not by its items;
    - `couples_items = True`: its terms depend on the other items, so an update has to be read whole. Splitting it into micro-batches, or
      over processes, is refused;
    - `also_reads`: names of view fields that are computed on demand, such as `log_collision`;
    - `needs_mismatched = True`: unpaired data must have a mismatched response each.
    """

    reads: ClassVar[Reads]
    needs_reference: ClassVar[bool]

    def __call__(self, view: View) -> Tensor:
        """One term per item, (B,), without reduction."""
        ...


def denominator_of(loss: PolicyLoss) -> Denominator:
    """What an update's sum of terms is divided by."""
    return getattr(loss, "denominator", "items")


def also_reads(loss: PolicyLoss) -> tuple[str, ...]:
    """The fields of a view that are computed for this loss only."""
    return tuple(getattr(loss, "also_reads", ()))


def needs_mismatched(loss: PolicyLoss) -> bool:
    """Whether the unpaired data of a loss need a mismatched response each, as `lab.with_mismatched` gives them."""
    return getattr(loss, "needs_mismatched", False)
