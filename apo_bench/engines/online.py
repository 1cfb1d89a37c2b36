"""Online training on the models of a run's store: the policy that is trained, its frozen reference, and what scores."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from apo_bench.config.schema import EnsembleReward, NgramReward, SingleReward
from apo_bench.engines.stored_models import StoredModels
from apo_bench.models import ngram
from apo_bench.models import reward as rewards
from apo_bench.store import Computed
from apo_bench.training.checkpoints import Checkpoints
from apo_bench.training.online import STEPS, Online, Score, Scores
from apo_bench.training.training_spec import OnlineTraining, TRLTraining
from apo_bench.types import EnsembleRewardModel, Prompt, Response, RewardModel, cut_texts


def train_online(
    job: OnlineTraining, models: StoredModels, checkpoints: Checkpoints, into: Path, report: Callable[[str], None]
) -> Computed[None]:
    """Carry out a job with resolved settings; the model and its steps are in `into` afterwards."""
    model, tokenizer = models.policy_to_train(job)
    reference = models.policy(job.reference, job.model)[0] if job.reference is not None else None
    counts, steps = Online(job, model, tokenizer, reference, scorer(job, models), checkpoints, report).train()
    models.keep_policy((model, tokenizer), job, into)
    (into / STEPS).write_text(steps, encoding="utf-8")
    return Computed(None, counts)


def scorer(job: OnlineTraining | TRLTraining, models: StoredModels) -> Score:
    """The job's reward model, which stays loaded from step to step."""
    assert job.reward_model is not None
    if not isinstance(job.reward, EnsembleReward):
        return _single(job.reward_model, job.reward, models)
    assert isinstance(job.reward_model, EnsembleRewardModel)
    members = [_single(*parts, models) for parts in zip(job.reward_model.members, job.reward.of, strict=True)]
    combine = np.mean if job.reward.combine == "mean" else np.min

    def score(responses: Sequence[Response]) -> Scores:
        scored = [member(responses) for member in members]
        scaled = [(np.asarray(scores) - mean) / sd for (scores, _), (mean, sd) in zip(scored, job.scales, strict=True)]
        names = {name for _, counts in scored for name in counts}
        return combine(scaled, axis=0).tolist(), {name: sum(counts.get(name, 0.0) for _, counts in scored) for name in names}

    return score


def _single(reward_model: RewardModel, spec: SingleReward, models: StoredModels) -> Score:
    if isinstance(spec, NgramReward):
        linear = ngram.NgramRewardModel.load(models.folder("reward_models", reward_model))
        return lambda responses: (linear.score(_items(responses)), {"scored_responses": len(responses)})
    model, tokenizer = models.reward_model(reward_model, spec)

    def score(responses: Sequence[Response]) -> tuple[list[float], Mapping[str, float]]:
        return rewards.score(model, tokenizer, _items(responses), spec, cut_texts(responses))

    return score


def _items(responses: Sequence[Response]) -> list[tuple[Prompt, str]]:
    return [(response.prompt, response.text) for response in responses]
