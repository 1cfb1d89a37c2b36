"""Figures of a report, as png and svg. Same tables in, same bytes out."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's colours, distinct for colour-blind readers; black comes last, yellow (invisible on white) is left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")
MANY = 8  # arms beyond which panels are larger, and bands, which would cover each other, become bars side by side
DIAGNOSTICS = ("accuracy_human", "accuracy_golden", "ece", "gold_agreement", "fixed_mean")
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


def draw_scores(summary: pd.DataFrame, arms: Sequence[str], scorers: Sequence[str], axes: Sequence[str], folder: Path) -> list[Path]:
    """Write by_round.{png,svg} and, where the KL or a bound on it is known, by_kl.{png,svg}; a panel per axis (row) and scorer (column).

    Lines are means over seeds, bands or bars one sample SD over seeds to each side. Hollow markers stand at an upper bound on the KL.
    `summary` is the report's summary table.
    """
    wanted = summary[summary["scorer"].isin(scorers) & summary["axis"].isin(axes) & summary["arm"].isin(arms)]
    if wanted.empty:
        return []
    size = _panel_size(arms)
    written = []
    against = wanted.merge(kl_or_bound(summary), on=["arm", "round", "axis"])
    bounded = set(against.loc[against["bound"], "arm"])
    by_round, by_kl = ("round", "round (0: initial policy)"), ("kl", "KL to the initial policy (nats per response)")
    with rc_context(STYLE):
        for stem, table, (x, label), hollow in (("by_round", wanted, by_round, set()), ("by_kl", against, by_kl, bounded)):
            if table.empty:
                continue
            figure, panels = _canvas(
                len(axes), len(scorers), [_handle(arms, arm, arm in hollow) for arm in arms], label, size, titled=False
            )
            for row, axis in enumerate(axes):
                for column, scorer in enumerate(scorers):
                    panel = panels[row][column]
                    _lines(panel, table[(table["axis"] == axis) & (table["scorer"] == scorer)], arms, x, hollow)
                    if row == 0:
                        panel.set_title(scorer)
                    if column == 0:
                        panel.set_ylabel(f"{axis}: mean score" if len(axes) > 1 else "mean score")
            written += save(figure, folder / stem)
    return written


def draw_reward_models(diagnostics: pd.DataFrame, arms: Sequence[str], folder: Path) -> list[Path]:
    """Write reward_models.{png,svg}: a panel per diagnostic, means and sample SDs over seeds by round.

    `diagnostics` has arm, round, metric, mean and seed_sd, of one axis.
    """
    metrics = [metric for metric in DIAGNOSTICS if metric in set(diagnostics["metric"])]
    if not metrics:
        return []
    columns = min(3, len(metrics))
    with rc_context(STYLE):
        handles = [_handle(arms, arm) for arm in arms]
        size = _panel_size(arms)
        figure, panels = _canvas(-(-len(metrics) // columns), columns, handles, "round (0: initial policy)", size)
        for panel, metric in _filled(panels, metrics):
            _lines(panel, diagnostics[diagnostics["metric"] == metric], arms, "round")
            panel.set_title(metric)
        return save(figure, folder / "reward_models")


def draw_reliability(table: pd.DataFrame, arms: Sequence[str], folder: Path) -> list[Path]:
    """Write reliability.{png,svg}: accuracy against confidence at the first and the last round, a panel per arm.

    `table` has arm, round, confidence, accuracy and n; a marker's area grows with its bin's share of the pairs.
    """
    arms = [arm for arm in arms if arm in set(table["arm"])]
    if not arms:
        return []
    looks = (("first round", COLOURS[5], MARKERS[0]), ("last round", COLOURS[1], MARKERS[1]))
    handles = [Line2D([], [], label=label, color=colour, marker=marker, markersize=5) for label, colour, marker in looks]
    handles.append(Line2D([], [], label="perfectly calibrated", color="#777777", linestyle=":"))
    columns = min(5, len(arms))
    with rc_context(STYLE):
        label = "confidence in the side with the higher score"
        figure, panels = _canvas(-(-len(arms) // columns), columns, handles, label, (2.1, 2.1), sharey=True)
        for panel, arm in _filled(panels, arms):
            own = table[(table["arm"] == arm) & (table["round"] >= 1)]
            panel.plot([0.5, 1], [0.5, 1], color="#777777", linestyle=":", linewidth=1)
            for (_, colour, marker), round_ in zip(looks, sorted({own["round"].min(), own["round"].max()}), strict=False):
                one = own[own["round"] == round_].sort_values("bin")
                panel.plot(one["confidence"], one["accuracy"], color=colour, linewidth=1.2)
                areas = 6 + 90 * one["n"] / one["n"].sum()
                panel.scatter(one["confidence"], one["accuracy"], s=areas, color=colour, marker=marker, alpha=0.8, linewidths=0, zorder=3)
            panel.set_title(arm)
            panel.set_xticks([0.5, 0.75, 1])
        for row in panels:
            row[0].set_ylabel("accuracy")
        return save(figure, folder / "reliability")


def draw_by_annotation(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Write by_annotation.{png,svg}: a panel per scorer, a line per curve; bands: one sample SD over seeds to each side.

    `table` has curve, annotation, scorer, mean and seed_sd.
    """
    scorers, curves = list(dict.fromkeys(table["scorer"])), list(dict.fromkeys(table["curve"]))
    if not scorers:
        return []
    with rc_context(STYLE):
        label = "annotation used: human pairs and golden responses"
        figure, panels = _canvas(1, len(scorers), [_handle(curves, curve) for curve in curves], label, (3.9, 3.0))
        for panel, scorer in _filled(panels, scorers):
            named = table[table["scorer"] == scorer].assign(arm=table["curve"])
            _lines(panel, named, curves, "annotation")
            panel.set_title(scorer)
            panel.set_ylabel("mean score at the final round")
        return save(figure, folder / "by_annotation")


