"""The simulated judge: its verdicts against the truth and its rates against formulas."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tiny_world import tiny_task

from apo_bench.clients.journal import Journal
from apo_bench.errors import InputError
from apo_bench.judging.ask_judges import ask
from apo_bench.judging.judge_protocol import UNPARSABLE, JudgeContext, Question, Verdict, both_orders
from apo_bench.judging.simulated_judge import NO_TRUTH, NO_VERDICT, SimulatedJudge
from apo_bench.types import Message, Prompt

N = 4000


def truth(prompt: Prompt, response: str) -> float:
    """A response's first word is what it is worth."""
    return float(response.split()[0])


def prompt(number: int) -> Prompt:
    return Prompt(f"p{number}", (Message("user", f"request {number}"),), "helpful", f"c{number}")


def verdicts_on(judge: SimulatedJudge, first: str, second: str, n: int = N) -> list[Verdict]:
    """Verdicts on n prompts with the same two responses."""
    opened = judge.open(JudgeContext(ground_truth=truth))
    return [verdict for _, verdict in opened.verdicts([Question(prompt(number), first, second) for number in range(n)])]


def share(verdicts: Sequence[Verdict], holds: Callable[[Verdict], bool]) -> float:
    return sum(map(holds, verdicts)) / len(verdicts)


def within(expected: float, n: int = N) -> object:
    """Four binomial standard errors, 1 in 16,000 outside."""
    return pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / n) + 1e-12)


def test_without_faults_it_says_the_truth() -> None:
    """On all human pairs of a world, in both orders, against the ground truth itself; and on no answer against a friendly word, both worth
    nothing."""
    task = tiny_task()
    known = task.ground_truth
    assert known is not None

    def real(prompt: Prompt, response: str) -> float:
        return known(prompt, response)

    judge = SimulatedJudge().open(JudgeContext(ground_truth=real, axes=task.axes))
    choices = set()
    for pair in [pair for pairs in task.pairs.values() for pair in pairs]:
        for question in (*both_orders(pair.prompt, pair.chosen, pair.rejected), Question(pair.prompt, "", "happily")):
            difference = real(pair.prompt, question.first) - real(pair.prompt, question.second)
            right = "tie" if abs(difference) < 1e-9 else "first" if difference > 0 else "second"
            verdict = judge.compare(question.prompt, question.first, question.second)
            assert verdict.choice == right
            assert verdict.probability == {"first": 1.0, "tie": 0.5, "second": 0.0}[right]
            choices.add(right)
    assert choices == {"first", "tie", "second"}


def test_without_noise_no_bias_moves_it() -> None:
    judge = SimulatedJudge(position_bias=9, length_bias=-9)
    assert share(verdicts_on(judge, "0.1", "0.2 and much longer", 50), lambda verdict: verdict.choice == "second") == 1


@pytest.mark.parametrize(
    ("judge", "first", "second", "p_first", "p_tie"),
    [
        (SimulatedJudge(noise=0.5), "1", "0.5", 0.731059, 0),  # sigmoid(0.5 / 0.5)
        (SimulatedJudge(noise=0.5), "0.5", "1", 0.268941, 0),
        (SimulatedJudge(noise=0.5, position_bias=0.8), "1", "1", 0.689974, 0),  # sigmoid(0.8)
        (SimulatedJudge(noise=0.5, length_bias=0.2), "1 two three four", "1", 0.645656, 0),  # sigmoid(3 x 0.2)
        (SimulatedJudge(noise=0.5, length_bias=0.2), "1", "1 two three four", 0.354344, 0),
        # (0.5 / 0.5) - 0.4 - 2 x 0.3 = 0
        (SimulatedJudge(noise=0.5, position_bias=-0.4, length_bias=0.3), "1", "0.5 two three", 0.5, 0),
        # sigmoid((0.2 - 0.1) / 0.2) = 0.622459, sigmoid((-0.2 - 0.1) / 0.2) = 0.182426, and the rest
        (SimulatedJudge(noise=0.2, tie_margin=0.1), "0.4", "0.2", 0.622459, 0.195115),
        (SimulatedJudge(tie_margin=0.1), "0.3", "0.2", 0, 1),  # 0.1 in decimals, if not in binary
        (SimulatedJudge(tie_margin=0.1), "0.31", "0.2", 1, 0),
    ],
)
def test_rates_are_those_of_the_formula(judge: SimulatedJudge, first: str, second: str, p_first: float, p_tie: float) -> None:
    """The logistic values are derived beside each case."""
    verdicts = verdicts_on(judge, first, second)
    assert share(verdicts, lambda verdict: verdict.choice == "first") == within(p_first)
    assert share(verdicts, lambda verdict: verdict.choice == "tie") == within(p_tie)
    assert verdicts[0].probability == pytest.approx(p_first + p_tie / 2, abs=1e-6)


