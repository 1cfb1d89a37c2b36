"""Thoughts of every family that marks them, and texts that only talk about the marks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apo_bench.clients.thoughts import without_thoughts


@pytest.mark.parametrize(
    "text",
    [
        "<think>\n\n</think>\n\nA",
        "<THINK>x</THINK >A",
        "<thinking>x</thinking>A",
        "<thought>x</thought>A",
        '<think duration="3">x</think>A',
        "<antThinking>x</antThinking>A",
        "<seed:think>x</seed:think>A",
        "<think/>A",
        "[THINK]x[/THINK]A",
        "\u25c1think\u25b7x\u25c1/think\u25b7A",
        "<|thinking|>x<|/thinking|>A",
        "<|begin_of_thought|>x<|end_of_thought|><|begin_of_solution|>A<|end_of_solution|>",
        "<|START_THINKING|>x<|END_THINKING|><|START_RESPONSE|>A<|END_RESPONSE|>",
        "<|channel>thought\nx<channel|>A",
        "<unused94>thought\nx<unused95>A",
        "<reasoning>x</reasoning>\n<answer>A</answer>",
        "<reflection>x</reflection>A",
        '<details type="reasoning" done="true">x</details>A',
        "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>A<|return|>",
        "analysisWe need x.assistantfinalA",
        "x</think>A",
        "</think>A",
        "<think>I use <think> here</think>A",
        "<think>a<think>b</think>c</think>A",
        "<think>x</think>A<think>y</think>",
    ],
)
def test_the_answer_is_left(text: str) -> None:
    assert without_thoughts(text) == "A"


@pytest.mark.parametrize(
    "text", ["<think>x", "A <think>x", "[think]x", "<|channel|>analysis<|message|>x", "<analysis>x", "<think>x<answer>A"]
)
def test_a_thought_that_never_ends_leaves_no_answer(text: str) -> None:
    assert without_thoughts(text) is None


@pytest.mark.parametrize(
    "text", ["A", "  A\n", "", "Use `<think>` and `</think>`.", "the <reasoning> tag", "analysis of data", "<answer>A</answer>"]
)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert without_thoughts(text) == text


@given(st.lists(st.sampled_from([*"A <>/|[]\n", "think", "</think>", "<think>", "<answer>", "analysis", "assistantfinal"])).map("".join))
def test_what_is_left_holds_no_thought(text: str) -> None:
    left = without_thoughts(text)
    assert left is None or without_thoughts(left) is not None
