"""Recorded verdicts: two that contradict each other on one item, or of two judges, are not silently one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from apo_bench.errors import InputError
from apo_bench.judging.answer_parsing import parse_answer
from apo_bench.judging.recorded_verdicts import read_recorded


def votes(n: int) -> list[dict[str, Any]]:
    row = {"input": "", "response1": "a", "response2": "b", "annotator1": 1, "annotator2": 1, "annotator3": 2}
    return [{"idx": i, "instruction": f"i{i}", **row} for i in range(n)]


def write(path: Path, rows: Sequence[object]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def compared(judge: str, winner: str, answer: str = "r") -> dict[str, Any]:
    turns = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": text}] for text in (answer, "s")]
    conversations = {"conversation_a": turns[0], "conversation_b": turns[1]}
    return {"question_id": 1, "model_a": "x", "model_b": "y", "winner": winner, "judge": judge, "turn": 1, **conversations}


def test_of_pandalm(tmp_path: Path) -> None:
    labels, twice = write(tmp_path / "labels.json", votes(2)), write(tmp_path / "twice.json", [*votes(2), *votes(1)])
    verdicts: list[dict[str, object]] = [{"idx": 0, "gpt_result": 1}, {"idx": 1, "gpt_result": 1.0}]
    path = write(tmp_path / "verdicts.json", [*verdicts, {"idx": 0, "gpt_result": 2}])
    with pytest.raises(InputError, match=r"verdicts\.json: item 3: idx: a second, different verdict on 0"):
        read_recorded(path, labels)
    with pytest.raises(InputError, match=r"twice\.json: idx: 0 occurs twice"):
        read_recorded(write(path, verdicts), twice)
    with pytest.raises(InputError, match=r"verdicts\.json: a list of objects is needed, got dict"):
        read_recorded(write(path, {"idx": 0, "gpt_result": 1}), labels)  # pyright: ignore[reportArgumentType]
    rows, left_out = read_recorded(write(path, [*verdicts, {"idx": 7, "gpt_result": 2}]), labels)
    assert list(rows["value"]) == [1.0, 1.0]
    assert left_out == {"recorded verdicts without a labelled pair": 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([compared("gpt-4", "model_a"), compared("claude", "model_b")], "judge: 'claude' beside 'gpt-4'"),
        ([compared("gpt-4", "model_a"), compared("gpt-4", "model_b")], "judge: a second verdict of 'gpt-4' on question 1"),
        ([compared("gpt-4", "model_a", "another")], "question 1: other conversations than in an earlier row"),
    ],
)
def test_of_mt_bench(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [compared("expert_1", "model_a"), *rows]))
    with pytest.raises(InputError, match=message):
        read_recorded(path)


def test_of_a_judges_answer() -> None:
    """A line A>B is a verdict; A or B alone may be a heading."""
    assert parse_answer("A>>B\n[[B>>A]]", True) is None
    assert parse_answer("A>B\nVerdict: B", True) is None
    assert parse_answer("A>>B\n[[A>>B]]", True) == "first"
    assert parse_answer("Response A:\ngood\nResponse B:\nbad\nVerdict: A", True) == "first"
