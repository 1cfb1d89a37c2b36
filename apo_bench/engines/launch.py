"""A training job launched over as many processes as an accelerate configuration starts.

The process that launches writes the job into the artifact's scratch folder and waits. Every launched process reads it there, trains its
share of each update, and the main one writes the model and the counts. The processes end with the one that launched them.
"""

import importlib
import inspect
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock
from pydantic import TypeAdapter

from apo_bench.config.plain_yaml import read_yaml
from apo_bench.config.python_files import load_python_file
from apo_bench.config.schema import EngineChoice, Executor
from apo_bench.engines import open_engine
from apo_bench.errors import InputError
from apo_bench.hashing import digest_files
from apo_bench.store import Computed, scratch_of, write_json
from apo_bench.training.training_spec import PolicyTraining, RewardModelTraining
from apo_bench.types import Demonstration, Group, Pair, UnpairedExample

REQUEST, COUNTS, LOG, FAILED = "request.json", "counts.json", "launch.log", "failed."  # in the scratch folder
NOTHING_GB = 1e-9
FILE = "file:"  # before the path of a loss's own python file, in place of its module
JOBS = {kind.__name__: kind for kind in (PolicyTraining, RewardModelTraining)}
ITEMS = {kind.__name__: kind for kind in (Demonstration, Pair, UnpairedExample, Group)}


class LaunchingEngine(Protocol):
    """What a launch needs to know of the engine whose job it is."""

    run_folder: Path
    launch_config: str | None
    checkpoint_s: float


def configuration(launch_config: str | None) -> dict[str, str]:
    """The part of the hardware that a configuration adds to every key: the number of processes that sum gradients changes bits.

    Raises InputError if there is no such file.
    """
    if launch_config is None:
        return {}
    _settings(Path(launch_config))
    return {"launch": digest_files([Path(launch_config)])}


def launch(job: PolicyTraining | RewardModelTraining, engine: LaunchingEngine, into: Path) -> Computed[None]:
    """Train with the processes of the engine's configuration; the model is in `into` afterwards. Returns what was spent.

    Raises InputError as training does, and for an unusable configuration; RuntimeError, in one line, where a launched process fails in
    another way or dies. The next try resumes from the checkpoints that were left.
    """
    config, scratch = Path(str(engine.launch_config)), scratch_of(into)
    settings = _settings(config)
    scratch.mkdir(parents=True, exist_ok=True)
    for left_over in (scratch / COUNTS, *scratch.glob(f"{FAILED}*")):
        left_over.unlink(missing_ok=True)
    lock = scratch / f"launching.{os.getpid()}.lock"
    where = {"run_folder": str(engine.run_folder), "into": str(into), "checkpoint_s": engine.checkpoint_s}
    write_json(scratch / REQUEST, {**job_to_json(job), **where, "lock": str(lock)})
    options = [] if "main_process_port" in settings else ["--main_process_port", "0"]  # a free one: jobs run side by side
    if settings.get("distributed_type") == "MULTI_CPU" and not settings.get("mpirun_hostfile"):
        options.append("--multi_gpu")  # without it, and without MPI, accelerate starts one process only
    module = ["-m", "apo_bench.engines.launch", str(scratch / REQUEST)]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), *options, *module]
    with (
        FileLock(lock) as launching,
        (scratch / LOG).open("w") as log,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT) as launcher,
    ):
        try:
            status = launcher.wait()
        finally:
            launching.release()  # whatever ended the waiting: the launched processes end too
    if status:
        _raise_failure(scratch, config, status)
    spent = json.loads((scratch / COUNTS).read_text(encoding="utf-8"))
    return Computed(None, spent["counts"], peak_device_bytes=spent["peak_device_bytes"])


def _settings(config: Path) -> dict[str, Any]:
    """The configuration's keys. Raises InputError for one that cannot be used."""
    try:
        settings = read_yaml(config, str(config))
    except InputError as error:
        raise InputError(f"executor.launch: {error}") from None
    if not isinstance(settings, dict):
        raise InputError(f"executor.launch: {config}: not an accelerate configuration")
    if settings.get("num_machines", 1) != 1:
        raise InputError(f"executor.launch: {config}: num_machines {settings['num_machines']}; a fit is launched on one machine")
    return settings


