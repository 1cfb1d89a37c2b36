"""Policies: loading one, building one, saving one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from apo_bench.models import precision
from apo_bench.models.device import is_sharded, own_device, seeded
from apo_bench.models.model_folder import fit_embedding, read_model
from apo_bench.models.tokenize import load_tokenizer
from apo_bench.models.word_tokenizer import word_tokenizer

ALIGNMENT = 64  # bytes, as torch allocates


def on_device(model: Any) -> Any:
    """The model on this process's accelerator, if there is one; else with weights where torch would allocate them.

    Weights read from a safetensors file lie in it at any multiple of 8 bytes, and CPU kernels give other last bits there: a model that was
    loaded would not score as the same model in memory does.
    """
    if getattr(model, "is_quantized", False):  # it was loaded where it is
        return model
    for weight in (*model.parameters(), *model.buffers()):
        if weight.data_ptr() % ALIGNMENT:
            weight.data = weight.data.clone()
    return model.to(own_device())


def use_one_thread() -> None:
    """One torch thread, as the run's workers have (two on shared cores are many times slower, and other counts give other bits), and no
    progress bar for every file."""
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_policy(folder: str | Path, trust_remote_code: bool = False, shards: bool = False, **options: Any) -> tuple[Any, Any]:
    """(model, tokenizer); the embedding grows where the tokenizer was given a padding token of its own.

    `shards`: it is to be trained, and where accelerate shards, one process loads it, and none of them onto its device.
    `options`: dtype (float32 unless given), attention, quantize, as of resolved settings. Raises InputError for what is not possible here,
    and for a folder that is not whole.
    """
    from transformers import AutoModelForCausalLM

    tokenizer, load_options = load_tokenizer(folder, trust_remote_code), precision.load_options(**options)
    shards = shards and is_sharded()
    model = read_model(AutoModelForCausalLM, folder, trust_remote_code=trust_remote_code, shards=shards, **load_options)
    fit_embedding(model, tokenizer)
    return model if shards else on_device(model), tokenizer


def new_policy(architecture: Mapping[str, Any], vocabulary: Sequence[str], seed: int) -> tuple[Any, Any]:
    """(model, tokenizer) of a randomly initialised architecture with a word-level tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = word_tokenizer(vocabulary)
    fields = dict(architecture)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields, **token_ids(tokenizer))
    with seeded(seed):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return on_device(model), tokenizer


def token_ids(tokenizer: Any) -> dict[str, Any]:
    """The configuration fields that follow from a tokenizer."""
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    return {"vocab_size": len(tokenizer), **special}


def save_model(model: Any, tokenizer: Any, folder: Path, dtype: str = "float32") -> None:
    """An ordinary transformers folder with safetensors; another `dtype` than float32 rounds the model's weights in place."""
    if dtype != "float32":
        precision.round_weights(model, dtype)
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
