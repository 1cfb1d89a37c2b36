"""Scores of fresh samples by the experiment's reward model, while a policy is trained on them."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from apo_bench.config.schema import EnsembleReward, RewardSpec
from apo_bench.engines.ensembles import combined
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
        scored = [single(model, own, responses) for model, own in zip(reward_model.members, spec.of, strict=True)]
        spent = Counter[str]()
        for _, counts in scored:
            spent.update(counts)
        return combined([scores for scores, _ in scored], scales, spec.combine), spent

    return ensemble if isinstance(spec, EnsembleReward) else lambda responses: single(reward_model, spec, responses)
