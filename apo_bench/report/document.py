"""What a report says, apart from how it is shown: sections of text, tables and figures. Markdown, LaTeX and the page render all of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from apo_bench.report.charts import Figure
from apo_bench.report.tables import Table
from apo_bench.report.text import Text


@dataclass(frozen=True)
class Answer:
    """A sentence for somebody who reads no further, and how certain it is."""

    headline: Text
    certainty: Text = ()


@dataclass(frozen=True)
class Notices:
    """What a reader must know to judge the answer; a renderer sets it off."""

    items: Sequence[Text]


@dataclass(frozen=True)
class Claim:
    """What a contrast permits to be said first, on what, and the numbers behind it."""

    headline: Text
    where: Text
    detail: Text


@dataclass(frozen=True)
class Claims:
    items: Sequence[Claim]


@dataclass(frozen=True)
class Bullets:
    items: Sequence[Text]


@dataclass(frozen=True)
class Facts:
    """Terms and what is known of them."""

    items: Mapping[str, Text]


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it. `is_on_page_only`: report.md leaves it out. `is_folded`: the page shows it when asked to."""

    title: str
    blocks: Sequence["Block"]
    is_on_page_only: bool = False
    is_folded: bool = False


Block = Text | Answer | Notices | Claims | Bullets | Facts | Table | Figure | Section


@dataclass(frozen=True)
class Part:
    """Sections that share a place on the page, under a heading and an anchor of their own."""

    anchor: str
    title: str
    sections: Sequence[Section]


@dataclass(frozen=True)
class Report:
    """`frames`: the csv files that no table has written, by name."""

    title: str
    parts: Sequence[Part]
    frames: Mapping[str, pd.DataFrame]
    subtitle: str = ""

    @property
    def sections(self) -> list[Section]:
        return [section for part in self.parts for section in part.sections]


def blocks_of(sections: Iterable[Section]) -> Iterable[Block]:
    """All blocks of sections, those of their subsections too."""
    for section in sections:
        for block in section.blocks:
            if isinstance(block, Section):
                yield from blocks_of([block])
            else:
                yield block
