"""Text from outside with nothing hidden in it: what would steer a terminal or turn a line around is shown by name."""

import re

# What is shown by name: control characters but for tab and newline, soft hyphens, marks that turn the direction of text, what has no
# width, line separators, halves of surrogate pairs, non-characters and tags. Joiners stay, which scripts need and which can do nothing.
_HIDDEN = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\ufffe\uffff"
    "\U000e0000-\U000e007f]"
)


def visible(text: object) -> str:
    """Text in which nothing is hidden: control pictures for ASCII's control characters, ⟨U+202E⟩ for others. Tabs and newlines stay."""
    return _HIDDEN.sub(_named, str(text))


def one_line(text: object) -> str:
    """Visible text as one line: white space of any kind is one blank, so that a message cannot add lines of its own."""
    return visible(" ".join(str(text).split()))


def _named(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else f"\u27e8U+{code:04X}\u27e9"
