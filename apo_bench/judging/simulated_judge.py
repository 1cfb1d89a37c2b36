"""A judge with chosen faults on a known ground truth, to test offline what is computed from verdicts."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from annotated_types import Ge, Le

from apo_bench.errors import InputError
from apo_bench.hashing import code_hash
from apo_bench.judging.judge_protocol import UNPARSABLE, GroundTruth, Judge, JudgeContext, Question, Verdict

DIGITS = 9  # a difference is rounded to these: equal sums in another order differ below them
NO_TRUTH = "no ground truth"
NO_VERDICT = "Both have their merits."


@dataclass(frozen=True)
class SimulatedJudge:
    """Bradley-Terry on the ground truth, with ties as in Rao and Kupper (1967) and with chosen faults.

    With d the ground truth of the first response less that of the second, and lean = position_bias + length_bias * (words of the
    first - words of the second),

        P(first)  = sigmoid((d - tie_margin) / noise + lean)
        P(second) = sigmoid((-d - tie_margin) / noise - lean)

    and the rest is a tie. `tie_margin` and `noise` are in units of the ground truth, the biases in log-odds. Without noise the judge
    is right whatever its biases, and gives a tie where |d| <= tie_margin. A share `failure_rate` of the calls is answered without a
    verdict. A verdict depends only on the seed, the question and the attempt; the two orders are independent.
    """

    noise: Annotated[float, Ge(0)] = 0.0
    position_bias: float = 0.0
    length_bias: float = 0.0
    tie_margin: Annotated[float, Ge(0)] = 0.0
    failure_rate: Annotated[float, Ge(0), Le(1)] = 0.0
    seed: int = 0

    def open(self, context: JudgeContext) -> Judge:
        """Raises InputError where the task has no ground truth."""
        if context.ground_truth is None:
            raise InputError(f"SimulatedJudge: the task has no ground truth to judge by (its axes: {', '.join(context.axes) or 'none'})")
        return OpenSimulatedJudge(self, context.ground_truth, context.ground_truth_id)

    def chances(self, difference: float, words: int) -> tuple[float, float]:
        """P(first) and P(second), given the difference in ground truth and in words."""
        over, under = difference - self.tie_margin, -difference - self.tie_margin
        if self.noise == 0:
            return float(over > 0), float(under > 0)
        lean = self.position_bias + self.length_bias * words
        return _sigmoid(over / self.noise + lean), _sigmoid(under / self.noise - lean)


@dataclass(frozen=True)
class OpenSimulatedJudge(Judge):
    spec: SimulatedJudge
    truth: GroundTruth
    truth_id: str

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"kind": "simulated", **asdict(self.spec), "truth": self.truth_id, "code": code_hash(__name__)}

    def verdicts(self, questions: Sequence[Question], attempt: int = 0, spent_usd: float = 0.0) -> Iterator[tuple[Question, Verdict]]:
        for question in questions:
            yield question, self._verdict(question, attempt)

    def _verdict(self, question: Question, attempt: int) -> Verdict:
        draw = random.Random(f"{self.spec.seed} {attempt} {question.id}")
        fails, place = draw.random() < self.spec.failure_rate, draw.random()
        if fails:
            return Verdict(None, UNPARSABLE, text=NO_VERDICT)
        truths = [self.truth(question.prompt, text) for text in (question.first, question.second)]
        difference = round(truths[0] - truths[1], DIGITS)
        if math.isnan(difference):
            return Verdict(None, NO_TRUTH)
        first, second = self.spec.chances(difference, len(question.first.split()) - len(question.second.split()))
        probability = (1 + first - second) / 2  # half of a tie goes to each
        if place < first:
            return Verdict("first", text="A", probability=probability)
        if place < 1 - second:
            return Verdict("tie", text="tie", probability=probability)
        return Verdict("second", text="B", probability=probability)


def _sigmoid(x: float) -> float:
    return (1 + math.tanh(x / 2)) / 2
