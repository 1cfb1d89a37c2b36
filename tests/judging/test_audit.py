"""The audit of judges whose behaviour is known, by hand and against scikit-learn and statsmodels."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import t
from sklearn.metrics import cohen_kappa_score

from apo_bench.clients.journal import Journal
from apo_bench.judging.attacks import ATTACKS, DEMAND
from apo_bench.judging.audit import COLUMNS, Audit, audit
from apo_bench.judging.audit_report import markdown, sentences, uninformative
from apo_bench.judging.human_preferences import Label, Labelled, LabelledPair, read_labelled
from apo_bench.judging.judge_protocol import Choice, JudgeContext, Question, Verdict
from apo_bench.judging.simulated_judge import SimulatedJudge
from apo_bench.stats import share_interval, wilson
from apo_bench.types import Message, Prompt, identity

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the data are not beside the project (../shared/data)")


@dataclass
class RuleJudge:
    """A judge that follows a rule, a choice or the reason of a failure, and counts what it is asked."""

    rule: Callable[[Question], str]
    answers: bool = True
    questions: list[Question] = field(default_factory=list)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"judge": "rule"}

    def compare(self, prompt: Prompt, first: str, second: str) -> Verdict:
        question = Question(prompt, first, second)
        self.questions.append(question)
        outcome = self.rule(question)
        usage: dict[str, Any] = {"prompt_tokens": 10, "completion_tokens": 1, "cost_usd": 0.01, "latency_s": 0.5}
        if outcome in ("first", "tie", "second"):
            return Verdict(outcome, **usage)
        return Verdict(None, outcome, **usage) if self.answers else Verdict(None, outcome, answered=False, calls=0)

    def verdicts(self, questions: Sequence[Question], attempt: int = 0, spent_usd: float = 0.0) -> Iterator[tuple[Question, Verdict]]:
        for question in questions:
            yield question, self.compare(question.prompt, question.first, question.second)


def pair(place: int, label: Label, a: str = "", b: str = "", axis: str = "helpful", cluster: str = "") -> LabelledPair:
    """A pair of its own cluster; without texts, the better response holds "good" and the other "bad"."""
    better = {"a": ("good", "bad"), "b": ("bad", "good"), "tie": ("fair", "so so")}[label]
    prompt = Prompt(f"{axis}.{place}", (Message("user", f"{place}?"),), axis, cluster or f"c{place}")
    return LabelledPair(prompt, a or f"{better[0]} {place}", b or f"{better[1]} {place}", label)


def place_of(question: Question) -> int:
    return int(question.prompt.id.split(".")[1])


def world(n: int, axis: str = "helpful") -> Labelled:
    """n pairs, every other one labelled a."""
    return Labelled("made", tuple(pair(place, "ab"[place % 2], axis=axis) for place in range(n)), {})  # pyright: ignore


def perfect(question: Question) -> Choice:
    return "first" if "good" in question.first else "second"


def wrong(question: Question) -> Choice:
    return "second" if "good" in question.first else "first"


def coin(question: Question) -> Choice:
    return "first" if int(question.id, 16) % 2 else "second"


def longer(question: Question) -> Choice:
    """Counts words."""
    difference = len(question.first.split()) - len(question.second.split())
    return "first" if difference > 0 else "second" if difference < 0 else "tie"


def run(folder: Path, rule: Callable[[Question], str], labelled: Labelled, **options: Any) -> Audit:
    with Journal(folder / f"{identity(rule.__name__, labelled.name)}.jsonl").open() as journal:
        return audit(RuleJudge(rule), labelled, journal, **options)


def line(rows: pd.DataFrame, metric: str, axis: str = "all") -> tuple[float, ...]:
    """value, ci_low, ci_high, n, n_missing."""
    return tuple(rows[(rows["axis"] == axis) & (rows["metric"] == metric)].iloc[0, 2:])


def test_a_perfect_judge(tmp_path: Path):
    """All 20 right in both orders: Wilson's interval of 20 in 20. Kappa is 1, its interval up to there."""
    rows = run(tmp_path, perfect, world(20)).rows
    for metric in ("accuracy", "consistency"):
        assert line(rows, metric) == pytest.approx((1, *wilson(20, 20), 20, 0))
    kappa, low, high, *counts = line(rows, "kappa")
    assert (kappa, high, counts) == (1, 1, [20, 0])
    assert 0.5 < low < 0.7
    assert line(rows, "first_position_rate")[0] == 0.5
    for name in ATTACKS:
        assert line(rows, f"attack_{name}") == pytest.approx((0, *wilson(0, 20), 20, 0))
    assert [uninformative(rows, axis) for axis in ("helpful", "all")] == ["", ""]
    assert list(rows.columns) == COLUMNS
    assert set(rows["axis"]) == {"helpful", "all"}


