"""Content that is a list of parts: microsoft/agent-framework#6978, simonw/llm-mistral#39."""

from pathlib import Path
from typing import Any

import pytest
from chat_judges import always, golden_task, message, responses_in, right_choices, verdicts_of
from chat_server import serving

from apo_bench.clients.golden import GoldenWriter, write_golden
from apo_bench.clients.replies import NO_TEXT

TEXT = {"type": "text", "text": "ANSWER"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        [{"type": "thinking", "thinking": [{"type": "text", "text": "tie"}]}, TEXT],
        [{"type": "reasoning", "text": "tie"}, {"type": "text", "text": "Ver"}, None, {"type": "text", "text": "dict: ANSWER"}],
        [{"type": "text", "text": None}, {"type": "output_text", "text": "ANSWER"}, {"type": "image_url", "image_url": {"url": "x"}}],
        [{"type": "text", "text": {"value": "ANSWER"}}],
        ["ANSWER"],
        TEXT,
    ],
)
def test_the_text_parts_are_the_answer(content: Any, tmp_path: Path) -> None:
    with serving(always(message(content))) as server:
        verdicts = verdicts_of(server, tmp_path / "journal")
        assert [verdict.choice for verdict in verdicts] == right_choices()
        assert len(server.requests()) == 10
    assert {verdict.lost_usd for verdict in verdicts} == {0.0}


@pytest.mark.slow
@pytest.mark.parametrize("content", [7, [7], True])
def test_a_whole_reply_without_a_text_is_no_answer_and_not_sent_again(content: Any, tmp_path: Path) -> None:
    """Once more in other words, as any answer without a verdict."""
    with serving(always(message(content))) as server:
        verdicts = verdicts_of(server, tmp_path / "journal")
        assert {(verdict.failure, verdict.answered, verdict.calls) for verdict in verdicts} == {(NO_TEXT, True, 2)}
        assert len(server.requests()) == 20


@pytest.mark.slow
def test_golden_responses_are_the_text_parts(tmp_path: Path) -> None:
    content = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "It is "}, {"type": "text", "text": "ANSWER."}]
    with serving(always(message(content))) as server:
        write_golden(golden_task(tmp_path), tmp_path / "golden.jsonl", GoldenWriter("model", server.base_url, None), n=4)
    assert set(responses_in(tmp_path / "golden.jsonl").values()) <= {"It is A.", "It is B."}
