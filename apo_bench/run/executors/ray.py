"""Run jobs as Ray tasks, on one machine or on a cluster. All nodes share the file system that holds the run folder.

A task reserves `num_cpus` and `num_gpus`. If its node or process is lost, Ray runs it once more elsewhere; it resumes from the artifacts
in the store. Progress is read from the jobs' files: only the job itself is sent.
"""

import json
import uuid
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from apo_bench.config.schema import Executor
from apo_bench.errors import InputError
from apo_bench.run.executors import TRIES, Show, in_order, is_over, quiet
from apo_bench.run.jobs import Failure, Job, ProgressEvent, Work, final_event, mark_failed, prepare_worker, run_job
from apo_bench.run.listening import why_silent

POLL_S = 0.5  # between two readings of the jobs' progress files
UNLIMITED = 10**9


def check(settings: Executor) -> list[str]:
    """A note where nothing listens at the address: a run with jobs left will fail, a replay needs no cluster.

    A cluster that Ray looks for itself is not checked. Raises InputError for an address that is none.
    """
    address = settings.address
    if address is None or address in ("auto", "local"):
        return []
    place = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = place.hostname, place.port
    except ValueError:
        host = port = None
    if not host or not port or place.scheme not in ("", "ray"):
        raise InputError(f"executor.address: {address}: HOST:PORT, or ray://HOST:PORT, is needed")
    reason = why_silent(host, port)
    return [f"executor.address: {address}: not reached: {reason}"] if reason else []


def run_all(jobs: Sequence[Job], work: Work, workers: int | None, settings: Executor, show: Show = quiet) -> list[Failure]:
    """Run jobs as Ray tasks, as many at a time as the cluster has room for, or `workers`.

    Raises InputError where ray is not installed, where no cluster is at `address`, where no node has what a task reserves, and where a
    node does not share the run folder.
    """
    ray = _ray()
    start = not ray.is_initialized()
    if start:
        _join(ray, settings)
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        settings = _with_gpus(nodes, settings)
        _check_room(nodes, settings)
        _check_shared(ray, nodes, jobs[0].folder)
        return _run(ray, jobs, work, workers, settings, show)
    finally:
        if start:
            ray.shutdown()


def _run(ray: Any, jobs: Sequence[Job], work: Work, workers: int | None, settings: Executor, show: Show) -> list[Failure]:
    environment = {"env_vars": {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}}
    room: dict[str, Any] = {"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus}
    if any(job.is_foreign for job in jobs):  # then no process runs two tasks
        room["max_calls"] = 1
    task = ray.remote(**room, max_retries=TRIES - 1, runtime_env=environment)(_in_task)
    waiting, running, failures = deque(jobs), dict[Any, Job](), list[Failure]()
    while (waiting or running) and not is_over(failures):
        while waiting and len(running) < (workers or UNLIMITED):
            job = waiting.popleft()
            running[task.remote(work, job)] = job
        done, _ = ray.wait(list(running), num_returns=1, timeout=POLL_S)
        for job in running.values():
            if event := _latest_event(job.progress):
                show(job, event)
        for reference in done:
            job = running.pop(reference)
            try:
                message = ray.get(reference)
            except ray.exceptions.RayError as error:  # its process or node was lost on every try
                message = f"lost {TRIES} times ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
                mark_failed(job, message)
            show(job, final_event(message))
            if message:
                failures.append(Failure(job.arm, job.seed, message, job.trial))
    for reference in running:
        ray.cancel(reference, force=True)
    return in_order(failures)


def _in_task(work: Work, job: Job) -> str | None:
    prepare_worker()
    try:
        return run_job(work, job)
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        mark_failed(job, message)
        return message


def _latest_event(path: Path) -> ProgressEvent | None:
    """The event in a job's progress file; None while the job waits, and once it has finished."""
    try:
        progress = json.loads(path.read_text())
        return None if progress["stage"] == "waiting" else ProgressEvent(progress["stage"], progress["tokens"], progress["used"])
    except (OSError, ValueError, KeyError):
        return None


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise InputError("executor: ray is not installed; run: pip install ray") from None
    return ray


def _join(ray: Any, settings: Executor) -> None:
    """Connect to the cluster at `address`, or start one on this machine."""
    try:
        ray.init(address=settings.address, include_dashboard=False, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"executor.address: {settings.address}: {' '.join(str(error).split())[:300]}") from None


def _with_gpus(nodes: Sequence[Any], settings: Executor) -> Executor:
    """The settings, with one GPU a task where none is given and a node has any. Ray shows a task the GPUs that it reserved, no others."""
    if settings.num_gpus is not None:
        return settings
    return settings.model_copy(update={"num_gpus": float(any(node["Resources"].get("GPU", 0) >= 1 for node in nodes))})


def _check_room(nodes: Sequence[Any], settings: Executor) -> None:
    """Raise InputError where no node can ever take a task, which would wait forever."""
    reserved = {"CPU": settings.num_cpus, "GPU": settings.num_gpus or 0.0}
    if not any(all(node["Resources"].get(name, 0) >= amount for name, amount in reserved.items()) for node in nodes):
        most = {name: max((node["Resources"].get(name, 0) for node in nodes), default=0) for name in reserved}
        raise InputError(
            f"executor: no node has {reserved['CPU']:g} CPUs and {reserved['GPU']:g} GPUs; the most are {most['CPU']:g} and {most['GPU']:g}"
        )


def _check_shared(ray: Any, nodes: Sequence[Any], folder: Path) -> None:
    """Raise InputError unless every node sees the run folder, can write in it, and respects another node's locks."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    shared = folder / "store" / f".shared.{uuid.uuid4().hex}"
    shared.mkdir(parents=True)
    try:
        with FileLock(shared / "lock"):
            probes = {}
            for node in nodes:
                affinity = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                probe = ray.remote(num_cpus=0, max_retries=1)(_probe).options(scheduling_strategy=affinity)
                probes[node["NodeID"]] = (node["NodeManagerHostname"], probe.remote(shared, node["NodeID"]))
            for node_id, (host, reference) in probes.items():
                try:
                    problem = ray.get(reference) or ("" if (shared / node_id).is_file() else "what it wrote there is not seen here")
                except ray.exceptions.RayError as error:  # the node died, or has no apo-bench
                    problem = f"the probe failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
                if problem:
                    raise InputError(f"executor: node {host} does not share {folder}: {problem}")
    finally:
        for path in shared.glob("*"):
            path.unlink()
        shared.rmdir()


def _probe(shared: Path, node_id: str) -> str:
    """What is wrong with the folder as this node sees it, or "". The driver holds its lock."""
    if not shared.is_dir():
        return "there is no such folder"
    try:
        (shared / node_id).write_text("")
        with FileLock(shared / "lock", timeout=0):
            return "its file locks do not hold between machines"
    except Timeout:
        return ""
    except OSError as error:
        return str(error)
