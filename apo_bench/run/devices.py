"""Which worker runs on which device: one worker a visible GPU, else a core; a worker sees its own GPU and no other."""

import os

from apo_bench.config.schema import Executor

VISIBLE = "CUDA_VISIBLE_DEVICES"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpu_count() -> int:
    """GPUs that torch can use here, as CUDA_VISIBLE_DEVICES leaves them; none of them is started."""
    import torch

    return torch.cuda.device_count()


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them: numbers or UUIDs."""
    count, names = gpu_count(), os.environ.get(VISIBLE)
    return tuple(map(str, range(count))) if names is None else tuple(name.strip() for name in names.split(","))[:count]


def default_workers(settings: Executor) -> int:
    """Workers where no number is given: one a GPU, else a core. Trainings that are launched over all GPUs run one at a time."""
    gpus = len(visible_gpus())
    return 1 if gpus and settings.launch else gpus or cores()


def worker_gpus(workers: int, settings: Executor) -> tuple[str | None, ...]:
    """The GPU of each worker, in turn where workers are more than GPUs. None: as this process sees them (launched trainings, a CPU)."""
    gpus = visible_gpus()
    return tuple(gpus[place % len(gpus)] if gpus and not settings.launch else None for place in range(workers))


def idle_gpus(settings: Executor) -> tuple[str, ...]:
    """The GPUs that no worker has while nothing is trained: all but the first, where trainings are launched over all of them."""
    return visible_gpus()[1:] if settings.launch else ()


def seeing_only(gpu: str | None) -> dict[str, str]:
    """The environment of a process that sees this GPU alone; it has to be set before CUDA is started."""
    return {} if gpu is None else {VISIBLE: gpu}
