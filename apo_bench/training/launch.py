"""A fit as a record, carried out here or by as many processes as an accelerate configuration starts.

Launched, the asking process writes the fit into its scratch folder and waits; every process reads it there, trains its share of each
update, and the main one writes the model and the counts. The processes end with the one that asked.
"""

import importlib
import importlib.util
import inspect
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from filelock import FileLock
from pydantic import TypeAdapter

from apo_bench.config.schema import NeuralReward, PolicyModel, Recipe
from apo_bench.errors import InputError
from apo_bench.hashing import digest_files
from apo_bench.store import write_json
from apo_bench.training.checkpoints import Checkpoints
from apo_bench.types import Demonstration, Group, Pair

REQUEST, COUNTS, LOG, FAILED = "request.json", "counts.json", "launch.log", "failed."  # in the scratch folder
ORIGIN = "from the file "  # of a loss, in place of its module


@dataclass(frozen=True)
class PolicyFit:
    """The arguments of training.train_policy."""

    folder: Path
    data: tuple[Demonstration, ...] | tuple[Pair, ...] | tuple[Group, ...]
    loss: Any
    reference: Path | None
    spec: PolicyModel
    recipe: Recipe
    seed: int
    into: Path
    checkpoints: Checkpoints

    def train(self) -> dict[str, float]:
        from apo_bench.training.trainer import train_policy

        return train_policy(**_fields(self))


@dataclass(frozen=True)
class RewardFit:
    """The arguments of training.train_reward_model."""

    start: str | Path | None
    pairs: tuple[Pair, ...]
    loss: Any
    axes: tuple[str, ...]
    vocabulary: tuple[str, ...] | None
    spec: NeuralReward
    seed: int
    into: Path
    checkpoints: Checkpoints

    def train(self) -> dict[str, float]:
        from apo_bench.training.trainer import train_reward_model

        return train_reward_model(**_fields(self))


FITS = {kind.__name__: kind for kind in (PolicyFit, RewardFit)}


def identity(launch: str | None) -> dict[str, str]:
    """What a configuration adds to the hardware that every artifact's key names: how many processes add up gradients changes bits.

    Raises InputError if there is no such file.
    """
    if launch is None:
        return {}
    _settings(Path(launch))
    return {"launch": digest_files([Path(launch)])}


def carry_out(fit: PolicyFit | RewardFit, launch: str | None) -> dict[str, float]:
    """Train, here or with a configuration's processes; the model is in `fit.into` afterwards. Returns the counts spent.

    Raises InputError as training does, and for a configuration that cannot be used; RuntimeError, in one line, where a launched process
    fails in another way or dies. What it left in its checkpoints is gone on from the next time.
    """
    return fit.train() if launch is None else _launch(fit, Path(launch))


def _launch(fit: PolicyFit | RewardFit, launch: Path) -> dict[str, float]:
    settings, scratch = _settings(launch), fit.checkpoints.folder
    scratch.mkdir(parents=True, exist_ok=True)
    for left_over in (scratch / COUNTS, *scratch.glob(f"{FAILED}*")):
        left_over.unlink(missing_ok=True)
    lock = scratch / f"asking.{os.getpid()}.lock"
    write_json(scratch / REQUEST, written(fit) | {"lock": str(lock)})
    options = [] if "main_process_port" in settings else ["--main_process_port", "0"]  # a free one: fits run side by side
    if settings.get("distributed_type") == "MULTI_CPU" and not settings.get("mpirun_hostfile"):
        options.append("--multi_gpu")  # without it, and without MPI, accelerate starts one process only
    module = ["-m", "apo_bench.training.launch", str(scratch / REQUEST)]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launch), *options, *module]
    with (
        FileLock(lock) as held,
        (scratch / LOG).open("w") as log,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT) as launcher,
    ):
        try:
            status = launcher.wait()
        finally:
            held.release()  # whatever ended the waiting: the launched processes end too
    if status:
        _complain(scratch, launch, status)
    return json.loads((scratch / COUNTS).read_text(encoding="utf-8"))


