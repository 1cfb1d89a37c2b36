"""Arm-seeds and other parts of a run, as jobs. A worker is told where the question is, never an object."""

import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apo_bench.store import write_json

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


def prepare_worker() -> None:
    """One thread, and quiet: for whatever reads the environment, before it is imported."""
    import logging

    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_PROGRESS_BARS="1")
    logging.disable(logging.WARNING)
    from apo_bench.models.policy import in_one_thread

    in_one_thread()


def run_job(work: Work, job: Job, tell: Report = lambda stage: None) -> str | None:
    """Run one job, and say in its progress file what it is doing and why it failed; none is left of a finished one."""
    said: dict[str, Any] = {**here(), "steps": 0, "rounds": 0}

    def report(stage: str) -> None:
        said["rounds" if re.fullmatch(r"round \d+ done", stage) else "steps"] += 1
        write_json(job.progress, {**said, "stage": stage})
        tell(stage)

    report("starting")
    message = work(job, report)
    if message:
        mark_failed(job, message, said)
    else:
        job.progress.unlink(missing_ok=True)
    return message


def mark_waiting(jobs: Sequence[Job]) -> None:
    for job in jobs:
        write_json(job.progress, {**here(), "stage": "waiting"})


def mark_failed(job: Job, message: str, said: dict[str, Any] | None = None) -> None:
    write_json(job.progress, {**(said or here()), "stage": "failed", "error": message})


def here() -> dict[str, Any]:
    """Which process this is."""
    return {"pid": os.getpid(), "host": socket.gethostname()}


@contextmanager
def display(jobs: Sequence[Job]) -> Iterator[Callable[..., None]]:
    """show(job, stage, finished=...): a bar with the time left on a terminal; a line per finished job elsewhere."""
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
