"""Configurations of hub models as their makers published them, for plans on machines that do not have the models' files.

Fields are those that decide sizes; the others are transformers' defaults of the model type.
"""

from collections.abc import Mapping
from typing import Any

LLAMA_7B: Mapping[str, Any] = {"model_type": "llama", "pad_token_id": 0}
SMOLLM2_135M: Mapping[str, Any] = {
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
}  # fmt: skip
MINILM_L6: Mapping[str, Any] = {
    "model_type": "bert", "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12,
    "pad_token_id": 0,
}  # fmt: skip
PUBLISHED: Mapping[str, Mapping[str, Any]] = {  # by hub id
    "PKU-Alignment/alpaca-7b-reproduced": LLAMA_7B,
    "huggyllama/llama-7b": LLAMA_7B,
    "meta-llama/Llama-2-7b-chat-hf": LLAMA_7B,
    "HuggingFaceTB/SmolLM2-135M-Instruct": SMOLLM2_135M,
    "HuggingFaceTB/SmolLM3-3B": {
        "model_type": "smollm3", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 4, "tie_word_embeddings": True, "pad_token_id": 0,
    },
    "Qwen/Qwen3-0.6B-Base": {
        "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True, "pad_token_id": 0,
    },
    "sentence-transformers/all-MiniLM-L6-v2": MINILM_L6,
    "FacebookAI/roberta-base": {
        "model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1,
    },
    "answerdotai/ModernBERT-large": {
        "model_type": "modernbert", "vocab_size": 50368, "hidden_size": 1024, "intermediate_size": 2624, "num_hidden_layers": 28,
        "num_attention_heads": 16, "pad_token_id": 0,
    },
}  # fmt: skip


def published_fields(path: str) -> dict[str, Any] | None:
    """Fields of a model's configuration by its hub id, `model_type` among them; None for a model that is not listed."""
    fields = PUBLISHED.get(path)
    return None if fields is None else dict(fields)
