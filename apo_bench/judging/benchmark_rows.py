"""Rows of benchmarks of judges, recognised by their columns: two responses, whose side people take, and a judge's verdict where one stands.

JudgeBench (arXiv:2410.12784), LLMBar (arXiv:2310.07641), MT-Bench's human judgments (arXiv:2306.05685) and RewardBench's scores per prompt
(arXiv:2403.13787). In each of them `verdict_ab` and `verdict_ba`, or `verdict`, may hold a judge's verdict: A, B or tie, as it was shown.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from apo_bench.data.row_files import read_rows
from apo_bench.data.rows import is_text
from apo_bench.errors import InputError
from apo_bench.judging.answer_parsing import choice_of
from apo_bench.judging.judge_protocol import Choice
from apo_bench.types import Message

Label = Literal["a", "tie", "b"]
WINNERS: Mapping[str, Label] = {"model_a": "a", "model_b": "b", "tie": "tie", "tie (bothbad)": "tie", "tie (inconsistent)": "tie"}
NO_MAJORITY = "no majority of annotators"
LARGE = 1e300
PEOPLE = ("expert", "author", "human")  # judges of MT-Bench who are people


@dataclass(frozen=True)
class LabelledRow:
    """A row. Verdicts are the judge's, with a shown first and with b shown first; None: not there, or unreadable."""

    axis: str
    messages: tuple[Message, ...]
    a: str
    b: str
    label: Label
    verdict_ab: Choice | None = None
    verdict_ba: Choice | None = None


@dataclass(frozen=True)
class BenchmarkForm:
    """A form: its name, the columns it needs, and what makes rows of (where, row); a text is the reason why one is left out."""

    name: str
    columns: frozenset[str]
    read: Callable[[Iterable[tuple[str, Mapping[str, Any]]]], Iterator[LabelledRow | str]]


def benchmark_form(path: Path) -> BenchmarkForm | None:
    """The form of a file by the columns of its first row; None: none of these, or no rows."""
    try:
        _, row = next(read_rows(path))
    except (InputError, StopIteration):
        return None
    return next((form for form in FORMS if form.columns <= row.keys()), None)


def read_benchmark(path: Path, form: BenchmarkForm) -> Iterator[LabelledRow | str]:
    """The rows of a file in this form. Raises InputError that names file, line and key."""
    return form.read(_whole_rows(path, form))


def _whole_rows(path: Path, form: BenchmarkForm) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for where, row in read_rows(path):
        if lacking := sorted(form.columns - row.keys()):
            raise InputError(f"{where}: {lacking[0]}: missing; the file is read as {form.name}")
        yield where, row


