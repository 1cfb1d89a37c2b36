"""Where jobs run. A module here is an executor: `run_all(jobs, work, workers, settings, show)`; an experiment names it by `executor: NAME`.

What ran where changes no row, so an executor is in no key. A job whose process, or node, is lost is run once more; lost again, it
failed. A job that returns why it failed is not repeated: it would fail again.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from apo_bench.config.schema import Executor
from apo_bench.errors import InputError
from apo_bench.run.jobs import Job, Told, Work
from apo_bench.run.tables import Failure

Show = Callable[[Job, Told], None]
TRIES = 2  # of a job whose process is lost


class RunAll(Protocol):
    """Run jobs side by side, each in one thread, at most `workers` at a time (None: as the executor sees fit); what failed, sorted.

    `show` is told how far each is.
    `work` is a module's function, since it is sent to other processes by name.
    """

    def __call__(self, jobs: Sequence[Job], work: Work, workers: int | None, settings: Executor, show: Show) -> list[Failure]: ...


def executor(name: str) -> RunAll:
    """The executor of that name. Raises InputError where there is none."""
    if importlib.util.find_spec(f"apo_bench.run.executors.{name}") is None:
        from pathlib import Path

        there = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")
        raise InputError(f"executor: no executor named {name!r}; there are: {', '.join(there)}")
    return cast(RunAll, importlib.import_module(f"apo_bench.run.executors.{name}").run_all)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quiet(job: Job, told: Told) -> None:
    """Shows nothing."""


def in_order(failures: Sequence[Failure]) -> list[Failure]:
    return sorted(failures, key=lambda failure: (failure.arm, failure.seed, failure.trial or 0))
