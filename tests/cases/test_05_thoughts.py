"""Thoughts in replies: huggingface/lighteval#869, EvolvingLMMs-Lab/lmms-eval#1100, EuroEval/EuroEval#752."""

from pathlib import Path

import pytest
from chat_judges import always, golden_task, message, responses_in, right_choices, verdicts_of
from chat_server import serving

from apo_bench.clients.golden import GoldenWriter, write_golden
from apo_bench.clients.replies import UNFINISHED_THOUGHT


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        "<think>\n\n</think>\n\nANSWER",
        "<think>Is it tie? No: A or B.</think>ANSWER",
        "<thinking>Verdict: tie</thinking>\n\nVerdict: ANSWER",
        "The template wrote the opening mark.\n</think>\n\n**ANSWER**",
        "<|begin_of_thought|>tie<|end_of_thought|>\n<|begin_of_solution|>ANSWER<|end_of_solution|>",
        [{"type": "thinking", "thinking": "tie"}, {"type": "text", "text": "<think></think>ANSWER"}],
    ],
)
def test_the_verdict_is_what_follows_the_thought(content: object, tmp_path: Path) -> None:
    """Every question is asked once."""
    with serving(always(message(content))) as server:
        assert [verdict.choice for verdict in verdicts_of(server, tmp_path / "journal")] == right_choices()
        assert len(server.requests()) == 10


@pytest.mark.slow
def test_a_thought_that_never_ends_is_no_answer(tmp_path: Path) -> None:
    with serving(always(message("<think>Verdict: A\nA"))) as server:
        verdicts = verdicts_of(server, tmp_path / "journal")
    assert {(verdict.choice, verdict.failure) for verdict in verdicts} == {(None, UNFINISHED_THOUGHT)}


@pytest.mark.slow
def test_golden_responses_hold_no_thoughts(tmp_path: Path) -> None:
    """Half of the replies never come to an answer: they are left out and counted."""
    task, out = golden_task(tmp_path), tmp_path / "golden.jsonl"
    with serving(always(message("<think>\nA question of worth.\n</think>\n\nIt is ANSWER."))) as server:
        written = write_golden(task, out, GoldenWriter("model", server.base_url, None), n=6)
    assert written.n == 6
    assert set(responses_in(out).values()) <= {"It is A.", "It is B."}
    with serving(always(message("<think>\nA question of worth. ANSWER"))) as server:
        written = write_golden(task, tmp_path / "other.jsonl", GoldenWriter("model", server.base_url, None), n=6)
    assert (written.n, written.left_out, written.unanswered) == (0, {UNFINISHED_THOUGHT: 6}, {})
    assert not (tmp_path / "other.jsonl").exists()