def _settings(launch: Path) -> dict[str, Any]:
    """A configuration, as far as it matters here. Raises InputError for one that cannot be used."""
    try:
        settings = yaml.safe_load(launch.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"executor.launch: {launch}: cannot be read ({type(error).__name__})") from None
    if not isinstance(settings, dict):
        raise InputError(f"executor.launch: {launch}: not an accelerate configuration")
    if settings.get("num_machines", 1) != 1:
        raise InputError(f"executor.launch: {launch}: num_machines {settings['num_machines']}; a fit is launched on one machine")
    return settings


def _complain(scratch: Path, launch: Path, status: int) -> None:
    """One line: the signal that ended a process (the others fail of it), or what the one that failed first said, or how the log ends."""
    said = sorted(scratch.glob(f"{FAILED}*"), key=lambda path: path.stat().st_mtime_ns)
    error = json.loads(said[0].read_text(encoding="utf-8")) if said else None
    if error and error["input"]:
        raise InputError(error["message"])
    log = (scratch / LOG).read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in log.splitlines() if line.strip(" =-")]
    signals = [line[line.index("Signal ") :] for line in lines if "Signal " in line][-1:]  # the last in torch's account is the cause
    why = " | ".join(signals or ([error["message"]] if error else lines[-3:]))
    raise RuntimeError(f"{launch}: training under accelerate launch ended with status {status}: {why}; see {scratch / LOG}")


# --- the request --------------------------------------------------------------------------------------------------------------


def _fields(fit: PolicyFit | RewardFit) -> dict[str, Any]:
    return {name: getattr(fit, name) for name in type(fit).__dataclass_fields__}


def written(fit: PolicyFit | RewardFit) -> dict[str, Any]:
    """The fit in JSON; its loss by where its class is found, and its fields."""
    import torch

    kind = type(fit.loss)
    place = kind.__module__ if kind.__module__.partition(".")[0] == "apo_bench" else ORIGIN + inspect.getfile(kind)
    rest = TypeAdapter(type(fit)).dump_python(fit, mode="json", exclude={"loss"})
    loss = {"place": place, "class": kind.__qualname__, "fields": asdict(fit.loss)}
    return {"kind": type(fit).__name__, "loss": loss, "fit": rest, "threads": torch.get_num_threads()}


def read(request: dict[str, Any]) -> PolicyFit | RewardFit:
    loss = request["loss"]
    made = getattr(module_at(loss["place"]), loss["class"])(**loss["fields"])
    return TypeAdapter(FITS[request["kind"]]).validate_python({**request["fit"], "loss": made})


def module_at(place: str) -> ModuleType:
    """A module of ours, or a method's own file, which nothing is left beside."""
    if not place.startswith(ORIGIN):
        return importlib.import_module(place)
    path = Path(place.removeprefix(ORIGIN))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    return module


# --- a launched process -------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> None:
    """What every launched process does: train its share; the main one writes the counts."""
    path = Path(arguments[0])
    request = json.loads(path.read_text(encoding="utf-8"))
    threading.Thread(target=end_with, args=(Path(request["lock"]),), daemon=True).start()
    try:
        import torch
        from accelerate import PartialState

        torch.set_num_threads(request["threads"])
        state = PartialState(cpu=not torch.cuda.is_available())  # a device of its own, before a model is loaded
        counts = read(request).train()
        if state.is_main_process:
            write_json(path.with_name(COUNTS), counts)
    except Exception as error:
        message = (str(error).splitlines() or [""])[0]
        known = isinstance(error, InputError)
        line = message if known else f"{type(error).__name__}: {message}"
        write_json(path.with_name(f"{FAILED}{os.environ.get('RANK', 0)}"), {"input": known, "message": line})
        raise


def end_with(lock: Path) -> None:
    """The process that asked holds a lock; when that is free, nobody waits for what is done here."""
    FileLock(lock).acquire()
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
