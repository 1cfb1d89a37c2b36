"""What is to be trained, as one record: the Lab fills it in, an engine carries it out, a launched process reads it from a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from apo_bench.config.schema import PolicyModel, Recipe, RewardSpec
from apo_bench.types import CutTexts, Demonstration, Group, Pair, Policy, RewardModel, UnpairedExample

Counts = Mapping[str, float]  # amounts spent, by ledger unit and name of a count
TokenIds = Mapping[str, Mapping[str, tuple[int, ...]]]  # of sampled responses, by prompt id and text: see types.Response


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
