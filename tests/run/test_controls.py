"""Controls: seeds and rules by hand, what is said of synthetic runs, the oracle recomputed, and a tiny run with all of them."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_line import write_experiment
from run_folder import experiment, frame, scored, write_run
from tiny_world import tiny_bench, tiny_task, tiny_tree

from apo_bench.analysis.controls import controls, sentences
from apo_bench.analysis.power import primary_power
from apo_bench.analysis.results import Run, read_run
from apo_bench.config.controls import AA, DILUTED, FIRST, HARD, ORACLE, aa_seeds, chooser, diluted, hard_failure
from apo_bench.config.schema import Controls, Experiment, Tune
from apo_bench.engines import open_engine
from apo_bench.errors import InputError
from apo_bench.evaluation.context import EvaluationContext, in_order
from apo_bench.evaluation.oracle import DRAW, oracle
from apo_bench.losses import RankingLoss
from apo_bench.report.report import write_report
from apo_bench.report.write import MANIFEST, write_report_files
from apo_bench.run import pipeline
from apo_bench.run.experiment import resolve_experiment
from apo_bench.run.gc import sweep
from apo_bench.run.records import finished, record_key
from apo_bench.run.status import read_status
from apo_bench.run.worker import work
from apo_bench.stats.power_analysis import minimum_detectable_effect
from apo_bench.store import RunStore
from apo_bench.tables import TABLES, empty_table
from apo_bench.types import Response, Round

pytestmark = pytest.mark.slow

A, B = "apo_rjs", "golden_refresh"  # B is the reference of tests/run_folder.py's experiment
MILLION = 1_000_000
POOLED = "ground_truth, all axes pooled"


def small_experiment(**changes: Any) -> Experiment:
    return Experiment.model_validate_json(json.dumps(experiment(**changes)))


# --- rules ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seeds", "tuned", "expected"),
    [
        ([0, 7, 3], [], [MILLION, MILLION + 3, MILLION + 7]),
        ([0, MILLION], [], [2 * MILLION, 3 * MILLION]),  # 0 + 1e6 is the second seed; that + 1e6 is then taken by the first
        ([0], [MILLION], [2 * MILLION]),
        ([2**32 - 1], [], [MILLION - 1]),
    ],
)
def test_seeds_of_its_own(seeds: list[int], tuned: list[int], expected: list[int]) -> None:
    changed = small_experiment(seeds=seeds)
    if tuned:
        changed = changed.model_copy(update={"tune": Tune(trials=2, seeds=tuple(tuned), grids={"rjs": {"rounds": (1, 2)}})})
    assert aa_seeds(changed) == tuple(expected)
    assert not set(aa_seeds(changed)) & {*seeds, *tuned}
    assert aa_seeds(changed.model_copy(update={"seeds": tuple(reversed(seeds))})) == tuple(expected)


def test_an_oracle_chooses_by_the_truth_or_by_a_gold_model_that_does_not_score() -> None:
    small = small_experiment()
    assert chooser(small, has_truth=True) == "ground_truth"
    with pytest.raises(InputError, match=r"^controls\.oracle: no ground truth"):
        chooser(small, has_truth=False)
    golds = [{"name": name, "model": {"kind": "ngram"}} for name in ("encoder", "second", "third")]
    assert chooser(small_experiment(models=experiment()["models"] | {"gold": golds}), has_truth=False) == "third"


@pytest.mark.parametrize(("share", "expected"), [(0.14, 3), (0.125, 2), (0.5, 10), (1.0, 20), (1e-6, 1)])
def test_diluted_by_whole_clusters(share: float, expected: int) -> None:
    """Of 20 clusters: 2.8, 2.5 (to the even number), 10, 20; and never none. More of them keep those of fewer."""
    clusters = [f"c{place % 20}" for place in range(60)]
    chosen = diluted(clusters, share)
    assert len(chosen) == expected
    assert abs(len(chosen) - share * 20) <= 1
    assert chosen == diluted(reversed(clusters), share) <= diluted(clusters, min(1, 2 * share)) <= set(clusters)


# --- what is said ---------------------------------------------------------------------------------------------------------------

Values = Sequence[Sequence[float] | np.ndarray] | np.ndarray  # seeds x prompts
HARDNESS = np.array([0.0, 3.0, -1.0, 5.0])  # of four prompts


def rows(arm: str, values: Values, seeds: Sequence[int] | None = None, round_: int = 1) -> pd.DataFrame:
    places = range(len(values)) if seeds is None else seeds
    return scored({(arm, seed, round_): list(row) for seed, row in zip(places, values, strict=True)})


def made_run(
    folder: Path, arms: pd.DataFrame, beside: pd.DataFrame, failures: Sequence[dict[str, Any]] = (), seeds: int = 3, **asked_for: Any
) -> Run:
    settings = experiment(seeds=list(range(seeds)), controls=asked_for)
    settings["compare"] = {"primary": [{"a": A, "b": B}], "scorer": "ground_truth"}
    frames = {"scores": arms, "ledger": frame("ledger", [(A, 0, "flops", 1.0, math.nan)])}
    frames |= {"control_scores": beside} if len(beside) else {}
    return read_run(write_run(folder / "run", frames, settings, failures=list(failures)))


def aa_run(folder: Path, shift: float, n: int = 3) -> Run:
    """Seed means -1, 0, 1 (of two: -1, 1) in both, the same prompts, and nothing else; `shift` away under the other seeds."""
    values = np.linspace(-1, 1, n)[:, None] + HARDNESS
    arms = pd.concat([rows(B, values), rows(A, values + 1)])
    again = rows(AA, values + shift, [MILLION + seed for seed in range(n)])
    return made_run(folder, arms, again, aa=True, seeds=n)


def test_nothing_looks_like_nothing(tmp_path: Path) -> None:
    """V = 1/3 + 1/3, no other term; four degrees of freedom: t = 2.776, so the interval is 2.776 x .8165 = 2.267 on either side."""
    run = aa_run(tmp_path, 0.0)
    (row,) = controls(run).to_dict("records")
    assert (row["control"], row["arm_a"], row["arm_b"], row["n_seeds"], row["n_clusters"]) == ("aa", B, AA, 3, 4)
    assert (row["difference"], row["standard_error"], row["df"], row["p_value"]) == pytest.approx((0, math.sqrt(2 / 3), 4, 1))
    assert "not paired" in row["test"]
    assert sentences(run) == [
        f"The reference, {B}, against itself under other seeds differs by +0.000 (-2.267 to +2.267, p = 1.000; {POOLED}): the seed "
        "noise of this run.",
        "No oracle was run.",
    ]
    text = write_report(tmp_path / "run").read_text()
    shown = "\n".join(f"- {sentence}" for sentence in sentences(run)).replace("(-", "(\u2212")
    assert f"## What the controls show\n\n{shown}\n" in text
    assert f"| A/A | `{B}` \u2212 `{AA}` | all | ground_truth | - | +0.000 | \u22122.267 to +2.267 | 1.000 | 3 | 4 | a |" in text
    assert "under the seeds 1000000, 1000001, 1000002." in text
    assert hard_failure(tmp_path / "run") is None


def test_a_difference_without_a_cause_fails_hard(tmp_path: Path) -> None:
    """t = 20 / .8165 = 24.5 on four degrees of freedom: p = 1.6e-5."""
    run = aa_run(tmp_path, 20.0)
    numbers = f"-20.000 (-22.267 to -17.733, p below 0.001; {POOLED})"
    assert sentences(run)[0] == (
        f"The reference, {B}, against itself under other seeds differs by {numbers}: a difference where there is none, so no difference "
        "below can be trusted."
    )
    lines = write_report(tmp_path / "run").read_text().splitlines()
    shown = numbers.replace("-", "\N{MINUS SIGN}")
    assert f"> **The harness failed a control of its own:** {B} differs from itself under other seeds: {shown}." in lines
    assert lines[2] == "## Answer"
    message = f"controls: {B} differs from itself under other seeds (ground_truth, all: -20, p = 1.6e-05)"
    assert hard_failure(tmp_path / "run") == message


@pytest.mark.parametrize(("shift", "fails"), [(5.0, False), (7.5, True)])
def test_only_p_below_a_thousandth_fails_hard(tmp_path: Path, shift: float, fails: bool) -> None:
    """t = 6.12 and 9.19 on four degrees of freedom: p = .0036 and .00078."""
    run = aa_run(tmp_path, shift)
    write_report(tmp_path / "run")
    assert (hard_failure(tmp_path / "run") is not None) == fails
    assert (float(controls(run)["p_value"].iloc[0]) < HARD) == fails
    assert sentences(run)[0].endswith("one run in twenty has p below 0.05 by chance.") == (not fails)


def test_two_seeds_make_no_test(tmp_path: Path) -> None:
    """V = 2/2 + 2/2, two degrees of freedom: 4.303 x 1.414 = 6.085; with one seed there is not even an interval. However far apart."""
    assert sentences(aa_run(tmp_path / "two", 100.0, 2))[0] == (
        f"The reference, {B}, against itself under other seeds differs by -100.000 (-106.085 to -93.915; {POOLED}); no test: three seeds "
        "of each are needed, 2 are there."
    )
    assert sentences(aa_run(tmp_path / "one", 100.0, 1))[0].endswith(
        f"differs by -100.000 ({POOLED}); no test: three seeds of each are needed, 1 are there."
    )
    for folder in (tmp_path / "two" / "run", tmp_path / "one" / "run"):
        write_report(folder)
        assert hard_failure(folder) is None


def test_seeds_that_failed_under_a_control_are_counted(tmp_path: Path) -> None:
    """Of four other seeds one is not there; of the reference's own one failed, and what it left does not count."""
    values = np.linspace(-1, 1, 4)[:, None] + HARDNESS
    arms = pd.concat([rows(B, values), rows(A, values)])
    beside = pd.concat([rows(AA, values[:3], [MILLION, MILLION + 1, MILLION + 2]), rows(ORACLE, values[:2] + 9), rows(FIRST, values[:2])])
    failures = [{"arm": B, "seed": 3, "message": "no"}, {"arm": ORACLE, "seed": 2, "message": "no"}]
    run = made_run(tmp_path, arms, beside, failures, seeds=4, aa=True, oracle=True)
    assert controls(run)["n_seeds"].tolist() == [3, 2, 0]
    lines = sentences(run)
    assert lines[1] == "Under 1 of the 4 other seeds it has no result."
    assert lines[-2:] == [
        "The oracle (not a fair arm) is missing in 1 of 4 seeds (3): the reference has no result there.",
        "The oracle (not a fair arm) is missing in 1 of 4 seeds (2): making it failed.",
    ]


