"""Charts as inline svg, drawn when the page is written: they print, need no script and take their colours from the page's style."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from apo_bench.report.page.markup import Markup, el, join, minus

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
FEW = 5  # series up to which a spread is a band; more would cover each other


@dataclass(frozen=True)
class Point:
    """A value at x, with the SD around it (0: none)."""

    x: float
    y: float
    spread: float = 0.0
    label: str = ""
    size: float = 1.0


@dataclass(frozen=True)
class Series:
    """Points in order; `place` chooses colour, marker and dash, so that colour never stands alone."""

    name: str
    place: int
    points: tuple[Point, ...]
    hollow: bool = False


@dataclass(frozen=True)
class Scale:
    """From values to units of the drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        low, high = (low - 0.5, low + 0.5) if low == 0 else (low - abs(low) / 2, low + abs(low) / 2)
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(one * power for one in (1, 2, 5, 10) if one * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def tick_label(value: float) -> str:
    return minus(f"{value:g}")


def panel(
    title: object, series: Sequence[Series], x_label: str, *, described: str, whole: bool = False,
    reference: float | None = None, diagonal: bool = False, limits: tuple[float, float] | None = None,
) -> Markup:  # fmt: skip
    """A figure of lines with markers. `whole`: x are whole numbers, each a tick. `described`: what a screen reader says of it."""
    known = [point for one in series for point in one.points]
    xs = [point.x for point in known]
    across = sorted({*xs}) if whole else ticks(min(xs), max(xs)) if limits is None else ticks(*limits)
    if whole and len(across) > 8:
        across = [one for one in ticks(across[0], across[-1], 5) if one == round(one)]
    ends = [point.y + sign * point.spread for point in known for sign in (-1, 1)]
    up = ticks(*limits) if limits else ticks(min(*ends, *_known(reference)), max(*ends, *_known(reference)))
    margin = 0.06 * (across[-1] - across[0]) or 0.5
    inset = margin if whole else 0.0
    x = Scale(across[0] - inset, across[-1] + inset, LEFT, WIDTH - RIGHT)
    y = Scale(up[0], up[-1], HEIGHT - BOTTOM, TOP)
    grid = [el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=_n(y(one)), y2=_n(y(one)), class_="grid") for one in up]
    labels = [_text(LEFT - 6, y(one) + 3.5, tick_label(one), "end") for one in up]
    labels += [_text(x(one), HEIGHT - BOTTOM + 15, tick_label(one), "middle") for one in across]
    labels.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, x_label, "middle"))
    if reference is not None:
        grid.append(el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=_n(y(reference)), y2=_n(y(reference)), class_="reference"))
    if diagonal:
        grid.append(el("line", x1=_n(x(up[0])), x2=_n(x(up[-1])), y1=_n(y(up[0])), y2=_n(y(up[-1])), class_="reference"))
    banded = whole and len(series) <= FEW
    drawn = [join(_band(one, x, y) for one in series)] if banded else []
    drawn += [_line(one, x, y, whiskers=not banded) for one in series]
    drawing = el(
        "svg", *grid, *labels, *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=described, class_="chart"
    )  # fmt: skip
    return el("figure", el("figcaption", title), drawing, class_="panel")


def legend(names: Sequence[str]) -> Markup:
    """Each series' name beside its line and marker."""
    keys = [el("li", key(place), el("bdi", one)) for place, one in enumerate(names)]
    return el("ul", *keys, class_="legend")


def key(place: int) -> Markup:
    """The line and marker of a series."""
    inside = el("line", x1=1, x2=27, y1=7, y2=7, class_="line", stroke_dasharray=_dash(place)), _marker(place, 14, 7, 1, hollow=False)
    return el("svg", *inside, viewBox="0 0 28 14", width=28, height=14, class_=f"key {_colour(place)}", aria_hidden="true")


