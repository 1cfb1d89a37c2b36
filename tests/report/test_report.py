"""Reports of synthetic runs with known numbers, checked against independent computations."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from run_folder import SEEDS, experiment, frame, measured, write_run
from scipy import stats as scipy_stats

from apo_bench.analysis.results import gold_sign_agreement, read_run
from apo_bench.errors import InputError
from apo_bench.formatting import letter
from apo_bench.report.markdown import shortened
from apo_bench.report.report import write_report

ARMS, ROUNDS, AXES = ("rjs", "golden_refresh", "apo_rjs"), (0, 1, 2), ("harmless", "helpful")
N = 12  # prompts an axis


def scores() -> pd.DataFrame:
    """Seeded noise around 0.3 * arm * round; gold follows the truth, and every arm starts from the same policy."""
    rng = np.random.default_rng(0)
    rows = []
    start = rng.normal(size=(len(SEEDS), len(AXES), N))
    for arm_place, arm in enumerate(ARMS):
        for seed in SEEDS:
            for round_ in ROUNDS:
                noise = rng.normal(size=(len(AXES), N)) if round_ else start[seed]
                for place, axis in enumerate(AXES):
                    for prompt in range(N):
                        truth = noise[place, prompt] + 0.3 * arm_place * round_ + 0.1 * seed * round_
                        key = (arm, seed, round_, f"{axis}{prompt}", f"{axis}{prompt // 2 if prompt < 4 else prompt}", axis)
                        values = {"ground_truth": truth, "encoder": 2 * truth + 1, "encoder.0": 2 * truth, "encoder.1": 2 * truth + 2}
                        values |= {"proxy": truth + arm_place, "length": 10.0 + round_, "refusal": float(axis == "harmless")}
                        rows += [(*key, scorer, value) for scorer, value in values.items()]
    return frame("scores", rows)


def tables() -> dict[str, pd.DataFrame]:
    metrics = [
        (arm, seed, round_, axis, metric, value * round_, 0.1, N)
        for place, arm in enumerate(ARMS)
        for seed in SEEDS
        for round_ in ROUNDS
        for axis in (*AXES, "all")
        for metric, value in (("kl", 1.0 + place + 0.1 * seed), ("distinct_1", 0.5))
    ]
    reward_models = [
        (arm, seed, round_, axis, metric, 0.7 + 0.01 * seed, 0.6, 0.8, 50)
        for arm in ARMS
        for seed in SEEDS
        for round_ in ROUNDS
        for axis in AXES
        for metric in ("accuracy_human", "accuracy_golden", "ece", "gold_correlation")
    ]
    reward_models += [("_floor", seed, 0, axis, "accuracy_human", 0.625, 0.5, 0.7, 50) for seed in SEEDS for axis in AXES]
    gold = [("encoder", seed, axis, "accuracy", 0.68 + 0.02 * seed, 0.6, 0.8, 80, 40) for seed in (-1, 0, 1) for axis in AXES]
    gold += [("_floor", 0, axis, "accuracy", 0.61, 0.55, 0.7, 80, 40) for axis in AXES]
    ledger = [
        (arm, seed, unit, used, 100.0 if unit == "human_pairs" else np.nan)
        for arm in ARMS
        for seed in SEEDS
        for unit, used in (
            ("human_pairs", 100.0),
            ("golden_responses", 0.0 if arm == "rjs" else 20.0),
            ("sampled_responses", 400.0),
            ("sampled_tokens", 4000.0 + 10 * seed),
            ("rm_updates", 30.0 if arm != "apo_rjs" or seed != 2 else 33.0),
            ("policy_updates", 60.0),
            ("flops", 1e12 * (1.04 if arm == "apo_rjs" else 1.0)),
        )
    ]
    rows_by_table = {"scores": scores(), "metrics": metrics, "reward_models": reward_models, "gold": gold, "ledger": ledger}
    return {name: rows if isinstance(rows, pd.DataFrame) else frame(name, rows) for name, rows in rows_by_table.items()}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_run(tmp_path_factory.mktemp("run"), tables())).parent


def csv(report: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(report / "tables" / f"{name}.csv")


@pytest.mark.slow
def test_contrast_columns_and_families(report: Path) -> None:
    table = csv(report, "contrasts")
    named = "arm_a,arm_b,axis,scorer,difference,ci_low,ci_high,p_value,p_adjusted,n_seeds,n_clusters,scope"
    assert ",".join(table.columns).startswith(named + ",family,")
    assert len(table) == 2 * 3 * 3  # pairs, axes and "all", proxy and gold and truth
    assert set(table["at"]) == {"final"}  # nothing was scored on dev, and equal KL was not asked for
    primary = table[table.family == "primary"]
    assert sorted(zip(primary.axis, primary.scorer, strict=True)) == [("all", "encoder"), ("harmless", "encoder")]
    assert set(table[table.family == "secondary"].arm_b) == {"rjs"}
    assert table[table.family == "descriptive"].p_adjusted.isna().all()
    secondary = table[table.family == "secondary"]
    assert secondary.p_adjusted.tolist() == pytest.approx(scipy_stats.false_discovery_control(secondary.p_value).tolist())
    assert table["round"].eq(2).all()
    low, high = sorted(primary.p_value)
    assert primary.sort_values("p_value").p_adjusted.to_list() == pytest.approx([2 * low, max(2 * low, high)])


@pytest.mark.slow
def test_a_contrast_equals_an_independent_computation(report: Path) -> None:
    """V = A/S + B/P - C/(SP) from sums of squares over a (seed x cluster) table, on harmless, gold, apo_rjs - golden_refresh."""
    rows = scores()
    rows = rows[(rows.scorer == "encoder") & (rows["round"] == 2) & (rows.axis == "harmless")]
    cells = rows.groupby(["arm", "seed", "cluster_id"]).value.mean().unstack("cluster_id")
    d = (cells.loc["apo_rjs"] - cells.loc["golden_refresh"]).to_numpy()
    n_seeds, n_clusters = d.shape
    a, b = n_clusters * ((d.mean(1) - d.mean()) ** 2).sum(), n_seeds * ((d.mean(0) - d.mean()) ** 2).sum()
    c = (((d - d.mean()) ** 2).sum() - a - b) / ((n_seeds - 1) * (n_clusters - 1))
    terms = [a / n_clusters / (n_seeds - 1) / n_seeds, b / n_seeds / (n_clusters - 1) / n_clusters, -c / n_seeds / n_clusters]
    variance = max(sum(terms), *terms)
    share, t = terms[0] / variance, abs(d.mean()) / variance**0.5  # seeds have two degrees of freedom, clusters nine
    p = share * 2 * scipy_stats.t.sf(t, 2) + (1 - share) * 2 * scipy_stats.t.sf(t, 9)
    table = csv(report, "contrasts")
    row = table[(table.arm_b == "golden_refresh") & (table.axis == "harmless") & (table.scorer == "encoder")].iloc[0]
    assert (n_seeds, n_clusters) == (row.n_seeds, row.n_clusters) == (3, 10)
    assert (row.difference, row.standard_error, row.p_value) == pytest.approx((d.mean(), variance**0.5, p))


@pytest.mark.slow
def test_summary_equals_pandas(report: Path) -> None:
    table, rows = csv(report, "summary"), scores()
    assert list(table.columns) == ["arm", "round", "axis", "scorer", "mean", "seed_sd", "n_seeds", "n_prompts"]
    assert {"length", "refusal", "kl", "distinct_1", "encoder.0", "proxy", "ground_truth"} <= set(table.scorer)
    rows = rows[(rows.arm == "rjs") & (rows["round"] == 2) & (rows.scorer == "proxy")]
    for axis, part in (("helpful", rows[rows.axis == "helpful"]), ("all", rows)):
        seeds = [seed_rows.groupby("cluster_id").value.mean().mean() for _, seed_rows in part.groupby("seed")]
        row = table[(table.arm == "rjs") & (table["round"] == 2) & (table.axis == axis) & (table.scorer == "proxy")].iloc[0]
        assert (row["mean"], row.seed_sd) == pytest.approx((np.mean(seeds), np.std(seeds, ddof=1)))
        assert (row.n_seeds, row.n_prompts) == (3, part.prompt_id.nunique())
    kl = table[(table.arm == "apo_rjs") & (table["round"] == 2) & (table.axis == "all") & (table.scorer == "kl")].iloc[0]
    assert (kl["mean"], kl.seed_sd) == pytest.approx((6.2, 0.2))  # 2 * (3.0, 3.1, 3.2)


@pytest.mark.slow
def test_differences_of_summary_means_are_the_contrasts(report: Path) -> None:
    summary, contrasts = csv(report, "summary"), csv(report, "contrasts")
    final = summary[summary["round"] == 2].set_index(["arm", "axis", "scorer"])["mean"]
    for row in contrasts.itertuples():
        assert row.difference == pytest.approx(final[row.arm_a, row.axis, row.scorer] - final[row.arm_b, row.axis, row.scorer])


@pytest.mark.slow
def test_budget(report: Path) -> None:
    """Against golden_refresh: rm_updates differ in seed 2 (33 against 30: mean 31 against 30); flops by 4 %, within 5 %."""
    table = csv(report, "budget")
    assert list(table.columns) == ["arm_a", "arm_b", "unit", "used_a", "used_b", "ratio", "kind", "declared", "matched"]
    refresh = table[table.arm_b == "golden_refresh"].set_index("unit")
    assert refresh.matched.fillna("").to_dict() == {
        "human_pairs": "yes",
        "golden_responses": "yes",
        "sampled_responses": "yes",
        "sampled_tokens": "",
        "rm_updates": "no",
        "policy_updates": "yes",
        "flops": "yes",
    }
    assert (refresh.loc["rm_updates", "used_a"], refresh.loc["rm_updates", "used_b"]) == (31, 30)
    assert refresh.loc["flops", "ratio"] == pytest.approx(1.04)
    other = table[table.arm_b == "rjs"].set_index("unit")
    assert (other.loc["golden_responses", "matched"], other.loc["golden_responses", "declared"]) == ("no", "no")
    assert (other.loc["sampled_responses", "matched"], other.loc["sampled_responses", "declared"]) == ("yes", "yes")


@pytest.mark.slow
def test_the_report_opens_with_the_answer_and_then_the_missed_match(report: Path) -> None:
    text = (report / "report.md").read_text()
    lines = text.splitlines()
    assert lines[0] == "# synthetic"
    assert lines[2] == "## Answer"
    assert lines[4] == "**None of 2 declared comparisons shows a difference.**"
    assert lines[8].startswith("> **Not matched as declared:** `apo_rjs` against `golden_refresh`: rm_updates 31 against 30")
    assert "two-way t test over seeds (paired) and clusters of prompts" in lines[10]
    assert "Scope: new seeds and new prompts" in lines[10]
    assert "\n## What the controls show\n\n- No controls were run" in text
    assert "## Warnings" not in text
    for heading in (
        "Scores at the final round", "Scores by round beside the reward model", "Contrasts", "Answers by round", "Reward models by round",
        "Gold reward models", "Budget",
    ):  # fmt: skip
        assert f"\n## {heading}\n" in text
    assert "| encoder | harmless | 0.660 | 0.600 to 0.800 | 0.680 to 0.700 (2 seeds) | 80 | 40 | 0.610 | better than chance |" in text
    assert "identical pairs dropped: 3" in text
    assert all(line.count("|") == text.splitlines()[place - 1].count("|") for place, line in enumerate(lines) if line.startswith("| ---"))


def whole_run() -> tuple[dict[str, pd.DataFrame], dict[str, Any], dict[str, Any]]:
    """Tables, experiment and manifest keys of a run that used everything: dev, tuning, curves, equal KL, best of n, a variation."""
    frames = tables()
    kl = (frames["metrics"]["arm"] == "rjs") & (frames["metrics"]["metric"] == "kl") & (frames["metrics"]["round"] > 0)
    frames["metrics"].loc[kl, ["metric", "value"]] = ["kl_bound", 0.75]
    dev = {(arm, seed): (0.0, 0.5, 0.25 + 0.1 * seed) for arm in ARMS for seed in SEEDS}
    flops = {(arm, seed): (1e8, *[4e8 if arm == "rjs" else 1e8] * 2) for arm in ARMS for seed in SEEDS}
    frames["metrics"] = pd.concat([frames["metrics"], measured("dev_score", dev), measured("inference_flops", flops)])
    diagnostics = {"accuracy_human": 0.7, "accuracy_golden": 0.6, "ece": 0.05, "gold_agreement": 0.55, "fixed_mean": 0.2, "fixed_sd": 1.0}
    own = [
        (arm, seed, round_, "all", metric, value + 0.1 * seed, 0.5, 0.9, 50)
        for arm in ARMS
        for seed in SEEDS
        for round_ in ROUNDS
        for metric, value in diagnostics.items()
    ]
    frames["reward_models"] = pd.concat([frames["reward_models"], frame("reward_models", own)])
    bins = [
        (arm, 0, round_, "all", 5 + k, 0.5 + k / 10, 0.6 + k / 10, 0.55 + k / 10, 0.6, 9)
        for arm in ARMS
        for round_ in ROUNDS
        for k in (0, 1)
    ]
    frames["reliability"] = frame("reliability", bins)
    tuning = [(f"_tune.{arm}", 1000, unit, 7.0, np.nan) for arm in ARMS for unit in ("policy_updates", "flops", "human_pairs")]
    frames["ledger"] = pd.concat([frames["ledger"], frame("ledger", tuning)])
    settings = experiment()
    settings["compare"] |= {"matched_kl": True, "curves": {"plain to APO": ["rjs", "apo_rjs"]}}
    settings["evaluation"] |= {"dev_prompts": 8}
    settings["tune"] = {"trials": 2, "grids": {arm: {"rounds": [1, 2]} for arm in ARMS}}
    trials = [{"setting": {"rounds": rounds}, "dev_score": 0.1 * rounds, "dev_truth": 0.5 - 0.2 * rounds, "kl": 1.0} for rounds in (1, 2)]
    return frames, settings, {"tuned": {arm: {"chosen": {"rounds": 2}, "trials": trials} for arm in ARMS}, "variation": {"world": 1}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    frames, settings, about = whole_run()
    return write_report(write_run(tmp_path_factory.mktemp("whole"), frames, settings, **about)).parent


@pytest.mark.slow
def test_a_run_that_used_everything(whole: Path) -> None:
    """By hand, over seeds 0, 1, 2: rjs has human accuracy 0.7, 0.8, 0.9 (mean 0.8, SD 0.1), golden 0.7, ECE 0.15; dev 0.5 in round 1."""
    text = (whole / "report.md").read_text()
    lines = text.splitlines()
    assert lines[0] == "# synthetic: world 1"
    for heading in (
        "## Rounds chosen on dev",
        "## Scores against annotation",
        "### At equal KL",
        "### At the round chosen on dev",
        "## Tuning",
    ):
        assert f"\n{heading}\n" in text
    rjs = next(line for line in lines if line.startswith("| `rjs` | 1 |") and "<= " in line)
    assert rjs.endswith("| <= 0.750 | 0.800 ± 0.100 | 0.700 ± 0.100 | 0.150 ± 0.100 | 0.500 ± 0.000 |")
    initial = [line for line in lines if line.startswith("| *initial policy* | 0 |")]
    assert len(initial) == 2  # once at the final round, once by round
    assert initial[0].endswith("| - | 1.000e+08 |")
    assert initial[1].endswith("| 0.000 | - | - | - | 0.000 |")
    assert any(line.startswith("| `rjs` | 2 | 3 |") and line.endswith("| 1.000e+12 | 4.000e+08 |") for line in lines)
    assert "- gold_agreement: share of pairs" in text
    assert "| `apo_rjs` | round 1: 3 of 3 |" in text
    assert "| `apo_rjs` | 2 | rounds = 2 | 0.200 | 0.100 to 0.200 | 7 |" in text
    assert "| plain to APO | `apo_rjs` | 100 | 20 | 120 | 3 |" in text
    assert "the KL of rjs is an upper bound" in text
    assert "_tune" not in text
    assert {path.stem for path in (whole / "figures").glob("*.png")} == {
        "by_round",
        "by_kl",
        "by_annotation",
        "budget",
        "contrasts",
        "reward_models",
        "reliability",
    }
    assert all(f"figures/{path.name})" in text for path in (whole / "figures").glob("*.png"))
    assert all(line.count("|") == lines[place - 1].count("|") for place, line in enumerate(lines) if line.startswith("| ---"))


@pytest.mark.slow
def test_the_table_by_round_holds_every_axis_and_metric(whole: Path) -> None:
    table = csv(whole, "by_round").set_index(["arm", "round", "axis"])
    assert len(table) == len(ARMS) * len(ROUNDS) * 3
    assert (table.loc[("rjs", 1, "all"), "rm_fixed_mean"], table.loc[("rjs", 1, "all"), "rm_fixed_mean_sd"]) == pytest.approx((0.3, 0.1))
    assert table.loc[("rjs", 1, "harmless"), "rm_accuracy_human"] == pytest.approx(0.71)
    assert np.isnan(table.loc[("rjs", 1, "harmless"), "dev_score"])
    summary = csv(whole, "summary")
    gold = summary[(summary.arm == "rjs") & (summary["round"] == 1) & (summary.axis == "all") & (summary.scorer == "encoder")].iloc[0]
    assert (table.loc[("rjs", 1, "all"), "encoder"], table.loc[("rjs", 1, "all"), "encoder_sd"]) == (gold["mean"], gold.seed_sd)


@pytest.mark.slow
def test_a_run_that_used_everything_gives_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    frames, settings, about = whole_run()
    again = write_report(write_run(tmp_path / "run", frames, settings, **about)).parent
    for path in (path for path in whole.rglob("*") if path.is_file()):
        assert (again / path.relative_to(whole)).read_bytes() == path.read_bytes(), path


def test_notes_do_not_run_out_of_letters() -> None:
    """26 letters, then 26 * 26 pairs, as columns of a spreadsheet: 25 is z, 26 aa, 51 az, 52 ba, 701 zz, 702 aaa."""
    assert [letter(place) for place in (0, 25, 26, 51, 52, 701, 702)] == ["a", "z", "aa", "az", "ba", "zz", "aaa"]


def test_gold_sign_agreement_by_hand(tmp_path: Path) -> None:
    """Truth 0, 1, .95 and gold 0, -1, -3 over three rounds: changes larger than .1 are 0->1 (gold falls) and 0->2 (gold falls): 0 of 2.

    In the second seed truth 0, -1, 1 and gold 0, -1, -.5: 0->1 agrees, 0->2 does not, 1->2 agrees. Together 2 of 5.
    """
    by_seed = {0: ((0, 1, 0.95), (0, -1, -3)), 1: ((0, -1, 1), (0, -1, -0.5))}
    rows = [
        ("rjs", seed, round_, f"p{prompt}", f"p{prompt}", "helpful", scorer, float(values[round_]))
        for seed, both in by_seed.items()
        for scorer, values in zip(("ground_truth", "encoder"), both, strict=True)
        for round_ in range(3)
        for prompt in range(2)
    ]
    run = read_run(write_run(tmp_path / "run", tables() | {"scores": frame("scores", rows)}))
    agreement = gold_sign_agreement(run).set_index("axis")
    assert (agreement.loc["helpful", "agree"], agreement.loc["helpful", "n"]) == (0.4, 5)


@pytest.mark.slow
def test_an_uninformative_gold_is_not_tested(tmp_path: Path) -> None:
    frames = tables()
    gold = frames["gold"]
    gold.loc[(gold.axis == "harmless") & (gold.seed == -1), "ci_low"] = 0.49
    path = write_report(write_run(tmp_path / "run", frames))
    table = csv(path.parent, "contrasts").set_index(["arm_b", "axis", "scorer"])
    for axis in ("harmless", "all"):
        assert table.loc[("golden_refresh", axis, "encoder"), "scope"] == "uninformative gold on harmless"
        assert np.isnan(table.loc[("golden_refresh", axis, "encoder"), "p_value"])
    assert table.loc[("golden_refresh", "helpful", "encoder"), "p_value"] >= 0
    assert table.loc[("golden_refresh", "harmless", "ground_truth"), "p_value"] >= 0
    text = path.read_text()
    assert "**No test of `apo_rjs` against `golden_refresh`** (encoder, harmless)" in text
    assert "Gold model encoder: uninformative gold on harmless." in text


@pytest.mark.slow
def test_a_failed_seed_is_named_and_the_others_are_compared(tmp_path: Path) -> None:
    """Of three seeds one arm lost one: two remain, an interval and no p-value. What the failed seed left behind is not used."""
    frames = tables()
    rows = frames["scores"]
    frames["scores"] = rows[(rows.arm != "apo_rjs") | (rows.seed != 1) | (rows["round"] == 0)]
    path = write_report(write_run(tmp_path / "run", frames, failures=[{"arm": "apo_rjs", "seed": 1, "message": "budget | exceeded\nhere"}]))
    table = csv(path.parent, "contrasts")
    assert table.n_seeds.eq(2).all()
    assert table.p_value.isna().all()
    assert table.ci_low.notna().all()
    text = path.read_text()
    assert r"- Failed: apo_rjs, seed 1: budget \| exceeded here" in text
    assert "; 2 of 3 planned seeds, 10 clusters" in text
    assert "only 2 seed(s)" in text
    assert "apo_rjs: no final scores for seed 1" in text


@pytest.mark.slow
def test_optional_parts_may_be_missing(tmp_path: Path) -> None:
    """No ground truth, no KL, no diagnostics and no gold accuracy: said, not guessed; and without accuracy gold is not tested."""
    frames = tables()
    rows = frames["scores"]
    path = write_report(write_run(tmp_path / "run", {"scores": rows[rows.scorer != "ground_truth"], "ledger": frames["ledger"]}))
    table = csv(path.parent, "contrasts")
    assert set(table.scorer) == {"proxy", "encoder"}
    assert table[table.scorer == "encoder"].p_value.isna().all()
    assert not (path.parent / "figures" / "by_kl.png").exists()
    text = path.read_text()
    assert "Table metrics is absent" in text
    assert "How far gold can be trusted" not in text


@pytest.mark.slow
def test_a_declared_scorer_without_rows_is_reported_as_no_result(tmp_path: Path) -> None:
    frames = tables()
    settings = experiment()
    settings["compare"] = settings["compare"] | {"scorer": "ground_truth"}
    frames["scores"] = frames["scores"][frames["scores"].scorer != "ground_truth"]
    text = write_report(write_run(tmp_path / "run", frames, settings)).read_text()
    assert "**No result for `apo_rjs` against `golden_refresh`** (ground_truth, all axes pooled)" in text


@pytest.mark.slow
def test_a_run_in_which_all_failed_still_gets_a_report(tmp_path: Path) -> None:
    text = write_report(write_run(tmp_path / "run", {}, failures=[{"arm": "rjs", "seed": 0, "message": "no memory"}])).read_text()
    assert "Failed: rjs, seed 0: no memory" in text
    assert "**No result for" in text


@pytest.mark.slow
def test_a_long_report_loses_the_tables_that_stand_elsewhere_too() -> None:
    """Of 471 characters the first spare section has 300; without them 300 are enough. For 40 all spare ones go, and no other."""
    lines = [
        "# run",
        "",
        "## Answer",
        "",
        "a" * 50,
        "",
        "## Contrasts",
        "",
        "![drawn](x.png)",
        "c" * 40,
        "",
        "## Reward models by round",
        "",
        "r" * 300,
    ]
    assert shortened(lines, 1000) == lines
    some = shortened(lines, 300)
    assert "r" * 300 not in some
    assert "c" * 40 in some
    assert some[-2] == "Left out here, so that this text fits a pull request: `tables/by_round.csv` and `report.html` have it."
    least = shortened(lines, 40)
    assert "c" * 40 not in least
    assert "![drawn](x.png)" in least
    assert "a" * 50 in least


@pytest.mark.slow
def test_the_same_tables_give_the_same_bytes(report: Path, tmp_path: Path) -> None:
    again = write_report(write_run(tmp_path / "run", tables())).parent
    names = sorted(path.relative_to(report) for path in report.rglob("*") if path.is_file())
    assert {name.suffix for name in names} == {".md", ".yaml", ".csv", ".png", ".svg", ".pdf", ".tex", ".html", ".json"}
    for name in names:
        assert (again / name).read_bytes() == (report / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda run: (run / "manifest.json").unlink(), r"manifest\.json: no such file"),
        (lambda run: (run / "manifest.json").write_text("{"), r"manifest\.json: not readable as JSON"),
        (lambda run: (run / "experiment.yaml").unlink(), r"experiment\.yaml: no such file"),
        (lambda run: (run / "tables/ledger.parquet").unlink(), r"ledger\.parquet: no such file"),
        (lambda run: (run / "tables/gold.parquet").write_bytes(b"x"), r"gold\.parquet: not readable as parquet"),
        (lambda run: scores().drop(columns="axis").to_parquet(run / "tables/scores.parquet"), r"scores\.parquet: column axis is missing"),
        (
            lambda run: scores().assign(value=np.nan).to_parquet(run / "tables/scores.parquet"),
            r"scores\.parquet: column value: \d+ rows",
        ),
        (lambda run: scores().head(0).to_parquet(run / "tables/scores.parquet"), r"scores\.parquet: no rows"),
    ],
)
def test_broken_folders_are_refused_in_one_line(break_it, message: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tables())
    break_it(run)
    with pytest.raises(InputError, match=message) as caught:
        write_report(run)
    assert "\n" not in str(caught.value)
    assert not (run / "report").exists()


@pytest.mark.slow
def test_reporting_imports_no_torch() -> None:
    code = "import apo_bench.report.report, apo_bench.report.figures, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
