"""Figures of a report: lines by round or KL, forests of estimates, bars of budgets. matplotlib and the page both draw them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from apo_bench.report.tables import NAN, Form
from apo_bench.report.text import Text

DENSE = 25  # points of a series beyond which it is a line without markers


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

    @property
    def is_dense(self) -> bool:
        """Whether it is drawn as a line without markers."""
        return len(self.points) > DENSE


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

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(panel.group for panel in self.panels))


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
    reference: float = NAN  # where it is not the panel's


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

    def largest(self, title: str) -> float:
        """The largest amount or limit of a panel."""
        return max((end for bar in self.panels[title] for end in (bar.alone, bar.limit) if not math.isnan(end)), default=0.0)


Figure = Lines | Forest | Bars


def series_of(name: str, place: int, rows: pd.DataFrame, x: str, *, is_hollow: bool = False, last: bool = False) -> Series:
    """A line through the rows' means, with their SDs; rows without x or mean are left out. `last`: label the last point with its round."""
    rows = rows.dropna(subset=[x, "mean"])
    points = [Point(*values) for values in rows[[x, "mean", "seed_sd"]].astype(float).fillna(0.0).to_numpy().tolist()]
    if last and points:
        points[-1] = replace(points[-1], label=f"{rows['round'].iloc[-1]:.0f}")
    return Series(name, place, tuple(points), is_hollow)


def lines_by_arm(arms: Sequence[str], rows: pd.DataFrame, x: str, hollow: Iterable[str] = ()) -> tuple[Series, ...]:
    """A line for each arm that has rows, in the order of rounds."""
    of_arm = dict(iter(rows.sort_values("round", kind="stable").groupby("arm")))
    lines = (
        series_of(arm, place, of_arm[arm], x, is_hollow=arm in hollow, last=x == "kl") for place, arm in enumerate(arms) if arm in of_arm
    )
    return tuple(line for line in lines if line.points)


def kl_or_bound(summary: pd.DataFrame) -> pd.DataFrame:
    """arm, round, axis, kl, bound: the measured KL, or where there is none the upper bound on it."""
    rows = summary[summary["scorer"].isin(["kl", "kl_bound"])].sort_values("scorer", kind="stable")  # measured ones first
    rows = rows.assign(kl=rows["mean"], bound=rows["scorer"] == "kl_bound")
    return rows[["arm", "round", "axis", "kl", "bound"]].drop_duplicates(["arm", "round", "axis"])
