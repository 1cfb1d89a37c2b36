"""A run folder and the frames of its report -> report/report.html; and the page over an experiment's variations."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from apo_bench.analysis.results import Run
from apo_bench.formatting import count
from apo_bench.report.page.answer import answer
from apo_bench.report.page.charts import Estimate, figures, intervals
from apo_bench.report.page.markup import MISSING, Markup, code, el, join, minus, name, table, visible
from apo_bench.report.page.provenance import provenance
from apo_bench.report.page.samples import LIMIT, Samples, samples
from apo_bench.report.page.scores import main_table, published_numbers

HERE = Path(__file__).parent
SECTIONS = {
    "answer": "The answer", "scores": "Scores", "figures": "Figures", "published": "Published numbers", "samples": "Samples",
    "provenance": "Provenance", "spread": "Contrasts by variation", "levels": "Variations",
}  # fmt: skip

DRAWN = "A line for each variation, and below them their mean: right of the dotted line favours the first. Bars are 95 % intervals."


def render(
    folder: Path, run: Run, frames: Mapping[str, pd.DataFrame], *, controls: Sequence[str] = (),
    failed_controls: Sequence[str] = (), warnings: Sequence[str] = (), aggregates_only: bool = False, limit: int = LIMIT,
) -> str:  # fmt: skip
    """The page of `folder`, one file that loads nothing. The same run folder gives the same bytes.

    `frames` are those of the report's csv files: summary, by_round, contrasts, budget; where a judge was asked judged and judge_audit; and
    beside, where published numbers are asked for.
    `controls`, `failed_controls`, `warnings`: ready sentences, of plain text; what failed stands first. `aggregates_only`: without any
    response, prompt or judge's text. `limit`: bytes of the sample browser's data, beyond which it holds a part of the prompts. Raises
    InputError as `read_run` does.
    """
    held = None if aggregates_only else samples(folder, run, limit)
    inside = {
        "answer": answer(run, frames, controls, failed_controls, warnings),
        "scores": main_table(run, frames),
        "figures": figures(run, frames),
        **({"published": published_numbers(run, frames["beside"])} if "beside" in frames else {}),
        "samples": _browser(held, aggregates_only),
        "provenance": provenance(folder, run),
    }
    return compose(run.experiment.name, _level(run), inside, held)


def render_levels(
    title: str, answers: Sequence[str], warnings: Sequence[str], drawn: Mapping[str, Sequence[Estimate]],
    headers: Sequence[str], cells: Sequence[Sequence[str]], remarks: Sequence[str], levels: Mapping[str, bool],
) -> str:  # fmt: skip
    """The page over an experiment's variations.

    `answers`, `warnings`, `remarks`, `headers` and `cells`: as in report.md, with ** and `; the first four cells of a row are names.
    `drawn`: caption -> estimates on one scale. `levels`: label -> whether it has a page of its own, in the run folder's <label>.
    """
    rows = [[*map(_inline, row[:4]), *[MISSING if one == "-" else minus(one) for one in row[4:]]] for row in cells]
    said = [el("p", _inline(one), class_="claim") for one in answers]
    doubts = [el("h3", "Warnings"), el("ul", *[el("li", _inline(one)) for one in warnings], class_="warnings")] if warnings else []
    notes = [el("p", _inline(one), class_="small") for one in remarks]
    links = [
        el("li", el("a", name(label), href=f"../{quote(label)}/report/report.html") if there else join([name(label), ": no page"]))
        for label, there in levels.items()
    ]
    inside = {
        "answer": join([el("div", one, class_="answer") for one in said] + doubts),
        "figures": join([el("p", DRAWN, class_="small"), *[intervals(name(one), lines) for one, lines in drawn.items()]])
        if drawn
        else el("p", "No results."),
        "spread": join([table("Differences by variation", headers, rows), *notes]) if rows else el("p", "No results."),
        "levels": el("ul", *links),
    }
    return compose(title, "", inside, None)


def _inline(text: str) -> Markup:
    """A line of markdown in which ** and ` are all that is marked; the rest is text."""
    parts = re.split(r"\*\*(.+?)\*\*|`([^`]+)`", text)
    found: list[Markup] = []
    for plain, strong, named in zip(parts[::3], [*parts[1::3], None], [*parts[2::3], None], strict=True):
        found += [name(plain) if plain else Markup(), el("strong", _inline(strong)) if strong else code(named) if named else Markup()]
    return join(found)


def compose(title: str, level: str, inside: Mapping[str, Markup], held: Samples | None) -> str:
    """The whole document, of those SECTIONS that are `inside`. Its policy allows its own style and script, by hash, and nothing else."""
    style, script = (Markup((HERE / one).read_text(encoding="utf-8")) for one in ("page.css", "page.js"))
    allowed = [f"style-src '{_hash(style)}'", f"script-src '{_hash(script)}'", "base-uri 'none'", "form-action 'none'"]
    policy = "; ".join(["default-src 'none'", *allowed, "require-trusted-types-for 'script'"])
    head = [
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=Markup(policy)),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="referrer", content="no-referrer"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", f"{title} \u2013 apo-bench"),
        el("style", style),
    ]
    theme = [
        el("label", el("input", type="radio", name="theme", id=f"theme-{one}", checked=one == "auto"), el("span", one))
        for one in ("auto", "light", "dark")
    ]
    shown = {id_: heading for id_, heading in SECTIONS.items() if id_ in inside}
    links = el("nav", *[el("a", heading, href=f"#{id_}") for id_, heading in shown.items()], aria_label="Sections")
    switch = el("fieldset", el("legend", "Theme", class_="heard"), *theme, class_="theme")
    top = el("header", el("h1", name(title)), el("p", level, class_="small") if level else "", el("div", links, switch, class_="topbar"))
    sections = [
        el("section", el("h2", heading, id=f"{id_}-title"), inside[id_], id=id_, aria_labelledby=f"{id_}-title")
        for id_, heading in shown.items()
    ]
    data = [el("script", Markup(held.block), type="application/gzip;base64", id="data"), el("script", script)] if held else []
    skip = el("a", "Skip to the answer", href="#answer", class_="skip")
    body = el("body", skip, top, el("main", *sections), *data)
    return f"<!doctype html>\n{el('html', el('head', *head), body, lang='en')}\n"


def _browser(held: Samples | None, aggregates_only: bool) -> Markup:
    """What the script fills; without it, and on paper, words say where the rows are."""
    if held is None:
        reason = "This page holds aggregates only." if aggregates_only else "This run kept no responses."
        return el("p", f"{reason} {'Responses, prompts and judge texts are left out.' if aggregates_only else ''}".strip())
    notes = [
        "All responses are in tables/responses.parquet, their scores in tables/scores.parquet and verdicts in tables/judgments.parquet."
    ]
    if held.n_prompts < held.of:
        part = f"To keep the page small it holds {count(held.n_prompts)} of {count(held.of)} prompts, chosen by a hash of their ids."
        notes.insert(0, part)
    if held.without_prompts:
        notes.append(f"The prompts' own texts could not be had: {held.without_prompts}")
    gap = (
        "Proxy +1.5 SD: so much higher the arm's own reward model ranks a response than gold does, each in SDs over the prompts of that "
        "arm, seed and round; of several responses the list shows the largest."
    )
    script = el("p", "The sample browser needs JavaScript and DecompressionStream.", id="browser-state", role="status")
    return join([el("p", name(" ".join(notes)), class_="small"), el("p", gap, class_="small"), script, el("div", id="browser")])


def _level(run: Run) -> str:
    varied = run.manifest.get("variation") or {}
    return ", ".join(f"{visible(factor)}: {level}" for factor, level in varied.items())


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
