"""FLOPs by rule: by hand, and against torch's counter on the models of every shipped experiment, which need no weights for that."""

import math
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from apo_bench.config.load import load_experiment
from apo_bench.config.schema import Lora, NeuralReward, PolicyModel, Recipe
from apo_bench.models import flops
from apo_bench.package_data import shipped_root

WIDE = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
}
PLAIN = Recipe(learning_rate=1.0)
BATCH = 2
SIZES: dict[str, dict[str, Any]] = {  # as published, of models whose configurations are not here; transformers' defaults are the others'
    "llama-7b": {"model_type": "llama", "pad_token_id": 0},
    "SmolLM2-135M": {
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    },
    "SmolLM3-3B": {
        "model_type": "smollm3", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 4, "tie_word_embeddings": True, "pad_token_id": 0,
    },
    "Qwen3-0.6B": {
        "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True, "pad_token_id": 0,
    },
    "MiniLM-L6": {
        "model_type": "bert", "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12,
        "pad_token_id": 0,
    },
    "roberta-base": {"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1},
    "ModernBERT-large": {
        "model_type": "modernbert", "vocab_size": 50368, "hidden_size": 1024, "intermediate_size": 2624, "num_hidden_layers": 28,
        "num_attention_heads": 16, "pad_token_id": 0,
    },
}  # fmt: skip
NAMES = {  # what experiments call them
    "PKU-Alignment/alpaca-7b-reproduced": "llama-7b", "huggyllama/llama-7b": "llama-7b", "meta-llama/Llama-2-7b-chat-hf": "llama-7b",
    "smollm2": "SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M-Instruct": "SmolLM2-135M", "HuggingFaceTB/SmolLM3-3B": "SmolLM3-3B",
    "Qwen/Qwen3-0.6B-Base": "Qwen3-0.6B", "minilm": "MiniLM-L6", "sentence-transformers/all-MiniLM-L6-v2": "MiniLM-L6",
    "FacebookAI/roberta-base": "roberta-base", "answerdotai/ModernBERT-large": "ModernBERT-large",
}  # fmt: skip


def build(fields: dict[str, Any], auto: Any = AutoModelForCausalLM, device: str = "meta") -> Any:
    own = dict(fields)
    with torch.device(device):
        # of attention in one piece torch counts nothing on the CPU
        return auto.from_config(AutoConfig.for_model(own.pop("model_type"), **own), attn_implementation="eager")


def counted(model: Any, length: int, *, backward: bool) -> float:
    """What torch counts of two sequences of this length."""
    ids = torch.ones((BATCH, length), dtype=torch.long, device=model.device)
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=ids).logits
        if backward:
            logits.sum().backward()
    return float(counter.get_total_flops())


def shipped() -> dict[str, tuple[dict[str, Any], bool, int]]:
    """Every distinct (configuration, whether it generates, tokens at most) of the shipped experiments' models, with a name to read."""
    cases = {}
    for path in sorted((shipped_root() / "experiments").glob("*.yaml")):
        models = load_experiment(path).models
        specs: list[Any] = [models.policy, models.reward, *(gold.model for gold in models.gold)]
        for spec in specs:
            if not isinstance(spec, PolicyModel | NeuralReward):
                continue
            body = models.policy if isinstance(spec, NeuralReward) and spec.initial else spec
            fields = SIZES[NAMES[body.path]] if body.path else {**(body.architecture or {}), "vocab_size": 158, "pad_token_id": 0}
            generates = isinstance(spec, PolicyModel)
            length = spec.max_prompt_tokens + spec.max_response_tokens if isinstance(spec, PolicyModel) else spec.max_tokens
            what = NAMES.get(body.path or "", fields["model_type"])
            cases[f"{what}{'' if generates else ' reward'}, {length} tokens"] = (fields, generates, length)
    return cases