def test_a_judge_that_always_says_first(tmp_path: Path):
    """Every comparison is (1 + 0) / 2: half right, never consistent, always first. It has no pair right, so only `empty` has a victim."""
    rows = run(tmp_path, lambda question: "first", world(20)).rows
    assert line(rows, "accuracy") == pytest.approx((0.5, math.nan, math.nan, 20, 0), nan_ok=True)
    assert line(rows, "consistency") == pytest.approx((0, *wilson(0, 20), 20, 0))
    assert line(rows, "first_position_rate") == pytest.approx((1, *wilson(20, 20), 20, 0))
    assert line(rows, "ties") == pytest.approx((1, *wilson(20, 20), 20, 0))
    assert line(rows, "kappa")[0] == 0
    assert [line(rows, f"attack_{name}")[3] for name in ATTACKS] == [20 if name == "empty" else 0 for name in ATTACKS]
    assert line(rows, "attack_empty")[0] == 0
    assert uninformative(rows, "helpful") == "uninformative judge on helpful: no accuracy interval"


def test_by_hand(tmp_path: Path):
    """Five pairs of their own clusters (verdicts as ab/ba, values coded for a):

    1: label a, longer,  first/second:  value 1, right 1
    2: label b, shorter, first/first:   value 1/2, right 1/2, inconsistent, first position 1
    3: label b, longer,  tie/first:     (1/2 + 0) / 2 = 1/4, right 1, inconsistent, first position 3/4
    4: a tie,            tie/tie:       value 1/2
    5: label a, shorter, second/failed: missing

    accuracy 2.5 / 3; squared deviations 1/36 + 4/36 + 1/36 = 1/6; variance 3/2 * 1/6 / 9 = 1/36; t(.975; 2) = 4.302653.
    Labels a b b tie against a tie b tie: po = 3/4, pe = 1/4 * 1/4 + 1/2 * 1/4 + 1/4 * 1/2 = 5/16, kappa = 7/16 / (11/16) = 7/11.
    Ten questions, one asked twice: 11 calls.
    """
    verdicts = [("first", "second"), ("first", "first"), ("tie", "first"), ("tie", "tie"), ("second", "mumbled")]
    texts = [("a b c", "d"), ("a b", "c"), ("a", "b c"), ("a", "b"), ("a", "b c")]
    labels: list[Label] = ["a", "b", "b", "tie", "a"]
    pairs = [pair(place, label, *both) for place, (label, both) in enumerate(zip(labels, texts, strict=True))]

    def rule(question: Question) -> str:
        place = place_of(question)
        return verdicts[place][question.first != pairs[place].a]

    result = run(tmp_path, rule, Labelled("hand", tuple(pairs), {"unread": 2}), attacks={})
    rows = result.rows
    assert line(rows, "accuracy") == pytest.approx((5 / 6, *share_interval(5 / 6, 1 / 36, 3, 4.302653), 3, 1))
    assert line(rows, "kappa")[0] == pytest.approx(7 / 11)
    assert line(rows, "kappa")[3:] == (4, 1)
    expected = {
        "consistency": (2 / 4, 4, 1), "first_position_rate": (2.75 / 4, 4, 1), "accuracy_shorter": (0.5, 1, 1),
        "accuracy_longer": (1, 2, 0), "length_bias": (0.5, 3, 1), "ties": (2 / 4, 4, 1), "human_ties": (1 / 5, 5, 0),
        "missing": (1 / 5, 5, 0), "failed: mumbled": (1 / 10, 10, 0),
    }  # fmt: skip
    for metric, (value, n, n_missing) in expected.items():
        assert (line(rows, metric)[0], *line(rows, metric)[3:]) == pytest.approx((value, n, n_missing)), metric
    assert set(rows["metric"]) == {"accuracy", "kappa", *expected}
    assert result.comparisons["value"].tolist() == pytest.approx([1, 0.5, 0.25, 0.5, math.nan], nan_ok=True)
    assert result.comparisons["right"].tolist() == pytest.approx([1, 0.5, 1, math.nan, math.nan], nan_ok=True)
    cost = result.cost
    assert (cost.calls, cost.prompt_tokens, cost.completion_tokens, cost.latency_s) == (11, 110, 11, 0.5)
    assert cost.cost_usd == pytest.approx(0.11)
    assert (result.left_out, result.unanswered, result.judge) == ({"unread": 2}, {}, {"judge": "rule"})


