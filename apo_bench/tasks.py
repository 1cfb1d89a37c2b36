"""Task folder -> Task: rows split by conversation, checked for leaks, counted.

A task is `tasks/<name>/<name>.yaml`, a valid lm-eval task whose `metadata.apo_bench` holds the fields of `Description`. It names
functions of the folder's python as `module.function`; each takes the task's options as keywords (and `base`, the experiment file's folder,
if its signature has that name) and returns:

- rows: dicts {"messages": [[role, content], ...], "axis", "cluster"} with both of "chosen" and "rejected" or neither (a prompt only), and
  perhaps "golden"; or {"dropped": reason} for an annotation the task had to leave out, which is counted.
- golden: prompt -> golden response or None. Instead of a function: `chosen` (a row's chosen side) or `rows` (only what rows carry).
- ground_truth: (prompt, response) -> score.    is_refusal: text -> bool.    provenance: a sentence (or write it into the YAML).
- demonstrations: dicts {"messages", "response", "axis", "cluster"}.    vocabulary: words.
"""

import hashlib
import importlib.util
import inspect
import math
import sys
import traceback
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, TypeGuard, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from apo_bench.errors import InputError
from apo_bench.shipped import find_beside
from apo_bench.types import SPLITS, Demonstration, Message, Pair, Prompt, Role, Split, identity, prompt_id

Reference = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*\.[A-Za-z_]\w*$")]
WARM_UP_SPLITS: tuple[Split, ...] = ("rm", "policy")  # demonstrations of the other splits' clusters are left out


@dataclass(frozen=True)
class Task:
    """What the models are asked, and what people preferred.

    `axes` are those that have rows. `golden` maps the id of a prompt of the rm split to its golden response. `counts` has
    "<split>.pairs", "<split>.<axis>.pairs" and likewise prompts and clusters, and one entry per reason for which something was left out.
    `fingerprint` hashes the content of all rows; `source_files` (the task's YAML and python) say how they came about.
    """

    name: str
    axes: tuple[str, ...]
    pairs: Mapping[Split, tuple[Pair, ...]]
    prompts: Mapping[Split, tuple[Prompt, ...]]
    golden: Mapping[str, str]
    ground_truth: Callable[[Prompt, str], float] | None
    is_refusal: Callable[[str], bool] | None
    demonstrations: tuple[Demonstration, ...]
    vocabulary: tuple[str, ...] | None
    provenance: str
    counts: Mapping[str, int]
    source_files: tuple[Path, ...]
    fingerprint: str


class Description(BaseModel):
    """The fields of `metadata.apo_bench`. `options` holds every option the task has, with its default."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    axes: tuple[str, ...] = Field(min_length=1)
    splits: dict[Split, float]
    salt: str
    rows: Reference
    golden: str = "chosen"
    ground_truth: Reference | None = None
    is_refusal: Reference | None = None
    demonstrations: Reference | None = None
    vocabulary: Reference | None = None
    options: dict[str, Any] = {}
    provenance: str = Field(min_length=1)

    @field_validator("splits")
    @classmethod
    def _sums_to_one(cls, shares: dict[Split, float]) -> dict[Split, float]:
        _check_shares(shares)
        return shares


# Splitting


def normalise(text: str) -> str:
    """Fold what makes no other conversation: Unicode form (NFKC), case, punctuation and symbols, white space."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kept = "".join(letter for letter in folded if letter.isspace() or unicodedata.category(letter)[0] not in "PSC")
    return " ".join(kept.split())


