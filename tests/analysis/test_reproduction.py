"""Reruns: verdicts by hand, and run folders that were and were not reproduced."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from run_folder import experiment, frame, measured, scored, write_run

from apo_bench.analysis import reproduction
from apo_bench.analysis.contrasts import contrasts
from apo_bench.analysis.reproduction import EXACT, REPRODUCED, Reproduction, compare_runs, contrast_drift, drift_from_reports
from apo_bench.analysis.reproduction_text import reproduction_sentences, reproduction_tables
from apo_bench.analysis.results import read_run
from apo_bench.errors import InputError

ARMS = ("rjs", "golden_refresh", "apo_rjs")


def write(folder: Path, gap: float = 1.0, luck: int = 0, seeds: tuple[int, ...] = (0, 1, 2, 3), **changes: Any) -> Path:
    """A run in which apo_rjs scores `gap` more than the others; `luck` seeds its noise. Report: contrasts.csv alone."""
    generator = np.random.default_rng(luck)
    base = np.random.default_rng(99).normal(size=10)
    scores = {
        (arm, seed, 1): (base + gap * (arm == "apo_rjs") + 0.1 * generator.normal() + 0.2 * generator.normal(size=10)).tolist()
        for arm in ARMS
        for seed in seeds
    }
    written = {
        "scores": scored(scores),
        "metrics": measured("kl", {}),
        "reward_models": frame("reward_models", []),
        "ledger": frame("ledger", [("rjs", 0, "flops", 1.0, math.nan)]),
        "gold": frame("gold", []),
    }
    settings = experiment(seeds=list(seeds), **changes)
    settings["compare"] = settings["compare"] | {"scorer": "ground_truth", "axes": ["all"]}
    write_run(folder, written, settings, seeds=list(seeds))
    (folder / "report" / "tables").mkdir(parents=True)
    contrasts(read_run(folder)).to_csv(folder / "report" / "tables" / "contrasts.csv", index=False, float_format="%.12g")
    return folder


def verdict(result: Reproduction) -> str:
    (verdict_,) = result.primary["verdict"]
    return verdict_


@pytest.mark.slow
def test_a_copy_is_reproduced_exactly(tmp_path: Path) -> None:
    first = write(tmp_path / "first")
    shutil.copytree(first, tmp_path / "second")
    result = compare_runs(first, tmp_path / "second")
    assert set(result.contrasts["verdict"]) == {EXACT}
    assert (result.exit_status, result.settings) == (0, {})
    assert set(result.tables.values()) == {"identical"}
    assert any("tables are byte-identical" in line for line in reproduction_sentences(result))


@pytest.mark.slow
def test_other_luck_is_reproduced(tmp_path: Path) -> None:
    """A true gap of 1 with seed SDs of about 0.1 is result by both, and their drift is noise. Same seeds and experiment: paired."""
    result = compare_runs(write(tmp_path / "first"), write(tmp_path / "second", luck=1))
    assert (verdict(result), result.exit_status) == (REPRODUCED, 0)
    assert result.assumed == (reproduction.PAIRED,)
    (row,) = result.primary.to_dict("records")
    assert (row["same_sign"], row["overlap"]) == ("yes", "yes")
    assert row["drift"] == pytest.approx(row["second"] - row["first"])
    assert row["drift_low"] < 0 < row["drift_high"]
    assert result.tables["scores"] == "different"
    assert result.tables["ledger"] == "identical"


@pytest.mark.slow
def test_other_seeds_are_not_paired(tmp_path: Path) -> None:
    result = compare_runs(write(tmp_path / "first"), write(tmp_path / "second", luck=1, seeds=(4, 5, 6)))
    assert verdict(result) == REPRODUCED
    assert result.assumed == (reproduction.UNPAIRED,)
    assert result.settings == {"experiment.seeds": ([0, 1, 2, 3], [4, 5, 6])}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gap", "message"),
    [
        (3.0, "same sign, drift beyond seed noise"),
        (-1.0, "opposite sign, drift beyond seed noise"),
        (0.0, "drift beyond seed noise"),
    ],
)
def test_another_truth_is_not_reproduced(tmp_path: Path, gap: float, message: str) -> None:
    result = compare_runs(write(tmp_path / "first"), write(tmp_path / "second", gap=gap, luck=1))
    assert verdict(result).endswith(message)
    assert result.exit_status == 1
    assert list(result.primary["overlap"]) == ["no"]


@pytest.mark.slow
def test_neither_run_shows_a_difference_of_nothing(tmp_path: Path) -> None:
    """No true gap, in both runs p > 0.05: that no difference could be shown is reproduced, whatever the signs."""
    assert verdict(compare_runs(write(tmp_path / "first", gap=0, luck=2), write(tmp_path / "second", gap=0, luck=1))) == REPRODUCED


@pytest.mark.parametrize(
    ("conclusions", "same_sign", "p_drift", "expected"),
    [
        (["higher", "not shown"], "yes", 0.5, "same sign, drift within seed noise"),
        (["higher", "not shown"], "no", 0.5, "opposite sign, drift within seed noise"),
        (["higher", "not shown"], "", 0.5, "a difference of 0, drift within seed noise"),
        (["not shown", "not shown"], "no", 0.5, REPRODUCED),
        (["higher", "higher"], "yes", 0.04, "same sign, drift beyond seed noise"),
        (["", ""], "yes", 0.5, "same sign, drift within seed noise"),
        (["higher", "higher"], "yes", math.nan, "not comparable: why"),
    ],
)
def test_verdicts(conclusions: list[str], same_sign: str, p_drift: float, expected: str) -> None:
    ends = {f"{name}{end}": float(place) for place, name in enumerate(("first", "second")) for end in ("", "_low", "_high")}
    row = pd.Series(ends | {"conclusions": conclusions, "same_sign": same_sign, "p_drift": p_drift, "test": "none: why"})
    assert reproduction._verdict(row) == expected


@pytest.mark.slow
def test_a_report_alone_is_enough(tmp_path: Path) -> None:
    """What is committed of a run is its report: errors are added, and nothing is message of settings and tables."""
    first, second = write(tmp_path / "first"), write(tmp_path / "second", luck=1)
    shutil.rmtree(second / "tables")
    (second / "manifest.json").unlink()
    (second / "experiment.yaml").unlink()
    result = compare_runs(first, second)
    assert verdict(result) == REPRODUCED
    assert (result.settings, result.tables, result.assumed) == (None, {}, (reproduction.ADDED,))
    assert any("report alone" in line for line in reproduction_sentences(result))


@pytest.mark.slow
def test_what_differs_is_told(tmp_path: Path) -> None:
    """Another commit, torch and gold model; rows written by another parquet version are the same rows."""
    first, second = write(tmp_path / "first"), write(tmp_path / "second")
    manifest = json.loads((second / "manifest.json").read_text())
    (second / "manifest.json").write_text(json.dumps(manifest | {"commit": "def", "versions": {"python": "3.12"}, "failures": []}))
    pd.read_parquet(second / "tables" / "scores.parquet").to_parquet(second / "tables" / "scores.parquet", compression="gzip")
    result = compare_runs(first, second)
    assert result.settings == {"commit": ("abc", "def"), "versions.python": ("3.11", "3.12")}
    assert result.tables["scores"] == "same rows, other bytes"
    assert result.assumed == (reproduction.PAIRED,)


@pytest.mark.slow
def test_another_gold_model_is_another_scale(tmp_path: Path) -> None:
    models = experiment()["models"]
    other = models | {"gold": [{"name": "encoder", "model": {"kind": "ngram", "max_features": 7}}]}
    runs = [write(tmp_path / "first"), write(tmp_path / "second", luck=1, models=other)]
    first, second = (reproduction.read_contrasts(run) for run in runs)
    assert reproduction.another_scale(first, second, "encoder") == "gold model encoder is another one in each run"
    assert reproduction.another_scale(first, second, "ground_truth") == ""


@pytest.mark.slow
def test_a_contrast_that_one_run_lacks(tmp_path: Path) -> None:
    first, second = write(tmp_path / "first"), write(tmp_path / "second", luck=1)
    path = second / "report" / "tables" / "contrasts.csv"
    rows = pd.read_csv(path, keep_default_na=False)
    rows[rows["family"] != "primary"].to_csv(path, index=False)
    result = compare_runs(first, second)
    assert verdict(result) == f"not comparable: only in {first}"
    assert result.exit_status == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: (folder / "report" / "tables" / "contrasts.csv").unlink(),
            r"not a finished run folder \(no report/tables/contrasts.csv\)",
        ),
        (lambda folder: (folder / "manifest.json").unlink(), r"not a finished run folder \(no manifest.json\)"),
        (lambda folder: (folder / "report" / "tables" / "spread.csv").touch(), "a run at several levels"),
        (lambda folder: (folder / "report" / "tables" / "contrasts.csv").write_text("a,b\n1,2\n"), "column arm_a is missing"),
        (lambda folder: (folder / "report" / "tables" / "contrasts.csv").write_bytes(b"\xff\xfe\n"), "not readable as csv"),
        (lambda folder: (folder / "report" / "tables" / "contrasts.csv").write_text(""), "not readable as csv"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    first, second = write(tmp_path / "first"), write(tmp_path / "second")
    change(second)
    for pair in ((first, second), (second, first)):
        with pytest.raises(InputError, match=message) as caught:
            compare_runs(*pair)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(("column", "value", "message"), [("difference", "much", "'much' is no number"), ("axis", "odd", "no contrast")])
def test_a_spoilt_cell_is_one_line(tmp_path: Path, column: str, value: str, message: str) -> None:
    first, second = write(tmp_path / "first"), write(tmp_path / "second")
    path = second / "report" / "tables" / "contrasts.csv"
    rows = pd.read_csv(path, keep_default_na=False, dtype=str)
    if column == "axis":
        rows = rows[rows["axis"] == "all"].assign(axis=value)
    else:
        rows.loc[0, column] = value
    rows.to_csv(path, index=False)
    with pytest.raises(InputError, match=message):
        compare_runs(first, second)


@pytest.mark.slow
def test_words_and_tables_fit_and_are_inert(tmp_path: Path) -> None:
    from io import StringIO

    from rich.console import Console

    first, second = write(tmp_path / "first"), write(tmp_path / "second", luck=1)
    for folder in (first, second):
        path = folder / "report" / "tables" / "contrasts.csv"
        path.write_text(path.read_text().replace("helpful", "he\x1b[2J\u202elp"))
    manifest = json.loads((second / "manifest.json").read_text())
    (second / "manifest.json").write_text(json.dumps(manifest | {"commit": "\x1b]0;x\x07"}))
    result = compare_runs(first, second)
    stream = StringIO()
    console = Console(file=stream, width=100, markup=False, highlight=False)
    for table in reproduction_tables(result, descriptive=True):
        console.print(table)
    text = stream.getvalue() + "\n".join(reproduction_sentences(result))
    assert not {"\x1b", "\x07", "\u202e"} & set(text)
    assert max(map(len, stream.getvalue().split("\n"))) <= 100
    assert REPRODUCED in text
    assert "1 of 1 primary contrasts" in text


# --- the drift of one contrast --------------------------------------------------------------------------------------------------

SEED_SD, CLUSTER_SD, REST_SD = 0.3, 0.5, 0.4


def differences(generator: np.random.Generator, mean: float, cluster: np.ndarray, seeds: int) -> pd.DataFrame:
    """Differences of one run by seed and prompt, each a cluster of its own, whose effects `cluster` both runs share."""
    values = mean + SEED_SD * generator.normal(size=(seeds, 1)) + cluster + REST_SD * generator.normal(size=(seeds, cluster.size))
    rows = [(seed, f"p{k}", f"p{k}", value) for seed, row in enumerate(values) for k, value in enumerate(row)]
    return pd.DataFrame(rows, columns=["seed", "prompt_id", "cluster_id", "value"])


def share_beyond(runs: int, moved: float, paired: bool, seeds: tuple[int, int]) -> float:
    """In what share of pairs of runs a drift beyond seed noise is found, the second's true difference being `moved` away."""
    generator, n_beyond = np.random.default_rng(7), 0
    for _ in range(runs):
        cluster = CLUSTER_SD * generator.normal(size=12)
        sides = [differences(generator, mean, cluster, n) for mean, n in zip((0.2, 0.2 + moved), seeds, strict=True)]
        n_beyond += contrast_drift(*sides, paired=paired).p_drift < 0.05
    return n_beyond / runs


