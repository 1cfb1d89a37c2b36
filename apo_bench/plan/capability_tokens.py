"""Roughly what `evaluation.capabilities` reads, which no ledger of a plan holds."""

from pathlib import Path

from apo_bench.config.schema import Experiment
from apo_bench.data import capability_tasks
from apo_bench.data.capability_tasks import KEY
from apo_bench.data.task_folder import find_task
from apo_bench.formatting import count


def capability_note(experiment: Experiment, base: Path | None) -> str | None:
    """Items and tokens of a policy; of tasks whose data are not files here, that they are not known; None where no task is run.

    Raises InputError for a task that is not there or whose files cannot be read.
    """
    settings = experiment.evaluation.capabilities
    if settings is None or capability_tasks.lacking():
        return settings and capability_tasks.lacking()
    names, most = ", ".join(settings.tasks), len(experiment.arms) * len(experiment.seeds) + 1
    if not capability_tasks.are_local(settings):
        return f"{KEY}: {names}: not all of their data are files of include_path, so they were not read; tokens: unknown"
    options = {find_task(experiment.task.use, base).name: experiment.task.options}
    items, tokens = capability_tasks.expected(settings, options)
    return f"{KEY}: {names}: {items} items, about {count(round(tokens))} tokens a policy (4 characters each), at most {most} policies"
