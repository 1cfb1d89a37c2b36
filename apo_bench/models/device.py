"""The device that models run on: this process's own, and no other."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

EFFICIENT = "FSDP_CPU_RAM_EFFICIENT_LOADING"  # of accelerate's configuration


def own_device() -> torch.device:
    """This process's GPU, if it has one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def hardware() -> dict[str, Any]:
    """What of the device can change a result; part of every key. On a GPU its name, CUDA's version, and that fp32 products are not TF32."""
    if own_device().type == "cpu":
        return {"device": "cpu"}
    return {"device": "cuda", "gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "tf32": False}


def use_full_fp32() -> None:
    """Compute fp32 products in fp32, never in TF32, as `hardware` states."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from `seed` within, and leave this device's generators as they were; `fork_rng` alone would start every GPU."""
    device = own_device()
    with torch.random.fork_rng(devices=[device.index] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def is_sharded() -> bool:
    """Whether accelerate shards what is trained here over several processes (FSDP, DeepSpeed), and so places the weights itself."""
    return any(os.environ.get(name, "").lower() in ("true", "1") for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"))


def gets_weights_from_another() -> bool:
    """Whether this process's shards of the weights come from the machine's first process, so that it need not load any itself."""
    return is_sharded() and os.environ.get(EFFICIENT, "").lower() == "true" and os.environ.get("LOCAL_RANK", "0") != "0"


@contextmanager
def on_meta() -> Iterator[None]:
    """Models that are built within have weights without memory, and their buffers, which nobody sends, in memory."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        yield


@contextmanager
def whole_weights() -> Iterator[None]:
    """Load models whole on every process, within: where weights are to be sharded, transformers gives all but one process none."""
    before = os.environ.get(EFFICIENT)
    os.environ[EFFICIENT] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[EFFICIENT]
        else:
            os.environ[EFFICIENT] = before


def reset_peak() -> None:
    """Forget the largest device memory so far."""
    if own_device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> float:
    """The largest device memory that tensors took since `reset_peak`; 0 on a CPU."""
    return float(torch.cuda.max_memory_allocated()) if own_device().type == "cuda" else 0.0
