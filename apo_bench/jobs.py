"""Arm-seeds and other parts of a run, as jobs in processes. A worker is told where the question is, never an object."""

import logging
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apo_bench.store import write_json
from apo_bench.tables import Failure

GOLD, INITIAL = "_gold", "_initial_policy"  # bench jobs beside the arms
Report = Callable[[str], None]
Work = Callable[["Job", Report], str | None]  # what went wrong, or None


@dataclass(frozen=True)
class Job:
    """What a worker is told: where the question is, and which part of it to answer."""

    experiment: Path
    overrides: str  # JSON, so that a job is hashable
    folder: Path
    arm: str
    seed: int
    trial: int | None = None  # of tuning: its setting is among the overrides

    @property
    def label(self) -> str:
        if self.trial is not None:
            return f"tuning {self.arm}, trial {self.trial + 1}, seed {self.seed}"
        return "initial policy" if self.arm == INITIAL else f"{self.arm.removeprefix('_')} seed {self.seed}"

    @property
    def progress(self) -> Path:
        """What it is doing, from when a run begins until its record is written."""
        return self.folder / "store" / "progress" / self.record.name

    @property
    def record(self) -> Path:
        """Where what it ends with is written."""
        if self.trial is not None:
            return self.folder / "store" / "trials" / f"{self.arm}.{self.trial}.{self.seed}.json"
        return self.folder / "store" / "arm_seeds" / f"{self.arm}.{self.seed}.json"


def run_all(jobs: Sequence[Job], work: Work, workers: int) -> list[Failure]:
    """Run jobs side by side, each in one thread. `work` is a module's function, since it is sent to other processes by name."""
    for job in jobs:
        write_json(job.progress, {"stage": "waiting", "pid": os.getpid()})
    context = multiprocessing.get_context("spawn")
    failures: list[Failure] = []
    with context.Manager() as manager, _progress(jobs) as show:
        stages = manager.Queue()
        pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context, initializer=_start_worker)
        futures: dict[Future[str | None], Job] = {pool.submit(_work, work, job, stages): job for job in jobs}
        try:
            waiting = set(futures)
            while waiting:
                done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                while not stages.empty():
                    show(*stages.get(), finished=False)
                for future in done:
                    job = futures[future]
                    error = future.exception()
                    message = f"{type(error).__name__}: {error}" if error else future.result()
                    show(job, "failed" if message else "done", finished=True)
                    if message:
                        failures.append(Failure(job.arm, job.seed, message, job.trial))
        except KeyboardInterrupt:
            for process in list((pool._processes or {}).values()):  # they would otherwise finish their arm first
                process.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return sorted(failures, key=lambda failure: (failure.arm, failure.seed))


def _start_worker() -> None:
    """Whatever reads the environment is told of one thread before it is imported."""
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_PROGRESS_BARS="1")
    logging.disable(logging.WARNING)
    from apo_bench.models.policy import in_one_thread

    in_one_thread()


def _work(work: Work, job: Job, stages: Any) -> str | None:
    """Run one job, and say in its progress file what it is doing and why it failed; none is left of a finished one."""
    said: dict[str, Any] = {"pid": os.getpid(), "steps": 0, "rounds": 0}

    def report(stage: str) -> None:
        said["rounds" if re.fullmatch(r"round \d+ done", stage) else "steps"] += 1
        write_json(job.progress, {**said, "stage": stage})
        stages.put((job, stage))

    report("starting")
    message = work(job, report)
    if message:
        write_json(job.progress, {**said, "stage": "failed", "error": message})
    else:
        job.progress.unlink(missing_ok=True)
    return message


@contextmanager
def _progress(jobs: Sequence[Job]) -> Iterator[Callable[..., None]]:
    """A bar with the time left on a terminal; a line per finished job elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    if not sys.stderr.isatty():
        done = 0

        def line(job: Job, stage: str, *, finished: bool) -> None:
            nonlocal done
            if finished:
                done += 1
                print(f"[{done}/{len(jobs)}] {job.label}: {stage}", file=sys.stderr, flush=True)

        yield line
        return

    from rich.console import Console

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        total = progress.add_task("arms x seeds", total=len(jobs))
        running: dict[str, Any] = {}

        def bar(job: Job, stage: str, *, finished: bool) -> None:
            if finished:
                progress.advance(total)
                if job.label in running:
                    progress.remove_task(running.pop(job.label))
            elif job.label not in running:
                running[job.label] = progress.add_task(f"{job.label}: {stage}", total=None)
            else:
                progress.update(running[job.label], description=f"{job.label}: {stage}")

        yield bar
