"""Verdicts, their coding for arm_a, and what both orders make of a comparison."""

import math
from itertools import product

import pytest

from apo_bench.judging.judge_protocol import Question, Verdict, both_orders, mean_of_orders, value_of
from apo_bench.types import Message, Prompt

PROMPT = Prompt("p", (Message("user", "why?"),), "helpful", "c")


@pytest.mark.parametrize(
    ("order", "choice", "value"),
    [("ab", "first", 1), ("ab", "tie", 0.5), ("ab", "second", 0), ("ba", "first", 0), ("ba", "tie", 0.5), ("ba", "second", 1)],
)
def test_a_verdict_is_coded_for_arm_a(order, choice, value):
    """Shown as "ab", arm_a's response is the first; as "ba" it is the second."""
    assert value_of(order, choice) == value


def test_a_comparison_is_the_mean_of_both_orders():
    """a wins both: 1; wins one and ties: 3/4; first wins both times (position): 1/2; loses and ties: 1/4; loses both: 0."""
    assert mean_of_orders("first", "second") == 1
    assert mean_of_orders("first", "tie") == 0.75
    assert mean_of_orders("first", "first") == mean_of_orders("tie", "tie") == mean_of_orders("second", "second") == 0.5
    assert mean_of_orders("tie", "first") == 0.25
    assert mean_of_orders("second", "first") == 0


def test_a_comparison_is_missing_unless_both_orders_have_a_verdict():
    choices = ("first", "tie", "second", None)
    for ab, ba in product(choices, choices):
        assert math.isnan(mean_of_orders(ab, ba)) == (ab is None or ba is None)


def test_a_verdict_is_a_choice_or_a_failure():
    for choice, failure in ((None, ""), ("first", "timed out")):
        with pytest.raises(ValueError, match="a choice or a failure"):
            Verdict(choice, failure)


def test_both_orders_are_two_questions():
    ab, ba = both_orders(PROMPT, "yes", "no")
    assert (ab.first, ab.second, ba.first, ba.second) == ("yes", "no", "no", "yes")
    assert ab.id != ba.id
    assert ab.id == Question(PROMPT, "yes", "no").id
