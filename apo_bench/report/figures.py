"""Figures of a report and a paper: one or two columns wide, as png, svg and pdf. Same tables in, same bytes out.

No colour says anything alone: every line has a marker and a line style too. Fonts are in the pdf (TrueType) and in the svg (as outlines).
What an experiment calls its axes and curves is text, never mathematics.
"""

import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator

from apo_bench.formatting import ALPHA, rows_of

# Okabe and Ito's colours, distinct for colour-blind readers; black comes last, yellow (invisible on white) is left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")
COLUMN, WIDTH = 3.3, 6.8  # inches: one column of a paper, and both
MANY = 8  # arms beyond which panels are higher, and bands, which would cover each other, become bars side by side
DIAGNOSTICS = {  # of reward models, each a panel
    "accuracy_human": "accuracy: human pairs", "accuracy_golden": "accuracy: golden over samples", "ece": "ECE",
    "gold_agreement": "agreement with gold", "fixed_mean": "mean score of fixed responses",
}  # fmt: skip
STYLE: Any = {
    "svg.hashsalt": "apo-bench",  # element ids would be random otherwise
    "svg.fonttype": "path",
    "pdf.fonttype": 42,  # TrueType; many publishers refuse type 3
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e5e5",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "hatch.linewidth": 0.5,
}
UNITS = {  # of a budget, each a panel
    "human_pairs": "human pairs", "golden_responses": "golden responses", "sampled_responses": "samples", "rm_updates": "RM updates",
    "policy_updates": "policy updates", "flops": "FLOPs",
}  # fmt: skip


def draw_scores(summary: pd.DataFrame, arms: Sequence[str], scorers: Sequence[str], axes: Sequence[str]) -> dict[str, bytes]:
    """Draw by_round.{png,svg,pdf} and, where the KL or a bound on it is known, by_kl.{png,svg,pdf}; a row per axis, a column per scorer.

    Lines are means over seeds, bands or bars one sample SD over seeds to each side. Hollow markers stand at an upper bound on the KL.
    `summary` is the report's summary table.
    """
    wanted = summary[summary["scorer"].isin(scorers) & summary["axis"].isin(axes) & summary["arm"].isin(arms)]
    if wanted.empty:
        return {}
    written: dict[str, bytes] = {}
    against = wanted.merge(kl_or_bound(summary), on=["arm", "round", "axis"])
    bounded = set(against.loc[against["bound"], "arm"])
    by_round, by_kl = ("round", "round (0: initial policy)"), ("kl", "KL to the initial policy (nats per response)")
    with rc_context(STYLE):
        for stem, table, (x, label), hollow in (("by_round", wanted, by_round, set()), ("by_kl", against, by_kl, bounded)):
            if table.empty:
                continue
            handles = [_handle(arms, arm, arm in hollow) for arm in arms]
            figure, panels = _canvas(len(axes), len(scorers), handles, label, _height(arms), titled=False)
            for row, axis in enumerate(axes):
                for column, scorer in enumerate(scorers):
                    panel = panels[row][column]
                    _lines(panel, table[(table["axis"] == axis) & (table["scorer"] == scorer)], arms, x, hollow)
                    if row == 0:
                        panel.set_title(scorer)
                    if column == 0:
                        panel.set_ylabel(f"{_visible(axis)}: mean score" if len(axes) > 1 else "mean score")
            written |= save(figure, stem)
    return written


