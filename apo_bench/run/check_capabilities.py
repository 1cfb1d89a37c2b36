"""Checks of `evaluation.capabilities` before a run: the extra, the tasks, and roughly what a policy reads there."""

from collections.abc import Iterator
from pathlib import Path

from apo_bench.config.schema import Experiment
from apo_bench.data import capability_tasks
from apo_bench.data.capability_tasks import KEY
from apo_bench.errors import InputError
from apo_bench.hashing import PACKAGE
from apo_bench.package_data import shipped_root
from apo_bench.plan.capability_tokens import capability_note


def check_capabilities(experiment: Experiment, base: Path) -> Iterator[str]:
    """A note on what is run, and one for each python file of one's own that runs. `experiment`: with its task folder located.

    Raises InputError where lm-eval or a task is missing, and where local data cannot be read.
    """
    settings = experiment.evaluation.capabilities
    if settings is None:
        return
    if missing := capability_tasks.lacking():
        raise InputError(missing)
    capability_tasks.check_names(settings)
    yield str(capability_note(experiment, base))
    folder = None if settings.include_path is None else Path(settings.include_path).resolve()
    if folder is not None and not any(folder.is_relative_to(room) for room in (PACKAGE, shipped_root() / "tasks")):
        yield from (f"code, not of apo-bench: {path} ({KEY})" for path in capability_tasks.task_files(folder) if path.suffix == ".py")
