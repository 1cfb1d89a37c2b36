"""APO's algorithm, verb by verb, and real games on the smallest world."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from tiny_world import SMALL_TURN, tiny_bench, tiny_lab, tiny_task

from apo_bench.apo import APO
from apo_bench.config.plugins import resolve
from apo_bench.config.schema import NgramReward
from apo_bench.errors import InputError
from apo_bench.evaluation.context import EvaluationContext
from apo_bench.losses import APOLoss
from apo_bench.types import Golden, Message, Pair, Policy, Prompt, Response, RewardModel, Round

ONE, TWO = (Prompt(name, (Message("user", name),), "helpful", name) for name in ("one", "two"))
HUMAN = (Pair(ONE, "good", "bad"),)
GOLDEN = (Golden(ONE, "gold one"), Golden(TWO, "gold two"))
INITIAL = Policy("initial")


@dataclass
class RecordingLab:
    """The seam between APO and the Lab: notes each verb, and makes up results that name where they come from."""

    initial_policy: Policy = INITIAL
    verbs: list[tuple[Any, ...]] = field(default_factory=list)
    trained: int = 0

    def pairs(self) -> tuple[Pair, ...]:
        self.verbs.append(("pairs",))
        return HUMAN

    def golden(self) -> tuple[Golden, ...]:
        self.verbs.append(("golden",))
        return GOLDEN

    def sample(self, policy: Policy, prompts: Sequence[Prompt], n: int, draw: int) -> tuple[Response, ...]:
        self.verbs.append(("sample", policy.key, [prompt.id for prompt in prompts], n, draw))
        return tuple(Response(prompt, f"{policy.key} {draw} {number}", 3, "eos") for prompt in prompts for number in range(n))

    def train_reward_model(self, *pair_sets: Sequence[Pair], loss: Any, start: RewardModel | None = None) -> RewardModel:
        human, duels = pair_sets
        assert human == (HUMAN if ("pairs",) in self.verbs else ())
        assert [(duel.prompt, duel.chosen, duel.source) for duel in duels] == [
            (golden.prompt, golden.text, "golden_over_sample") for golden in GOLDEN for _ in range(2)
        ]
        self.trained += 1
        self.verbs.append(("reward model", [duel.rejected for duel in duels], loss, start.key if start else None))
        return RewardModel(f"rm{self.trained}")

    def finish_round(self, policy: Policy, reward_model: RewardModel) -> None:
        self.verbs.append(("finish", policy.key, reward_model.key))


@dataclass(frozen=True)
class RecordingPlayer:
    """A player whose new policy is named after its draw."""

    def update(self, lab: Any, policy: Policy, reward_model: RewardModel, draw: int) -> Policy:
        lab.verbs.append(("update", policy.key, reward_model.key, draw))
        return Policy(f"p{draw + 1}")


def verbs_of(**parameters: Any) -> list[tuple[Any, ...]]:
    lab = RecordingLab()
    APO(player=RecordingPlayer(), samples_per_prompt=2, apo_coeff=0.3, **parameters).run(lab)  # pyright: ignore[reportArgumentType]
    return lab.verbs


DATA = [("pairs",), ("golden",)]


def sampled(policy: str, draw: int) -> tuple[Any, ...]:
    return ("sample", policy, ["one", "two"], 2, draw)


def fitted(policy: str, draw: int, start: str | None = None) -> tuple[Any, ...]:
    """Golden held up against both samples of each prompt."""
    return ("reward model", [f"{policy} {draw} 0", f"{policy} {draw} 1"] * 2, APOLoss(0.3, 2), start)


def test_each_round_the_reward_model_is_refitted_on_the_current_policys_samples() -> None:
    assert verbs_of(rounds=3) == [
        *DATA,
        sampled("initial", 0), fitted("initial", 0), ("update", "initial", "rm1", 0), ("finish", "p1", "rm1"),
        sampled("p1", 1), fitted("p1", 1), ("update", "p1", "rm2", 1), ("finish", "p2", "rm2"),
        sampled("p2", 2), fitted("p2", 2), ("update", "p2", "rm3", 2), ("finish", "p3", "rm3"),
    ]  # fmt: skip


def test_golden_refresh_differs_in_the_opponent_alone() -> None:
    assert verbs_of(rounds=3, opponent="initial") == [
        *DATA,
        sampled("initial", 0), fitted("initial", 0), ("update", "initial", "rm1", 0), ("finish", "p1", "rm1"),
        sampled("initial", 1), fitted("initial", 1), ("update", "p1", "rm2", 1), ("finish", "p2", "rm2"),
        sampled("initial", 2), fitted("initial", 2), ("update", "p2", "rm3", 2), ("finish", "p3", "rm3"),
    ]  # fmt: skip


@pytest.mark.parametrize("opponent", ["current", "initial"])
def test_golden_static_is_fitted_once(opponent: Any) -> None:
    assert verbs_of(rounds=3, opponent=opponent, refit="once") == [
        *DATA,
        sampled("initial", 0), fitted("initial", 0), ("update", "initial", "rm1", 0), ("finish", "p1", "rm1"),
        ("update", "p1", "rm1", 1), ("finish", "p2", "rm1"),
        ("update", "p2", "rm1", 2), ("finish", "p3", "rm1"),
    ]  # fmt: skip


def test_a_reward_model_may_go_on_from_the_last() -> None:
    assert verbs_of(rounds=3, start="previous") == [
        *DATA,
        sampled("initial", 0), fitted("initial", 0), ("update", "initial", "rm1", 0), ("finish", "p1", "rm1"),
        sampled("p1", 1), fitted("p1", 1, "rm1"), ("update", "p1", "rm2", 1), ("finish", "p2", "rm2"),
        sampled("p2", 2), fitted("p2", 2, "rm2"), ("update", "p2", "rm3", 2), ("finish", "p3", "rm3"),
    ]  # fmt: skip


def test_the_defaults_are_the_papers() -> None:
    assert APO(player=RecordingPlayer()) == APO(
        RecordingPlayer(), rounds=3, samples_per_prompt=4, apo_coeff=0.1, opponent="current", refit="every_round", start="base"
    )


def test_without_human_pairs_none_is_asked_for_and_the_game_is_the_same() -> None:
    """The recording lab checks that the reward model then learns from duels alone."""
    assert verbs_of(rounds=2, human_pairs=False) == verbs_of(rounds=2)[1:]


def test_a_duel_of_differences_changes_the_loss_alone() -> None:
    expected = [(*verb[:2], APOLoss(0.3, 2, "difference"), verb[3]) if verb[0] == "reward model" else verb for verb in verbs_of(rounds=2)]
    assert verbs_of(rounds=2, duel="difference") == expected


# --- real games ---------------------------------------------------------------------------------------------------------------

BUDGET = {"human_pairs": 24, "golden_responses": 4}


def play(context: EvaluationContext, **parameters: Any) -> tuple[list[Round], dict[Any, float]]:
    player = {"use": "baselines/rejection_sampling.py@RejectionSampling", **SMALL_TURN, "prompts_per_round": 32}  # some choice differs
    lab = tiny_lab(context, BUDGET)
    resolve("apo_bench.apo@APO", {"samples_per_prompt": 2, "apo_coeff": 3.0, "player": player, **parameters}, base=None).run(lab)
    return lab.rounds, dict(lab.used)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> EvaluationContext:
    return tiny_bench(tmp_path_factory.mktemp("apo"))


@pytest.fixture(scope="module")
def games(context: EvaluationContext) -> dict[str, tuple[list[Round], dict[Any, float]]]:
    return {
        "apo": play(context, rounds=2),
        "refresh": play(context, rounds=2, opponent="initial"),
        "static": play(context, rounds=2, opponent="initial", refit="once"),
    }


@pytest.mark.slow
def test_round_one_is_the_same_game_for_apo_and_its_controls(games: dict[str, Any]) -> None:
    """In round 1 the current policy is the initial one, so opponents cannot differ yet."""
    (apo, _), (refresh, _), (static, _) = games.values()
    assert apo[0] == refresh[0] == static[0]


@pytest.mark.slow
def test_from_round_two_on_they_are_three_games(context: EvaluationContext, games: dict[str, Any]) -> None:
    (apo, _), (refresh, _), (static, _) = games.values()
    assert len({round_.reward_model.key for round_ in (apo[1], refresh[1], static[1])}) == 3
    assert len({round_.policy.key for round_ in (apo[1], refresh[1], static[1])}) == 3
    assert static[1].reward_model == static[0].reward_model
    folders = [context.store.open("policies", round_.policy.key).folder for round_ in (apo[0], apo[1], refresh[1], static[1])]
    assert len({(folder / "model.safetensors").read_bytes() for folder in folders}) == 4


@pytest.mark.slow
def test_golden_refresh_equals_apo_after_one_round_bit_for_bit(context: EvaluationContext, tmp_path: Path, games: dict[str, Any]) -> None:
    """Also in a store of its own, where nothing is shared: equal keys, and equal weights under them."""
    elsewhere = tiny_bench(tmp_path)
    rounds, used = play(elsewhere, rounds=1, opponent="initial")
    assert (rounds, used) == play(context, rounds=1)
    assert rounds == games["apo"][0][:1]
    assert rounds[0].reward_model is not None
    for kind, key in (("policies", rounds[0].policy.key), ("reward_models", rounds[0].reward_model.key)):
        here, there = (store.open(kind, key).folder / "model.safetensors" for store in (context.store, elsewhere.store))
        assert here.read_bytes() == there.read_bytes()


@pytest.mark.slow
def test_apo_and_golden_refresh_cost_the_same_in_all_that_is_known_beforehand(games: dict[str, Any]) -> None:
    """Per round: 4 golden x 2 + 32 prompts x 2 = 72 samples, 64 scored; 24 + up to 8 pairs in batches of 16; 32 best in 2 updates."""
    for name in ("apo", "refresh"):
        used = games[name][1]
        assert (used["human_pairs"], used["golden_responses"]) == (24, 4)
        assert (used["sampled_responses"], used["scored_responses"]) == (2 * 72, 2 * 64)
        assert (used["rm_updates"], used["policy_updates"]) == (2 * 2, 2 * 2)
    static = games["static"][1]
    assert (static["sampled_responses"], static["rm_updates"], static["policy_updates"]) == (72 + 64, 2, 4)


@pytest.mark.slow
def test_without_human_pairs_none_is_bought(context: EvaluationContext) -> None:
    """8 duels a round, in one update of 16: the human pairs' 24 are gone from the fit and from the account."""
    rounds, used = play(context, rounds=1, human_pairs=False)
    assert (used["human_pairs"], used["golden_responses"], used["rm_updates"]) == (0, 4, 1)
    assert rounds[0].reward_model is not None
    lab = tiny_lab(context, BUDGET)
    samples = lab.sample(lab.initial_policy, [golden.prompt for golden in lab.golden()], n=2, draw=0)
    texts = {golden.prompt: golden.text for golden in lab.golden()}
    duels = [Pair(sample.prompt, texts[sample.prompt], sample.text, "golden_over_sample") for sample in samples]
    assert lab.train_reward_model(duels, loss=APOLoss(3.0, 2)) == rounds[0].reward_model