def draw_reward_models(diagnostics: pd.DataFrame, arms: Sequence[str]) -> dict[str, bytes]:
    """Draw reward_models.{png,svg,pdf}: a panel per diagnostic, means and sample SDs over seeds by round.

    `diagnostics` has arm, round, metric, mean and seed_sd, of one axis.
    """
    metrics = [metric for metric in DIAGNOSTICS if metric in set(diagnostics["metric"])]
    if not metrics:
        return {}
    columns = min(3, len(metrics))
    with rc_context(STYLE):
        handles = [_handle(arms, arm) for arm in arms]
        figure, panels = _canvas(-(-len(metrics) // columns), columns, handles, "round (0: initial policy)", _height(arms))
        for panel, metric in _filled(panels, metrics):
            _lines(panel, diagnostics[diagnostics["metric"] == metric], arms, "round")
            panel.set_title(DIAGNOSTICS[metric])
        return save(figure, "reward_models")


def draw_reliability(table: pd.DataFrame, arms: Sequence[str]) -> dict[str, bytes]:
    """Draw reliability.{png,svg,pdf}: accuracy against confidence at the first and the last round, a panel per arm.

    `table` has arm, round, confidence, accuracy and n; a marker's area grows with its bin's share of the pairs.
    """
    arms = [arm for arm in arms if arm in set(table["arm"])]
    if not arms:
        return {}
    looks = (("first round", COLOURS[5], MARKERS[0]), ("last round", COLOURS[1], MARKERS[1]))
    handles = [Line2D([], [], label=label, color=colour, marker=marker, markersize=4) for label, colour, marker in looks]
    handles.append(Line2D([], [], label="perfectly calibrated", color="#777777", linestyle=":"))
    columns = min(4, len(arms))
    with rc_context(STYLE):
        label = "confidence in the side with the higher score"
        figure, panels = _canvas(-(-len(arms) // columns), columns, handles, label, 1.5, sharey=True)
        for panel, arm in _filled(panels, arms):
            own = table[(table["arm"] == arm) & (table["round"] >= 1)]
            panel.plot([0.5, 1], [0.5, 1], color="#777777", linestyle=":", linewidth=1)
            for (_, colour, marker), round_ in zip(looks, sorted({own["round"].min(), own["round"].max()}), strict=False):
                one = own[own["round"] == round_].sort_values("bin")
                panel.plot(one["confidence"], one["accuracy"], color=colour, linewidth=1)
                areas = 4 + 50 * one["n"] / one["n"].sum()
                panel.scatter(one["confidence"], one["accuracy"], s=areas, color=colour, marker=marker, alpha=0.8, linewidths=0, zorder=3)
            panel.set_title(arm)
            panel.set_xticks([0.5, 0.75, 1], ["0.5", "0.75", "1"])
        for row in panels:
            row[0].set_ylabel("accuracy")
        return save(figure, "reliability")


def draw_by_annotation(table: pd.DataFrame) -> dict[str, bytes]:
    """Draw by_annotation.{png,svg,pdf}: a panel per scorer, a line per curve; bands: one sample SD over seeds to each side.

    `table` has curve, annotation, scorer, mean and seed_sd.
    """
    scorers, curves = list(dict.fromkeys(table["scorer"])), list(dict.fromkeys(table["curve"]))
    if not scorers:
        return {}
    with rc_context(STYLE):
        label = "annotation used: human pairs and golden responses"
        figure, panels = _canvas(1, len(scorers), [_handle(curves, curve) for curve in curves], label, 2.2)
        for panel, scorer in _filled(panels, scorers):
            named = table[table["scorer"] == scorer].assign(arm=table["curve"])
            _lines(panel, named, curves, "annotation")
            panel.set_title(scorer)
            panel.set_ylabel("mean score at the final round")
        return save(figure, "by_annotation")


def draw_contrasts(compared: pd.DataFrame) -> dict[str, bytes]:
    """Draw contrasts.{png,svg,pdf}: the declared contrasts with their 95 % intervals, primary ones first; filled: adjusted p < 0.05.

    `compared` is the report's table of contrasts.
    """
    rows = [row for family in ("primary", "secondary") for row in rows_of(compared[compared["family"] == family])]
    if all(math.isnan(row.difference) for row in rows):
        return {}
    with rc_context(STYLE):
        single = len({row.axis for row in rows}) == 1
        labels = [_visible(f"{row.arm_a} \N{MINUS SIGN} {row.arm_b}{'' if single else f', {row.axis}'}") for row in rows]
        looks: dict[str, Any] = {"primary": {"color": COLOURS[0], "marker": "o"}, "secondary": {"color": COLOURS[1], "marker": "s"}}
        left, height = 0.062 * max(map(len, labels)) + 0.15, 0.19 * len(rows) + 0.72
        width = COLUMN if left < 0.5 * COLUMN else WIDTH
        figure = Figure(figsize=(width, height), dpi=150)
        figure.subplots_adjust(left=min(left / width, 0.7), right=1 - 0.15 / width, bottom=0.4 / height, top=1 - 0.3 / height)
        panel = figure.subplots()
        panel.axvline(0, color="#777777", linewidth=0.8, linestyle=":")
        for line, row in enumerate(rows):
            shown = row.p_adjusted < ALPHA
            look = looks[row.family] | {"markersize": 4, "linestyle": "none"} | _face(not shown)
            panel.plot([row.ci_low, row.ci_high], [line, line], color=look["color"], linewidth=1.2, zorder=2)
            panel.plot([row.difference], [line], **look, zorder=3)
        panel.set_yticks(range(len(labels)), labels)
        panel.set_ylim(len(rows) - 0.5, -0.5)
        panel.grid(visible=False, axis="y")
        middle = 0.5 if width == COLUMN else (left + width - 0.15) / 2 / width
        figure.supxlabel(f"difference by {_visible(rows[0].scorer)}, with 95 % interval", fontsize=7, x=middle, y=0.06 / height)
        families = [one for one in looks if any(row.family == one for row in rows)]
        handles = [Line2D([], [], label=one, markersize=4, linewidth=1.2, **looks[one]) for one in families]
        handles.append(
            Line2D([], [], label="difference not shown", color="#777777", marker="o", markersize=4, linestyle="none", **_face(True))
        )
        figure.legend(handles=handles, loc="upper right", ncols=len(handles), frameon=False, columnspacing=1.2, borderaxespad=0.2)
        return save(figure, "contrasts")


def draw_budget(spent: pd.DataFrame, arms: Sequence[str]) -> dict[str, bytes]:
    """Draw budget.{png,svg,pdf}: a panel per unit, a bar per arm, and in it what the arm added to this run, where that is known.

    `spent` has arm, unit, alone (what the arm would cost by itself) and marginal, means over seeds, as `costs.sharing` gives them.
    """
    arms = [arm for arm in arms if arm in set(spent["arm"])]
    if not arms:
        return {}
    value = {(row.arm, row.unit): (row.alone, row.marginal) for row in rows_of(spent)}
    with rc_context(STYLE):
        bar, high = 0.17 * len(arms), 0.55
        left, height = 0.062 * max(map(len, arms)) + 0.15, 2 * (bar + high) + 0.3
        figure = Figure(figsize=(WIDTH, height), dpi=150)
        figure.subplots_adjust(
            left=min(left / WIDTH, 0.5), right=1 - 0.15 / WIDTH, bottom=0.25 / height, top=1 - 0.5 / height, wspace=0.12, hspace=high / bar
        )
        panels = figure.subplots(2, 3, sharey="all")
        for panel, (unit, title) in zip(panels.flat, UNITS.items(), strict=True):
            pairs = [value.get((arm, unit), (0.0, math.nan)) for arm in arms]
            panel.barh(range(len(arms)), [alone for alone, _ in pairs], color=COLOURS[5], height=0.7)
            added = [0.0 if math.isnan(marginal) else marginal for _, marginal in pairs]
            panel.barh(range(len(arms)), added, facecolor="none", edgecolor=COLOURS[0], hatch="////", height=0.7, linewidth=0.6)
            panel.set_title(title)
            panel.set_xlim(left=0)
            panel.xaxis.set_major_locator(MaxNLocator(nbins=4))
            panel.xaxis.set_major_formatter(EngFormatter(sep=""))
            panel.grid(visible=False, axis="y")
        panels[0, 0].set_yticks(range(len(arms)), arms)
        panels[0, 0].set_ylim(len(arms) - 0.5, -0.5)
        bars = [Patch(facecolor=COLOURS[5], label="alone")]
        if spent["marginal"].notna().any():
            bars.append(Patch(facecolor="none", edgecolor=COLOURS[0], hatch="////", linewidth=0.6, label="added in this run"))
        figure.legend(handles=bars, loc="upper center", ncols=2, frameon=False, borderaxespad=0.2)
        return save(figure, "budget")


def kl_or_bound(summary: pd.DataFrame) -> pd.DataFrame:
    """arm, round, axis, kl, bound: the measured KL, or where there is none the upper bound on it."""
    parts = [
        summary[summary["scorer"] == scorer].rename(columns={"mean": "kl"})[["arm", "round", "axis", "kl"]].assign(bound=bound)
        for scorer, bound in (("kl", False), ("kl_bound", True))
    ]
    return pd.concat(parts).drop_duplicates(["arm", "round", "axis"])


def _height(arms: Sequence[str]) -> float:
    """Of a panel, in inches."""
    return 1.5 if len(arms) <= MANY else 2.2


def _canvas(
    rows: int, columns: int, handles: Sequence[Line2D], label: str, panel: float, titled: bool = True, sharey: bool = False
) -> tuple[Figure, Any]:
    """Panels `panel` inches high in a grid, `titled` each or only the first row's; above them a legend with as many rows as it needs."""
    entry = 0.064 * max(len(str(handle.get_label())) for handle in handles) + 0.52  # inches, at font size 7
    width = COLUMN if columns == 1 and entry < COLUMN - 0.2 else WIDTH
    in_a_row = max(1, min(len(handles), int((width - 0.2) / entry)))
    top = 0.3 + 0.16 * math.ceil(len(handles) / in_a_row)
    height = panel * rows + 0.45 + top
    figure = Figure(figsize=(width, height), dpi=150)
    # margins in inches, by hand: matplotlib's own layout takes as long as the drawing
    margins = {"left": 0.62 / width, "right": 1 - 0.12 / width, "bottom": 0.42 / height, "top": 1 - top / height}
    figure.subplots_adjust(**margins, wspace=0.1 if sharey else 0.27, hspace=0.25 if titled else 0.12)
    panels = figure.subplots(rows, columns, squeeze=False, sharex="all", sharey="all" if sharey else "none")
    figure.supxlabel(label, fontsize=7, y=0.08 / height)
    figure.legend(
        handles=handles, loc="upper center", ncols=in_a_row, frameon=False, columnspacing=1.2, handlelength=2.8, borderaxespad=0.2
    )
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
    lap = place // len(COLOURS)  # in every lap a colour comes with another marker
    marker = MARKERS[(place + 3 * lap) % len(MARKERS)]
    return {"color": COLOURS[place % len(COLOURS)], "marker": marker, "linestyle": LINES[place % len(LINES)]}


def _handle(names: Sequence[str], name: str, hollow: bool = False) -> Line2D:
    return Line2D([], [], label=_visible(name), markersize=4, linewidth=1.2, **_look(names, name), **_face(hollow))


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
        panel.plot(along, one["mean"], label=name, markersize=3, linewidth=0.9 if crowded else 1.2, **look, **_face(name in hollow))
        if x == "kl" or crowded:  # rounds are not in order along the KL, and a band would overlap itself
            panel.errorbar(along, one["mean"], yerr=spread, fmt="none", ecolor=look["color"], elinewidth=0.8, alpha=0.5)
        else:
            panel.fill_between(along, one["mean"] - spread, one["mean"] + spread, color=look["color"], alpha=0.15, linewidth=0)
        if x == "kl":
            last = one.iloc[-1]
            number, at = f"{last['round']:.0f}", (float(last[x]), float(last["mean"]))
            panel.annotate(number, at, (3, 3), textcoords="offset points", fontsize=6, color=look["color"])
    if x == "round":
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))


def _visible(text: str) -> str:
    """Text without what a font cannot show and an svg may not hold."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)


def save(figure: Figure, name: str) -> dict[str, bytes]:
    """`name`.png, .svg and .pdf, without dates or versions: file names and contents."""
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
