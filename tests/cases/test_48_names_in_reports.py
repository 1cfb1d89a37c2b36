"""Names that reach a report (an axis out of a data file's column) are text there, whatever they hold."""

import math
from pathlib import Path

import pandas as pd
import pytest
from run_folder import frame, scored, write_run

from apo_bench.report.report import write_report

OTHERS = {
    "metrics": [], "reward_models": [], "ledger": [("rjs", 0, "flops", 1.0, math.nan)],
    "gold": [("encoder", -1, "helpful", "accuracy", 0.7, 0.6, 0.8, 50, 20)],
}  # fmt: skip
NAMES = {
    "tag": "<img src=x onerror=alert(1)>",
    "markdown": "![x](http://127.0.0.1:1/leak) [go](javascript:alert(1))",
    "cells": "a|b\n| --- |\n# head",
    "latex": "\\input{/etc/passwd} $x$ & % #",
    "formula": '=HYPERLINK("http://127.0.0.1:1/")',
    "hidden": "\u202eevil\x1b[31m",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_axis_is_text_in_every_file(name: str, tmp_path: Path) -> None:
    arms = ("rjs", "golden_refresh", "apo_rjs")
    keys = [(arm, seed, round_) for arm in arms for seed in range(3) for round_ in (0, 1)]
    scores = {key: [key[1] + place / 3 + key[2] for place in range(4)] for key in keys}
    table = scored(scores, axis=NAMES[name])
    other = scored(scores, axis="helpful")
    other = other.assign(**{column: other[column] + "h" for column in ("prompt_id", "cluster_id")})
    tables = {"scores": pd.concat([table, other]), **{name: frame(name, rows) for name, rows in OTHERS.items()}}
    folder = write_run(tmp_path / "run", tables)
    write_report(folder)
    markdown = (folder / "report" / "report.md").read_text()
    assert "<img" not in markdown
    assert "![x]" not in markdown
    assert "](javascript:" not in markdown
    assert "\n| --- |\n# head" not in markdown
    assert not {"\u202e", "\x1b"} & set(markdown)
    for path in (folder / "report" / "tables").glob("*.tex"):
        assert "\\input{" not in path.read_text()
    for path in (folder / "report" / "tables").glob("*.csv"):
        assert not any(cell.startswith(("=", '"=')) for line in path.read_text().splitlines() for cell in line.split(","))
    for path in (folder / "report" / "figures").glob("*.svg"):
        assert "<img" not in path.read_text()
    assert "<img src=x" not in (folder / "report" / "report.html").read_text()