def split_of(cluster: str, shares: Mapping[Split, float], salt: str) -> Split:
    """The split of a cluster: a salted hash of its normalised string against the cumulated shares.

    Depends on nothing else, so a cluster stays where it is when data are added. Raises ValueError unless the shares sum to 1.
    """
    _check_shares(shares)
    digest = hashlib.sha256(f"{salt}\0{normalise(cluster)}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    wanted: list[Split] = [split for split in SPLITS if shares.get(split, 0) > 0]
    edge = 0.0
    for split in wanted:
        edge += shares[split]
        if place < edge:
            return split
    return wanted[-1]  # the shares' sum may be rounded down


def check_leaks(name: str, prompts: Mapping[Split, Iterable[Prompt]]) -> None:
    """Raise InputError if a cluster, or a normalised first human turn, is in two splits."""
    seen: dict[tuple[str, str], tuple[Split, Prompt]] = {}
    for split, members in prompts.items():
        for prompt in members:
            turn = normalise(next(message.content for message in prompt.messages if message.role == "user"))
            for key in (("cluster", prompt.cluster_id), ("first human turn", turn)):
                other, first = seen.setdefault(key, (split, prompt))
                if other != split:
                    raise InputError(f"{name}: splits: one {key[0]} is in {other} (prompt {first.id}) and in {split} (prompt {prompt.id})")


def _check_shares(shares: Mapping[Split, float]) -> None:
    if not all(share >= 0 for share in shares.values()) or not math.isclose(sum(shares.values()), 1, abs_tol=1e-9):
        raise ValueError(f"shares are 0 or more and sum to 1, got {dict(shares)}")


# Loading


def load_task(use: str, options: Mapping[str, Any], *, base: Path | None) -> Task:
    """Load a task by name or by the path of its folder, with `options` over its defaults.

    `base` is the experiment file's folder. Raises InputError, one line naming file and key: unknown task, key or option, a bad row, a split
    or axis left empty, a conversation in two splits, python that fails.
    """
    folder = find_task(use, base)
    path = folder / f"{folder.name}.yaml"
    about = read_description(path)
    options = merge_options(path, about.options, options)
    modules: dict[str, ModuleType] = {}

    def named(key: str, reference: str) -> Any:
        function = _function(path, key, reference, modules)
        with _blamed(path, key):
            return function(**options, **({"base": base} if "base" in inspect.signature(function).parameters else {}))

    def each(key: str, reference: str) -> Iterator[Any]:
        found = named(key, reference)
        with _blamed(path, key):
            yield from found

    def function_of(key: str, reference: str) -> Any:
        found = named(key, reference)
        if not callable(found):
            raise InputError(f"{path}: metadata.apo_bench.{key}: {reference} has to return a function, got {type(found).__name__}")
        return found

    reader = _Reader(path, about)
    for number, row in enumerate(each("rows", about.rows), 1):
        reader.add_row(number, row)
    if about.demonstrations:
        for number, row in enumerate(each("demonstrations", about.demonstrations), 1):
            reader.add_demonstration(number, row)
    pairs: dict[Split, tuple[Pair, ...]] = {split: tuple(reader.pairs[split]) for split in SPLITS}
    prompts: dict[Split, tuple[Prompt, ...]] = {split: tuple(reader.prompts[split].values()) for split in SPLITS}
    demonstrations = tuple(one for split in WARM_UP_SPLITS for one in reader.demonstrations[split])
    asked: dict[Split, tuple[Prompt, ...]] = {
        split: (*prompts[split], *(one.prompt for one in reader.demonstrations[split])) for split in SPLITS
    }
    check_leaks(str(path), asked)
    axes = tuple(axis for axis in about.axes if any(prompt.axis == axis for split in SPLITS for prompt in prompts[split]))
    counts = {**reader.dropped, **_counts(axes, pairs, prompts)}
    _refuse_empty(path, about.splits, axes, counts)

    answer = function_of("golden", about.golden) if about.golden not in ("chosen", "rows") else lambda prompt: reader.golden.get(prompt.id)
    with _blamed(path, "golden"):
        answers = {prompt.id: answer(prompt) for prompt in prompts["rm"]}
    golden = {id_: text for id_, text in answers.items() if _is_text(text) and text.strip()}
    if odd := [text for text in answers.values() if text is not None and not _is_text(text)]:
        raise InputError(f"{path}: metadata.apo_bench.golden: Unicode text or None is needed, got {odd[0]!r}")
    counts["rm prompts without a golden response"] = len(prompts["rm"]) - len(golden)
    vocabulary = tuple(each("vocabulary", about.vocabulary)) if about.vocabulary else None
    if odd := [word for word in vocabulary or () if not _is_text(word)]:
        raise InputError(f"{path}: metadata.apo_bench.vocabulary: words are needed, got {odd[0]!r}")
    is_reference = about.provenance.count(".") == 1 and about.provenance.replace(".", "a").isidentifier()
    return Task(
        name=folder.name,
        axes=axes,
        pairs=pairs,
        prompts=prompts,
        golden=golden,
        ground_truth=function_of("ground_truth", about.ground_truth) if about.ground_truth else None,
        is_refusal=function_of("is_refusal", about.is_refusal) if about.is_refusal else None,
        demonstrations=demonstrations,
        vocabulary=vocabulary,
        provenance=named("provenance", about.provenance) if is_reference else about.provenance,
        counts=counts,
        source_files=(path, *sorted(folder.glob("*.py"))),
        fingerprint=_fingerprint(pairs, prompts, golden, demonstrations, vocabulary or ()),
    )


def find_task(use: str, base: Path | None) -> Path:
    """The folder of a task: a path, or a name under `tasks/` beside the experiment file, in the working directory, in the shipped data."""
    folder = (find_beside(f"tasks/{use}", base) if use == Path(use).name else None) or find_beside(use, base)
    if folder is None or not folder.is_dir():
        raise InputError(f"task: use: no task {use!r} (no folder tasks/{use} beside the experiment file, here or in the shipped data)")
    return folder.resolve()


def find_file(value: str | Path, base: Path | None) -> Path:
    """A data file a user named: relative to the experiment file's folder, else to the working directory. Raises InputError if absent."""
    places = [place / Path(value).expanduser() for place in (base, Path.cwd()) if place is not None]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise InputError(f"{value}: no such file (looked for {' and '.join(dict.fromkeys(map(str, places)))})")
    return found


class _Reader:
    """Takes rows, checks them one by one, and puts each where its cluster belongs."""

    def __init__(self, path: Path, about: Description) -> None:
        self.path, self.about = path, about
        self.pairs: dict[Split, list[Pair]] = {split: [] for split in SPLITS}
        self.prompts: dict[Split, dict[str, Prompt]] = {split: {} for split in SPLITS}
        self.demonstrations: dict[Split, list[Demonstration]] = {split: [] for split in SPLITS}
        self.golden: dict[str, str] = {}
        self.dropped: Counter[str] = Counter({"identical pairs dropped": 0, "empty-sided pairs dropped": 0})
        self._splits: dict[str, tuple[Split, str]] = {}

    def add_row(self, number: int, row: Any) -> None:
        if isinstance(row, Mapping) and "dropped" in row:
            if not _is_text(row["dropped"]):
                raise self._error("rows", number, f"dropped: the reason in words is needed, got {row['dropped']!r}")
            self.dropped[row["dropped"]] += 1
            return
        split, prompt = self._prompt("rows", number, row, {"chosen", "rejected", "golden"})
        chosen, rejected = self._text("rows", number, row, "chosen"), self._text("rows", number, row, "rejected")
        if (chosen is None) != (rejected is None):
            raise self._error("rows", number, "chosen and rejected go together")
        if chosen is not None and rejected is not None:
            if not chosen.strip() or not rejected.strip():
                self.dropped["empty-sided pairs dropped"] += 1
                return
            if chosen.strip() == rejected.strip():
                self.dropped["identical pairs dropped"] += 1
                return
            self.pairs[split].append(Pair(prompt, chosen, rejected))
        self.prompts[split].setdefault(prompt.id, prompt)
        golden = self._text("rows", number, row, "golden") or (chosen if self.about.golden == "chosen" else None)
        if golden is not None:
            self.golden.setdefault(prompt.id, golden)  # of several, the first

    def add_demonstration(self, number: int, row: Any) -> None:
        split, prompt = self._prompt("demonstrations", number, row, {"response"})
        response = self._text("demonstrations", number, row, "response")
        if not response:
            raise self._error("demonstrations", number, "response: missing or empty")
        if split in WARM_UP_SPLITS:
            self.demonstrations[split].append(Demonstration(prompt, response))
        else:
            self.dropped["demonstrations of gold, dev and test clusters left out"] += 1

    def _prompt(self, key: str, number: int, row: Any, others: set[str]) -> tuple[Split, Prompt]:
        if not isinstance(row, Mapping):
            raise self._error(key, number, f"a mapping of keys is needed, got {type(row).__name__}")
        if unknown := set(row) - {"messages", "axis", "cluster"} - others:
            raise self._error(key, number, f"{min(map(str, unknown))}: unknown key")
        if missing := {"messages", "axis", "cluster"} - set(row):
            raise self._error(key, number, f"{sorted(missing)[0]}: missing")
        turns = row["messages"]
        if not isinstance(turns, list | tuple) or not turns or not all(_is_turn(turn) for turn in turns) or turns[-1][0] != "user":
            raise self._error(key, number, "messages: [role, content] turns of user and assistant, the last the user's, are needed")
        if not isinstance(row["cluster"], str):
            raise self._error(key, number, f"cluster: text is needed, got {type(row['cluster']).__name__}")
        if row["axis"] not in self.about.axes:
            raise self._error(key, number, f"axis: {row['axis']!r} is none of {', '.join(self.about.axes)}")
        messages = tuple(Message(cast(Role, role), text) for role, text in turns)
        split, cluster_id = self._placed(row["cluster"])
        return split, Prompt(prompt_id(row["axis"], messages), messages, row["axis"], cluster_id)

    def _placed(self, cluster: str) -> tuple[Split, str]:
        if cluster not in self._splits:
            self._splits[cluster] = split_of(cluster, self.about.splits, self.about.salt), identity(normalise(cluster))
        return self._splits[cluster]

    def _text(self, key: str, number: int, row: Mapping[str, Any], name: str) -> str | None:
        value = row.get(name)
        if value is not None and not _is_text(value):
            got = "half a surrogate pair" if isinstance(value, str) else type(value).__name__
            raise self._error(key, number, f"{name}: text is needed, got {got}")
        return value

    def _error(self, key: str, number: int, problem: str) -> InputError:
        return InputError(_one_line(f"{self.path}: {key}: row {number}: {problem}"))


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, list | tuple) and len(turn) == 2 and turn[0] in ("user", "assistant") and _is_text(turn[1])


