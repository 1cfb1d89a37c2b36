"""What a newcomer meets first: short sentences, and words that the glossary has."""

import re
from pathlib import Path

import pytest
from pages import DOCS, ROOT

FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^ {4,}.*$", re.MULTILINE)
LINK = re.compile(r"!?\[((?:[^\[\]]|\[[^\]]*\])*)\]\([^()\s]+\)")
ENTRY = re.compile(r"^\| \*\*`?([^*`]+)`?\*\* \| (.+?) \| (.+?) \|$", re.MULTILINE)
GLOSSARY = ENTRY.findall((DOCS / "glossary.md").read_text(encoding="utf-8"))


def sentences(text: str) -> list[str]:
    """A page's prose, cut at full stops, colons before a list, table cells and paragraphs; code is left out and a link is its text."""
    prose = LINK.sub(r"\1", CODE.sub("", FENCED.sub("", text)))
    blocks = re.split(r"\n\s*\n|\n(?=[-#>|])|\|", prose)
    return [part.strip() for block in blocks for part in re.split(r"(?<=[.!?:;])[*)]*\s", block) if re.search(r"\w", part)]


def test_sentences_are_cut_where_they_end() -> None:
    assert sentences("One two. Three?\nFour: five\n\n- Six [seven](eight.md)\n\n    code here\n") == [
        "One two.",
        "Three?",
        "Four:",
        "five",
        "- Six seven",
    ]


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "index.md", DOCS / "glossary.md"], ids=lambda page: page.name)
def test_no_sentence_has_more_than_twenty_five_words(page: Path) -> None:
    long = [sentence for sentence in sentences(page.read_text(encoding="utf-8")) if len(re.findall(r"[\w'./-]*\w", sentence)) > 25]
    assert not long


def test_the_glossary_is_in_order_and_defines_each_word_once() -> None:
    words = [word.casefold().lstrip("`") for word, _, _ in GLOSSARY]
    assert words == sorted(set(words))
    assert all(LINK.search(more) for _, _, more in GLOSSARY)


def test_words_that_concepts_explains_are_in_the_glossary() -> None:
    """Bold words of docs/concepts.md, in singular: what that page defines."""
    bold = {word.casefold() for word in re.findall(r"(?<!\w)\*\*([a-z][^*]*)\*\*", (DOCS / "concepts.md").read_text(encoding="utf-8"))}
    known = {part.strip() for word, _, _ in GLOSSARY for part in word.casefold().split(",")}
    known |= {f"{word}s" for word in known} | {word.removesuffix(" reward model") for word in known}
    assert not bold - known - {"in this run", "alone", "paired by seed"}


def test_readme_and_first_page_lead_to_the_glossary() -> None:
    assert "(docs/glossary.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "(glossary.md)" in (DOCS / "index.md").read_text(encoding="utf-8")
