"""A policy with known probabilities: the same at every position."""

import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from apo_bench.config.schema import PolicyModel, Recipe, Sampling
from apo_bench.models import policy as policies

LLAMA = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def constant_policy(folder: Path, weights: dict[str, float], tokenizer: Any) -> Path:
    """A policy whose next token has these probabilities (over their sum) whatever came before.

    Every embedding is the first unit vector and the layer adds nothing, so the normalised state is (4, 0, ..., 0) in 16 dimensions and
    the logits are 4 times the output layer's first column.
    """
    config = AutoConfig.for_model(**LLAMA, **policies.token_ids(tokenizer), rms_norm_eps=0.0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0) if "norm" in name else weight.zero_()
        model.get_input_embeddings().weight[:, 0] = 1.0
        model.lm_head.weight[:, 0] = -100.0
        for token, probability in weights.items():
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(token), 0] = math.log(probability) / 4
    policies.save_model(model, tokenizer, folder)
    return folder


def policy_settings(max_new_tokens: int, max_response_tokens: int = 32) -> PolicyModel:
    """Settings for a policy that is sampled and compared, never trained."""
    return PolicyModel(
        path=".", max_prompt_tokens=16, max_response_tokens=max_response_tokens,
        training=Recipe(learning_rate=1), sampling=Sampling(max_new_tokens=max_new_tokens),
    )  # fmt: skip
