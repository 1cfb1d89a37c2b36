"""The plan against what a real run spent, and against counts by hand."""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from rich.console import Console
from run_folder import experiment, frame, scored, write_run
from tiny_world import RJS, SMALL_TURN, tiny_task, tiny_tree

from apo_bench.analysis.costs import missed_matches
from apo_bench.analysis.results import Run, read_run
from apo_bench.config.load import load_experiment
from apo_bench.config.schema import Experiment
from apo_bench.data.task import load_task
from apo_bench.errors import InputError
from apo_bench.losses import SHIPPED
from apo_bench.package_data import shipped_root
from apo_bench.plan import accounts
from apo_bench.plan.accounts import BENCH
from apo_bench.plan.display import tables
from apo_bench.plan.make_plan import Plan, plan
from apo_bench.run import pipeline
from apo_bench.run.experiment import resolve_experiment
from apo_bench.run.gc import sweep
from apo_bench.stats.power_analysis import components, minimum_detectable_effect

pytestmark = pytest.mark.slow

COUNTS = ["human_pairs", "golden_responses", "sampled_responses", "scored_responses", "rm_updates", "policy_updates"]
EXPECTED = ["sampled_tokens", "scored_tokens", "rm_train_tokens", "policy_train_tokens", "flops"]
APO = "apo_bench.apo@APO"
OWN = """
from dataclasses import dataclass
from apo_bench.lab import Lab, best_of
from apo_bench.losses import RankingLoss, SFTLoss

@dataclass(frozen=True)
class BestOnce:
    samples_per_prompt: int = 2

    def run(self, lab: Lab) -> None:
        reward_model = lab.train_reward_model(lab.pairs(), loss=RankingLoss())
        samples = lab.sample(lab.initial_policy, lab.prompts(n=5), n=self.samples_per_prompt)
        policy = lab.train_policy(lab.initial_policy, best_of(lab.score(reward_model, samples)), SFTLoss())
        lab.finish_round(policy, reward_model)
"""


def planned(base: Path | None = None, arms: Mapping[str, Any] | None = None, pilot: Run | None = None, **changes: Any) -> Plan:
    """The tiny experiment's plan; `arms` in place of its own."""
    tree = {**tiny_tree(), **changes}
    if arms:
        tree |= {"arms": dict(arms), "compare": {"primary": [{"a": next(iter(arms)), "b": list(arms)[-1]}]}}
    return plan(Experiment.model_validate_json(json.dumps(tree)), tiny_task(), base=base, pilot=pilot)


def longer_arms() -> dict[str, Any]:
    """The tiny experiment's, with so many samples a round that no two arms come to the same choices, and share a policy."""
    arms = tiny_tree()["arms"]
    for arm in arms.values():
        arm.get("player", arm).update(prompts_per_round=16, samples_per_prompt=4)
    return arms


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny experiment."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**tiny_tree(), "arms": longer_arms()}, sort_keys=False))
    assert not pipeline.run(resolve_experiment(folder / "tiny.yaml", None, folder / "run"), workers=2).failures
    return folder / "run"


def test_the_plan_is_what_the_run_spends(real: Path) -> None:
    """Counts are equal, and an arm's tokens and FLOPs within 10 %, given how long the initial policy's answers are (it is hardly trained).

    The bench asks the trained policies, too, whose lengths no plan knows.

    Weights are within 20 %, a file of so small a model being in good part its header, and so is all that the run left on disk.
    """
    run = read_run(real)
    answers = pd.read_parquet(real / "tables" / "responses.parquet")
    length = float(answers.loc[answers["round"] == 0, "tokens"].mean())
    projected = plan(run.experiment, tiny_task(), response_tokens=length)
    assert not projected.failures
    actual = run.tables["ledger"].groupby(["arm", "unit"])["used"].mean().to_dict()
    for arm, units in projected.used().items():
        for unit in (*COUNTS, *(EXPECTED if arm != BENCH else ())):
            assert units[unit] == pytest.approx(actual[arm, unit], rel=0.1 if unit in EXPECTED else 0), (arm, unit)
    folders = [real / "store" / kind for kind in ("policies", "reward_models")]
    kept = sum(path.stat().st_size for folder in folders for path in folder.rglob("*/model.safetensors"))
    assert sum(disk.weights for disk in projected.disk.values()) == pytest.approx(kept, rel=0.2)
    assert sum(disk.all for disk in projected.disk.values()) == pytest.approx(taken(real), rel=0.2)