def test_a_coin(tmp_path: Path):
    """A coin's interval includes chance. What it had right by luck it loses to any change with chance 3/4: that is what control shows."""
    rows = run(tmp_path, coin, world(400)).rows
    assert "includes chance" in uninformative(rows, "all")
    for metric, truth in (("accuracy", 0.5), ("consistency", 0.5), ("first_position_rate", 0.5), ("attack_control", 0.75)):
        value, low, high, *_ = line(rows, metric)
        assert low < truth < high, (metric, value)


def test_a_judge_that_is_surely_wrong_is_uninformative(tmp_path: Path):
    rows = run(tmp_path, wrong, world(40)).rows
    assert uninformative(rows, "all") == "uninformative judge on helpful: accuracy 0.000 (0.000 to 0.088) is below chance"


def test_a_judge_that_obeys_is_caught(tmp_path: Path):
    """Right on every pair, until a response demands to win."""

    def obedient(question: Question) -> Choice:
        return "first" if DEMAND in question.first else "second" if DEMAND in question.second else perfect(question)

    result = run(tmp_path, obedient, world(20))
    assert {name: line(result.rows, f"attack_{name}")[0] for name in ATTACKS} == {name: float(name == "instruction") for name in ATTACKS}
    assert "instruction 1.000, verdict 0.000" in sentences(result.rows, "all")[-1]
    planted = result.comparisons[result.comparisons["attack"] == "instruction"]
    assert planted["value"].tolist() == [0.0 if label == "a" else 1.0 for label in planted["label"]]


def test_a_judge_that_counts_words_is_caught(tmp_path: Path):
    """Its accuracy is 1 where the better answer is the longer and 0 where it is the shorter. It falls for what makes text longer."""
    texts = {"a": ("long good answer", "bad"), "b": ("long bad answer", "good")}
    pairs = tuple(pair(place, label, *texts[label]) for place, label in enumerate(["a", "b"] * 10))  # pyright: ignore
    rows = run(tmp_path, longer, Labelled("words", pairs, {})).rows
    assert line(rows, "accuracy_longer")[0] == 1
    assert line(rows, "accuracy_shorter")[0] == 0
    assert line(rows, "length_bias") == pytest.approx((1, math.nan, math.nan, 20, 0), nan_ok=True)
    assert "It favours the longer response: 1.000 (-) in accuracy." in sentences(rows, "all")
    assert {name: line(rows, f"attack_{name}")[0] for name in ("repeated", "empty", "control")} == {"repeated": 1, "empty": 0, "control": 0}


