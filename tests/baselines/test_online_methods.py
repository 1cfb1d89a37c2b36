"""Online and self-play methods: what they ask of the Lab, and that they do what their names say."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from tiny_world import tiny_bench, tiny_lab

from apo_bench.config.plugins import resolve
from apo_bench.errors import InputError
from apo_bench.evaluation.context import EvaluationContext
from apo_bench.lab import golden_over_samples
from apo_bench.losses import ALGORITHMS, GRPO, DPOLoss, RankingLoss, SimPOLoss
from apo_bench.types import Policy, RewardModel, Round

ONLINE, ONLINE_DPO, SPIN = "baselines/online.py@Online", "baselines/online_dpo.py@OnlineDPO", "baselines/spin.py@SPIN"
STEPS = {"steps_per_round": 2, "prompts_per_step": 4, "samples_per_prompt": 2}


@dataclass
class OnlineCalls:
    """A Lab that trains nothing and keeps what it was called with: the i-th policy it gives is called i."""

    initial_policy: Policy = field(default_factory=lambda: Policy("initial"))
    calls: list[dict[str, Any]] = field(default_factory=list)

    def train_online(self, policy: Policy, reward_model: RewardModel, algorithm: Any, **settings: Any) -> Policy:
        self.calls.append({"policy": policy.key, "reward_model": reward_model.key, "algorithm": algorithm, **settings})
        return Policy(str(len(self.calls)))


def calls_of(use: str, parameters: dict[str, Any], rounds: int = 2) -> list[dict[str, Any]]:
    lab, policy, player = OnlineCalls(), Policy("start"), resolve(use, parameters, base=None)
    for draw in range(rounds):
        policy = player.update(lab, policy, RewardModel("liked"), draw=draw)
    return lab.calls


def test_a_round_is_so_many_steps_from_the_last_policy() -> None:
    """Round 2 starts at the policy of round 1, by its own rate and draw; the reference stays the initial policy."""
    calls = calls_of(ONLINE, {"algorithm": {"name": "grpo", "clip_high": 0.3}, "learning_rate": [1e-3, 1e-4], "epochs": 2.0, **STEPS})
    common = {"reward_model": "liked", "algorithm": GRPO(clip_high=0.3), "steps": 2, "prompts_per_step": 4, "n": 2}
    same = {**common, "reference": Policy("initial"), "epochs": 2.0}
    assert calls == [
        {"policy": "start", "draw": 0, "learning_rate": 1e-3, **same},
        {"policy": "1", "draw": 1, "learning_rate": 1e-4, **same},
    ]


@pytest.mark.parametrize(
    ("use", "parameters", "references"),
    [
        (ONLINE, {"algorithm": "grpo", "reference": "round_start"}, ["start", "1"]),
        (ONLINE, {"algorithm": "dapo"}, [None, None]),
        (ONLINE, {"algorithm": "sigmoid"}, ["initial", "initial"]),
        (ONLINE_DPO, {}, ["initial", "initial"]),
        (ONLINE_DPO, {"reference": "round_start"}, ["start", "1"]),
        (ONLINE_DPO, {"loss": "simpo"}, [None, None]),
    ],
)
def test_a_reference_is_given_where_the_algorithm_needs_it(use: str, parameters: dict[str, Any], references: list[str | None]) -> None:
    calls = calls_of(use, parameters)
    assert [call["reference"] and call["reference"].key for call in calls] == references


def test_online_dpo_trains_on_a_loss_of_pairs() -> None:
    (call,) = calls_of(ONLINE_DPO, {}, rounds=1)
    assert (call["algorithm"], call["steps"], call["prompts_per_step"], call["n"]) == (DPOLoss(), 10, 64, 4)
    assert calls_of(ONLINE_DPO, {"loss": {"name": "simpo", "gamma": 0.5}}, rounds=1)[0]["algorithm"] == SimPOLoss(gamma=0.5)


@pytest.mark.parametrize(
    ("use", "parameters", "message"),
    [
        (ONLINE, {}, "Online needs the parameter 'algorithm'"),
        (ONLINE, {"algorithm": "bco"}, "algorithm: no shipped online algorithm or loss of pairs is called 'bco'"),
        (ONLINE_DPO, {"loss": "grpo"}, "loss: no shipped loss is called 'grpo'"),
        (ONLINE, {"algorithm": "grpo", "steps_per_round": 0}, "steps_per_round: 1 or more is needed"),
        (SPIN, {"beta": 0}, r"beta: .*"),
    ],
)
def test_what_they_cannot_train_on_is_refused(use: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(use, parameters, base=None)


# --- with real parts ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> EvaluationContext:
    return tiny_bench(tmp_path_factory.mktemp("online_methods"))


@pytest.fixture(scope="module")
def reward_model(context: EvaluationContext) -> RewardModel:
    lab = tiny_lab(context)
    return lab.train_reward_model(lab.pairs(64), loss=RankingLoss())


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(name for name in ALGORITHMS if not name.endswith("policy_gradient")), "simpo"])
def test_every_algorithm_trains_and_pleases_its_reward_model_more(context: EvaluationContext, reward_model: RewardModel, name: str) -> None:
    """20 steps of 8 prompts x 4 at the recipe's large rate, on the same prompts again and again; fresh samples score higher.

    But for the bare policy gradients, which have no baseline to steady them.
    """
    lab = tiny_lab(context)
    player = resolve(ONLINE, {"algorithm": name, "steps_per_round": 20, "prompts_per_step": 8}, base=None)
    policy = player.update(lab, lab.initial_policy, reward_model, draw=0)
    assert lab.used["sampled_responses"] == lab.used["scored_responses"] == 20 * 8 * 4

    def mean_score(policy: Policy) -> float:
        other = tiny_lab(context)
        groups = other.score(reward_model, other.sample(policy, other.prompts(), draw=99))
        return float(np.mean([group.scores for group in groups]))

    assert mean_score(policy) > mean_score(lab.initial_policy)


@pytest.mark.slow
def test_alone_an_online_player_fits_its_reward_model_once(context: EvaluationContext) -> None:
    lab, by_hand = (tiny_lab(context, {"human_pairs": 16}) for _ in range(2))
    resolve(ONLINE, {"algorithm": "rloo", "rounds": 2, **STEPS}, base=None).run(lab)
    model, policy, expected = by_hand.train_reward_model(by_hand.pairs(), loss=RankingLoss()), by_hand.initial_policy, []
    for draw in range(2):
        policy = resolve(ONLINE, {"algorithm": "rloo", **STEPS}, base=None).update(by_hand, policy, model, draw)
        expected.append(Round(policy, model))
    assert (lab.rounds, lab.used) == (expected, by_hand.used)
    assert lab.used["sampled_responses"] == 2 * 2 * 4 * 2


@pytest.mark.slow
def test_spin_plays_golden_responses_against_its_last_iterate(context: EvaluationContext) -> None:
    """Two rounds by hand: each round's duels are with samples of the policy before it, which is the reference as well."""
    lab, by_hand = (tiny_lab(context, {"golden_responses": 8}) for _ in range(2))
    resolve(SPIN, {"rounds": 2, "samples_per_prompt": 2, "beta": [0.1, 5.0], "epochs": 2.0}, base=None).run(lab)
    golden, policy, expected = by_hand.golden(), by_hand.initial_policy, []
    for draw, beta in enumerate((0.1, 5.0)):
        samples = by_hand.sample(policy, [response.prompt for response in golden], n=2, draw=draw)
        policy = by_hand.train_policy(policy, golden_over_samples(golden, samples), DPOLoss(beta), reference=policy, epochs=2.0)
        expected.append(Round(policy, None))
    assert (lab.rounds, lab.used) == (expected, by_hand.used)
    assert (lab.used["rm_updates"], lab.used["human_pairs"], lab.used["golden_responses"]) == (0, 0, 8)
    assert lab.used["sampled_responses"] == 2 * 8 * 2
