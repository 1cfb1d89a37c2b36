"""The report's tables for a paper: a .tex file each, to be read by \\input.

A file is one table environment; its first lines are a comment with the preamble that it needs, which is booktabs alone. What comes from
an experiment or a task (names of arms, axes, judges) is data: every character that TeX would act upon is escaped, and what pdflatex
cannot set is written as its code point, [U+202E].
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

from apo_bench.formatting import ALPHA, UNKNOWN
from apo_bench.report.document import Report, blocks_of
from apo_bench.report.tables import FORMS, Cell, Interval, Row, Table, Value
from apo_bench.report.text import Text, keep_ends

SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "`": r"\textquoteleft{}", "'": r"\textquoteright{}", '"': r"\textquotedblright{}", "-": "{-}", ",": "{,}", "!": "{!}", "?": "{?}",
}  # fmt: skip
ACCENTS = {"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u030a": "r", "\u030c": "v", "\u0327": "c"}
PREAMBLE = ["% In the preamble:", r"%   \usepackage{booktabs}", r"% Where the table goes: \input of this file."]
LINE, WIDTH = 30, r"0.23\linewidth"  # characters that a text's column shows in a line, and the width of one that has more
END, AFTER_LINES = r"\\", r"\tabularnewline"  # of a row
DAGGER = r"$^{\dagger}$"
RULES = {  # of the dagger, by what a table marks with it
    "declared": f"adjusted p \\textless{{}} {ALPHA:g} for the declared contrast.",
    "lower": f"lower than the highest mean of its column, by the contrast of the two arms at the final round, p \\textless{{}} {ALPHA:g}, "
    "adjusted where the contrast is declared.",
}
LETTERS = {"ß": r"\ss{}", "ø": r"\o{}", "Ø": r"\O{}", "æ": r"\ae{}", "Æ": r"\AE{}", "ł": r"\l{}", "Ł": r"\L{}", "±": r"$\pm$"}


def escape(text: object) -> str:
    """Text as TeX sets it, with nothing in it that TeX would do; white space of any kind is one blank."""
    return "".join(_character(character) for character in unicodedata.normalize("NFC", " ".join(str(text).split())))


def _character(character: str) -> str:
    if character in SPECIAL or character in LETTERS:
        return SPECIAL.get(character) or LETTERS[character]
    if " " <= character <= "~":
        return character
    base, *marks = unicodedata.normalize("NFD", character)
    if base.isascii() and base.isalpha() and len(marks) == 1 and marks[0] in ACCENTS:
        return f"\\{ACCENTS[marks[0]]}{{{base}}}"
    return f"[U+{ord(character):04X}]"


def render(report: Report) -> dict[str, str]:
    """The .tex file of every table that goes into a paper: file names and contents. The same report gives the same bytes."""
    tables = [block for block in blocks_of(report.sections) if isinstance(block, Table) and block.name and block.paper]
    return {f"{table.name}.tex": "\n".join(table_lines(table)) + "\n" for table in tables}


def table_lines(table: Table) -> list[str]:
    """A table environment: its paper's rows and columns, in blocks that have a title or none, and below them what its marks mean."""
    assert table.paper is not None
    columns = [column for column in table.columns if column.paper]
    blocks: dict[str, list[list[Cell]]] = {}
    for row in filter(table.paper.rows, table.rows):
        blocks.setdefault(table.paper.block(row), []).append(_marked([column.cell(row) for column in columns], row))
    shapes = ["l", *map(_shape, list(zip(*(row for rows in blocks.values() for row in rows), strict=True))[1:])]
    shapes = shapes if blocks else ["l"] * len(columns)
    lines = [
        *PREAMBLE, r"\begin{table}", r"\centering",
        r"\setlength{\abovecaptionskip}{0pt}\setlength{\belowcaptionskip}{5pt}",
        f"\\caption{{{escape(table.caption)}.}}", f"\\label{{tab:{table.name.replace('_', '-')}}}", r"\footnotesize",
        r"\setlength{\tabcolsep}{3pt}", f"\\begin{{tabular}}{{@{{}}{''.join(shapes)}@{{}}}}", r"\toprule",
        _line([escape(column.head) for column in columns], shapes), r"\midrule",
    ]  # fmt: skip
    for place, (title, rows) in enumerate(blocks.items()):
        lines += [r"\addlinespace"] if place else []
        lines += [f"\\multicolumn{{{len(columns)}}}{{@{{}}l}}{{\\textit{{{escape(title)}}}}} \\\\"] if title else []
        lines += [_line(list(map(cell, row)), shapes) for row in rows]
    marks = {_mark(content) for rows in blocks.values() for row in rows for content in row}
    rules = [f"{DAGGER}: {rule}" for mark, rule in RULES.items() if mark in marks]
    note = " ".join(filter(None, [inline(table.paper.note or table.note), *rules]))
    return [*lines, r"\bottomrule", r"\end{tabular}", r"\par\smallskip", f"\\parbox{{\\linewidth}}{{\\scriptsize {note}}}", r"\end{table}"]


