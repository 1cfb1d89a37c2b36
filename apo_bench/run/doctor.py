"""`apo-bench doctor`: what is installed here, and what of it an experiment needs. Nothing is loaded, run or downloaded."""

import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from apo_bench import __version__
from apo_bench.config.finished_arms import finished_arms, paths
from apo_bench.config.load import ExperimentFile
from apo_bench.config.plugins import source_files
from apo_bench.config.schema import Experiment, JudgeReward, NgramReward, PolicyModel
from apo_bench.data.capability_tasks import lacking as lacks_lm_eval
from apo_bench.engines.vllm_server import version_of
from apo_bench.errors import InputError, NotHere, lines_of
from apo_bench.models import precision
from apo_bench.models.pretrained_weights import resolve_model, similar_model
from apo_bench.package_data import find_beside
from apo_bench.run.devices import cores, gpu_count
from apo_bench.run.experiment import TaskCache, with_python
from apo_bench.run.first_prompts import named_models
from apo_bench.run.listening import why_silent

LIBRARIES = (
    "torch", "transformers", "accelerate", "tokenizers", "datasets", "safetensors", "numpy", "pandas", "scipy", "scikit-learn", "vllm",
)  # fmt: skip
EXTRAS: Mapping[str, tuple[str, ...]] = {  # extra -> the distributions that it adds; as pyproject.toml has them
    "peft": ("peft",), "quantize": ("bitsandbytes", "peft"), "trl": ("trl",), "lm-eval": ("lm-eval",), "ray": ("ray",),
    "docs": ("mkdocs-material",), "tensorboard": ("tensorboard",), "wandb": ("wandb",), "trackio": ("trackio",), "judge": ("aiohttp",),
}  # fmt: skip
State = Literal["ok", "missing", "to download", "not asked"]


@dataclass(frozen=True)
class Need:
    """Something that an experiment needs: the key that asks for it, what it is, whether it is here, and what mends that."""

    key: str
    what: str
    state: State
    detail: str = ""


def version(distribution: str) -> str | None:
    """The version of an installed distribution, which is not imported; None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def machine() -> list[tuple[str, str]]:
    """(name, value) of this machine: python, libraries that are installed, devices."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    own = [("apo-bench", __version__), ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    installed = [(name, number) for name in LIBRARIES if (number := version(name))]
    return [*own, *installed, ("cores", f"{cores()}, {memory / 2**30:.0f} GiB of memory"), ("GPUs", _gpus())]


def _gpus() -> str:
    """The GPUs that torch sees, as it names them."""
    if not gpu_count():
        return "none: models run on the CPU"
    import torch

    sizes = [torch.cuda.get_device_properties(place) for place in range(gpu_count())]
    return ", ".join(f"{each.name} ({each.total_memory / 2**30:.0f} GiB)" for each in sizes)


def extras() -> list[tuple[str, str]]:
    """(extra, the versions of what it adds, or how it is installed)."""
    rows = []
    for extra, names in EXTRAS.items():
        versions = {name: version(name) for name in names}
        lacking = f"not installed; pip install 'apo-bench[{extra}]'"
        rows.append((extra, ", ".join(f"{name} {number}" for name, number in versions.items()) if all(versions.values()) else lacking))
    return rows


def needs(file: ExperimentFile, *, ask_servers: bool = False) -> list[Need]:
    """What an experiment needs beside its files of python, and whether it is here. `ask_servers`: connect to each; else no network is used.

    Raises InputError for settings that are wrong in themselves.
    """
    experiment, base = file.experiment, file.path.parent
    each = (_packages(experiment, base), _models(experiment, base), _files(experiment, base), _servers(experiment, base, ask_servers))
    return list(dict.fromkeys(need for part in each for need in part))


def checked(file: ExperimentFile) -> tuple[Sequence[str], Sequence[str]]:
    """The notes of `check` on an experiment, and what it refuses it for, a line each."""
    from apo_bench.run.validate import check

    try:
        return check(file, TaskCache(), sizes=False), ()
    except InputError as error:
        return (), lines_of(error)


# --- what an experiment needs -------------------------------------------------------------------------------------------------


