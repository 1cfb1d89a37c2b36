"""`apo-bench gc`: remove from a run folder's store what no row needs.

An artifact is needed if a record names it, or if a needed artifact was made from it (its manifest's inputs name it). Samples, scores and
divergences are also needed while the models they belong to are: a method's own are in no record, and a replay must not compute them again.
Records of arms and seeds that the experiment no longer has count too, so that they need not run again should they return.
"""

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from apo_bench.errors import InputError
from apo_bench.run.models_csv import Keep, unkept, update_models
from apo_bench.run.status import artifacts, read_status, strings_in
from apo_bench.store import MANIFEST, RUN_LOCK

OF_MODELS = {"samples": ("policy",), "scores": ("reward_model",), "kl": ("policy", "reference")}  # kind -> inputs that name models
LEFT_OVER = re.compile(r"\.?[0-9a-f]{24}\.(tmp|damaged|scratch)[\w-]*|\..+\.tmp(\d+|-[\w-]+)")  # of artifacts, and of files written whole
WRITTEN = ("store/*", "store/*/*", "*", "tables/*", "imported/*", "logs/*", "report/*", "report/*/*")  # where there may be some


@dataclass(frozen=True)
class Swept:
    """What was removed, or would be, with its size; and how many artifacts were kept."""

    paths: tuple[Path, ...]
    bytes: int
    kept: int


def sweep(folder: Path, *, dry_run: bool = False, unfinished: bool = False, keep: Keep = "all") -> Swept:
    """Remove what no row needs: unneeded artifacts, damaged ones, left-overs of killed processes; and models that `keep` leaves out.

    Lock files stay, and what was sampled and scored with a removed model. An arm that is added later may have to train it again.

    Raises InputError, with nothing removed, while a run is at work; where a record cannot be read; and, unless `unfinished`, while
    arm-seeds have no result: no record names their artifacts so far, and these would have to be computed again.
    """
    store = folder / "store"
    _refuse_at_work(folder, unfinished=unfinished)
    with _locked(store / RUN_LOCK) if (store / RUN_LOCK).exists() else nullcontext():
        pass
    if dry_run:
        return _unneeded(folder, keep)
    store.mkdir(exist_ok=True)
    with _locked(store / RUN_LOCK):
        _refuse_at_work(folder, unfinished=unfinished)  # a run may have begun meanwhile
        unneeded = _unneeded(folder, keep)
        for path in unneeded.paths:
            _remove(path)
    update_models(folder)
    return unneeded


def _refuse_at_work(folder: Path, *, unfinished: bool) -> None:
    status, store = read_status(folder), folder / "store"
    if busy := status.busy:
        raise InputError(f"{folder}: a run is at work ({busy[0].arm}, seed {busy[0].seed}, process {busy[0].pid})")
    open_ = [job for job in status.jobs if job.state != "finished" and not job.is_shared]
    if open_ and not unfinished:
        which = f"{len(open_)} without a result, such as {open_[0].arm}, seed {open_[0].seed}"
        raise InputError(f"{folder}: {which}; their artifacts would be removed too (--unfinished does so)")
    for lock in (*sorted(store.glob(".*.lock")), *sorted(store.glob("*/.*.lock"))):
        if lock.name != RUN_LOCK:  # which the sweep itself holds
            with _locked(lock):
                pass


def needed(folder: Path) -> set[str]:
    """Keys of the artifacts that the records of a run folder need. Raises InputError for a record that cannot be read."""
    present = artifacts(folder)
    inputs = {key: _inputs(path) for key, path in present.items()}
    keys: set[str] = set()

    def add_with_inputs(names: Iterable[str]) -> None:
        more = {name for name in names if name in present} - keys
        while more:
            keys.update(more)
            more = {name for key in more for name in strings_in(inputs[key]) if name in present} - keys

    for path in _records(folder):
        add_with_inputs(strings_in(_record(path)))
    for key, path in present.items():
        if (models := OF_MODELS.get(path.parent.name)) and {inputs[key].get(name) for name in models} <= keys:
            keys.add(key)
    return keys


def _unneeded(folder: Path, keep: Keep) -> Swept:
    present = artifacts(folder)
    kept = needed(folder) - unkept(present, [_record(path) for path in _records(folder)], keep)
    orphans = [path for key, path in present.items() if key not in kept]
    left_over = [path for pattern in WRITTEN for path in sorted(folder.glob(pattern)) if LEFT_OVER.fullmatch(path.name)]
    paths = (*left_over, *orphans)  # in this order: an orphan is renamed before it is removed, perhaps to a left-over's name
    return Swept(paths, sum(map(_size, paths)), len(kept))


def _records(folder: Path) -> Iterator[Path]:
    for kind in ("arm_seeds", "trials"):
        yield from sorted((folder / "store" / kind).glob("[!.]*.json"))


def _record(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: unreadable record ({type(error).__name__}); run the experiment again first") from None


def _inputs(path: Path) -> Mapping[str, Any]:
    """What an artifact was made from; empty where its manifest is damaged."""
    try:
        return dict(json.loads((path / MANIFEST).read_text(encoding="utf-8"))["inputs"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


@contextmanager
def _locked(lock: Path) -> Iterator[None]:
    """Hold a lock. Raises InputError where another process holds it."""
    try:
        taken = FileLock(lock).acquire(timeout=0)
    except Timeout:
        raise InputError(f"{lock}: held by another process; wait until the run has ended") from None
    with taken:
        yield


def _remove(path: Path) -> None:
    """Remove a file or an artifact. An artifact is renamed first: a folder with a final name is always complete, even after a kill."""
    if path.is_file():
        return path.unlink()
    key = path.name.lstrip(".").partition(".")[0]
    with _locked(path.with_name(f".{key}.lock")):
        if path.name == key:
            path = path.rename(path.with_name(f".{key}.tmp_swept"))
        shutil.rmtree(path)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
