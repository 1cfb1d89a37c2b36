"""Markdown tables, and numbers and claims as a report writes them. A dash stands for what is missing."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from apo_bench.visible import one_line

ALPHA = 0.05
Row = Any  # one row of a frame, its columns as attributes


def rows_of(frame: pd.DataFrame) -> list[Row]:
    """A frame's rows, columns as attributes."""
    return list(frame.itertuples())


def table(headers: Iterable[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table, one a row whatever its cells hold."""
    headers = list(headers)
    return [f"| {' | '.join(map(one_line, line))} |" for line in (headers, ["---"] * len(headers), *rows)]


def plain(value: object) -> str:
    """Text from a file, or from a server, as one table cell or line in which nothing is hidden and no tag or image is one."""
    return one_line(value).replace("|", "\\|").replace("<", "&lt;").replace("![", "!\\[")


def letter(place: int) -> str:
    """The name of a note: a to z, then aa, ab, ... as spreadsheets name columns."""
    before, last = divmod(place, 26)
    return (letter(before - 1) if before else "") + chr(ord("a") + last)


def mean_sd(values: pd.Series) -> str:
    """Mean and sample SD of values."""
    return pm(float(values.mean()), float(values.std()))


def pm(mean: float, sd: float) -> str:
    return number(mean) if math.isnan(sd) else f"{number(mean)} ± {number(sd)}"


def number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.3f}"


def probability(value: float) -> str:
    return "" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def claim(a: str, b: str, where: str, difference: float, p_adjusted: float) -> str:
    """What a tested difference of two arms permits to be said first."""
    if p_adjusted < ALPHA:
        return f"**{a} scored {'higher' if difference > 0 else 'lower'} than {b}** ({where})"
    return f"**No difference between {a} and {b} could be shown** ({where})"


def tested(p_adjusted: float, p_value: float, test: str) -> str:
    """The p-values behind a claim, and the test that gave them."""
    return f"Holm-adjusted p = {probability(p_adjusted)} (unadjusted {probability(p_value)}; {test})"


def count(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.3e}" if value >= 1e7 else f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"
