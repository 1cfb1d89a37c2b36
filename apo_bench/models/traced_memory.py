"""Device memory of what models compute, beside their weights: the peak of live bytes of the very computation, on tensors without numbers.

Tensors are torch's fake ones, which have shapes, storages and a device, but no memory, so that bf16 autocast, fused attention and
checkpointing allocate as they do with numbers. Not counted: what kernels allocate within themselves, and an allocator's rounding.
"""

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from apo_bench.config.schema import Recipe, Sampling
from apo_bench.models import adapters, generate, kl_divergence, kv_cache
from apo_bench.models.flops import windows
from apo_bench.models.memory import LiveBytes
from apo_bench.models.output_layer import logps_after, positions_at

NUMBERS = ("layer_idx", "layer_id", "layer_number")  # of a layer among the others
LAYERS = 2  # tell what reading takes: without gradients, no layer leaves anything behind
PAD = 0
Course = Sequence[int]  # live bytes, operation by operation


@dataclass(frozen=True)
class Batch:
    """Sequences of a pass, the tokens of each, and of how many, the last ones, log-probabilities are taken; 0: it is scored by its head."""

    sequences: int
    length: int
    outputs: int = 0


def training(model: Any, recipe: Recipe, dtype: str, attention: str, batch: Batch) -> float:
    """Forward and backward of a micro-batch by a resolved recipe; gradients exist before, as from a micro-batch on before it.

    `model`: on the meta device. dtype: of frozen weights under adapters; weights that are trained are in fp32. Where layers repeat
    themselves a few tell what all take; see `_peak_of`.
    """

    def trace(layers: int) -> tuple[Course, Course]:
        return _trained(_cut(model, layers), recipe, dtype, attention, batch)

    count = model.config.get_text_config().num_hidden_layers
    if few := None if recipe.freeze else _few_layers(model):
        layers, period = few
        parts = zip(trace(layers), trace(layers + period), strict=True)
        peaks = [_peak_of(*courses, (count - layers) // period) for courses in parts]
        if None not in peaks:
            return float(max(peak for peak in peaks if peak is not None))
    return float(max(map(max, trace(count))))


def _trained(model: Any, recipe: Recipe, dtype: str, attention: str, batch: Batch) -> tuple[Course, Course]:
    """Live bytes in the forward pass and in the backward pass."""
    adapted = model if recipe.lora is None else adapters.add(copy.deepcopy(model), recipe.lora, seed=0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        traced = _fake(adapted, "float32" if recipe.lora is None else dtype, attention, trained="float32")
        for name, weight in traced.named_parameters():
            if recipe.freeze and re.search(recipe.freeze, name):
                weight.requires_grad_(False)
            if weight.requires_grad:
                weight.grad = torch.zeros_like(weight)
        traced.train()
        if recipe.gradient_checkpointing and traced.supports_gradient_checkpointing:
            # no state of generators is kept: fake ones have none
            traced.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
        with LiveBytes() as memory:
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
                result = _computed(traced, batch)
            forward = len(memory.course)
            result.sum().backward()
    return memory.course[:forward], memory.course[forward:]


def _few_layers(model: Any) -> tuple[int, int] | None:
    """(n, period): after the first n layers those before repeat themselves, so many at a time, to the end; None: tracing all is no more.

    Layers are alike if their modules, weights and settings are, but for their numbers.
    """
    count = model.config.get_text_config().num_hidden_layers
    stack = next((part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == count), ())
    kinds = [_kind(layer) for layer in stack]
    for period in range(1, len(kinds)):
        start = next((place for place in reversed(range(count - period)) if kinds[place] != kinds[place + period]), -1) + 1
        layers = max(LAYERS, start + period)
        layers += (count - layers) % period
        if 2 * layers + period < count:
            return layers, period
    return None


def _kind(layer: nn.Module) -> Any:
    """What is equal in layers that compute alike."""
    plain = (bool, int, float, str, tuple, type(None))
    return [
        (name, type(part), {key: value for key, value in vars(part).items() if isinstance(value, plain) and key not in NUMBERS},
         [(key, weight.shape) for key, weight in part.named_parameters(recurse=False)])
        for name, part in layer.named_modules()
    ]  # fmt: skip


def _peak_of(few: Course, more: Course, periods: int) -> int | None:
    """The peak of a pass with so many periods of layers more than `few` has, of which `more` has one; None: these do not tell.

    From either end of the pass, operation by operation, a period adds a constant. Operations between lie on lines between these.
    """
    from_start, from_end = [b - a for a, b in zip(few, more, strict=False)], [b - a for a, b in zip(few[::-1], more[::-1], strict=False)]
    first, last = (next((place for place, step in enumerate(steps) if step != steps[0]), len(few)) for steps in (from_start, from_end))
    if first + last < len(few):
        return None
    return max(max(few[:first]) + periods * from_start[0], max(few[len(few) - last :]) + periods * from_end[0])


def reading(model: Any, dtype: str, attention: str, batch: Batch) -> float:
    """A forward pass without gradients."""
    return _read(model, dtype, attention, lambda traced: _computed(traced, batch))


def kl(model: Any, dtype: str, attention: str, batch: Batch) -> float:
    """KL of a pass, of two policies alike."""

    def compute(traced: Any) -> Tensor:
        p, q = (positions_at(traced, *_inputs(traced, batch)) for _ in range(2))
        return kl_divergence.divergence(p, q, PAD)

    return _read(model, dtype, attention, compute)


def drawing(rows: int, length: int, vocabulary: int, sampling: Sampling, dtype: str) -> float:
    """The next token of so many responses, from their logits on, with so many tokens before."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        ids = torch.zeros(rows, length, dtype=torch.long)
        processors = generate.processors(sampling, PAD, "cpu")
        generators = [torch.Generator()] * rows
        with LiveBytes() as memory:
            scores = torch.empty(rows, vocabulary, dtype=getattr(torch, dtype)).float()
            scores = processors(ids, scores)
            (scores.argmax(dim=-1) if sampling.temperature == 0 else generate.draw(scores, generators))
    return float(memory.peak)


def kl_rows(responses: int, length: int) -> int:
    """How many sequences of a length are compared at a time."""
    return max(1, min(responses, kl_divergence.TOKENS_A_PASS // length))


def cache(model: Any, rows: int, tokens: int, dtype: str) -> float:
    """Keys and values of so many tokens of each row, with room to grow; layers with a window keep no more than it."""
    config, tokens = model.config.get_text_config(), tokens + kv_cache.ROOM
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kept = sum(min(tokens, window or tokens) for window in windows(config, config.num_hidden_layers))
    return 2.0 * rows * kept * heads * size * getattr(torch, dtype).itemsize


def _read(model: Any, dtype: str, attention: str, compute: Callable[[Any], Tensor]) -> float:
    cut = _cut(model, LAYERS)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        traced = _fake(cut, dtype, attention).eval()
        with LiveBytes() as memory:
            compute(traced)
    return float(memory.peak)


def _computed(model: Any, batch: Batch) -> Tensor:
    """Log-probabilities, or scores."""
    ids, mask, where = _inputs(model, batch)
    if batch.outputs:
        return logps_after(model, ids, mask, where)
    return model(input_ids=ids, attention_mask=mask).logits.float()


def _inputs(model: Any, batch: Batch) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Token ids, a 4-D mask (transformers reads the values of a 2-D one), and the positions before the last tokens."""
    positions = torch.zeros(batch.sequences * batch.outputs, dtype=torch.long)
    mask = torch.zeros(batch.sequences, 1, batch.length, batch.length, dtype=torch.get_default_dtype())
    return torch.zeros(batch.sequences, batch.length, dtype=torch.long), mask.to(model.dtype), (positions, positions.clone())


def _cut(model: Any, layers: int) -> Any:
    """The model, or a copy with only so many of its layers."""
    count = model.config.get_text_config().num_hidden_layers
    if count <= layers:
        return model
    kept: dict[int, Any] = {}  # by identity, as deepcopy wants it
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            kept[id(module)] = nn.ModuleList([copy.deepcopy(layer, kept) for layer in module[:layers]])
    copied = copy.deepcopy(model, kept)
    copied.config.get_text_config().num_hidden_layers = layers
    return copied


def _fake(model: Any, dtype: str, attention: str, trained: str | None = None) -> Any:
    """A copy with fake weights. trained: dtype of weights that get gradients, if another."""
    weights: dict[int, Tensor] = {}
    for weight in model.parameters():
        values = torch.empty(weight.shape, dtype=getattr(torch, trained if trained and weight.requires_grad else dtype))
        weights[id(weight)] = nn.Parameter(values, requires_grad=weight.requires_grad)
    copied = copy.deepcopy(model, weights | {id(buffer): torch.empty(buffer.shape, dtype=buffer.dtype) for buffer in model.buffers()})
    copied.config._attn_implementation = "eager" if attention == "eager" else "sdpa"
    if copied.config.pad_token_id is None:
        copied.config.pad_token_id = PAD
    return copied
