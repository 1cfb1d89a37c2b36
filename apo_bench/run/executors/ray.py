"""Jobs as Ray tasks, on one machine or on a cluster's nodes. The run folder lies on a file system that all of them share.

A task reserves `num_cpus` and `num_gpus`. One whose node or process is lost runs once more, elsewhere; what it had finished is in the
store, so it goes on from there. Files tell where each job is, as they do everywhere: no object travels but the job itself.
"""

import json
import uuid
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from apo_bench.config.schema import Executor
from apo_bench.errors import InputError
from apo_bench.run.executors import TRIES, Show, in_order, quiet
from apo_bench.run.jobs import Job, Told, Work, ended, mark_failed, prepare_worker, run_job
from apo_bench.run.tables import Failure

POLL_S = 0.5  # between looks at what the jobs' progress files say
UNLIMITED = 10**9


def run_all(jobs: Sequence[Job], work: Work, workers: int | None, settings: Executor, show: Show = quiet) -> list[Failure]:
    """Run jobs as Ray tasks, as many at a time as the cluster has room for, or `workers`.

    Raises InputError where ray is not installed, where no cluster is at `address`, where no node has what a task reserves, and where a
    node does not share the run folder.
    """
    ray = _ray()
    begun = not ray.is_initialized()
    if begun:
        _join(ray, settings)
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        _check_room(nodes, settings)
        _check_shared(ray, nodes, jobs[0].folder)
        return _run(ray, jobs, work, workers, settings, show)
    finally:
        if begun:
            ray.shutdown()


def _run(ray: Any, jobs: Sequence[Job], work: Work, workers: int | None, settings: Executor, show: Show) -> list[Failure]:
    environment = {"env_vars": {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}}
    task = ray.remote(num_cpus=settings.num_cpus, num_gpus=settings.num_gpus, max_retries=TRIES - 1, runtime_env=environment)(_in_task)
    waiting, running, failures = deque(jobs), dict[Any, Job](), list[Failure]()
    while waiting or running:
        while waiting and len(running) < (workers or UNLIMITED):
            job = waiting.popleft()
            running[task.remote(work, job)] = job
        done, _ = ray.wait(list(running), num_returns=1, timeout=POLL_S)
        for job in running.values():
            if told := _told(job.progress):
                show(job, told)
        for reference in done:
            job = running.pop(reference)
            try:
                message = ray.get(reference)
            except ray.exceptions.RayError as error:  # its process or node was lost, and once more
                message = f"lost {TRIES} times ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
                mark_failed(job, message)
            show(job, ended(message))
            if message:
                failures.append(Failure(job.arm, job.seed, message, job.trial))
    return in_order(failures)


def _in_task(work: Work, job: Job) -> str | None:
    prepare_worker()
    try:
        return run_job(work, job)
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        mark_failed(job, message)
        return message


def _told(progress: Path) -> Told | None:
    """What a job's progress file says; None while it waits, and when it has finished meanwhile."""
    try:
        said = json.loads(progress.read_text())
        return None if said["stage"] == "waiting" else Told(said["stage"], said["tokens"], said["used"])
    except (OSError, ValueError, KeyError):
        return None


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise InputError("executor: ray is not installed; run: pip install ray") from None
    return ray


def _join(ray: Any, settings: Executor) -> None:
    """The cluster at `address`, or one of this machine's own."""
    try:
        ray.init(address=settings.address, include_dashboard=False, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"executor.address: {settings.address}: {' '.join(str(error).split())[:300]}") from None


def _check_room(nodes: Sequence[Any], settings: Executor) -> None:
    """A task that no node can ever take would wait for good."""
    asked = {"CPU": settings.num_cpus, "GPU": settings.num_gpus}
    if not any(all(node["Resources"].get(name, 0) >= amount for name, amount in asked.items()) for node in nodes):
        most = {name: max((node["Resources"].get(name, 0) for node in nodes), default=0) for name in asked}
        raise InputError(
            f"executor: no node has {asked['CPU']:g} CPUs and {asked['GPU']:g} GPUs; the most are {most['CPU']:g} and {most['GPU']:g}"
        )


def _check_shared(ray: Any, nodes: Sequence[Any], folder: Path) -> None:
    """Every node sees the run folder, can write in it, and keeps away from what another has locked."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place = folder / "store" / f".shared.{uuid.uuid4().hex}"
    place.mkdir(parents=True)
    try:
        with FileLock(place / "lock"):
            asked = {}
            for node in nodes:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                probe = ray.remote(num_cpus=0, max_retries=1)(_probe).options(scheduling_strategy=there)
                asked[node["NodeID"]] = (node["NodeManagerHostname"], probe.remote(place, node["NodeID"]))
            for node_id, (host, reference) in asked.items():
                try:
                    wrong = ray.get(reference) or ("" if (place / node_id).is_file() else "what it wrote there is not seen here")
                except ray.exceptions.RayError as error:  # it died meanwhile, or has no apo-bench
                    wrong = f"it cannot be asked ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
                if wrong:
                    raise InputError(f"executor: node {host} does not share {folder}: {wrong}")
    finally:
        for path in place.glob("*"):
            path.unlink()
        place.rmdir()


def _probe(place: Path, node_id: str) -> str:
    """What is wrong with a folder as this node sees it, or "". Its lock is held by the driver."""
    if not place.is_dir():
        return "there is no such folder"
    try:
        (place / node_id).write_text("")
        with FileLock(place / "lock", timeout=0):
            return "its file locks do not hold between machines"
    except Timeout:
        return ""
    except OSError as error:
        return str(error)
