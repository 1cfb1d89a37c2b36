"""The shipped methods: each keeps the contract, is short, and does what its name says."""

import ast
import io
import tokenize
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_world import tiny_bench, tiny_lab

from apo_bench.config.plugins import resolve
from apo_bench.config.schema import PolicyModel
from apo_bench.errors import InputError
from apo_bench.evaluation.context import EvaluationContext
from apo_bench.evaluation.method_contract import check_method
from apo_bench.lab import best_of, best_worst
from apo_bench.losses import SHIPPED as LOSSES
from apo_bench.losses import DPOLoss, RankingLoss, RRHFLoss, SFTLoss, SimPOLoss
from apo_bench.models.policy import load_policy
from apo_bench.models.tokenize import ChatFormat
from apo_bench.types import Demonstration, Pair, Policy, RewardModel, Round

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
METHODS = [ROOT / "apo_bench" / "apo.py", *sorted((ROOT / "baselines").glob("*.py"))]
APO = "apo_bench.apo@APO"
RJS, RRHF, DPO = (f"baselines/{name}" for name in ("rejection_sampling.py@RejectionSampling", "rrhf.py@RRHF", "iterative_dpo.py@DPO"))
PREFERENCE, KTO = "baselines/preference.py@Preference", "baselines/kto.py@KTO"
TRL = "baselines/trl_trainer.py@TRLTrainer"
SFT, BEST = "baselines/sft.py@SFT", "baselines/best_of_n.py@BestOfN"
ONLINE, ONLINE_DPO, SPIN = "baselines/online.py@Online", "baselines/online_dpo.py@OnlineDPO", "baselines/spin.py@SPIN"
HUMAN_REFIT = "baselines/human_refit.py@HumanRefit"
SMALL = {"prompts_per_round": 6, "samples_per_prompt": 2}
STEPS: dict[str, Any] = {"steps_per_round": 2, "prompts_per_step": 4, "samples_per_prompt": 2}
REFRESH: dict[str, Any]
STATIC: dict[str, Any]
REFRESH, STATIC = {"opponent": "initial"}, {"opponent": "initial", "refit": "once"}


def apo(player: str, rounds: int = 1, moves: dict[str, Any] = SMALL, **parameters: Any) -> tuple[str, dict[str, Any]]:
    return APO, {"rounds": rounds, "samples_per_prompt": 2, "player": {"use": player, **moves}, **parameters}


