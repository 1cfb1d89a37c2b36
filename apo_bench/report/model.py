"""What a report says, apart from how it is shown: sections of text, tables and figures. Markdown, LaTeX and the page render all of them.

Text is a tuple of spans. A span marked `data` comes from a run: no renderer ever takes it for markup.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd

from apo_bench.formatting import count, letter, number, probability, signed

NAN = math.nan
Form = Literal["number", "signed", "count", "probability", "ratio"]
Row = Mapping[str, Any]  # of a frame, by column
FORMS: dict[str, Callable[[float], str]] = {
    "number": number, "signed": signed, "count": count, "probability": probability,
    "ratio": lambda value: "-" if math.isnan(value) else f"{value:.3f}",
}  # fmt: skip


@dataclass(frozen=True)
class Span:
    """A piece of text that looks the same throughout."""

    text: str
    strong: bool = False
    emphasis: bool = False
    code: bool = False
    data: bool = False


Text = tuple[Span, ...]
_TOKEN = re.compile(r"\*\*|\*|`|\{(\w+)\}")


def say(template: str, /, **values: object) -> Text:
    """The text of a template with **strong**, *emphasised* and `code` parts; {names} are filled with texts, or with data that stay data."""
    spans: list[Span] = []
    look = {"strong": False, "emphasis": False, "code": False}
    start = 0
    for token in _TOKEN.finditer(template):
        if token.start() > start:
            spans.append(Span(template[start : token.start()], **look))
        if name := token[1]:
            value = values[name]
            parts = value if isinstance(value, tuple) else (Span(str(value), data=True),)
            spans += [replace(span, **{key: on or getattr(span, key) for key, on in look.items()}) for span in parts]
        else:
            key = {"**": "strong", "*": "emphasis", "`": "code"}[token[0]]
            look[key] = not look[key]
        start = token.end()
    return (*spans, Span(template[start:], **look)) if start < len(template) else tuple(spans)


def join(texts: Iterable[Text], between: str = " ") -> Text:
    """Texts one after another."""
    spans: list[Span] = []
    for text in texts:
        spans += [Span(between)] if spans and text else []
        spans += text
    return tuple(spans)


def names(values: Iterable[object], between: str = ", ") -> Text:
    """Names from a run, listed."""
    return join(((Span(str(value), data=True),) for value in values), between)


@dataclass(frozen=True)
class Value:
    """A number as its form writes it, with what belongs to it: an SD, an interval (NaN: none), its limit, its standing in a column."""

    value: float
    form: Form = "number"
    sd: float = NAN
    low: float = NAN
    high: float = NAN
    is_bound: bool = False  # the true value is at most this
    limit: float = NAN  # "of" which it is
    standing: str = ""  # highest, alike, lower
    best: bool = False  # tested against every other, and higher

    @property
    def text(self) -> str:
        return FORMS[self.form](self.value)

    @property
    def missing(self) -> bool:
        return math.isnan(self.value)

    def write(self, value: float) -> str:
        return FORMS[self.form](value)


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`; NaN: none."""

    low: float
    high: float
    form: Form = "signed"


Cell = None | int | float | str | Text | Value | Interval  # str is data; None is missing; a float is a Value


@dataclass(frozen=True)
class Column:
    """A column of a table: its head, and what it shows of a row. `paper`: it is in the LaTeX table too."""

    head: str
    cell: Callable[[Row], Cell]
    paper: bool = False


def column(head: str, key: str, form: Form = "number", *, sd: str = "", low: str = "", high: str = "", paper: bool = False) -> Column:
    """A column of numbers: `key` and what stands beside it name columns of the frame."""

    def cell(row: Row) -> Cell:
        around = {name: _float(row.get(source)) for name, source in (("sd", sd), ("low", low), ("high", high)) if source}
        return Value(_float(row.get(key)), form, **around)

    return Column(head, cell, paper)


def text_column(head: str, key: str, *, paper: bool = False) -> Column:
    """A column of the frame as it is: names or whole numbers."""

    def cell(row: Row) -> Cell:
        value = row.get(key)
        return None if value is None or value != value else value if isinstance(value, int) else str(value)

    return Column(head, cell, paper)


def arm_column(key: str = "arm", head: str = "arm", *, paper: bool = False) -> Column:
    """Names of arms; "" is the initial policy."""
    return Column(head, lambda row: say("`{arm}`", arm=row[key]) if row[key] else say("*initial policy*"), paper)


def pair_column(head: str = "contrast", between: str = "-", *, paper: bool = False) -> Column:
    return Column(head, lambda row: say(f"`{{a}}` {between} `{{b}}`", a=row["arm_a"], b=row["arm_b"]), paper)


def _float(value: Any) -> float:
    return NAN if value is None else float(value)


@dataclass(frozen=True)
class Paper:
    """How a table goes into a paper: the rows that do, titles of the blocks that they stand in, and a note of its own."""

    rows: Callable[[Row], bool] = lambda row: True
    block: Callable[[Row], str] | None = None
    note: Text = ()


