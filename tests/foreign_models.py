"""Folders of tiny models as people elsewhere leave them: padding tokens missing or shared, rows to spare, weights lost."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from apo_bench.config.schema import Lora
from apo_bench.models import adapters
from apo_bench.models.policy import load_policy
from apo_bench.run.tiny import byte_tokenizer
from apo_bench.types import Message, Prompt, prompt_id

LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 2048, "initializer_range": 0.2, "tie_word_embeddings": False,
}  # fmt: skip
POLICY = {
    "max_prompt_tokens": 64, "max_response_tokens": 16, "training": {"learning_rate": 1e-4}, "sampling": {"max_new_tokens": 8},
}  # fmt: skip


def tokenizer(pad: str | None = "own", template: bool = True) -> Any:
    """A byte tokenizer. pad: "own"; "end", the end token; None, there is none."""
    own = byte_tokenizer()
    own.pad_token = {"own": own.pad_token, "end": own.eos_token, None: None}[pad]
    own.chat_template = own.chat_template if template else None
    return own


def policy_folder(folder: Path, own: Any = None, spare: int = 0, **fields: Any) -> Path:
    """A causal model of random weights, with rows to spare in its embedding."""
    return _folder(AutoModelForCausalLM, folder, own or tokenizer(), spare, fields)


def reward_folder(folder: Path, own: Any = None, spare: int = 0, labels: int = 1, seed: int = 0, **fields: Any) -> Path:
    """A classifier of random weights."""
    return _folder(AutoModelForSequenceClassification, folder, own or tokenizer(), spare, {"num_labels": labels, **fields}, seed)


def _folder(auto: Any, folder: Path, own: Any, spare: int, fields: Mapping[str, Any], seed: int = 0) -> Path:
    special = {"pad_token_id": own.pad_token_id, "eos_token_id": own.eos_token_id, "bos_token_id": None}
    config = AutoConfig.for_model(**{**LLAMA, "vocab_size": len(own) + spare, **special, **fields})
    torch.manual_seed(seed)
    auto.from_config(config).save_pretrained(folder)
    own.save_pretrained(folder)
    return folder


def adapter_folder(base: Path, into: Path, seed: int = 0) -> Path:
    """Adapters with weights that are not 0, as peft leaves them."""
    model, _ = load_policy(base)
    adapted = adapters.add(model, Lora(rank=2), seed)
    torch.manual_seed(seed)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(into)
    return into


def change_weights(folder: Path, drop: str | None = None, shapes: Mapping[str, Any] | None = None) -> Path:
    """Without the weight `drop`, and with others of another shape."""
    weights = load_file(folder / "model.safetensors")
    weights = {name: weight for name, weight in weights.items() if name != drop}
    weights |= {name: torch.ones(shape) for name, shape in (shapes or {}).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def change_config(folder: Path, **fields: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder


def conversation(*turns: str, axis: str = "helpful") -> Prompt:
    messages = tuple(Message("assistant" if place % 2 else "user", text) for place, text in enumerate(turns))
    return Prompt(prompt_id(axis, messages), messages, axis, turns[0])


ITEMS = [
    (conversation("how do i wash wool"), "by hand"),
    (conversation("hi", "hello", "tell me about the sea and the ships on it"), "it is wide and deep " * 3),
    (conversation("b"), ""),
    (conversation("why"), "because"),
]
