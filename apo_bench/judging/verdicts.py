"""A question to a judge, its verdict, and what the verdicts in both orders make of a comparison. Standard library only."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from apo_bench.types import Prompt, identity

Choice = Literal["first", "tie", "second"]
Order = Literal["ab", "ba"]  # whose response is shown first
ORDERS: tuple[Order, Order] = ("ab", "ba")
IDENTICAL = "identical responses"
VALUES: Mapping[tuple[Order, Choice], float] = {
    ("ab", "first"): 1.0, ("ab", "tie"): 0.5, ("ab", "second"): 0.0,
    ("ba", "first"): 0.0, ("ba", "tie"): 0.5, ("ba", "second"): 1.0,
}  # fmt: skip

# Why a verdict is missing, where more than one judge can say so.
UNPARSABLE = "unparsable"  # there is an answer, and no verdict in it


@dataclass(frozen=True)
class Question:
    """Two responses to one prompt in the order in which they are shown."""

    prompt: Prompt
    first: str
    second: str

    @property
    def id(self) -> str:
        """Content identity: equal questions are asked once."""
        return identity(self.prompt.id, self.first, self.second)


@dataclass(frozen=True)
class Verdict:
    """What a judge said of one question: a choice, or why there is none.

    `choice` None: missing, and `failure` says why. `answered` tells the two kinds of failure apart: the judge did answer, without a
    verdict (it is asked once more, and then that is final), or nobody answered (the next run asks again). `text` is the judge's raw
    answer, `probability` the chance it gives to the first response where it gives one. `calls`, tokens and `cost_usd` add up over all
    that was answered, `lost_usd` is the most that answers lost on the way may have cost; `latency_s` is the last answer's.
    """

    choice: Choice | None
    failure: str = ""
    answered: bool = True
    text: str = ""
    probability: float = math.nan
    calls: int = 1
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    lost_usd: float = 0.0
    latency_s: float = math.nan

    def __post_init__(self) -> None:
        if (self.choice is None) != bool(self.failure):
            raise ValueError(f"a verdict is a choice or a failure, got {self.choice!r} and {self.failure!r}")


@dataclass(frozen=True)
class ResponsePair:
    """Two arms' responses to one prompt. `round`: "3", or "3/1" where they are of unlike rounds; lengths are in tokens."""

    arm_a: str
    arm_b: str
    seed_a: int
    seed_b: int
    round: str
    prompt: Prompt
    a: str
    b: str
    length_a: float
    length_b: float


class Judge(Protocol):
    """Says which of two responses to a prompt is better. An opened judge: it has its model, its client or its truth.

    A class that names this protocol as its base has `compare` from it.
    """

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything that can change a verdict, JSON-ready: model, template hash, sampling settings, code. No keys, no paths."""
        ...

    def compare(self, prompt: Prompt, first: str, second: str) -> Verdict:
        """The verdict on one question. Never raises for what a judge may do; that is a failure in the verdict."""
        [(_, verdict)] = self.verdicts([Question(prompt, first, second)])
        return verdict

    def verdicts(self, questions: Sequence[Question], attempt: int = 0, spent_usd: float = 0.0) -> Iterator[tuple[Question, Verdict]]:
        """A verdict on each of many questions, in whatever order they come in.

        `attempt` 1 asks again after an answer without a verdict. `spent_usd` is what was spent on this judge before: a cost limit
        counts it.
        """
        ...


class JudgeSpec(Protocol):
    """What an experiment's `judges` names: a frozen dataclass whose fields are the judge's parameters."""

    def open(self, at: "JudgeContext") -> Judge: ...


class Scorer(Protocol):
    """Scores of (prompt, response) items by one of the run's gold reward models."""

    def __call__(self, gold: str, items: Sequence[tuple[Prompt, str]], /) -> Sequence[float]: ...


class Truth(Protocol):
    def __call__(self, prompt: Prompt, response: str, /) -> float: ...


@dataclass(frozen=True)
class JudgeContext:
    """What a judge may need of the place where it is asked. None: not there (an audit on outside data has no ground truth).

    `base` is the folder that paths are relative to, `axes` the task's. `truth_id` and the values of `golds` name what `ground_truth` and
    the gold models that `gold` knows were made of: a judge that uses them has them in its identity.
    """

    base: str | None = None
    axes: tuple[str, ...] = ()
    ground_truth: Truth | None = None
    truth_id: str = ""
    gold: Scorer | None = None
    golds: Mapping[str, str] = field(default_factory=dict)


def value_of(order: Order, choice: Choice | None) -> float:
    """A verdict coded for arm_a: 1 where it wins, 1/2 a tie, 0 where it loses; NaN where the verdict is missing."""
    return math.nan if choice is None else VALUES[order, choice]


def comparison(ab: Choice | None, ba: Choice | None) -> float:
    """The mean of both orders for arm_a, in {0, 1/4, 1/2, 3/4, 1}; NaN unless both have a verdict."""
    return (value_of("ab", ab) + value_of("ba", ba)) / 2


def both_orders(prompt: Prompt, a: str, b: str) -> tuple[Question, Question]:
    """The question as "ab" and as "ba"."""
    return Question(prompt, a, b), Question(prompt, b, a)
