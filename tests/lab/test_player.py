"""Players: what a move is given, with what learning rate, and from which policy."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
from tiny_world import tiny_bench, tiny_lab

from apo_bench.errors import InputError
from apo_bench.evaluation.context import EvaluationContext
from apo_bench.lab import Lab, Player, best_of, of_round, play_alone
from apo_bench.losses import SFTLoss
from apo_bench.types import Demonstration, Policy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> EvaluationContext:
    return tiny_bench(tmp_path_factory.mktemp("players"))


@dataclass(frozen=True)
class Watcher(Player):
    """Notes what it is given, and moves back to the initial policy."""

    seen: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)

    def learn(self, lab: Lab, policy: Policy, groups: Any, rate: float | None) -> Policy:
        self.seen.append((policy, groups, rate))
        return lab.initial_policy


@pytest.mark.parametrize(("rates", "expected"), [(None, [None] * 3), (0.5, [0.5] * 3), ((0.5, 0.2, 0.1), [0.5, 0.2, 0.1])])
def test_learning_rates_are_one_for_all_rounds_or_one_a_round(bench: EvaluationContext, rates: Any, expected: list[float | None]) -> None:
    """Each round 4 fresh prompts with 2 answers each, scored by the one reward model."""
    lab = tiny_lab(bench, {"human_pairs": 20})
    player = Watcher(rounds=3, prompts_per_round=4, samples_per_prompt=2, learning_rate=rates)
    player.run(lab)
    assert [rate for _, _, rate in player.seen] == expected
    for round_, (policy, groups, _) in enumerate(player.seen):
        assert policy == lab.initial_policy
        assert [group.prompt for group in groups] == list(lab.prompts(n=4, draw=round_))
        assert {len(group.responses) for group in groups} == {2}
    assert len({round_.reward_model for round_ in lab.rounds}) == 1
    assert lab.used["scored_responses"] == 3 * 8


def test_too_few_learning_rates_are_an_error(bench: EvaluationContext) -> None:
    lab = tiny_lab(bench, {"human_pairs": 20})
    player = Watcher(rounds=3, prompts_per_round=4, samples_per_prompt=2, learning_rate=(0.5, 0.2))
    with pytest.raises(InputError, match=r"^learning_rate: 2 given, one a round, but round 3 is played$"):
        player.run(lab)
    assert len(lab.rounds) == 2


@dataclass(frozen=True)
class Imitator(Player):
    def learn(self, lab: Lab, policy: Policy, groups: Any, rate: float | None) -> Policy:
        return lab.train_policy(policy, best_of(groups), SFTLoss(), learning_rate=rate)


def test_an_arms_learning_rates_reach_the_memo_keys(bench: EvaluationContext) -> None:
    """Rates (a, b) and (a, c) part in round 2; a alone is (a, a); and none is the experiment's, here 1e-2."""
    keys = {}
    for rates in (None, 1e-2, (1e-2, 1e-2), (1e-2, 1e-3), 1e-3):
        lab = tiny_lab(bench, {"human_pairs": 20})
        Imitator(rounds=2, prompts_per_round=4, samples_per_prompt=2, learning_rate=rates).run(lab)
        keys[rates] = [round_.policy.key for round_ in lab.rounds]
    assert keys[None] == keys[1e-2] == keys[1e-2, 1e-2]
    assert keys[1e-2, 1e-3][0] == keys[1e-2][0]
    assert len({keys[1e-2][1], keys[1e-2, 1e-3][1], keys[1e-3][1]}) == 3
    assert keys[1e-3][0] != keys[1e-2][0]


def test_a_player_may_begin_elsewhere(bench: EvaluationContext) -> None:
    """The first move is from there; the reward model is the one it would have anyway."""
    lab, plain = tiny_lab(bench, {"human_pairs": 20}), tiny_lab(bench, {"human_pairs": 20})
    demonstrations = [Demonstration(pair.prompt, pair.chosen) for pair in plain.pairs(20)]
    start = lab.train_policy(lab.initial_policy, demonstrations, SFTLoss())
    player, other = (Watcher(prompts_per_round=4, samples_per_prompt=2) for _ in range(2))
    play_alone(lab, player, 2, start=start)
    play_alone(plain, other, 2)
    assert [policy for policy, _, _ in player.seen] == [start, lab.initial_policy]
    assert [policy for policy, _, _ in other.seen] == [lab.initial_policy] * 2
    assert lab.rounds[0].reward_model == plain.rounds[0].reward_model


def test_a_value_for_a_round() -> None:
    assert [of_round(0.5, round_, "rate") for round_ in (0, 7)] == [0.5, 0.5]
    assert [of_round((0.5, 0.2), round_, "rate") for round_ in (0, 1)] == [0.5, 0.2]
    with pytest.raises(InputError, match=r"^rate: 2 given, one a round, but round 3 is played$"):
        of_round((0.5, 0.2), 2, "rate")
