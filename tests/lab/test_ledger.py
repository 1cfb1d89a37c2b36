"""Ledgers: stocks are counted once, flows add up, and a known amount is refused before it is spent."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apo_bench.errors import BudgetExceeded
from apo_bench.lab.ledger import STOCKS, UNITS, Ledger

FLOWS = [unit for unit in UNITS if unit not in STOCKS]


def test_a_refused_amount_charges_nothing_and_names_arm_unit_asked_left():
    ledger = Ledger("rjs", {"sampled_responses": 10})
    ledger.charge({"sampled_responses": 8})
    with pytest.raises(BudgetExceeded, match=r"arm rjs, unit sampled_responses: needs 3, has 2 left"):
        ledger.admit(sampled_responses=3)
    assert ledger.used["sampled_responses"] == 8
    ledger.admit(sampled_responses=2)


def test_the_error_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(BudgetExceeded("rjs", "flops", 3.0, 1.0)))
    assert str(error) == "budget exceeded: arm rjs, unit flops: needs 3, has 1 left"


def test_a_stock_counts_distinct_items_and_takes_none_when_it_would_overflow():
    ledger = Ledger("apo", {"human_pairs": 3})
    ledger.see("human_pairs", ["a", "b"])
    ledger.see("human_pairs", ["b", "a"])
    assert ledger.used["human_pairs"] == 2
    with pytest.raises(BudgetExceeded):
        ledger.see("human_pairs", ["c", "d"])
    assert ledger.used["human_pairs"] == 2
    ledger.see("human_pairs", ["a", "c"])


def test_an_amount_unknown_beforehand_is_settled_at_the_next_verb():
    ledger = Ledger("rjs", {"sampled_tokens": 100})
    ledger.charge({"sampled_tokens": 101})
    with pytest.raises(BudgetExceeded, match="sampled_tokens"):
        ledger.settle()


@pytest.mark.slow
@given(st.lists(st.dictionaries(st.sampled_from(FLOWS), st.integers(0, 10**6)), max_size=20))
def test_flows_are_sums_in_any_order(charges: list[dict[str, int]]):
    forwards, backwards = Ledger("a", {}), Ledger("a", {})
    for charge in charges:
        forwards.charge(charge)
    for charge in reversed(charges):
        backwards.charge(charge)
    expected = {unit: sum(charge.get(unit, 0) for charge in charges) for unit in FLOWS}
    assert {unit: forwards.used[unit] for unit in FLOWS} == expected
    assert forwards.used == backwards.used


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=5)), st.integers(0, 8))
def test_a_stock_never_exceeds_its_budget(batches: list[list[str]], budget: int):
    ledger, taken = Ledger("a", {"golden_responses": budget}), set()
    for batch in batches:
        try:
            ledger.see("golden_responses", batch)
            taken |= set(batch)
        except BudgetExceeded:
            assert len(taken | set(batch)) > budget
    assert ledger.used["golden_responses"] == len(taken) <= budget
