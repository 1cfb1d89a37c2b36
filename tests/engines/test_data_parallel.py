"""A sampling job shared with idle workers: the bytes that one process stores, whichever process samples which batch or dies on the way."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from tiny_tokenizers import prompt
from tiny_world import tiny_bench, tiny_lab

from apo_bench.config.schema import Lora, PolicyModel, Sampling
from apo_bench.engines import data_parallel
from apo_bench.engines.data_parallel import REQUEST, _untaken
from apo_bench.engines.protocol import SamplingJob
from apo_bench.engines.transformers import TransformersEngine
from apo_bench.engines.worker_slots import FOLDER, open_slots
from apo_bench.errors import InputError
from apo_bench.losses import SFTLoss
from apo_bench.models.generate import Generation
from apo_bench.store import write_json
from apo_bench.types import Policy

PATIENCE_S = 120
Workers = Callable[..., list[FileLock]]
N, BATCH_SIZE, BATCHES = 2, 4, 7  # 14 prompts, two a batch


@given(st.integers(0, 12), st.lists(st.integers(0, 3), max_size=60))
def test_each_batch_is_taken_once_whoever_comes_first(tmp_path_factory: pytest.TempPathFactory, batches: int, turns: list[int]) -> None:
    """Four processes in any order of turns, then one after another until nothing is left; each goes through the batches upward."""
    folder = tmp_path_factory.mktemp("taken")
    processes = [_untaken(folder, batches) for _ in range(4)]
    taken: list[list[int]] = [[] for _ in processes]
    for turn in turns:
        taken[turn] += [number for number in [next(processes[turn], None)] if number is not None]
    for numbers, process in zip(taken, processes, strict=True):
        numbers += process
        assert numbers == sorted(numbers)
    assert sorted(number for numbers in taken for number in numbers) == list(range(batches))


# --- stored bytes -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Policy]]:
    """A run folder, and policies in it: whole weights, and adapters on them."""
    bench = tiny_bench(tmp_path_factory.mktemp("sampled"))
    whole, recipe = bench.initial_policy, bench.policy_model.training.model_copy(update={"lora": Lora(rank=2), "learning_rate": 0.1})
    adapters = tiny_lab(bench).train_policy(whole, bench.task.demonstrations[:16], SFTLoss(), recipe=recipe)
    return bench.store.run_folder, {"whole": whole, "adapters": adapters}


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workers:
    """Slots of so many workers, of which the first has the job that this process runs; with the variables of all."""
    slots: list[FileLock] = []  # which last as long as the test: a lock that nothing refers to is free

    def opened(count: int, **environment: str) -> list[FileLock]:
        monkeypatch.setenv(FOLDER, str(tmp_path))
        slots.extend(open_slots(tmp_path, [environment] * count))
        slots[0].acquire()
        return slots

    return opened


def stored(run_folder: Path, policy: Policy, data_parallel: int) -> dict[str, bytes]:
    """All that a sampling job stores, measured times apart, by its place in the store, from which it is removed again."""
    bench = tiny_bench(run_folder)
    sampling = Sampling(max_new_tokens=10, batch_size=BATCH_SIZE, data_parallel=data_parallel)
    tiny_lab(bench).sample(policy, bench.test_prompts, n=N, sampling=sampling)
    [built] = [name for name in bench.store.built if name.startswith("samples/")]
    folder = bench.store.root / built
    files = {f"{built}/{path.name}": path.read_bytes() for path in folder.iterdir() if path.name != "timing.json"}
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    return files


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def answered(folder: Path) -> list[Path]:
    """Files of batches that other processes have sampled."""
    return [path for path in folder.glob("*/*.json") if path.name != REQUEST]


@pytest.fixture
def alone(policies: tuple[Path, dict[str, Policy]]) -> dict[str, dict[str, bytes]]:
    """What each policy's job stores where it is not shared."""
    return {name: stored(policies[0], policy, 1) for name, policy in policies[1].items()}