def interval(value: float, low: float, high: float, scale: tuple[float, float], reference: float, look: str = "") -> Markup:
    """A point with its interval on a line as wide as its cell; coordinates are shares of the width, so nothing is ever squeezed."""
    at = Scale(*scale, 2, 98)
    parts = [el("line", x1=_share(at(reference)), x2=_share(at(reference)), y1=0, y2=26, class_="reference")]
    if not math.isnan(low):
        ends = [_share(min(max(at(end), 0), 100)) for end in (low, high)]
        parts.append(el("line", x1=ends[0], x2=ends[1], y1=13, y2=13, class_="span"))
        parts += [el("line", x1=end, x2=end, y1=9, y2=17, class_="span") for end in ends]
    if not math.isnan(value):
        parts.append(el("circle", cx=_share(at(value)), cy=13, r=4.5, class_="dot"))
    return el("svg", *parts, width="100%", height=26, class_=f"interval {look}".strip(), aria_hidden="true")


def scale_of(scale: tuple[float, float], marks: Sequence[float]) -> Markup:
    """The numbers under a column of intervals."""
    at = Scale(*scale, 2, 98)
    labels = [_text(_share(at(one)), 12, tick_label(one), "middle") for one in marks]
    return el("svg", *labels, width="100%", height=16, class_="interval", aria_hidden="true")


def bar(share: float, place: int, limit: float | None = None) -> Markup:
    """A bar over a share of its cell's width, and a stroke where its limit is."""
    parts = [el("rect", x=0, y=3, width=_share(100 * share), height=8, rx=1, class_="bar")]
    if limit is not None:
        parts.append(el("line", x1=_share(100 * limit), x2=_share(100 * limit), y1=0, y2=14, class_="limit"))
    return el("svg", *parts, width="100%", height=14, class_=f"bars {_colour(place)}", aria_hidden="true")


def _band(one: Series, x: Scale, y: Scale) -> Markup:
    if not any(point.spread for point in one.points):
        return Markup()
    upper = [f"{_n(x(point.x))},{_n(y(point.y + point.spread))}" for point in one.points]
    lower = [f"{_n(x(point.x))},{_n(y(point.y - point.spread))}" for point in reversed(one.points)]
    return el("path", d=f"M{'L'.join([*upper, *lower])}Z", class_=f"band {_colour(one.place)}")


def _line(one: Series, x: Scale, y: Scale, whiskers: bool) -> Markup:
    path = "L".join(f"{_n(x(point.x))},{_n(y(point.y))}" for point in one.points)
    parts: list[Markup] = []
    if whiskers:
        parts += [
            el("line", x1=_n(x(p.x)), x2=_n(x(p.x)), y1=_n(y(p.y - p.spread)), y2=_n(y(p.y + p.spread)), class_="whisker")
            for p in one.points
            if p.spread
        ]
    parts.append(el("path", d=f"M{path}", class_="line", stroke_dasharray=_dash(one.place)))
    parts += [_marker(one.place, x(point.x), y(point.y), point.size, one.hollow) for point in one.points]
    parts += [_text(x(point.x) + 6, y(point.y) - 5, point.label, "start") for point in one.points if point.label]
    return el("g", *parts, class_=_colour(one.place))


def _marker(place: int, x: float, y: float, size: float, hollow: bool) -> Markup:
    shape = SHAPES[(place + 3 * (place // COLOURS)) % len(SHAPES)]
    grown = "" if size == 1 else f" scale({_n(size)})"
    return el("path", d=shape, transform=f"translate({_n(x)} {_n(y)}){grown}", class_="marker hollow" if hollow else "marker")


def _colour(place: int) -> str:
    return f"c{place % COLOURS}"


def _dash(place: int) -> str | None:
    return DASHES[place // COLOURS % len(DASHES)]


def _text(x: float | str, y: float, text: str, anchor: str) -> Markup:
    return el("text", text, x=x if isinstance(x, str) else _n(x), y=_n(y), text_anchor=anchor)


def _known(value: float | None) -> list[float]:
    return [] if value is None else [value]


def _share(value: float) -> str:
    return f"{_n(value)}%"


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
