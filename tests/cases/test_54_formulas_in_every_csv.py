"""Names from outside in the csv files of `import-judgments` and of the audits: no spreadsheet runs them."""

import csv
import json
from pathlib import Path

import pytest

from apo_bench.exchange.alpaca_eval_annotations import import_annotations
from apo_bench.judging.recorded_verdicts import audit_recorded

FORMULAS = ["=cmd|' /C calc'!A0", "@SUM(1)", "+1", "-1", "\t=1"]


@pytest.mark.parametrize("name", FORMULAS)
def test_no_cell_starts_like_a_formula(name: str, tmp_path: Path) -> None:
    annotations, scores = tmp_path / "annotations.json", tmp_path / "scores.jsonl"
    row = {"output_1": "r", "output_2": "o", "generator_1": "ref", "generator_2": name, "annotator": name}
    annotations.write_text(json.dumps([{**row, "instruction": str(i), "preference": 1 + i % 2} for i in range(6)]))
    scores.write_text("".join(json.dumps({"id": i, "subset": name, "scores_chosen": 1, "scores_rejected": 0}) + "\n" for i in range(6)))
    import_annotations([annotations], tmp_path / "out")
    audit_recorded(scores, None, tmp_path / "audit")
    for path in (tmp_path / "out" / "win_rates.csv", tmp_path / "audit" / "report" / "recorded.csv"):
        with path.open(newline="") as lines:
            cells = [cell for line in csv.reader(lines) for cell in line]
        assert f"'{name}" in cells
        assert name not in cells
