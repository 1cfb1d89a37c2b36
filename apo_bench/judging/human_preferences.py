"""Pairs labelled by people, to audit judges and reward models with: PandaLM's votes, HH's preferences, RewardBench's, a task's pairs."""

import gzip
import json
import runpy
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from apo_bench.data.preference_forms import Reading, recognise
from apo_bench.data.preference_rows import options_of, read_preferences
from apo_bench.data.row_files import read_jsonl, read_rows
from apo_bench.data.splits import normalise
from apo_bench.data.strict_json import parse_json
from apo_bench.data.task import Task
from apo_bench.data.task_folder import read_description
from apo_bench.data.transcripts import is_transcript
from apo_bench.errors import InputError
from apo_bench.judging.benchmark_rows import NO_MAJORITY, Label, LabelledRow, benchmark_form, read_benchmark
from apo_bench.package_data import shipped_root
from apo_bench.types import Message, Pair, Prompt, Role, identity, prompt_id

VOTES: Mapping[int, Label] = {0: "tie", 1: "a", 2: "b"}
PANDALM_AXIS = "overall"
IDENTICAL = "identical responses"
NO_QUESTION = "a prompt that does not end with a user's turn"
NOT_TEXT = "a response that is true or false, not text"


@dataclass(frozen=True)
class LabelledPair:
    """Two responses to a prompt, and which of them people prefer."""

    prompt: Prompt
    a: str
    b: str
    label: Label

    @property
    def id(self) -> str:
        """Content hash, without the label."""
        return identity(self.prompt.id, self.a, self.b)


@dataclass(frozen=True)
class Labelled:
    """Labelled pairs in the order of their hashes, so that the first n are a random sample that a larger n extends.

    `left_out` counts, by reason, the source's pairs that are not in `pairs`, except those beyond the first n.
    """

    name: str
    pairs: tuple[LabelledPair, ...]
    left_out: Mapping[str, int]


def read_labelled(path: Path, n: int | None = None) -> Labelled:
    """The labelled pairs of a file, whose format is recognised by its content; at most `n`, chosen by hash.

    A JSON list is PandaLM's (instruction, input, response1, response2, annotator1 to 3; the label is what two of the three say). JSON
    lines with chosen and rejected are HH's, in every form that the task `hh` reads and with its prompts' ids and clusters; or, where the
    first prompt is no transcript, RewardBench's (prompt, chosen, rejected, subset), as parquet too, a subset being an axis.
    Rows of JudgeBench, LLMBar, MT-Bench's judgments and RewardBench's scores are recognised by their columns (`benchmark_rows`).
    Every other form that the task `preferences` recognises is read as it reads it, ties and rows that it drops left out.
    Raises InputError, one line that names file, line or item, and key, for anything else, and where no pair is left.
    """
    if form := benchmark_form(path):
        return _checked(str(path), (row if isinstance(row, str) else _of_benchmark(row) for row in read_benchmark(path, form)), n)
    if _is_of_another_form(path):
        return _checked(str(path), _recognised(path), n)
    if path.suffix == ".parquet":
        return _checked(str(path), _reward_bench(path), n)
    match _opening(path):
        case "[":
            return _checked(str(path), _pandalm(path), n)
        case "{":
            return _checked(str(path), _reward_bench(path) if _is_reward_bench(path) else _hh(path), n)
    raise InputError(f"{path}: line 1: neither a JSON list (PandaLM) nor JSON lines with chosen and rejected (HH)")


def labelled_pairs(task: Task, n: int | None = None) -> Labelled:
    """The preference pairs of a task's test split, which no model was trained on; at most `n`, chosen by hash."""
    return _checked(f"{task.name} test", map(_labelled, task.pairs["test"]), n)


def _checked(name: str, items: Iterable[LabelledPair | str], n: int | None) -> Labelled:
    """`items` are pairs, or the reason why a pair is left out."""
    if n is not None and n < 1:
        raise InputError(f"{name}: n: a whole number from 1 is needed, got {n}")
    left_out: Counter[str] = Counter()
    pairs = []
    for item in items:
        if isinstance(item, str):
            left_out[item] += 1
        elif item.a.strip() == item.b.strip():
            left_out[IDENTICAL] += 1
        else:
            pairs.append(item)
    if not pairs:
        raise InputError(f"{name}: no labelled pair ({left_out.total()} left out)")
    return Labelled(Path(name).name, tuple(sorted(pairs, key=lambda pair: pair.id)[:n]), dict(left_out))


def _labelled(pair: Pair) -> LabelledPair:
    """A hash decides which side is a, so that labels are balanced."""
    if int(pair.id, 16) % 2:
        return LabelledPair(pair.prompt, pair.rejected, pair.chosen, "b")
    return LabelledPair(pair.prompt, pair.chosen, pair.rejected, "a")


def _prompt(axis: str, messages: tuple[Message, ...], cluster: str) -> Prompt:
    """The prompt with the ids that a task gives it."""
    return Prompt(prompt_id(axis, messages), messages, axis, identity(normalise(cluster)))


def _hh(path: Path) -> Iterator[LabelledPair | str]:
    """The rows of the shipped task's own reader."""
    folder = shipped_root() / "tasks" / "hh"
    options = {**read_description(folder / "hh.yaml").options, "data_files": [str(path.absolute())], "max_dropped": 1.0}
    for row in runpy.run_path(str(folder / "hh.py"))["rows"](base=None, **options):
        if "dropped" in row:
            yield row["dropped"]
        else:
            messages = tuple(Message(role, text) for role, text in row["messages"])
            yield _labelled(Pair(_prompt(row["axis"], messages, row["cluster"]), row["chosen"], row["rejected"]))