def test_consistency_and_first_position_rates() -> None:
    """d / noise = 1, position bias 0.5. Shown first, a wins with p = sigmoid(1.5) = 0.817574; b shown first wins with
    q = sigmoid(-1 + 0.5) = 0.377541. Both orders agree with p (1 - q) + (1 - p) q = 0.577784; the first is chosen with
    (p + q) / 2 = 0.597558."""
    judge = SimulatedJudge(noise=1, position_bias=0.5)
    ab, ba = verdicts_on(judge, "1", "0"), verdicts_on(judge, "0", "1")
    agree = sum(verdict.choice != swapped.choice for verdict, swapped in zip(ab, ba, strict=True)) / N
    assert agree == within(0.577784)
    assert share([*ab, *ba], lambda verdict: verdict.choice == "first") == within(0.597558, 2 * N)


def test_failures_are_answers_without_a_verdict_and_a_retry_squares_their_rate(tmp_path: Path) -> None:
    """Rate 0.3: after one retry 0.09 are missing; calls: 1 + 0.3 each. All are answers, so nothing is asked a third time."""
    judge = SimulatedJudge(noise=0.5, failure_rate=0.3)
    once = verdicts_on(judge, "1", "0")
    assert share(once, lambda verdict: verdict.choice is None) == within(0.3)
    failure = next(verdict for verdict in once if verdict.choice is None)
    assert (failure.failure, failure.answered, failure.text) == (UNPARSABLE, True, NO_VERDICT)

    opened = judge.open(JudgeContext(ground_truth=truth))
    questions = [Question(prompt(number), "1", "0") for number in range(N)]
    with Journal(tmp_path / "journal.jsonl").open() as journal:
        verdicts = list(ask(opened, questions, journal).values())
        assert share(verdicts, lambda verdict: verdict.choice is None) == within(0.09)
        assert sum(verdict.calls - 1 for verdict in verdicts) / N == within(0.3)


def test_neither_order_nor_company_nor_a_resumption_matters() -> None:
    judge = SimulatedJudge(noise=1, position_bias=0.3, failure_rate=0.2, seed=7)
    opened = judge.open(JudgeContext(ground_truth=truth))
    questions = [Question(prompt(number), "1", "0.5") for number in range(60)]
    together = dict(opened.verdicts(questions))
    assert dict(opened.verdicts(questions[::-1])) == together
    assert {question: opened.compare(question.prompt, question.first, question.second) for question in questions} == together
    assert dict(
        SimulatedJudge(noise=1, position_bias=0.3, failure_rate=0.2, seed=7).open(JudgeContext(ground_truth=truth)).verdicts(questions)
    ) == (together)
    other_seed = SimulatedJudge(noise=1, position_bias=0.3, failure_rate=0.2, seed=8).open(JudgeContext(ground_truth=truth))
    assert dict(other_seed.verdicts(questions)) != together
    assert dict(opened.verdicts(questions, attempt=1)) != together


def test_a_question_without_truth_is_missing() -> None:
    [verdict] = verdicts_on(SimulatedJudge(), "nan", "1", n=1)
    assert (verdict.choice, verdict.failure) == (None, NO_TRUTH)


def test_a_task_without_ground_truth_is_refused() -> None:
    with pytest.raises(InputError, match=r"^SimulatedJudge: the task has no ground truth .*helpful, harmless"):
        SimulatedJudge().open(JudgeContext(axes=("helpful", "harmless")))


def test_the_identity_tells_all_parameters() -> None:
    at = JudgeContext(ground_truth=truth)
    identity = SimulatedJudge(noise=0.5).open(at).identity
    assert json.loads(json.dumps(identity)) == identity
    others = [SimulatedJudge(), SimulatedJudge(noise=0.5, seed=1), SimulatedJudge(noise=0.5, tie_margin=0.1)]
    assert all(other.open(at).identity != identity for other in others)
