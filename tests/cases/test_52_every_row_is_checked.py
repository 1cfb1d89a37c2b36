"""Rows of benchmarks of judges: the second is checked like the first, by which a file's form is known."""

import json
from pathlib import Path
from typing import Any

import pytest

from apo_bench.errors import InputError
from apo_bench.judging.recorded_verdicts import read_recorded

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]
LLM_BAR: dict[str, Any] = {"input": "i", "output_1": "a", "output_2": "b", "label": 1, "verdict": "A"}
SCORES: dict[str, Any] = {"id": 1, "scores_chosen": 1.0, "scores_rejected": 0.5}
JUDGE_BENCH: dict[str, Any] = {"question": "q", "response_A": "a", "response_B": "b", "label": "A>B", "verdict": "A>B"}
MT_BENCH: dict[str, Any] = {
    "question_id": 1, "model_a": "x", "model_b": "y", "winner": "model_a", "judge": "expert_1", "turn": 1,
    "conversation_a": TURNS, "conversation_b": TURNS,
}  # fmt: skip


@pytest.mark.parametrize(
    ("row", "change", "key"),
    [
        (LLM_BAR, {"label": None}, "label"),
        (LLM_BAR, {"label": True}, "label"),
        (LLM_BAR, {"input": "half \ud800"}, "input"),
        (SCORES, {"scores_chosen": None}, "scores_chosen"),
        (SCORES, {"scores_chosen": 10**399}, "scores_chosen"),
        (SCORES, {"scores_rejected": False}, "scores_rejected"),
        (SCORES, {"text_chosen": ["not", "text"]}, "text_chosen"),
        (JUDGE_BENCH, {"judgments": 5}, "judgments"),
        (MT_BENCH, {"question_id": [1]}, "question_id"),
        (MT_BENCH, {"turn": {}}, "turn"),
        (MT_BENCH, {"conversation_a": [TURNS[0], {"role": "assistant", "content": None}]}, "conversation_a: content"),
    ],
)
def test_a_later_row_is_refused_by_file_line_and_key(row: dict[str, Any], change: dict[str, Any], key: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(row)}\n{json.dumps(row | {'question_id': 2} | change)}\n")
    with pytest.raises(InputError, match=rf"rows\.jsonl: line 2: (.*, )?{key}"):
        read_recorded(path)


@pytest.mark.parametrize("row", [LLM_BAR, SCORES, JUDGE_BENCH], ids=["llm_bar", "scores", "judge_bench"])
def test_a_column_that_a_later_row_lacks_is_named(row: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(row)}\n{{}}\n")
    with pytest.raises(InputError, match=r"line 2: \w+: missing; the file is read as"):
        read_recorded(path)
