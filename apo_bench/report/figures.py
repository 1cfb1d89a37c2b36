"""Figures of a report and a paper: one or two columns wide, as png, svg and pdf. The same figure gives the same bytes.

No colour carries meaning alone: every line has a marker and a line style too. Fonts are in the pdf (TrueType) and in the svg (as outlines).
What an experiment calls its axes and curves is text, never mathematics.
"""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator

from apo_bench.report.charts import Bars, Estimate, Forest, Lines, Series

# Okabe and Ito's colours, distinct for colour-blind readers; black comes last, yellow (invisible on white) is left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")
COLUMN, WIDTH = 3.3, 6.8  # inches: one column of a paper, and both
MANY = 8  # arms beyond which panels are higher, and bands, which would cover each other, become bars side by side
FAMILIES: dict[str, dict[str, Any]] = {  # of a forest: primary, secondary and descriptive contrasts, or a mean over variations
    "primary": {"color": COLOURS[0], "marker": "o"}, "secondary": {"color": COLOURS[1], "marker": "s"},
    "descriptive": {"color": "#777777", "marker": "o"}, "": {"color": COLOURS[0], "marker": "o"},
    "mean": {"color": COLOURS[1], "marker": "D"},
}  # fmt: skip
STYLE: Any = {
    "svg.hashsalt": "apo-bench",  # element ids would be random otherwise
    "svg.fonttype": "path",
    "pdf.fonttype": 42,  # TrueType; many publishers refuse type 3
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e5e5",
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize", "figure.labelsize"), 7),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.6),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 2.5),
    **dict.fromkeys(("grid.linewidth", "hatch.linewidth"), 0.5),
}
HOLLOW: dict[str, Any] = {"markerfacecolor": "white"}


def draw(figure: Lines | Forest | Bars) -> dict[str, bytes]:
    """`name`.png, .svg and .pdf: file names and contents."""
    with rc_context(STYLE):
        drawn = _lines(figure) if isinstance(figure, Lines) else _forest(figure) if isinstance(figure, Forest) else _bars(figure)
        return save(drawn, figure.name)


def save(figure: Figure, name: str) -> dict[str, bytes]:
    """A figure in all formats, without dates or versions."""
    FigureCanvasAgg(figure)
    silent: dict[str, dict[str, None]] = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    files = {}
    for kind, metadata in silent.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata=metadata)
        files[f"{name}.{kind}"] = buffer.getvalue()
    return files


# --- lines --------------------------------------------------------------------------------------------------------------------


