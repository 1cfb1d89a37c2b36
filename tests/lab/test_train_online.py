"""The Lab's verb for online training, with the real parts: metered, memoised, refused in one line."""

import json
from typing import Any

import pytest
from online_algorithms import Reinforce
from tiny_world import tiny_bench, tiny_lab

from apo_bench.evaluation.context import EvaluationContext
from apo_bench.losses import RankingLoss
from apo_bench.types import RewardModel

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {"steps": 2, "prompts_per_step": 4, "n": 2}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> EvaluationContext:
    return tiny_bench(tmp_path_factory.mktemp("online"))


@pytest.fixture(scope="module")
def reward_model(bench: EvaluationContext) -> RewardModel:
    lab = tiny_lab(bench)
    return lab.train_reward_model(lab.pairs(20), loss=RankingLoss())


def steps_of(bench: EvaluationContext, key: str) -> list[dict[str, Any]]:
    text = (bench.store.root / "policies" / key / "steps.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_it_charges_what_its_steps_say(bench: EvaluationContext, reward_model: RewardModel) -> None:
    """2 steps of 4 prompts x 2 in batches of 16: 16 samples, 16 scores, an update a step. Twice is twice, and a replay computes nothing."""
    lab = tiny_lab(bench)
    policy = lab.train_online(lab.initial_policy, reward_model, Reinforce(), **SMALL)
    rows = steps_of(bench, policy.key)
    assert [row["step"] for row in rows] == [1, 2]
    assert all((row["prompts"], row["samples"], row["trained_samples"], row["updates"]) == (4, 8, 8, 1) for row in rows)
    used = lab.used
    assert (used["sampled_responses"], used["scored_responses"], used["policy_updates"]) == (16, 16, 2)
    assert used["sampled_tokens"] == sum(row["sampled_tokens"] for row in rows)
    assert used["policy_train_tokens"] == sum(row["train_tokens"] for row in rows)
    assert used["scored_tokens"] > 0
    assert used["flops"] > 0
    built = len(bench.store.built)
    assert lab.train_online(lab.initial_policy, reward_model, Reinforce(), **SMALL) == policy
    assert len(bench.store.built) == built
    assert lab.used == {unit: 2 * amount for unit, amount in used.items()}


def test_samples_go_on_from_the_trained_weights(bench: EvaluationContext, reward_model: RewardModel) -> None:
    """A second step at a large rate has other samples than one at a small rate; the first step's are the same."""
    lab, policies = tiny_lab(bench), []
    for rate in (1e-9, 0.1):
        policies.append(lab.train_online(lab.initial_policy, reward_model, Reinforce(), learning_rate=rate, **SMALL))
    small, large = (steps_of(bench, policy.key) for policy in policies)
    assert small[0]["reward"] == large[0]["reward"]
    assert small[1]["reward"] != large[1]["reward"]
