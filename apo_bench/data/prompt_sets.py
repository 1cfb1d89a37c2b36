"""Sets of prompts that are only asked: files of prompts -> questions with an axis, a cluster and an id, what was left out, and leaks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from apo_bench.config.prompt_sets import files_of
from apo_bench.config.schema import PromptSet
from apo_bench.data.near_duplicates import near_duplicates
from apo_bench.data.preference_forms import WrongRow
from apo_bench.data.prompt_forms import FORMS, PromptForm, Question, recognise
from apo_bench.data.row_files import read_rows
from apo_bench.data.splits import balanced, normalise
from apo_bench.data.task import Task
from apo_bench.errors import InputError
from apo_bench.types import Message, Prompt, Role, identity, prompt_id

HEAD = 100  # rows by which a file is recognised
MOST_DROPPED = 0.5  # of a file's rows; above it the file is refused
THRESHOLD = 0.7  # similarity from which first turns are of one cluster, as in the task `preferences`
REPEATED = "prompts that repeat another left out"
NOT_ASKED = "further turns that are not asked"
OWN_ANSWER = "(the policy's own answer)"  # where a conversation that is shown goes on after it
FIRST, SECOND = "first", "second"  # turns


@dataclass(frozen=True)
class SetQuestion:
    """A question of a set. `prompt`: its axis is the set's name, perhaps with a label or the turn behind a dot. `where`: file and line.

    `follow_up`: the user's second turn, asked after the model's own first answer, or None.
    """

    prompt: Prompt
    where: str
    follow_up: str | None = None

    @property
    def second(self) -> Prompt:
        """What stands for the second turn in tables: its id depends on no answer, so that arms are paired by it."""
        assert self.follow_up is not None
        shown = (*self.prompt.messages, Message("assistant", OWN_ANSWER), Message("user", self.follow_up))
        axis = f"{self.prompt.axis.removesuffix(f'.{FIRST}')}.{SECOND}"
        return Prompt(second_id(self.prompt.id), shown, axis, self.prompt.cluster_id)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """One a turn."""
        return (self.prompt,) if self.follow_up is None else (self.prompt, self.second)


@dataclass(frozen=True)
class QuestionSet:
    """What the files of a set hold. `forms` and `n_rows` by file's name; `dropped` counts what was left out, by reason."""

    name: str
    questions: tuple[SetQuestion, ...]
    forms: Mapping[str, str]
    n_rows: Mapping[str, int]
    dropped: Mapping[str, int]

    @property
    def axes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(prompt.axis for question in self.questions for prompt in question.prompts))

    @property
    def summary(self) -> str:
        """A line: what each file was taken for, how many prompts by axis, and what was left out."""
        files = "; ".join(f"{name}: {form}, {self.n_rows[name]} rows" for name, form in self.forms.items())
        by_axis = Counter(prompt.axis for question in self.questions for prompt in question.prompts)
        counts = ", ".join(f"{by_axis[axis]} {axis}" for axis in self.axes)
        return "; ".join([files, counts, *(f"{n} {reason}" for reason, n in self.dropped.items())])


def second_id(first: str) -> str:
    """The id of the second turn of the question with this id."""
    return identity("second turn", first)


def set_of(axis: str) -> str:
    """The set that an axis belongs to."""
    return axis.partition(".")[0]


def read_prompt_set(
    name: str, files: Sequence[Path], columns: Mapping[str, str], *, both_turns: bool = True, limit: int | None = None
) -> QuestionSet:
    """The questions of a set, in the order of its files, at most `limit` of them, evenly over its axes.

    `columns`: our name of a column -> the file's. Raises InputError for a file that is broken, whose form is not known, or of which more
    than half the rows cannot be read.
    """
    questions: dict[tuple[Any, ...], tuple[Question, str]] = {}
    dropped: Counter[str] = Counter()
    forms, n_rows = {}, {}
    for path in files:
        form, n, wrong = _read_file(name, path, columns, questions, dropped)
        forms[path.name], n_rows[path.name] = form.name, n
        dropped.update(wrong)
    read = [question for question, _ in questions.values()]
    if unread := sum(len(question.follow_ups) - both_turns for question in read if len(question.follow_ups) > both_turns):
        dropped[NOT_ASKED] += unread
    clusters = _clusters([question.messages[0][1] for question in read])
    has_second = both_turns and any(question.follow_ups for question in read)
    collected = []
    for (question, where), cluster in zip(questions.values(), clusters, strict=True):
        messages = tuple(Message(_role(role), text) for role, text in question.messages)
        axis = ".".join(filter(None, (name, question.label, FIRST if has_second else None)))
        follow_up = question.follow_ups[0] if both_turns and question.follow_ups else None
        collected.append(SetQuestion(Prompt(prompt_id(name, messages), messages, axis, cluster), where, follow_up))
    kept = {prompt.id for prompt in balanced([question.prompt for question in collected], limit)}
    return QuestionSet(name, tuple(question for question in collected if question.prompt.id in kept), forms, n_rows, dict(dropped))