SHIPPED: dict[str, tuple[str, dict[str, Any]]] = {  # every file, every player in APO and in a control of it, every ablation once
    "rejection sampling": (RJS, {"rounds": 1, **SMALL}),
    "rrhf": (RRHF, {"rounds": 2, "learning_rate": [1e-3, 1e-4], **SMALL}),
    "dpo from the round's start": (DPO, {"rounds": 2, "reference": "round_start", "learning_rate": 1e-4, "epochs": 2.0, **SMALL}),
    "best of n": (BEST, {"n": [2, 3]}),
    "sft on chosen": (SFT, {"imitate": "chosen"}),
    "sft on golden, then rrhf": (SFT, {"imitate": "golden", "then": {"use": RRHF, **SMALL}, "then_rounds": 1}),
    "preference by name, on human pairs": (PREFERENCE, {"rounds": 2}),
    "preference by aligned weights, without a reference": (PREFERENCE, {"loss": {"name": "wpo", "loss": "simpo"}}),
    "dpo's samples by sorted margins": (DPO, {"rounds": 1, "loss": "aot", **SMALL}),
    "kto": (KTO, {}),
    "trl's dpo": (TRL, {"trainer": "trl.DPOTrainer", "args": {"beta": 0.3}, "rounds": 2}),
    "trl's grpo": (TRL, {"trainer": "trl.GRPOTrainer", "args": {"num_generations": 4}, "prompts_per_round": 8}),
    "rrhf as its authors' code weighs it": (RRHF, {"rounds": 1, "imitation": "padded_mean", **SMALL}),
    "preference on golden responses over samples": (PREFERENCE, {"pairs": "golden_over_sample", "samples_per_prompt": 2}),
    "grpo": (ONLINE, {"rounds": 2, "algorithm": "grpo", **STEPS}),
    "dapo with other bounds": (ONLINE, {"rounds": 1, "algorithm": {"name": "dapo", "clip_high": 0.3, "entropy_bonus": 0.01}, **STEPS}),
    "reinforce++ from the round's start": (
        ONLINE,
        {"rounds": 2, "algorithm": "reinforce_plus_plus", "reference": "round_start", "learning_rate": [1e-3, 1e-4], **STEPS},
    ),
    "online dpo": (ONLINE_DPO, {"rounds": 1, **STEPS}),
    "online simpo": (ONLINE_DPO, {"rounds": 1, "loss": "simpo", **STEPS}),
    "spin": (SPIN, {"rounds": 2, "samples_per_prompt": 2, "beta": [0.1, 5.0]}),
    "refit on human pairs": (HUMAN_REFIT, {"rounds": 2, "repeated_pairs": 5, "player": {"use": RJS, **SMALL}}),
    "refit on human pairs, going on": (
        HUMAN_REFIT,
        {"rounds": 2, "repeated_pairs": 5, "start": "previous", "player": {"use": BEST, "n": 2}},
    ),
    "apo with grpo": apo(ONLINE, 2, {"algorithm": "grpo", **STEPS}),
    "golden_refresh with rloo": apo(ONLINE, 1, {"algorithm": "rloo", **STEPS}, **REFRESH),
    "apo with online dpo": apo(ONLINE_DPO, 1, STEPS),
    "apo with rejection sampling": apo(RJS, 2),
    "apo with rrhf, without human pairs": apo(RRHF, human_pairs=False),
    "apo with dpo, going on": apo(DPO, 2, start="previous"),
    "apo with best of n, by differences": apo(BEST, 2, {"n": 3}, duel="difference"),
    "golden_refresh with rejection sampling": apo(RJS, **REFRESH),
    "golden_refresh with rrhf": apo(RRHF, **REFRESH),
    "golden_static with dpo": apo(DPO, 2, **STATIC),
    "golden_static with best of n": apo(BEST, 2, {"n": 2}, **STATIC),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_method_keeps_the_contract(name: str) -> None:
    results = check_method(*SHIPPED[name])
    assert [result.name for result in results] == ["deterministic", "budget respected", "blind", "replayable"]
    assert [result for result in results if not result.passed] == []


def test_every_shipped_file_is_put_to_the_contract() -> None:
    used = {use.partition("@")[0] for use, _ in SHIPPED.values()}
    for path in METHODS:
        name = "apo_bench.apo" if path.name == "apo.py" else f"baselines/{path.name}"
        assert name in used, f"{path} is not in SHIPPED"


def code_lines(source: str) -> int:
    """Lines with code: no docstring, comment or blank line."""
    documented = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    strings = [node.body[0] for node in documented if ast.get_docstring(node) is not None]
    docstrings = {line for string in strings for line in range(string.lineno, (string.end_lineno or 0) + 1)}
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.ENCODING}
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type not in silent]
    return len({line for token in tokens for line in range(token.start[0], token.end[0] + 1)} - docstrings)


def test_lines_of_code_are_counted_rightly() -> None:
    body = ["x = 1  # said", "# only said", "", "", "def f():", '    """Doc."""', "    return (", "        1", "    )"]
    assert code_lines("\n".join(['"""Doc.', "", 'More."""', "", *body, ""])) == 5


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.name)
def test_a_method_file_stays_short(path: Path) -> None:
    assert code_lines(path.read_text(encoding="utf-8")) < 60


# --- what they do -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> EvaluationContext:
    return tiny_bench(tmp_path_factory.mktemp("baselines"))


@pytest.fixture(scope="module")
def reward_model(context: EvaluationContext) -> RewardModel:
    lab = tiny_lab(context)
    return lab.train_reward_model(lab.pairs(64), loss=RankingLoss())


def mean_score(context: EvaluationContext, reward_model: RewardModel, policy: Policy) -> float:
    """On fresh samples to all policy prompts."""
    lab = tiny_lab(context)
    groups = lab.score(reward_model, lab.sample(policy, lab.prompts(), draw=99))
    return float(np.mean([group.scores for group in groups]))


def test_the_best_of_n_score_higher_than_their_mean(context: EvaluationContext, reward_model: RewardModel) -> None:
    lab = tiny_lab(context)
    groups = lab.score(reward_model, lab.sample(lab.initial_policy, lab.prompts(n=20), n=4))
    best = lab.score(reward_model, [(demonstration.prompt, demonstration.response) for demonstration in best_of(groups)])
    for group, winner in zip(groups, best, strict=True):
        assert winner.prompt == group.prompt
        assert winner.scores[0] == pytest.approx(max(group.scores), abs=1e-5)
    gain = np.mean([winner.scores[0] for winner in best]) - np.mean([np.mean(group.scores) for group in groups])
    assert gain > 0.5 * np.mean([np.std(group.scores) for group in groups]) > 0  # the maximum of 4 draws: about one sd above the mean


