"""lm-eval's tasks as `evaluation.capabilities` names them: opened from local files first, known by content, counted before a run.

Nothing here downloads by itself: a task whose data lie on a hub is read as lm-eval reads it, from its cache where that is offline.
"""

import difflib
import importlib.util
import io
import json
import random
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from apo_bench.config.schema import Capabilities
from apo_bench.errors import InputError, NotHere
from apo_bench.hashing import checksum, digest

KEY = "evaluation.capabilities"
RANDOM, OTHER = 0, 1234  # lm-eval's seeds: of python, and of numpy, torch and few-shot examples
LOCAL = ("json", "csv", "parquet", "text", "arrow")  # builders of `datasets` that read files
CHARACTERS, GENERATED = 4, 256  # characters a token; tokens of an answer where a task does not say, as in lm-eval
Tasks = dict[str, Any]  # lm-eval's task objects, by name


def lacking() -> str | None:
    """What has to be installed, in a line; None if nothing is missing."""
    missing = importlib.util.find_spec("lm_eval") is None
    return f"{KEY}: lm-eval is not installed; run: pip install 'apo-bench[lm-eval]'" if missing else None


# --- what can change a score ----------------------------------------------------------------------------------------------------


def file_identity(settings: Capabilities) -> dict[str, Any]:
    """What is known without opening a task: lm-eval's version, the settings, the content of `include_path` and of the data it names."""
    try:
        version = metadata.version("lm-eval")
    except metadata.PackageNotFoundError:
        version = None
    folder = None if settings.include_path is None else Path(settings.include_path)
    files = {str(path.relative_to(folder)): path for path in task_files(folder)} if folder else {}
    named = [_located(name, path.parent) for path in files.values() if path.suffix == ".yaml" for name in _data_files(_read(path))]
    contents = {**{name: checksum(path) for name, path in files.items()}, "data": sorted(checksum(path) for path in named if path)}
    return {"lm_eval": version, "settings": settings.changes_scores, "files": digest(contents)}


def identity(settings: Capabilities, tasks: Tasks) -> dict[str, Any]:
    """As `file_identity`, with each opened task's version and the content of its items and few-shot examples."""
    contents = {}
    for name, task in tasks.items():
        examples = list(task.fewshot_docs() or ()) if task.get_config("num_fewshot") else []
        questions = json.dumps([_items(task, settings.limit), examples], sort_keys=True, default=str)
        contents[name] = {"version": str(task.VERSION), "content": digest(questions)}
    return {**file_identity(settings), "tasks": contents}


def task_files(folder: Path) -> list[Path]:
    """The files of a task folder, at any depth, without hidden ones and python's cache."""

    def is_content(path: Path) -> bool:
        parts = path.relative_to(folder).parts
        return path.is_file() and "__pycache__" not in parts and not any(part.startswith(".") for part in parts)

    return sorted(filter(is_content, folder.rglob("*")))


def _items(task: Any, limit: int | None) -> list[Any]:
    documents = task.eval_docs
    return [documents[place] for place in range(len(documents) if limit is None else min(limit, len(documents)))]


class _Loader(yaml.SafeLoader):
    """lm-eval's YAML, with the names of functions as text."""


_Loader.add_constructor("!function", lambda loader, node: str(node.value))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, ValueError, yaml.YAMLError):  # lm-eval passes over it, too
        return {}
    return tree if isinstance(tree, dict) else {}


def _data_files(description: Mapping[str, Any]) -> Iterator[str]:
    """Names of data files in a task's `dataset_kwargs`: one, a list, or either by split."""
    waiting = [(description.get("dataset_kwargs") or {}).get("data_files")]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list | dict):
            waiting += value.values() if isinstance(value, dict) else value


def _located(name: str, folder: Path) -> Path | None:
    """A data file relative to the working directory, as in lm-eval, or to the task's own file; None: not a file here."""
    return next((path for path in (Path(name).expanduser(), folder / name) if path.is_file()), None)


# --- opening --------------------------------------------------------------------------------------------------------------------