def test_a_judge_that_likes_nothing_best_is_caught(tmp_path: Path):
    """An empty response needs no pair that was right before."""
    rows = run(tmp_path, lambda question: "first" if len(question.first) < len(question.second) else "second", world(20)).rows
    assert line(rows, "accuracy")[0] == 0  # "bad 1" is shorter than "good 1"
    assert line(rows, "attack_empty") == pytest.approx((1, *wilson(20, 20), 20, 0))


def test_failures_are_missing_and_told_apart(tmp_path: Path):
    """Of 40 pairs, one in four is refused in order "ab" alone: 10 comparisons, 10 of 80 questions, and their attacks are not made."""

    def refusing(question: Question) -> str:
        place = place_of(question)
        return "refused" if place % 4 == 0 and "good" in question.first else perfect(question)

    rows = run(tmp_path, refusing, world(40)).rows
    assert line(rows, "missing")[0] == 10 / 40
    assert line(rows, "failed: refused")[0] == 10 / 80
    assert line(rows, "accuracy")[3:] == (30, 10)
    assert line(rows, "attack_instruction")[3:] == (30, 0)
    assert line(rows, "attack_empty")[3:] == (30, 10)
    assert uninformative(rows, "all") == ""


def test_what_nobody_answered_is_asked_again(tmp_path: Path):
    """With the first judge down for b's questions: their reason counts them, and the second audit asks for them and the attacks only."""
    labelled = world(10)
    with Journal(tmp_path / "journal.jsonl").open() as journal:
        down = RuleJudge(lambda question: "no route" if place_of(question) % 2 else perfect(question), answers=False)
        first = audit(down, labelled, journal, attacks={})
        assert (first.unanswered, first.cost.calls) == ({"no route": 10}, 10)
        up = RuleJudge(perfect)
        second = audit(up, labelled, journal, attacks={"empty": ATTACKS["empty"]})
        assert Counter(place_of(question) % 2 for question in up.questions) == {0: 10, 1: 20}
        assert (second.unanswered, second.cost.calls) == ({}, 40)
        again = RuleJudge(perfect)
        third = audit(again, labelled, journal, attacks={"empty": ATTACKS["empty"]})
    assert again.questions == []
    pd.testing.assert_frame_equal(third.rows, second.rows)
    assert third.cost == second.cost


def test_length_bias_against_statsmodels(tmp_path: Path):
    """A regression of right on "the better is the longer" has the same slope, and its cluster-robust variance, times G / (G - 1), the same
    interval with t of G - 1 degrees of freedom."""
    generator = np.random.default_rng(3)
    pairs = []
    for place in range(120):
        label: Label = "a" if generator.random() < 0.5 else "b"
        better, worse = f"good {place}" + " word" * int(generator.integers(0, 4)), f"bad {place} two"
        texts = (better, worse) if label == "a" else (worse, better)
        pairs.append(pair(place, label, *texts, cluster=f"c{place // 3}"))

    def unsure(question: Question) -> Choice:
        luck = int(question.id, 16) % 100
        return perfect(question) if luck < 55 else longer(question)

    result = run(tmp_path, unsure, Labelled("lengths", tuple(pairs), {}), attacks={})
    known = result.comparisons[result.comparisons["words_a"] != result.comparisons["words_b"]]
    is_longer = (known["words_a"] > known["words_b"]) == (known["label"] == "a")
    fit = sm.OLS(known["right"].to_numpy(), sm.add_constant(is_longer.to_numpy(float))).fit(
        cov_type="cluster", cov_kwds={"groups": pd.factorize(known["cluster_id"])[0], "use_correction": False}
    )
    n_clusters = known["cluster_id"].nunique()
    half = float(t.ppf(0.975, n_clusters - 1)) * fit.bse[1] * math.sqrt(n_clusters / (n_clusters - 1))
    slope = fit.params[1]
    assert line(result.rows, "length_bias") == pytest.approx((slope, slope - half, slope + half, len(known), 0))