def _is_of_another_form(path: Path) -> bool:
    """Whether the first row is of a form that is none of PandaLM's, HH's and RewardBench's."""
    try:
        _, row = next(read_rows(path))
    except (InputError, StopIteration):
        return False  # the other readers say what is wrong
    form = recognise(row, Reading())
    sides = {"chosen", "rejected"} <= row.keys() and ("subset" in row or is_transcript(str(row.get("prompt") or row["chosen"])))
    return form is not None and not sides and "annotator1" not in row


def _recognised(path: Path) -> Iterator[LabelledPair | str]:
    """The pairs of a file as the task `preferences` reads it, clusters of equal first turns."""
    options = options_of({"data_files": [str(path.absolute())], "near_duplicates": 1.0, "max_dropped": 1.0, "golden": "none"})
    preferences = read_preferences(options, None)
    for reason, n in preferences.dropped.items():
        yield from (reason for _ in range(n))
    for row, cluster in zip(preferences.rows, preferences.clusters, strict=True):
        if row.chosen is not None and row.rejected is not None:
            messages = tuple(Message(cast(Role, role), text) for role, text in row.messages)
            yield _labelled(Pair(_prompt(row.axis, messages, cluster), row.chosen, row.rejected))


def _is_reward_bench(path: Path) -> bool:
    """Whether the first row's prompt is a question, or messages, rather than a transcript."""
    try:
        _, row = next(_objects(path))
    except (InputError, StopIteration):
        return False  # the other reader says what is wrong
    prompt = row.get("prompt")
    is_question = isinstance(prompt, str) and not prompt.lstrip().startswith("Human:")
    return {"chosen", "rejected", "subset"} <= row.keys() and (is_question or isinstance(prompt, list))


def _reward_bench(path: Path) -> Iterator[LabelledPair | str]:
    """Rows with a question, or a list of messages, as prompt. A cluster is the first user turn."""
    for where, row in _objects(path):
        prompt = row.get("prompt")
        if isinstance(prompt, list):
            turns = tuple(_message(where, turn) for turn in prompt)
        else:
            turns = (Message("user", _text(where, row, "prompt")),)
        axis = _text(where, row, "subset") if row.get("subset") is not None else PANDALM_AXIS
        chosen, rejected = (_text(where, row, side) for side in ("chosen", "rejected"))
        if not turns or turns[-1].role != "user":
            yield NO_QUESTION
        else:
            yield _labelled(Pair(_prompt(axis, turns, turns[0].content), chosen, rejected))


def _message(where: str, turn: Any) -> Message:
    if not isinstance(turn, dict) or turn.get("role") not in ("user", "assistant"):
        raise InputError(f"{where}: prompt: a message has a role, user or assistant, and a content; got {turn!r:.80}")
    return Message(turn["role"], _text(where, turn, "content"))


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, row) of JSON lines, whatever the file's name, or of a parquet file."""
    return read_rows(path) if path.suffix == ".parquet" else read_jsonl(path)


def read_labelled_votes(path: Path) -> Iterator[tuple[Any, LabelledPair | str]]:
    """(idx, pair or the reason why it is none) of PandaLM's items. Raises InputError as `read_labelled` does."""
    if _opening(path) != "[":
        raise InputError(f"{path}: not a JSON list (PandaLM)")
    yield from _pandalm_items(path)


def _of_benchmark(row: LabelledRow) -> LabelledPair:
    return LabelledPair(_prompt(row.axis, row.messages, row.messages[0].content), row.a, row.b, row.label)


def _pandalm(path: Path) -> Iterator[LabelledPair | str]:
    return (pair for _, pair in _pandalm_items(path))


def _pandalm_items(path: Path) -> Iterator[tuple[Any, LabelledPair | str]]:
    try:
        items = parse_json(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {error.lineno}: broken JSON: {error.msg} (column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # a key given twice, a number of too many digits, or lists too deep
        raise InputError(f"{path}: broken JSON: {error}") from None
    for number, item in enumerate(items, 1):
        where = f"{path}: item {number}"
        if not isinstance(item, dict):
            raise InputError(f"{where}: an object is needed, got {type(item).__name__}")
        votes: Counter[Label] = Counter(_vote(where, item, f"annotator{i}") for i in (1, 2, 3))
        label, most = votes.most_common(1)[0]
        question = "\n\n".join(filter(None, (_text(where, item, key) for key in ("instruction", "input"))))
        if any(isinstance(item.get(key), bool) for key in ("response1", "response2")):
            yield item.get("idx"), NOT_TEXT  # six published items, in which "True" became a boolean
            continue
        a, b = (_text(where, item, key) for key in ("response1", "response2"))
        prompt = _prompt(PANDALM_AXIS, (Message("user", question),), question)
        yield item.get("idx"), LabelledPair(prompt, a, b, label) if most > 1 else NO_MAJORITY


def _vote(where: str, item: dict[str, Any], key: str) -> Label:
    value = item.get(key)
    if type(value) is not int or value not in VOTES:
        raise InputError(f"{where}: {key}: {f'0, 1 or 2 is needed, got {value!r}' if key in item else 'missing'}")
    return VOTES[value]


def _text(where: str, item: dict[str, Any], key: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise InputError(f"{where}: {key}: {f'text is needed, got {type(value).__name__}' if key in item else 'missing'}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: {key}: holds half a surrogate pair, which is no text") from None
    return value


def _opening(path: Path) -> str:
    """The first character that is not white space."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(4096).decode("utf-8-sig", errors="replace").lstrip()[:1]
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
