"""Responses and scores as files of artifacts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apo_bench.types import Prompt, Response

STORED = ("text", "tokens", "finish", "token_ids")  # of a response beside its prompt, in order


def save_scores(folder: Path, scores: Sequence[float]) -> None:
    (folder / "scores.json").write_text(json.dumps(list(scores)))


def load_scores(folder: Path) -> list[float]:
    return json.loads((folder / "scores.json").read_text())


def save_responses(folder: Path, responses: Sequence[Response]) -> None:
    rows = ({"prompt_id": row.prompt.id, **{name: getattr(row, name) for name in STORED}} for row in responses)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "responses.jsonl").write_text(lines, encoding="utf-8")


def load_responses(folder: Path, prompts: Sequence[Prompt], n: int) -> tuple[Response, ...]:
    """n a prompt, in the order in which they were saved."""
    rows = [json.loads(line) for line in (folder / "responses.jsonl").read_text(encoding="utf-8").split("\n") if line]
    parts: list[list[Any]] = [[tuple(row[name]) if isinstance(row[name], list) else row[name] for name in STORED] for row in rows]
    return tuple(Response(prompt, *part) for prompt, part in zip([prompt for prompt in prompts for _ in range(n)], parts, strict=True))
