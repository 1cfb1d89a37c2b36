"""A sampling job shared with idle workers: `sampling.data_parallel`.

Its batches are those of a job that is not shared, and so is every bit. Each process takes batches as it comes to them, and what one that
died has left is sampled by the job's own process.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pydantic import TypeAdapter

from apo_bench.config.schema import EngineChoice, Executor
from apo_bench.engines import open_engine
from apo_bench.engines.protocol import SamplingJob
from apo_bench.engines.worker_slots import FOLDER, idle_workers
from apo_bench.errors import InputError
from apo_bench.models import device
from apo_bench.models.generate import Generation
from apo_bench.store import write_json

REQUEST, TAKEN, ROWS, READY, LOG = "request.json", "{}.taken", "{}.json", "{}.ready", "{}.log"  # by batch; the last two by process
NOTHING_GB = 1e-9


def sample(
    generation: Generation, job: SamplingJob, run_folder: Path, hardware: Mapping[str, Any], launch_config: str | None
) -> tuple[list[list[list[int]]], float]:
    """What `generation` samples in each batch, and the largest device memory (bytes) that it took in other processes.

    `hardware`: the engine's, which another process has to have, too. Where no worker is idle, all is sampled here.
    """
    batches = len(generation.batches)
    with ExitStack() as within:
        environments = within.enter_context(idle_workers(min(job.sampling.data_parallel, batches) - 1))
        if not environments:
            return [generation.sample(number) for number in range(batches)], 0.0
        folder = Path(within.enter_context(TemporaryDirectory(dir=os.environ[FOLDER], ignore_cleanup_errors=True)))
        where = {"run_folder": str(run_folder), "launch": launch_config, "hardware": dict(hardware)}
        write_json(folder / REQUEST, {"job": TypeAdapter(SamplingJob).dump_python(job, mode="json"), **where})
        others = [within.enter_context(_process(folder, place, environment)) for place, environment in enumerate(environments)]
        sampled = {number: generation.sample(number) for number in _untaken(folder, batches)}
        for place, other in enumerate(others):
            _finish(other, folder, place)
        answers = [json.loads(path.read_text()) for number in range(batches) if (path := folder / ROWS.format(number)).exists()]
    sampled.update((answer["batch"], answer["rows"]) for answer in answers)
    rows = [sampled[number] if number in sampled else generation.sample(number) for number in range(batches)]
    return rows, max((answer["peak_device_bytes"] for answer in answers), default=0.0)


@contextmanager
def _process(folder: Path, place: int, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that samples until all batches are taken. It ends with this context, and with this process, whose end closes its input."""
    command, variables = [sys.executable, "-m", "apo_bench.engines.data_parallel", str(folder)], {**os.environ, **environment}
    with (
        (folder / LOG.format(place)).open("wb") as log,
        subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def _finish(process: subprocess.Popen[bytes], folder: Path, place: int) -> None:
    """Wait for the batches that a process has taken, now that all are; a line on stderr if it fails. A loading one has taken none."""
    if process.poll() is None and not (folder / READY.format(process.pid)).exists():
        process.kill()
    elif status := process.wait():
        lines = (folder / LOG.format(place)).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}: {''.join(lines[-1:])}"
        print(f"sampling.data_parallel: a process on an idle worker ended ({how}); its batches are sampled again", file=sys.stderr)


def _untaken(folder: Path, batches: int) -> Iterator[int]:
    """Numbers of batches that no process has taken; each is taken as it is given."""
    for number in range(batches):
        try:
            (folder / TAKEN.format(number)).touch(exist_ok=False)
        except FileExistsError:
            continue
        yield number


# --- a process on an idle worker ----------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> None:
    """Sample batches of the job in a folder until all are taken. Raises InputError on hardware that may give other bits."""
    threading.Thread(target=_end_with_input, daemon=True).start()
    folder = Path(arguments[0])
    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    torch.set_num_threads(request["hardware"]["threads"])
    choice = EngineChoice(memory_gb=NOTHING_GB)  # a process of one job keeps no model for another
    engine: Any = open_engine(choice, Executor(launch=request["launch"]), Path(request["run_folder"]))
    if engine.hardware != request["hardware"]:
        raise InputError(f"its hardware is {engine.hardware}, the job's {request['hardware']}")
    generation = engine.generation(TypeAdapter(SamplingJob).validate_python(request["job"]))
    (folder / READY.format(os.getpid())).touch()
    for number in _untaken(folder, len(generation.batches)):
        rows = generation.sample(number)
        write_json(folder / ROWS.format(number), {"batch": number, "rows": rows, "peak_device_bytes": device.peak_bytes()})


def _end_with_input() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
