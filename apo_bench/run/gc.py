"""`apo-bench gc`: what a run folder's store holds that no row needs, and its removal.

Needed is what a record names, or what a needed artifact was made from: its manifest's inputs name it. Samples, scores and divergences are
also needed as long as the models that they are of are: a method's own are in no record, and with them its replay computes nothing. Every
record counts, also that of an arm or a seed which the experiment has no more: it is not run again, should it come back.
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
from apo_bench.run.status import artifacts, named, read_status
from apo_bench.store import MANIFEST, RUN_LOCK

OF_MODELS = {"samples": ("policy",), "scores": ("reward_model",), "kl": ("policy", "reference")}  # kind -> inputs that name models
LEFT_OVER = re.compile(r"\.?[0-9a-f]{24}\.(tmp|damaged|scratch)\w*|\..+\.json\.tmp\d+")  # of artifacts, and of files written whole


@dataclass(frozen=True)
class Swept:
    """What went, or would go, with its size; and how many artifacts stayed."""

    paths: tuple[Path, ...]
    bytes: int
    kept: int


def sweep(folder: Path, *, dry_run: bool = False, unfinished: bool = False) -> Swept:
    """Remove what no row needs: artifacts, damaged ones moved aside, left-overs of killed processes. Lock files stay.

    Raises InputError, with nothing removed, while a run is at work; where a record cannot be read; and, unless `unfinished`, while
    arm-seeds are without a result: what they have made so far is named by no record, and would be made again.
    """
    store = folder / "store"
    _refuse_at_work(folder, unfinished=unfinished)
    with _held(store / RUN_LOCK) if (store / RUN_LOCK).exists() else nullcontext():
        pass
    if dry_run:
        return _found(folder)
    store.mkdir(exist_ok=True)
    with _held(store / RUN_LOCK):
        _refuse_at_work(folder, unfinished=unfinished)  # a run may have begun meanwhile
        found = _found(folder)
        for path in found.paths:
            _remove(path)
    return found


def _refuse_at_work(folder: Path, *, unfinished: bool) -> None:
    status, store = read_status(folder), folder / "store"
    if busy := status.busy:
        raise InputError(f"{folder}: a run is at work ({busy[0].arm}, seed {busy[0].seed}, process {busy[0].pid})")
    open_ = [part for part in status.parts if part.state != "finished" and not part.of_the_bench]
    if open_ and not unfinished:
        which = f"{len(open_)} without a result, such as {open_[0].arm}, seed {open_[0].seed}"
        raise InputError(f"{folder}: {which}; what they made would go too (with --unfinished it does)")
    for lock in (*sorted(store.glob(".*.lock")), *sorted(store.glob("*/.*.lock"))):
        if lock.name != RUN_LOCK:  # which a sweep holds itself
            with _held(lock):
                pass


def needed(folder: Path) -> set[str]:
    """Keys of the artifacts that the records of a run folder need. Raises InputError for a record that cannot be read."""
    present = artifacts(folder)
    inputs = {key: _inputs(path) for key, path in present.items()}
    found: set[str] = set()

    def keep(names: Iterable[str]) -> None:
        more = {name for name in names if name in present} - found
        while more:
            found.update(more)
            more = {name for key in more for name in named(inputs[key]) if name in present} - found

    for path in _records(folder):
        keep(named(_record(path)))
    for key, path in present.items():
        if (of := OF_MODELS.get(path.parent.name)) and {inputs[key].get(name) for name in of} <= found:
            found.add(key)
    return found


def _found(folder: Path) -> Swept:
    store, kept = folder / "store", needed(folder)
    orphans = [path for key, path in artifacts(folder).items() if key not in kept]
    left_over = [path for pattern in ("*", "*/*") for path in sorted(store.glob(pattern)) if LEFT_OVER.fullmatch(path.name)]
    paths = (*left_over, *orphans)  # in this order: a left-over may have the name under which an orphan goes
    return Swept(paths, sum(map(_size, paths)), len(kept))


def _records(folder: Path) -> Iterator[Path]:
    for kind in ("arm_seeds", "trials"):
        yield from sorted((folder / "store" / kind).glob("[!.]*.json"))


def _record(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: a record that cannot be read ({type(error).__name__}); run the experiment again first") from None


def _inputs(path: Path) -> Mapping[str, Any]:
    """What an artifact was made from; nothing that is known of one whose manifest is damaged."""
    try:
        return dict(json.loads((path / MANIFEST).read_text(encoding="utf-8"))["inputs"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


@contextmanager
def _held(lock: Path) -> Iterator[None]:
    """Hold a lock. Raises InputError where somebody else does."""
    try:
        taken = FileLock(lock).acquire(timeout=0)
    except Timeout:
        raise InputError(f"{lock}: held by another process; wait until the run has ended") from None
    with taken:
        yield


def _remove(path: Path) -> None:
    """An artifact loses its name before its files: whatever has its final name is whole, also if this is killed."""
    if path.is_file():
        return path.unlink()
    key = path.name.lstrip(".").partition(".")[0]
    with _held(path.with_name(f".{key}.lock")):
        if path.name == key:
            path = path.rename(path.with_name(f".{key}.tmp_swept"))
        shutil.rmtree(path)


def _size(path: Path) -> int:
    return sum(one.stat().st_size for one in (path.rglob("*") if path.is_dir() else [path]) if one.is_file())
