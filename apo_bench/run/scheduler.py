"""Runs those jobs of an experiment that are not finished, and collects what failed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from filelock import FileLock

from apo_bench.config.schema import Experiment
from apo_bench.errors import InputError
from apo_bench.run import records
from apo_bench.run.devices import default_workers
from apo_bench.run.executors import executor, is_over
from apo_bench.run.experiment import ResolvedExperiment
from apo_bench.run.jobs import GOLD, INITIAL, SHARED, Failure, Job, Records, mark_waiting
from apo_bench.run.progress import announce, live
from apo_bench.run.tables import rows_in
from apo_bench.run.trackers import work_and_track
from apo_bench.run.worker import work
from apo_bench.store import RUN_LOCK, damage_of

CHANGED = "its record is of another experiment: the experiment file, or a file it names, was changed during the run"


@dataclass(frozen=True)
class JobSubset:
    """The arms and seeds that are to run now; None: all of them."""

    arms: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None

    def has(self, job: Job) -> bool:
        """Whether the job belongs to it. A trial of tuning belongs to its arm, whatever its seed."""
        return (self.arms is None or job.arm in self.arms) and (self.seeds is None or job.trial is not None or job.seed in self.seeds)

    def check(self, experiment: Experiment) -> None:
        """Raises InputError for an arm or seed that the experiment does not have."""
        for name, wanted, available in (("arms", self.arms, list(experiment.arms)), ("seeds", self.seeds, list(experiment.seeds))):
            if unknown := [value for value in wanted or () if value not in available]:
                has = ", ".join(map(str, available))
                raise InputError(f"--{name} {unknown[0]}: the experiment has no such {name[:-1]}; it has: {has}")


ALL = JobSubset()


def _count(things: Sequence[Any], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


class JobRunner:
    """Runs jobs by the experiment's executor. `failures` are those of arm-seeds; a failed trial is no failure of the run."""

    def __init__(self, resolved: ResolvedExperiment, workers: int | None) -> None:
        self.resolved, self.workers = resolved, workers
        self.failures: list[Failure] = []
        self._run_all = executor(resolved.experiment.executor.use)
        self._shared_jobs_done = False

    def record(self, job: Job) -> dict[str, Any] | None:
        """The job's record, or None if it is not finished."""
        return records.finished(job, self.resolved)

    def run(self, jobs: Sequence[Job]) -> list[Failure]:
        """Run the jobs that are not finished; their failures, those of trials included.

        Raises InputError where the initial policy or a gold reward model cannot be made: no arm could be evaluated.
        """
        missing = [job for job in jobs if self.record(job) is None]
        if not missing:
            return []
        queue = [*self._shared_jobs(), *missing]
        experiment = self.resolved.experiment
        budgets: dict[str, Mapping[Any, float]] = {arm: experiment.budget_of(arm) for arm in experiment.arms}
        with FileLock(self.resolved.folder / "store" / RUN_LOCK):  # not while a sweep decides what can be removed
            mark_waiting(queue)
        workers = min(self.workers or default_workers(experiment.executor), len(queue))
        announce(f"running {_count(queue, 'job')}, {workers} at a time; each worker loads its models first")
        with live(queue, budgets, workers) as show:
            failures = self._run_all(queue, work_and_track if experiment.trackers else work, self.workers, experiment.executor, show)
        if is_over(failures):
            first = next(failure for failure in failures if failure.arm in SHARED)
            what = "the initial policy" if first.arm == INITIAL else "a gold reward model"
            raise InputError(f"{self.resolved.path}: {what} cannot be made, so no arm was run to its end: {first.message}")
        failed = {(failure.arm, failure.seed, failure.trial) for failure in failures}
        failures += [
            Failure(job.arm, job.seed, CHANGED, job.trial)
            for job in missing
            if (job.arm, job.seed, job.trial) not in failed and self.record(job) is None
        ]
        self.failures += [failure for failure in failures if failure.trial is None]
        return failures

    def records(self, jobs: Sequence[Job]) -> Records:
        """The records of the finished arm-seeds among the jobs. One whose rows are damaged on disk is run again first."""
        self.run(self.discard_damaged(jobs))
        return {(job.arm, job.seed): record for job in jobs if (record := self.record(job))}

    def discard_damaged(self, jobs: Sequence[Job]) -> list[Job]:
        """Those of the finished jobs whose rows are damaged on disk; they are finished no longer."""
        damaged = [job for job in jobs if (record := self.record(job)) and any(map(damage_of, rows_in(job.folder, record)))]
        for job in damaged:
            job.record.unlink(missing_ok=True)
        return damaged

    def _shared_jobs(self) -> list[Job]:
        """The jobs whose results all arms share, the first time; they head the queue."""
        if self._shared_jobs_done:
            return []
        self._shared_jobs_done = True
        task, golds = self.resolved.task, self.resolved.experiment.models.gold
        sizes = (f"{split} {task.counts[f'{split}.prompts']}/{task.counts[f'{split}.clusters']}" for split in task.prompts)
        announce(f"{task.name}: no cluster in two splits; prompts/clusters: {', '.join(sizes)}")
        seeds = sorted({seed for gold in golds for seed in gold.seeds})
        return [self.resolved.job(INITIAL, 0), *(self.resolved.job(GOLD, seed) for seed in seeds)]