def taken(folder: Path) -> int:
    """Bytes of the disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))


def test_adapters_take_what_a_run_with_adapters_leaves(tmp_path: Path) -> None:
    """Two whole policies, the new one and the warmed-up one; all others, and reward models, are adapters, in fp32. Within 20 %, as above.

    `store.keep: final` removes three reward models a seed, and policies of first rounds: what is left is again within 20 %.
    """
    pytest.importorskip("peft")
    tree = tiny_tree()
    for model in ("policy", "reward"):
        tree["models"][model]["training"] = {**tree["models"][model]["training"], "lora": {"rank": 2}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    run = tmp_path / "run"
    assert not pipeline.run(resolve_experiment(tmp_path / "tiny.yaml", None, run), workers=1).failures
    tree["store"] = {"keep": "final"}
    projected = plan(Experiment.model_validate_json(json.dumps(tree)), tiny_task(), response_tokens=6.0)
    stored = sum(path.stat().st_size for kind in ("model", "adapter_model") for path in run.rglob(f"{kind}.safetensors"))
    assert sum(disk.weights for disk in projected.disk.values()) == pytest.approx(stored, rel=0.2)
    needed = sum(disk.all for disk in projected.disk.values())
    assert needed == pytest.approx(taken(run), rel=0.2)
    assert len(sweep(run, keep="final").paths) >= 6
    assert projected.removed > 0
    assert needed - projected.removed == pytest.approx(taken(run), rel=0.2)


@pytest.mark.parametrize(("name", "n_arms"), [("quickstart", 4), ("sim_rjs", 9)])
def test_a_shipped_experiments_plan_is_its_shipped_report(name: str, n_arms: int) -> None:
    """Without a word on lengths: the policy has learned to answer as the task's demonstrations do.

    The report's amounts are means over several seeds, the plan's of one: two drawn pairs that are equal count once, so human pairs may
    differ a little. Of equal answers DPO makes no pair, so its updates may be fewer. How arms are examined is no matter to them.
    The shipped reports' FLOPs were counted by an earlier rule (docs/decisions/0010), under which all positions had logits.
    """
    path = shipped_root() / "experiments" / f"{name}.yaml"
    gold = [{"name": "linear", "model": {"kind": "ngram"}, "seeds": [0]}]
    small = {f"evaluation.{name}": n for name, n in (("prompts", 20), ("kl_prompts", 4), ("diagnostic_pairs", 10))}
    shipped = load_experiment(path, {"seeds": [0], "models.gold": gold, **small})
    used = plan(shipped, load_task("sim_hh", shipped.task.options, base=None)).used()
    with (path.parents[1] / "results" / name / "report" / "tables" / "budget.csv").open() as file:
        rows = [(row[f"arm_{side}"], row["unit"], float(row[f"used_{side}"])) for row in csv.DictReader(file) for side in "ab"]
    assert len({arm for arm, _, _ in rows}) == n_arms
    for arm, unit, amount in rows:
        if unit == "flops":
            continue
        tolerance = 0.1 if unit in EXPECTED or "dpo" in arm else 0.005 if unit == "human_pairs" else 0
        assert used[arm][unit] == pytest.approx(amount, rel=tolerance), (arm, unit)


def test_what_arms_share_is_paid_once() -> None:
    """Alone an arm samples 6 golden x 2 and 8 prompts x 2 in each of two rounds: 56.

    Both arms' first rounds are one, so both policies sample alike at the end of the second too: all that is APO's own are the current
    policy's 12 samples in between. Both see the same 32 pairs and 6 golden responses a seed. All kinds match.
    """
    apo = {"use": APO, "rounds": 2, "samples_per_prompt": 2, "player": {"use": RJS, **SMALL_TURN}}
    projected = planned(arms={"golden_refresh": {**apo, "opponent": "initial"}, "apo_rjs": apo})
    alone, here = projected.used(), projected.used("marginal")
    assert alone["apo_rjs"]["sampled_responses"] == 56
    assert here["golden_refresh"]["sampled_responses"] == 56
    assert [here["apo_rjs"][unit] for unit in ("sampled_responses", "human_pairs", "golden_responses")] == [12, 0, 0]
    assert set(projected.matches.loc[projected.matches["kind"] != "", "matched"]) == {"yes"}


@pytest.mark.parametrize(
    "player",
    [
        {"use": RJS, **SMALL_TURN},
        {"use": "baselines/rrhf.py@RRHF", **SMALL_TURN},
        {"use": "baselines/iterative_dpo.py@DPO", **SMALL_TURN},
        {"use": "baselines/best_of_n.py@BestOfN", "n": 2},
    ],
    ids=lambda player: player["use"].rpartition("@")[2],
)
def test_every_player_plans_alone_in_apo_and_after_sft(player: dict[str, Any]) -> None:
    apo = {"use": APO, "rounds": 1, "samples_per_prompt": 2, "player": player}
    sft = {"use": "baselines/sft.py@SFT", "then": player, "then_rounds": 1}
    projected = planned(
        arms={"alone": player, "apo": apo, "sft": sft, "golden": {"use": "baselines/sft.py@SFT", "imitate": "golden"}}, seeds=[0]
    )
    assert not projected.failures
    assert all(units["flops"] > 0 for units in projected.used().values())


def test_every_shipped_loss_plans() -> None:
    """32 pairs in batches of 16 are 2 updates, and their 64 sides, unpaired, are 4: the same tokens. KTO reads each side twice, once as
    another prompt's."""
    use = {"pairs": "baselines/preference.py@Preference", "unpaired": "baselines/kto.py@KTO"}
    arms = {name: {"use": use[loss.reads], "loss": name} for name, loss in SHIPPED.items() if loss.reads in use}
    projected = planned(arms=arms, seeds=[0])
    assert not projected.failures
    updates = {name: projected.used()[name]["policy_updates"] for name in arms}
    assert updates == {name: 2 if SHIPPED[name].reads == "pairs" else 4 for name in arms}
    flops = {name: projected.used()[name]["flops"] for name in arms}
    assert flops["simpo"] < flops["sigmoid"] == flops["bco"] == flops["aot"]
    assert flops["kto"] == pytest.approx(2 * flops["sigmoid"], rel=0.01)


