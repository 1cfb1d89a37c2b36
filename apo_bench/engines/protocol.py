"""What computes behind the Lab: sampling, scoring, KL and training, whatever the backend.

The Lab meters, memoises and hides; an engine computes. Models are named by their keys in the run's store, and an engine knows where
they lie. What an engine trains it writes into a folder that becomes an artifact.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from apo_bench.config.schema import PolicyModel, RewardSpec, Sampling
from apo_bench.hashing import encoded
from apo_bench.store import Computed
from apo_bench.training.training_spec import OnlineTraining, PolicyTraining, RewardModelTraining, TRLTraining
from apo_bench.types import CutTexts, FinishedPolicy, Policy, Prompt, Response, RewardModel, cut_texts

if TYPE_CHECKING:  # else what the Lab keeps would depend on how lm-eval is asked
    from apo_bench.config.schema import Capabilities


@dataclass(frozen=True)
class SamplingJob:
    """n responses of a policy to each prompt."""

    policy: FinishedPolicy | Policy
    prompts: tuple[Prompt, ...]
    n: int
    sampling: Sampling
    model: PolicyModel
    seed: int


class Items(tuple[tuple[Prompt, str], ...]):
    """(prompt, response) items, encoded for keys once, however many reward models score them.

    `cut`: those of responses that were cut at a length limit; None of texts, which do not tell.
    """

    cut: CutTexts | None = None

    @classmethod
    def of(cls, responses: Sequence[Response] | Sequence[tuple[Prompt, str]]) -> "Items":
        if isinstance(responses, cls):
            return responses
        items = cls([(item.prompt, item.text) if isinstance(item, Response) else item for item in responses])
        sampled = [item for item in responses if isinstance(item, Response)]
        items.cut = cut_texts(sampled) if sampled else None
        return items

    @cached_property
    def encoded(self) -> str:
        """Ids of the prompts and the responses; see `hashing.encoded`."""
        return encoded([(prompt.id, text) for prompt, text in self])


@dataclass(frozen=True)
class ScoringJob:
    """A reward model's scores of (prompt, response) items; responses in `cut` have no end."""

    reward_model: RewardModel
    items: tuple[tuple[Prompt, str], ...]
    model: RewardSpec
    cut: CutTexts = field(default_factory=dict)


@dataclass(frozen=True)
class KLJob:
    """KL(policy || reference) of responses that were sampled untruncated from the policy at temperature 1.

    `policy_model`: the policy's settings where they are other than the reference's (`model`).
    """

    policy: Policy
    reference: Policy
    responses: tuple[Response, ...]
    model: PolicyModel
    batch_size: int
    policy_model: PolicyModel | None = None


@dataclass(frozen=True)
class CapabilityJob:
    """lm-eval's tasks on one policy. `options`: metadata of tasks beside that of the settings."""

    policy: Policy
    model: PolicyModel
    settings: "Capabilities"
    options: Mapping[str, Any] = field(default_factory=dict)


class Engine(Protocol):
    """A backend. Every verb returns its value with the counts spent; training writes the model into the folder `into`."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What of the engine can change a result: its name, code, library versions, hardware. JSON-ready; part of every key."""
        ...

    @property
    def hardware(self) -> Mapping[str, Any]:
        """Threads, device and launch configuration."""
        ...

    def create_policy(self, model: PolicyModel, vocabulary: Sequence[str] | None, into: Path) -> Computed[None]:
        """The policy before any training: a copy of the model's `path`, or its new `architecture`."""
        ...

    def keep_in_place(self, policy: FinishedPolicy, into: Path) -> Computed[None]:
        """Note in the folder where a finished policy lies. Raises InputError where it cannot be read."""
        ...

    def count_tokens(self, policy: Policy, texts: Sequence[str], model: PolicyModel) -> Computed[list[float]]:
        """Tokens of each response in a policy's vocabulary, its end included."""
        ...

    def generate(self, job: SamplingJob) -> Computed[tuple[Response, ...]]:
        """Responses, prompt by prompt."""
        ...

    def sampler(self, sampling: Sampling, model: PolicyModel) -> Mapping[str, Any] | None:
        """What of a server that samples in place of the engine can change a result, JSON-ready, for keys; None where none does."""
        ...

    def score(self, job: ScoringJob) -> Computed[list[float]]:
        """A score for each item."""
        ...

    def kl(self, job: KLJob) -> Computed[list[float]]:
        """Nats for each response, summed over its tokens; NaN for all where the vocabularies differ."""
        ...

    def run_capabilities(self, job: CapabilityJob) -> Computed[list[dict[str, Any]]]:
        """A row for each task, metric and item; see `lm_eval_items.item_scores`."""
        ...

    def train_policy(self, job: PolicyTraining, into: Path) -> Computed[None]: ...

    def train_reward_model(self, job: RewardModelTraining, into: Path) -> Computed[None]: ...

    def train_online(self, job: OnlineTraining, into: Path, report: Callable[[str], None]) -> Computed[None]:
        """Beside the model, `steps.jsonl`; every step is reported as a stage."""
        ...

    def train_with_trl(self, job: TRLTraining, into: Path) -> Computed[None]: ...
