"""Preference data from files or the hub -> a task's rows: recognised, read, checked, given an axis, a golden response and a cluster."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from apo_bench.config.schema_errors import input_error
from apo_bench.data import transcripts
from apo_bench.data.near_duplicates import near_duplicates
from apo_bench.data.preference_forms import (
    FORMS,
    PKU_AXES,
    TIES,
    Form,
    Item,
    Reading,
    Row,
    Scored,
    WrongRow,
    pair_up,
    prompt_turns,
    recognise,
    repeats_prompt,
    text_of,
)
from apo_bench.data.row_files import hub_rows, read_jsonl, read_rows
from apo_bench.data.rows import ALL, EMPTY, IDENTICAL
from apo_bench.data.splits import normalise
from apo_bench.data.task_folder import find_file
from apo_bench.data.transcripts import Turns
from apo_bench.errors import InputError

AXIS = "overall"  # of rows that name none
AXIS_NAME = re.compile(r"\w[\w .:/+-]{0,63}")
GOLDEN_TURN_INSIDE = "with a speaker's turn inside"
HEAD = 1000  # rows by which a file is recognised


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AxisRule(_Options):
    """`values`: the axis of a column's value, the first pattern that fits; without them the value is the axis. `files`: the axis of rows
    without that column, by the first pattern that fits the file's name, or else its folder's.
    """

    column: str | None = None
    values: dict[str, str] | None = None
    files: dict[str, str] = {}


class GoldenColumn(_Options):
    column: str


class GoldenFile(_Options):
    file: str


class GoldenScore(_Options):
    min_score: float


class Options(_Options):
    """The options of the task `preferences`; tasks/preferences/README.md says what each is for. `task`: whose they are, in messages."""

    task: str = "preferences"
    data_files: tuple[str, ...] | None = Field(None, min_length=1)
    hub: str | None = None
    subset: str | None = None
    data_dirs: tuple[str, ...] = ()
    split: str = "train"
    columns: dict[str, str] = {}
    axis: str | AxisRule | None = None
    golden: Literal["chosen", "none"] | GoldenColumn | GoldenFile | GoldenScore | None = None
    score: str | None = None
    against: Literal["worst", "drawn"] = "worst"
    system: Literal["drop", "ignore"] = "drop"
    drop_ties: bool = True
    max_rows: int | None = Field(None, ge=1)
    max_dropped: float = Field(0.5, ge=0, le=1)
    near_duplicates: float = Field(0.7, gt=0, le=1)

    @field_validator("data_files", mode="before")
    @classmethod
    def _a_name_is_a_list_of_it(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


@dataclass(frozen=True)
class Source:
    """A file, or a data set of the hub: what it was taken for, and its rows. `path`: in messages. `axis`: of rows that name none."""

    name: str
    path: str
    axis: str | None
    form: Form
    reading: Reading
    rows: Iterable[tuple[str, Row]]


@dataclass(frozen=True)
class PreferenceRow:
    """A row as a task wants it, without its cluster. `source` is the file's name."""

    source: str
    messages: Turns
    axis: str
    chosen: str | None
    rejected: str | None
    golden: str | None


@dataclass(frozen=True)
class Preferences:
    """What the files hold. `forms` and `n_rows` by file's name; `dropped` counts what was left out by reason."""

    rows: tuple[PreferenceRow, ...]
    clusters: tuple[str, ...]
    forms: Mapping[str, str]
    n_rows: Mapping[str, int]
    dropped: Mapping[str, int]


def options_of(values: Mapping[str, Any]) -> Options:
    """The options, validated. Raises InputError that names the key."""
    try:
        options = Options.model_validate(values)
    except ValidationError as error:
        name = f"task {values.get('task', 'preferences')}: options"
        raise input_error(name, error, dict(values), Options, joint=".") from None
    if (options.data_files is None) == (options.hub is None):
        raise InputError(f"task {options.task}: options.data_files: either files or the option hub is needed, and not both")
    return options