def test_a_reference_without_any_result(tmp_path: Path) -> None:
    failures = [{"arm": B, "seed": seed, "message": "no"} for seed in range(3)]
    run = made_run(tmp_path, rows(A, np.tile(HARDNESS, (3, 1))), frame("control_scores", []), failures, aa=True, oracle=True)
    assert sentences(run) == [
        f"The reference, {B}, could not be compared with itself under other seeds: the reference has no result.",
        "An oracle (not a fair arm) has no result: the reference has no result.",
        "There is no diluted oracle (not a fair arm either): the reference has no result.",
        "The oracle (not a fair arm) is missing in 3 of 3 seeds (0, 1, 2): the reference has no result there.",
    ]
    assert "- An oracle (not a fair arm) has no result" in write_report(tmp_path / "run").read_text()


def test_where_no_controls_were_run_that_is_said(tmp_path: Path) -> None:
    run = made_run(tmp_path, pd.concat([rows(A, [HARDNESS] * 3), rows(B, [HARDNESS] * 3)]), frame("control_scores", []))
    (message,) = sentences(run)
    assert message == "No controls were run, so nothing shows here that this run invents no difference, or that it would see one."
    assert f"## What the controls show\n\n- {message}\n" in write_report(tmp_path / "run").read_text()
    assert (tmp_path / "run" / "report" / "tables" / "controls.csv").read_text().count("\n") == 1
    assert hard_failure(tmp_path / "run") is None


