"""A server that answers no request: simonw/llm#724, explodinggradients/ragas#2413, EleutherAI/lm-evaluation-harness#2109, #3076."""

import json
from pathlib import Path
from typing import Any

import pytest
from chat_judges import always, golden_task, verdicts_of
from chat_server import serving
from command_line import finished, start

from apo_bench.clients.circuit_breaker import FEW
from apo_bench.clients.golden import GoldenWriter, write_golden

WORDS = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
SHAPES: dict[str, tuple[int, Any]] = {
    "400": (400, {"error": {"message": WORDS, "type": "invalid_request_error", "code": "unsupported_parameter"}}),
    "401": (401, {"error": {"message": WORDS}}),
    "404": (404, {"error": WORDS}),
    "422": (422, {"detail": [{"loc": ["body"], "msg": WORDS}]}),
    "500": (500, {"message": WORDS}),
    "400 in a reply": (200, {"error": {"code": 400, "message": WORDS}}),
    "content policy": (403, {"error": {"message": f"flagged by content policy: {WORDS}"}}),
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_the_judge_stops_after_the_first_few_with_the_server_s_words_and_nothing_is_final(shape: str, tmp_path: Path) -> None:
    """The next run asks again, and with the set-up mended every question has its verdict."""
    with serving(always(SHAPES[shape])) as server:
        verdicts = verdicts_of(server, tmp_path / "journal", 50, max_attempts=2, served_as="here")
        assert len(server.requests()) <= FEW * (2 if shape == "500" else 1)
    assert not any(verdict.answered for verdict in verdicts)
    assert all(WORDS in verdict.failure for verdict in verdicts)
    with serving() as server:
        assert all(verdict.choice for verdict in verdicts_of(server, tmp_path / "journal", 50, served_as="here"))
        assert len(server.requests()) == 100


@pytest.mark.slow
def test_golden_writes_no_empty_file(tmp_path: Path) -> None:
    task, out = golden_task(tmp_path), tmp_path / "golden.jsonl"
    with serving(always(SHAPES["400"])) as server:
        written = write_golden(task, out, GoldenWriter("model", server.base_url, None))
        assert len(server.requests()) <= FEW
    assert (written.n, written.left_out, written.unanswered) == (0, {}, {f"HTTP 400: {WORDS}": len(task.prompts["rm"])})
    assert not out.exists()


@pytest.mark.slow
def test_the_commands_fail_with_the_server_s_words(tmp_path: Path) -> None:
    golden_task(tmp_path)
    with serving(always(SHAPES["400"])) as server:
        judge = json.dumps({"name": "gpt", "use": "apo_bench.judging.chat_judge@ChatJudge", "model": "m", "base_url": server.base_url,
                            "api_key_env": None})  # fmt: skip
        status, errors = finished(start("audit-judge", "--judge", judge, "--data", tmp_path / "pairs.jsonl", "--out", tmp_path / "audit"))
        assert (status, WORDS in errors.splitlines()[-1]) == (1, True)
        assert len(server.requests()) <= FEW + 2  # the second batch begins with one call, and so does that of the attacks
        writer = tmp_path / "writer.yaml"
        writer.write_text(json.dumps({"model": "m", "base_url": server.base_url, "api_key_env": None}), encoding="utf-8")
        options = json.dumps({"data_files": [str(tmp_path / "pairs.jsonl")]})
        status, errors = finished(start("golden", "hh", "--options", options, "--writer", writer, "--out", tmp_path / "golden.jsonl"))
        assert (status, WORDS in errors.splitlines()[-1]) == (1, True)
        assert not (tmp_path / "golden.jsonl").exists()