def read_set(part: PromptSet) -> QuestionSet:
    """The questions of an experiment's set, whose files are located. Raises InputError as `read_prompt_set`, with the set's key."""
    try:
        return read_prompt_set(part.name, list(files_of(part)), part.columns, both_turns=part.turns == "both", limit=part.prompts)
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith("evaluation.") else f"evaluation.prompt_sets: {message}") from None


def leaks(questions: Sequence[SetQuestion], task: Task) -> list[SetQuestion]:
    """The questions whose first turn is, in equal words or nearly, that of a prompt that policies may be trained on.

    Those are the prompts of the rm and policy splits and of the demonstrations.
    """
    trained = [*task.prompts["rm"], *task.prompts["policy"], *(demonstration.prompt for demonstration in task.demonstrations)]
    known = sorted({normalise(prompt.messages[0].content) for prompt in trained})
    own = [normalise(question.prompt.messages[0].content) for question in questions]
    groups = near_duplicates([*known, *own], THRESHOLD)
    first_of_training = set(groups[: len(known)])
    return [question for question, group in zip(questions, groups[len(known) :], strict=True) if group in first_of_training]


def _read_file(
    name: str,
    path: Path,
    columns: Mapping[str, str],
    questions: dict[tuple[Any, ...], tuple[Question, str]],
    dropped: Counter[str],
) -> tuple[PromptForm, int, Counter[str]]:
    """Add the questions of a file; its form, its rows, and why rows of it were left out."""
    rows = ((where, {**row, **{ours: row[theirs] for ours, theirs in columns.items() if theirs in row}}) for where, row in read_rows(path))
    head = list(islice(rows, HEAD))
    if not head:
        raise InputError(f"{name}: {path}: no rows")
    present = {column: next((row[column] for _, row in head if row.get(column) is not None), None) for _, row in head for column in row}
    if absent := [theirs for theirs in columns.values() if theirs not in present]:
        raise InputError(f"{name}: columns: no column {absent[0]!r} in {path}; columns: {', '.join(present)}")
    form = recognise(present)
    if form is None:
        known = " | ".join(" ".join(sorted(form.columns)) for form in FORMS)
        raise InputError(f"{name}: {path}: columns {', '.join(present)} are no known form ({known}); map names with columns")
    n, wrong = 0, Counter[str]()
    for rest in (head, rows):
        for where, row in rest:
            n += 1
            try:
                question = form.read(row)
            except WrongRow as error:
                wrong[str(error)] += 1
                continue
            key = (question.messages, question.follow_ups)
            if key in questions:
                dropped[REPEATED] += 1
            questions.setdefault(key, (question, where))
    if wrong.total() > MOST_DROPPED * n:
        reasons = ", ".join(f"{count} {reason}" for reason, count in wrong.most_common(3))
        raise InputError(f"{name}: {path}: {wrong.total()} of {n} rows cannot be used, read as {form.name}: {reasons}")
    return form, n, wrong


def _clusters(first_turns: Sequence[str]) -> list[str]:
    """The cluster of each first turn: near-duplicates, such as those of one template, are of one."""
    turns = [normalise(turn) for turn in first_turns]
    return [identity(turns[place]) for place in near_duplicates(turns, THRESHOLD)]


def _role(role: str) -> Role:
    return "user" if role == "user" else "assistant"
