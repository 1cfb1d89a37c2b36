"""What a run keeps of the files that its experiment names: methods, losses, judges, task, data, by content.

So a run folder can be opened from any directory and on another machine. What ships with apo-bench is there too, and is not kept; models
are not: the store has those of the run. `inputs/files.json` says where each value of the experiment lies.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from apo_bench.config.finished_arms import FILES as RESPONSES
from apo_bench.config.load import load_experiment
from apo_bench.config.plugins import is_shipped
from apo_bench.config.python_files import neighbours
from apo_bench.config.schema import WHOLE, Experiment
from apo_bench.data.task import Task
from apo_bench.data.task_folder import find_task
from apo_bench.errors import InputError
from apo_bench.hashing import checksum, digest
from apo_bench.package_data import find_beside
from apo_bench.run.experiment import TaskCache, first_day, with_resolved_files, with_set_files, with_template_dates
from apo_bench.store import write_bytes, write_json

INPUTS = "inputs"
INDEX = Path(INPUTS) / "files.json"
MOST_BYTES = 2**28  # of a data file; a larger one is named with its checksum, and not kept
Place = tuple[str | int, ...]


def keep_inputs(folder: Path, experiment: Experiment, base: Path) -> None:
    """Copy the files that an experiment names into its run folder, and write which is which. `base`: the folder they are relative to."""
    rows = []
    for place, value, source in _named(experiment.model_dump(mode="json", context=WHOLE), base):
        row = {"at": list(place), "value": value}
        rows.append(row | (_keep_folder if source.is_dir() else _keep_file)(folder / INPUTS, source))
    if rows:
        write_json(folder / INDEX, rows)


def with_inputs(folder: Path, experiment: Experiment) -> Experiment:
    """The experiment of a run folder with the kept files in place of the named ones; as it is where none are kept.

    Raises InputError for a kept file that was changed.
    """
    try:
        rows = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except OSError:
        return experiment
    tree = experiment.model_dump(mode="json", context=WHOLE)
    try:
        for row in (row for row in rows if "file" in row):
            path = folder.absolute() / INPUTS / row["file"]
            if path.is_file() and checksum(path) != row["sha256"]:
                raise InputError(f"{path}: does not match its checksum in {folder / INDEX}")
            *above, last = row["at"]
            at = tree
            for part in above:
                at = at[part]
            at[last] = f"{path}@{row['value'].rpartition('@')[2]}" if last == "use" and "@" in row["value"] else str(path)
    except InputError:
        raise
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / INDEX}: not what a run writes: {error!r}") from None
    return Experiment.model_validate_json(json.dumps(tree), strict=True)


def experiment_of_run(folder: Path, base: Path) -> tuple[Experiment, Task]:
    """The experiment of a run folder with the files that it keeps, and its task. `base`: what names of other files are relative to.

    A model that is not on this machine keeps its name: the store has those of the run.
    """
    experiment = with_inputs(folder, load_experiment(folder / "experiment.yaml"))
    task = TaskCache().load(experiment, base)
    try:
        experiment = with_resolved_files(experiment, base)
    except InputError:
        experiment = with_set_files(experiment, base)
    return with_template_dates(experiment, first_day(folder)), task


def _named(tree: dict[str, Any], base: Path) -> Iterator[tuple[Place, str, Path]]:
    """(place in the experiment, its value, file or task folder) of all that is here and does not ship with apo-bench."""
    task = find_task(tree["task"]["use"], base)
    named: list[tuple[Place, str, Path | None]] = [(("task", "use"), tree["task"]["use"], task)]
    for place, value in _texts(tree):
        match place:
            case ("arms" | "judges", *_, "use") if value.rpartition("@")[0].endswith(".py"):
                named.append((place, value, find_beside(value.rpartition("@")[0], base)))
            case ("arms", _, key, *_) if key in RESPONSES:
                named.append((place, value, find_beside(Path(value).expanduser(), base)))
            case ("task", "options", *_) | ("evaluation", "prompt_sets", _, "data_files" | "refusal_labels", *_):
                file = _file(value, base)
                named.append((place, value, file if file and file.is_file() else None))
    for place, value, path in named:
        if path is not None and not is_shipped(path):
            yield place, value, path.resolve()


def _file(value: str, base: Path) -> Path | None:
    try:
        return find_beside(Path(value).expanduser(), base)
    except (OSError, ValueError, RuntimeError):  # a text that can be no path
        return None


def _texts(tree: Any, place: Place = ()) -> Iterator[tuple[Place, str]]:
    if isinstance(tree, str):
        yield place, tree
    items: Sequence[tuple[Any, Any]] = [*tree.items()] if isinstance(tree, dict) else [*enumerate(tree)] if isinstance(tree, list) else []
    for key, value in items:
        yield from _texts(value, (*place, key))


def _keep_file(into: Path, source: Path) -> dict[str, str]:
    """Copy a file, python with the neighbours that it imports; what the index says of it."""
    whole = checksum(source)
    if source.suffix != ".py" and source.stat().st_size > MOST_BYTES:
        return {"sha256": whole}
    files = neighbours(source) if source.suffix == ".py" else [source]
    folder = Path("files", digest([(file.name, checksum(file)) for file in files])[:12])
    for file in files:
        _copy(file, into / folder / file.name)
    return {"file": str(folder / source.name), "sha256": whole}


def _keep_folder(into: Path, source: Path) -> dict[str, str]:
    """Copy a task's folder; its data may lie there too."""
    for file in sorted(path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        if file.stat().st_size <= MOST_BYTES:
            _copy(file, into / "tasks" / source.name / file.relative_to(source))
    return {"file": str(Path("tasks", source.name))}


def _copy(source: Path, target: Path) -> None:
    """A whole copy or none, where there is no equal one yet."""
    if not target.is_file() or checksum(target) != checksum(source):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, source.read_bytes())
