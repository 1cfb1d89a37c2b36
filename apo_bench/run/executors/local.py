"""Run jobs in processes on this machine. A process runs job after job, so that it imports torch once.

A job whose method is not apo-bench's own is its process's last: what the code set, patched or left behind reaches no other arm-seed.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from apo_bench.config.schema import Executor
from apo_bench.engines.worker_slots import FOLDER, hold, open_slots
from apo_bench.run.devices import default_workers, idle_gpus, seeing_only, worker_gpus
from apo_bench.run.executors import TRIES, Show, in_order, is_over, quiet
from apo_bench.run.jobs import Failure, Job, ProgressEvent, Work, final_event, mark_failed, prepare_worker, run_job

GRACE_S = 10.0  # between asking a worker to end and ending it


@dataclass
class _Worker:
    """A process, our end of the pipe to it, and the job it is running."""

    process: Any
    pipe: Connection
    job: Job | None = None
    is_spent: bool = False  # it ran foreign code


def run_all(jobs: Sequence[Job], work: Work, workers: int | None, settings: Executor, show: Show = quiet) -> list[Failure]:
    """Run jobs in at most `workers` processes (None: one a GPU, else a core), each with its own GPU. A dead one's job is run once more."""
    waiting, lost, failures = deque(jobs), dict[Job, int](), list[Failure]()
    workers = workers or default_workers(settings)
    environments = [seeing_only(gpu) for gpu in (*worker_gpus(workers, settings), *idle_gpus(settings))]

    def failed(job: Job, message: str) -> None:
        failures.append(Failure(job.arm, job.seed, message, job.trial))

    slot_folder = TemporaryDirectory(prefix="apo-bench-", ignore_cleanup_errors=True)  # on this machine, whose processes it is about
    slots = open_slots(Path(slot_folder.name), environments)
    environments = [{**environment, FOLDER: slot_folder.name} for environment in environments]
    pool = [_start(work, environment) for environment in environments[: min(workers, len(jobs))]]
    try:
        while (waiting or any(worker.job for worker in pool)) and not is_over(failures):
            for index, (worker, slot) in enumerate(zip(pool, slots, strict=False)):
                if worker.job is None and waiting and hold(slot):
                    if worker.is_spent:
                        _end(worker)
                        pool[index] = _start(work, environments[index])
                    _give(pool[index], waiting.popleft())
                elif worker.job is None:
                    slot.release()
            ready = wait([worker.pipe for worker in pool if worker.job])
            for index, worker in enumerate(pool):
                if worker.pipe in ready and not _receive(worker, show, failed):
                    pool[index] = _start(work, environments[index])
                    if (job := worker.job) is None:
                        continue
                    lost[job] = lost.get(job, 0) + 1
                    if lost[job] < TRIES:
                        show(job, ProgressEvent(f"{_exit_reason(worker)}; once more"))
                        waiting.append(job)
                    else:
                        message = f"its process died {TRIES} times ({_exit_reason(worker)})"
                        mark_failed(job, message)
                        failed(job, message)
                        show(job, final_event(message))
    finally:
        for worker in pool:  # idle, unless the run was interrupted
            worker.process.terminate()
        for worker in pool:
            _end(worker)
        for slot in slots:
            slot.release()
        slot_folder.cleanup()
    return in_order(failures)


def _start(work: Work, environment: Mapping[str, str]) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(work, theirs, environment), daemon=True)
    process.start()
    theirs.close()  # so that the end of the process is the end of the pipe
    return _Worker(process, ours)


def _end(worker: _Worker) -> None:
    worker.process.terminate()
    worker.process.join(GRACE_S)
    worker.process.kill()  # one whose method ignores the signal
    worker.process.join()
    worker.pipe.close()


def _give(worker: _Worker, job: Job) -> None:
    worker.job, worker.is_spent = job, job.is_foreign
    with suppress(OSError):  # it died idle; the next receive finds out
        worker.pipe.send(job)


def _receive(worker: _Worker, show: Show, failed: Callable[[Job, str], None]) -> bool:
    """Take in a worker's message; False if the worker is dead."""
    assert worker.job is not None
    try:
        kind, content = worker.pipe.recv()
    except (EOFError, OSError):
        return False
    if kind == "event":
        show(worker.job, content)
        return True
    job, worker.job = worker.job, None
    if content:
        failed(job, content)
    show(job, final_event(content))
    return True


def _exit_reason(worker: _Worker) -> str:
    """Why a process ended."""
    worker.process.join()
    worker.pipe.close()
    code = worker.process.exitcode
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}; out of memory?" if name == "SIGKILL" else f"killed by {name}"
    return f"exit status {code}"


# --- in the worker ------------------------------------------------------------------------------------------------------------


def _serve(work: Work, pipe: Connection, environment: Mapping[str, str]) -> None:
    """Run jobs until the pipe closes. A worker does not outlive its run: nobody would use what it computes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run itself ends its workers when it is interrupted
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(environment)  # before CUDA is started
    prepare_worker()
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            message = run_job(work, job, lambda event: pipe.send(("event", event)))
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            mark_failed(job, message)
        pipe.send(("done", message))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