def test_a_simulated_judge_is_found_out(tmp_path: Path):
    """Truth 1 for the good response and 0 for the bad, noise 1, position bias 1/2. The good one wins with p = sigmoid(1 + 1/2) where it is
    first and q = sigmoid(1 - 1/2) where it is second, so accuracy is (p + q) / 2 = .720, consistency p q + (1 - p)(1 - q) = .578, the
    first position wins (p + 1 - q) / 2 = .598. A question fails twice with .1^2, so 1 - .99^2 of the comparisons are missing."""
    p, q = 1 / (1 + math.exp(-1.5)), 1 / (1 + math.exp(-0.5))
    spec = SimulatedJudge(noise=1, position_bias=0.5, failure_rate=0.1)
    judge = spec.open(JudgeContext(ground_truth=lambda prompt, text: float("good" in text)))
    with Journal(tmp_path / "journal.jsonl").open() as journal:
        rows = audit(judge, world(1000), journal, attacks={}, confidence=0.999).rows
    expected = {
        "accuracy": (p + q) / 2, "consistency": p * q + (1 - p) * (1 - q), "first_position_rate": (p + 1 - q) / 2, "missing": 1 - 0.99**2,
    }  # fmt: skip
    for metric, truth in expected.items():
        value, low, high, *_ = line(rows, metric)
        assert low < truth < high, (metric, value)
    assert line(rows, "first_position_rate")[1] > 0.5
    assert uninformative(rows, "all") == ""


VERDICTS = st.sampled_from(["first", "tie", "second", "mumbled"])
CASES = st.lists(st.tuples(st.sampled_from(["a", "tie", "b"]), VERDICTS, VERDICTS), min_size=1, max_size=12)


@pytest.mark.slow
@given(CASES)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_does_not_matter_which_response_is_called_a(tmp_path: Path, cases: list[tuple[Label, str, str]]):
    """The same questions and the same people, with a and b exchanged: the same audit."""
    pairs = [pair(place, label, "x" * place + "a", "b") for place, (label, _, _) in enumerate(cases)]
    other: Mapping[Label, Label] = {"a": "b", "b": "a", "tie": "tie"}
    mirrored = [LabelledPair(original.prompt, original.b, original.a, other[original.label]) for original in pairs]

    def rule(question: Question) -> str:
        place = place_of(question)
        return cases[place][1 if question.first == pairs[place].a else 2]

    (tmp_path / f"{identity(rule.__name__, 'x')}.jsonl").unlink(missing_ok=True)
    rows, mirrored_rows = (run(tmp_path, rule, Labelled("x", tuple(these), {}), attacks={}).rows for these in (pairs, mirrored))
    pd.testing.assert_frame_equal(rows, mirrored_rows)
    counted = rows[~rows["metric"].str.startswith("failed")]
    assert (counted["n"] + counted["n_missing"] <= len(cases)).all()
    assert isinstance(uninformative(rows, "all"), str)


GOOD = {"accuracy": (0.7, 0.6, 0.8), "kappa": (0.4, 0.2, 0.6), "consistency": (0.8, 0.7, 0.9)}


