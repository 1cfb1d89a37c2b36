"""Losses against the initial policy, by an independent two-way computation, and what the report shows of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from run_folder import SEEDS, experiment, frame, scored, write_run
from scipy import stats as scipy_stats

from apo_bench.analysis.capabilities import EQUAL, KEPT, LOST, NO_ROWS, OPEN, capability_losses
from apo_bench.analysis.results import read_run
from apo_bench.report.report import write_report
from apo_bench.report.sections.capabilities import TITLE

N = 40
ARMS = ("rjs", "golden_refresh", "apo_rjs")
INITIAL = np.tile([0.0, 1.0, 0.5, 0.75], N // 4)
NOISE = np.random.default_rng(0).normal(0, 0.02, (len(ARMS), len(SEEDS), N))
SHIFT = {"rjs": 0.0, "golden_refresh": -0.3, "apo_rjs": -0.05}


def settings(**own: Any) -> dict[str, Any]:
    base = experiment()
    base["evaluation"]["capabilities"] = {"tasks": ["sums", "loss"], **own}
    return base


def items(task: str, values: dict[tuple[str, int], np.ndarray], metric: str = "acc,none", rank: int = 0, better: int = 1) -> list[Any]:
    """Every item is a cluster of its own."""
    return [
        (arm, seed, 0 if arm == "_initial" else 1, task, metric, rank, place, f"c{place}", float(value), better)
        for (arm, seed), scores in values.items()
        for place, value in enumerate(scores)
    ]


def final(sign: float = 1.0) -> dict[tuple[str, int], np.ndarray]:
    return {
        (arm, seed): INITIAL + sign * (SHIFT[arm] + NOISE[place, number])
        for place, arm in enumerate(ARMS)
        for number, seed in enumerate(SEEDS)
    }


def run_folder(folder: Path, rows: list[Any], **own: Any) -> Path:
    scores = scored({(arm, seed, round_): [0.1, 0.2, 0.3] for arm in ARMS for seed in SEEDS for round_ in (0, 1)})
    ledger = frame("ledger", [(arm, seed, "flops", 1.0, np.nan) for arm in ARMS for seed in SEEDS])
    return write_run(folder, {"scores": scores, "ledger": ledger, "capabilities": frame("capabilities", rows)}, settings(**own))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`sums`: higher is better; `loss`: the same numbers mirrored, lower is better. `acc_norm` is a second metric of `sums`."""
    start = {("_initial", -1): INITIAL}
    rows = items("sums", final() | start) + items("loss", final(-1.0) | start, "nll,none", better=0)
    rows += items("sums", {place: values * 0 for place, values in (final() | start).items()}, "acc_norm,none", rank=1)
    return run_folder(tmp_path / "run", rows)


def test_a_loss_is_the_two_way_estimate_of_paired_items(folder: Path):
    """V = A/S + B/P - C/(SP) of D[s, i] = final[s, i] - initial[i] from sums of squares; df between S - 1 and P - 1."""
    losses = capability_losses(read_run(folder)).set_index(["task", "arm"])
    for place, arm in enumerate(ARMS):
        row, d = losses.loc["sums", arm], SHIFT[arm] + NOISE[place]
        n_seeds, n_items = d.shape
        a, b = n_items * ((d.mean(1) - d.mean()) ** 2).sum(), n_seeds * ((d.mean(0) - d.mean()) ** 2).sum()
        c = (((d - d.mean()) ** 2).sum() - a - b) / ((n_seeds - 1) * (n_items - 1))
        terms = [a / n_items / (n_seeds - 1) / n_seeds, b / n_seeds / (n_items - 1) / n_items, -c / n_seeds / n_items]
        error = max(sum(terms), *terms) ** 0.5
        assert row["difference"] == pytest.approx(d.mean())
        assert row["initial"] == pytest.approx(INITIAL.mean())
        assert row["mean"] == pytest.approx(INITIAL.mean() + d.mean())
        assert row["seed_sd"] == pytest.approx(d.mean(1).std(ddof=1))
        low, high = (scipy_stats.t.ppf(0.975, df) * error for df in (n_items - 1, n_seeds - 1))
        assert low - 1e-9 <= row["ci_high"] - row["difference"] <= high + 1e-9  # between an error of items alone and one of seeds alone
        assert (row["n_seeds"], row["n_items"], row["n_clusters"]) == (n_seeds, n_items, n_items)
    assert losses["outcome"]["sums"].to_dict() == {"rjs": KEPT, "golden_refresh": LOST, "apo_rjs": OPEN}
    assert (losses["p_adjusted"] >= losses["p_value"]).all()


def test_a_metric_of_which_less_is_better_is_the_mirror(folder: Path):
    losses = capability_losses(read_run(folder)).set_index(["task", "arm"])
    for name in ("difference", "ci_low", "ci_high", "p_value"):
        assert losses[name]["loss"].tolist() == pytest.approx(losses[name]["sums"].tolist())
    assert (losses["mean"]["loss"] > losses["initial"]["loss"]).loc["golden_refresh"]


def test_the_metric_is_the_first_or_as_declared(tmp_path: Path, folder: Path):
    assert capability_losses(read_run(folder)).drop_duplicates("task")["metric"].tolist() == ["acc,none", "nll,none"]
    table = pd.read_parquet(folder / "tables" / "capabilities.parquet")
    other = run_folder(tmp_path / "other", list(table.itertuples(index=False, name=None)), metrics={"sums": "acc_norm,none"})
    losses = capability_losses(read_run(other)).set_index(["task", "arm"])
    assert set(losses.loc["sums"]["metric"]) == {"acc_norm,none"}
    assert set(losses.loc["sums"]["outcome"]) == {EQUAL}  # zeros on both sides


def test_an_arm_without_rows_has_no_result(tmp_path: Path):
    values = {place: scores for place, scores in final().items() if place[0] != "rjs"} | {("_initial", -1): INITIAL}
    losses = capability_losses(read_run(run_folder(tmp_path / "run", items("sums", values)))).set_index("arm")
    assert losses.loc["rjs", "test"] == NO_ROWS
    assert np.isnan(losses.loc["rjs", "difference"])
    assert losses.loc["rjs", "outcome"] == OPEN


@pytest.mark.slow
def test_report_and_page_show_a_section_and_a_column(folder: Path):
    report = write_report(folder)
    markdown, page = report.read_text(encoding="utf-8"), (report.parent / "report.html").read_text(encoding="utf-8")
    assert f"## {TITLE}" in markdown or f"### {TITLE}" in markdown
    assert TITLE in page
    header = next(line for line in markdown.splitlines() if line.startswith("| arm | round | seeds"))
    assert "| sums | loss |" in header
    rows = pd.read_csv(report.parent / "tables" / "capabilities.csv")
    pd.testing.assert_frame_equal(rows, capability_losses(read_run(folder)), check_dtype=False, atol=1e-9)
    assert "**not worse**" in markdown.lower()
    again = {path: path.read_bytes() for path in report.parent.rglob("*") if path.is_file()}
    write_report(folder)
    assert {path: path.read_bytes() for path in again} == again


def test_without_capabilities_there_is_nothing(tmp_path: Path):
    rows = scored({(arm, seed, 0): [0.1, 0.2] for arm in ARMS for seed in SEEDS})
    run = read_run(write_run(tmp_path / "run", {"scores": rows, "ledger": frame("ledger", [("rjs", 0, "flops", 1.0, np.nan)])}))
    assert capability_losses(run).empty
