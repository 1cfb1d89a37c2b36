"""Jobs in processes of this machine. A process takes job after job, so that torch is imported once in each."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from apo_bench.config.schema import Executor
from apo_bench.run.executors import TRIES, Show, cores, in_order, quiet
from apo_bench.run.jobs import Job, Told, Work, ended, mark_failed, prepare_worker, run_job
from apo_bench.run.tables import Failure


@dataclass
class _Worker:
    """A process, our end of the pipe to it, and what it was given."""

    process: Any
    pipe: Connection
    job: Job | None = None


def run_all(jobs: Sequence[Job], work: Work, workers: int | None, settings: Executor, show: Show = quiet) -> list[Failure]:
    """Run jobs in at most `workers` processes (None: one a core). A dead one's job is run once more."""
    waiting, lost, failures = deque(jobs), dict[Job, int](), list[Failure]()
    size = min(workers or cores(), len(jobs))

    def failed(job: Job, message: str) -> None:
        failures.append(Failure(job.arm, job.seed, message, job.trial))

    pool = [_started(work) for _ in range(size)]
    try:
        while waiting or any(worker.job for worker in pool):
            for worker in pool:
                if worker.job is None and waiting:
                    _give(worker, waiting.popleft())
            ready = wait([worker.pipe for worker in pool if worker.job])
            for place, worker in enumerate(pool):
                if worker.pipe in ready and not _heard(worker, show, failed):
                    pool[place] = _started(work)
                    if (job := worker.job) is None:
                        continue
                    lost[job] = lost.get(job, 0) + 1
                    if lost[job] < TRIES:
                        show(job, Told(f"{_ending(worker)}; once more"))
                        waiting.append(job)
                    else:
                        message = f"its process died {TRIES} times ({_ending(worker)})"
                        mark_failed(job, message)
                        failed(job, message)
                        show(job, ended(message))
    finally:
        for worker in pool:  # idle, or their jobs are to be given up
            worker.process.terminate()
        for worker in pool:
            worker.process.join()
            worker.pipe.close()
    return in_order(failures)


def _started(work: Work) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(work, theirs), daemon=True)
    process.start()
    theirs.close()  # so that the end of the process is the end of the pipe
    return _Worker(process, ours)


def _give(worker: _Worker, job: Job) -> None:
    worker.job = job
    with suppress(OSError):  # it died idle, which is heard next
        worker.pipe.send(job)


def _heard(worker: _Worker, show: Show, failed: Callable[[Job, str], None]) -> bool:
    """Take in what a worker says; False if it is dead."""
    assert worker.job is not None
    try:
        kind, said = worker.pipe.recv()
    except (EOFError, OSError):
        return False
    if kind == "told":
        show(worker.job, said)
        return True
    job, worker.job = worker.job, None
    if said:
        failed(job, said)
    show(job, ended(said))
    return True


def _ending(worker: _Worker) -> str:
    """How a process ended, in words."""
    worker.process.join()
    worker.pipe.close()
    code = worker.process.exitcode
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}; out of memory?" if name == "SIGKILL" else f"killed by {name}"
    return f"exit status {code}"


# --- in the worker ------------------------------------------------------------------------------------------------------------


def _serve(work: Work, pipe: Connection) -> None:
    """Run what comes until nothing does. A worker does not outlive its run: what nobody waits for is not computed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted run ends its workers itself
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare_worker()
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            message = run_job(work, job, lambda told: pipe.send(("told", told)))
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            mark_failed(job, message)
        pipe.send(("done", message))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
