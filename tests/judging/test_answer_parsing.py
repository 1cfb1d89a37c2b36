"""How a judge's answer is read: only a clear verdict is one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apo_bench.judging.answer_parsing import CHOICES, parse_answer
from apo_bench.judging.judge_protocol import Choice

answers = st.lists(
    st.sampled_from(["A", "b", "tie", "Verdict:", "verdict", ":", "\n", " ", "**", "[[", "]]", "or", "{first}"]) | st.text(max_size=6),
    max_size=8,
).map("".join)
NEVER = [
    "",
    "  \n",
    "A or B",
    "A, B",
    "A/B",
    "A B",
    "A\nB",
    "Verdict: A or B",
    "Verdict: A|B|tie",
    "Verdict:",
    "Verdict: C",
    "A: B",
    "neither",
    "A?",
    "Verdict: A\nVerdict: B",
    "I think that A is the better response.",
    "Verdict: A is better",
    "I cannot help with that.",
    "Verdict A",
    "Verdict: {first}",
    "The first one",
    "\uff21",
    "\x00A",
    "Response A or B",
]
BARE: list[tuple[str, Choice]] = [
    ("A", "first"),
    ("B", "second"),
    ("tie", "tie"),
    ("a", "first"),
    (" b \n", "second"),
    ("TIE.", "tie"),
    ("**A**", "first"),
    ("[[B]]", "second"),
    ('"A"', "first"),
    ("`tie`", "tie"),
    ("(A)", "first"),
    ("- B", "second"),
    ("“A”", "first"),
    ("A:", "first"),
    ("<B>", "second"),
    ("# A", "first"),
]
STATED: list[tuple[str, Choice]] = [
    ("Verdict: A", "first"),
    ("verdict:b", "second"),
    ("**Verdict:** tie", "tie"),
    ("**Verdict: A**", "first"),
    ("VERDICT : [[B]].", "second"),
]
THOUGHT: list[tuple[str, Choice]] = [
    ("A is short.\nB is rude: it says no.\n\nVerdict: A", "first"),
    ('A says "Verdict: A", which is no reason.\nVerdict: B', "second"),
    ("Verdict: tie\nBoth are fine.\nVerdict: tie\n", "tie"),
    ("```\nVerdict: B\n```", "second"),
]
THOUGHT_AND_NOT_SAID = [
    "A",
    "So: A",
    "Verdict: A\nBecause it is longer.",
    "Verdict: A\nOn second thought:\nVerdict: B",
    "> Verdict: A\nthat is what A says.\nVerdict: B",
    "Verdict: A or B\nVerdict: A",
    "Verdict:\nA",
    "My verdict: A",
    "long " * 500,
]


@pytest.mark.parametrize(("answer", "choice"), [*BARE, *STATED, ("Verdict:\nB", "second"), *((answer, None) for answer in NEVER)])
def test_an_answer_without_reasons(answer: str, choice: Choice | None) -> None:
    assert parse_answer(answer, reasoned=False) == choice


@pytest.mark.parametrize(
    ("answer", "choice"), [*STATED, *THOUGHT, *((answer, None) for answer in [*THOUGHT_AND_NOT_SAID, *NEVER] if answer.strip() != "A")]
)
def test_an_answer_with_reasons(answer: str, choice: Choice | None) -> None:
    assert parse_answer(answer, reasoned=True) == choice


@given(answer=answers, reasoned=st.booleans())
def test_reading_never_fails(answer: str, reasoned: bool) -> None:
    assert parse_answer(answer, reasoned) in (None, "first", "tie", "second")


@given(answer=answers, word=st.sampled_from(["A", "B", "tie"]))
def test_the_last_line_decides_or_nothing_does(answer: str, word: str) -> None:
    """Reasons before it can take a verdict away, by stating another one, but never turn it into that."""
    assert parse_answer(f"{answer}\nVerdict: {word}", reasoned=True) in (None, CHOICES[word.lower()])


@pytest.mark.parametrize("reasoned", [False, True])
@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("[[A]]", "first"), ("[[B]]", "second"), ("[[tie]]", "tie"), ("[[A>>B]]", "first"), ("[[B>A]]", "second"), ("[[A=B]]", "tie"),
        ("[[A<B]]", "second"), ("[[Response B]]", "second"),
        ("Both are fine, but one is kinder.\nMy final verdict is: [[B]]", "second"), ("[[A]] and so\n[[A]]", "first"),
        ("First I thought [[A]].\n[[B]]", None), ("[[A]]\nThat is all.", None), ("[[C]]", None), ("[[A>A]]", None),
        ("Verdict: A\n[[B]]", None),
        ('{"verdict": "A"}', "first"), ('{"reasoning": "B is rude.", "winner": "Response A"}', "first"),
        ('```json\n{"Verdict": "tie"}\n```', "tie"),
        ('{"better_response": "B", "confidence": 0.9}', "second"), ('{"verdict": "A", "winner": "B"}', None), ('{"verdict": "both"}', None),
        ('{"reasoning": "A"}', None), ('{"verdict": 1}', None),
    ],
)  # fmt: skip
def test_marks_and_json_are_verdicts_where_they_are_the_only_ones(answer: str, choice: str | None, reasoned: bool) -> None:
    assert parse_answer(answer, reasoned) == choice


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("Response A", "first"), ("response b.", "second"), ("**Assistant B**", "second"), ("Verdict: Response A", "first"),
        ("A>>B", "first"),
        ("A > B", "first"), ("B>A", "second"), ("A=B", "tie"), ("A<<B", "second"), ("Response A is better", None), ("A>B>A", None),
        ("Response A?", None), ("Response", None), ("Response tie", None), ("A>A", None), ("A or B", None),
    ],
)  # fmt: skip
def test_a_verdict_in_other_words(answer: str, choice: str | None) -> None:
    """As a whole answer, and as the last line of one with reasons."""
    assert parse_answer(answer, reasoned=False) == choice
    with_head = answer if answer.startswith("Verdict") else f"Verdict: {answer}"
    assert parse_answer(f"One is kinder.\n{with_head}", reasoned=True) == choice