def read_preferences(options: Options, base: Path | None) -> Preferences:
    """All rows, in the order of the files, with the cluster of each: the first turn of the first row that is nearly the same.

    Raises InputError where a file is broken, is in no form that is known, or has too many rows that cannot be used.
    """
    answers = golden_responses(options, base)
    rows: list[PreferenceRow] = []
    taken: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    forms, n_rows, prompts = {}, {}, set()
    for source in sources(options, base):
        forms[source.name] = source.form.name
        counted = _Counted(source.rows)
        for item, row in _items(source, counted, options):
            try:
                axis = _axis(options.axis, item, row, source.axis)
                golden = _golden(options.golden, item, row, answers)
            except WrongRow as error:
                counted.drop(str(error))
                continue
            if item.reason:
                dropped[item.reason] += 1
            if item.reason == TIES and options.drop_ties:
                continue
            taken[axis] += 1
            if options.max_rows is not None and taken[axis] > options.max_rows:
                continue
            prompts.add(item.messages)
            rows.append(PreferenceRow(source.name, item.messages, axis, item.chosen, item.rejected, golden))
        n_rows[source.name] = counted.n
        _refuse_wrong(source, counted, options)
        dropped.update(counted.wrong)
    for turns, text in answers.items():
        if text is None or turns not in prompts:
            dropped[f"golden responses {'to unknown prompts' if text else GOLDEN_TURN_INSIDE} left out"] += 1
    return Preferences(tuple(rows), _clusters(rows, options.near_duplicates), forms, n_rows, dropped)


def task_rows(preferences: Preferences) -> Iterator[dict[str, Any]]:
    """The rows as apo_bench.data.task wants them, then {"dropped": reason} for each that was left out."""
    for row, cluster in zip(preferences.rows, preferences.clusters, strict=True):
        sides = {"chosen": row.chosen, "rejected": row.rejected, "golden": row.golden}
        known = {key: text for key, text in sides.items() if text is not None}
        yield {"messages": row.messages, "axis": row.axis, "cluster": cluster, **known}
    for reason, n in preferences.dropped.items():
        yield from ({"dropped": reason} for _ in range(n))


def recognised(options: Options, base: Path | None) -> str:
    """A line: what each file was taken for, files of one form together."""
    forms: dict[str, list[str]] = {}
    for source in sources(options, base):
        forms.setdefault(source.form.name, []).append(source.name)
    return "; ".join(f"{', '.join(names)}: {form}" for form, names in forms.items())


def sources(options: Options, base: Path | None) -> Iterator[Source]:
    """The files, each recognised by its first rows. Raises InputError for a form that is not known."""
    if options.data_files is None:
        assert options.hub is not None
        for folder in options.data_dirs or (None,):
            name = "/".join(filter(None, (options.hub, folder)))
            yield _source(name, name, (folder or "",), _of_the_hub(options, folder), options)
        return
    files = [_file(options, "data_files", name, base) for name in options.data_files]
    if twice := [path for place, path in enumerate(files) if path.resolve() in [other.resolve() for other in files[:place]]]:
        raise InputError(f"task {options.task}: options.data_files: {twice[0]} is named twice")
    for path in files:
        name = path.name if [file.name for file in files].count(path.name) == 1 else str(path)
        yield _source(name, str(path), (path.name, path.parent.name), read_rows(path), options)