@pytest.mark.slow
@pytest.mark.parametrize(("fields", "generates", "length"), shipped().values(), ids=shipped())
def test_every_shipped_model_is_within_two_percent_of_torchs_count(fields: dict[str, Any], generates: bool, length: int) -> None:
    """Forward and training, at the longest texts the experiment lets through; plain 2 N D would be up to 17 % less."""
    device = "cpu" if fields["model_type"] == "gpt2" else "meta"  # which looks into its weights
    model = build(fields, AutoModelForCausalLM if generates else AutoModelForSequenceClassification, device)
    lengths = [length] * BATCH
    forward, training = flops.size(model).forward(lengths), flops.training(model, PLAIN).flops(BATCH * length, lengths)
    assert forward == pytest.approx(counted(model, length, backward=False), rel=0.02)
    assert training == pytest.approx(counted(model, length, backward=True), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
@pytest.mark.parametrize(("name", "generates"), [("SmolLM2-135M", True), ("Qwen3-0.6B", False)])
def test_adapters_are_counted_as_torch_does(name: str, generates: bool, targets: Any) -> None:
    """Within 2 %; the adapters' weights are those that peft makes. With all-linear or on two projections alone."""
    from peft import LoraConfig, get_peft_model

    model = build(SIZES[name], AutoModelForCausalLM if generates else AutoModelForSequenceClassification)
    recipe = Recipe(learning_rate=1.0, lora=Lora(rank=16, target_modules=targets if targets == "all-linear" else tuple(targets)))
    cost = flops.training(model, recipe)
    with torch.device("meta"):
        adapted = get_peft_model(model, LoraConfig(r=16, target_modules=targets, modules_to_save=None if generates else ["score"]))
    adapter_weights = sum(weight.numel() for part, weight in adapted.named_parameters() if "lora_" in part)
    assert cost.adapters == adapter_weights
    assert cost.flops(BATCH * 256, [256] * BATCH) == pytest.approx(counted(adapted, 256, backward=True), rel=0.02)


def test_by_hand() -> None:
    """Llama, 2 layers of width 16: 4 x 16 x 16 + 3 x 16 x 32 weights and 32 of norms a layer, 16 of a norm, 50 x 16 of the output.

    A pass over 3 and 5 tokens: 2 N 8 + 4 x 32 x (9 + 25). A response of 4 to a prompt of 3: 2 N 7 + 128 (9 + 12 + 8). Training on 10
    tokens of such sequences, whose tokens see 34 / 8 on average: 6 N 10 + 3 x 128 x 10 x 34 / 8.
    """
    model = build(WIDE)
    n = 2 * (4 * 256 + 3 * 512 + 32) + 16 + 800
    size = flops.size(model)
    assert (size.weights, size.attention) == (n, 32)
    assert size.forward([3, 5]) == 16 * n + 128 * 34
    assert size.generation(3, 4) == 14 * n + 128 * 29
    assert flops.training(model, PLAIN).flops(10, [3, 5]) == 60 * n + 3 * 128 * 10 * 34 / 8


@pytest.mark.slow
def test_what_is_frozen_and_what_is_adapted_by_hand() -> None:
    """Frozen MLPs, 2 x 3 x 512 weights, save their own gradients, 2 a token.

    Adapters of rank 4 on queries, 2 layers x 4 x (16 + 16) weights of their own at 6 a token; all other weights are frozen: 4 N.
    """
    model = build(WIDE)
    n, mlp = flops.size(model).weights, 2 * 3 * 512
    frozen = flops.training(model, Recipe(learning_rate=1.0, freeze=r"\.mlp\."))
    assert (frozen.trained, frozen.adapters) == (n - mlp, 0)
    assert frozen.flops(1, []) == 6 * n - 2 * mlp
    adapted = flops.training(model, Recipe(learning_rate=1.0, lora=Lora(rank=4, target_modules=("q_proj",))))
    assert (adapted.trained, adapted.adapters) == (0, 256)
    assert adapted.flops(1, []) == 4 * n + 6 * 256


def test_a_classification_head_is_trained_beside_adapters() -> None:
    model = build({**WIDE, "pad_token_id": 0}, AutoModelForSequenceClassification)
    adapted = flops.training(model, Recipe(learning_rate=1.0, lora=Lora(rank=4)))
    assert adapted.trained == model.score.weight.numel()
    assert not math.isnan(adapted.flops(1, []))


def test_words_that_are_output_too_are_counted_once_and_positions_never() -> None:
    """GPT-2 of one layer of width 8: 3 x 64 + 64 in attention, 2 x 8 x 32 in its MLP, biases 24 + 8 + 32 + 8, norms 3 x 16, 20 words."""
    tied = {
        "model_type": "gpt2",
        "n_embd": 8,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": 99,
        "vocab_size": 20,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    assert flops.size(build(tied)).weights == 256 + 512 + 72 + 48 + 160
