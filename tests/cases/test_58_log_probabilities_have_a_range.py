"""A reply whose log-probabilities are no numbers that a float holds: the answer stands without them, and the others are asked."""

from pathlib import Path

import pytest
from chat_judges import verdicts_of
from own_server import answering


@pytest.mark.slow
@pytest.mark.parametrize("value", ["-" + "9" * 399, "NaN", '"-1"', "[]", "{}", "1e999"])
def test_an_answer_with_an_unreadable_log_probability(value: str, tmp_path: Path) -> None:
    place = '{"content": [{"token": "A", "logprob": ' + value + ', "top_logprobs": []}]}'
    body = '{"choices": [{"message": {"content": "A"}, "finish_reason": "stop", "logprobs": ' + place + "}]}"
    with answering(200, body.encode()) as server:
        verdicts = verdicts_of(server, tmp_path / "journal", 2)
    assert [verdict.choice for verdict in verdicts] == ["first"] * 4


@pytest.mark.slow
def test_a_reply_without_a_message_has_no_text(tmp_path: Path) -> None:
    with answering(200, b'{"choices": [{"text": "A"}]}') as server:
        verdicts = verdicts_of(server, tmp_path / "journal", 1)
    assert {verdict.failure for verdict in verdicts} == {"no text in the reply"}
