"""Questions about texts of others: by which criterion, and the texts fenced by a code that none of them holds, so none can close it."""

from collections.abc import Iterable, Mapping
from itertools import count

from apo_bench.types import Prompt, identity

CRITERIA = {"helpful": "helpfulness", "harmless": "harmlessness"}  # by axis; any other axis is judged on overall quality
SYSTEM, USER = "=== system ===\n", "\n=== user ===\n"  # the parts of a template's file


def parts_of(text: str) -> tuple[str, str]:
    """The system and the user part of a template's file."""
    system, _, user = text.removeprefix(SYSTEM).partition(USER)
    return system.strip(), user.strip()


def fenced_messages(system: str, user: str, prompt: Prompt, texts: Mapping[str, str]) -> list[dict[str, str]]:
    """The system and the user message, each a role and its content. `user` is a format of fence, conversation and the keys of `texts`.

    The system message is the same for every question, so that a server can cache its prefix.
    """
    turns = [(message.role, message.content) for message in prompt.messages]
    fence = fence_of([*(content for _, content in turns), *texts.values()])
    conversation = "\n".join(f"<{role} {fence}>\n{content}\n</{role} {fence}>" for role, content in turns)
    # One pass: inserted text is not formatted again.
    content = user.format(fence=fence, conversation=conversation, **texts)
    return [{"role": "system", "content": system}, {"role": "user", "content": content}]


def fence_of(texts: Iterable[str]) -> str:
    """Eight hex digits that occur in none of the texts, whatever the case; the same for the same texts in any order."""
    ordered = sorted(texts)
    codes = (identity(str(number), *ordered)[:8] for number in count())
    return next(code for code in codes if not any(code in text.casefold() for text in ordered))
