"""Display names of arms and scorers (`report.names`), put into a report that is built. CSV files keep the names of the experiment."""

import re
from collections.abc import Mapping
from dataclasses import replace

from apo_bench.report.charts import Bars, Forest, Lines
from apo_bench.report.document import Answer, Block, Bullets, Claim, Claims, Facts, Notices, Part, Report, Section
from apo_bench.report.tables import Cell, Column, Row, Table
from apo_bench.report.text import Text

AS_WRITTEN = ("samples", "provenance", "published")  # parts whose commands, paths and files need the experiment's own names


def with_display_names(report: Report, names: Mapping[str, str]) -> Report:
    """The report with display names in place of `names`' keys, in texts, tables and figures; of provenance and published numbers not."""
    if not names:
        return report
    rename = Renaming(names)
    parts = [part if part.anchor in AS_WRITTEN else rename.part(part) for part in report.parts]
    return replace(report, parts=parts)


class Renaming:
    """Puts display names where a name stands by itself: not inside of a word, a path or a reference such as file.py@Class."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names
        longest_first = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
        self.pattern = re.compile(rf"(?<![\w./@-])(?:{longest_first})(?![\w/@-]|\.\w)")

    def word(self, text: str) -> str:
        return self.pattern.sub(lambda match: self.names[match[0]], text)

    def text(self, text: Text) -> Text:
        """Only what comes from the run is renamed. A display name is no code."""
        spans = []
        for span in text:
            shown = self.word(span.text) if span.data else span.text
            spans.append(replace(span, text=shown, code=span.code and shown == span.text))
        return tuple(spans)

    def part(self, part: Part) -> Part:
        return replace(part, sections=[self.section(section) for section in part.sections])

    def section(self, section: Section) -> Section:
        return replace(section, blocks=[self.block(block) for block in section.blocks])

    def block(self, block: Block) -> Block:
        match block:
            case tuple():
                return self.text(block)
            case Answer():
                return Answer(self.text(block.headline), self.text(block.certainty))
            case Notices():
                return Notices([self.text(item) for item in block.items])
            case Claims():
                claims = [Claim(self.text(claim.headline), self.text(claim.where), self.text(claim.detail)) for claim in block.items]
                return Claims(claims)
            case Bullets():
                return Bullets([self.text(item) for item in block.items])
            case Facts():
                return Facts({term: self.text(text) for term, text in block.items.items()})
            case Section():
                return self.section(block)
            case Table():
                return self.table(block)
            case Lines() | Forest() | Bars():
                return self.figure(block)

    def table(self, table: Table) -> Table:
        """A caption ends in its scorer; block titles and the note of a paper's table are renamed as well."""
        head, by, scorer = table.caption.rpartition(", by ")
        paper = table.paper
        if paper is not None:
            block = paper.block
            paper = replace(paper, block=lambda row: self.word(block(row)), note=self.text(paper.note))
        return replace(
            table, columns=[self.column(column) for column in table.columns], caption=f"{head}{by}{self.word(scorer)}" if by else scorer,
            note=self.text(table.note), legend=[self.text(line) for line in table.legend], paper=paper,
        )  # fmt: skip

    def column(self, column: Column) -> Column:
        def cell(row: Row) -> Cell:
            content = column.cell(row)
            return self.text(content) if isinstance(content, tuple) else self.word(content) if isinstance(content, str) else content

        return replace(column, head=self.word(column.head), cell=cell)

    def figure(self, figure: Lines | Forest | Bars) -> Lines | Forest | Bars:
        match figure:
            case Lines():
                panels = tuple(
                    replace(
                        panel, title=self.word(panel.title), series=tuple(replace(line, name=self.word(line.name)) for line in panel.series)
                    )
                    for panel in figure.panels
                )
                names, hollow = tuple(map(self.word, figure.names)), frozenset(map(self.word, figure.hollow))
                return replace(figure, caption=self.text(figure.caption), panels=tuple(panels), names=names, hollow=hollow)
            case Forest():
                forests = tuple(
                    replace(
                        panel,
                        title=self.word(panel.title),
                        x_label=self.word(panel.x_label),
                        rows=tuple(replace(row, label=self.word(row.label)) for row in panel.rows),
                    )
                    for panel in figure.panels
                )
                return replace(figure, caption=self.text(figure.caption), panels=forests)
            case Bars():
                bars = {title: tuple(replace(bar, arm=self.word(bar.arm)) for bar in panel) for title, panel in figure.panels.items()}
                return replace(figure, panels=bars)
