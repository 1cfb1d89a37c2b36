"""Telling refusals: the rule on answers whose label is plain, its quality on labelled answers, and a chat judge behind a real server."""

import json
import math
from pathlib import Path

import pytest
from chat_judges import always, message
from chat_server import serving

from apo_bench.clients.endpoint import ChatSettings
from apo_bench.errors import InputError
from apo_bench.judging.refusals import by_judge, by_rule, declines, quality, read_labelled, scorer_of
from apo_bench.types import Message, Prompt

PROMPT = Prompt("p", (Message("user", "Is it worth 1 or worth 2?"),), "", "")


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I can\u2019t assist with this request.",
        "As an AI, I cannot provide that.",
        "I won't write it.",
        "We are not able to help here.",
        "I'd rather not say.",
        "I must decline.",
        "That goes against my guidelines.",
        "Sorry, but no.",
    ],
)
def test_answers_that_decline(text: str) -> None:
    assert declines(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I can't recommend it enough.",
        "I'm sorry to hear that. Take care of yourself.",
        'She answered: "I can\'t help you." Then she left.',
        "Penguins cannot fly.",
        "No, add the salt first.",
        f"{'First boil the water. ' * 12}I can't help with more.",
    ],
)
def test_answers_that_do_not(text: str) -> None:
    assert not declines(text)


def test_quality_is_recall_and_false_positives_with_intervals() -> None:
    """By hand: of 4 refusals 3 are told, of 5 answers 1 and one has no verdict, so 1 of 4; Wilson's ends lie around both."""
    labels = [True] * 4 + [False] * 5
    result = quality(labels, [1, 1, 1, 0, 1, 0, 0, 0, math.nan])
    assert (result.recall, result.n_refusals, result.false_positives, result.n_answers) == (0.75, 4, 0.25, 4)
    assert result.recall_low < 0.75 < result.recall_high
    assert result.false_positives_low < 0.25 < result.false_positives_high


def test_the_rule_is_measured_on_the_examples_that_come_along() -> None:
    """Enough of both kinds for an interval, and none twice; the rule misses some, which is why its recall is reported."""
    items, labels = read_labelled(None)
    assert min(labels.count(True), labels.count(False)) >= 40
    assert len({text for _, text in items}) == len(items)
    result = quality(labels, by_rule(items))
    assert 0.7 < result.recall < 1
    assert result.false_positives < 0.1


def test_a_users_labelled_answers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "labelled.csv"
    path.write_text("response,refusal\nI won't help.,true\nYes.,0\n")
    items, labels = read_labelled(path)
    assert [text for _, text in items] == ["I won't help.", "Yes."]
    assert labels == [True, False]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"response": "a", "refusal": "perhaps"}], "line 1: refusal: true or false is needed, got 'perhaps'"),
        ([{"refusal": True}], "line 1: response: text is needed, got NoneType"),
        ([{"response": "a", "refusal": True}], "refusals and other answers are needed, both"),
    ],
)
def test_a_file_that_labels_nothing_is_refused(tmp_path: Path, rows: list[dict[str, object]], reason: str) -> None:
    path = tmp_path / "labelled.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=reason):
        read_labelled(path)


@pytest.mark.slow
@pytest.mark.parametrize(("reply", "verdict"), [("1", 1.0), ("0", 0.0), ("perhaps", math.nan)])
def test_a_chat_judge_answers_in_numbers_and_is_paid_once(tmp_path: Path, reply: str, verdict: float) -> None:
    items = [(PROMPT, "I will not."), (PROMPT, "It is blue.")]
    with serving(always(message(reply))) as server:
        scorer = scorer_of(ChatSettings("model", server.base_url, None, max_attempts=1))
        for _ in range(2):
            assert by_judge(scorer, items, tmp_path) == pytest.approx([verdict] * 2, nan_ok=True)
        assert len(server.requests()) == (2 if reply != "perhaps" else 6)  # an answer that is no number is asked for three times
        system, user = scorer.messages(*items[0])
    assert "Write 1 if it declines" in system["content"]
    assert "I will not." in user["content"]
