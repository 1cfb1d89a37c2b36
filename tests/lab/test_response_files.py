"""Files of responses: the forms that are read, how prompts are matched by their text, and what is refused."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from foreign_models import conversation

from apo_bench.errors import InputError
from apo_bench.lab.response_files import read_responses, text_keys

SINGLE, SEVERAL = conversation("how do i wash wool"), conversation("hi", "hello", "tell me more")


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def response_to(prompt: Any, path: Path) -> str | None:
    responses = read_responses(path)
    return next((responses[key] for key in text_keys(prompt) if key in responses), None)


BY_HAND = {"role": "assistant", "content": "by hand"}
TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}, {"role": "user", "content": "tell me more"}]


@pytest.mark.parametrize(
    ("prompt", "row"),
    [
        (SINGLE, {"prompt": "how do i wash wool", "response": "by hand"}),
        (SINGLE, {"instruction": "  how do i wash wool\r\n", "output": "by hand", "generator": "m"}),
        (SINGLE, {"prompt": [{"role": "user", "content": "how do i wash wool"}], "completion": [BY_HAND]}),
        (SINGLE, {"prompt": "\n\nHuman: how do i wash wool\n\nAssistant:", "text": "by hand"}),
        (SEVERAL, {"prompt": TURNS, "response": "by hand"}),
        (SEVERAL, {"messages": [{"role": "system", "content": "be short"}, *TURNS, BY_HAND]}),
        (SEVERAL, {"instruction": "User: hi\n\nAssistant: hello\n\nUser: tell me more", "output": "by hand"}),
        (SEVERAL, {"prompt": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: tell me more\n\nAssistant:", "response": "by hand"}),
    ],
)  # fmt: skip
def test_forms_of_a_row(prompt: Any, row: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", {"prompt": "another", "response": "no"}, row)
    assert response_to(prompt, path) == "by hand"


def test_a_prompt_that_is_not_there_has_no_response(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", {"prompt": "How do I wash wool", "response": "by hand"})  # capitals are other text
    assert response_to(SINGLE, path) is None


def test_a_list_and_a_compressed_file(tmp_path: Path) -> None:
    text = json.dumps([{"instruction": "how do i wash wool", "output": "by hand"}])
    (tmp_path / "outputs.json").write_text(text)
    (tmp_path / "outputs.json.gz").write_bytes(gzip.compress(text.encode()))
    assert {response_to(SINGLE, tmp_path / name) for name in ("outputs.json", "outputs.json.gz")} == {"by hand"}


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([["a"]], "line 1: a row is a mapping of keys, got list"),
        ([{"question": "a", "response": "b"}], "line 1: none of prompt, instruction; it has: question, response"),
        ([{"prompt": "a"}], "line 1: none of response, output, completion, text; it has: prompt"),
        ([{"prompt": 3, "response": "b"}], "line 1: prompt: a text, or a list of turns with role and content, is needed"),
        ([{"messages": TURNS}], "line 1: messages: the last turn is no response of the assistant"),
        ([{"prompt": "a", "completion": TURNS}], "line 1: completion: one turn of the assistant is a response, got 3"),
        ([{"prompt": "a", "response": "b"}, {"prompt": "a ", "response": "c"}], "line 2: a second, different response to the same prompt"),
        ([], "no responses"),
    ],
)
def test_what_is_refused(rows: list[Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=reason):
        read_responses(written(tmp_path / "rows.jsonl", *rows))


def test_equal_rows_are_one(tmp_path: Path) -> None:
    row = {"prompt": "how do i wash wool", "response": "by hand"}
    assert read_responses(written(tmp_path / "rows.jsonl", row, row)) == {"how do i wash wool": "by hand"}
