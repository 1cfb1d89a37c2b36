"""The schema of a run's tables: every entry is sound, and a file that differs from its entry is one line."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from apo_bench.errors import InputError
from apo_bench.tables import TABLES, empty_table, read_table, table_path, write_table

SCORES = pd.DataFrame(
    [
        ("rjs", 0, 1, "p1", "c1", "helpful", "proxy", 0.5),
        ("rjs", 0, 1, "p0", "c0", "helpful", "proxy", 0.25),
        ("apo", 1, 1, "p0", "c0", "helpful", "proxy", -1.0),
    ],
    columns=list(TABLES["scores"].names),
)


@pytest.mark.parametrize("name", TABLES)
def test_an_entry_is_whole(name: str) -> None:
    table = TABLES[name]
    assert len(set(table.names)) == len(table.names)
    assert set(table.sort_keys) | set(table.unique) | set(table.finite) <= set(table.names)
    assert all(text and "\n" not in text for text in (table.meaning, *(column.meaning for column in table.columns)))
    assert list(empty_table(name)) == list(table.names)


def test_rows_are_written_sorted_with_columns_in_order(tmp_path: Path) -> None:
    path = table_path(tmp_path, "scores")
    write_table(path, "scores", SCORES[[*reversed(SCORES.columns)]])
    assert path == tmp_path / "tables" / "scores.parquet"
    rows = pd.read_parquet(path)
    assert tuple(rows) == TABLES["scores"].names
    assert rows[["arm", "prompt_id", "value"]].values.tolist() == [["apo", "p0", -1.0], ["rjs", "p0", 0.25], ["rjs", "p1", 0.5]]
    pd.testing.assert_frame_equal(read_table(path, "scores"), rows)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (SCORES.drop(columns="axis"), "column axis is missing"),
        (SCORES.assign(mood="good"), "column mood: table scores has no such column"),
        (SCORES.assign(seed="zero"), "column seed: numbers are needed, got str"),
        (SCORES.assign(seed=0.5), "column seed: whole numbers are needed"),
        (SCORES.assign(arm=[None, "rjs", "apo"]), "column arm: 1 rows have none"),
        (SCORES.assign(arm=[1, "rjs", "apo"]), "column arm: texts are needed"),
        (SCORES.assign(value=[0.5, float("inf"), float("nan")]), "column value: 2 rows are NaN or infinite"),
        (pd.concat([SCORES, SCORES.head(1)]), "1 rows have the same arm, seed, round, prompt_id, axis, scorer as another"),
    ],
)
def test_rows_that_do_not_fit_are_refused_when_written_and_when_read(tmp_path: Path, rows: pd.DataFrame, message: str) -> None:
    path = tmp_path / "scores.parquet"
    with pytest.raises(InputError) as caught:
        write_table(path, "scores", rows)
    assert str(caught.value) == f"{path}: {message}"
    assert not path.exists()
    try:
        rows.to_parquet(path)
    except Exception:  # parquet itself cannot hold a column of numbers and texts
        return
    with pytest.raises(InputError) as caught:
        read_table(path, "scores")
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize(("content", "message"), [(None, "no such file"), (b"PAR1", "not readable as parquet")])
def test_a_file_that_is_no_table_is_one_line(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "scores.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_table(path, "scores")
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_columns_that_older_folders_lack_are_missing_values(tmp_path: Path) -> None:
    path = tmp_path / "ledger.parquet"
    pd.DataFrame([("rjs", 0, "flops", 5.0, 6.0)], columns=["arm", "seed", "unit", "used", "budget"]).to_parquet(path)
    rows = read_table(path, "ledger")
    assert tuple(rows) == TABLES["ledger"].names
    assert rows["marginal"].isna().all()
