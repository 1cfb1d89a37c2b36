"""What an online algorithm is: advantages of a step's samples, and the loss that they weigh."""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor

from apo_bench.losses.policy_loss import View


@dataclass(frozen=True)
class Rollouts:
    """A step's samples: n responses to each of P prompts, padded to T tokens, and what is known of them before an update.

    scores (P, n): the reward model's. mask (P, n, T): 1 on response tokens. finished (P, n) bool: whether a response ended by itself,
    within the length limit. log_ratios (P, n, T): log-probability of each token under the policy that sampled it less that under the
    reference, 0 off the response; None for algorithms without `needs_reference`.
    """

    scores: Tensor
    mask: Tensor
    finished: Tensor
    log_ratios: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        """Response tokens, (P, n)."""
        return self.mask.sum(dim=-1)


@runtime_checkable
class OnlineAlgorithm(Protocol):
    """An online algorithm: a frozen dataclass, whose class and fields name what was trained with it.

    As a PolicyLoss, which may also set `denominator` and `also_reads`; a response is an item with one side. Its view has
    `advantages` (B,) or (B, 1, T), as the algorithm gives them, and `old_logps` (B, 1, T): log-probabilities under the policy that sampled,
    at temperature 1. It may also have a method `clipped(view) -> (B, 1, T)`, 1 for tokens whose ratio the loss clips, which is reported.
    """

    reads: ClassVar[Literal["rollouts"]]
    needs_reference: ClassVar[bool]

    def advantages(self, rollouts: Rollouts) -> Tensor:
        """Of whole responses (P, n), or of their tokens (P, n, T); nan for responses that are not trained on."""
        ...

    def __call__(self, view: View) -> Tensor:
        """One term per response, (B,), without reduction."""
        ...
