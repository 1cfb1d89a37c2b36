"""Verdicts from outside as rows of the table `judgments`: here sheets that people filled in, as a judge of a run.

A person sees a comparison in one order, so it has one row and that row's value is the comparison's. `order` is the one that was shown.
"""

import csv
import gzip
import io
import re
import reprlib
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from apo_bench.analysis.results import read_responses, read_run
from apo_bench.analysis.seal import IMPORTED, break_seal, seal
from apo_bench.errors import InputError, what_is_wrong
from apo_bench.exchange.export import Key, Shown, key_path
from apo_bench.formatting import rows_of
from apo_bench.judging.judge_protocol import Choice, value_of
from apo_bench.run.judges import on_current_responses  # every run writes its tables anew, and keeps what is imported
from apo_bench.run.tables import replace_judges
from apo_bench.store import updating
from apo_bench.tables import TABLES, table_path, write_table

CHOICES: Mapping[str, Choice] = {"1": "first", "2": "second", "tie": "tie", "1.0": "first", "2.0": "second"}  # 1.0: a column of numbers
EMPTY, NO_ROW = "left empty", "no row in the sheet"  # why a verdict is missing
COMPARISON = ["arm_a", "arm_b", "axis", "seed_a", "seed_b", "prompt_id"]


@dataclass(frozen=True)
class Imported:
    """The table written, how many comparisons came in, and how many of them have no verdict, by reason.

    `n_skipped` more compare a model with itself, as a baseline's own file does.
    """

    path: Path
    n: int
    missing: Mapping[str, int]
    n_skipped: int = 0


def import_sheets(folder: Path, sheets: Sequence[Path], key: Path | None = None, *, judge: str = "human") -> Imported:
    """Add what people put into sheets to a run, as a judge of that name, in place of what was imported under it before.

    Raises InputError also where the run has another judge of that name or does not hold the responses that were shown.
    """
    run = read_run(folder, repairing=True)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", judge):
        raise InputError(f"judge {judge!r}: letters, digits, '_', '-', '.', starting with a letter or digit")
    kept = folder / IMPORTED / f"{judge}.parquet"
    if judge in run.experiment.judges or (not kept.exists() and judge in set(run.tables["judgments"]["judge"])):
        raise InputError(f"{folder}: there is a judge {judge} already; import under another name")
    rows = read_sheets(sheets, key, judge=judge)
    _check_shown(folder, rows)
    with updating(folder):
        read_run(folder, repairing=True)  # what another command has written meanwhile is undamaged
        break_seal(folder, "judges")
        write_table(kept, "judgments", rows)
        replace_judges(folder, {"judgments": rows}, [judge])
        seal(folder)
    return Imported(table_path(folder, "judgments"), len(rows), missing_by_reason(rows))


def read_sheets(sheets: Sequence[Path], key: Path | None = None, *, judge: str = "human") -> pd.DataFrame:
    """The verdicts of filled sheets, a row for each comparison in their keys; `key` goes with one sheet, None: each has its own beside it.

    Preference is 1, 2 or tie. A comparison whose cell is empty or whose row is gone has no verdict; identical responses are a tie. Only
    the columns id and preference are read, so a spreadsheet may have done what it likes with the texts.
    """
    if key is not None and len(sheets) != 1:
        raise InputError(f"{key}: a key goes with one sheet, got {len(sheets)}")
    rows: list[dict[str, Any]] = []
    seen: dict[tuple[Any, ...], Path] = {}
    for sheet in sheets:
        path = key or key_path(sheet)
        known = _key(path)
        filled = _filled(sheet, known)
        fresh = [_row(shown, judge, filled.get(id_), EMPTY if id_ in filled else NO_ROW) for id_, shown in known.shown.items()]
        fresh += [_row(shown, judge, "tie") for shown in known.identical]
        for row in fresh:
            pair = tuple(row[name] for name in COMPARISON)
            if pair in seen:
                raise InputError(f"{path}: {row['arm_a']} and {row['arm_b']} on prompt {row['prompt_id']} are in {seen[pair]} already")
            seen[pair] = path
        rows += fresh
    return as_judgments(rows)


def _key(path: Path) -> Key:
    try:
        return Key.model_validate_json(text_of(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {where + ': ' if where else ''}{what_is_wrong(first)}; is it a sheet's key?") from None


def _filled(sheet: Path, known: Key) -> dict[str, Choice | None]:
    """What stands under preference, by id."""
    preferences: dict[str, Choice | None] = {}
    lines: dict[str, int] = {}
    for line, row in _cells(sheet):
        id_, preference = row["id"].strip(), row["preference"].strip().casefold()
        if id_ not in known.shown:
            raise InputError(f"{sheet}: line {line}: id: {reprlib.repr(id_)} is not in the sheet's key")
        if id_ in preferences:
            raise InputError(f"{sheet}: line {line}: id: {id_} is on line {lines[id_]} already")
        if preference and preference not in CHOICES:
            raise InputError(f"{sheet}: line {line}: preference: 1, 2 or tie is needed, got {reprlib.repr(preference)}")
        preferences[id_], lines[id_] = CHOICES.get(preference), line
    return preferences


def _cells(sheet: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows that are not blank, with the line each starts on; separated by commas, semicolons or tabs, as spreadsheets will."""
    text = text_of(sheet)
    headers = {mark: next(csv.reader(text[:1000].splitlines(), delimiter=mark), []) for mark in ",;\t"}
    separator = next((mark for mark, columns in headers.items() if columns.count("id") == columns.count("preference") == 1), None)
    if separator is None:
        raise InputError(f"{sheet}: line 1: the columns id and preference are needed, once each")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    numbered, line, limit = [], 1, csv.field_size_limit(sys.maxsize)  # the limit is of the whole process, so it is put back
    try:
        for cells in reader:
            numbered.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{sheet}: line {line}: not readable as CSV: {error}") from None
    finally:
        csv.field_size_limit(limit)
    columns = numbered[0][1]
    for line, cells in numbered[1:]:
        if any(cells[len(columns) :]):
            raise InputError(f"{sheet}: line {line}: more cells than columns")
        if any(cell.strip() for cell in cells):
            yield line, dict.fromkeys(columns, "") | dict(zip(columns, cells, strict=False))  # empty cells at the end may be left out


def _row(shown: Shown, judge: str, choice: Choice | None, failure: str = "") -> dict[str, Any]:
    verdict = {"verdict": choice, "value": value_of(shown.order, choice), "failure": "" if choice else failure}
    return shown.model_dump() | {"judge": judge} | verdict


def _check_shown(folder: Path, rows: pd.DataFrame) -> None:
    """Verdicts on responses that the run no longer holds (it was run again, say) are no verdicts on this run."""
    for row in rows_of(rows[~on_current_responses(read_responses(folder), rows)].head(1)):
        names = f"{row.arm_a}, seed {row.seed_a}, and {row.arm_b}, seed {row.seed_b}"
        message = f"{folder}: the responses of {names} to prompt {row.prompt_id} are not those shown; was it run again since?"
        raise InputError(message)


def as_judgments(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows in the columns of `judgments`; `question` is the id of what was shown, "" where that is not known."""
    return pd.DataFrame(rows, columns=list(TABLES["judgments"].names))


def missing_by_reason(rows: pd.DataFrame) -> dict[str, int]:
    """How many rows have no value, by failure."""
    return {str(reason): int(n) for reason, n in rows.loc[rows["value"].isna(), "failure"].value_counts().sort_index().items()}


def text_of(path: Path) -> str:
    """A UTF-8 file's text, with or without a byte-order mark; line ends as they are."""
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start})") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not readable: {error}") from None
