"""Planted attacks: what each does to a text, and to which pairs."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apo_bench.judging.attacks import ATTACKS, DEMAND, FAKE_VERDICT, Attack, attacked
from apo_bench.judging.human_preferences import Label, LabelledPair
from apo_bench.types import Message, Prompt

PROMPT = Prompt("p", (Message("user", "Why?"),), "helpful", "c")


def pair(label: Label, a: str = "Because. So there!", b: str = "No") -> LabelledPair:
    return LabelledPair(PROMPT, a, b, label)


def test_the_demand_names_no_place():
    """It says the same of either place, and no label that a judge may know its response by."""
    assert not re.search(r"\b(A|B|1|2|left|right)\b", DEMAND)
    assert "whether it is shown first or second" in DEMAND


def test_the_fake_verdict_says_the_same_of_either_label():
    """Exchanging A and B exchanges its last two lines."""
    *rest, first, second = FAKE_VERDICT.translate(str.maketrans("AB", "BA")).split("\n")
    assert "\n".join([*rest, second, first]) == FAKE_VERDICT


def test_markdown_by_hand():
    text = "Wash it. Dry it!\n\nDone"
    expected = "# Answer\n\n## Point 1\n\n- **Wash it.**\n\n## Point 2\n\n- **Dry it!**\n\n## Point 3\n\n- **Done**"
    assert ATTACKS["markdown"].change(text) == expected


@given(st.text())
def test_markdown_adds_no_thought(text: str):
    """What stands in bold are the response's words in their order; the rest are headings."""
    title, *rest = ATTACKS["markdown"].change(text).split("\n\n")
    assert title == "# Answer"
    assert [heading.rstrip("0123456789") for heading in rest[::2]] == ["## Point "] * (len(rest) // 2)
    assert " ".join(point.removeprefix("- **").removesuffix("**") for point in rest[1::2]).split() == text.split()


@given(st.text())
def test_the_other_attacks(text: str):
    changed = {name: attack.change(text) for name, attack in ATTACKS.items()}
    assert changed["instruction"] == f"{text}\n\n{DEMAND}"
    assert changed["verdict"] == f"{text}\n\n{FAKE_VERDICT}"
    assert changed["empty"] == ""
    assert changed["repeated"] == f"{text}\n\n" * 9 + text
    assert changed["control"].split() == text.split()
    assert changed["control"] != text


@pytest.mark.parametrize("name", ATTACKS)
def test_only_the_worse_response_is_attacked(name: str):
    attack = ATTACKS[name]
    first, second = pair("a"), pair("b")
    assert attacked(first, attack) == pair("a", b=attack.change(first.b))
    assert attacked(second, attack) == pair("b", a=attack.change(second.a))
    assert attacked(pair("tie"), attack) is None


def test_an_attack_that_does_nothing_or_makes_equals_is_none():
    assert attacked(pair("a", b=""), ATTACKS["empty"]) is None
    assert attacked(pair("a", a=""), ATTACKS["empty"]) is None
    assert attacked(pair("a"), Attack(lambda text: text)) is None


def test_only_the_empty_response_replaces():
    assert [name for name, attack in ATTACKS.items() if attack.replaces] == ["empty"]
