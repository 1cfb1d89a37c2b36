"""Scores of fresh samples by the experiment's reward model, while a policy is trained on them."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from apo_bench.config.schema import EnsembleReward, RewardSpec
from apo_bench.engines.protocol import Items, ScoringJob
from apo_bench.store import Computed
from apo_bench.training.online import Score, Scores
from apo_bench.types import EnsembleRewardModel, Response, RewardModel


def scorer(
    reward_model: RewardModel, spec: RewardSpec, scales: Sequence[tuple[float, float]], score: Callable[[ScoringJob], Computed[list[float]]]
) -> Score:
    """What scores responses by the engine's verb `score`; of an ensemble its members, standardised by `scales` (mean, sd), as one."""

    def single(model: RewardModel, own: Any, responses: Sequence[Response]) -> Scores:
        items = Items.of(responses)
        computed = score(ScoringJob(model, items, own, items.cut or {}))
        return computed.value, computed.counts

    def ensemble(responses: Sequence[Response]) -> Scores:
        assert isinstance(spec, EnsembleReward)
        assert isinstance(reward_model, EnsembleRewardModel)
        spent, scaled = Counter[str](), []
        for model, own, (mean, sd) in zip(reward_model.members, spec.of, scales, strict=True):
            scores, counts = single(model, own, responses)
            scaled.append((np.asarray(scores) - mean) / sd)
            spent.update(counts)
        return (np.mean if spec.combine == "mean" else np.min)(scaled, axis=0).tolist(), spent

    return ensemble if isinstance(spec, EnsembleReward) else lambda responses: single(reward_model, spec, responses)