def test_a_users_method_plans(tmp_path: Path) -> None:
    """5 prompts x 2 samples are sampled and scored; 32 pairs in batches of 16 are 2 updates, 5 demonstrations one."""
    (tmp_path / "own.py").write_text(OWN)
    projected = planned(tmp_path, {"own": {"use": "own.py@BestOnce"}}, seeds=[0])
    assert not projected.failures
    assert [projected.used()["own"][unit] for unit in COUNTS] == [32, 0, 10, 10, 2, 1]


def test_tuning_is_each_trial_once_more_and_its_dev_scores() -> None:
    """Two trials of one round of 8 prompts x 2 or 4 samples: 16 + 32 and as many scores, on the same 32 pairs, of one reward model.

    The bench answers 4 dev prompts for each trial (and 4 once more for its divergence) and for rounds 0 and 1 of the one arm, and fits a
    referee a seed.
    """
    grid = {"samples_per_prompt": [2, 4]}
    arms = {"rjs": {"use": RJS, "rounds": 1, **SMALL_TURN}}
    tune = {"trials": 2, "seeds": [7], "grids": {"rjs": grid}}
    evaluation = {**tiny_tree()["evaluation"], "dev_prompts": 4}
    without = planned(arms=arms, seeds=[0], evaluation=evaluation)
    projected = planned(arms=arms, seeds=[0], evaluation=evaluation, tune=tune)
    assert projected.accounts == ("rjs", "_tune.rjs", BENCH)
    spent, new = projected.used()["_tune.rjs"], projected.used("marginal")["_tune.rjs"]
    assert [spent[unit] for unit in COUNTS] == [32, 0, 48, 48, 4, 2]
    assert [new[unit] for unit in COUNTS] == [32, 0, 48, 48, 2, 2]
    assert projected.used()["rjs"] == without.used()["rjs"]
    bench, before = projected.used()[BENCH], without.used()[BENCH]
    assert bench["sampled_responses"] - before["sampled_responses"] == 2 * (4 + 4)
    assert projected.disk["_tune.rjs"].weights > projected.disk["rjs"].weights  # a policy more


def test_controls_are_planned() -> None:
    """A/A is rjs again: 16 samples a seed, on 2 seeds of its own, with pairs some of which are new.

    The oracle gives 3 answers to 14 prompts a seed.
    """
    plain, projected = planned(), planned(controls={"aa": True, "oracle": True, "oracle_n": 3})
    assert projected.accounts == ("rjs", "apo_rjs", "_aa", BENCH)
    again = projected.ledger[projected.ledger["arm"] == "_aa"]
    assert sorted(again["seed"].unique()) == [1_000_000, 1_000_001]
    assert projected.used()["_aa"]["sampled_responses"] == 16
    assert projected.used()["_aa"]["rm_updates"] == projected.used()["rjs"]["rm_updates"]
    assert 0 < projected.used("marginal")["_aa"]["human_pairs"] <= 32
    oracle = planned(controls={"oracle": True, "oracle_n": 3}).used()[BENCH]
    assert oracle["sampled_responses"] - plain.used()[BENCH]["sampled_responses"] == 2 * 14 * 3
    assert projected.disk["_oracle"].all > 0
    assert projected.disk["_oracle"].weights == 0


