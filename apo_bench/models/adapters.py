"""LoRA adapters (Hu et al., arXiv:2106.09685): put on a model, stored apart from it, merged into it on request.

A base is never changed, so that it can stay loaded and lend its weights to any number of adapters. What a folder of adapters holds is in
`adapter_folder`.
"""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from apo_bench.config.schema import Lora
from apo_bench.errors import InputError
from apo_bench.models.adapter_folder import CONFIG, write_base
from apo_bench.models.device import seeded
from apo_bench.models.model_folder import refusing
from apo_bench.models.tokenize import load_tokenizer
from apo_bench.store import write_json

CLASSIFICATION_HEADS = ("score", "classifier")  # a reward model's is new, so it is trained in full beside adapters
LINEAR = ("Linear", "Conv1D")  # classes of layers that "all-linear" means
PREFIX = "base_model.model."  # of names in a file of adapters
WEIGHTS = "adapter_model.safetensors"


def add(model: Any, lora: Lora, seed: int) -> Any:
    """A peft model: new adapters, drawn by the seed, on the weights of `model`, which stays as it is."""
    from peft import LoraConfig, get_peft_model

    modules: Sequence[str] | str = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    heads = _heads(model) or None  # new, so trained in full beside adapters
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=modules, modules_to_save=heads)  # pyright: ignore
    with seeded(seed):
        return get_peft_model(plain(model), config)


def load(model: Any, folder: Path, *, trainable: bool = False) -> Any:
    """A peft model: the adapters in a folder on the weights of `model`, which stays as it is."""
    from peft import PeftModel

    with seeded(0):  # peft draws weights before it reads them
        return PeftModel.from_pretrained(plain(model), str(folder), is_trainable=trainable)


def load_foreign(model: Any, tokenizer: Any, folder: Path, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """(peft model, tokenizer) of adapters from elsewhere: with the folder's own tokenizer, where it has one.

    Raises InputError for adapters that do not go with the model, pickled ones, and a tokenizer with tokens that the model lacks.
    """
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder}: it has no {WEIGHTS}, the only file of adapters that is read")
    with refusing(folder):
        adapted = load(model, folder)
    if (folder / "tokenizer_config.json").is_file():
        tokenizer, rows = load_tokenizer(folder, trust_remote_code), model.get_input_embeddings().weight.shape[0]
        if beyond := [token for token, place in tokenizer.get_vocab().items() if place >= rows]:
            raise InputError(f"{folder}: its tokenizer has {beyond[0]!r}, but the model that its adapters stand on {rows} embeddings")
    return adapted, tokenizer


def save(model: Any, lora: Lora, base: str | None, folder: Path) -> None:
    """Write the adapters of a peft model. `base`: key of the policy they belong on; None: a reward model's own body."""
    from peft import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, folder / WEIGHTS, metadata={"format": "pt"})
    config = {**model.peft_config["default"].to_dict(), "base_model_name_or_path": base, "inference_mode": True}
    write_json(folder / CONFIG, {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()})
    write_base(folder, base, lora)


def trained_shapes(model: Any, lora: Lora) -> dict[str, tuple[int, ...]]:
    """Shape of every weight that is trained with such adapters on `model`, by its name in the file that `save` writes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, rows, columns in _adapted(model, lora.target_modules):
        shapes |= {f"{PREFIX}{name}.lora_A.weight": (lora.rank, columns), f"{PREFIX}{name}.lora_B.weight": (rows, lora.rank)}
    for head in _heads(model):
        shapes |= {f"{PREFIX}{head}.{name}": tuple(weight.shape) for name, weight in getattr(model, head).named_parameters()}
    return shapes


def linear_weights(model: Any) -> int:
    """How many weights are in linear layers, the output layer and a head apart: those that can be quantized."""
    return sum(rows * columns for _, rows, columns in _adapted(model, "all-linear"))


def _heads(model: Any) -> list[str]:
    return [name for name in CLASSIFICATION_HEADS if hasattr(model, name)]


def _adapted(model: Any, targets: Sequence[str] | str) -> Iterator[tuple[str, int, int]]:
    """(name, rows, columns) of each layer that gets an adapter, as peft chooses them."""
    output, heads = model.get_output_embeddings(), _heads(model)
    for name, module in model.named_modules():
        if targets == "all-linear":
            chosen = type(module).__name__ in LINEAR and module is not output
        else:
            chosen = any(f".{name}".endswith(f".{target}") for target in targets)
        if chosen and name.partition(".")[0] not in heads:
            rows, columns = reversed(module.weight.shape) if type(module).__name__ == "Conv1D" else module.weight.shape
            yield name, rows, columns


def plain(model: Any) -> Any:
    """The model without adapters: modules of its own over the same weights, or merged weights of its own where it has adapters."""
    if has_adapters(model):
        return copy.deepcopy(model).merge_and_unload()
    weights = {id(value): value for value in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, weights)


def has_adapters(model: Any) -> bool:
    """Whether it is a peft model. peft is not imported: it is an extra."""
    return hasattr(model, "get_base_model")


def readable(model: Any) -> Any:
    """The model inside a peft model, with its adapters at work and the forward pass of its class; any other model as it is."""
    return model.get_base_model() if has_adapters(model) else model
