"""Charts as inline svg, drawn when the page is written: they print, need no script and take their colours from the page's style."""

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup, escape

from apo_bench.formatting import minus, visible
from apo_bench.report.charts import Bar, Estimate, ForestPanel, Lines, Panel, Series
from apo_bench.report.tables import NAN

Scale = Callable[[float], float]
EMPTY = ("line", "circle", "rect", "path")  # elements that hold nothing
WIDTH, HEIGHT = 320, 210  # of a panel, in its own units; the page scales it by at most a quarter
LEFT, RIGHT, TOP, BOTTOM = 42, 12, 10, 34
COLOURS = 7  # classes c0 to c6 of the style: Okabe and Ito's colours, with the text's colour last
DASHES = (None, "6 3", "2 3", "8 3 2 3")
SHAPES = (  # of markers, around 0, 0: circle, square, triangle, diamond, triangle upside down, plus, cross
    "M4 0A4 4 0 1 1 -4 0A4 4 0 1 1 4 0Z",
    "M-3.5 -3.5H3.5V3.5H-3.5Z",
    "M0 -4.6L4.4 3.4H-4.4Z",
    "M0 -5L5 0L0 5L-5 0Z",
    "M0 4.6L4.4 -3.4H-4.4Z",
    "M-1.4 -4.4H1.4V-1.4H4.4V1.4H1.4V4.4H-1.4V1.4H-4.4V-1.4H-1.4Z",
    "M-4 -2.2L-2.2 -4L0 -1.8L2.2 -4L4 -2.2L1.8 0L4 2.2L2.2 4L0 1.8L-2.2 4L-4 2.2L-1.8 0Z",
)
READ = 25  # points of a line that a screen reader reads, at most
FEW = 5  # series up to which a spread is a band; more would cover each other


def shown(value: object) -> Markup:
    """`Markup` as it is; anything else as text, with nothing hidden in it."""
    return value if isinstance(value, Markup) else escape(visible(value))


def el(tag: str, *children: object, **attributes: object) -> Markup:
    """An element. Attributes: `class_` is class, `aria_label` aria-label; None and False leave one out, True gives it no value."""
    start = f"<{tag}"
    for name, value in attributes.items():
        if value is not None and value is not False:
            start += f" {name.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{shown(value)}"')
    return Markup(f"{start}/>" if tag in EMPTY else f"{start}>{Markup().join(map(shown, children))}</{tag}>")


def linear_scale(low: float, high: float, start: float, end: float) -> Scale:
    """From values to units of the drawing."""
    return lambda value: start + (value - low) / (high - low) * (end - start)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        low, high = (low - 0.5, low + 0.5) if low == 0 else (low - abs(low) / 2, low + abs(low) / 2)
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(base * power for base in (1, 2, 5, 10) if base * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def tick_label(value: float) -> str:
    """A number beneath or beside an axis."""
    return minus(f"{value:g}")


def panel(figure: Lines, panel: Panel) -> Markup:
    """A panel of lines with markers, and in words what a screen reader reads instead."""
    points = [point for series in panel.series for point in series.points]
    xs, low = [point.x for point in points], min([0.5, *(point.y for point in points)])
    limits = (low, 1.0) if figure.is_diagonal else None
    across = sorted({*xs}) if figure.by_round else ticks(*(limits or (min(xs), max(xs))))
    if figure.by_round and len(across) > 8:
        across = [tick for tick in ticks(across[0], across[-1], 5) if tick == round(tick)]
    ends = [point.y + sign * point.spread for point in points for sign in (-1, 1)]
    ends += [] if math.isnan(panel.reference) else [panel.reference]
    up = ticks(*(limits or (min(ends), max(ends))))
    inset = (0.06 * (across[-1] - across[0]) or 0.5) if figure.by_round else 0.0
    x = linear_scale(across[0] - inset, across[-1] + inset, LEFT, WIDTH - RIGHT)
    y = linear_scale(up[0], up[-1], HEIGHT - BOTTOM, TOP)
    grid = [el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=_n(y(tick)), y2=_n(y(tick)), class_="grid") for tick in up]
    labels = [_text(LEFT - 6, y(tick) + 3.5, tick_label(tick), "end") for tick in up]
    labels += [_text(x(tick), HEIGHT - BOTTOM + 15, tick_label(tick), "middle") for tick in across]
    labels.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, figure.x_label, "middle"))
    if not math.isnan(panel.reference):
        grid.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=_n(y(panel.reference)), y2=_n(y(panel.reference)), class_="reference"))
    if figure.is_diagonal:
        grid.append(el("line", x1=_n(x(up[0])), x2=_n(x(up[-1])), y1=_n(y(up[0])), y2=_n(y(up[-1])), class_="reference"))
    is_banded = figure.is_banded and len(panel.series) <= FEW
    drawn = [_band(series, x, y) for series in panel.series] if is_banded else []
    drawn += [_line(series, x, y, whiskers=not is_banded) for series in panel.series]
    view = {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "aria_label": described(figure, panel), "class_": "chart"}
    return el("svg", *grid, *labels, *drawn, **view)


