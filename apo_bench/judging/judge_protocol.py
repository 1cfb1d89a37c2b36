"""Questions to judges, their verdicts, and the value of a comparison in both orders. Standard library only."""

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

UNPARSABLE = "unparsable"  # the failure of an answer without a verdict in it


@dataclass(frozen=True)
class Question:
    """Two responses to one prompt in the order in which they are shown."""

    prompt: Prompt
    first: str
    second: str

    @property
    def id(self) -> str:
        """Content hash: equal questions are asked once."""
        return identity(self.prompt.id, self.first, self.second)


@dataclass(frozen=True)
class Verdict:
    """A judge's answer to one question: a choice, or the reason why there is none.

    `choice` is None where the verdict is missing; `failure` then gives the reason. `answered` distinguishes two kinds of failure: the
    judge answered without a verdict (it is asked once more, and the second answer is final), or nobody answered (the next run asks
    again). `text` is the answer, `probability` the judge's probability for the first response where it gives one. `calls`, tokens
    and `cost_usd` are sums over all answers, `lost_usd` bounds the cost of answers that were lost in transit; `latency_s` is the last
    answer's. `rejected`: nobody answered, since the judge's server would not take this question, with its words in `text`; that is final
    where the judge has ever answered another.
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
    rejected: bool = False

    def __post_init__(self) -> None:
        if (self.choice is None) != bool(self.failure):
            raise ValueError(f"a verdict is a choice or a failure, got {self.choice!r} and {self.failure!r}")


@dataclass(frozen=True)
class ResponsePair:
    """Two arms' responses to one prompt. `round` is "3", or "3/1" where the arms' rounds differ; lengths are in tokens."""

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
    """Decides which of two responses to a prompt is better. It is open: it has its model, its client or its ground truth.

    A class that names this protocol as its base inherits `compare`.
    """

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything that can change a verdict, JSON-ready: model, template hash, sampling settings, code. No API keys, no paths."""
        ...

    def compare(self, prompt: Prompt, first: str, second: str) -> Verdict:
        """The verdict on one question. A judge's failure is part of the verdict, and never raised."""
        [(_, verdict)] = self.verdicts([Question(prompt, first, second)])
        return verdict

    def verdicts(self, questions: Sequence[Question], attempt: int = 0, spent_usd: float = 0.0) -> Iterator[tuple[Question, Verdict]]:
        """A verdict on each question, in the order in which answers arrive.

        `attempt` 1 asks again after an answer without a verdict. `spent_usd` was spent on this judge before, and counts towards a cost
        limit.
        """
        ...


class JudgeSpec(Protocol):
    """A judge as an experiment's `judges` names it: a frozen dataclass whose fields are the judge's parameters."""

    def open(self, context: "JudgeContext") -> Judge: ...


class GoldScorer(Protocol):
    """Scores of (prompt, response) items by one of the run's gold reward models."""

    def __call__(self, gold: str, items: Sequence[tuple[Prompt, str]], /) -> Sequence[float]: ...


class GroundTruth(Protocol):
    """A task's own score of a response."""

    def __call__(self, prompt: Prompt, response: str, /) -> float: ...


@dataclass(frozen=True)
class JudgeContext:
    """What a judge may use of a run or an audit. None where there is none: outside data have no ground truth.

    `base` is the folder that paths are relative to, `axes` are the task's. `ground_truth_id` and the values of `gold_ids` hash what
    `ground_truth` and the gold models of `gold_scorer` were made from: a judge that uses them puts them into its identity.
    """

    base: str | None = None
    axes: tuple[str, ...] = ()
    ground_truth: GroundTruth | None = None
    ground_truth_id: str = ""
    gold_scorer: GoldScorer | None = None
    gold_ids: Mapping[str, str] = field(default_factory=dict)


def value_of(order: Order, choice: Choice | None) -> float:
    """A verdict as a value for arm_a: 1 a win, 1/2 a tie, 0 a loss; NaN without a verdict."""
    return math.nan if choice is None else VALUES[order, choice]


def mean_of_orders(ab: Choice | None, ba: Choice | None) -> float:
    """The mean value of both orders for arm_a, in {0, 1/4, 1/2, 3/4, 1}; NaN unless both have a verdict."""
    return (value_of("ab", ab) + value_of("ba", ba)) / 2


def both_orders(prompt: Prompt, a: str, b: str) -> tuple[Question, Question]:
    """The question in the orders "ab" and "ba"."""
    return Question(prompt, a, b), Question(prompt, b, a)