@pytest.mark.slow
def test_a_reward_model_that_goes_on_is_another_from_round_two(context: EvaluationContext, games: dict[str, Any]) -> None:
    """As many updates, and in round 1 there is nothing to go on from."""
    rounds, used = play(context, rounds=2, start="previous")
    apo, apo_used = games["apo"]
    assert rounds[0] == apo[0]
    assert rounds[1].reward_model != apo[1].reward_model
    assert used["rm_updates"] == apo_used["rm_updates"]


@pytest.mark.slow
def test_differences_are_too_much_for_an_ngram_model(context: EvaluationContext) -> None:
    lab = tiny_lab(context, BUDGET, reward_model=NgramReward())
    with pytest.raises(InputError, match=r"^models\.reward\.kind: an n-gram model cannot be trained with APOLoss[^\n]*$"):
        APO(player=RecordingPlayer(), rounds=1, samples_per_prompt=2, duel="difference").run(lab)
    assert lab.used["rm_updates"] == 0


@pytest.mark.slow
def test_best_of_n_as_player_is_the_opponent_of_the_next_round(context: EvaluationContext) -> None:
    """Its samples are chosen by the last reward model: 4 golden x 2 answers of n = 3 tries, 24 tries and scores; before that, none."""
    n, used = 3, []
    for opponent in ("current", "initial"):
        player = {"use": "baselines/best_of_n.py@BestOfN", "n": n}
        rounds, spent = play(context, rounds=2, opponent=opponent, player=player)
        used.append((spent["sampled_responses"], spent["scored_responses"], spent["policy_updates"]))
        lab = tiny_lab(context)
        assert [round_.policy for round_ in rounds] == [lab.best_of_n(lab.initial_policy, round_.reward_model, n) for round_ in rounds]
    assert used == [(8 + 24, 24, 0), (8 + 8, 0, 0)]


@pytest.mark.slow
def test_without_golden_responses_there_is_no_game(context: EvaluationContext) -> None:
    task = replace(tiny_task(), golden={})
    lab = tiny_lab(replace(context, task=task))
    with pytest.raises(Exception, match="golden") as caught:
        APO(player=RecordingPlayer(), rounds=1).run(lab)
    assert type(caught.value).__name__ in ("InputError", "BudgetExceeded")