def test_rejection_sampling_pleases_its_reward_model_more(context: EvaluationContext, reward_model: RewardModel) -> None:
    method = resolve(RJS, {"samples_per_prompt": 4, "epochs": 4.0}, base=None)
    lab = tiny_lab(context)
    policy = method.update(lab, lab.initial_policy, reward_model, draw=0)
    assert mean_score(context, reward_model, policy) > mean_score(context, reward_model, lab.initial_policy)


def test_rrhf_trains_on_all_scored_samples(context: EvaluationContext, reward_model: RewardModel) -> None:
    """The same samples, scored and handed over as groups, with its weight, its rate of round 2 and its epochs."""
    method = resolve(RRHF, {**SMALL, "ranking_weight": 2.0, "learning_rate": [1e-3, 5e-4], "epochs": 2.0}, base=None)
    lab = tiny_lab(context)
    groups = lab.score(reward_model, lab.sample(lab.initial_policy, lab.prompts(n=6, draw=1), n=2, draw=1))
    expected = lab.train_policy(lab.initial_policy, groups, RRHFLoss(2.0), learning_rate=5e-4, epochs=2.0)
    assert method.update(lab, lab.initial_policy, reward_model, draw=1) == expected
    assert resolve(RRHF, {**SMALL, "imitation": "padded_mean"}, base=None).update(lab, lab.initial_policy, reward_model, draw=1) == (
        lab.train_policy(lab.initial_policy, groups, RRHFLoss(1.0, "padded_mean"))
    )


def test_rrhf_pleases_its_reward_model_more(context: EvaluationContext, reward_model: RewardModel) -> None:
    lab = tiny_lab(context)
    policy = resolve(RRHF, {"samples_per_prompt": 4, "epochs": 2.0}, base=None).update(lab, lab.initial_policy, reward_model, draw=0)
    assert mean_score(context, reward_model, policy) > mean_score(context, reward_model, lab.initial_policy)


def test_best_of_n_trains_no_policy_and_pleases_more_the_more_it_tries(context: EvaluationContext) -> None:
    """n = 1, 2, 8 as rounds, one reward model for all; means over all policy prompts, whose expected maxima rise with n."""
    lab = tiny_lab(context, {"human_pairs": 32})
    resolve(BEST, {"n": [1, 2, 8]}, base=None).run(lab)
    (model,) = {round_.reward_model for round_ in lab.rounds}
    assert model is not None
    assert [round_.policy for round_ in lab.rounds] == [lab.best_of_n(lab.initial_policy, model, n) for n in (1, 2, 8)]
    assert lab.used["policy_updates"] == lab.used["sampled_responses"] == 0
    means = [mean_score(context, model, round_.policy) for round_ in lab.rounds]
    assert means[0] == mean_score(context, model, lab.initial_policy)
    assert means[2] > means[1] > means[0]


def test_best_of_n_as_player_always_chooses_among_the_initial_policys_samples(
    context: EvaluationContext, reward_model: RewardModel
) -> None:
    """Of a list of n one a round, and no round more; a single n holds for all."""
    lab = tiny_lab(context)
    for n, wanted in ([2, 5], (2, 5)), (3, (3, 3, 3)):
        method = resolve(BEST, {"n": n}, base=None)
        moves = [method.update(lab, Policy("elsewhere"), reward_model, draw=draw) for draw in range(len(wanted))]
        assert moves == [lab.best_of_n(lab.initial_policy, reward_model, tries) for tries in wanted]
    with pytest.raises(InputError, match="n: 2 given, one a round, but round 3 is played"):
        resolve(BEST, {"n": [2, 5]}, base=None).update(lab, Policy("elsewhere"), reward_model, draw=2)


def log_ratios(context: EvaluationContext, policy: Policy, pairs: Sequence[Pair]) -> np.ndarray:
    """log p(chosen) - log p(rejected), one sequence at a time and without padding: independent of the training code."""
    spec: PolicyModel = context.experiment.models.policy
    model, tokenizer = load_policy(context.store.open("policies", policy.key).folder)
    model.eval()

    @torch.no_grad()
    def logp(pair: Pair, text: str) -> float:
        start = ChatFormat(tokenizer, spec.system_prompt).encode_prompt(pair.prompt, spec.max_prompt_tokens).ids
        end = ChatFormat(tokenizer, spec.system_prompt).encode_response(pair.prompt, text, spec.max_response_tokens)
        rows = model(input_ids=torch.tensor([start + end])).logits[0].log_softmax(dim=-1)
        return sum(float(rows[len(start) + place - 1, token]) for place, token in enumerate(end))

    return np.asarray([logp(pair, pair.chosen) - logp(pair, pair.rejected) for pair in pairs])