@pytest.mark.slow
@pytest.mark.parametrize(("paired", "seeds"), [(False, (3, 3)), (True, (4, 4)), (False, (3, 6))])
def test_identical_truth_is_within_seed_noise_19_times_in_20(paired: bool, seeds: tuple[int, int]) -> None:
    """400 pairs of runs each: a true rate of 5 % gives 2.8 to 7.2 % (two standard errors); a little below it is no error either."""
    assert 0.015 <= share_beyond(400, 0.0, paired, seeds) <= 0.072


@pytest.mark.slow
def test_a_true_drift_is_found() -> None:
    """Five seeds each: the error is sqrt(2 * (0.3^2 + 0.4^2 / 12) / 5) = 0.203; a drift of 1 is five of them."""
    assert share_beyond(60, 1.0, False, (5, 5)) > 0.95


def test_added_errors_keep_the_level_where_prompts_are_others() -> None:
    """Two independent normal differences, errors estimated with 3 and 5 degrees of freedom: about 5 % of 4,000 are beyond (SE 0.35 %)."""
    generator, n_beyond = np.random.default_rng(3), 0
    for _ in range(4000):
        sides = []
        for sd, df in ((0.2, 3), (0.3, 5)):
            error = sd * math.sqrt(generator.chisquare(df) / df)
            sides.append({"difference": 1 + sd * generator.normal(), "standard_error": error, "df": df, "n_seeds": df + 1})
        n_beyond += drift_from_reports(*sides).p_drift < 0.05
    assert 0.03 <= n_beyond / 4000 <= 0.06


