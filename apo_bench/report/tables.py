"""Tables of a report: frames with columns that show something of each row, a caption and a note."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from apo_bench.formatting import count, letter, number, probability, signed, spent
from apo_bench.report.text import Text, say

NAN = math.nan
CI = ("ci_low", "ci_high")
Form = Literal["number", "signed", "count", "spent", "probability", "ratio"]
Row = Mapping[str, Any]  # of a frame, by column
FORMS: dict[str, Callable[[float], str]] = {
    "number": number, "signed": signed, "count": count, "spent": spent, "probability": probability,
    "ratio": lambda value: "-" if math.isnan(value) else f"{value:.3f}",
}  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, both known; `text` writes them in their form."""

    low: float
    high: float
    form: Form = "signed"

    @property
    def text(self) -> str:
        return f"{FORMS[self.form](self.low)} to {FORMS[self.form](self.high)}"


def interval(low: float, high: float, form: Form = "signed") -> Interval | None:
    """From `low` to `high`; None where they are NaN."""
    return None if math.isnan(low) else Interval(low, high, form)


@dataclass(frozen=True)
class Value:
    """A number as its form writes it, with what belongs to it: an SD, an interval, its limit, its standing in a column."""

    value: float
    form: Form = "number"
    sd: float = NAN
    interval: Interval | None = None
    is_bound: bool = False  # the true value is at most this
    limit: float = NAN  # "of" which it is
    standing: str = ""  # in its column: best, highest, alike or lower
    is_shown: bool = False  # a declared difference with an adjusted p below ALPHA

    @property
    def text(self) -> str:
        return FORMS[self.form](self.value)

    def write(self, value: float) -> str:
        return FORMS[self.form](value)


Cell = None | int | str | Text | Value | Interval  # str is data; None is missing


@dataclass(frozen=True)
class Column:
    """A column of a table: its head, and what it shows of a row. `paper`: it is in the LaTeX table too."""

    head: str
    cell: Callable[[Row], Cell]
    paper: bool = False


def column(
    head: str, key: str = "", form: Form = "number", *, ends: tuple[str, str] = ("", ""), limit: str = "", paper: bool = False
) -> Column:
    """Numbers: the frame's column `key`, or that of the head's name, with its <key>_sd and <key>_standing, where the frame has them."""
    key = key or head

    def cell(row: Row) -> Cell:
        amounts = (row.get(source) for source in (key, f"{key}_sd", *ends, limit))
        amount, sd, low, high, budget = (NAN if amount is None else float(amount) for amount in amounts)
        budget = NAN if form == "spent" and math.isnan(amount) else budget
        return Value(amount, form, sd, interval(low, high, form), limit=budget, standing=row.get(f"{key}_standing", ""))

    return Column(head, cell, paper)


def interval_column(form: Form = "signed", *, paper: bool = False) -> Column:
    """The 95 % interval in a column of its own, from the frame's ci_low and ci_high."""
    return Column("95 % interval", lambda row: interval(row["ci_low"], row["ci_high"], form), paper)


def text_column(head: str, key: str = "", *, paper: bool = False) -> Column:
    """A column of the frame as it is, names or whole numbers, under its own name or another `head`."""

    def cell(row: Row) -> Cell:
        value = row.get(key or head)
        return None if pd.isna(value) else int(value) if isinstance(value, int | float) else str(value)

    return Column(head, cell, paper)


def arm_column(key: str = "arm", head: str = "arm", *, paper: bool = False) -> Column:
    """Names of arms; "" is the initial policy."""
    return Column(head, lambda row: say("`{arm}`", arm=row[key]) if row[key] else say("*initial policy*"), paper)


def pair_column(head: str = "contrast", between: str = "-", *, paper: bool = False) -> Column:
    return Column(head, lambda row: say(f"`{{a}}` {between} `{{b}}`", a=row["arm_a"], b=row["arm_b"]), paper)


@dataclass(frozen=True)
class Paper:
    """How a table goes into a paper: the rows that do, titles of the blocks that they stand in, and a note of its own."""

    rows: Callable[[Row], bool] = lambda row: True
    block: Callable[[Row], str] = lambda row: ""
    note: Text = ()


@dataclass(frozen=True)
class Table:
    """A frame, a row of the table for each of its rows, with a caption and a note.

    With a `name` the frame is written to tables/<name>.csv and, where `paper` is given, its paper columns to tables/<name>.tex.
    `legend`: what columns and marks mean, a line each. `is_stacked`: on a narrow screen each row is a list of what is known.
    """

    frame: pd.DataFrame
    columns: Sequence[Column]
    caption: str
    note: Text = ()
    legend: Sequence[Text] = ()
    name: str = ""
    paper: Paper | None = None
    is_on_page_only: bool = False
    is_in_paper_only: bool = False
    is_stacked: bool = False

    @property
    def rows(self) -> list[Row]:
        return self.frame.to_dict("records")  # pyright: ignore[reportReturnType]


def footnotes(frame: pd.DataFrame, note: Callable[[Row], Text]) -> tuple[Column, list[Text]]:
    """A column of marks, and what they mean: rows with the same note share one."""
    marks: dict[Text, str] = {}
    for row in frame.to_dict("records"):
        marks.setdefault(note(row), letter(len(marks)))  # pyright: ignore[reportArgumentType]
    return Column("note", lambda row: marks[note(row)]), [say(f"({mark}) {{text}}", text=text) for text, mark in marks.items()]