def test_a_declared_match_that_is_missed_is_a_sentence() -> None:
    """Twice the samples a prompt are 32 against 16 a seed."""
    arms = {"few": {"use": RJS, "rounds": 1, **SMALL_TURN}, "many": {"use": RJS, "rounds": 1, **SMALL_TURN, "samples_per_prompt": 4}}
    compare = {"primary": [{"a": "many", "b": "few", "matched": ["annotation", "samples"]}]}
    projected = plan(Experiment.model_validate_json(json.dumps({**tiny_tree(), "arms": arms, "compare": compare})), tiny_task())
    assert missed_matches(projected.matches) == ["many against few: sampled_responses 32 against 16, ratio 2"]


def test_the_initial_policy_answers_as_measured_and_a_trained_one_as_the_task_does() -> None:
    """Of rjs's two rounds of 16 samples the first are the initial policy's, 3 tokens each; the others as long as without that word."""
    arms = {"rjs": {"use": RJS, "rounds": 2, **SMALL_TURN}}
    tree = {**tiny_tree(), "arms": arms, "seeds": [0], "compare": {"primary": [{"a": "rjs", "b": "rjs"}]}}
    question = Experiment.model_validate_json(json.dumps(tree))
    (plain, measured) = (plan(question, tiny_task(), initial_tokens=tokens).used()["rjs"]["sampled_tokens"] for tokens in (None, 3.0))
    assert measured == pytest.approx(16 * 3 + plain / 2, rel=0.05)


def test_sized_arms_are_planned_as_they_were_sized() -> None:
    arms = {**tiny_tree()["arms"]}
    arms["rjs"]["fit"] = {"to": "apo_rjs", "by": "samples_per_prompt", "unit": "sampled_responses"}
    projected = planned(arms=arms, seeds=[0])
    assert projected.fits["rjs"].value == 7
    assert projected.used()["rjs"]["sampled_responses"] == projected.used()["apo_rjs"]["sampled_responses"] == 56
    tree = {**tiny_tree(), "arms": arms}
    tree["models"]["policy"] = {"path": "nobody/nothing", "training": {"learning_rate": 1e-3}, "sampling": {"max_new_tokens": 10}}
    arms["rjs"]["fit"]["unit"] = "flops"
    elsewhere = plan(Experiment.model_validate_json(json.dumps(tree)), tiny_task())
    assert not elsewhere.fits
    assert any("arms.rjs.fit: flops cannot be counted" in note for note in elsewhere.notes)


def test_what_sharing_saves_over_all_arms() -> None:
    """As below: of 2 x 56 samples alone, 44 are shared."""
    apo = {"use": APO, "rounds": 2, "samples_per_prompt": 2, "player": {"use": RJS, **SMALL_TURN}}
    projected = planned(arms={"golden_refresh": {**apo, "opponent": "initial"}, "apo_rjs": apo}, seeds=[0])
    assert projected.saved["sampled_responses"] == (112, 68)
    assert projected.saved["human_pairs"] == (64, 32)


def test_what_would_fail_is_foretold() -> None:
    """16 samples are asked for of a budget of 10. The other arm has its own budget and goes on; a failed arm has no match to speak of."""
    projected = planned(budget={"human_pairs": 32, "golden_responses": 6, "sampled_responses": 10}, seeds=[0])
    assert ("rjs", 0, "budget exceeded: arm rjs, unit sampled_responses: needs 16, has 10 left") in projected.failures
    assert projected.used()["rjs"]["sampled_responses"] == 0


def test_judges_are_counted_and_priced() -> None:
    """One pair x 2 seeds x 14 prompts x 2 orders = 56; the audit's 5 pairs x 2 orders, with six attacks 70. A free judge has no price."""
    chat = {"use": "apo_bench.judging.chat_judge@ChatJudge", "model": "m", "base_url": "http://x.test/v1", "api_key_env": None}
    priced = {**chat, "usd_per_million_completion_tokens": 1000.0, "max_tokens": 10, "max_usd": 3.0}
    projected = planned(judges={"free": chat, "priced": priced}, judging={"audit_pairs": 5})
    free, paid = projected.judges
    assert (free.questions, free.audit_questions, free.worst_usd) == (56, 70, None)
    assert (paid.worst_usd, paid.max_usd) == (pytest.approx(2 * 126 * 10 * 1000 / 1e6), 3.0)  # asked twice, ten tokens each


