"""The verdict in a judge's answer, or none where it is not stated exactly once."""

import string

from apo_bench.judging.judge_protocol import Choice

LABELS = ("A", "B")  # of the first and the second response, in the templates of `prompts/`
CHOICES: dict[str, Choice] = {"a": "first", "b": "second", "tie": "tie"}
DECORATION = string.whitespace + "\u00a0*_`\"'\u2018\u2019\u201c\u201d.,:;!()[]{}<>#-"  # no question mark: "A?" is a doubt


def parse_answer(answer: str, reasoned: bool) -> Choice | None:
    """The verdict in an answer, or None where there is not exactly one.

    Without reasoning the whole answer is A, B or tie, optionally after "Verdict:"; with it, the last line is "Verdict:" and one of them,
    and no other line has another verdict. Case, white space, and quotes, brackets, full stops and markdown around a word do not matter:
    **A**, [[A]], `Verdict: "b".` are read.
    """
    if not reasoned:
        head, verdict = _stated(answer)
        return verdict if head in ("", "verdict") else None
    lines = [_stated(line) for line in answer.splitlines() if line.strip(DECORATION)]
    verdicts: set[Choice | None] = {verdict for head, verdict in lines if head == "verdict"}
    return verdicts.pop() if len(verdicts) == 1 and lines[-1][0] == "verdict" else None


def _stated(text: str) -> tuple[str, Choice | None]:
    """The text before the last colon, in lower case and without decoration, and the choice after it."""
    head, _, tail = text.strip(DECORATION).rpartition(":")
    return head.strip(DECORATION).casefold(), CHOICES.get(tail.strip(DECORATION).casefold())