def _packages(experiment: Experiment, base: Path) -> Iterator[Need]:
    def extra(key: str, name: str) -> Need:
        lacking = [each for each in EXTRAS[name] if not version(each)]
        mend = f"pip install 'apo-bench[{name}]'" if lacking else ""
        return Need(key, f"extra {name}", "missing" if lacking else "ok", mend)

    for key, model in named_models(experiment):
        if isinstance(model, JudgeReward):
            yield extra(key, "judge")
        elif not isinstance(model, NgramReward):
            recipes = [recipe for recipe in (model.training, model.warmup) if recipe is not None]
            if any(recipe.lora for recipe in recipes):
                yield extra(key, "peft")
            quantize = model.quantize if isinstance(model, PolicyModel) else None
            settings: list[dict[str, Any]] = [{"attention": model.attention, "quantize": quantize}]
            for part in [*settings, *({"optimizer": recipe.optimizer} for recipe in recipes)]:
                if lacking := precision.lacking(**part):
                    yield Need(key, lacking.partition(", which")[0], "missing", lacking.rpartition("run: ")[2])
    for name, arm in experiment.arms.items():
        if arm.parameters.get("adapters"):
            yield extra(f"arms.{name}", "peft")
        files = source_files(arm.use, arm.parameters, base=base)
        if any("train_with_trl(" in path.read_text(encoding="utf-8") for path in files):
            yield extra(f"arms.{name}", "trl")
    for name, judge in experiment.judges.items():
        if "base_url" in judge.parameters:
            yield extra(f"judges.{name}", "judge")
    if experiment.executor.use == "ray":
        yield extra("executor", "ray")
    for tracker in experiment.trackers:
        yield extra("trackers", tracker)
    if experiment.evaluation.capabilities is not None:
        yield Need("evaluation.capabilities", "extra lm-eval", "missing" if (lacking := lacks_lm_eval()) else "ok", lacking or "")
    for key, section in {"models.policy": experiment.models.policy, "evaluation": experiment.evaluation}.items():
        engine = with_python(section, base).sampling.engine
        if engine is not None and engine.python is not None:
            try:
                yield Need(f"{key}.sampling.engine", engine.python, "ok", version_of(engine.python, None))
            except NotHere as error:
                yield Need(f"{key}.sampling.engine", engine.python, "missing", str(error))


def _models(experiment: Experiment, base: Path) -> Iterator[Need]:
    named = [(f"{key}.path", path) for key, model in named_models(experiment) if (path := getattr(model, "path", None))]
    for name, arm in finished_arms(experiment).items():
        named += [(f"arms.{name}.{key}", path) for key, path in paths(arm) if key.partition(".")[0] in ("adapters", "base")]
    for name, judge in experiment.judges.items():
        named += [(f"judges.{name}.path", path)] if isinstance(path := judge.parameters.get("path"), str) else []
    for key, path in named:
        try:
            resolved = resolve_model(path, base)
        except InputError as error:
            yield Need(key, path, "missing", str(error).removeprefix("path: "))
            continue
        if os.path.isabs(resolved):
            yield Need(key, path, "ok", resolved)
        elif cached := _in_the_hubs_cache(path):
            yield Need(key, path, "ok", cached)
        else:
            offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
            detail = f"taken for a hub id{similar_model(path, base)}"
            yield Need(key, path, "missing" if offline else "to download", detail)


def _in_the_hubs_cache(name: str) -> str | None:
    """The folder of a model that was downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    try:
        config = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no hub id at all
        return None
    return str(Path(config).parent) if isinstance(config, str) else None


def _files(experiment: Experiment, base: Path) -> Iterator[Need]:
    data = experiment.task.options.get("data_files") or ()
    named = [("task.options.data_files", name) for name in ((data,) if isinstance(data, str) else data)]
    golden = experiment.task.options.get("golden")
    golden = golden.get("file") if isinstance(golden, dict) else golden if str(golden).endswith(".jsonl") else None
    named += [("task.options.golden", golden)] if golden else []
    for part in experiment.evaluation.prompt_sets:
        key = f"evaluation.prompt_sets.{part.name}"
        named += [(f"{key}.data_files", name) for name in part.data_files]
        named += [(f"{key}.refusal_labels", part.refusal_labels)] if part.refusal_labels else []
    if (settings := experiment.evaluation.capabilities) and settings.include_path:
        named.append(("evaluation.capabilities.include_path", settings.include_path))
    for name, arm in finished_arms(experiment).items():
        named += [(f"arms.{name}.{key}", path) for key, path in paths(arm) if key.partition(".")[0] == "responses"]
    named += [("executor.launch", experiment.executor.launch)] if experiment.executor.launch else []
    for key, name in named:
        path = find_beside(Path(str(name)).expanduser(), base)
        yield Need(key, str(name), "ok" if path else "missing", str(path) if path else "no such file")


def _servers(experiment: Experiment, base: Path, ask: bool) -> Iterator[Need]:
    chats = [(key, model.base_url, model.api_key_env) for key, model in named_models(experiment) if isinstance(model, JudgeReward)]
    for name, judge in experiment.judges.items():
        if isinstance(url := judge.parameters.get("base_url"), str):
            chats.append((f"judges.{name}", url, judge.parameters.get("api_key_env")))
    for key, _, variable in chats:
        if variable:
            yield Need(f"{key}.api_key_env", variable, "ok" if os.environ.get(variable) else "missing", "a variable of the environment")
    urls = [(f"{key}.base_url", url) for key, url, _ in chats]
    for key, section in {"models.policy": experiment.models.policy, "evaluation": experiment.evaluation}.items():
        urls += [(f"{key}.sampling.engine.url", engine.url)] if (engine := section.sampling.engine) and engine.url else []
    for key, url in urls:
        yield _reached(key, url) if ask else Need(key, url, "not asked", "--ask-servers connects to it")


def _reached(key: str, url: str) -> Need:
    """Whether something listens where a server should be; nothing is sent."""
    parts = urlsplit(url)
    try:
        reason = why_silent(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    except ValueError as error:  # no port at all
        reason = str(error)
    return Need(key, url, "missing" if reason else "ok", f"nothing listens there: {reason}" if reason else "something listens there")


def missing(rows: Iterable[Need]) -> list[Need]:
    """Those that are not here."""
    return [need for need in rows if need.state == "missing"]