def _source(name: str, path: str, names: Sequence[str], rows: Iterator[tuple[str, Row]], options: Options) -> Source:
    """`names`: those that may tell the axis, of the file and its folder."""
    renamed = ((where, {**row, **{ours: row[theirs] for ours, theirs in options.columns.items() if theirs in row}}) for where, row in rows)
    head, at = list(islice(renamed, HEAD)), f"task {options.task}: {path}"
    if not head:
        raise InputError(f"{at}: no rows")
    columns = {column: None for _, row in head for column in row}
    if absent := [theirs for theirs in options.columns.values() if theirs not in columns]:
        raise InputError(f"{at}: options.columns: no column {absent[0]!r}; columns: {', '.join(columns)}")
    reading = Reading(options.score, options.against, options.system, repeats_prompt([row for _, row in head]))
    whole = {column: next((row[column] for _, row in head if row.get(column) is not None), None) for column in columns}
    form = recognise(whole, reading)
    if form is None:
        known = " | ".join(" ".join(sorted(form.columns)) for form in FORMS)
        raise InputError(f"{at}: columns {', '.join(columns)} are no known form ({known}); map names with options.columns")
    by_name = options.axis.files.items() if isinstance(options.axis, AxisRule) else ()
    axis = next((axis for name in names for pattern, axis in by_name if fnmatchcase(name, pattern)), None)
    for option, choice in (("axis", options.axis), ("golden", options.golden)):
        if isinstance(choice, AxisRule | GoldenColumn) and choice.column not in columns and (option == "golden" or axis is None):
            lacking = f"no column {choice.column!r}" if choice.column else "no pattern of files fits"
            raise InputError(f"{at}: options.{option}: {lacking}; columns: {', '.join(columns)}")
    if isinstance(options.axis, str) and options.axis in columns:
        raise InputError(f"task {options.task}: options.axis: {options.axis} is a column of {name}; write {{column: {options.axis}}}")
    if form.columns >= PKU_AXES.keys() and options.axis is not None:
        raise InputError(f"task {options.task}: options.axis: {name} has two labels a pair, which are its axes; leave it out")
    return Source(name, path, axis, form, reading, _chain(head, renamed))