def described(figure: Lines, panel: Panel) -> str:
    """A panel's numbers in words, of a long line every so many."""
    x = "round" if figure.by_round else figure.x_label
    read = {series.name: series.points[:: len(series.points) // READ + 1] for series in panel.series}
    lines = (f"{name}: {', '.join(minus(f'{point.x:.3g}: {point.y:.3f}') for point in points)}" for name, points in read.items())
    return f"{panel.title}, {'all axes' if panel.group in ('', 'all') else panel.group}, by {x}. {'. '.join(lines)}"


def key(place: int) -> Markup:
    """The line and marker of a series."""
    inside = el("line", x1=1, x2=27, y1=7, y2=7, class_="line", stroke_dasharray=_dash(place)), _marker(place, 14, 7)
    return el("svg", *inside, viewBox="0 0 28 14", width=28, height=14, class_=f"key {_colour(place)}", aria_hidden="true")


def marks_of(panel: ForestPanel) -> list[float]:
    """The ticks of a scale that holds all estimates of a panel."""
    ends = [panel.reference, *(end for row in panel.rows for end in (row.value, row.low, row.high) if not math.isnan(end))]
    return ticks(*(panel.limits or (min(ends), max(ends))))


def interval(row: Estimate, panel: ForestPanel, marks: Sequence[float]) -> Markup:
    """A point with its interval on a line as wide as its cell; coordinates are shares of the width, so nothing is ever squeezed."""
    at = linear_scale(marks[0], marks[-1], 2, 98)
    reference = at(panel.reference if math.isnan(row.reference) else row.reference)
    parts = [el("line", x1=_share(reference), x2=_share(reference), y1=0, y2=26, class_="reference")]
    if not math.isnan(row.low):
        ends = [_share(min(max(at(end), 0), 100)) for end in (row.low, row.high)]
        parts.append(el("line", x1=ends[0], x2=ends[1], y1=13, y2=13, class_="span"))
        parts += [el("line", x1=end, x2=end, y1=9, y2=17, class_="span") for end in ends]
    if not math.isnan(row.value):
        parts.append(el("circle", cx=_share(at(row.value)), cy=13, r=4.5, class_="dot"))
    look = {"mean": "primary", "descriptive": ""}.get(row.family, row.family)
    return el("svg", *parts, width="100%", height=26, class_=f"interval {look}".strip(), aria_hidden="true")


def scale(marks: Sequence[float]) -> Markup:
    """The numbers under a column of intervals."""
    at = linear_scale(marks[0], marks[-1], 2, 98)
    labels = [_text(_share(at(mark)), 12, tick_label(mark), "middle") for mark in marks]
    return el("svg", *labels, width="100%", height=16, class_="interval", aria_hidden="true")


def bar(bar: Bar, largest: float) -> Markup:
    """A bar over a share of its cell's width, and a stroke where its limit is."""
    parts = [el("rect", x=0, y=3, width=_share(100 * bar.alone / largest), height=8, rx=1, class_="bar")]
    if not math.isnan(bar.limit):
        at = _share(100 * bar.limit / largest)
        parts.append(el("line", x1=at, x2=at, y1=0, y2=14, class_="limit"))
    return el("svg", *parts, width="100%", height=14, class_=f"bars {_colour(bar.place)}", aria_hidden="true")


def _band(series: Series, x: Scale, y: Scale) -> Markup:
    if not any(point.spread for point in series.points):
        return Markup()
    upper = [f"{_n(x(point.x))},{_n(y(point.y + point.spread))}" for point in series.points]
    lower = [f"{_n(x(point.x))},{_n(y(point.y - point.spread))}" for point in reversed(series.points)]
    return el("path", d=f"M{'L'.join([*upper, *lower])}Z", class_=f"band {_colour(series.place)}")


def _line(series: Series, x: Scale, y: Scale, whiskers: bool) -> Markup:
    path = "L".join(f"{_n(x(point.x))},{_n(y(point.y))}" for point in series.points)
    parts = [
        el("line", x1=_n(x(p.x)), x2=_n(x(p.x)), y1=_n(y(p.y - p.spread)), y2=_n(y(p.y + p.spread)), class_="whisker")
        for p in series.points
        if whiskers and p.spread and not series.is_dense
    ]
    parts.append(el("path", d=f"M{path}", class_="line", stroke_dasharray=_dash(series.place)))
    marked = () if series.is_dense else series.points
    parts += [_marker(series.place, x(point.x), y(point.y), series.is_hollow, point.share) for point in marked]
    parts += [_text(x(point.x) + 6, y(point.y) - 5, point.label, "start") for point in series.points if point.label]
    return el("g", *parts, class_=_colour(series.place))


def _marker(place: int, x: float, y: float, is_hollow: bool = False, share: float = NAN) -> Markup:
    shape = SHAPES[(place + 3 * (place // COLOURS)) % len(SHAPES)]
    grown = "" if math.isnan(share) else f" scale({_n(0.5 + 1.6 * share**0.5)})"
    return el("path", d=shape, transform=f"translate({_n(x)} {_n(y)}){grown}", class_="marker hollow" if is_hollow else "marker")


def _colour(place: int) -> str:
    return f"c{place % COLOURS}"


def _dash(place: int) -> str | None:
    return DASHES[place // COLOURS % len(DASHES)]


def _text(x: float | str, y: float, text: str, anchor: str) -> Markup:
    return el("text", text, x=x if isinstance(x, str) else _n(x), y=_n(y), text_anchor=anchor)


def _share(value: float) -> str:
    return f"{_n(value)}%"


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