@dataclass(frozen=True)
class Table:
    """A frame, a row of the table for each of its rows, with a caption and a note.

    With a `name` the frame is written to tables/<name>.csv and, where `paper` is given, its paper columns to tables/<name>.tex.
    `legend`: what columns and marks mean, a line each. `is_shown`: on the page and in report.md.
    """

    frame: pd.DataFrame
    columns: Sequence[Column]
    caption: str
    note: Text = ()
    legend: Sequence[Text] = ()
    name: str = ""
    paper: Paper | None = None
    is_shown: bool = True

    @property
    def rows(self) -> list[Row]:
        return self.frame.to_dict("records")  # pyright: ignore[reportReturnType]


def footnotes(frame: pd.DataFrame, note: Callable[[Row], Text]) -> tuple[Column, list[Text]]:
    """A column of marks, and what they mean: rows with the same note share one."""
    marks: dict[Text, str] = {}
    for row in frame.to_dict("records"):
        marks.setdefault(note(row), letter(len(marks)))  # pyright: ignore[reportArgumentType]
    return Column("note", lambda row: marks[note(row)]), [say(f"({mark}) {{text}}", text=text) for text, mark in marks.items()]


# --- figures ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A value at x with the SD around it (0: none), a label, and its share of the data behind its series, which sets its size."""

    x: float
    y: float
    spread: float = 0.0
    label: str = ""
    share: float = NAN


@dataclass(frozen=True)
class Series:
    """Points in order. `place` chooses colour, marker and line style; hollow markers stand at a bound."""

    name: str
    place: int
    points: tuple[Point, ...]
    is_hollow: bool = False


@dataclass(frozen=True)
class Panel:
    """Series on common axes. `group`: the row of panels, such as an axis. `reference`: a horizontal line."""

    title: str
    series: tuple[Series, ...]
    group: str = ""
    reference: float = NAN


@dataclass(frozen=True)
class Lines:
    """Panels of lines in `columns` columns; `names` are those of the legend. `by_round`: x counts rounds. `is_banded`: SDs are bands."""

    name: str
    title: str
    caption: Text
    panels: tuple[Panel, ...]
    names: tuple[str, ...]
    x_label: str
    y_label: str = "mean score"
    columns: int = 3
    hollow: frozenset[str] = frozenset()
    by_round: bool = False
    is_banded: bool = True
    is_diagonal: bool = False  # confidence against accuracy: the diagonal is perfect calibration


@dataclass(frozen=True)
class Estimate:
    """A value with its interval (NaN: none) and a remark. `family` and `is_filled` set its look."""

    label: str
    value: float
    low: float
    high: float
    form: Form = "signed"
    remark: str = ""
    family: str = ""  # primary, secondary, descriptive, mean
    is_filled: bool = True


@dataclass(frozen=True)
class ForestPanel:
    """Estimates on one scale, from `limits` or as wide as they are, and the value that they are held against."""

    title: str
    rows: tuple[Estimate, ...]
    reference: float = 0.0
    limits: tuple[float, float] | None = None
    x_label: str = ""


@dataclass(frozen=True)
class Forest:
    """Panels of estimates. Without a `name` it is on the page alone. `is_folded`: shown there when asked for."""

    title: str
    caption: Text
    panels: tuple[ForestPanel, ...]
    name: str = ""
    columns: int = 1
    is_folded: bool = False


@dataclass(frozen=True)
class Bar:
    """What an arm spends alone, what it added to this run (NaN: not known), and its budget (NaN: none)."""

    arm: str
    place: int
    alone: float
    added: float
    limit: float


@dataclass(frozen=True)
class Bars:
    """A panel of bars per unit, by title."""

    name: str
    title: str
    caption: Text
    panels: Mapping[str, tuple[Bar, ...]]


Figure = Lines | Forest | Bars


# --- sections -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """What a contrast permits to be said first, on what, and the numbers behind it."""

    headline: Text
    where: Text
    detail: Text


@dataclass(frozen=True)
class Claims:
    items: Sequence[Claim]


@dataclass(frozen=True)
class Bullets:
    items: Sequence[Text]


@dataclass(frozen=True)
class Facts:
    """Terms and what is known of them."""

    items: Mapping[str, Text]


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it. `is_on_page_only`: report.md leaves it out."""

    title: str
    blocks: Sequence["Block"]
    is_on_page_only: bool = False


Block = Text | Claims | Bullets | Facts | Table | Figure | Section


@dataclass(frozen=True)
class Part:
    """Sections that share a place on the page, under a heading and an anchor of their own."""

    anchor: str
    title: str
    sections: Sequence[Section]


@dataclass(frozen=True)
class Report:
    """`notices` come before everything else. `frames`: the csv files that no table has written, by name."""

    title: str
    notices: Sequence[Text]
    parts: Sequence[Part]
    frames: Mapping[str, pd.DataFrame]
    subtitle: str = ""

    @property
    def sections(self) -> list[Section]:
        return [section for part in self.parts for section in part.sections]


def blocks_of(sections: Iterable[Section]) -> Iterable[Block]:
    """All blocks of sections, those of their subsections too."""
    for section in sections:
        for block in section.blocks:
            if isinstance(block, Section):
                yield from blocks_of([block])
            else:
                yield block