def _shape(cells: Sequence[Cell]) -> str:
    """How a column stands: numbers right, texts left, those of several parts in lines of their own width."""
    texts = [content for content in cells if isinstance(content, str | tuple)]
    is_long = any(len("".join(span.text for span in text)) > LINE for text in texts if isinstance(text, tuple))
    return f"p{{{WIDTH}}}" if is_long else "l" if texts else "r"


def _marked(cells: list[Cell], row: Row) -> list[Cell]:
    """A row's cells; of a declared contrast that is shown, the first number has the mark."""
    is_shown = float(row.get("p_adjusted", math.nan)) < ALPHA
    first = next((content for content in cells if isinstance(content, Value)), None)
    return [replace(first, is_shown=True) if is_shown and first and content is first else content for content in cells]


def _mark(content: Cell) -> str:
    """Why a dagger stands at a number: a key of RULES, or ""."""
    if not isinstance(content, Value):
        return ""
    return "declared" if content.is_shown else "lower" if content.standing == "lower" else ""


def inline(text: Text) -> str:
    """Spans with their look; data and our own words are escaped alike."""
    parts = []
    for span in text:
        shown = keep_ends(span.text, escape)
        if not span.data:  # our own words have no ligatures to break up
            shown = re.sub(r"\{([-,!?])\}", r"\1", shown)
        for applies, command in ((span.code, "texttt"), (span.emphasis, "emph"), (span.strong, "textbf")):
            shown = f"\\{command}{{{shown}}}" if applies else shown
        parts.append(shown)
    return "".join(parts)


def cell(content: Cell) -> str:
    match content:
        case None:
            return "--"
        case Value():
            return _value(content)
        case Interval():
            return _interval(content)
        case tuple():
            return inline(content)
        case _:
            return escape(content)


def _value(value: Value) -> str:
    shown = _math(value.text, r"\leq " if value.is_bound else "")
    if value.standing in ("best", "highest"):
        shown = f"\\textbf{{{value.text}}}".replace("{-", "{$-$")
    shown += DAGGER if _mark(value) else ""
    shown += "" if math.isnan(value.sd) else f" {{\\scriptsize$\\pm$ {value.write(value.sd)}}}"
    return f"{shown} {_interval(value.interval)}" if value.interval else shown


def _interval(interval: Interval) -> str:
    low, high = (_math(FORMS[interval.form](end)) for end in (interval.low, interval.high))
    return f"[{low}, {high}]"


def _math(text: str, relation: str = "") -> str:
    """A number as mathematics, its thousands apart and large ones as powers of ten."""
    if text in ("-", ""):
        return "--"
    if text == UNKNOWN:
        return text
    if match := re.fullmatch(r"([\d.]+)e\+?(\d+)", text):
        return f"${relation}{float(match[1]):.2f}\\cdot 10^{{{int(match[2])}}}$"
    return f"${relation}{text.replace(',', '{,}')}$"


def _line(cells: Sequence[str], shapes: Sequence[str]) -> str:
    """A row of a table. Text in lines of its own is not stretched to their width; after it LaTeX has another command for a row's end."""
    shown = [rf"\raggedright {text}" if shape.startswith("p") else text for text, shape in zip(cells, shapes, strict=True)]
    return f"{' & '.join(shown)} {AFTER_LINES if shapes[-1].startswith('p') else END}"