def test_added_errors_by_hand() -> None:
    """1 with error 3 and 2 with error 4, 10 degrees of freedom each: drift 1, error 5. Satterthwaite: 25^2 / ((81 + 256) / 10) = 18.546
    degrees of freedom, 95 % point 2.0964, from 1 - 10.482 to 1 + 10.482; t = 0.2."""
    first = {"difference": 1.0, "standard_error": 3.0, "df": 10.0, "n_seeds": 11.0}
    drift = drift_from_reports(first, first | {"difference": 2.0, "standard_error": 4.0})
    assert (drift.drift, drift.drift_low, drift.drift_high) == pytest.approx((1, 1 - 10.482, 1 + 10.482), abs=2e-3)
    assert drift.p_drift == pytest.approx(0.8437, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"n_seeds": 2.0}, "fewer than three seeds"), ({"standard_error": 0.0}, "no standard error"), ({"df": math.nan}, "no standard error")],
)
def test_no_error_no_test(change: dict[str, float], reason: str) -> None:
    first = {"difference": 1.0, "standard_error": 3.0, "df": 10.0, "n_seeds": 11.0}
    drift = drift_from_reports(first, first | change)
    assert reason in drift.test
    assert math.isnan(drift.p_drift)


def test_one_and_two_seeds_are_not_tested() -> None:
    generator, cluster = np.random.default_rng(0), np.zeros(6)
    for seeds, reason in ((1, "one seed tells nothing"), (2, "two seeds give an interval only")):
        drift = contrast_drift(differences(generator, 0, cluster, seeds), differences(generator, 0, cluster, seeds), paired=False)
        assert reason in drift.test
        assert math.isnan(drift.p_drift)


def test_seeds_that_one_run_lost_are_left_out_of_pairs() -> None:
    """Runs of four seeds and of the first three, the same but for a drift of 0.5 in each: three pairs, which do not vary at all."""
    generator = np.random.default_rng(0)
    first = differences(generator, 0, np.zeros(5), 4)
    second = first[first["seed"] < 3].assign(value=lambda rows: rows["value"] + 0.5)
    drift = contrast_drift(first, second, paired=True)
    assert drift.drift == pytest.approx(0.5)
    assert drift.test == "none: nothing varies"
    assert math.isnan(drift.p_drift)