@contextmanager
def as_in_lm_eval() -> Iterator[None]:
    """The random states that lm-eval starts from, restored afterwards, and none of its progress bars."""
    import numpy as np

    before = random.getstate(), np.random.get_state()
    random.seed(RANDOM)
    np.random.seed(OTHER)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def open_tasks(settings: Capabilities, options: Mapping[str, Any]) -> Tasks:
    """The tasks with their data, as lm-eval opens them within `as_in_lm_eval`. `options`: metadata beside that of the settings.

    Raises InputError, one line, for a task that is not there, cannot be opened, or has no score of an item.
    """
    from lm_eval.tasks import TaskManager

    entries, tasks, given = check_names(settings), dict[str, Any](), {**options, **settings.metadata}
    groups = partial(_all_tasks, settings.include_path, json.dumps(given, sort_keys=True))
    with tempfile.TemporaryDirectory() as scratch:
        for name, entry in entries.items():
            is_task = entry.kind.name in ("TASK", "PY_TASK")
            spec = str(_with_whole_paths(name, entry, Path(scratch))) if is_task else name
            try:
                opened = TaskManager(include_path=settings.include_path, include_defaults=False, metadata=given) if is_task else groups()
                tasks |= opened.load([spec])["tasks"]
            except Exception as error:  # data sets, metrics and tasks raise errors of every kind
                kind, what = (NotHere if isinstance(error, ConnectionError) else InputError), f"{KEY}.tasks: {name}"
                cause = str(error) if isinstance(error, InputError) else f"lm-eval cannot open it: {type(error).__name__}: {error}"
                raise kind(f"{what}: {cause}") from error
    for name, task in tasks.items():
        few = settings.num_fewshot
        if few is not None and task.get_config("num_fewshot") != 0:  # a 0 in a task's file stays, as in lm-eval
            task.set_config(key="num_fewshot", value=few)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=OTHER)
        if task.OUTPUT_TYPE == "loglikelihood_rolling":
            raise InputError(f"{KEY}.tasks: {name}: a perplexity of whole documents is no score of an item")
    return tasks


def check_names(settings: Capabilities) -> dict[str, Any]:
    """lm-eval's entry of each task: in `include_path` where it has one, else among its own. Raises InputError where there is none."""
    from lm_eval.tasks import TaskManager

    folder, names = settings.include_path, settings.tasks
    if folder is not None and not Path(folder).is_dir():
        raise InputError(f"{KEY}.include_path: {folder}: no such folder")
    own = TaskManager(include_path=folder, include_defaults=False).task_index if folder else {}
    index = own if set(names) <= set(own) else {**_all_tasks(None, "{}").task_index, **own}
    if missing := next((name for name in names if name not in index), None):
        near = ", ".join(difflib.get_close_matches(missing, index, 3))
        raise InputError(
            f"{KEY}.tasks: no task {missing!r} in lm-eval{f' or {folder}' if folder else ''}{f'; near: {near}' if near else ''}"
        )
    return {name: index[name] for name in names}


@cache
def _all_tasks(folder: str | None, given: str) -> Any:
    """A task manager of lm-eval's own tasks too, whose thousands of files take it half a minute to read; `given`: metadata, as JSON."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder, metadata=json.loads(given))


def _with_whole_paths(name: str, entry: Any, scratch: Path) -> Path:
    """The task's file, or, where data files lie beside it and not in the working directory, one that gives their whole paths."""
    path = Path(entry.yaml_path).resolve()
    described = entry.cfg or {}
    if all(Path(file).expanduser().is_file() or not (path.parent / file).is_file() for file in _data_files(described)):
        return path

    def whole(value: Any) -> Any:
        if isinstance(value, str):
            return str((_located(value, path.parent) or Path(value)).absolute())
        return {key: whole(part) for key, part in value.items()} if isinstance(value, dict) else [whole(part) for part in value]

    kwargs = described["dataset_kwargs"]
    content = {"include": str(path), "task": name, "dataset_kwargs": {**kwargs, "data_files": whole(kwargs["data_files"])}}
    file = scratch / f"{digest(name)}.yaml"
    file.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    return file


# --- before a run ---------------------------------------------------------------------------------------------------------------


def are_local(settings: Capabilities) -> bool:
    """Whether all tasks are of `include_path` and read files, or are python; the data of others are known only to a hub or its cache.

    Raises InputError for a task that is not there, where there is an `include_path`.
    """
    if settings.include_path is None:
        return False
    folder = Path(settings.include_path).resolve()

    def is_local(entry: Any) -> bool:
        is_own = entry.yaml_path is not None and Path(entry.yaml_path).resolve().is_relative_to(folder)
        return is_own and ("custom_dataset" in entry.cfg or entry.cfg.get("dataset_path") in LOCAL)

    return all(is_local(entry) for entry in check_names(settings).values())


def expected(settings: Capabilities, options: Mapping[str, Any]) -> tuple[int, float]:
    """(items, tokens) of one policy, roughly: 4 characters a token, and answers as long as they may be. Raises as `open_tasks`."""
    items, tokens = 0, 0.0
    with as_in_lm_eval():
        tasks = open_tasks(settings, options)
        for task in tasks.values():
            task.build_all_requests(limit=settings.limit, rank=0, world_size=1)
            items += len({instance.doc_id for instance in task.instances})
            for instance in task.instances:
                texts = [part for part in instance.args if isinstance(part, str)]
                written = instance.args[1].get("max_gen_toks", GENERATED) if instance.request_type == "generate_until" else 0
                tokens += sum(map(len, texts)) / CHARACTERS + written
    return items, tokens
