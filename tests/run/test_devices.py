"""Placement: one worker a GPU, each seeing its own; device counts and names are faked."""

import ast
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import tiny_bench, tiny_lab

from apo_bench.config.schema import Executor
from apo_bench.engines.transformers import TransformersEngine
from apo_bench.models import device
from apo_bench.run import devices
from apo_bench.run.executors.local import run_all
from apo_bench.run.executors.ray import _with_gpus
from apo_bench.run.jobs import Job, Report

ROOT = Path(__file__).parents[2]
Fake = Callable[[int], None]
LAUNCHED = Executor(launch="accelerate.yaml")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Pretend that torch can use so many GPUs, and that nothing restricts which."""
    monkeypatch.delenv(devices.VISIBLE, raising=False)
    return lambda count: monkeypatch.setattr(devices, "gpu_count", lambda: count)


def test_without_a_gpu_there_is_a_worker_a_core(gpus: Fake) -> None:
    gpus(0)
    assert devices.default_workers(Executor()) == devices.default_workers(LAUNCHED) == devices.cores() >= 1
    assert devices.worker_gpus(3, Executor()) == (None, None, None)


def test_each_gpu_has_a_worker_of_its_own(gpus: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the names under which this process sees them; more workers share the GPUs in turn."""
    gpus(4)
    assert devices.default_workers(Executor()) == 4
    assert devices.worker_gpus(4, Executor()) == ("0", "1", "2", "3")
    assert devices.worker_gpus(6, Executor()) == ("0", "1", "2", "3", "0", "1")
    monkeypatch.setenv(devices.VISIBLE, "5, GPU-8f2c")
    gpus(2)
    assert devices.worker_gpus(2, Executor()) == ("5", "GPU-8f2c")
    monkeypatch.setenv(devices.VISIBLE, "")
    gpus(0)
    assert devices.worker_gpus(1, Executor()) == (None,)


def test_a_launched_training_sees_all_gpus_and_runs_alone(gpus: Fake) -> None:
    gpus(8)
    assert devices.default_workers(LAUNCHED) == 1
    assert devices.worker_gpus(2, LAUNCHED) == (None, None)
    assert devices.idle_gpus(LAUNCHED) == ("1", "2", "3", "4", "5", "6", "7")  # while it samples on the first
    assert devices.idle_gpus(Executor()) == ()


def see(job: Job, report: Report) -> str | None:
    """Stands for an arm-seed: leaves what its process sees, and its pid."""
    (job.folder / f"{job.seed}").write_text(f"{os.environ.get(devices.VISIBLE)} {os.getpid()}")
    return None


@pytest.mark.slow
def test_a_worker_sees_its_own_gpu_and_no_other(gpus: Fake, tmp_path: Path) -> None:
    """Without a number of workers, there are as many as GPUs; this process's own view stays as it is."""
    gpus(2)
    jobs = [Job(Path("mine.yaml"), "{}", tmp_path, "arm", seed) for seed in range(6)]
    assert run_all(jobs, see, None, Executor()) == []
    seen = {tuple((tmp_path / f"{seed}").read_text().split()) for seed in range(6)}
    assert {gpu for gpu, _ in seen} <= {"0", "1"}
    assert len({pid for _, pid in seen}) == len(seen) <= 2
    assert devices.VISIBLE not in os.environ


def test_a_ray_task_reserves_a_gpu_where_there_is_any() -> None:
    plain, accelerated = {"Resources": {"CPU": 4.0}}, {"Resources": {"CPU": 8.0, "GPU": 2.0}}
    assert _with_gpus([plain], Executor(use="ray")).num_gpus == 0
    assert _with_gpus([plain, accelerated], Executor(use="ray")).num_gpus == 1
    assert _with_gpus([plain, accelerated], Executor(use="ray", num_gpus=0.5)).num_gpus == 0.5


def test_the_hardware_in_a_key_is_the_gpu_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert device.hardware() == {"device": "cpu"}
    monkeypatch.setattr(device, "own_device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    expected = {"device": "cuda", "gpu": "NVIDIA A100-SXM4-80GB", "cuda": "13.0", "tf32": False}
    assert device.hardware() == expected
    engine = TransformersEngine(tmp_path, memory_gb=1)
    assert engine.hardware == {"threads": torch.get_num_threads(), **expected}
    assert engine.identity["hardware"] == engine.hardware
    assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


def test_drawing_from_a_seed_leaves_the_generator_as_it_was() -> None:
    """The same numbers as of a generator of that seed; what was to be drawn next is still drawn next."""
    state = torch.get_rng_state()
    expected = torch.rand(3, generator=torch.Generator().manual_seed(7))
    with device.seeded(7):
        assert torch.equal(torch.rand(3), expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_code_forks_the_generators_of_every_device() -> None:
    """`torch.random.fork_rng()` without `devices` starts all GPUs."""
    calls = [
        (path.name, node)
        for room in ("apo_bench", "baselines", "tasks", "benchmarks")
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "fork_rng"
    ]
    assert calls
    assert not [name for name, call in calls if "devices" not in {keyword.arg for keyword in call.keywords}]


@pytest.mark.slow
def test_peak_device_memory_is_that_of_each_artifact(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A faked device whose peak grows by a GiB with every reading, and which is reset before each: it is read once an artifact."""
    bench = tiny_bench(tmp_path)
    policy, readings = bench.initial_policy, list[str]()
    monkeypatch.setattr(device, "reset_peak", lambda: readings.append("reset"))

    def peak() -> float:
        readings.append("peak")
        return float(2**30 * readings.count("peak"))

    monkeypatch.setattr(device, "peak_bytes", peak)
    lab = tiny_lab(bench)
    prompts: Any = bench.task.prompts["policy"][:2]
    lab.sample(policy, prompts)
    lab.sample(policy, prompts, draw=1)
    lab.sample(policy, prompts)  # from the store
    assert readings == ["reset", "peak"] * 2
    assert lab.peak_device_bytes == 2 * 2**30
