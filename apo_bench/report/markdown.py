"""A report as markdown: report.md, which fits a pull request's text."""

import math
from collections.abc import Iterable, Sequence
from itertools import groupby

from apo_bench.formatting import minus, plain, table
from apo_bench.report.charts import Forest
from apo_bench.report.document import Answer, Block, Bullets, Claims, Facts, Notices, Report, Section
from apo_bench.report.tables import Cell, Interval, Table, Value
from apo_bench.report.text import Span, Text, keep_ends

LIMIT = 60_000  # characters of report.md: a pull request's text takes 65,536
SHORTENED = {  # sections that lose their tables where report.md is longer, one after the other, and where these tables are
    "Training curves": "training.csv", "Reward models by round": "by_round.csv", "Answers by round": "by_round.csv",
    "Contrasts": "contrasts.csv", "Scores by round beside the reward model": "by_round.csv",
}  # fmt: skip
MARKS = {"": "", "best": " ▲", "highest": " ▲", "alike": " ≈", "lower": " ▽"}


def render(report: Report, limit: int = LIMIT) -> str:
    """report.md."""
    lines = [f"# {plain(': '.join(filter(None, (report.title, report.subtitle))))}"]
    return "\n".join(shortened([*lines, *section_lines(report.sections, "##")], limit)) + "\n"


def section_lines(sections: Iterable[Section], heading: str = "###") -> list[str]:
    """The lines of sections, each under its heading; a block is set off by an empty line."""
    lines: list[str] = []
    for section in sections:
        if section.blocks and not section.is_on_page_only:
            lines += ["", f"{heading} {plain(section.title)}"]
            for block in section.blocks:
                shown = section_lines([block], heading + "#") if isinstance(block, Section) else ["", *block_lines(block)]
                lines += shown if any(shown) else []
    return lines


def block_lines(block: Block) -> list[str]:
    """The lines of a block that is no section; a figure without a file has none."""
    match block:
        case tuple():
            return [inline(block)] if block else []
        case Answer():
            return [inline(block.headline), *(["", inline(block.certainty)] if block.certainty else [])]
        case Notices():
            return [line for item in block.items for line in (f"> {inline(item)}", "")][:-1]
        case Claims():
            ends = [f": {inline(item.detail)}" if item.detail else "." for item in block.items]
            return [f"- **{inline(item.headline)}** ({inline(item.where)}){end}" for item, end in zip(block.items, ends, strict=True)]
        case Bullets():
            return [f"- {inline(item)}" for item in block.items]
        case Facts():
            return [f"- {term}: {inline(text)}" for term, text in block.items.items()]
        case Table():
            return [] if block.is_on_page_only or block.is_in_paper_only else table_lines(block)
        case Section():
            return section_lines([block])
        case Forest(name=""):
            return []
        case _:
            return [f"![{inline(block.caption)}](figures/{block.name}.png)"]


def table_lines(shown: Table) -> list[str]:
    """A table, its note and its legend."""
    rows = [[cell(column.cell(row)) for column in shown.columns] for row in shown.rows]
    lines = table([plain(column.head) for column in shown.columns], rows)
    lines += ["", inline(shown.note)] if shown.note else []
    return lines + (["", *[f"- {inline(line)}" for line in shown.legend]] if shown.legend else [])


def inline(text: Text) -> str:
    """Spans as one line: data are escaped, so that none of it is a cell, a tag or an image."""
    groups = groupby(text, lambda span: "**" if span.strong else "*" if span.emphasis else "")
    return "".join(f"{mark}{''.join(map(_span, group))}{mark}" for mark, group in groups)


def _span(span: Span) -> str:
    text = keep_ends(span.text, plain) if span.data else span.text if span.code else minus(span.text)
    if span.link.endswith(".md"):
        return f"[{text}]({span.link})"
    return f"`{text}`" if span.code else text


def cell(content: Cell) -> str:
    """Of a number also its SD, interval, limit and standing."""
    match content:
        case None:
            return "-"
        case Value():
            text = f"<= {content.text}" if content.is_bound else content.text
            text += "" if math.isnan(content.sd) else f" ± {content.write(content.sd)}"
            text += f" ({content.interval.text})" if content.interval else ""
            text += "" if math.isnan(content.limit) else f" of {content.write(content.limit)}"
            return minus(text) + MARKS[content.standing]
        case Interval():
            return minus(content.text)
        case tuple():
            return inline(content)
        case _:
            return plain(content)


def shortened(lines: Sequence[str], limit: int = LIMIT) -> list[str]:
    """The lines of report.md without the tables of SHORTENED's sections, in its order, until at most `limit` characters are left.

    Headings and figures stay, and so does every other section, however long.
    """
    kept = list(lines)
    for title, file in SHORTENED.items():
        if sum(len(line) + 1 for line in kept) <= limit:
            break
        if f"## {title}" in kept:
            start = kept.index(f"## {title}") + 1
            end = next((place for place in range(start, len(kept)) if kept[place].startswith("## ")), len(kept))
            note = f"Left out here, so that this text fits a pull request: `tables/{file}` and `report.html` have it."
            kept[start:end] = ["", *(line for line in kept[start:end] if line.startswith("![")), "", note, ""]
    return kept
