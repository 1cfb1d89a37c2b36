"""Tables without a seal (older runs, published reports) whose rows cannot be: refused by file and column, not reported."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from judged_run import run_folder

from apo_bench.analysis.results import read_run
from apo_bench.errors import InputError
from apo_bench.tables import TABLES, read_table, table_path

VERDICT: dict[str, Any] = {
    "arm_a": "rjs", "arm_b": "apo_rjs", "seed_a": 0, "seed_b": 0, "round": "1", "prompt_id": "p", "cluster_id": "c", "axis": "all",
    "judge": "j", "order": "ab", "verdict": "first", "value": 1.0, "failure": "", "length_a": 1.0, "length_b": 1.0, "question": "",
}  # fmt: skip


@pytest.mark.parametrize(("column", "value"), [("value", 7.0), ("value", -0.5), ("value", math.inf), ("order", "zz"), ("verdict", "maybe")])
def test_a_value_outside_its_domain(column: str, value: object, tmp_path: Path) -> None:
    pd.DataFrame([VERDICT | {column: value}]).to_parquet(tmp_path / "judgments.parquet")
    with pytest.raises(InputError, match=rf"judgments\.parquet: column {column}: .* needed, got"):
        read_table(tmp_path / "judgments.parquet", "judgments")


@pytest.mark.parametrize("used", [-5.0, math.inf])
def test_an_amount_that_nobody_can_spend(used: float, tmp_path: Path) -> None:
    pd.DataFrame([{"arm": "rjs", "seed": 0, "unit": "flops", "used": used, "budget": 1.0}]).to_parquet(tmp_path / "ledger.parquet")
    with pytest.raises(InputError, match=r"ledger\.parquet: column used: numbers from 0"):
        read_table(tmp_path / "ledger.parquet", "ledger")


@pytest.mark.parametrize("name", ["judgments", "ledger", "metrics", "gold", "plan", "judge_audit", "responses", "prompts", "reward_models"])
def test_a_row_that_would_count_twice(name: str, tmp_path: Path) -> None:
    row = {column.name: "ab" if column.name == "order" else "first" if column.kind == "text" else 1 for column in TABLES[name].columns}
    path = tmp_path / f"{name}.parquet"
    pd.DataFrame([row]).to_parquet(path)
    assert len(read_table(path, name)) == 1
    pd.DataFrame([row, row]).to_parquet(path)
    with pytest.raises(InputError, match=rf"{name}\.parquet: 1 rows have the same"):
        read_table(path, name)


@pytest.mark.parametrize(("table", "column"), [("scores", "arm"), ("judgments", "arm_b")])
def test_an_arm_that_the_experiment_does_not_have(table: str, column: str, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", {"audit_pairs": 0})
    path = table_path(folder, table)
    rows = pd.DataFrame([VERDICT]) if table == "judgments" else pd.read_parquet(path)
    rows.loc[0, column] = "ghost"
    rows.to_parquet(path)
    with pytest.raises(InputError, match=rf"{table}\.parquet: column {column}: 'ghost' is no arm of the experiment"):
        read_run(folder)