def _is_text(value: Any) -> TypeGuard[str]:
    """Whether this can be written as UTF-8: a string may hold half a character."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _counts(axes: tuple[str, ...], pairs: Mapping[Split, tuple[Pair, ...]], prompts: Mapping[Split, tuple[Prompt, ...]]) -> dict[str, int]:
    counts = {}
    for split in SPLITS:
        for axis in (None, *axes):
            asked = [prompt for prompt in prompts[split] if axis in (None, prompt.axis)]
            where = f"{split}.{axis}" if axis else split
            counts[f"{where}.pairs"] = sum(axis in (None, pair.prompt.axis) for pair in pairs[split])
            counts[f"{where}.prompts"] = len(asked)
            counts[f"{where}.clusters"] = len({prompt.cluster_id for prompt in asked})
    return counts


def _refuse_empty(path: Path, shares: Mapping[Split, float], axes: tuple[str, ...], counts: Mapping[str, int]) -> None:
    if not axes:
        raise InputError(f"{path}: rows: no rows are left")
    for split in SPLITS:
        for axis in axes:
            for what in ("prompts", "pairs"):
                # Policies are trained on prompts alone; reward models and the tables that judge them need pairs.
                if shares.get(split, 0) > 0 and (what == "prompts" or split != "policy") and not counts[f"{split}.{axis}.{what}"]:
                    raise InputError(f"{path}: splits.{split}: no {axis} {what} fall into it; give more rows or a larger share")


def _fingerprint(
    pairs: Mapping[Split, tuple[Pair, ...]],
    prompts: Mapping[Split, tuple[Prompt, ...]],
    golden: Mapping[str, str],
    demonstrations: tuple[Demonstration, ...],
    vocabulary: tuple[str, ...],
) -> str:
    parts: list[str] = []
    for split in SPLITS:
        parts += [split, "pairs", *(pair.id for pair in pairs[split])]
        parts += ["prompts", *(text for prompt in prompts[split] for text in (prompt.id, prompt.cluster_id))]
    parts += ["golden", *(text for item in golden.items() for text in item)]
    parts += ["demonstrations", *(text for one in demonstrations for text in (one.prompt.id, one.response))]
    return identity(*parts, "vocabulary", *vocabulary)


# The task's YAML and python


class _TaskLoader(yaml.SafeLoader):
    """Safe YAML that leaves lm-eval's `!function` tags as plain text."""