def _raise_failure(scratch: Path, config: Path, status: int) -> None:
    """In one line: the signal that ended a process (then the others fail too), else the first failure, else the log's end."""
    failures = sorted(scratch.glob(f"{FAILED}*"), key=lambda path: path.stat().st_mtime_ns)
    error = json.loads(failures[0].read_text(encoding="utf-8")) if failures else None
    if error and error["input"]:
        raise InputError(error["message"])
    log = (scratch / LOG).read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in log.splitlines() if line.strip(" =-")]
    signals = [line[line.index("Signal ") :] for line in lines if "Signal " in line][-1:]  # the last in torch's account is the cause
    why = " | ".join(signals or ([error["message"]] if error else lines[-3:]))
    raise RuntimeError(f"{config}: training under accelerate launch ended with status {status}: {why}; see {scratch / LOG}")


# --- the request --------------------------------------------------------------------------------------------------------------


def job_to_json(job: PolicyTraining | RewardModelTraining) -> dict[str, Any]:
    """The job in JSON; its loss by the place of its class, and its fields."""
    import torch

    rest = {field.name for field in fields(job)} - {"loss", "data"}
    request = {"kind": type(job).__name__, "loss": _loss_to_json(job.loss), "threads": torch.get_num_threads()}
    request["fields"] = TypeAdapter(type(job)).dump_python(job, mode="json", include=rest)
    if isinstance(job, PolicyTraining):
        kind = type(job.data[0])
        items = TypeAdapter(kind)
        request["data"] = {"kind": kind.__name__, "items": [items.dump_python(item, mode="json") for item in job.data]}
    return request


def job_from_json(request: dict[str, Any]) -> PolicyTraining | RewardModelTraining:
    """The job that `job_to_json` wrote."""
    values = {**request["fields"], "loss": _loss_from_json(request["loss"])}
    if "data" in request:
        items = TypeAdapter(ITEMS[request["data"]["kind"]])
        values["data"] = tuple(items.validate_python(item) for item in request["data"]["items"])
    return TypeAdapter(JOBS[request["kind"]]).validate_python(values)


def _loss_to_json(loss: Any) -> dict[str, Any]:
    """A loss, which may hold another."""
    kind, values = type(loss), {field.name: getattr(loss, field.name) for field in fields(loss)}
    place = kind.__module__ if kind.__module__.partition(".")[0] == "apo_bench" else FILE + inspect.getfile(kind)
    own = {name: _loss_to_json(value) if is_dataclass(value) else value for name, value in values.items()}
    return {"place": place, "class": kind.__qualname__, "fields": own}


def _loss_from_json(loss: dict[str, Any]) -> Any:
    place = loss["place"]
    module = load_python_file(Path(place.removeprefix(FILE))) if place.startswith(FILE) else importlib.import_module(place)
    own = {name: _loss_from_json(value) if isinstance(value, dict) else value for name, value in loss["fields"].items()}
    return getattr(module, loss["class"])(**own)


# --- a launched process -------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> None:
    """Train this process's share; the main process writes what was spent."""
    path = Path(arguments[0])
    request = json.loads(path.read_text(encoding="utf-8"))
    threading.Thread(target=end_with_launcher, args=(Path(request["lock"]),), daemon=True).start()
    try:
        import torch
        from accelerate import PartialState

        torch.set_num_threads(request["threads"])
        state = PartialState(cpu=not torch.cuda.is_available())  # a device of its own, before a model is loaded
        choice = EngineChoice(memory_gb=NOTHING_GB)  # a process of one job keeps no model for another, nor two of what it trains
        engine = open_engine(choice, Executor(checkpoint_s=request["checkpoint_s"]), Path(request["run_folder"]))
        job, into = job_from_json(request), Path(request["into"])
        trained = engine.train_policy(job, into) if isinstance(job, PolicyTraining) else engine.train_reward_model(job, into)
        if state.is_main_process:
            write_json(path.with_name(COUNTS), {"counts": trained.counts, "peak_device_bytes": trained.peak_device_bytes})
    except Exception as error:
        message = (str(error).splitlines() or [""])[0]
        known = isinstance(error, InputError)
        line = message if known else f"{type(error).__name__}: {message}"
        write_json(path.with_name(f"{FAILED}{os.environ.get('RANK', 0)}"), {"input": known, "message": line})
        raise


def end_with_launcher(lock: Path) -> None:
    """End this process once the lock is free: the launching process, which holds it, has ended."""
    FileLock(lock).acquire()
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
