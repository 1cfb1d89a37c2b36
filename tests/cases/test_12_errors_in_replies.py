"""Errors inside replies of status 200: UKGovernmentBEIS/inspect_ai#1534, open-jarvis/OpenJarvis#970."""

from pathlib import Path
from typing import Any

import pytest
from chat_judges import about_some, golden_task, message, right_choices, verdicts_of
from chat_server import Plan, serving

from apo_bench.clients.golden import GoldenWriter, write_golden

WORDS = "Upstream overloaded"
ERRORS: dict[str, tuple[int, Any]] = {
    "finish": message("", "error", error=None),
    "choice": (200, {"choices": [{"finish_reason": "error", "message": {"content": ""}, "error": {"code": 502, "message": WORDS}}]}),
    "object": (200, {"error": {"message": WORDS, "code": 502}}),
    "text": (200, {"error": WORDS}),
    "no choices": (200, {"choices": [], "message": WORDS}),
    "nothing": (200, {"choices": None}),
}


def words(shape: str) -> str:
    return {"finish": "finish_reason: error", "nothing": "no choices"}.get(shape, WORDS)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ERRORS)
def test_it_is_asked_again_within_the_limit_then_missing_with_the_words(shape: str, tmp_path: Path) -> None:
    """Both orders of question 2, three attempts each; the next run asks for them again."""
    with serving(about_some(ERRORS[shape], "Question 2?")) as server:
        verdicts = verdicts_of(server, tmp_path / "journal", max_attempts=3, served_as="here")
        assert len(server.requests()) == 8 + 2 * 3
    assert [verdict.answered for verdict in verdicts] == [i not in (4, 5) for i in range(10)]
    assert all(words(shape) in verdict.failure for verdict in verdicts[4:6])
    with serving() as server:
        assert [verdict.choice for verdict in verdicts_of(server, tmp_path / "journal", served_as="here")] == right_choices()
        assert len(server.requests()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("shape", ERRORS)
def test_one_that_passes_is_nobody_s_business(shape: str, tmp_path: Path) -> None:
    with serving(Plan(script=["own", "own"], replies={"own": ERRORS[shape]})) as server:
        assert [verdict.choice for verdict in verdicts_of(server, tmp_path / "journal")] == right_choices()


@pytest.mark.slow
def test_golden_keeps_no_error_as_an_answer(tmp_path: Path) -> None:
    out = tmp_path / "golden.jsonl"
    with serving(Plan(script=["", "own"], replies={"own": ERRORS["finish"]})) as server:
        writer = GoldenWriter("model", server.base_url, None, concurrency=1, max_attempts=1)
        assert sum(write_golden(golden_task(tmp_path), out, writer, n=4).unanswered.values()) == 1
        assert write_golden(golden_task(tmp_path), out, writer, n=4).n == 4
