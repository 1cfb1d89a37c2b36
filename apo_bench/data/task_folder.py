"""A task's folder: its YAML, its python, and the data files that a user names. Errors in them are one line.

A task is `tasks/<name>/<name>.yaml`, a valid lm-eval task whose `metadata.apo_bench` holds the fields of `Description`. It names
functions of the folder's python as `module.function`; each takes the task's options as keywords (and `base`, the experiment file's folder,
if its signature has that name) and returns:

- rows: dicts {"messages": [[role, content], ...], "axis", "cluster"} with both of "chosen" and "rejected" or neither (a prompt only), and
  perhaps "golden"; or {"dropped": reason} for an annotation the task had to leave out, which is counted.
- golden: prompt -> golden response or None. Instead of a function: `chosen` (a row's chosen side) or `rows` (only what rows carry).
- ground_truth: (prompt, response) -> score.    is_refusal: text -> bool.    provenance: a sentence (or write it into the YAML).
- recognised: a line on what the user's files were taken for, which `check` shows.
- demonstrations: dicts {"messages", "response", "axis", "cluster"}.    vocabulary: words.
"""

import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from apo_bench.config.plain_yaml import PlainLoader, read_yaml
from apo_bench.config.python_files import load_python_file
from apo_bench.config.schema_errors import input_error
from apo_bench.data.splits import check_shares
from apo_bench.errors import InputError, did_you_mean, what_is_wrong
from apo_bench.package_data import find_beside
from apo_bench.types import Split

Reference = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*\.[A-Za-z_]\w*$")]


class Description(BaseModel):
    """The fields of `metadata.apo_bench`. `options` holds every option the task has, with its default.

    `axes: rows` are those of the rows. An option `splits` that is not null stands for the field.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    axes: Annotated[tuple[str, ...], Field(min_length=1)] | Literal["rows"]
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
    recognised: Reference | None = None

    @field_validator("splits")
    @classmethod
    def _sums_to_one(cls, shares: dict[Split, float]) -> dict[Split, float]:
        check_shares(shares)
        return shares


class TaskCode:
    """The functions that a task's YAML names, called with its options. Their exceptions become an InputError that names the key."""

    def __init__(self, path: Path, options: Mapping[str, Any], base: Path | None) -> None:
        self.path, self.options, self.base = path, options, base
        self._modules: dict[str, ModuleType] = {}

    def call(self, key: str, reference: str) -> Any:
        """The function's result."""
        function = _function(self.path, key, reference, self._modules)
        with self.blamed(key):
            return function(**self.options, **({"base": self.base} if "base" in inspect.signature(function).parameters else {}))

    def each(self, key: str, reference: str) -> Iterator[Any]:
        """The items that the function yields."""
        values = self.call(key, reference)
        with self.blamed(key):
            yield from values

    def function(self, key: str, reference: str) -> Any:
        """The function that the named function returns."""
        value = self.call(key, reference)
        if not callable(value):
            raise InputError(f"{self.path}: metadata.apo_bench.{key}: {reference} has to return a function, got {type(value).__name__}")
        return value

    @contextmanager
    def blamed(self, key: str) -> Iterator[None]:
        """Turn what the task's python raises into an InputError, one line with the YAML's key and the place it was raised at."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(last.filename).name}, line {last.lineno}"
            raise InputError(f"{self.path}: metadata.apo_bench.{key}: {type(error).__name__}: {error} ({place})") from error


def find_task(use: str, base: Path | None) -> Path:
    """The folder of a task: a path, or a name under `tasks/` beside the experiment file, in the working directory, in the shipped data."""
    folder = (find_beside(f"tasks/{use}", base) if use == Path(use).name else None) or find_beside(use, base)
    if folder is None or not folder.is_dir():
        raise InputError(f"task: use: no task {use!r} (no folder tasks/{use} beside the experiment file, here or in the shipped data)")
    return folder.resolve()


def code_of(folder: Path) -> tuple[Path, ...]:
    """The task's python files, which run when the task is loaded."""
    return tuple(sorted(folder.glob("*.py")))


def find_file(value: str | Path, base: Path | None) -> Path:
    """A data file a user named: relative to the experiment file's folder, else to the working directory. Raises InputError if absent."""
    candidates = [folder / Path(value).expanduser() for folder in (base, Path.cwd()) if folder is not None]
    file = next((path for path in candidates if path.is_file()), None)
    if file is None:
        raise InputError(f"{value}: no such file (looked for {' and '.join(dict.fromkeys(map(str, candidates)))})")
    return file


class _TaskLoader(PlainLoader):
    """Plain YAML that leaves lm-eval's `!function` tags as plain text."""


_TaskLoader.add_constructor("!function", lambda loader, node: loader.construct_scalar(cast(yaml.ScalarNode, node)))


def read_description(path: Path) -> Description:
    """A task's YAML, validated. Raises InputError."""
    if not path.exists():
        raise InputError(f"{path}: no such file; a task's folder holds a YAML of its own name")
    tree = read_yaml(path, str(path), _TaskLoader)
    metadata = tree.get("metadata") if isinstance(tree, dict) else None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("apo_bench"), dict):
        raise InputError(f"{path}: metadata.apo_bench: missing")
    try:
        return Description.model_validate(metadata["apo_bench"])
    except ValidationError as error:
        raise input_error(f"{path}: metadata.apo_bench", error, metadata["apo_bench"], Description, joint=".") from None


def with_shares(path: Path, about: Description, shares: Any) -> Description:
    """The description with other shares of the splits, which a user gives as the option `splits`. Raises InputError."""
    try:
        return Description.model_validate({**about.model_dump(), "splits": shares})
    except ValidationError as error:
        raise InputError(f"{path}: options.splits: {what_is_wrong(error.errors()[0])}") from None


def merge_options(path: Path, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The task's options with those an experiment gives. Raises InputError for one the task does not have."""
    for key, value in given.items():
        if key not in defaults:
            raise InputError(
                f"{path}: options.{key}: no such option; options: {', '.join(defaults) or 'none'}{did_you_mean(key, defaults)}"
            )
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


def _load_module(file: Path) -> ModuleType:
    """The file's module. Raises InputError where it cannot be imported."""
    try:
        return load_python_file(file)
    except (Exception, SystemExit) as error:
        if isinstance(error, SyntaxError):
            raise InputError(f"{file}: line {error.lineno}: {error.msg}") from None
        raise InputError(f"{file}: cannot be imported: {type(error).__name__}: {error}") from error
