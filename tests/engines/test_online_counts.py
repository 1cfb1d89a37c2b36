"""What a plan counts of online training against what it spends, where lengths are fixed: every response has a single token."""

from typing import Any

import pytest
from online_algorithms import Reinforce, ReinforceToReference
from tiny_world import tiny_bench, tiny_lab, tiny_task, tiny_tree

from apo_bench.config.schema import Experiment, Lora, NgramReward, Recipe, Sampling
from apo_bench.evaluation.context import EvaluationContext
from apo_bench.lab import Lab
from apo_bench.losses import DPOLoss, RankingLoss
from apo_bench.plan.accounts import Work
from apo_bench.plan.arm_spend import CountingContext, counting_context

pytestmark = pytest.mark.slow

COUNTED = ("sampled_responses", "sampled_tokens", "scored_responses", "policy_updates", "policy_train_tokens", "flops")
TOKEN = Sampling(max_new_tokens=1)
RECIPE = Recipe(learning_rate=1e-3, batch_size=4, precision="fp32", gradient_checkpointing=False)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> EvaluationContext:
    return tiny_bench(tmp_path_factory.mktemp("counts"))


@pytest.fixture(scope="module")
def counting() -> CountingContext:
    return counting_context(Experiment.model_validate(tiny_tree()), tiny_task())


def spent(lab: Lab, algorithm: Any, recipe: Recipe, draw: int = 0) -> dict[str, float]:
    """By online training alone: 3 steps of 4 prompts x 2."""
    reward_model = lab.train_reward_model(lab.pairs(20), loss=RankingLoss())
    before = dict(lab.used)
    reference = lab.initial_policy if algorithm.needs_reference else None
    lab.train_online(
        lab.initial_policy, reward_model, algorithm, steps=3, prompts_per_step=4, n=2, draw=draw, reference=reference,
        recipe=recipe, sampling=TOKEN,
    )  # fmt: skip
    return {unit: lab.used[unit] - before[unit] for unit in COUNTED}  # pyright: ignore


CASES: dict[str, tuple[Any, Recipe]] = {
    "an update a step": (Reinforce(), RECIPE.model_copy(update={"batch_size": 8})),
    "several": (Reinforce(), RECIPE),
    "two passes in parts": (ReinforceToReference(), RECIPE.model_copy(update={"epochs": 2.0, "micro_batch_size": 2})),
    "a fraction of a pass": (ReinforceToReference(), RECIPE.model_copy(update={"epochs": 1.5, "batch_size": 8})),
    "recomputed": (Reinforce(), RECIPE.model_copy(update={"gradient_checkpointing": True})),
}


@pytest.mark.parametrize("name", CASES)
def test_a_plan_counts_what_is_spent(bench: EvaluationContext, counting: CountingContext, name: str) -> None:
    algorithm, recipe = CASES[name]
    real = spent(tiny_lab(bench, reward_model=NgramReward()), algorithm, recipe)
    planned = spent(counting.lab(0, NgramReward()), algorithm, recipe)
    assert planned == pytest.approx(real, rel=1e-9)
    assert real["policy_updates"] == 3 * recipe.updates(8)


def test_a_plan_leaves_adapters_out_where_they_are_only_read(bench: EvaluationContext, counting: CountingContext) -> None:
    """As in all its sampling: of models this small they are 5 % of the FLOPs."""
    recipe = RECIPE.model_copy(update={"lora": Lora(rank=2)})
    real = spent(tiny_lab(bench, reward_model=NgramReward()), ReinforceToReference(), recipe)
    planned = spent(counting.lab(0, NgramReward()), ReinforceToReference(), recipe)
    assert planned == {**real, "flops": pytest.approx(real["flops"], rel=0.06)}
    assert planned["flops"] < real["flops"]


def test_a_plan_counts_a_pair_a_prompt(bench: EvaluationContext, counting: CountingContext) -> None:
    """Where none of them ties: 12 pairs, in updates of 4, and a reference that reads them once. The samples are those of the draw."""
    steps = counting.lab(0, NgramReward())
    planned = spent(steps, DPOLoss(), RECIPE)
    assert (planned["policy_updates"], planned["sampled_responses"]) == (3, 24)
    lab = tiny_lab(bench, reward_model=NgramReward())
    real = spent(lab, DPOLoss(), RECIPE)
    assert 0 < real["policy_updates"] <= 3
    assert 0 < real["policy_train_tokens"] < planned["policy_train_tokens"]  # equal samples tie
    assert real["sampled_tokens"] == planned["sampled_tokens"]


def test_work_of_samples_and_scores_is_theirs(counting: CountingContext) -> None:
    """3 steps x 8 samples with room for a token each; what scoring takes is no training's."""
    lab = counting.lab(0)
    reward_model = lab.train_reward_model(lab.pairs(20), loss=RankingLoss())
    before = set(counting.planned)
    lab.train_online(lab.initial_policy, reward_model, Reinforce(), steps=3, prompts_per_step=4, n=2, recipe=RECIPE, sampling=TOKEN)
    [key] = set(counting.planned) - before
    work = Work.of([counting.planned[key]])
    assert work.artifacts == {"policies": 1, "scores": 0, "samples": 0}
    assert work.amounts["samples"] == 24
    assert 0 < work.amounts["scores"] + work.amounts["policies"] < lab.charged[key]["flops"]
    assert counting.planned[key].weights > 0


def test_its_models_are_loaded_at_once(counting: CountingContext) -> None:
    lab = counting.lab(0)
    reward_model = lab.train_reward_model(lab.pairs(20), loss=RankingLoss())
    lab.train_online(
        lab.initial_policy, reward_model, ReinforceToReference(), steps=1, prompts_per_step=4, n=2, reference=lab.initial_policy,
        recipe=RECIPE, sampling=TOKEN, draw=1,
    )  # fmt: skip
    online = [part for part in counting.engine.passes.largest.values() if part.verb == "train online"]
    part = max(online, key=lambda part: len(part.beside))
    assert (part.items, part.sides, part.samples) == (4, 1, (4, 2))
    assert [each.verb for each in part.beside] == ["score", "reference"]
