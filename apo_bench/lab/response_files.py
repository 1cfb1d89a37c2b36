"""Files of responses that were sampled elsewhere: JSON lines, or a JSON list as AlpacaEval's model outputs; also compressed by gzip.

A row has a prompt (`prompt`, `instruction`, or `messages` that end with the response) and a response (`response`, `output`, `completion` or
`text`). A prompt is a text or a list of turns; of several turns also a transcript, as `apo-bench export` writes it or in the form of
Anthropic's HH data.
"""

import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from apo_bench.data.strict_json import parse_json
from apo_bench.errors import InputError
from apo_bench.types import Message, Prompt

PROMPTS, RESPONSES = ("prompt", "instruction"), ("response", "output", "completion", "text")
SPEAKERS = ({"user": "User", "assistant": "Assistant"}, {"user": "Human", "assistant": "Assistant"})
SECOND = "assistant"


def read_responses(path: Path) -> dict[str, str]:
    """The response by the text of its prompt. Raises InputError, one line with file and row, for a row that is none of these forms, and
    for a prompt with two different responses."""
    responses: dict[str, str] = {}
    for where, row in _rows(path):
        if not isinstance(row, dict):
            raise InputError(f"{where}: a row is a mapping of keys, got {type(row).__name__}")
        key, text = _prompt_and_response(where, row)
        if responses.setdefault(key, text) != text:
            raise InputError(f"{where}: a second, different response to the same prompt; a file has one a prompt")
    if not responses:
        raise InputError(f"{path}: no responses")
    return responses


def text_keys(prompt: Prompt) -> Iterator[str]:
    """What may stand for a prompt in such a file."""
    if len(prompt.messages) == 1:
        yield _plain(prompt.messages[0].content)
    yield from (_transcript(prompt.messages, names) for names in SPEAKERS)


def _prompt_and_response(where: str, row: dict[str, Any]) -> tuple[str, str]:
    if "messages" in row:
        turns = _turns(where, "messages", row["messages"])
        if len(turns) < 2 or turns[-1].role != SECOND:
            raise InputError(f"{where}: messages: the last turn is no response of the assistant")
        return _key(turns[:-1]), turns[-1].content
    prompt, response = _field(where, row, PROMPTS), _field(where, row, RESPONSES)
    key = _plain(row[prompt]) if isinstance(row[prompt], str) else _key(_turns(where, prompt, row[prompt]))
    text = row[response]
    if not isinstance(text, str):
        turns = _turns(where, response, text)
        if len(turns) != 1 or turns[0].role != SECOND:
            raise InputError(f"{where}: {response}: one turn of the assistant is a response, got {len(turns)}")
        text = turns[0].content
    return key, text


def _field(where: str, row: dict[str, Any], names: Sequence[str]) -> str:
    if not (present := [name for name in names if row.get(name) is not None]):
        raise InputError(f"{where}: none of {', '.join(names)}; it has: {', '.join(map(str, row)) or 'nothing'}")
    return present[0]


def _turns(where: str, name: str, turns: Any) -> tuple[Message, ...]:
    def is_turn(turn: Any) -> bool:
        return isinstance(turn, dict) and turn.get("role") in ("system", "user", SECOND) and isinstance(turn.get("content"), str)

    if not isinstance(turns, list) or not turns or not all(map(is_turn, turns)):
        raise InputError(f"{where}: {name}: a text, or a list of turns with role and content, is needed")
    return tuple(Message(turn["role"], turn["content"]) for turn in turns if turn["role"] != "system")


def _key(turns: Sequence[Message]) -> str:
    return _plain(turns[0].content) if len(turns) == 1 else _transcript(turns, SPEAKERS[0])


def _transcript(turns: Sequence[Message], names: dict[str, str]) -> str:
    return _plain("\n\n".join(f"{names[turn.role]}: {turn.content}" for turn in turns))


def _plain(text: str) -> str:
    """Without white space around it, and without the speaker of the response that a transcript may end with."""
    return re.sub(r"\n\nAssistant:\Z", "", text.replace("\r\n", "\n").strip()).strip()


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start})") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not readable: {error}") from None
    if path.name.removesuffix(".gz").endswith(".json"):
        rows = _json(text, str(path))
        if not isinstance(rows, list):
            raise InputError(f"{path}: a list of rows is needed, got {type(rows).__name__}")
        yield from ((f"{path}: row {number}", row) for number, row in enumerate(rows, 1))
    else:
        lines = ((f"{path}: line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
        yield from ((where, _json(line, where)) for where, line in lines)


def _json(text: str, where: str) -> Any:
    try:
        return parse_json(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON: {error}") from None
