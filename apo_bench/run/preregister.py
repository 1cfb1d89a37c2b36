"""Preregistration: question, families, seeds, tuning grids and code of an experiment, frozen in a hashed file beside it before it is run.

The file is committed before the run. A run that finds one beside its experiment compares itself with it, and the report says "as
preregistered" or lists every deviation.
"""

import hashlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from apo_bench.config.load import ExperimentFile, dotted
from apo_bench.config.plugins import source_files
from apo_bench.config.schema import WHOLE, Experiment
from apo_bench.config.variations import variations
from apo_bench.engines import engine_module
from apo_bench.errors import InputError
from apo_bench.hashing import code_hash, encoded
from apo_bench.provenance import origin
from apo_bench.run.experiment import ResolvedExperiment
from apo_bench.store import write_json

SUFFIX = ".preregistration.json"
FREE = ("executor", "trackers", "report", "store")  # keys of an experiment that change no result


def preregister(resolved: ResolvedExperiment, *, question: str | None = None, today: date | None = None) -> Path:
    """Freeze an experiment that was checked in `<its name>.preregistration.json` beside it; returns that file.

    question: what is asked, in words; if None, the comment at the top of the experiment's file.
    Raises InputError for an experiment that says no question, and where the file or results are there already.
    """
    target = preregistration_file(resolved.path)
    if target.exists():
        raise InputError(f"{target}: is there already; a preregistration is written once (remove it to start over, before any result)")
    if any((resolved.folder / name).exists() for name in ("manifest.json", "report")):
        raise InputError(f"{resolved.folder}: has results already; what was seen can no longer be preregistered")
    words = question or leading_comment(resolved.path.read_text(encoding="utf-8"))
    if not words:
        raise InputError(f"{resolved.path}: says no question; give --question, or a comment at the top of the file")
    compare = resolved.experiment.compare
    content = {
        "question": words,
        "primary": [f"{pair.a} - {pair.b}" for pair in compare.primary],
        "secondary": [f"{pair.a} - {pair.b}" for pair in compare.secondary],
        "seeds": list(resolved.experiment.seeds),
        "day": (today or date.today()).isoformat(),
        "code": code_of(resolved),
        "task": resolved.task.fingerprint,
        **{key: origin()[key] for key in ("versions", "commit", "dirty")},
        "experiment": _plain(resolved.file.experiment),
    }
    write_json(target, {"sha256": sha256(content), **content})
    return target


def preregistration_file(experiment: Path) -> Path:
    """Where the preregistration of an experiment's file lies."""
    return experiment.with_name(experiment.stem + SUFFIX)


def read_preregistration(path: Path) -> dict[str, Any]:
    """A preregistration. Raises InputError for a file that is not one, and for one whose content is not what was hashed."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        stated = content.pop("sha256")
        complete = {"question", "seeds", "day", "code", "task", "versions", "commit", "experiment"} <= content.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not a preregistration: {type(error).__name__}: {error}") from None
    if not complete or sha256(content) != stated:
        raise InputError(f"{path}: sha256: does not fit the content, which was changed after it was written; restore it from git")
    return {"sha256": stated, **content}


def compare_with_preregistration(resolved: ResolvedExperiment, variation: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """What the report says of the preregistration beside an experiment's file; None where there is none.

    Keys: file, sha256, day, question, committed (commit and day in which git first has the file; None: in none), deviations. `variation`
    is the level of a varied experiment. Raises InputError as `read_preregistration` does.
    """
    path = preregistration_file(resolved.path)
    if not path.is_file():
        return None
    frozen = read_preregistration(path)
    facts = {key: frozen[key] for key in ("sha256", "day", "question")}
    return {"file": path.name, **facts, "committed": first_commit(path), "deviations": list(deviations(frozen, resolved, variation))}


def deviations(frozen: Mapping[str, Any], resolved: ResolvedExperiment, variation: Mapping[str, Any] | None = None) -> Iterator[str]:
    """Each way in which a run is not what was preregistered, in words."""
    before, now = dotted(_at_level(frozen["experiment"], resolved.path, variation)), dotted(_plain(resolved.file.experiment))
    for key in dict.fromkeys([*before, *now]):
        if key.partition(".")[0] not in FREE and before.get(key) != now.get(key):
            yield f"{key}: {json.dumps(before.get(key))} was preregistered, {json.dumps(now.get(key))} was run"
    if frozen["task"] != resolved.task.fingerprint and variation is None:
        yield "the task's data are others"
    here = origin()
    if frozen["code"] != code_of(resolved):
        yield f"the code that makes results changed (commit {frozen['commit'] or 'unknown'}, now {here['commit'] or 'unknown'})"
    for name, version in frozen["versions"].items():
        if here["versions"].get(name) != version:
            yield f"{name} {version} was installed, now {here['versions'].get(name, 'none')}"


def code_of(resolved: ResolvedExperiment) -> str:
    """Hash of all code that can change a result: the harness's, the engine's, the task's and the methods'."""
    methods = {path for arm in resolved.experiment.arms.values() for path in source_files(arm.use, arm.parameters, base=resolved.base)}
    modules = ("apo_bench.run.worker", engine_module(resolved.experiment.engine))
    return code_hash(*modules, *resolved.task.source_files, *sorted(methods))


def sha256(content: Mapping[str, Any]) -> str:
    """The hash that a preregistration carries: of all its other keys, as JSON in one way of writing."""
    return hashlib.sha256(encoded(content).encode()).hexdigest()


def leading_comment(text: str) -> str:
    """The comment at the top of an experiment's file, without the command that it may begin with."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    return " ".join(line for line in lines if line and not line.startswith("apo-bench "))


def first_commit(path: Path) -> dict[str, str] | None:
    """The commit in which git first has a file, and its day; None where no commit has it."""
    command = ["git", "-C", str(path.parent), "log", "--diff-filter=A", "--format=%H %cs", "--", path.name]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return None
    return dict(zip(("commit", "day"), lines[-1].split(), strict=True)) if lines else None


def _at_level(experiment: Mapping[str, Any], path: Path, variation: Mapping[str, Any] | None) -> dict[str, Any]:
    """The frozen experiment at one level of what varies in it; as it is where it has no such level."""
    if variation is None:
        return dict(experiment)
    whole = Experiment.model_validate_json(json.dumps(experiment), strict=True)
    for level in variations(whole):
        if dict(level.levels) == dict(variation):
            return _plain(ExperimentFile(path, experiment, {}, whole).under(level.overrides).experiment)
    return dict(experiment)


def _plain(experiment: Experiment) -> dict[str, Any]:
    return experiment.model_dump(mode="json", context=WHOLE)
