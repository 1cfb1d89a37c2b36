"""Executors, which run jobs: local processes, or Ray. Each module has `run_all(jobs, work, workers, settings, show)`, and
`check(settings)` where something can be checked before a run.

An experiment names one by `executor: NAME`. Where a job runs changes no row, so no key holds it. A job whose process or node is lost
is run once more, and fails when that is lost too. A job that returns an error message is not repeated: it would fail again. When
a job whose result all arms share has failed, the others are not run.
"""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from apo_bench.config.schema import Executor
from apo_bench.errors import InputError
from apo_bench.run.jobs import SHARED, Failure, Job, ProgressEvent, Work

Show = Callable[[Job, ProgressEvent], None]
TRIES = 2  # for a job whose process is lost


class RunAll(Protocol):
    """Run jobs in parallel, each in one thread, at most `workers` at a time (None: as the executor sees fit); returns failures, sorted.

    `show` gets every job's events. `work` is a module's function: it is sent to other processes by name.
    """

    def __call__(self, jobs: Sequence[Job], work: Work, workers: int | None, settings: Executor, show: Show) -> list[Failure]: ...


def check_executor(settings: Executor) -> list[str]:
    """What its module's `check`, if it has one, notes of the settings. Raises InputError for no such executor, and as `check` does."""
    executor(settings.use)
    module = importlib.import_module(f"apo_bench.run.executors.{settings.use}")
    return module.check(settings) if hasattr(module, "check") else []


def executor(name: str) -> RunAll:
    """The executor with that name. Raises InputError where there is none."""
    if importlib.util.find_spec(f"apo_bench.run.executors.{name}") is None:
        from pathlib import Path

        available = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")
        raise InputError(f"executor: no executor named {name!r}; there are: {', '.join(available)}")
    return cast(RunAll, importlib.import_module(f"apo_bench.run.executors.{name}").run_all)


def is_over(failures: Sequence[Failure]) -> bool:
    """Whether what all arms share cannot be made: then no other job can finish, and none is run."""
    return any(failure.arm in SHARED for failure in failures)


def quiet(job: Job, event: ProgressEvent) -> None:
    """Show nothing."""


def in_order(failures: Sequence[Failure]) -> list[Failure]:
    """Failures by arm, seed and trial."""
    return sorted(failures, key=lambda failure: (failure.arm, failure.seed, failure.trial or 0))