@pytest.mark.parametrize("reference", ["initial", "round_start"])
def test_dpo_raises_the_margin_of_chosen_over_rejected(context: EvaluationContext, reward_model: RewardModel, reference: str) -> None:
    """Its pairs are the best over the worst by the reward model; on them log p(chosen) / p(rejected) must grow."""
    method = resolve(DPO, {"prompts_per_round": 16, "samples_per_prompt": 2, "reference": reference, "epochs": 2.0}, base=None)
    lab = tiny_lab(context)
    trained = method.update(lab, lab.initial_policy, reward_model, draw=0)
    pairs = best_worst(lab.score(reward_model, lab.sample(lab.initial_policy, lab.prompts(n=16, draw=0), n=2, draw=0)))
    assert len(pairs) > 8
    before, after = (log_ratios(context, policy, pairs) for policy in (lab.initial_policy, trained))
    assert (after - before).mean() > 0.1
    assert (after > before).mean() > 0.8


def test_dpo_takes_another_loss_of_pairs(context: EvaluationContext, reward_model: RewardModel) -> None:
    """The same pairs: without a loss, or by name, DPO's at beta 0.1; a loss without a reference is given none."""
    lab = tiny_lab(context)
    pairs = best_worst(lab.score(reward_model, lab.sample(lab.initial_policy, lab.prompts(n=6, draw=0), n=2, draw=0)))
    start = lab.initial_policy

    def moved(**parameters: Any) -> Policy:
        return resolve(DPO, {**SMALL, **parameters}, base=None).update(lab, start, reward_model, draw=0)

    dpo = lab.train_policy(start, pairs, DPOLoss(0.1), reference=start)
    assert moved() == moved(loss=None) == moved(beta=0.1) == moved(loss="sigmoid") == dpo
    assert moved(beta=0.2) == moved(loss={"name": "sigmoid", "beta": 0.2}) == lab.train_policy(start, pairs, DPOLoss(0.2), reference=start)
    assert moved(loss={"name": "simpo", "gamma": 0.5}) == lab.train_policy(start, pairs, SimPOLoss(gamma=0.5))
    with pytest.raises(InputError, match="beta is DPO's; give the loss its own"):
        moved(beta=0.2, loss="ipo")


def test_dpos_references_part_ways_in_round_two(context: EvaluationContext) -> None:
    rounds = {}
    for reference in ("initial", "round_start"):
        lab = tiny_lab(context, {"human_pairs": 16})
        resolve(DPO, {"rounds": 2, "reference": reference, **SMALL}, base=None).run(lab)
        rounds[reference] = lab.rounds
    assert rounds["initial"][0] == rounds["round_start"][0]
    assert rounds["initial"][1].policy != rounds["round_start"][1].policy
    assert len({round_.reward_model for each in rounds.values() for round_ in each}) == 1  # alone, it is fitted once


class TiedLab:
    """A Lab whose reward model likes everything alike; every other verb would fail."""

    initial_policy = Policy("initial")

    def __init__(self, context: EvaluationContext) -> None:
        self.lab = tiny_lab(context)

    def prompts(self, *words: Any, **names: Any) -> Any:
        return self.lab.prompts("policy", n=3)

    def sample(self, policy: Policy, prompts: Any, n: int, draw: int) -> Any:
        return self.lab.sample(self.lab.initial_policy, prompts, n=n, draw=draw)

    def score(self, reward_model: RewardModel, samples: Any) -> Any:
        from apo_bench.types import Group

        return [Group(response.prompt, (response.text, f"{response.text} again"), (0.0, 0.0)) for response in samples]


def test_dpo_stays_where_every_group_is_tied(context: EvaluationContext) -> None:
    policy = Policy("now")
    assert resolve(DPO, {}, base=None).update(TiedLab(context), policy, RewardModel("flat"), draw=0) is policy


@pytest.mark.parametrize("on", ["chosen", "golden"])
def test_sft_makes_what_it_imitates_likelier(context: EvaluationContext, on: str) -> None:
    lab = tiny_lab(context, {"human_pairs": 32, "golden_responses": 16})
    resolve(SFT, {"imitate": on, "epochs": 3.0}, base=None).run(lab)
    shown = (
        [Demonstration(pair.prompt, pair.chosen) for pair in tiny_lab(context).pairs(32)]
        if on == "chosen"
        else [Demonstration(golden.prompt, golden.text) for golden in tiny_lab(context).golden(16)]
    )
    as_pairs = [Pair(demonstration.prompt, demonstration.response, "sorry") for demonstration in shown]
    before, after = (log_ratios(context, policy, as_pairs).mean() for policy in (lab.initial_policy, lab.rounds[0].policy))
    assert after > before
    assert lab.rounds[0].reward_model is None
    assert (lab.used["human_pairs"], lab.used["golden_responses"]) == ((32, 0) if on == "chosen" else (0, 16))
    assert lab.used["sampled_responses"] == lab.used["rm_updates"] == 0


