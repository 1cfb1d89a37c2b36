"""Figures of a report: scores by round, and scores against KL. Same table in, same bytes out."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's colours, distinct for colour-blind readers; black comes last, yellow (invisible on white) is left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":")
STYLE: Any = {
    "svg.hashsalt": "apo-bench",  # element ids would be random otherwise
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "axes.axisbelow": True,
    "axes.titlesize": 9,
}


def draw(summary: pd.DataFrame, arms: tuple[str, ...], scorers: tuple[str, ...], axes: tuple[str, ...], folder: Path) -> list[Path]:
    """Write by_round.{png,svg} and, where the KL was measured, by_kl.{png,svg}; a panel per axis (row) and scorer (column).

    Lines are means over seeds, bands one sample SD over seeds to each side. `summary` is the report's summary table.
    """
    if not scorers:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    wanted = summary[summary["scorer"].isin(scorers) & summary["axis"].isin(axes) & summary["arm"].isin(arms)]
    kl = summary[summary["scorer"] == "kl"].rename(columns={"mean": "kl"})[["arm", "round", "axis", "kl"]]
    with rc_context(STYLE):
        written = _save(_grid(wanted, arms, scorers, axes, "round", "round (0: initial policy)"), folder / "by_round")
        against = wanted.merge(kl, on=["arm", "round", "axis"])
        if len(against):
            written += _save(_grid(against, arms, scorers, axes, "kl", "KL to the initial policy (nats per response)"), folder / "by_kl")
    return written


def _grid(table: pd.DataFrame, arms: tuple[str, ...], scorers: tuple[str, ...], axes: tuple[str, ...], x: str, label: str) -> Figure:
    width, height = 3.1 * len(scorers) + 0.6, 2.2 * len(axes) + 1.1
    figure = Figure(figsize=(width, height), dpi=150)
    # margins in inches, by hand: matplotlib's own layout takes as long as the drawing
    figure.subplots_adjust(left=0.7 / width, right=1 - 0.1 / width, bottom=0.55 / height, top=1 - 0.55 / height, wspace=0.3, hspace=0.12)
    panels = figure.subplots(len(axes), len(scorers), squeeze=False, sharex="all")
    for row, axis in enumerate(axes):
        for column, scorer in enumerate(scorers):
            panel = panels[row][column]
            _panel(panel, table[(table["axis"] == axis) & (table["scorer"] == scorer)], arms, x)
            if row == 0:
                panel.set_title(scorer)
            if column == 0:
                panel.set_ylabel(f"{axis}: mean score" if len(axes) > 1 else "mean score")
    figure.supxlabel(label, fontsize=9, y=0.1 / height)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=min(len(arms), 6), frameon=False)
    return figure


def _panel(panel: Axes, table: pd.DataFrame, arms: tuple[str, ...], x: str) -> None:
    for place, arm in enumerate(arms):
        one = table[table["arm"] == arm].sort_values("round")
        colour = COLOURS[place % len(COLOURS)]
        marker, line = MARKERS[place % len(MARKERS)], LINES[place // len(COLOURS) % len(LINES)]
        panel.plot(one[x], one["mean"], label=arm, color=colour, marker=marker, linestyle=line, markersize=4, linewidth=1.5)
        if x == "round":
            spread = one["seed_sd"].fillna(0.0)
            panel.fill_between(one[x], one["mean"] - spread, one["mean"] + spread, color=colour, alpha=0.15, linewidth=0)
        else:  # rounds are not in order along the KL, and a band would overlap itself: bars, and the last round named
            panel.errorbar(one[x], one["mean"], yerr=one["seed_sd"].fillna(0.0), fmt="none", ecolor=colour, elinewidth=1, alpha=0.5)
            for _, last in one.tail(1).iterrows():
                panel.annotate(
                    f"{last['round']:.0f}", (last[x], last["mean"]), (4, 4), textcoords="offset points", fontsize=7, color=colour
                )
    if x == "round":
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))


def _save(figure: Figure, stem: Path) -> list[Path]:
    FigureCanvasAgg(figure)
    png, svg = stem.with_suffix(".png"), stem.with_suffix(".svg")
    figure.savefig(png, metadata={"Software": None})
    figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return [png, svg]
