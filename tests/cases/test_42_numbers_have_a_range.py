"""Numbers from outside that nothing can hold: such a reply costs what it can at most, and is one all the same."""

from pathlib import Path

import pytest
from chat_judges import verdicts_of
from own_server import answering

from apo_bench.clients.rate_limit import retry_after_s
from apo_bench.clients.replies import read_reply

REPLY = (
    '{{"choices": [{{"message": {{"content": "A"}}, "finish_reason": "stop"}}], "created": {n}, '
    '"usage": {{"prompt_tokens": {n}, "completion_tokens": 1}}}}'
)


@pytest.mark.parametrize("number", ["1" + "0" * 400, "9" * 5000, "-" + "9" * 5000, "1e400", "NaN", "-1", "1.5", "true", "{}"])
def test_a_count_that_is_none_is_not_known(number: str) -> None:
    reply = read_reply(REPLY.format(n=number).encode())
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens) == ("A", None, None)


@pytest.mark.parametrize("header", ["9" * 400, "-5", "1e9", "Fri, 31 Dec 99999 23:59:59 GMT", "inf", "nan"])
def test_a_wait_that_is_none_is_not_waited_for(header: str) -> None:
    assert retry_after_s(header, 0.0) is None


@pytest.mark.slow
def test_such_a_reply_costs_its_worst_case_once(tmp_path: Path) -> None:
    """The worst case by hand: a prompt of at most so many tokens as bytes, 8 for the answer, one dollar a million."""
    with answering(200, REPLY.format(n="9" * 5000).encode()) as server:
        prices = {"usd_per_million_prompt_tokens": 1.0, "usd_per_million_completion_tokens": 1.0}
        verdicts = verdicts_of(server, tmp_path / "journal", 1, max_tokens=8, **prices)
        assert len(server.heads) == 2
    assert [verdict.choice for verdict in verdicts] == ["first", "first"]
    assert all(0 < verdict.cost_usd < 0.01 for verdict in verdicts)
