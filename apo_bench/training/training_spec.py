"""What is to be trained, as one record: the Lab fills it in, an engine carries it out, a launched process reads it from a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from apo_bench.config.schema import PolicyModel, Recipe, RewardSpec, Sampling
from apo_bench.types import CutTexts, Demonstration, Group, Pair, Policy, Prompt, RewardModel, UnpairedExample

Counts = Mapping[str, float]  # amounts spent, by ledger unit and name of a count
TokenIds = Mapping[str, Mapping[str, tuple[int, ...]]]  # of sampled responses, by prompt id and text: see types.Response
TRLItem = Demonstration | Pair | UnpairedExample | Prompt


@dataclass(frozen=True)
class PolicyTraining:
    """Train `policy` on `data` with `loss`, which compares with `reference` if it needs one.

    A response in `token_ids` is trained on as those ids; any other came as a text and is encoded.
    """

    policy: Policy
    data: tuple[Demonstration, ...] | tuple[Pair, ...] | tuple[UnpairedExample, ...] | tuple[Group, ...]
    loss: Any  # a PolicyLoss; its class is not named here, since losses bring torch
    reference: Policy | None
    model: PolicyModel
    recipe: Recipe
    seed: int
    token_ids: TokenIds = field(default_factory=dict)


@dataclass(frozen=True)
class RewardModelTraining:
    """Train a reward model on `pairs`; responses in `cut` have no end.

    It starts from `start`, a trained reward model; else from `body`, a policy; else from the model's own path or architecture.
    """

    start: RewardModel | None
    body: Policy | None
    pairs: tuple[Pair, ...]
    loss: Any  # a RewardLoss
    axes: tuple[str, ...]
    vocabulary: tuple[str, ...] | None
    model: RewardSpec
    seed: int
    cut: CutTexts = field(default_factory=dict)


@dataclass(frozen=True)
class OnlineTraining:
    """Train `policy` on samples of itself, in so many steps: a step samples n responses to each of its prompts, and trains on them.

    `prompts`: those of all steps, in order. `scales`: mean and sd of each member's scores, by which an ensemble's are standardised.
    """

    policy: Policy
    reward_model: RewardModel
    algorithm: Any  # an OnlineAlgorithm, or a PolicyLoss of pairs: the best against the worst sample of each prompt
    reference: Policy | None
    prompts: tuple[Prompt, ...]
    steps: int
    n: int
    model: PolicyModel
    reward: RewardSpec
    recipe: Recipe
    sampling: Sampling
    seed: int
    scales: tuple[tuple[float, float], ...] = ()

    @property
    def prompts_per_step(self) -> int:
        return len(self.prompts) // self.steps

    @property
    def is_paired(self) -> bool:
        return self.algorithm.reads == "pairs"

    @property
    def updates_per_step(self) -> int:
        """At most: fewer where samples are left out."""
        return self.recipe.updates(self.prompts_per_step * (1 if self.is_paired else self.n))

    @property
    def reads_samples_first(self) -> bool:
        """Whether a step reads its samples' log-probabilities before its first update, with a forward pass of their own.

        Where a step is one update without a reference, that update's forward pass gives them; losses of pairs do not read them.
        """
        return not self.is_paired and (self.reference is not None or self.updates_per_step > 1)

    def prompts_of(self, step: int) -> tuple[Prompt, ...]:
        """Of step 0, 1, ..."""
        return self.prompts[step * self.prompts_per_step : (step + 1) * self.prompts_per_step]


@dataclass(frozen=True)
class TRLTraining:
    """Train `policy` on `data` with a trainer of TRL, which compares with the policy as it was where it needs a reference.

    Responses to prompts are scored by `reward_model`; of an ensemble by its members, standardised by `scales` (mean, sd). The fit ends with
    BudgetExceeded of `arm` within a step of spending more of a unit than is `left`. `updates`: what it takes if it does not.
    """

    policy: Policy
    data: tuple[TRLItem, ...]
    trainer: str  # its full name, such as trl.DPOTrainer
    args: Mapping[str, Any]  # fields of its configuration, of those that no recipe and no sampling settings decide
    reward_model: RewardModel | None
    reward: RewardSpec
    model: PolicyModel
    recipe: Recipe
    updates: int
    seed: int
    arm: str
    left: Mapping[str, float]
    scales: tuple[tuple[float, float], ...] = ()
    token_ids: TokenIds = field(default_factory=dict)