def _lines(figure: Lines) -> Figure:
    """A grid of panels: where they have groups a row for each, titled above the first; else filled row by row."""
    groups = figure.groups
    is_grid, is_crowded = len(groups) > 1, len(figure.names) > MANY
    columns = figure.columns if is_grid else min(figure.columns, len(figure.panels))
    handles = [
        Line2D([], [], label=_printable(name), markersize=4, linewidth=1.2, **_look(place, name in figure.hollow))
        for place, name in enumerate(figure.names)
    ]
    handles += [Line2D([], [], label="perfectly calibrated", color="#777777", linestyle=":")] if figure.is_diagonal else []
    height = 2.2 if is_crowded else 1.5
    drawn, panels = _canvas(-(-len(figure.panels) // columns), columns, handles, figure, height, is_grid)
    for place in range(len(figure.panels), panels.size):  # what is left over is removed, and what stands above it shows its x axis
        panels.flat[place].remove()
        if place >= columns:
            panels.flat[place - columns].tick_params(labelbottom=True)
    for axes, panel in zip(panels.flat, figure.panels, strict=False):
        if figure.is_diagonal:
            axes.plot([0.5, 1], [0.5, 1], color="#777777", linestyle=":", linewidth=1)
            axes.set_xticks([0.5, 0.75, 1], ["0.5", "0.75", "1"])
        if not math.isnan(panel.reference):
            axes.axhline(panel.reference, color="#777777", linewidth=0.8, linestyle=":")
        for series in panel.series:
            _line(axes, series, figure, is_crowded)
        if not is_grid or panel.group == groups[0]:
            axes.set_title(_printable(panel.title))
        if figure.by_round:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for row, group in zip(panels, groups if is_grid else [""] * len(panels), strict=False):
        row[0].set_ylabel(_printable(f"{group}: {figure.y_label}" if is_grid else figure.y_label))
    return drawn


def _line(axes: Axes, series: Series, figure: Lines, is_crowded: bool) -> None:
    """A series with its spread as a band, or as bars where bands would cover each other or rounds are not in order along x."""
    look = _look(series.place, series.is_hollow)
    aside = 0.3 * (series.place / (len(figure.names) - 1) - 0.5) if is_crowded and figure.by_round else 0.0
    x, y, spread = np.array([(point.x + aside, point.y, point.spread) for point in series.points]).T
    if figure.is_diagonal:
        axes.plot(x, y, color=look["color"], linewidth=1)
        areas = [4 + 50 * point.share for point in series.points]
        axes.scatter(x, y, s=areas, color=look["color"], marker=look["marker"], alpha=0.8, linewidths=0, zorder=3)
        return
    axes.plot(x, y, label=series.name, markersize=0 if series.is_dense else 3, linewidth=0.9 if is_crowded else 1.2, **look)
    if figure.is_banded and not is_crowded:
        axes.fill_between(x, y - spread, y + spread, color=look["color"], alpha=0.15, linewidth=0)
    elif not series.is_dense:
        axes.errorbar(x, y, yerr=spread, fmt="none", ecolor=look["color"], elinewidth=0.8, alpha=0.5)
    for point in series.points:
        if point.label:
            axes.annotate(point.label, (point.x, point.y), (3, 3), textcoords="offset points", fontsize=6, color=look["color"])


def _canvas(rows: int, columns: int, handles: Sequence[Line2D], figure: Lines, panel_height: float, is_grid: bool) -> tuple[Figure, Any]:
    """Panels `panel_height` inches high in a grid; above them a legend with as many rows as it needs."""
    entry = 0.064 * max(len(str(handle.get_label())) for handle in handles) + 0.52  # inches, at font size 7
    width = COLUMN if columns == 1 and entry < COLUMN - 0.2 else WIDTH
    in_a_row = max(1, min(len(handles), int((width - 0.2) / entry)))
    top = 0.3 + 0.16 * math.ceil(len(handles) / in_a_row)
    height = panel_height * rows + 0.45 + top
    drawn = _sheet(width, height, 0.62, 0.12, 0.42, top, wspace=0.1 if figure.is_diagonal else 0.27, hspace=0.12 if is_grid else 0.25)
    panels = drawn.subplots(rows, columns, squeeze=False, sharex="all", sharey="all" if figure.is_diagonal else "none")
    drawn.supxlabel(figure.x_label, y=0.08 / height)
    drawn.legend(handles=handles, loc="upper center", ncols=in_a_row, frameon=False, columnspacing=1.2, handlelength=2.8, borderaxespad=0.2)
    return drawn, panels


def _sheet(width: float, height: float, left: float, right: float, bottom: float, top: float, **spaces: float) -> Figure:
    """An empty figure; margins in inches, by hand: matplotlib's own layout takes as long as the drawing."""
    drawn = Figure(figsize=(width, height), dpi=150)
    drawn.subplots_adjust(left=left / width, right=1 - right / width, bottom=bottom / height, top=1 - top / height, **spaces)
    return drawn


def _look(place: int, is_hollow: bool = False) -> dict[str, Any]:
    lap = place // len(COLOURS)  # in every lap a colour comes with another marker
    marker = MARKERS[(place + 3 * lap) % len(MARKERS)]
    look = {"color": COLOURS[place % len(COLOURS)], "marker": marker, "linestyle": LINES[place % len(LINES)]}
    return look | HOLLOW if is_hollow else look


def _printable(text: str) -> str:
    """Text without what a font cannot show and an svg may not hold."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


# --- forests and bars ---------------------------------------------------------------------------------------------------------


def _forest(figure: Forest) -> Figure:
    """Panels of estimates with their intervals, from top to bottom; hollow where a difference is not shown."""
    columns, rows = figure.columns, -(-len(figure.panels) // figure.columns)
    left = 0.062 * max(len(row.label) for panel in figure.panels for row in panel.rows) + 0.15
    panel_height = 0.19 * len(figure.panels[0].rows) + (0.45 if rows > 1 else 0.02)
    width = WIDTH if columns > 1 or left >= 0.5 * COLUMN else COLUMN
    height = panel_height * rows + 0.7
    drawn = _sheet(width, height, min(left, 0.7 * width), 0.15, 0.4, 0.3, wspace=0.1, hspace=0.5)
    grid = drawn.subplots(
        rows, columns, squeeze=False, sharex="col" if columns > 1 else "none", sharey="all" if rows * columns > 1 else "none"
    )
    for axes, panel in zip(grid.flat, figure.panels, strict=False):
        axes.axvline(panel.reference, color="#777777", linewidth=0.8, linestyle=":")
        for line, row in enumerate(panel.rows):
            look = FAMILIES[row.family] | {"markersize": 4, "linestyle": "none"} | ({} if row.is_filled else HOLLOW)
            axes.plot([row.low, row.high], [line, line], color=look["color"], linewidth=1.2, zorder=2)
            axes.plot([row.value], [line], **look, zorder=3)
        axes.set_yticks(range(len(panel.rows)), [_printable(row.label) for row in panel.rows])
        axes.set_ylim(len(panel.rows) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_title(_printable(panel.title), loc="left")
        if columns > 1:
            axes.set_xlabel(_printable(panel.x_label))
    if columns > 1:
        for axes in grid.flat:
            axes.label_outer()
    else:
        middle = 0.5 if width == COLUMN else (left + width - 0.15) / 2 / width
        drawn.supxlabel(_printable(figure.panels[-1].x_label), x=middle, y=0.06 / height)
    _forest_legend(drawn, [row for panel in figure.panels for row in panel.rows])
    return drawn


def _forest_legend(drawn: Figure, rows: Sequence[Estimate]) -> None:
    families = [family for family in FAMILIES if family and any(row.family == family for row in rows)]
    handles = [Line2D([], [], label=family, markersize=4, linewidth=1.2, **FAMILIES[family]) for family in families]
    if not all(row.is_filled for row in rows) or "primary" in families:
        hollow = {"label": "difference not shown", "color": "#777777", "marker": "o", "markersize": 4, "linestyle": "none"}
        handles.append(Line2D([], [], **hollow, **HOLLOW))
    drawn.legend(handles=handles, loc="upper right", ncols=len(handles), frameon=False, columnspacing=1.2, borderaxespad=0.2)


def _bars(figure: Bars) -> Figure:
    """A panel per unit, a bar per arm, and in it what the arm added to this run, where that is known."""
    arms = [bar.arm for bar in next(iter(figure.panels.values()))]
    bar, high = 0.17 * len(arms), 0.55
    left, height = 0.062 * max(map(len, arms)) + 0.15, 2 * (bar + high) + 0.3
    drawn = _sheet(WIDTH, height, min(left, 0.5 * WIDTH), 0.15, 0.25, 0.5, wspace=0.12, hspace=high / bar)
    grid = drawn.subplots(2, 3, sharey="all")
    for axes, (title, bars) in zip(grid.flat, figure.panels.items(), strict=True):
        axes.barh(range(len(bars)), [bar.alone for bar in bars], color=COLOURS[5], height=0.7)
        added = [0.0 if math.isnan(bar.added) else bar.added for bar in bars]
        axes.barh(range(len(bars)), added, facecolor="none", edgecolor=COLOURS[0], hatch="////", height=0.7, linewidth=0.6)
        for line, bar in enumerate(bars):
            axes.plot([bar.limit] * 2, [line - 0.45, line + 0.45], color="black", linewidth=1)
        axes.set_title(title)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(visible=False, axis="y")
    grid[0, 0].set_yticks(range(len(arms)), [_printable(arm) for arm in arms])
    grid[0, 0].set_ylim(len(arms) - 0.5, -0.5)
    legend: list[Any] = [Patch(facecolor=COLOURS[5], label="alone")]
    if any(not math.isnan(bar.added) for bars in figure.panels.values() for bar in bars):
        legend.append(Patch(facecolor="none", edgecolor=COLOURS[0], hatch="////", linewidth=0.6, label="added in this run"))
    if any(not math.isnan(bar.limit) for bars in figure.panels.values() for bar in bars):
        legend.append(Line2D([], [], color="black", linewidth=1, label="budget"))
    drawn.legend(handles=legend, loc="upper center", ncols=3, frameon=False, borderaxespad=0.2)
    return drawn
