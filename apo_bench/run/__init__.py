"""Running experiments: jobs and executors, records, tables, status, and the checks before a run. `run_experiment` is the entry."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apo_bench.run.pipeline import RunResult
    from apo_bench.run.start import run_experiment

__all__ = ["RunResult", "run_experiment"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is used, so that the modules of this package start fast."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from apo_bench.run import start

    return getattr(start, name)