def _judge_bench(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[LabelledRow]:
    """`judgments` holds up to two decisions, the second with the responses exchanged."""
    for where, row in rows:
        label = choice_of(_text(where, row, "label"))
        if label not in ("first", "second"):
            raise InputError(f"{where}: label: A>B or B>A is needed, got {row['label']!r}")
        judgments = row.get("judgments") or []
        if not isinstance(judgments, list | tuple):
            raise InputError(f"{where}: judgments: a list is needed, got {type(judgments).__name__}")
        given = [judgment.get("decision") if isinstance(judgment, Mapping) else None for judgment in judgments][:2]
        verdicts: list[Choice | None] = [choice_of(verdict) if isinstance(verdict, str) else None for verdict in given]
        own = _own_verdicts(row)
        ab, ba = own if any(own) else (*verdicts, None, None)[:2]
        axis = str(row.get("source") or "overall").partition("-")[0]
        yield LabelledRow(axis, _question(where, row, "question"), *_sides(where, row, "response_A", "response_B"), _side(label), ab, ba)


def _llm_bar(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[LabelledRow]:
    for where, row in rows:
        if row["label"] not in (1, 2) or isinstance(row["label"], bool):
            raise InputError(f"{where}: label: 1 or 2 is needed, got {row['label']!r}")
        axis = str(row.get("subset") or "overall")
        label: Label = "a" if row["label"] == 1 else "b"
        yield LabelledRow(axis, _question(where, row, "input"), *_sides(where, row, "output_1", "output_2"), label, *_own_verdicts(row))


def _mt_bench(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[LabelledRow | str]:
    """A row a vote: people's majority is the label, and a row of another judge its verdict, of which both orders are one.

    Raises InputError for verdicts of two such judges, for two of one judge on a comparison, and for a comparison with two sets of texts.
    """
    other_side: dict[Label, Label] = {"a": "b", "b": "a", "tie": "tie"}
    votes: dict[tuple[Any, ...], list[tuple[str, Label]]] = {}
    first: dict[tuple[Any, ...], LabelledRow] = {}
    machine = ""
    for where, row in rows:
        winner, judge = WINNERS.get(str(row["winner"])), str(row.get("judge") or "human")
        for name in ("question_id", "model_a", "model_b"):
            if not isinstance(row[name], str | int):
                raise InputError(f"{where}: {name}: text or a whole number is needed, got {row[name]!r:.80}")
        if winner is None:
            raise InputError(f"{where}: winner: model_a, model_b or tie is needed, got {row['winner']!r}")
        swapped = str(row["model_a"]) > str(row["model_b"])  # a comparison stands either way round
        names = ("b", "a") if swapped else ("a", "b")
        messages, a = _conversation(where, row, f"conversation_{names[0]}", row["turn"])
        _, b = _conversation(where, row, f"conversation_{names[1]}", row["turn"])
        key = (row["question_id"], *sorted((str(row["model_a"]), str(row["model_b"]))), row["turn"])
        comparison = LabelledRow(f"turn {row['turn']}", messages, a, b, "tie")
        if first.setdefault(key, comparison) != comparison:
            raise InputError(f"{where}: question {row['question_id']!r}: other conversations than in an earlier row about it")
        if not judge.startswith(PEOPLE):
            machine = machine or judge
            if judge != machine:
                raise InputError(f"{where}: judge: {judge!r} beside {machine!r}; a file has the verdicts of one judge")
            if judge in dict(votes.get(key, ())):
                raise InputError(f"{where}: judge: a second verdict of {judge!r} on question {row['question_id']!r}")
        votes.setdefault(key, []).append((judge, other_side[winner] if swapped else winner))
    for key, row in first.items():
        labels: Counter[Label] = Counter(label for judge, label in votes[key] if judge.startswith(PEOPLE))
        people = labels.most_common()
        others = [label for judge, label in votes[key] if not judge.startswith(PEOPLE)]
        if not people or (len(people) > 1 and people[0][1] == people[1][1]):
            yield NO_MAJORITY if people else "no vote of a person"
            continue
        verdict: Choice | None = {"a": "first", "b": "second", "tie": "tie"}[others[0]] if others else None  # pyright: ignore
        yield LabelledRow(row.axis, row.messages, row.a, row.b, people[0][0], verdict)


def _reward_bench_scores(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[LabelledRow]:
    """Scores of the chosen and the rejected side, alone or in lists; people chose a."""
    for where, row in rows:
        scores = [row["scores_chosen"], row["scores_rejected"]]
        values: list[Any] = [value[0] if isinstance(value, list | tuple) and len(value) == 1 else value for value in scores]
        if not all(map(_is_score, values)):
            raise InputError(f"{where}: scores_chosen, scores_rejected: numbers below {LARGE:g} are needed, got {scores!r:.80}")
        difference = values[0] - values[1]
        verdict: Choice | None = None if difference != difference else "first" if difference > 0 else "second" if difference < 0 else "tie"
        names = [f"text_{side}" if f"text_{side}" in row else side for side in ("chosen", "rejected")]
        a, b = (_text(where, row, name) if name in row else "" for name in names)
        messages = _messages(where, row, "prompt") if "prompt" in row else (Message("user", str(row.get("id", where))),)
        yield LabelledRow(str(row.get("subset") or "overall"), messages, a, b, "a", verdict)


FORMS = (
    BenchmarkForm("RewardBench's scores per prompt", frozenset({"scores_chosen", "scores_rejected"}), _reward_bench_scores),
    BenchmarkForm("JudgeBench", frozenset({"question", "response_A", "response_B", "label"}), _judge_bench),
    BenchmarkForm("LLMBar", frozenset({"input", "output_1", "output_2", "label"}), _llm_bar),
    BenchmarkForm(
        "MT-Bench's judgments",
        frozenset({"question_id", "model_a", "model_b", "winner", "conversation_a", "conversation_b", "turn"}),
        _mt_bench,
    ),
)


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and (value != value or abs(value) < LARGE)


def _own_verdicts(row: Mapping[str, Any]) -> tuple[Choice | None, Choice | None]:
    ab, ba = (row.get(name) for name in ("verdict_ab", "verdict_ba"))
    ab = row.get("verdict") if ab is None else ab
    return choice_of(str(ab)), choice_of(str(ba))


def _side(choice: Choice) -> Label:
    return "a" if choice == "first" else "b"


def _question(where: str, row: Mapping[str, Any], key: str) -> tuple[Message, ...]:
    return (Message("user", _text(where, row, key)),)


def _sides(where: str, row: Mapping[str, Any], a: str, b: str) -> tuple[str, str]:
    return _text(where, row, a), _text(where, row, b)


def _text(where: str, row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise InputError(f"{where}: {key}: text is needed, got {type(value).__name__}")
    if not is_text(value):
        raise InputError(f"{where}: {key}: holds half a surrogate pair, which is no text")
    return value


def _messages(where: str, row: Mapping[str, Any], key: str) -> tuple[Message, ...]:
    """A prompt: a text, or messages."""
    turns = row[key]
    return _turns(where, key, turns) if isinstance(turns, list | tuple) and turns else _question(where, row, key)


def _turns(where: str, key: str, turns: Sequence[Any]) -> tuple[Message, ...]:
    if not all(isinstance(part, Mapping) and part.get("role") in ("user", "assistant") for part in turns):
        raise InputError(f"{where}: {key}: messages with role and content are needed")
    return tuple(Message(part["role"], _text(f"{where}: {key}", part, "content")) for part in turns)


def _conversation(where: str, row: Mapping[str, Any], key: str, turn: Any) -> tuple[tuple[Message, ...], str]:
    """The messages up to a turn's answer, and that answer."""
    turns = row[key]
    if type(turn) is not int or turn < 1:
        raise InputError(f"{where}: turn: a whole number from 1 is needed, got {turn!r:.80}")
    if not isinstance(turns, list | tuple) or len(turns) < 2 * turn:
        raise InputError(f"{where}: {key}: a conversation of at least {turn} turns is needed")
    texts = _turns(where, key, turns[: 2 * turn])
    return texts[:-1], texts[-1].content