def test_a_pilot_tells_what_this_design_finds(tmp_path: Path) -> None:
    """The pilot's components at this design's 3 seeds and 14 clusters; two seeds make no test."""
    rng = np.random.default_rng(50)
    settings = experiment()
    settings["compare"] |= {"scorer": "ground_truth", "axes": ["all"], "primary": [{"a": "apo_rjs", "b": "rjs"}], "secondary": []}
    scores = scored({(arm, seed, 0): (rng.normal(size=8) + rng.normal()).tolist() for arm in ("apo_rjs", "rjs") for seed in range(4)})
    ledger = frame("ledger", [("rjs", 0, "flops", 1.0, math.nan)])
    pilot = read_run(write_run(tmp_path / "pilot", {"scores": scores, "ledger": ledger}, settings))
    parts = components(scores, "apo_rjs", "rjs")
    sds = {name: getattr(parts, name) for name in ("seed_sd", "method_prompt_sd", "residual_sd")}
    (three,), (two,) = (planned(seeds=list(range(n)), pilot=pilot).detectable for n in (3, 2))
    assert (three.n_seeds, three.n_clusters) == (3, 14)
    assert three.difference == minimum_detectable_effect(**sds, n_seeds=3, n_clusters=14)
    assert math.isnan(two.difference)
    assert two.note == "two seeds or two clusters make no test"


def test_a_model_that_is_not_here_is_not_known() -> None:
    tree = tiny_tree()
    tree["models"]["policy"] = {"path": "nobody/nothing", "training": {"learning_rate": 1e-3}, "sampling": {"max_new_tokens": 10}}
    projected = planned(models=tree["models"], seeds=[0])
    assert projected.used()["rjs"]["sampled_responses"] == 16
    assert math.isnan(projected.used()["rjs"]["flops"])
    assert any("models.policy, models.reward: not on this machine" in note for note in projected.notes)


def test_nothing_is_written_and_the_tables_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arms = {f"a_rather_long_name_of_an_arm_{n}": {"use": RJS, "rounds": 1, **SMALL_TURN} for n in range(6)}
    console = Console(width=100, markup=False, highlight=False)
    with console.capture() as shown:
        for table in tables(planned(arms=arms, seeds=[0])):
            console.print(table)
    assert not list(tmp_path.iterdir())
    assert max(map(len, shown.get().splitlines())) <= 100
    assert "not known without a pilot" in shown.get()


def test_a_length_is_one_or_more() -> None:
    with pytest.raises(InputError, match="response_tokens"):
        plan(Experiment.model_validate_json(json.dumps(tiny_tree())), tiny_task(), response_tokens=0.0)


def test_seeds_beyond_the_second_are_copied_with_equal_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a plan that plays every seed: counts and stocks are equal, tokens and FLOPs within 5 %, disk within 1 %."""
    changes: dict[str, Any] = {"seeds": [0, 1, 2, 3], "store": {"keep": "final"}, "controls": {"oracle": True, "oracle_n": 3}}
    copied = planned(arms=longer_arms(), **changes)
    monkeypatch.setattr(accounts, "PLAYED", 4)
    played = planned(arms=longer_arms(), **changes)
    for column in ("used", "marginal"):
        for unit in (*COUNTS, *EXPECTED):
            rows = [projected.ledger[projected.ledger["unit"] == unit][column].tolist() for projected in (copied, played)]
            assert rows[0] == pytest.approx(rows[1], rel=0.05 if unit in EXPECTED else 0), unit
    assert copied.removed == pytest.approx(played.removed, rel=0.01)
    assert sum(disk.all for disk in copied.disk.values()) == pytest.approx(sum(disk.all for disk in played.disk.values()), rel=0.01)


def test_seeds_that_spend_otherwise_are_all_played(tmp_path: Path) -> None:
    """This method samples for 5 prompts or 6, by its first pair. Of three seeds, the first two of which differ, each is as it is alone."""
    (tmp_path / "own.py").write_text(OWN.replace("n=5)", "n=5 + int(lab.pairs()[0].id, 16) % 2)"))
    arms = {"own": {"use": "own.py@BestOnce"}}
    alone = {seed: planned(tmp_path, arms, seeds=[seed]).used()["own"]["sampled_responses"] for seed in range(6)}
    few, many = (next(seed for seed, sampled in alone.items() if sampled == n) for n in (10, 12))
    seeds = [few, many, *sorted(set(alone) - {few, many})[:1]]
    rows = planned(tmp_path, arms, seeds=seeds).ledger
    sampled = rows[(rows["arm"] == "own") & (rows["unit"] == "sampled_responses")]
    assert dict(zip(sampled["seed"], sampled["used"], strict=True)) == {seed: alone[seed] for seed in seeds}
