"""Which workers of a run are idle: a lock for each, which its run holds while the worker has a job.

A job of another worker that wants an idle one's device holds the lock in its place. Locks end with the process that holds them.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from apo_bench.store import write_json

FOLDER = "APO_BENCH_WORKER_SLOTS"  # the environment variable of a worker that holds the locks' folder
ENVIRONMENTS = "environments.json"


def open_slots(folder: Path, environments: Sequence[Mapping[str, str]]) -> list[FileLock]:
    """A free lock for each worker; `environments` are the variables by which a process is on the worker's device."""
    write_json(folder / ENVIRONMENTS, [dict(environment) for environment in environments])
    return [FileLock(_lock(folder, place)) for place in range(len(environments))]


def hold(slot: FileLock) -> bool:
    """Hold a worker's lock, unless another process does; whether it is held now."""
    try:
        return slot.is_locked or bool(slot.acquire(blocking=False))
    except Timeout:
        return False


@contextmanager
def idle_workers(most: int) -> Iterator[list[dict[str, str]]]:
    """Environments of at most so many idle workers, which are this process's within. Outside a worker of a local run there are none."""
    folder = Path(os.environ.get(FOLDER, ""))
    environments = json.loads((folder / ENVIRONMENTS).read_text(encoding="utf-8")) if FOLDER in os.environ else ()
    idle: list[dict[str, str]] = []
    with ExitStack() as locks:
        for place, environment in enumerate(environments):
            slot = FileLock(_lock(folder, place))
            if len(idle) < most and hold(slot):
                locks.callback(slot.release)
                idle.append(environment)
        yield idle


def _lock(folder: Path, place: int) -> Path:
    return folder / f"{place}.lock"