def kl_or_bound(summary: pd.DataFrame) -> pd.DataFrame:
    """arm, round, axis, kl, bound: the measured KL, or where there is none the upper bound on it."""
    parts = [
        summary[summary["scorer"] == scorer].rename(columns={"mean": "kl"})[["arm", "round", "axis", "kl"]].assign(bound=bound)
        for scorer, bound in (("kl", False), ("kl_bound", True))
    ]
    return pd.concat(parts).drop_duplicates(["arm", "round", "axis"])


def _panel_size(arms: Sequence[str]) -> tuple[float, float]:
    """Width and height in inches."""
    return (3.1, 2.2) if len(arms) <= MANY else (3.9, 3.2)


def _canvas(
    rows: int, columns: int, handles: Sequence[Line2D], label: str, size: tuple[float, float], titled: bool = True, sharey: bool = False
) -> tuple[Figure, Any]:
    """Panels of `size` inches in a grid, `titled` each or only the first row's, and above them a legend with as many rows as it needs."""
    entry = 0.082 * max(len(str(handle.get_label())) for handle in handles) + 0.62  # inches, at font size 9
    width = max(size[0] * columns + 0.6, entry + 0.3)
    in_a_row = max(1, min(len(handles), int((width - 0.2) / entry)))
    top = 0.35 + 0.2 * math.ceil(len(handles) / in_a_row)
    height = size[1] * rows + 0.55 + top
    figure = Figure(figsize=(width, height), dpi=150)
    # margins in inches, by hand: matplotlib's own layout takes as long as the drawing
    margins = {"left": 0.7 / width, "right": 1 - 0.2 / width, "bottom": 0.55 / height, "top": 1 - top / height}
    figure.subplots_adjust(**margins, wspace=0.12 if sharey else 0.3, hspace=0.25 if titled else 0.12)
    panels = figure.subplots(rows, columns, squeeze=False, sharex="all", sharey="all" if sharey else "none")
    figure.supxlabel(label, fontsize=9, y=0.1 / height)
    figure.legend(handles=handles, loc="upper center", ncols=in_a_row, frameon=False, columnspacing=1.2, handlelength=2.6)
    return figure, panels


def _filled(panels: Any, names: Sequence[str]) -> Iterable[tuple[Axes, str]]:
    """A panel for each name, row by row; what is left over is taken away, and the panel above it shows its x axis."""
    flat, columns = [panel for row in panels for panel in row], len(panels[0])
    for place, panel in enumerate(flat[len(names) :], start=len(names)):
        panel.remove()
        if place >= columns:
            flat[place - columns].tick_params(labelbottom=True)
    return zip(flat, names, strict=False)


def _look(names: Sequence[str], name: str) -> dict[str, Any]:
    place = list(names).index(name)
    lap = place // len(COLOURS)
    line = LINES[lap % len(LINES)]
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[(place + 3 * lap) % len(MARKERS)], "linestyle": line}


def _handle(names: Sequence[str], name: str, hollow: bool = False) -> Line2D:
    return Line2D([], [], label=name, markersize=5, linewidth=1.5, **_look(names, name), **_face(hollow))


def _face(hollow: bool) -> dict[str, Any]:
    return {"markerfacecolor": "white"} if hollow else {}


def _lines(panel: Axes, table: pd.DataFrame, names: Sequence[str], x: str, hollow: Iterable[str] = ()) -> None:
    """A line per name, along x; by KL in the order of rounds, with the last round's number."""
    crowded = len(names) > MANY
    for place, name in enumerate(names):
        one = table[table["arm"] == name].sort_values("round" if x == "kl" else x)
        if one.empty:
            continue
        look = _look(names, name)
        aside = 0.3 * (place / (len(names) - 1) - 0.5) if crowded and x == "round" else 0.0
        along, spread = one[x] + aside, one["seed_sd"].fillna(0.0)
        panel.plot(along, one["mean"], label=name, markersize=4, linewidth=1.2 if crowded else 1.5, **look, **_face(name in hollow))
        if x == "kl" or crowded:  # rounds are not in order along the KL, and a band would overlap itself
            panel.errorbar(along, one["mean"], yerr=spread, fmt="none", ecolor=look["color"], elinewidth=0.8, alpha=0.5)
        else:
            panel.fill_between(along, one["mean"] - spread, one["mean"] + spread, color=look["color"], alpha=0.15, linewidth=0)
        if x == "kl":
            last = one.iloc[-1]
            number, at = f"{last['round']:.0f}", (float(last[x]), float(last["mean"]))
            panel.annotate(number, at, (4, 4), textcoords="offset points", fontsize=7, color=look["color"])
    if x == "round":
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.png and `stem`.svg, without dates or versions, and return both paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    png, svg = stem.with_suffix(".png"), stem.with_suffix(".svg")
    figure.savefig(png, metadata={"Software": None})
    figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return [png, svg]
