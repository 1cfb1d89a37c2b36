"""Formats of numbers, durations and Markdown tables, and outside text made visible.

A dash stands for a missing value. Text from outside passes `visible` or `one_line` before it is shown.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

ALPHA = 0.05
UNKNOWN = "not known"
RISKY = tuple("=+-@\uff1d\uff0b\uff0d\uff20'")  # what a formula starts with, also full-width, and the mark of a text
Row = Any  # one row of a frame, its columns as attributes

# Shown by name: control characters except tab and newline, soft hyphens, marks that turn the direction of text, what has no
# width, line separators, halves of surrogate pairs, non-characters and tags. Joiners stay, which scripts need and which can do nothing.
_HIDDEN = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\ufffe\uffff"
    "\U000e0000-\U000e007f]"
)


# A sign of a number, not a hyphen in a word, range, date, exponent or option; or the operator that stands alone between two names.
_MINUS = re.compile(r"(?<![\w)\].:/-])-(?=\.?\d)|(?<=^ )-(?= $)")


def visible(text: object) -> str:
    """Text with hidden characters shown: control pictures for ASCII's, ⟨U+202E⟩ for others. Tabs and newlines stay."""
    return _HIDDEN.sub(_named, str(text))


def one_line(text: object) -> str:
    """Visible text as one line: white space of any kind is one blank, so that a message cannot add lines of its own."""
    return visible(" ".join(str(text).split()))


def _named(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else f"\u27e8U+{code:04X}\u27e9"


def rows_of(frame: "pd.DataFrame") -> list[Row]:
    """A frame's rows, columns as attributes."""
    return list(frame.itertuples())


def table(headers: Iterable[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, one per row even where a cell holds a newline."""
    headers = list(headers)
    return [f"| {' | '.join(map(one_line, line))} |" for line in (headers, ["---"] * len(headers), *rows)]


def plain(value: object) -> str:
    """Text from a file or a server as one table cell or line, visible, and without working tags, images or links."""
    return one_line(value).replace("|", "\\|").replace("<", "&lt;").replace("![", "!\\[").replace("](", "]\\(")


def letter(place: int) -> str:
    """The name of a note: a to z, then aa, ab, ... as spreadsheets name columns."""
    before, last = divmod(place, 26)
    return (letter(before - 1) if before else "") + chr(ord("a") + last)


def number(value: float) -> str:
    """Three decimals, or one from 100 on."""
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def minus(text: str) -> str:
    """Text with true minus signs, as reports show it; csv files and the terminal keep the hyphen."""
    return _MINUS.sub("\N{MINUS SIGN}", text)


def signed(value: float) -> str:
    """Three decimals with a sign."""
    return "-" if math.isnan(value) else f"{value:+.3f}"


def probability(value: float) -> str:
    """Three decimals, or "< 0.001"; empty where it is not known."""
    return "" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def p_equals(value: float) -> str:
    """ "p = 0.012", or "p < 0.001"."""
    shown = probability(value)
    return f"p {shown}" if shown.startswith("<") else f"p = {shown}"


def count(value: float) -> str:
    """A count with thousands separators; from ten million on in scientific notation."""
    if math.isnan(value):
        return "-"
    return f"{value:.3e}" if value >= 1e7 else f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def spent(value: float) -> str:
    """An amount that was spent: a count, or "not known"."""
    return UNKNOWN if math.isnan(value) else count(value)


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them: "89 s", "1.5 min", "1.5 h"."""
    if math.isnan(seconds):
        return UNKNOWN
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s"


def inert(text: str) -> str:
    """A cell that no spreadsheet executes: text that starts like a formula, after any white space, gets an apostrophe.

    Every text that starts with an apostrophe gets one too, so that taking one off a cell that has it gives the text back.
    """
    return f"'{text}" if text[:1] in ("\t", "\r", "\n") or text.lstrip()[:1] in RISKY else text


def csv_text(frame: "pd.DataFrame") -> str:
    """A frame as csv, with nothing in it that a spreadsheet would run."""
    safe = frame.map(lambda cell: inert(cell) if isinstance(cell, str) else cell)
    return safe.to_csv(index=False, float_format="%.12g", lineterminator="\n")