def _chain(head: Iterable[tuple[str, Row]], rest: Iterator[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    yield from head
    yield from rest


class _Counted:
    """Rows, how many there were, and those that cannot be used, by reason; `first`: where the first of them stands."""

    def __init__(self, rows: Iterable[tuple[str, Row]]) -> None:
        self.rows, self.n, self.where, self.first = rows, 0, "", ""
        self.wrong: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Row]:
        for where, row in self.rows:
            self.n, self.where = self.n + 1, where
            yield row

    def drop(self, reason: str) -> None:
        self.wrong[reason] += 1
        self.first = self.first or self.where


def _items(source: Source, rows: _Counted, options: Options) -> Iterator[tuple[Item, Row]]:
    """The items of a file, scored responses of a prompt as pairs after its last row; with each the row, or the first of several."""
    waiting: dict[tuple[Turns, Any], tuple[Scored, Row]] = {}
    for row in rows:
        try:
            for item in source.form.read(row, source.reading):
                if isinstance(item, Scored):
                    axis = row.get(options.axis.column) if isinstance(options.axis, AxisRule) and options.axis.column else None
                    before, first = waiting.get((item.messages, axis), (Scored(item.messages, (), item.labels), row))
                    together = Scored(item.messages, (*before.responses, *item.responses), item.labels)
                    waiting[item.messages, axis] = together, first
                elif item.chosen is not None and item.rejected is not None and (problem := _problem(item.chosen, item.rejected)):
                    rows.drop(problem)
                else:
                    yield item, row
        except WrongRow as error:
            rows.drop(str(error))
    for scored, row in waiting.values():
        yield from ((item, row) for item in pair_up(scored, options.against))


def _problem(chosen: str, rejected: str) -> str | None:
    return EMPTY if not chosen.strip() or not rejected.strip() else IDENTICAL if chosen.strip() == rejected.strip() else None


def _refuse_wrong(source: Source, rows: _Counted, options: Options) -> None:
    if rows.wrong.total() > options.max_dropped * rows.n:
        reasons = ", ".join(f"{count} {reason}" for reason, count in rows.wrong.most_common(3))
        raise InputError(
            f"task {options.task}: {source.path}: {rows.wrong.total()} of {rows.n} rows cannot be used (options.max_dropped: "
            f"{options.max_dropped:g}), read as {source.form.name}: {reasons}; the first: {rows.first}"
        )


def _axis(choice: str | AxisRule | None, item: Item, row: Row, of_source: str | None) -> str:
    if item.axis is not None:
        return item.axis
    if isinstance(choice, str):
        axis = choice
    elif choice is None:
        axis = row["axis"] if isinstance(row.get("axis"), str) else AXIS
    else:
        value = row.get(choice.column) if choice.column else None
        if value is None and of_source is None:
            raise WrongRow(f"rows without {choice.column}, their axis, dropped")
        axis = str(value) if value is not None else str(of_source)
        if value is not None and choice.values is not None:
            axis = next((name for pattern, name in choice.values.items() if fnmatchcase(axis, pattern)), "")
            if not axis:
                raise WrongRow(f"rows whose {choice.column} fits no pattern of options.axis dropped")
    if not AXIS_NAME.fullmatch(axis) or axis == ALL:
        raise WrongRow("rows whose axis is no name (letters, digits, blanks and .:/+-) dropped")
    return axis


def _golden(choice: Any, item: Item, row: Row, answers: Mapping[Turns, str | None]) -> str | None:
    if choice in (None, "chosen"):
        return item.chosen
    if isinstance(choice, GoldenColumn):
        return text_of(row, choice.column).strip() or None if row.get(choice.column) is not None else None
    if isinstance(choice, GoldenFile):
        return answers.get(item.messages)
    if isinstance(choice, GoldenScore):
        if item.chosen is not None and item.score is None:
            raise WrongRow("rows without a score of the chosen side (score_chosen), which options.golden needs, dropped")
        return item.best if item.score is not None and item.score >= choice.min_score else None
    return None


def golden_responses(options: Options, base: Path | None) -> dict[Turns, str | None]:
    """Golden responses by prompt: JSON lines with response, and prompt or messages, as `apo-bench golden` writes them.

    None for a response that holds a speaker's turn. A repeated prompt and the human's next turn are taken off.
    """
    answers: dict[Turns, str | None] = {}
    if not isinstance(options.golden, GoldenFile):
        return answers
    for where, row in read_jsonl(_file(options, "golden", options.golden.file, base)):
        key = "messages" if "messages" in row else "prompt"
        try:
            if key == "messages" and not isinstance(row[key], list):
                raise InputError(f"{where}: messages: a list of [role, text] turns is needed")
            turns, response = prompt_turns(row.get(key)), text_of(row, "response").strip()
        except WrongRow as error:
            raise InputError(f"{where}: {str(error).removesuffix(' dropped')} give no golden responses") from None
        if not turns or not response:
            raise InputError(f"{where}: {'response' if turns else key}: missing or empty")
        if turns in answers:
            raise InputError(f"{where}: {key}: a second golden response to one prompt")
        answers[turns] = transcripts.answer(transcripts.written(turns), response)
    return answers


def _clusters(rows: list[PreferenceRow], threshold: float) -> tuple[str, ...]:
    turns = [normalise(row.messages[0][1]) for row in rows]
    return tuple(turns[place] for place in near_duplicates(turns, threshold))


def _of_the_hub(options: Options, folder: str | None) -> Iterator[tuple[str, Row]]:
    assert options.hub is not None
    try:
        yield from hub_rows(options.hub, options.split, data_dir=folder, subset=options.subset)
    except ValueError as error:
        place = ", ".join(filter(None, (options.hub, folder, options.split)))
        raise InputError(f"task {options.task}: options.hub: cannot read {place}: {error} (options.data_files reads local files)") from None


def _file(options: Options, option: str, value: str, base: Path | None) -> Path:
    try:
        return find_file(value, base)
    except InputError as error:
        raise InputError(f"task {options.task}: options.{option}: {error}") from None
