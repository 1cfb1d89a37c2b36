"""Conversations written as one text, each turn after "Human:" or "Assistant:", as HH has them."""

import re
from collections.abc import Iterable

Turns = tuple[tuple[str, str], ...]
"""(role, content), role user or assistant."""

ROLES = {"Human": "user", "Assistant": "assistant"}
MARKER = re.compile(r"\n\n(Human|Assistant):")
LAST_ANSWER = "\n\nAssistant:"
SPEAKER = re.compile(r"(?:\A|\n)[ \t]*(Human|Assistant):")  # at the beginning of a line, also where it begins no turn
OPEN_ANSWER = re.compile(r"(?:\A|\n)\s*Assistant:\s*\Z")
LAST_HUMAN_TURN = re.compile(r"\n\s*\n[ \t]*Human:")
NO_SHARED_PROMPT = "pairs whose sides do not share a prompt dropped"
TURN_INSIDE = "pairs with a speaker's turn inside an answer dropped"
NO_HUMAN = "pairs without a human's first or last turn dropped"


def is_transcript(text: str) -> bool:
    """Whether a text begins with a speaker's turn."""
    return MARKER.match("\n\n" + text.strip()) is not None


def split_sides(chosen: str, rejected: str) -> tuple[str | None, str | None, str | None]:
    """Prompt, chosen and rejected answer of two transcripts. The prompt is None where they differ before their last answer, an answer where
    a speaker's turn stands inside.

    Raises ValueError, "chosen" or "rejected", for a side without an assistant's turn.
    """
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if LAST_ANSWER not in side:
            raise ValueError(name)
    (head, _, first), (other, _, second) = chosen.rpartition(LAST_ANSWER), rejected.rpartition(LAST_ANSWER)
    return head if head.split() == other.split() else None, answer("", first), answer("", second)


def answer(prompt: str, side: str) -> str | None:
    """The answer in a side, stripped: without the prompt, should it be repeated, and the turn in which the human goes on; None where it
    holds another speaker's turn, which a policy would learn to write, or nothing but what was taken off.
    """
    text = without(prompt, side).strip().removeprefix(LAST_ANSWER.strip()).strip()
    if (turn := LAST_HUMAN_TURN.search(text)) and "Assistant" not in SPEAKER.findall(text[turn.end() :]):
        text = text[: turn.start()].strip()
    return None if SPEAKER.search(text) or (side.strip() and not text) else text


def without(prompt: str, side: str) -> str:
    """A side without the prompt at its beginning, whatever their white space."""
    place = 0
    for letter in (letter for letter in prompt if not letter.isspace()):
        while place < len(side) and side[place].isspace():
            place += 1
        if place == len(side) or side[place] != letter:
            return side
        place += 1
    return side[place:]


def turns_of(text: str) -> Turns:
    """A transcript's turns, stripped; a speaker's consecutive turns are one, since chat templates want them to alternate.

    Raises ValueError for a text that begins with no turn.
    """
    before, *parts = MARKER.split("\n\n" + text.strip())
    if before.strip() or not parts:
        raise ValueError("a transcript that begins with 'Human:' is needed")
    return joined((ROLES[name], part) for name, part in zip(parts[::2], parts[1::2], strict=True))


def written(turns: Iterable[tuple[str, str]]) -> str:
    """Turns as a transcript that waits for an answer."""
    names = {role: name for name, role in ROLES.items()}
    return "".join(f"\n\n{names[role]}: {text}" for role, text in turns) + LAST_ANSWER


def joined(turns: Iterable[tuple[str, str]]) -> Turns:
    """The turns, stripped, a speaker's consecutive ones with an empty line between them as one."""
    alternating: list[tuple[str, str]] = []
    for role, text in turns:
        if alternating and alternating[-1][0] == role:
            alternating[-1] = role, f"{alternating[-1][1]}\n\n{text.strip()}".strip()
        else:
            alternating.append((role, text.strip()))
    return tuple(alternating)