def oracle_run(folder: Path, whole: float, n: int = 3, **asked_for: Any) -> Run:
    """20 prompts in 10 clusters; the reference scores 0, 1, 2, ... on them in every seed, the first answers too, the best `whole` more."""
    values = np.tile(np.arange(20.0), (n, 1))

    def two_a_cluster(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(cluster_id=[f"c{int(name[1:]) // 2}" for name in frame["prompt_id"]])

    noise = np.random.default_rng(0).normal(size=values.shape)
    arms = two_a_cluster(pd.concat([rows(B, values), rows(A, values + noise)]))
    beside = two_a_cluster(pd.concat([rows(ORACLE, values + whole), rows(FIRST, values)]))
    return made_run(folder, arms, beside, seeds=n, oracle=True, **asked_for)


def test_a_diluted_oracle_by_hand(tmp_path: Path) -> None:
    """Of 1.0 an effect of .33 is a share of .33: of 10 clusters 3, so the difference is .3. Seeds do not differ: a t test over clusters,
    whose ten differences are three 1 and seven 0: variance .2333, standard error .1528, t = 1.964 on 9 degrees of freedom."""
    run = oracle_run(tmp_path, 1.0, effect=0.33)
    rows_ = controls(run).set_index("control")
    row = rows_.loc["diluted"]
    assert (row["share"], row["effect"], row["difference"], row["standard_error"]) == pytest.approx((0.3, 0.33, 0.3, math.sqrt(0.21 / 9)))
    assert (row["n_seeds"], row["n_clusters"], row["arm_a"], row["arm_b"]) == (3, 10, DILUTED, B)
    assert sentences(run) == [
        "No A/A arm was run.",
        f"An oracle (not a fair arm: the best of 8 answers of {B} by the ground truth) differs from the reference by +1.000 ({POOLED}); no "
        "test: nothing varies.",
        "Diluted to 30 % of the prompts, near the difference asked about (0.330), it (not a fair arm either) is not detected: +0.300 "
        f"(-0.046 to +0.646, p = 0.081; {POOLED}).",
    ]
    text = write_report(tmp_path / "run").read_text()
    assert f"| diluted oracle (not a fair arm) | `{DILUTED}` \u2212 `{B}` | all | ground_truth | 30 % | +0.300 |" in text
    assert all("not a fair arm" in line for line in text.splitlines() if "oracle" in line.lower() and not line.startswith("- ("))


def test_a_diluted_oracle_mixes_whole_clusters(tmp_path: Path) -> None:
    """Recomputed: the clusters that come first by hash have the best answer, all their prompts; the others the first."""
    run = oracle_run(tmp_path, 2.0, effect=0.9)
    chosen = diluted(run.tables["control_scores"]["cluster_id"], 0.45)
    scores = run.tables["control_scores"].pivot(index=["cluster_id", "prompt_id"], columns=["arm", "seed"], values="value")
    own = run.final_scores[run.final_scores["arm"] == B].pivot(index=["cluster_id", "prompt_id"], columns="seed", values="value")
    means = [
        (scores[ORACLE if cluster in chosen else FIRST].loc[cluster] - own.loc[cluster]).to_numpy().mean()
        for cluster in sorted({cluster for cluster, _ in own.index})
    ]
    row = controls(run).set_index("control").loc["diluted"]
    assert len(chosen) == 4  # 4.5, to the even number
    assert (row["share"], row["difference"]) == pytest.approx((0.4, np.mean(means)))


def test_the_effect_is_what_the_run_should_detect(tmp_path: Path) -> None:
    run = oracle_run(tmp_path, 5.0)
    (plan,) = primary_power(run)
    row = controls(run).to_dict("records")[-1]
    assert (row["control"], row["effect"]) == ("diluted", plan.detectable)
    assert row["share"] == round(10 * plan.detectable / 5) / 10
    assert f"near the smallest difference that this run should detect ({plan.detectable:.3f})" in sentences(run)[-1]


@pytest.mark.parametrize(
    ("whole", "n", "asked_for", "reason"),
    [
        (1.0, 3, {"effect": 1.5}, "the whole oracle is smaller than the difference wanted, 1.500"),
        (-1.0, 3, {"effect": 0.1}, "the oracle is no better than the reference, so that there is nothing to dilute"),
        (1.0, 2, {}, "what this run should detect is not known: two seeds make no test"),
    ],
)
def test_why_there_is_no_diluted_oracle(tmp_path: Path, whole: float, n: int, asked_for: dict[str, Any], reason: str) -> None:
    run = oracle_run(tmp_path, whole, n, **asked_for)
    assert sentences(run)[-1].startswith(f"There is no diluted oracle (not a fair arm either): {reason}")
    assert str(controls(run).set_index("control").loc["diluted", "test"]).startswith(f"none: {reason}")


def test_a_judge_scores_no_controls(tmp_path: Path) -> None:
    """The first gold model does; and an oracle that chose by the last one is not scored by it."""
    settings = experiment(controls={"aa": True, "oracle": True, "effect": 0.2})
    settings["models"]["gold"].append({"name": "second", "model": {"kind": "ngram"}})
    settings["judges"] = {"one": {"use": "apo_bench.judging.simulated_judge@SimulatedJudge"}}
    values = np.linspace(-1, 1, 3)[:, None] + HARDNESS

    def by_both(frame: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([frame.assign(scorer=name) for name in ("encoder", "second")])

    arms = by_both(pd.concat([rows(B, values), rows(A, values)]))
    beside = by_both(pd.concat([rows(AA, values, [MILLION + seed for seed in range(3)]), rows(ORACLE, values + 1), rows(FIRST, values)]))
    for number, (scorer, expected) in enumerate(
        [("judge/one", ["encoder"] * 3), ("second", ["second", "encoder", "encoder"]), ("gold", ["encoder"] * 3)]
    ):
        settings["compare"] |= {"scorer": scorer, "axes": ["all"]}
        frames = {"scores": arms, "control_scores": beside, "ledger": frame("ledger", [(A, 0, "flops", 1.0, math.nan)])}
        run = read_run(write_run(tmp_path / str(number), frames, settings))
        assert controls(run)["scorer"].tolist() == expected
        assert "by the gold model second" in sentences(run)[1]


# --- in many runs ---------------------------------------------------------------------------------------------------------------


def drawn(number: int, effect: float, whole: float, n_seeds: int = 5, n_prompts: int = 60, seed_sd: float = 0.3) -> Run:
    """A run of normal scores: `whole` is what the oracle's answers are better by; SD 1 from answer to answer."""
    rng = np.random.default_rng([6, number])
    hardness = rng.normal(size=n_prompts)

    def answers(policies: np.ndarray) -> np.ndarray:
        return hardness + policies + rng.normal(size=(n_seeds, n_prompts))

    policies, others = seed_sd * rng.normal(size=(2, n_seeds, 1))
    changed = small_experiment(seeds=list(range(n_seeds)), controls={"aa": True, "oracle": True, "effect": effect})
    changed = changed.model_copy(update={"compare": changed.compare.model_copy(update={"scorer": "ground_truth", "axes": ("all",)})})
    beside = [rows(AA, answers(others), aa_seeds(changed)), rows(ORACLE, answers(policies) + whole), rows(FIRST, answers(policies))]
    tables = {name: empty_table(name) for name in TABLES}
    return Run(changed, {}, tables | {"scores": rows(B, answers(policies)), "control_scores": pd.concat(beside)}, ())


def test_what_a_run_should_detect_is_found_in_about_eight_of_ten_and_nothing_in_hardly_any() -> None:
    """200 runs of 5 seeds and 60 prompts. In diluted - reference answers vary, with a residual SD of sqrt(2), of which `effect` is what a
    power of .8 detects. That power is only nearly kept: a difference on a share f of the prompts varies by f (1 - f) .75^2 between them,
    which takes some of it; and f comes from the oracle's difference in the same run, by which luck partly cancels, which gives some (in
    1000 other runs the power is .85, .79 and .77 where the oracle is .5, .75 and 1 better). The standard error of 200 runs is .028: .8
    within three of it. A/A, whose seeds vary: p < .001 in none to two, p < .05 in at most a tenth, 5 % and three standard errors."""
    effect = minimum_detectable_effect(seed_sd=0, method_prompt_sd=0, residual_sd=math.sqrt(2), n_seeds=5, n_clusters=60)
    frames = [controls(drawn(number, effect, whole=0.75)).set_index("control")[["p_value", "difference", "share"]] for number in range(200)]
    by_control = {name: np.array([frame_.loc[name] for frame_ in frames]) for name in ("aa", "oracle", "diluted")}
    p_values, differences, shares = by_control["diluted"].T
    assert 0.715 < np.mean((p_values < 0.05) & (differences > 0)) < 0.885
    assert np.median(shares) == pytest.approx(effect / 0.75, abs=1 / 60)
    assert np.mean(differences) == pytest.approx(effect, abs=3 * math.sqrt(2 / 300 / 200) + 0.5 / 60)
    assert np.mean(by_control["oracle"][:, 0] < 0.05) > 0.99
    assert np.sum(by_control["aa"][:, 0] < HARD) <= 2
    assert np.mean(by_control["aa"][:, 0] < 0.05) <= 0.10


# --- the oracle itself ----------------------------------------------------------------------------------------------------------


def picked(folder: Path) -> pd.DataFrame:
    """Scores by prompt (in the artifact's order), of columns (arm, scorer)."""
    scores = pd.read_parquet(folder / "scores.parquet")
    return scores.pivot(index="prompt_id", columns=["arm", "scorer"], values="value")


def by_prompt(answers: Sequence[Response], n: int, values: Sequence[float] | np.ndarray) -> dict[str, list[float]]:
    return {answers[start].prompt.id: list(values[start : start + n]) for start in range(0, len(answers), n)}


def test_an_oracle_gives_the_best_of_n_by_the_truth(tmp_path: Path) -> None:
    """Recomputed: of three fresh answers to each of 14 prompts the highest truth, and the first one's."""
    bench = tiny_bench(tmp_path, controls=Controls(oracle=True, oracle_n=3))
    truth, final = bench.task.ground_truth, Round(bench.initial_policy, None)
    assert truth is not None
    lab, sampling = bench.lab(1), bench.experiment.evaluation.sampling
    answers = lab.sample(final.policy, bench.test_prompts, n=3, draw=DRAW, sampling=sampling)
    values = by_prompt(answers, 3, [truth(answer.prompt, answer.text) for answer in answers])
    scores = picked(oracle(bench, final, 1).folder)
    assert scores[ORACLE, "ground_truth"].to_dict() == {prompt: max(three) for prompt, three in values.items()}
    assert scores[FIRST, "ground_truth"].to_dict() == {prompt: three[0] for prompt, three in values.items()}
    assert (scores[ORACLE, "ground_truth"] > scores[FIRST, "ground_truth"]).any()
    assert set(scores.columns.get_level_values("scorer")) == {"linear", "linear.0", "linear.1", "ground_truth", "refusal", "length"}
    usual = lab.sample(final.policy, bench.test_prompts, n=1, sampling=sampling)
    assert [answer.text for answer in answers[::3]] != [text.text for text in usual]
    assert bench.charged
    assert lab.used["sampled_responses"] == 3 * 14 + 14


def test_without_a_truth_the_last_gold_model_chooses(tmp_path: Path) -> None:
    """Here of a best-of-two policy, which is no folder of weights."""
    tree = tiny_tree() | {"controls": {"oracle": True, "oracle_n": 3}}
    tree["models"]["gold"].append({"name": "other", "model": {"kind": "ngram", "ngrams": [1, 1]}, "seeds": [0, 1]})
    wanted = Experiment.model_validate_json(json.dumps(tree))
    engine = open_engine(wanted.engine, wanted.executor, tmp_path)
    bench = EvaluationContext(wanted, replace(tiny_task(), ground_truth=None), RunStore(tmp_path), engine)
    lab, gold = bench.lab(0), wanted.models.gold[1]
    final = Round(lab.best_of_n(lab.initial_policy, lab.train_reward_model(lab.pairs(20), loss=RankingLoss()), 2), None)
    answers = lab.sample(final.policy, bench.test_prompts, n=3, draw=DRAW, sampling=wanted.evaluation.sampling)
    by_seed = [in_order(bench.lab(seed, gold.model).score(bench.gold(gold, seed), answers), answers) for seed in gold.seeds]
    values = by_prompt(answers, 3, np.mean(by_seed, axis=0))
    scores = picked(oracle(bench, final, 0).folder)
    assert scores[ORACLE, "other"].to_dict() == pytest.approx({prompt: max(three) for prompt, three in values.items()})
    assert scores[FIRST, "other"].to_dict() == pytest.approx({prompt: three[0] for prompt, three in values.items()})
    assert "ground_truth" not in scores.columns.get_level_values("scorer")
    models = wanted.models.model_copy(update={"gold": wanted.models.gold[:1]})
    with pytest.raises(InputError, match=r"controls\.oracle"):
        oracle(replace(bench, experiment=wanted.model_copy(update={"models": models})), final, 0)


# --- a run with all of them -----------------------------------------------------------------------------------------------------


def controlled_tree() -> dict[str, Any]:
    """The tiny experiment with all controls of rjs, whose budget is its own; apo_rjs plays one round."""
    tree = tiny_tree()
    tree["arms"]["rjs"]["budget"] = {"human_pairs": 20}
    tree["arms"]["apo_rjs"]["rounds"] = 1
    tree["controls"] = {"aa": True, "oracle": True, "oracle_n": 3, "effect": 0.01}
    return tree


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The experiment and the folder of its run. Tests that change something take a copy."""
    path, folder = write_experiment(tmp_path_factory.mktemp("controls"), controlled_tree()), tmp_path_factory.mktemp("runs") / "run"
    assert pipeline.run(resolve_experiment(path, None, folder), workers=2).failures == ()
    return path, folder


def table(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(folder / "tables" / f"{name}.parquet")


def test_control_scores_are_a_table_of_their_own(done: tuple[Path, Path]) -> None:
    """A/A has rounds 0 and 1 of 14 prompts by seven scorers under each seed; the oracle both its answers, at the reference's last round."""
    _, folder = done
    scores = table(folder, "control_scores")
    assert list(scores.columns) == ["arm", "seed", "round", "prompt_id", "cluster_id", "axis", "scorer", "value"]
    again = {(AA, MILLION + seed, round_): 14 * 7 for seed in (0, 1) for round_ in (0, 1)}
    assert scores.groupby(["arm", "seed", "round"]).size().to_dict() == again | {
        (path, s, 1): 14 * 7 for path in (ORACLE, FIRST) for s in (0, 1)
    }
    assert set(table(folder, "scores")["arm"]) == {"rjs", "apo_rjs"}
    assert not set(table(folder, "responses")["arm"]) - {"rjs", "apo_rjs"}
    chosen = scores[(scores["scorer"] == "ground_truth") & scores["arm"].isin([ORACLE, FIRST])]
    truth = chosen.pivot(index=["seed", "prompt_id"], columns="arm", values="value")
    assert (truth[ORACLE] >= truth[FIRST]).all()
    ledger = table(folder, "ledger").query("unit == 'human_pairs'").set_index(["arm", "seed"])
    assert ledger.loc[AA][["used", "budget"]].to_numpy().tolist() == [[20.0, 20.0]] * 2
    assert (ORACLE, 0) not in ledger.index
    run = read_run(folder)
    assert sentences(run)[0].startswith("The reference, rjs, against itself under other seeds differs by")
    answer, _, rest = (folder / "report" / "report.md").read_text().partition("## What the controls show")
    assert "## Answer" in answer
    assert rest.startswith("\n\n- The reference, rjs, against itself")
    assert "\n## Controls\n" in rest
    assert len(pd.read_csv(folder / "report" / "tables" / "controls.csv")) == len(controls(run)) == 1 + 2 * 2  # gold and truth


def test_a_replay_of_controls_computes_nothing_and_needs_no_torch(done: tuple[Path, Path], tmp_path: Path) -> None:
    path, first = done
    folder = shutil.copytree(first, tmp_path / "copy")
    script = (
        "import sys; from pathlib import Path\n"
        "from apo_bench.run import pipeline; from apo_bench.run.experiment import resolve_experiment\n"
        "assert pipeline.run(resolve_experiment(Path(sys.argv[1]), None, Path(sys.argv[2])), workers=2).failures == ()\n"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    process = subprocess.run([sys.executable, "-c", script, str(path), str(folder)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    for path_ in (*(first / "tables").iterdir(), *(first / "report").glob("*.*"), *(first / "store" / "arm_seeds").iterdir()):
        assert (folder / path_.relative_to(first)).read_bytes() == path_.read_bytes()


def test_controls_change_no_row_of_the_arms(done: tuple[Path, Path], tmp_path: Path) -> None:
    """Without them, on a copy: nothing is run again, all other tables are the same, and in the ledger A/A and some of `_bench` is gone.

    So are its losses, a fit in each of two seeds.
    """
    _, first = done
    folder = shutil.copytree(first, tmp_path / "copy")
    assert (
        pipeline.run(
            resolve_experiment(write_experiment(tmp_path / "plain", controlled_tree() | {"controls": {}}), None, folder), workers=1
        ).failures
        == ()
    )
    assert not (folder / "tables" / "control_scores.parquet").exists()
    for name in ("scores", "metrics", "reward_models", "reliability", "responses", "gold"):
        assert (folder / "tables" / f"{name}.parquet").read_bytes() == (first / "tables" / f"{name}.parquet").read_bytes()
    trained = table(first, "training")
    assert trained[(trained["arm"] == AA) & (trained["model"] == "policy")].groupby("seed")["fit"].nunique().tolist() == [1, 1]
    pd.testing.assert_frame_equal(table(folder, "training"), trained[trained["arm"] != AA].reset_index(drop=True))
    before, after = (table(run_folder, "ledger").set_index(["arm", "seed", "unit"])["used"] for run_folder in (first, folder))
    assert set(before.index.get_level_values("arm")) - set(after.index.get_level_values("arm")) == {AA}
    assert before.drop([AA, "_bench"]).equals(after.drop("_bench"))
    assert before["_bench", -1, "sampled_responses"] > after["_bench", -1, "sampled_responses"] + 2 * 3 * 14
    assert "No controls were run" in (folder / "report" / "report.md").read_text()


def test_controls_belong_to_the_last_part(done: tuple[Path, Path], tmp_path: Path) -> None:
    """On a copy whose controls' records are gone: a part with arms left runs none of them; the one after which none is left runs all."""
    path, first = done
    folder = shutil.copytree(first, tmp_path / "copy")
    for record in (folder / "store" / "arm_seeds").glob("_*.json"):
        record.unlink()
    (folder / "store" / "arm_seeds" / "apo_rjs.1.json").unlink()
    assert pipeline.run(resolve_experiment(path, None, folder), workers=1, subset=pipeline.JobSubset(arms=("rjs",))).n_left == 1
    assert not list((folder / "store" / "arm_seeds").glob("_*.json"))
    assert pipeline.run(resolve_experiment(path, None, folder), workers=1, subset=pipeline.JobSubset(seeds=(1,))).n_left == 0
    assert (folder / "tables" / "control_scores.parquet").read_bytes() == (first / "tables" / "control_scores.parquet").read_bytes()
    assert (folder / "report" / "tables" / "controls.csv").read_bytes() == (first / "report" / "tables" / "controls.csv").read_bytes()


def test_status_and_a_sweep_know_controls(done: tuple[Path, Path], tmp_path: Path) -> None:
    path, first = done
    status = read_status(first)
    assert status.report == "up to date"
    assert {(part.arm, part.seed) for part in status.jobs if part.arm in (AA, ORACLE)} == {
        (AA, MILLION), (AA, MILLION + 1), (ORACLE, 0), (ORACLE, 1),
    }  # fmt: skip
    assert {part.state for part in status.jobs} == {"finished"}
    folder = shutil.copytree(first, tmp_path / "copy")
    kept = sweep(folder).kept
    assert kept == len(list((folder / "store").glob("*/*/manifest.json")))
    assert pipeline.run(resolve_experiment(path, None, folder), workers=1).failures == ()
    (folder / "store" / "arm_seeds" / f"{ORACLE}.0.json").unlink()
    with pytest.raises(InputError, match=rf"1 without a result, such as {ORACLE}, seed 0"):
        sweep(folder)


def test_records_of_controls_are_named_by_the_reference_and_nothing_else(done: tuple[Path, Path]) -> None:
    path, _ = done

    def key(arm: str, seed: int = 0, **overrides: Any) -> str:
        changes = {name.replace("__", "."): value for name, value in overrides.items()}
        resolved = resolve_experiment(path, changes, path.parent / "run")
        return record_key(resolved.job(arm, seed), resolved)

    assert key(AA) == key("rjs")  # were its seed the same
    for arm in (AA, ORACLE):
        assert key(arm) != key(arm, seed=1)
        assert key(arm) != key(arm, arms__rjs__samples_per_prompt=3)  # as tuning or fitting chooses it
        assert key(arm) != key(arm, arms__rjs__budget={"human_pairs": 21})
        assert key(arm) == key(arm, arms__apo_rjs__rounds=2)
        assert key(arm) != key(arm, controls__reference="apo_rjs")
        assert key(arm) == key(arm, controls__effect=0.2)
    assert key(ORACLE) not in (key("rjs"), key(ORACLE, controls__oracle_n=4))


def test_an_oracle_without_its_reference_fails_alone(done: tuple[Path, Path], tmp_path: Path) -> None:
    path, _ = done
    resolved = resolve_experiment(path, None, tmp_path / "run")
    job = resolved.job(ORACLE, 0)
    assert work(job, lambda stage, tokens=0.0, used=None: None) == "controls.oracle: rjs has no result for seed 0"
    assert finished(job, resolved) is None


def test_a_hard_failure_is_one_of_the_run(done: tuple[Path, Path], tmp_path: Path) -> None:
    """Also when it is replayed. The report's frame of it is changed by hand: no tiny run is as broken as that."""
    path, first = done
    folder = shutil.copytree(first, tmp_path / "copy")
    about = folder / "report" / "tables" / "controls.csv"
    frame = pd.read_csv(about)
    frame.loc[frame["control"] == "aa", ["difference", "p_value"]] = (2.0, 0.0009)
    frame.loc[frame["control"] == "aa", "hard"] = "yes"
    report = folder / "report"
    files = {
        path.relative_to(report).as_posix(): path.read_bytes() for path in report.rglob("*") if path.is_file() and path.name != MANIFEST
    }
    write_report_files(folder, files | {"tables/controls.csv": frame.to_csv(index=False)})
    message = "controls: rjs differs from itself under other seeds (linear, all: +2, p = 0.0009)"
    assert pipeline.run(resolve_experiment(path, None, folder), workers=1).failures == (message,)