@pytest.mark.slow
@pytest.mark.parametrize(("wanted", "idle", "name"), [(2, 3, "whole"), (4, 2, "whole"), (2, 1, "adapters")])
def test_idle_workers_change_no_byte(
    policies: tuple[Path, dict[str, Policy]], alone: dict[str, dict[str, bytes]], workers: Workers,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: int, idle: int, name: str,
) -> None:  # fmt: skip
    """The key, too. This process samples its first batch once the others are loaded and have sampled what they could.

    The others are as many as wanted beside this one, or as are idle; of seven batches they sample six.
    """
    run_folder, known = policies
    others = min(wanted - 1, idle)
    slots = workers(1 + idle)
    own: list[int] = []
    sample = Generation.sample

    def last(generation: Generation, number: int) -> list[list[int]]:
        eventually(lambda: len([*tmp_path.glob("*/*.ready")]) == others and len(answered(tmp_path)) == BATCHES - 1)
        assert len([*tmp_path.glob("*/*.log")]) == others
        assert all(slot.is_locked or slot.acquire(blocking=False) for slot in slots[1 + others :])  # idle still
        own.append(number)
        return sample(generation, number)

    monkeypatch.setattr(Generation, "sample", last)
    assert stored(run_folder, known[name], wanted) == alone[name]
    assert own == [0]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    assert all(slot.is_locked or slot.acquire(blocking=False) for slot in slots)


DIES = """
import os
import pathlib
import signal

touch = pathlib.Path.touch

def touch_and_die(path, *arguments, **options):
    touch(path, *arguments, **options)
    if path.name == "1.taken":
        os.kill(os.getpid(), signal.SIGKILL)

pathlib.Path.touch = touch_and_die
"""


@pytest.mark.slow
def test_what_a_killed_process_has_taken_is_sampled_by_the_jobs_own(
    policies: tuple[Path, dict[str, Policy]], alone: dict[str, dict[str, bytes]], workers: Workers,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """It dies as soon as it has taken its first batch; this process waits with its own first one until then."""
    run_folder, known = policies
    (tmp_path / "sitecustomize.py").write_text(DIES)
    workers(2, PYTHONPATH=os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", ""))))
    own: list[int] = []
    sample = Generation.sample

    def wait_first(generation: Generation, number: int) -> list[list[int]]:
        if not own:
            eventually(lambda: bool([*tmp_path.glob("*/1.taken")]))
        own.append(number)
        return sample(generation, number)

    monkeypatch.setattr(Generation, "sample", wait_first)
    assert stored(run_folder, known["whole"], 2) == alone["whole"]
    assert own == [0, 2, 3, 4, 5, 6, 1]
    line = "sampling.data_parallel: a process on an idle worker ended (killed by SIGKILL); its batches are sampled again\n"
    assert capfd.readouterr().err.endswith(line)


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1])
def test_where_nothing_is_idle_nothing_is_started(
    policies: tuple[Path, dict[str, Policy]], alone: dict[str, dict[str, bytes]], workers: Workers,
    monkeypatch: pytest.MonkeyPatch, count: int,
) -> None:  # fmt: skip
    """Neither in a run of one worker, nor outside a local run, as under Ray."""
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.delenv(FOLDER, raising=False)
    if count:
        workers(count)
    assert stored(policies[0], policies[1]["whole"], 4) == alone["whole"]


# --- the other process --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_process_on_other_hardware_samples_nothing(
    tiny_policy: tuple[Path, PolicyModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_parallel, "_end_with_input", lambda: None)
    job = SamplingJob(
        Policy(str(tiny_policy[0])), (prompt("dry"), prompt("boil")), 1, Sampling(max_new_tokens=4, batch_size=1), tiny_policy[1], 0
    )
    request = {"job": TypeAdapter(SamplingJob).dump_python(job, mode="json"), "run_folder": str(tmp_path), "launch": None}
    hardware = TransformersEngine(tmp_path).hardware
    write_json(tmp_path / REQUEST, {**request, "hardware": {**hardware, "device": "tpu"}})
    with pytest.raises(InputError, match=r"^its hardware is \{.*'cpu'\}, the job's \{.*'tpu'.*\}$"):
        data_parallel.main([str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == [REQUEST]
    write_json(tmp_path / REQUEST, {**request, "hardware": hardware})
    data_parallel.main([str(tmp_path)])
    generation = TransformersEngine(tmp_path).generation(job)
    answers = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2)]
    assert answers == [{"batch": number, "rows": generation.sample(number), "peak_device_bytes": 0.0} for number in range(2)]


@pytest.mark.slow
def test_a_process_ends_with_the_jobs_own() -> None:
    """Its input ends when the process that writes to it does."""
    code = "from apo_bench.engines.data_parallel import _end_with_input; print('at work', flush=True); _end_with_input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(timeout=PATIENCE_S) == 1
