"""The verdict in a judge's answer, or none where it is not stated exactly once."""

import json
import re
import string

from apo_bench.judging.judge_protocol import Choice

LABELS = ("A", "B")  # of the first and the second response, in the templates of `prompts/`
CHOICES: dict[str, Choice] = {"a": "first", "b": "second", "tie": "tie"}
DECORATION = string.whitespace + "\u00a0*_`\"'\u2018\u2019\u201c\u201d.,:;!()[]{}<>#-"  # no question mark: "A?" is a doubt
VERDICT_KEYS = {  # of JSON, without regard to case and underscores
    "verdict", "finalverdict", "winner", "answer", "choice", "preference", "preferred", "better", "betterresponse", "result", "judgment",
    "judgement",
}  # fmt: skip
_NOUN = re.compile(r"(?:response|answer|option|assistant|output|choice)\s+(?=[ab]$)")
_RELATION = re.compile(r"([ab])\s*(>{1,2}|<{1,2}|={1,2})\s*([ab])")
_MARK = re.compile(r"\[\[([^\[\]]*)\]\]")
_FENCED = re.compile(r"\s*```\w*\s*(\{.*\})\s*```\s*", re.DOTALL)


def parse_answer(answer: str, reasoned: bool) -> Choice | None:
    """The verdict in an answer, or None where there is not exactly one.

    Without reasoning the whole answer is a verdict, optionally after "Verdict:"; with it, the last line is "Verdict:" and a verdict, and
    no other line has another. A verdict is A, B or tie, Response A, or A>B, A=B and their like; case, white space, and quotes, brackets,
    full stops and markdown around it do not matter. In place of all that the whole answer may be a JSON object whose verdict, winner or
    the like is one; or its last line has one in double brackets, [[A]], and nothing else is a verdict.
    """
    stated = _of_json(answer)
    if stated is not None:
        return stated.pop() if len(stated) == 1 else None
    lines = [_stated(line) for line in answer.splitlines() if line.strip(DECORATION)]
    verdicts: set[Choice | None] = {verdict for head, verdict in lines if head == "verdict"}
    marks: set[Choice | None] = {choice_of(mark) for mark in _MARK.findall(answer)}
    # A line that is A or B alone may be a heading, A>B alone is a verdict.
    relations: set[Choice | None] = {
        choice_of(line) for line in answer.splitlines() if _RELATION.fullmatch(line.strip(DECORATION).casefold())
    }
    if not reasoned:
        head, verdict = _stated(answer)
        if head in ("", "verdict") and verdict:
            return verdict
    elif len(verdicts | relations) == 1 and lines[-1][0] == "verdict":
        return verdicts.pop()
    is_last = bool(_MARK.search(answer.rstrip().rpartition("\n")[2]))
    return marks.pop() if is_last and len(marks) == 1 and not (verdicts | relations) - marks else None


def choice_of(text: str) -> Choice | None:
    """The choice that a text is, without decoration."""
    word = _NOUN.sub("", text.strip(DECORATION).casefold())
    if (relation := _RELATION.fullmatch(word)) and relation[1] != relation[3]:
        larger = {">": relation[1], "<": relation[3], "=": "tie"}[relation[2][0]]
        return CHOICES[larger]
    return CHOICES.get(word)


def _stated(text: str) -> tuple[str, Choice | None]:
    """The text before the last colon, in lower case and without decoration, and the choice after it."""
    head, _, tail = text.strip(DECORATION).rpartition(":")
    return head.strip(DECORATION).casefold(), choice_of(tail)


def _of_json(answer: str) -> set[Choice | None] | None:
    """What the keys that hold a verdict hold, each as often as it is there; None where the answer is no JSON object."""
    fenced = _FENCED.fullmatch(answer)
    try:
        pairs = json.loads(fenced[1] if fenced else answer, object_pairs_hook=tuple)  # a key may be given twice
    except (ValueError, RecursionError):
        return None
    if not isinstance(pairs, tuple):
        return None
    stated = [inner for key, inner in pairs if key.casefold().replace("_", "").replace(" ", "") in VERDICT_KEYS]
    return {choice_of(inner) if isinstance(inner, str) else None for inner in stated}
