"""Online training on the models of a run's store: the policy that is trained, its frozen reference, and what scores."""

from collections.abc import Callable
from pathlib import Path

from apo_bench.engines.protocol import ScoringJob
from apo_bench.engines.reward_scores import scorer
from apo_bench.engines.stored_models import StoredModels
from apo_bench.store import Computed
from apo_bench.training.checkpoints import Checkpoints
from apo_bench.training.online import STEPS, Online
from apo_bench.training.training_spec import OnlineTraining


def train_online(
    job: OnlineTraining,
    models: StoredModels,
    score: Callable[[ScoringJob], Computed[list[float]]],
    checkpoints: Checkpoints,
    into: Path,
    report: Callable[[str], None],
) -> Computed[None]:
    """Carry out a job with resolved settings; the model and its steps are in `into` afterwards. `score` is the engine's verb."""
    model, tokenizer = models.policy_to_train(job)
    reference = models.policy(job.reference, job.model)[0] if job.reference is not None else None
    scores = scorer(job.reward_model, job.reward, job.scales, score)
    counts, steps = Online(job, model, tokenizer, reference, scores, checkpoints, report).train()
    models.keep_policy((model, tokenizer), job, into)
    (into / STEPS).write_text(steps, encoding="utf-8")
    return Computed(None, counts)
