"""One question of several is flagged: tatsu-lab/alpaca_eval#162, enricoros/big-AGI#352."""

from pathlib import Path
from typing import Any

import pytest
from chat_judges import about_some, right_choices, verdicts_of
from chat_server import serving

from apo_bench.clients.replies import REFUSED

FLAGGED: dict[str, tuple[int, Any]] = {
    "403": (403, {"error": {"message": "input was flagged", "code": 403, "metadata": {"reasons": ["violence"]}}}),
    "400": (400, {"error": {"message": "The response was filtered", "code": "content_filter"}}),
    "inside a reply": (200, {"error": {"message": "Your input was flagged by moderation", "code": 403}}),
}


@pytest.mark.slow
@pytest.mark.parametrize("concurrency", [1, 16])
@pytest.mark.parametrize("shape", FLAGGED)
def test_that_question_is_refused_and_the_others_are_asked(shape: str, concurrency: int, tmp_path: Path) -> None:
    """Question 2 of five: both of its orders are refused, each asked once, and the rerun asks nothing."""
    with serving(about_some(FLAGGED[shape], "Question 2?")) as server:
        for _ in range(2):
            verdicts = verdicts_of(server, tmp_path / "journal", concurrency=concurrency)
        assert len(server.requests()) == 10
    expected = right_choices()
    assert [verdict.choice for verdict in verdicts] == [*expected[:4], None, None, *expected[6:]]
    assert [(verdict.failure, verdict.answered) for verdict in verdicts[4:6]] == [(REFUSED, True)] * 2
    assert all("f" in verdict.text for verdict in verdicts[4:6])  # the server's words


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 404, 413])
def test_other_errors_about_one_question_stop_nothing_either(status: int, tmp_path: Path) -> None:
    with serving(about_some((status, {"error": {"message": "not this"}}), "Question 2?")) as server:
        verdicts = verdicts_of(server, tmp_path / "journal", concurrency=1)
    assert [verdict.choice is None for verdict in verdicts] == [i in (4, 5) for i in range(10)]
    assert all("not this" in verdict.failure + verdict.text for verdict in verdicts[4:6])


@pytest.mark.slow
def test_a_question_that_is_left_alone_by_a_crash_is_refused_too(tmp_path: Path) -> None:
    """The other four were answered by an earlier run, so that the failure is the question's all the same."""
    with serving(about_some(FLAGGED["403"], "Question 4?")) as server:
        verdicts_of(server, tmp_path / "journal", 4)
        for _ in range(2):
            verdicts = verdicts_of(server, tmp_path / "journal")
        assert len(server.requests()) == 10
    assert [verdict.failure for verdict in verdicts] == [""] * 8 + [REFUSED] * 2
