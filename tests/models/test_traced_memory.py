"""Traced memory against live bytes of the same computation on real tensors, and by hand."""

from functools import partial
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from apo_bench.config.schema import Lora, Recipe, Sampling
from apo_bench.losses import DPOLoss
from apo_bench.models import traced_memory
from apo_bench.models.memory import LiveBytes
from apo_bench.models.traced_memory import Batch
from apo_bench.training import encoding

pytestmark = pytest.mark.slow

SHAPE = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 1000, "pad_token_id": 0,
}  # fmt: skip
PLAIN = Recipe(learning_rate=1.0, precision="fp32", gradient_checkpointing=False)
PROMPT, RESPONSE = 40, 24


def new(device: str, auto: Any = AutoModelForCausalLM, kind: str = "llama", **changes: Any) -> Any:
    with torch.device(device):
        return auto.from_config(AutoConfig.for_model(kind, **{**SHAPE, **changes}), dtype=torch.float32)


def pairs(n: int) -> dict[str, torch.Tensor]:
    """A batch of pairs, all of the greatest length but for one token of padding: where there is none, no mask is needed."""
    ids = torch.ones(2, n, PROMPT + RESPONSE, dtype=torch.long)
    mask = torch.zeros_like(ids)
    mask[..., PROMPT:] = 1
    attention = torch.ones_like(ids)
    attention[0, 0, -1] = mask[0, 0, -1] = 0
    return {"input_ids": ids, "attention_mask": attention, "response_mask": mask, "reference_logps": torch.zeros(ids.shape)}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_step_holds_what_is_traced(precision: str, checkpointing: bool) -> None:
    """DPO of 8 pairs, on this machine's CPU, with gradients of an earlier micro-batch. Within 10 %."""
    recipe = PLAIN.model_copy(update={"precision": precision, "gradient_checkpointing": checkpointing})
    traced = traced_memory.training(new("meta"), recipe, "float32", "sdpa", Batch(16, PROMPT + RESPONSE, RESPONSE))
    model = new("cpu").train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    step = partial(encoding.loss_terms, model, pairs(8), DPOLoss(0.1))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = step().sum()
    loss.backward()
    del loss
    with LiveBytes() as memory:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = step().sum()
        loss.backward()
    assert traced == pytest.approx(memory.peak, rel=0.1)


@pytest.mark.parametrize("kind", ["llama", "modernbert"])
def test_scoring_holds_what_is_traced(kind: str) -> None:
    """A pass of two layers takes as much as one of four: without gradients no layer leaves anything."""
    traced = traced_memory.reading(new("meta", AutoModelForSequenceClassification, kind), "float32", "sdpa", Batch(16, 64))
    model = new("cpu", AutoModelForSequenceClassification, kind).eval()
    attention = torch.ones(16, 64, dtype=torch.long)
    attention[0, -1] = 0
    with torch.no_grad(), LiveBytes() as memory:
        model(input_ids=torch.ones(16, 64, dtype=torch.long), attention_mask=attention)
    assert traced == pytest.approx(memory.peak, rel=0.1)


def test_nothing_of_the_model_changes() -> None:
    model = new("meta")
    traced_memory.training(model, PLAIN, "float32", "sdpa", Batch(2, 8, 4))
    traced_memory.reading(model, "bfloat16", "eager", Batch(2, 8, 4))
    assert model.config.num_hidden_layers == len(model.model.layers) == 4
    assert all(weight.is_meta and weight.requires_grad and weight.dtype == torch.float32 for weight in model.parameters())


def test_adapters_save_the_gradients_of_weights() -> None:
    """With adapters on a frozen bf16 base, neither the base nor the embedding gets gradients."""
    pytest.importorskip("peft")
    batch = Batch(4, 16, 8)
    plain = traced_memory.training(new("meta"), PLAIN, "float32", "sdpa", batch)
    adapted = traced_memory.training(new("meta"), PLAIN.model_copy(update={"lora": Lora(rank=2)}), "bfloat16", "sdpa", batch)
    assert adapted < plain


def test_a_cache_by_hand() -> None:
    """4 layers x keys and values x 3 rows x (20 + 64 for growth) tokens x 2 heads x 16 numbers of 2 bytes; of 8 tokens in two layers."""
    assert traced_memory.cache(new("meta"), 3, 20, "bfloat16") == 4 * 2 * 3 * 84 * 2 * 16 * 2
    kinds = ["sliding_attention", "full_attention"] * 2
    model = new("meta", kind="qwen3", head_dim=16, sliding_window=8, use_sliding_window=True, layer_types=kinds)
    assert traced_memory.cache(model, 3, 20, "bfloat16") == 2 * 2 * 3 * (84 + 8) * 2 * 16 * 2


def test_drawing_holds_some_numbers_a_logit() -> None:
    """At least logits in fp32 and uniform numbers in 64 bits, at most 40 bytes a logit; greedy decoding takes less."""
    each = {t: traced_memory.drawing(8, 10, 1000, Sampling(max_new_tokens=4, temperature=t), "float32") / 8000 for t in (0.0, 1.0)}
    assert 12 <= each[1.0] <= 40
    assert each[0.0] < each[1.0]


LOCAL = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 4, "sliding_window": 16}


@pytest.mark.parametrize(
    ("kind", "layers", "changes", "few"),
    [("llama", 12, {}, (2, 1)), ("qwen3", 12, LOCAL, (3, 3)), ("modernbert", 19, {"vocab_size": 1000}, (4, 3))],
)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_few_layers_tell_what_all_take(
    kind: str,
    layers: int,
    changes: dict[str, Any],
    few: tuple[int, int],
    checkpointing: bool,
    lora: Lora | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against a trace of all layers, to the byte. ModernBERT's first layer is unlike the others, of which each third is global."""
    auto = AutoModelForSequenceClassification if kind == "modernbert" else AutoModelForCausalLM
    model = new("meta", auto, kind, num_hidden_layers=layers, **changes)
    recipe = PLAIN.model_copy(update={"precision": "bf16", "gradient_checkpointing": checkpointing, "lora": lora})
    batch = Batch(4, 64, 0 if kind == "modernbert" else 24)
    assert traced_memory._few_layers(model) == few
    quick = traced_memory.training(model, recipe, "bfloat16", "sdpa", batch)
    monkeypatch.setattr(traced_memory, "_few_layers", lambda model: None)
    assert quick == traced_memory.training(model, recipe, "bfloat16", "sdpa", batch)


def test_layers_that_do_not_repeat_themselves_are_all_traced() -> None:
    kinds = ["full_attention"] * 7 + ["sliding_attention"]
    assert traced_memory._few_layers(new("meta", kind="qwen3", num_hidden_layers=8, layer_types=kinds, sliding_window=16)) is None
    assert traced_memory._few_layers(new("meta", num_hidden_layers=5)) is None  # 2 and 3 layers are no less than 5


def test_the_peak_of_more_layers_by_hand() -> None:
    """A layer is one operation: 1, then 3 a layer, then 2 more; with a third layer 1, 4, 7, 10, 12."""
    assert traced_memory._peak_of([1, 4, 7, 9], [1, 4, 7, 10, 12], 1) == 12
    assert traced_memory._peak_of([1, 4, 7, 9], [1, 4, 7, 10, 12], 10) == 39
    assert traced_memory._peak_of([9, 7, 4, 1], [12, 10, 7, 4, 1], 10) == 39  # freed likewise
    assert traced_memory._peak_of([1, 5, 2, 7], [1, 4, 9, 9, 8], 1) is None
