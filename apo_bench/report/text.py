"""Text of a report: spans that every renderer escapes in its own way.

A span marked `data` comes from a run: no renderer ever takes it for markup.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Span:
    """A piece of text that looks the same throughout."""

    text: str
    strong: bool = False
    emphasis: bool = False
    code: bool = False
    data: bool = False
    link: str = ""  # a file beside the report; markdown follows .md, the page .html


Text = tuple[Span, ...]
MARKS = {"**": "strong", "*": "emphasis", "`": "code"}
_TOKEN = re.compile(r"\*\*|\*|`|\{(\w+)\}")


def say(template: str, /, **values: object) -> Text:
    """The text of a template with **strong**, *emphasised* and `code` parts; {names} are filled with texts, or with data that stay data."""
    spans: list[Span] = []
    look, start = Span(""), 0
    for token in _TOKEN.finditer(template):
        if token.start() > start:
            spans.append(replace(look, text=template[start : token.start()]))
        if name := token[1]:
            value = values[name]
            parts = value if isinstance(value, tuple) else (Span(str(value), data=True),)
            spans += [replace(span, **{key: getattr(look, key) or getattr(span, key) for key in MARKS.values()}) for span in parts]
        else:
            key = MARKS[token[0]]
            look = replace(look, **{key: not getattr(look, key)})
        start = token.end()
    return (*spans, replace(look, text=template[start:])) if start < len(template) else tuple(spans)


def keep_ends(text: str, write: Callable[[str], str]) -> str:
    """`write(text)`, with a blank kept where the text begins or ends in white space."""
    return f"{' ' * text[:1].isspace()}{write(text)}{' ' * (text[-1:].isspace() and bool(text.strip()))}"


def join(texts: Iterable[Text], between: str = " ") -> Text:
    """Texts one after another."""
    spans: list[Span] = []
    for text in texts:
        spans += [Span(between)] if spans and text else []
        spans += text
    return tuple(spans)


def names(values: Iterable[object], between: str = ", ") -> Text:
    """Names from a run, listed."""
    return join(((Span(str(value), data=True),) for value in values), between)
