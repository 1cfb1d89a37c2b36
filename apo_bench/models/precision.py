"""The precision in which models are read, trained and stored, and the kernel of their attention.

Weights that are trained are fp32; with `bf16` their products are computed in bf16, by autocast. Weights that are only read have `dtype`.
"""

import importlib.util
from typing import Any, TypeVar

from apo_bench.config.schema import EnsembleReward, Models, NetworkReward, PolicyModel, Recipe, RewardSpec, members
from apo_bench.errors import InputError

DTYPES = {"cuda": "bfloat16", "cpu": "float32"}
PRECISIONS = {"cuda": "bf16", "cpu": "fp32"}
Settings = TypeVar("Settings", bound=PolicyModel | RewardSpec | Recipe)


def resolved(settings: Settings, device: str | None) -> Settings:
    """The settings with each `auto` replaced by what it means on a `device` ("cuda" or "cpu"); None, no device: as they are.

    Resolving twice changes nothing, so that keys and jobs hold what was meant, wherever it was resolved. Raises InputError for flash
    attention in fp32.
    """
    if device is None:
        return settings
    if isinstance(settings, Recipe):
        changes: dict[str, Any] = {"precision": PRECISIONS[device], "gradient_checkpointing": device == "cuda"}
        return settings.model_copy(update={name: value for name, value in changes.items() if getattr(settings, name) == "auto"})
    if isinstance(settings, EnsembleReward):
        return settings.model_copy(update={"of": tuple(resolved(member, device) for member in settings.of)})
    if isinstance(settings, PolicyModel | NetworkReward):
        changes = {
            "stored_dtype": "float32" if settings.dtype == "auto" else settings.dtype,
            "dtype": DTYPES[device],
            "attention": "sdpa",
        }
        changes = {name: value for name, value in changes.items() if getattr(settings, name) == "auto"}
        recipes = {name: resolved(recipe, device) for name in ("training", "warmup") if (recipe := getattr(settings, name)) is not None}
        settings = settings.model_copy(update=changes | recipes)
        trained_in_fp32 = settings.training is not None and settings.training.precision == "fp32"
        if settings.attention == "flash_attention_2" and (settings.dtype == "float32" or trained_in_fp32):
            raise InputError("attention: flash_attention_2 computes in 16 bits; give dtype: bfloat16 and training.precision: bf16")
    return settings


def summary(models: Models, device: str | None) -> dict[str, Any]:
    """What each neural model's settings mean on a device, for a manifest: by policy, reward, and the golds' names."""
    named: dict[str, Any] = {"policy": models.policy}
    for name, spec in {"reward": models.reward, **{f"gold {gold.name}": gold.model for gold in models.gold}}.items():
        parts = members(spec)
        named |= {name: spec} if len(parts) == 1 else {f"{name} {number}": part for number, part in enumerate(parts, 1)}
    settings = {name: resolved(model, device) for name, model in named.items()}
    return {
        name: {
            "dtype": model.dtype, "stored_dtype": model.stored_dtype, "attention": model.attention,
            **(model.training.model_dump(include={"precision", "gradient_checkpointing", "optimizer"}) if model.training else {}),
        }
        for name, model in settings.items() if isinstance(model, PolicyModel | NetworkReward)
    }  # fmt: skip


def load_options(dtype: str = "float32", attention: str = "sdpa", quantize: str | None = None) -> dict[str, Any]:
    """What `from_pretrained` is given for resolved settings. Raises InputError for what this machine cannot do."""
    import torch

    options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if attention != "sdpa":  # transformers' own choice, and eager where an architecture has no other
        options["attn_implementation"] = attention
    if missing := lacking(attention=attention, quantize=quantize):
        raise InputError(missing)
    if quantize is not None:
        from transformers import BitsAndBytesConfig

        from apo_bench.models.device import own_device

        if (device := own_device()).type != "cuda":
            raise InputError(f"quantize: {quantize} needs a GPU, and there is none")
        four: dict[str, Any] = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": options["dtype"]}
        eight: dict[str, Any] = {"load_in_8bit": True}
        options["quantization_config"] = BitsAndBytesConfig(**four if quantize == "4bit" else eight)
        options["device_map"] = {"": device}
    return options


def lacking(attention: str | None = None, quantize: str | None = None, optimizer: str | None = None) -> str | None:
    """What has to be installed for these settings, in a line; None if nothing is missing."""
    if attention == "flash_attention_2" and not _installed("flash_attn") and not _installed("kernels"):
        return "attention: flash_attention_2 needs flash-attn, which is not installed; run: pip install flash-attn"
    if quantize and not _installed("bitsandbytes"):
        return f"quantize: {quantize} needs bitsandbytes, which is not installed; run: pip install 'apo-bench[quantize]'"
    if optimizer and ("bnb" in optimizer or "8bit" in optimizer) and "torch" not in optimizer and not _installed("bitsandbytes"):
        return f"optimizer: {optimizer} needs bitsandbytes, which is not installed; run: pip install 'apo-bench[quantize]'"
    return None


def check_optimizer(name: str) -> None:
    """Raise InputError for an optimizer that transformers does not have."""
    if name == Recipe.model_fields["optimizer"].default:  # before anything slow is imported
        return
    from transformers.training_args import OptimizerNames

    names = [str(optimizer.value) for optimizer in OptimizerNames]
    if name not in names:
        raise InputError(f"optimizer: transformers has no {name!r}; it has: {', '.join(names)}")


def round_weights(model: Any, dtype: str) -> None:
    """Give the model's weights a dtype, in place; buffers, such as rotary frequencies, keep theirs."""
    import torch

    for weight in model.parameters():
        weight.data = weight.data.to(getattr(torch, dtype))


def heads_in_fp32(model: Any, heads: tuple[str, ...]) -> None:
    """Keep a reward model's head in fp32 whatever its body has: scores in bf16 have 8 bits, and many of them tie."""
    for name in heads:
        if (head := getattr(model, name, None)) is not None:
            head.float()
            head.register_forward_pre_hook(_input_in_fp32)


def _input_in_fp32(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return (arguments[0].float(), *arguments[1:])


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
