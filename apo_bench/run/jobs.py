"""Arm-seeds and other parts of a run, as jobs. A worker is told where the question is, never an object."""

import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from apo_bench.store import write_json

GOLD, INITIAL = "_gold", "_initial_policy"  # bench jobs beside the arms


@dataclass(frozen=True)
class Told:
    """What a job tells while it works: its stage; tokens that were sampled, scored or trained on for it so far; what its arm has used."""

    stage: str
    tokens: float = 0.0
    used: Mapping[str, float] = field(default_factory=dict)
    finished: bool = False
    failed: bool = False


class Report(Protocol):
    """Say what is being done; `tokens` and `used` as in Told."""

    def __call__(self, stage: str, tokens: float = 0.0, used: Mapping[str, float] | None = None) -> None: ...


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


def run_job(work: Work, job: Job, tell: Callable[[Told], None] = lambda told: None) -> str | None:
    """Run one job, and say in its progress file what it is doing and why it failed; none is left of a finished one."""
    said: dict[str, Any] = {**here(), "steps": 0, "rounds": 0}

    def report(stage: str, tokens: float = 0.0, used: Mapping[str, float] | None = None) -> None:
        said["rounds" if re.fullmatch(r"round \d+ done", stage) else "steps"] += 1
        write_json(job.progress, {**said, "stage": stage, "tokens": tokens, "used": dict(used or {})})
        tell(Told(stage, tokens, dict(used or {})))

    report("starting")
    message = work(job, report)
    if message:
        mark_failed(job, message, said)
    else:
        job.progress.unlink(missing_ok=True)
    return message


def ended(message: str | None) -> Told:
    """What is told of a job that has come to its end."""
    return Told("failed" if message else "done", finished=True, failed=bool(message))


def mark_waiting(jobs: Sequence[Job]) -> None:
    for job in jobs:
        write_json(job.progress, {**here(), "stage": "waiting"})


def mark_failed(job: Job, message: str, said: dict[str, Any] | None = None) -> None:
    with suppress(OSError):  # it may have failed because nothing can be written
        write_json(job.progress, {**(said or here()), "stage": "failed", "error": message})


def here() -> dict[str, Any]:
    """Which process this is."""
    return {"pid": os.getpid(), "host": socket.gethostname()}