_TaskLoader.add_constructor("!function", lambda loader, node: loader.construct_scalar(cast(yaml.ScalarNode, node)))


def read_description(path: Path) -> Description:
    """A task's YAML, validated. Raises InputError."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_TaskLoader)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; a task's folder holds a YAML of its own name") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, TypeError, ValueError, OverflowError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise InputError(_one_line(f"{path}: {where}not valid YAML: {getattr(error, 'problem', None) or error}")) from None
    metadata = tree.get("metadata") if isinstance(tree, dict) else None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("apo_bench"), dict):
        raise InputError(f"{path}: metadata.apo_bench: missing")
    try:
        return Description.model_validate(metadata["apo_bench"])
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in ("metadata", "apo_bench", *first["loc"]))
        raise InputError(_one_line(f"{path}: {key}: {first['msg'].removeprefix('Value error, ')}")) from None


def merge_options(path: Path, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The task's options with those an experiment gives. Raises InputError for one the task does not have."""
    for key, value in given.items():
        if key not in defaults:
            raise InputError(f"{path}: options.{key}: no such option; options: {', '.join(defaults) or 'none'}")
        default = defaults[key]
        kind = (int, float) if isinstance(default, float) else list | tuple if isinstance(default, list) else type(default)
        if default is not None and (not isinstance(value, kind) or (isinstance(value, bool) and not isinstance(default, bool))):
            raise InputError(f"{path}: options.{key}: {type(default).__name__} is needed, got {value!r}")
    return {**defaults, **given}


