"""A server that sends more than an answer can be, plain or packed: the reply is refused at a limit, and memory stays small."""

import gzip
import tracemalloc
from pathlib import Path

import pytest
from chat_judges import chat_judge
from chat_server import worth_questions
from own_server import answering

from apo_bench.clients.transport import BYTES_A_TOKEN, LEAST_LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("status", [200, 500])
def test_a_reply_beyond_the_limit_is_refused_while_it_is_read(packed: bool, status: int, tmp_path: Path) -> None:
    """256 MiB are offered; with answers of 8 tokens the limit is 2^20 + 8 x 2^12 bytes."""
    body = b'{"x": "' + b"a" * 2**28
    head = {"Content-Encoding": "gzip"} if packed else {}
    with answering(status, gzip.compress(body, 1) if packed else body, head) as server:
        judge = chat_judge(server, max_tokens=8, max_attempts=3)
        question = worth_questions(1)[0]
        tracemalloc.start()
        verdict = judge.compare(question.prompt, question.first, question.second)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert verdict.failure == f"a reply of more than {(LEAST_LIMIT + 8 * BYTES_A_TOKEN) / 2**20:.3g} MiB"
    assert not verdict.answered
    assert peak < 2**26
