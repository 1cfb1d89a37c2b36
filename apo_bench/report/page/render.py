"""A report as one html file that loads nothing. Templates escape whatever is not markup, so no text of a run can become an element."""

import base64
import hashlib
import math
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from apo_bench.formatting import minus
from apo_bench.report.charts import Estimate
from apo_bench.report.document import Report
from apo_bench.report.page import svg
from apo_bench.report.page.samples import Samples
from apo_bench.report.page.svg import el, shown
from apo_bench.report.tables import FORMS, Cell, Interval, Value, interval
from apo_bench.report.text import Text

HERE = Path(__file__).parent
MISSING = "\u2013"  # a value that is not there
HIGHEST = ("▲", "highest mean")
MARKS = {
    "best": HIGHEST, "highest": HIGHEST, "alike": ("≈", "not distinguishable from the highest"), "lower": ("▽", "lower than the highest"),
}  # fmt: skip


def render(report: Report, samples: Samples | None, *, is_aggregate: bool = True) -> str:
    """The whole document. `samples`: the sample browser's data, or None; `is_aggregate`: they were left out, not missing.

    Its policy allows its own style and script, by hash, and nothing else.
    """
    style, tables, browser = (Markup((HERE / name).read_text(encoding="utf-8")) for name in ("page.css", "tables.js", "page.js"))
    script = tables + browser if samples else tables
    policy = (
        f"default-src 'none'; style-src '{policy_hash(style)}'; script-src '{policy_hash(script)}'; base-uri 'none'; form-action 'none'; "
        "require-trusted-types-for 'script'"
    )
    parts = [part for part in report.parts if part.anchor == "samples" or any(section.blocks for section in part.sections)]
    template = environment(HERE / "templates").get_template("page.html.j2")
    return template.render(
        report=report, parts=parts, samples=samples, is_aggregate=is_aggregate, style=style, script=script, policy=Markup(policy),
        anchor=anchors(part.anchor for part in parts),
    )  # fmt: skip


def anchors(taken: Iterable[str]) -> Callable[[str], str]:
    """Names for links to parts of a page: the words of their titles, numbered where these are `taken` or come again."""
    names = {*taken}

    def anchor(title: str) -> str:
        stem = re.sub("[^a-z0-9]+", "-", title.lower())[:60].strip("-") or "part"
        name = next(name for name in (stem, *(f"{stem}-{place}" for place in range(2, len(names) + 3))) if name not in names)
        names.add(name)
        return name

    return anchor


@cache
def environment(folder: Path) -> Environment:
    """The templates of a folder, with what pages of reports share: texts, cells, estimates and drawings."""
    templates = Environment(
        loader=FileSystemLoader(folder), autoescape=True, finalize=shown, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.globals |= {"svg": svg, "cell": cell, "estimate": estimate, "kind": lambda block: type(block).__name__.lower()}
    templates.filters |= {
        "inline": inline, "count": FORMS["count"], "known": lambda value: not math.isnan(value),
        "address": lambda path: quote(path, safe="/."),
    }  # fmt: skip
    return templates


def policy_hash(text: str) -> str:
    """How a page's policy names a style or script of its own."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def inline(text: Text) -> Markup:
    """Spans as elements; data are kept apart from the direction of the text around them. Data and code are as they were written."""
    parts = []
    for span in text:
        words = span.text if span.code or span.data else minus(span.text)
        part: object = el("bdi", words) if span.data else words
        for applies, tag in ((span.code, "code"), (span.emphasis, "em"), (span.strong, "strong")):
            part = el(tag, part) if applies else part
        if span.link.endswith(".html"):
            part = el("a", part, href=quote(span.link, safe="/."))
        parts.append(shown(part))
    return Markup().join(parts)


def cell(content: Cell) -> Markup:
    match content:
        case None:
            return Markup(MISSING)
        case Value():
            return _value(content)
        case Interval():
            return Markup(minus(content.text))
        case tuple():
            return inline(content)
        case int():
            return Markup(content)
        case _:
            return el("bdi", content)


def _value(value: Value) -> Markup:
    """A number, its standing for eyes and ears, and its SD, interval and limit."""
    if math.isnan(value.value):
        return Markup(MISSING)
    text = minus(f"{'≤ ' if value.is_bound else ''}{value.text}")
    parts: list[object] = [el("b", text) if value.standing in ("best", "highest") else text]
    if value.standing:
        sign, words = MARKS[value.standing]
        parts += [" ", el("span", sign, class_=f"mark {value.standing}", aria_hidden="true"), el("span", f" {words}", class_="heard")]
    parts += [] if math.isnan(value.sd) else [" ", el("span", f"± {value.write(value.sd)}", class_="sd")]
    parts += [minus(f" ({value.interval.text})")] if value.interval else []
    parts += [] if math.isnan(value.limit) else [f" of {value.write(value.limit)}"]
    return Markup().join(map(shown, parts))


def estimate(row: Estimate) -> Markup:
    """The value of an estimate and its interval."""
    around = interval(row.low, row.high, row.form)
    return el("b", minus(FORMS[row.form](row.value))) + el("span", minus(around.text) if around else "", class_="sub")