def rows_of_an_audit(**axes: dict[str, tuple[float, float, float]]) -> pd.DataFrame:
    return pd.DataFrame(
        [(axis, metric, *numbers, 100, 0) for axis, changes in axes.items() for metric, numbers in {**GOOD, **changes}.items()],
        columns=COLUMNS,
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"accuracy": (0.7, math.nan, math.nan)}, "no accuracy interval"),
        ({"accuracy": (0.6, 0.5, 0.7)}, "accuracy 0.600 (0.500 to 0.700) includes chance"),
        ({"accuracy": (0.3, 0.2, 0.4)}, "accuracy 0.300 (0.200 to 0.400) is below chance"),
        ({"kappa": (0.1, -0.1, 0.3)}, "kappa 0.100 (-0.100 to 0.300) includes 0"),
        ({"kappa": (0.0, math.nan, math.nan)}, "kappa 0.000 (-) includes 0"),
        ({"kappa": (math.nan, math.nan, math.nan)}, "kappa - (-) includes 0"),
        ({"kappa": (1.0, math.nan, math.nan)}, ""),
        ({"consistency": (0.6, 0.5, 0.7)}, "consistency 0.600 (0.500 to 0.700) includes what two coins agree on"),
        ({"consistency": (0.3, 0.2, 0.4)}, "consistency 0.300 (0.200 to 0.400) includes what two coins agree on"),
    ],
)
def test_when_a_judge_is_uninformative(changes: dict[str, tuple[float, float, float]], reason: str):
    """Also on all axes together, which need every single one, whatever the pooled numbers say."""
    full = reason and f"uninformative judge on harmless: {reason}"
    rows = rows_of_an_audit(harmless=changes, helpful={}, all={})
    assert [uninformative(rows, axis) for axis in ("harmless", "helpful", "all")] == [full, "", full]


def test_an_axis_that_was_not_audited_is_uninformative():
    assert uninformative(rows_of_an_audit(helpful={}), "harmless") == "uninformative judge on harmless: no accuracy interval"
    assert uninformative(pd.DataFrame(columns=COLUMNS), "all") == "uninformative judge on all: no accuracy interval"


def test_right_but_never_sure_of_it(tmp_path: Path):
    """A tie where the good response is first, and the good one where it is second: 3/4 each, all right, and no order agrees."""
    rows = run(tmp_path, lambda question: "tie" if "good" in question.first else "second", world(30)).rows
    assert line(rows, "accuracy")[0] == 1
    assert uninformative(rows, "all").startswith("uninformative judge on helpful: consistency 0.000")


def test_axes_apart_and_together(tmp_path: Path):
    """Perfect on helpful, wrong on harmless: all is half right, and no judge to be used on both."""
    labelled = Labelled("two", world(20).pairs + world(20, "harmless").pairs, {})
    rows = run(tmp_path, lambda question: perfect(question) if question.prompt.axis == "helpful" else wrong(question), labelled).rows
    assert [line(rows, "accuracy", axis)[0] for axis in ("helpful", "harmless", "all")] == [1, 0, 0.5]
    assert uninformative(rows, "helpful") == ""
    assert "on harmless" in uninformative(rows, "harmless")
    assert uninformative(rows, "all") == uninformative(rows, "harmless")


def test_in_words(tmp_path: Path):
    result = run(tmp_path, lambda question: "first", Labelled("a|b", world(20).pairs, {"unread": 3}), attacks={})
    expected = [
        "helpful: uninformative judge on helpful: no accuracy interval. It sides with people in 0.500 (-) of 20 comparisons, and both "
        "orders agree in 0.000 (0.000 to 0.161).",
        "It favours the response shown first: first wins 1.000 (0.839 to 1.000).",
    ]
    assert sentences(result.rows, "helpful") == expected
    lines = markdown(result)
    assert lines[0] == f"- {' '.join(expected)}"
    assert "| axis | metric | value | 95 % interval | n | missing |" in lines
    assert "| helpful | consistency | 0.000 | 0.000 to 0.161 | 20 | 0 |" in lines
    assert lines[-3:] == [
        "Data: a\\|b, 20 labelled pairs in both orders; left out: unread 3.",
        "Cost: 40 calls, 400 prompt and 40 completion tokens, 0.4000 USD, median latency 0.500 s.",
        'Judge: `{"judge": "rule"}`',
    ]


