"""How arms compare along settings whose levels were chosen: a figure with a line per arm, and which arm scored highest where."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from apo_bench.config.schema import DRAWN
from apo_bench.report.charts import Lines, Panel, Point, Series
from apo_bench.report.document import Block, Section
from apo_bench.report.tables import Table, arm_column, column, text_column
from apo_bench.report.text import say

INITIAL = "initial policy"
Levels = Mapping[str, Mapping[str, Any]]  # a variation's label and its level of each factor


def chosen_factors(levels: Levels) -> list[str]:
    """The factors that are settings, whose levels stand for no others."""
    return [factor for factor in next(iter(levels.values())) if factor not in DRAWN]


def section(final: pd.DataFrame, levels: Levels, scorer: str) -> Section:
    """`final`: label, arm (the initial policy among them), axis, scorer, mean and seed_sd at each arm's last round."""
    rows = final[final["scorer"] == scorer]
    blocks: list[Block] = [figure(rows, levels, scorer), highest_table(rows, list(levels), scorer)] if len(rows) else [say("No scores.")]
    return Section("Where each arm scores highest", blocks)


def figure(rows: pd.DataFrame, levels: Levels, scorer: str) -> Block:
    """Mean scores along the first setting of numbers: a row of panels for each axis, a column for each combination of the other factors."""
    numeric = [factor for factor in chosen_factors(levels) if all(_is_number(level[factor]) for level in levels.values())]
    if not numeric:
        return say("No figure: no setting that varies is a number.")
    along, arms = numeric[0], list(dict.fromkeys(rows["arm"]))
    others = [factor for factor in next(iter(levels.values())) if factor != along]
    columns = list(dict.fromkeys(_named(level, others) for level in levels.values()))
    panels = []
    for axis in dict.fromkeys(rows["axis"]):
        for title in columns:
            labels = {label: level[along] for label, level in levels.items() if _named(level, others) == title}
            shown = rows[(rows["axis"] == axis) & rows["label"].isin(labels)]
            shown = shown.assign(x=shown["label"].map(labels).astype(float)).sort_values("x", kind="stable")
            series = [_series(arm, place, shown[shown["arm"] == arm]) for place, arm in enumerate(arms)]
            panels.append(Panel(title, tuple(line for line in series if line.points), axis))
    caption = f"{scorer} at each arm's last round along {along}; bands: sample SD over seeds"
    return Lines("by_level", "Scores along a setting", say(caption), tuple(panels), tuple(arms), along, columns=len(columns))


def highest_table(rows: pd.DataFrame, labels: Sequence[str], scorer: str) -> Table:
    """For each variation and axis the arm with the highest mean, and its lead over the next."""
    rows_of_table = []
    for label in labels:
        for axis, group in rows[rows["label"] == label].groupby("axis", sort=False):
            ordered = group.sort_values("mean", ascending=False, kind="stable")
            (first, best), *rest = ordered[["arm", "mean"]].itertuples(index=False, name=None)
            second, next_best = rest[0] if rest else ("", float("nan"))
            rows_of_table.append({"label": label, "axis": axis, "arm": first, "mean": best, "next": second, "lead": best - next_best})
    frame = pd.DataFrame(rows_of_table)

    columns = [
        text_column("variation", "label"),
        text_column("axis"),
        arm_column(),
        column("mean"),
        text_column("next"),
        column("lead", form="signed"),
    ]
    note = f"By {scorer}, means over seeds. Chance flatters the highest of several means; whether a lead is shown stands in the contrasts."
    return Table(frame, columns, "The highest mean by variation", say(note))


def _series(arm: str, place: int, rows: pd.DataFrame) -> Series:
    values = rows[["x", "mean", "seed_sd"]].astype(float).fillna(0.0).to_numpy().tolist()
    return Series(arm, place, tuple(Point(*value) for value in values))


def _named(level: Mapping[str, Any], factors: Sequence[str]) -> str:
    return ", ".join(f"{factor} {level[factor]}" for factor in factors)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
