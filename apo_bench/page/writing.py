"""A run folder and the frames of its report -> report/report.html."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from apo_bench.markdown import count
from apo_bench.page.answer import answer
from apo_bench.page.charts import figures
from apo_bench.page.markup import Markup, el, join, name, visible
from apo_bench.page.provenance import provenance
from apo_bench.page.samples import LIMIT, Samples, samples
from apo_bench.page.scores import main_table
from apo_bench.results import Run
from apo_bench.store import write_text

HERE = Path(__file__).parent
SECTIONS = {"answer": "The answer", "scores": "Scores", "figures": "Figures", "samples": "Samples", "provenance": "Provenance"}


def write(
    folder: Path, run: Run, frames: Mapping[str, pd.DataFrame], *, controls: Sequence[str] = (),
    failed_controls: Sequence[str] = (), warnings: Sequence[str] = (), aggregates_only: bool = False, limit: int = LIMIT,
) -> Path:  # fmt: skip
    """Write `folder`/report/report.html, one file that loads nothing, and return its path. The same run folder gives the same bytes.

    `frames` are those of the report's csv files: summary, by_round, contrasts, budget and, where a judge was asked, judged, judge_audit.
    `controls`, `failed_controls`, `warnings`: ready sentences, of plain text; what failed stands first. `aggregates_only`: without any
    response, prompt or judge's text. `limit`: bytes of the sample browser's data, beyond which it holds a part of the prompts. Raises
    InputError as `read_run` does.
    """
    held = None if aggregates_only else samples(folder, run, limit)
    inside = {
        "answer": answer(run, frames, controls, failed_controls, warnings),
        "scores": main_table(run, frames),
        "figures": figures(run, frames),
        "samples": _browser(held, aggregates_only),
        "provenance": provenance(folder, run),
    }
    path = folder / "report" / "report.html"
    write_text(path, compose(run.experiment.name, _level(run), inside, held))
    return path


def compose(title: str, level: str, inside: Mapping[str, Markup], held: Samples | None) -> str:
    """The whole document. Its policy allows its own style and script, by their hashes, and nothing else, from nowhere."""
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
    links = el("nav", *[el("a", heading, href=f"#{id_}") for id_, heading in SECTIONS.items()], aria_label="Sections")
    switch = el("fieldset", el("legend", "Theme", class_="heard"), *theme, class_="theme")
    top = el("header", el("h1", name(title)), el("p", level, class_="small") if level else "", el("div", links, switch, class_="topbar"))
    sections = [
        el("section", el("h2", heading, id=f"{id_}-title"), inside[id_], id=id_, aria_labelledby=f"{id_}-title")
        for id_, heading in SECTIONS.items()
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
    notes = ["All of them are in tables/responses.parquet, their scores in tables/scores.parquet and verdicts in tables/judgments.parquet."]
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