def test_sft_may_be_the_start_of_a_players_rounds(context: EvaluationContext) -> None:
    """Two passes over 8 golden responses, which are no rounds; then the player moves from there, by a reward model of the human pairs."""
    lab, by_hand = (tiny_lab(context, {"human_pairs": 16, "golden_responses": 8}) for _ in range(2))
    resolve(SFT, {"imitate": "golden", "rounds": 2, "then": {"use": RJS, **SMALL}, "then_rounds": 2}, base=None).run(lab)
    policy, shown = by_hand.initial_policy, [Demonstration(golden.prompt, golden.text) for golden in by_hand.golden()]
    for _ in range(2):
        policy = by_hand.train_policy(policy, shown, SFTLoss())
    model, player = by_hand.train_reward_model(by_hand.pairs(), loss=RankingLoss()), resolve(RJS, SMALL, base=None)
    expected = []
    for draw in range(2):
        policy = player.update(by_hand, policy, model, draw=draw)
        expected.append(Round(policy, model))
    assert lab.rounds == expected
    assert lab.used == by_hand.used


def test_sfts_rounds_go_on_from_each_other(context: EvaluationContext) -> None:
    lab = tiny_lab(context, {"human_pairs": 16})
    resolve(SFT, {"rounds": 2}, base=None).run(lab)
    assert len({round_.policy for round_ in lab.rounds}) == 2
    assert lab.used["policy_updates"] == 2


def test_kto_makes_chosen_responses_likelier_than_rejected(context: EvaluationContext) -> None:
    """32 pairs are 64 items, in batches of 16, twice: 8 updates. It reads no reward model."""
    lab = tiny_lab(context, {"human_pairs": 32})
    resolve(KTO, {"epochs": 2.0, "loss": {"name": "kto", "beta": 1.0}}, base=None).run(lab)
    pairs = tiny_lab(context).pairs(32)
    before, after = (log_ratios(context, policy, pairs) for policy in (lab.initial_policy, lab.rounds[0].policy))
    assert (after - before).mean() > 0.1
    assert (lab.used["policy_updates"], lab.used["human_pairs"], lab.rounds[0].reward_model) == (8, 32, None)


def test_every_shipped_loss_trains_moves_and_replays(context: EvaluationContext) -> None:
    """By name, in the arm that trains on what it reads; each policy is another, and a second run computes nothing."""
    arms = {"pairs": PREFERENCE, "unpaired": KTO}
    names = [name for name, loss in LOSSES.items() if loss.reads in arms]
    policies = []
    for name in names:
        lab, again = (tiny_lab(context, {"human_pairs": 16}) for _ in range(2))
        method = resolve(arms[LOSSES[name].reads], {"loss": name}, base=None)
        method.run(lab)
        before = len(context.store.built)
        method.run(again)
        assert len(context.store.built) == before
        assert (again.rounds, again.used) == (lab.rounds, lab.used)
        policies.append(lab.rounds[0].policy.key)
    assert len({*policies, tiny_lab(context).initial_policy.key}) == len(names) + 1


def test_a_refit_on_human_pairs_takes_as_many_updates_as_apo_and_no_golden_response(context: EvaluationContext) -> None:
    """3 golden responses x 2 samples are 6 more pairs than the human ones, in APO's rounds and here: equal updates of the reward model,
    2 ceil((32 + 6) / 16) = 6 in two rounds; and each round's reward model is another."""
    spent = []
    move = {"use": RJS, **SMALL}
    for use, parameters in ((APO, {"samples_per_prompt": 2}), (HUMAN_REFIT, {"repeated_pairs": 6})):
        lab = tiny_lab(context, {"human_pairs": 32, "golden_responses": 3})
        resolve(use, {"rounds": 2, "player": move, **parameters}, base=None).run(lab)
        assert len({round_.reward_model for round_ in lab.rounds}) == 2
        spent.append({unit: lab.used[unit] for unit in ("human_pairs", "rm_updates", "policy_updates", "golden_responses")})
    apo_spent, refit_spent = spent
    assert refit_spent == apo_spent | {"golden_responses": 0}
    assert refit_spent["rm_updates"] == 6