@needs_data
def test_counting_words_on_hh(tmp_path: Path):
    """Against counts from the lines themselves. People chose the longer more often for helpfulness, less often for harmlessness: counting
    words is informative there, surely wrong here, and so of no use for both; and what is repeated ten times mostly wins."""
    files = {axis: DATA / "hh" / f"hh_{axis}_base_test.jsonl" for axis in ("helpful", "harmless")}
    labelled = Labelled("HH", tuple(example for path in files.values() for example in read_labelled(path, 600).pairs), {})
    rows = run(tmp_path, longer, labelled, attacks={"repeated": ATTACKS["repeated"]}).rows
    for axis in files:
        better = [
            (example.a, example.b) if example.label == "a" else (example.b, example.a)
            for example in labelled.pairs
            if example.prompt.axis == axis
        ]
        difference = np.array([len(good.split()) - len(bad.split()) for good, bad in better])
        assert line(rows, "accuracy", axis)[0] == pytest.approx(float((1 + np.sign(difference)).mean() / 2))
        won = [10 * len(bad.split()) >= len(good.split()) for good, bad in better if len(good.split()) > len(bad.split())]
        assert line(rows, "attack_repeated", axis)[0] == pytest.approx(np.mean(won))
        assert line(rows, "accuracy_longer", axis)[0] == line(rows, "consistency", axis)[0] == 1
    assert uninformative(rows, "helpful") == ""
    assert "is below chance" in uninformative(rows, "harmless")
    assert uninformative(rows, "all") == uninformative(rows, "harmless")


@needs_data
def test_gpt_on_pandalm(tmp_path: Path):
    """GPT-3.5's recorded verdicts, of one order only, given in whichever order is asked: accuracy and kappa are those of the recorded
    order, as scikit-learn computes them; consistency says nothing. Items whose texts occur once, so that each has one verdict."""
    humans, verdicts = (
        json.loads((DATA / "judging" / "pandalm" / name).read_text(encoding="utf-8"))
        for name in ("testset-v1.json", "gpt-3.5-turbo-testset-v1.json")
    )

    def texts(item: dict[str, Any]) -> tuple[str, str, str]:
        return "\n\n".join(filter(None, (item["instruction"], item["input"]))), item["response1"], item["response2"]

    times = Counter(frozenset(texts(item)) for item in humans)
    spelled: Mapping[str, str] = {"1": "first", "2": "second", "Tie": "tie"}
    kept = [
        (item, spelled.get(verdict["gpt_result"], "no verdict"))
        for item, verdict in zip(humans, verdicts, strict=True)
        if times[frozenset(texts(item))] == 1 and True not in texts(item)
    ]
    path = tmp_path / "once.json"
    path.write_text(json.dumps([item for item, _ in kept]), encoding="utf-8")
    recorded = {texts(item): verdict for item, verdict in kept}
    other = {"first": "second", "second": "first"}

    def gpt(question: Question) -> str:
        instruction = question.prompt.messages[0].content
        verdict = recorded.get((instruction, question.first, question.second))
        return verdict or other.get(again := recorded[instruction, question.second, question.first], again)

    rows = run(tmp_path, gpt, read_labelled(path), attacks={}).rows
    majority = [Counter(item[f"annotator{i}"] for i in (1, 2, 3)).most_common(1)[0][0] for item, _ in kept]
    number = {"tie": 0, "first": 1, "second": 2}
    known = [(human, number[verdict]) for human, (_, verdict) in zip(majority, kept, strict=True) if verdict in number]
    assert line(rows, "kappa")[0] == pytest.approx(float(cohen_kappa_score(*zip(*known, strict=True))), abs=1e-12)
    assert line(rows, "kappa")[3:] == (len(known), len(kept) - len(known))
    right = [1.0 if human == verdict else 0.5 if verdict == 0 else 0.0 for human, verdict in known if human]
    assert line(rows, "accuracy")[:1] + line(rows, "accuracy")[3:4] == pytest.approx((np.mean(right), len(right)))
    assert line(rows, "missing")[0] == pytest.approx(1 - len(known) / len(kept))
    assert uninformative(rows, "overall") == ""
