"""Html out of values. Whatever is not `Markup` is text and is escaped, so that no text from a run can become an element."""

import html
import re
from collections.abc import Iterable, Sequence

from apo_bench.formatting import visible

MISSING = "\u2013"  # what stands for a value that is not there
EMPTY = ("line", "circle", "rect", "path", "input", "meta")  # elements that hold nothing


class Markup(str):
    """Html that is finished: no text from outside that was not escaped."""


def escaped(value: object) -> Markup:
    """`Markup` as it is; anything else as text."""
    return value if isinstance(value, Markup) else Markup(html.escape(visible(value)))


def el(tag: str, *children: object, **attributes: object) -> Markup:
    """An element. Attributes: `class_` is class, `aria_label` aria-label; None and False leave one out, True gives it no value."""
    given = []
    for name, value in attributes.items():
        if value is not None and value is not False:
            key = name.rstrip("_").replace("_", "-")
            given.append(f" {key}" if value is True else f' {key}="{escaped(value)}"')
    head = f"<{tag}{''.join(given)}"
    return Markup(f"{head}/>" if tag in EMPTY else f"{head}>{join(children)}</{tag}>")


def join(parts: Iterable[object], between: str = "") -> Markup:
    """Parts one after another."""
    return Markup(escaped(between).join(escaped(part) for part in parts))


def name(value: object) -> Markup:
    """A name or text from a run, kept apart from the direction of the text around it."""
    return el("bdi", value)


def code(value: object) -> Markup:
    """An arm's name and the like."""
    return el("code", name(value))


def minus(number: str) -> str:
    """A number with a true minus sign."""
    return number.replace("-", "\u2212")


def aside(text: str) -> Markup:
    """Words for those who hear the page."""
    return el("span", text, class_="heard")


def table(caption: object, headers: Sequence[object], rows: Iterable[Sequence[object]], **attributes: object) -> Markup:
    """A table for screen readers too: a caption, headers of columns, and each row's first cell as its header. It scrolls sideways."""
    head = el("thead", el("tr", *[el("th", header, scope="col") for header in headers]))
    body = el("tbody", *[el("tr", el("th", row[0], scope="row"), *[el("td", cell) for cell in row[1:]]) for row in rows])
    return scrolled(el("table", el("caption", caption), head, body, **attributes), caption)


def scrolled(wide: Markup, label: object) -> Markup:
    """Something wide in a frame that scrolls, by keyboard too."""
    plain = html.unescape(re.sub("<[^>]*>", "", label)) if isinstance(label, Markup) else label
    return el("div", wide, class_="wide", tabindex="0", role="region", aria_label=plain)


def details(summary: object, *inside: object) -> Markup:
    """What is shown when asked for."""
    return el("details", el("summary", summary), *inside)
