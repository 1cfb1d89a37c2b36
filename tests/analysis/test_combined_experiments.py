"""One contrast over experiments: by hand from reports, and what is refused or noted."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from apo_bench.analysis.combined_experiments import DECLARED, combine_experiments
from apo_bench.cli.main import app
from apo_bench.errors import InputError
from apo_bench.stats import meta_analysis


def report(folder: Path, *rows: dict[str, Any]) -> Path:
    """A report alone: contrasts.csv with these rows; a row is apo - rjs by `gold`, pooled, at the final round, unless it says otherwise."""
    usual = {
        "arm_a": "apo", "arm_b": "rjs", "axis": "all", "scorer": "gold", "at": "final", "family": "primary", "difference": 0.0,
        "ci_low": -1.0, "ci_high": 1.0, "p_value": 0.5, "p_adjusted": 0.5, "standard_error": 1.0, "df": 4, "n_seeds": 5, "sd": 2.0,
    }  # fmt: skip
    (folder / "report" / "tables").mkdir(parents=True)
    pd.DataFrame([usual | row for row in rows]).to_csv(folder / "report" / "tables" / "contrasts.csv", index=False)
    return folder


def test_two_reports_by_hand(tmp_path: Path) -> None:
    """0 and 4 with errors 1: tau^2 7, mean 2, weights 1/2 each (`test_meta_analysis.test_by_hand`); the second has rjs - apo = -4."""
    turned = {"arm_a": "rjs", "arm_b": "apo", "difference": -4.0, "ci_low": -6.0, "ci_high": -3.0}
    folders = [report(tmp_path / "x", {}), report(tmp_path / "y", turned)]
    (combined,) = combine_experiments(folders, "apo", "rjs").by_scorer
    assert list(combined.experiments["difference"]) == [0, 4]
    assert tuple(combined.experiments.loc[1, ["ci_low", "ci_high"]]) == (3, 6)
    assert list(combined.experiments["weight"]) == pytest.approx([0.5, 0.5])
    assert combined.result == meta_analysis([0, 4], [1, 1])


def test_scorers_stand_side_by_side_and_in_sds_each_run_has_its_own(tmp_path: Path) -> None:
    """x is tested by gold, y by judge/j: both have the truth. In SDs (2 and 4): by the declared scorers 1/2 and 8/4, errors 1/2 and 1/4."""
    truth = {"scorer": "ground_truth", "family": "descriptive", "difference": 1.0}
    x = report(tmp_path / "x", {"difference": 1.0}, truth, truth | {"scorer": "proxy"})
    y = report(tmp_path / "y", {"scorer": "judge/j", "difference": 8.0, "sd": 4.0}, truth, truth | {"scorer": "proxy"})
    assert [each.scorer for each in combine_experiments([x, y], "apo", "rjs").by_scorer] == ["ground_truth"]
    _, own = combine_experiments([x, y], "apo", "rjs", in_sds=True, tau="reml").by_scorer
    assert (own.scorer, list(own.experiments["scorer"])) == (DECLARED, ["gold", "judge/j"])
    assert own.result == meta_analysis([0.5, 2], [0.5, 0.25], tau="reml")


def test_what_lacks_an_error_is_left_out_by_name_and_few_seeds_are_noted(tmp_path: Path) -> None:
    rows = ({"n_seeds": 1}, {"n_seeds": 3}, {"standard_error": math.nan}, {"scorer": "other"})
    folders = [report(tmp_path / str(place), row) for place, row in enumerate(rows)]
    combined = combine_experiments(folders, "apo", "rjs")
    assert combined.by_scorer[0].left_out == (f"{folders[2]}: no standard error", f"{folders[3]}: no such contrast")
    assert [note.partition(":")[0] for note in combined.notes[:1]] == ["One seed, so the error is that of its checkpoints only"]
    assert str(folders[1]) in combined.notes[1]


@pytest.mark.parametrize(
    ("names", "change", "message"),
    [
        (["x"], {}, "at least two run folders"),
        (["x", "x"], {}, "x is named twice"),
        (["x", "y"], {"b": "apo"}, "two different arms"),
        (["x", "y"], {"axis": "helpful"}, "no two of these folders have it with a standard error"),
        (["x", "y"], {"scorer": "truth"}, "no two of these folders have it by truth"),
        (["x", "none"], {}, "not a finished run folder"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, names: list[str], change: dict[str, Any], message: str) -> None:
    for name in ("x", "y"):
        report(tmp_path / name, {})
    with pytest.raises(InputError, match=message):
        combine_experiments([tmp_path / name for name in names], **{"a": "apo", "b": "rjs", **change})


def test_the_command_shows_experiments_mean_and_heterogeneity(tmp_path: Path) -> None:
    folders = [str(report(tmp_path / name, {"difference": value})) for name, value in (("x", 0.0), ("y", 4.0), ("z", 2.0))]
    shown = CliRunner().invoke(app, ["meta", *folders, "--contrast", "apo,rjs"])
    assert shown.exit_code == 0, shown.output
    words = " ".join(shown.output.split())
    assert "random effects over 3 experiments, Hartung-Knapp t" in words
    result = meta_analysis([0, 4, 2], [1, 1, 1])
    assert f"true differences vary with SD {result.tau:.3f} (I2 {result.i_squared:.0%}" in words
    refused = CliRunner().invoke(app, ["meta", *folders, "--contrast", "apo"])
    assert (refused.exit_code, refused.output) == (2, "error: --contrast apo: two arms, separated by a comma, are needed\n")