def _function(path: Path, key: str, reference: str, modules: dict[str, ModuleType]) -> Callable[..., Any]:
    if not reference.replace(".", "a").isidentifier() or reference.count(".") != 1:
        raise InputError(f"{path}: metadata.apo_bench.{key}: module.function is needed, got {reference!r}")
    stem, name = reference.split(".")
    file = path.parent / f"{stem}.py"
    if stem not in modules:
        if not file.is_file():
            raise InputError(f"{path}: metadata.apo_bench.{key}: no file {file}")
        modules[stem] = _load_module(file)
    function = getattr(modules[stem], name, None)
    if not callable(function):
        raise InputError(f"{path}: metadata.apo_bench.{key}: {file} has no function {name}")
    return function


@contextmanager
def _blamed(path: Path, key: str) -> Iterator[None]:
    """What a task's own python raises is said in one line: the YAML's key, and where it was raised."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}, line {last.lineno}"
        raise InputError(_one_line(f"{path}: metadata.apo_bench.{key}: {type(error).__name__}: {error} ({place})")) from error


def _load_module(file: Path) -> ModuleType:
    """The file's module under a name that its place and content make unique, so that no other module is shadowed."""
    source = file.read_bytes()
    name = f"apo_bench_task_{file.stem}_{identity(str(file), repr(source))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None, file
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up while it loads
    try:
        exec(compile(source, str(file), "exec"), module.__dict__)  # not through the loader, which leaves a __pycache__ there
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        if isinstance(error, SyntaxError):
            raise InputError(f"{file}: line {error.lineno}: {error.msg}") from None
        raise InputError(_one_line(f"{file}: cannot be imported: {type(error).__name__}: {error}")) from error
    return module


# lm-eval


def lm_eval_dataset(
    folder: Path, metadata: Mapping[str, Any], *, render: Callable[[tuple[Message, ...]], str], axis: str | None = None
) -> dict[str, Any]:
    """What a task's `custom_dataset` returns to lm-eval: {"test": datasets.Dataset}, exactly our test pairs (of one axis).

    lm-eval passes its own metadata and the model's arguments as keywords; a task's options stand among them under the task's name, as in
    `--metadata '{"hh": {"data_files": ["a.jsonl"]}}'`, so that no argument of a model is mistaken for one. Columns: id, prompt (rendered),
    choices (both sides), gold (index of the chosen one), axis, cluster_id. The chosen side's place alternates by the pair's hash: a
    log-likelihood does not see it, but ties go to the first place and must not all count as right.
    """
    import datasets

    task = load_task(str(folder), metadata.get(folder.name, {}), base=None)
    documents = [
        {"prompt": render(pair.prompt.messages), **_choices(pair)} for pair in task.pairs["test"] if axis in (None, pair.prompt.axis)
    ]
    if not documents:
        raise InputError(f"{folder}: splits.test: no {axis or ''} pairs")
    return {"test": datasets.Dataset.from_list(documents)}


def _choices(pair: Pair) -> dict[str, Any]:
    gold = int(pair.id, 16) % 2
    choices = [pair.rejected, pair.chosen] if gold else [pair.chosen, pair.rejected]
    return {"id": pair.id, "choices": choices, "gold": gold, "axis": pair.prompt.axis, "cluster_id": pair.prompt.cluster_id}
