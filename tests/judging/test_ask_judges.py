"""Each question once, one more chance for an answer without a verdict, and nothing asked again that was answered."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from apo_bench.clients.journal import Journal, spent_usd
from apo_bench.judging.ask_judges import ask
from apo_bench.judging.judge_protocol import IDENTICAL, UNPARSABLE, Question, Verdict
from apo_bench.types import Message, Prompt

PROMPT = Prompt("p", (Message("user", "why?"),), "helpful", "c")
GOOD, BAD, DOWN = "good", "bad", "down"  # what happens to a question's calls, one after the other


@dataclass
class Scripted:
    """A judge that prefers the longer response, where its script lets it: `script` says what becomes of each call to a question."""

    script: Mapping[str, Sequence[str]] = field(default_factory=dict)
    stop_after: float = math.inf  # then it dies
    name: str = "scripted"
    requests: list[tuple[str, int]] = field(default_factory=list)
    spent: list[float] = field(default_factory=list)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"name": self.name}

    def verdicts(self, questions: Sequence[Question], attempt: int = 0, spent_usd: float = 0.0) -> Iterator[tuple[Question, Verdict]]:
        self.spent.append(spent_usd)
        for question in questions:
            if len(self.requests) >= self.stop_after:
                raise KeyboardInterrupt
            calls = sum(first == question.first for first, _ in self.requests)
            self.requests.append((question.first, attempt))
            fate = [*self.script.get(question.first, ()), *[GOOD] * 9][calls]
            if fate == DOWN:
                yield question, Verdict(None, "timed out", answered=False, calls=0)
            elif fate == BAD:
                yield question, Verdict(None, UNPARSABLE, text="well", prompt_tokens=5, completion_tokens=1, cost_usd=0.5)
            else:
                choice = "first" if len(question.first) > len(question.second) else "second"
                yield question, Verdict(choice, text="A", prompt_tokens=7, completion_tokens=2, cost_usd=0.25)

    def compare(self, prompt: Prompt, first: str, second: str) -> Verdict:
        return next(self.verdicts([Question(prompt, first, second)]))[1]


def questions(*firsts: str) -> list[Question]:
    return [Question(PROMPT, first, "xx") for first in firsts]


def put(judge: Scripted, batch: Sequence[Question], path: Path) -> list[Verdict]:
    with Journal(path).open() as journal:
        verdicts = ask(judge, batch, journal)
    return [verdicts[question.id] for question in batch]


def test_equal_questions_are_asked_once(tmp_path):
    judge = Scripted()
    assert [verdict.choice for verdict in put(judge, questions("a", "aaa", "a"), tmp_path / "j")] == ["second", "first", "second"]
    assert [first for first, _ in judge.requests] == ["a", "aaa"]


def test_identical_responses_are_a_tie_without_a_call(tmp_path):
    judge = Scripted()
    (verdict,) = put(judge, questions("xx"), tmp_path / "j")
    assert (verdict.choice, verdict.text, verdict.calls, judge.requests) == ("tie", IDENTICAL, 0, [])


def test_an_answer_without_a_verdict_is_asked_for_once_more(tmp_path):
    """0.5 for the first answer and 0.25 for the second; tokens 5 + 7 and 1 + 2."""
    judge = Scripted({"a": [BAD, GOOD]})
    (verdict,) = put(judge, questions("a"), tmp_path / "j")
    assert (verdict.choice, verdict.calls, verdict.cost_usd) == ("second", 2, 0.75)
    assert (verdict.prompt_tokens, verdict.completion_tokens) == (12, 3)
    assert judge.requests == [("a", 0), ("a", 1)]


def test_the_second_answer_without_a_verdict_is_final(tmp_path):
    judge = Scripted({"a": [BAD, BAD, GOOD]})
    for _ in range(2):
        (verdict,) = put(judge, questions("a"), tmp_path / "j")
        assert (verdict.choice, verdict.failure, verdict.calls, verdict.cost_usd) == (None, UNPARSABLE, 2, 1.0)
    assert judge.requests == [("a", 0), ("a", 1)]


def test_what_nobody_answered_is_asked_again_next_time(tmp_path):
    judge = Scripted({"a": [DOWN, GOOD]})
    first, second = (put(judge, questions("a", "aaa"), tmp_path / "j") for _ in range(2))
    assert [verdict.choice for verdict in first] == [None, "first"]
    assert (first[0].failure, first[0].answered) == ("timed out", False)
    assert [verdict.choice for verdict in second] == ["second", "first"]
    assert [first for first, _ in judge.requests] == ["a", "aaa", "a"]


def test_a_retry_that_nobody_answers_is_made_next_time_and_costs_are_kept(tmp_path):
    judge = Scripted({"a": [BAD, DOWN, GOOD]})
    first, second = (put(judge, questions("a"), tmp_path / "j")[0] for _ in range(2))
    assert (first.choice, first.failure, first.answered, first.cost_usd) == (None, "timed out", False, 0.5)
    assert (second.choice, second.calls, second.cost_usd) == ("second", 2, 0.75)
    assert judge.requests == [("a", 0), ("a", 1), ("a", 1)]


def test_a_crash_loses_no_answer(tmp_path):
    """Killed at its third call, then run again: two answers are there, and the other two are asked for."""
    judge, batch = Scripted(stop_after=2), questions("a", "aa", "aaa", "aaaa")
    with pytest.raises(KeyboardInterrupt):
        put(judge, batch, tmp_path / "j")
    again = Scripted()
    assert [verdict.choice for verdict in put(again, batch, tmp_path / "j")] == ["second", "second", "first", "first"]
    assert [first for first, _ in again.requests] == ["aaa", "aaaa"]


def test_a_judge_is_told_what_was_spent_and_another_judge_has_its_own_answers(tmp_path):
    """Two answers of 0.25 are spent when the second judge, whose identity differs, is asked the same."""
    judge, other = Scripted(), Scripted(name="other")
    put(judge, questions("a", "aaa"), tmp_path / "j")
    put(other, questions("a", "aaa"), tmp_path / "j")
    assert (judge.spent, other.spent) == ([0.0], [0.5])
    assert len(other.requests) == 2
    assert spent_usd(Journal(tmp_path / "j")) == 1.0
    assert {tuple(record["identity"].items()) for record in Journal(tmp_path / "j").records.values() if "identity" in record} == {
        (("name", "scripted"),),
        (("name", "other"),),
    }


def test_what_another_version_wrote_is_asked_again(tmp_path):
    """A record without `final`, and one with a field that no verdict has."""
    put(Scripted(), questions("a", "aaa"), tmp_path / "j")
    with Journal(tmp_path / "j").open() as journal:
        first, second = (key for key, record in journal.records.items() if "choice" in record)
        journal.add(first, {"choice": "first"})
        journal.add(second, {**{k: v for k, v in journal.records[second].items() if k != "key"}, "mood": "good"})
    again = Scripted()
    assert [verdict.choice for verdict in put(again, questions("a", "aaa"), tmp_path / "j")] == ["second", "first"]
    assert len(again.requests) == 2


def test_progress_counts_what_is_asked(tmp_path):
    progress: list[tuple[int, int]] = []
    with Journal(tmp_path / "j").open() as journal:
        ask(Scripted({"a": [BAD]}), questions("a", "xx", "aaa"), journal, lambda done, of: progress.append((done, of)))
    assert progress == [(1, 2), (2, 2)]
