"""The jobs of a run, and how a worker runs one and reports on it. A job travels to a worker as paths and numbers, never as objects."""

import json
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from apo_bench.errors import shortened
from apo_bench.store import boot, machine, write_json

SHARED = GOLD, INITIAL = "_gold", "_initial_policy"  # jobs whose results all arms share


@dataclass(frozen=True)
class ProgressEvent:
    """Progress of a job: its stage, the tokens sampled, scored or trained on for it so far, and what its arm has spent of each unit."""

    stage: str
    tokens: float = 0.0
    used: Mapping[str, float] = field(default_factory=dict)
    finished: bool = False
    failed: bool = False


class Report(Protocol):
    """Report the present stage; `tokens` and `used` as in ProgressEvent."""

    def __call__(self, stage: str, tokens: float = 0.0, used: Mapping[str, float] | None = None) -> None: ...


Records = Mapping[tuple[str, int], Mapping[str, Any]]  # (arm, seed) -> its record
Trials = Mapping[tuple[str, int, int], Mapping[str, Any]]  # (arm, tuning trial, seed) -> its record
Work = Callable[["Job", Report], str | None]  # the error message, or None


@dataclass(frozen=True)
class Job:
    """An arm-seed, a tuning trial on one seed, a control, or a model that all arms share."""

    experiment: Path
    overrides: str  # JSON, so that a job is hashable
    folder: Path
    arm: str
    seed: int
    trial: int | None = None  # of tuning: its setting is among the overrides
    is_foreign: bool = field(default=False, compare=False)  # its method's code is not apo-bench's: no other job follows it in its process

    @property
    def label(self) -> str:
        if self.trial is not None:
            return f"tuning {self.arm}, trial {self.trial + 1}, seed {self.seed}"
        return "initial policy" if self.arm == INITIAL else f"{self.arm.removeprefix('_')} seed {self.seed}"

    @property
    def progress(self) -> Path:
        """The file with its progress, from when a run begins until the job's record is written."""
        return self.folder / "store" / "progress" / self.record.name

    @property
    def log(self) -> Path:
        """The file with the traceback of its last failure."""
        return self.folder / "logs" / f"{self.record.stem}.log"

    @property
    def record(self) -> Path:
        """The file with its result."""
        if self.trial is not None:
            return self.folder / "store" / "trials" / f"{self.arm}.{self.trial}.{self.seed}.json"
        return self.folder / "store" / "arm_seeds" / f"{self.arm}.{self.seed}.json"


@dataclass(frozen=True)
class Failure:
    """A job that did not finish; the others went on."""

    arm: str
    seed: int
    message: str
    trial: int | None = None  # of tuning

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}: {self.message}"


def prepare_worker() -> None:
    """Use one thread and print no progress bars; call this before anything that reads the environment is imported."""
    import logging

    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_PROGRESS_BARS="1")
    logging.disable(logging.WARNING)
    from apo_bench.models.policy import use_one_thread

    use_one_thread()


def run_job(work: Work, job: Job, tell: Callable[[ProgressEvent], None] = lambda event: None) -> str | None:
    """Run one job and return its error message, or None. Its progress file is kept up to date, and removed when it has finished."""
    progress: dict[str, Any] = {**_begun(job), "steps": 0, "rounds": 0}

    def report(stage: str, tokens: float = 0.0, used: Mapping[str, float] | None = None) -> None:
        progress["rounds" if re.fullmatch(r"round \d+ done", stage) else "steps"] += 1
        write_json(job.progress, {**progress, "stage": stage, "tokens": tokens, "used": dict(used or {})})
        tell(ProgressEvent(stage, tokens, dict(used or {})))

    report("starting")
    message = work(job, report)
    if message:
        message = shortened(message)
        mark_failed(job, message, progress)
    else:
        job.progress.unlink(missing_ok=True)
        with suppress(OSError):
            job.log.unlink(missing_ok=True)  # of an earlier failure
    return message


def final_event(message: str | None) -> ProgressEvent:
    """The last event of a job, which ended with an error message or with None."""
    return ProgressEvent("failed" if message else "done", finished=True, failed=bool(message))


def mark_waiting(jobs: Sequence[Job]) -> None:
    """Write in the jobs' progress files that they are queued by this process."""
    for job in jobs:
        write_json(job.progress, {**_begun(job), "stage": "waiting"})


def mark_failed(job: Job, message: str, progress: dict[str, Any] | None = None) -> None:
    """Write the error message into the job's progress file."""
    with suppress(OSError):  # the disk may be full, and the job may have failed for that reason
        write_json(job.progress, {**(progress or _begun(job)), "stage": "failed", "error": message})


def _begun(job: Job) -> dict[str, Any]:
    """This process, and the seal of the record that its work may replace: another seal means that it has."""
    return {**this_process(), "before": seal_of(job.record)}


def seal_of(record: Path) -> str | None:
    """The seal of a job's record; None where there is none."""
    try:
        value = json.loads(record.read_text(encoding="utf-8"))
        return value.get("seal") if isinstance(value, dict) else None
    except (OSError, ValueError, RecursionError):
        return None


def this_process() -> dict[str, Any]:
    """Pid and host of this process, and where its pid means it."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "boot": boot(), "machine": machine()}
