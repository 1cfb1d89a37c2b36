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

from apo_bench.analysis import reproduction as compare_runs
from apo_bench.analysis.contrasts import contrasts
from apo_bench.analysis.reproduction import EXACT, REPRODUCED, Compared, compare, sentences, tables
from apo_bench.analysis.results import read_run
from apo_bench.errors import InputError

ARMS = ("rjs", "golden_refresh", "apo_rjs")


def write(folder: Path, gap: float = 1.0, luck: int = 0, seeds: tuple[int, ...] = (0, 1, 2, 3), **changes: Any) -> Path:
    """A run in which apo_rjs scores `gap` more than the others; `luck` seeds its noise. Report: contrasts.csv alone."""
    generator = np.random.default_rng(luck)
    base = np.random.default_rng(99).normal(size=10)
    made = {
        (arm, seed, 1): (base + gap * (arm == "apo_rjs") + 0.1 * generator.normal() + 0.2 * generator.normal(size=10)).tolist()
        for arm in ARMS
        for seed in seeds
    }
    written = {
        "scores": scored(made),
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


def verdict(found: Compared) -> str:
    (one,) = found.primary["verdict"]
    return one


def test_a_copy_is_reproduced_exactly(tmp_path: Path) -> None:
    first = write(tmp_path / "first")
    shutil.copytree(first, tmp_path / "second")
    found = compare(first, tmp_path / "second")
    assert set(found.contrasts["verdict"]) == {EXACT}
    assert (found.status, found.settings) == (0, {})
    assert set(found.tables.values()) == {"identical"}
    assert any("tables are byte-identical" in line for line in sentences(found))


def test_other_luck_is_reproduced(tmp_path: Path) -> None:
    """A true gap of 1 with seed SDs of about 0.1 is found by both, and their drift is noise. Same seeds and experiment: paired."""
    found = compare(write(tmp_path / "first"), write(tmp_path / "second", luck=1))
    assert (verdict(found), found.status) == (REPRODUCED, 0)
    assert found.assumed == (compare_runs.PAIRED,)
    (row,) = found.primary.to_dict("records")
    assert (row["same_sign"], row["overlap"]) == ("yes", "yes")
    assert row["drift"] == pytest.approx(row["second"] - row["first"])
    assert row["drift_low"] < 0 < row["drift_high"]
    assert found.tables["scores"] == "different"
    assert found.tables["ledger"] == "identical"


def test_other_seeds_are_not_paired(tmp_path: Path) -> None:
    found = compare(write(tmp_path / "first"), write(tmp_path / "second", luck=1, seeds=(4, 5, 6)))
    assert verdict(found) == REPRODUCED
    assert found.assumed == (compare_runs.UNPAIRED,)
    assert found.settings == {"experiment.seeds": ([0, 1, 2, 3], [4, 5, 6])}


@pytest.mark.parametrize(
    ("gap", "said"),
    [
        (3.0, "same sign, drift beyond seed noise"),
        (-1.0, "opposite sign, drift beyond seed noise"),
        (0.0, "drift beyond seed noise"),
    ],
)
def test_another_truth_is_not_reproduced(tmp_path: Path, gap: float, said: str) -> None:
    found = compare(write(tmp_path / "first"), write(tmp_path / "second", gap=gap, luck=1))
    assert verdict(found).endswith(said)
    assert found.status == 1
    assert list(found.primary["overlap"]) == ["no"]


def test_neither_run_shows_a_difference_of_nothing(tmp_path: Path) -> None:
    """No true gap, in both runs p > 0.05: that no difference could be shown is reproduced, whatever the signs."""
    assert verdict(compare(write(tmp_path / "first", gap=0, luck=2), write(tmp_path / "second", gap=0, luck=1))) == REPRODUCED


@pytest.mark.parametrize(
    ("said", "same_sign", "p_drift", "expected"),
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
def test_verdicts(said: list[str], same_sign: str, p_drift: float, expected: str) -> None:
    ends = {f"{name}{end}": float(place) for place, name in enumerate(("first", "second")) for end in ("", "_low", "_high")}
    row = pd.Series(ends | {"said": said, "same_sign": same_sign, "p_drift": p_drift, "test": "none: why"})
    assert compare_runs._verdict(row) == expected


def test_a_report_alone_is_enough(tmp_path: Path) -> None:
    """What is committed of a run is its report: errors are added, and nothing is said of settings and tables."""
    first, second = write(tmp_path / "first"), write(tmp_path / "second", luck=1)
    shutil.rmtree(second / "tables")
    (second / "manifest.json").unlink()
    (second / "experiment.yaml").unlink()
    found = compare(first, second)
    assert verdict(found) == REPRODUCED
    assert (found.settings, found.tables, found.assumed) == (None, {}, (compare_runs.ADDED,))
    assert any("report alone" in line for line in sentences(found))


def test_what_differs_is_told(tmp_path: Path) -> None:
    """Another commit, torch and gold model; rows written by another parquet version are the same rows."""
    first, second = write(tmp_path / "first"), write(tmp_path / "second")
    manifest = json.loads((second / "manifest.json").read_text())
    (second / "manifest.json").write_text(json.dumps(manifest | {"commit": "def", "versions": {"python": "3.12"}, "failures": []}))
    pd.read_parquet(second / "tables" / "scores.parquet").to_parquet(second / "tables" / "scores.parquet", compression="gzip")
    found = compare(first, second)
    assert found.settings == {"commit": ("abc", "def"), "versions.python": ("3.11", "3.12")}
    assert found.tables["scores"] == "same rows, other bytes"
    assert found.assumed == (compare_runs.PAIRED,)


def test_another_gold_model_is_another_scale(tmp_path: Path) -> None:
    models = experiment()["models"]
    other = models | {"gold": [{"name": "encoder", "model": {"kind": "ngram", "max_features": 7}}]}
    runs = [write(tmp_path / "first"), write(tmp_path / "second", luck=1, models=other)]
    first, second = (compare_runs._read(run) for run in runs)
    assert compare_runs._another_scale(first, second, "encoder") == "gold model encoder is another one in each run"
    assert compare_runs._another_scale(first, second, "ground_truth") == ""


def test_a_contrast_that_one_run_lacks(tmp_path: Path) -> None:
    first, second = write(tmp_path / "first"), write(tmp_path / "second", luck=1)
    path = second / "report" / "tables" / "contrasts.csv"
    rows = pd.read_csv(path, keep_default_na=False)
    rows[rows["family"] != "primary"].to_csv(path, index=False)
    found = compare(first, second)
    assert verdict(found) == f"not comparable: only in {first}"
    assert found.status == 1


@pytest.mark.parametrize(
    ("change", "said"),
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
def test_what_cannot_be_compared_is_one_line(tmp_path: Path, change: Callable[[Path], object], said: str) -> None:
    first, second = write(tmp_path / "first"), write(tmp_path / "second")
    change(second)
    for pair in ((first, second), (second, first)):
        with pytest.raises(InputError, match=said) as caught:
            compare(*pair)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("column", "value", "said"), [("difference", "much", "'much' is no number"), ("axis", "odd", "no contrast")])
def test_a_spoilt_cell_is_one_line(tmp_path: Path, column: str, value: str, said: str) -> None:
    first, second = write(tmp_path / "first"), write(tmp_path / "second")
    path = second / "report" / "tables" / "contrasts.csv"
    rows = pd.read_csv(path, keep_default_na=False, dtype=str)
    if column == "axis":
        rows = rows[rows["axis"] == "all"].assign(axis=value)
    else:
        rows.loc[0, column] = value
    rows.to_csv(path, index=False)
    with pytest.raises(InputError, match=said):
        compare(first, second)


def test_words_and_tables_fit_and_are_inert(tmp_path: Path) -> None:
    from io import StringIO

    from rich.console import Console

    first, second = write(tmp_path / "first"), write(tmp_path / "second", luck=1)
    for folder in (first, second):
        path = folder / "report" / "tables" / "contrasts.csv"
        path.write_text(path.read_text().replace("helpful", "he\x1b[2J\u202elp"))
    manifest = json.loads((second / "manifest.json").read_text())
    (second / "manifest.json").write_text(json.dumps(manifest | {"commit": "\x1b]0;x\x07"}))
    found = compare(first, second)
    stream = StringIO()
    console = Console(file=stream, width=100, markup=False, highlight=False)
    for one in tables(found, descriptive=True):
        console.print(one)
    text = stream.getvalue() + "\n".join(sentences(found))
    assert not {"\x1b", "\x07", "\u202e"} & set(text)
    assert max(map(len, stream.getvalue().split("\n"))) <= 100
    assert REPRODUCED in text
    assert "1 of 1 primary contrasts" in text
