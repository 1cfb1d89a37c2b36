"""Device memory of a run's stages, counted: weights, gradients, optimizer states, activations, and a cache of keys and values.

Texts are taken to be as long as the settings let through, so that what fits does so whatever the data. What stays loaded from other
stages, up to `engine.memory_gb`, counts too. An unknown part is NaN.
"""

import importlib.util
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from apo_bench.config.schema import Experiment, Lora, NetworkReward, PolicyModel, members
from apo_bench.engines.counting import CountingEngine
from apo_bench.engines.model_sizes import BYTES, Shape
from apo_bench.engines.passes import Pass
from apo_bench.errors import InputError
from apo_bench.models import adapters, traced_memory
from apo_bench.models.traced_memory import Batch

UNITS = {"GB": 1e9, "GiB": 2**30}
GIB = 2**30
CONTEXT = 1e9  # bytes that CUDA, its libraries and their workspaces take before any tensor is there
SPARE = 0.05  # of a device, left to the allocator's rounding and to gaps between blocks
FP32 = BYTES["float32"]
QUANTIZED = {"4bit": 0.5 + 4 / 64, "8bit": 1.0}  # bytes of a weight in a linear layer; nf4 has a scale in fp32 for each 64
FEW_BITS = "adamw_bnb_8bit"
STATES = {  # bytes of an optimizer's states for each trained weight, with what a step allocates for all of them at once
    "adamw_torch_fused": 8.0, "adamw_torch": 12.0, FEW_BITS: 2.0, "adamw_8bit": 2.0, "paged_adamw_8bit": 2.0, "sgd": 0.0,
}  # fmt: skip
LORA = Lora(rank=32, alpha=64)  # what is tried where adapters may help
VERBS = ("sample", "score", "train reward model", "reference", "train policy", "train online", "KL")  # in the order of a round
MEMORY = "memory_gb"
KINDS = (MEMORY, "batch", "checkpointing", "dtype", "optimizer", "lora", "quantize")  # of changes, the mildest first


@dataclass(frozen=True)
class StageMemory:
    """Bytes of one stage. activations: the peak of what is computed beside the rest, logits included; resident: other stages' models."""

    stage: str
    weights: float
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    cache: float = 0.0
    resident: float = 0.0

    @property
    def total(self) -> float:
        return CONTEXT + self.weights + self.gradients + self.optimizer + self.activations + self.cache + self.resident


@dataclass(frozen=True)
class DeviceMemory:
    """By stage, in the order of a round. capacity: the device's, None: not given. changes: (stage that does not fit, what makes it fit)."""

    stages: tuple[StageMemory, ...]
    capacity: float | None = None
    changes: tuple[tuple[str, str], ...] = ()

    @property
    def peak(self) -> StageMemory:
        """The stage that takes most; an unknown one before all others."""
        return max(self.stages, key=lambda stage: math.inf if math.isnan(stage.total) else stage.total)

    @property
    def fits(self) -> bool | None:
        """None: not known."""
        if self.capacity is None or math.isnan(self.peak.total):
            return None
        return self.peak.total <= usable(self.capacity)


def parse_memory(text: str) -> float:
    """Bytes of "80GB" or "79.2 GiB". Raises InputError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(GB|GiB)", text.strip())
    if match is None or not float(match[1]):
        raise InputError(f"--device-memory {text}: a size such as 80GB or 79.2GiB is needed")
    return float(match[1]) * UNITS[match[2]]


def usable(capacity: float) -> float:
    """What of a device's bytes a stage may take."""
    return (1 - SPARE) * capacity


def device_memory(experiment: Experiment, engine: CountingEngine, capacity: float | None = None) -> DeviceMemory:
    """Of what the engine has counted. `experiment`: with what each `auto` means; `capacity`: bytes of the device."""
    return _Stages(experiment, engine, capacity).all()


def stage_memory(name: str, shape: Shape, part: Pass) -> StageMemory:
    """A pass of a model of this shape, by the resolved settings in `part`; nothing of other stages is resident."""
    if shape.model is None:
        return StageMemory(name, math.nan)
    if part.verb in ("train policy", "train reward model"):
        return _training(name, shape, part)
    if part.verb == "train online":  # by turns
        training = _training(name, shape, part)
        sampling = stage_memory(name, shape, replace(part, verb="sample", items=part.samples[0], sides=part.samples[1]))
        most = max(training, sampling, key=lambda stage: stage.activations + stage.cache)
        return replace(training, activations=most.activations, cache=most.cache)
    model, settings, batch = shape.model, part.model, _batch(part)
    base, adapted = read_weights(shape, settings)
    dtype, attention = settings.dtype, settings.attention
    if part.verb == "KL":
        rows = traced_memory.kl_rows(part.items, batch.length)
        both = base + adapted if _lora(settings) else 2 * base
        return StageMemory(name, both, activations=traced_memory.kl(model, dtype, attention, replace(batch, sequences=rows)))
    if part.verb != "sample":
        return StageMemory(name, base + adapted, activations=traced_memory.reading(model, dtype, attention, batch))
    assert part.sampling is not None
    assert isinstance(settings, PolicyModel)
    tokens = settings.max_prompt_tokens + part.sampling.max_new_tokens
    prompts = traced_memory.reading(model, dtype, attention, Batch(part.items, settings.max_prompt_tokens, 1))
    drawn = traced_memory.drawing(part.sequences, tokens, model.config.get_text_config().vocab_size, part.sampling, dtype)
    cache = traced_memory.cache(model, part.sequences, tokens, dtype)
    return StageMemory(name, base + adapted, activations=max(prompts, drawn), cache=cache)


def _training(name: str, shape: Shape, part: Pass) -> StageMemory:
    """Weights that are trained are in fp32; under a reward model's adapters all are."""
    model, settings, recipe = shape.model, part.model, part.recipe
    assert recipe is not None
    if recipe.lora is None:
        frozen = re.compile(recipe.freeze) if recipe.freeze else None
        trained = sum(weight.numel() for name, weight in model.named_parameters() if frozen is None or not frozen.search(name))
        weights, known = FP32 * shape.n_weights, True
    else:
        trained = sum(map(math.prod, adapters.trained_shapes(model, recipe.lora).values()))
        base = FP32 * shape.n_weights if isinstance(settings, NetworkReward) else read_weights(shape, settings)[0]
        weights, known = base + FP32 * trained, importlib.util.find_spec("peft") is not None
    dtype = "float32" if isinstance(settings, NetworkReward) else settings.dtype
    return StageMemory(
        name,
        weights,
        gradients=FP32 * trained,
        optimizer=STATES.get(recipe.optimizer, math.nan) * trained,
        activations=traced_memory.training(model, recipe, dtype, settings.attention, _batch(part)) if known else math.nan,
    )


def _batch(part: Pass) -> Batch:
    """The sequences of a pass at their longest."""
    if isinstance(part.model, NetworkReward):
        return Batch(part.sequences, part.model.max_tokens)
    return Batch(part.sequences, part.model.max_prompt_tokens + part.model.max_response_tokens, part.model.max_response_tokens)


def read_weights(shape: Shape, settings: PolicyModel | NetworkReward) -> tuple[float, float]:
    """Bytes of the weights of a model that is read, and of the adapters on them."""
    lora, quantize = _lora(settings), settings.quantize if isinstance(settings, PolicyModel) else None
    adapted = 0.0 if lora is None else FP32 * sum(map(math.prod, adapters.trained_shapes(shape.model, lora).values()))
    few_bits = adapters.linear_weights(shape.model) if quantize else 0
    return few_bits * QUANTIZED.get(quantize or "", 0.0) + (shape.n_weights - few_bits) * BYTES[settings.dtype], adapted


def _lora(settings: PolicyModel | NetworkReward) -> Lora | None:
    return settings.training.lora if settings.training else None


class _Stages:
    """The stages of one plan on a device, and what would make them fit it."""

    def __init__(self, experiment: Experiment, engine: CountingEngine, capacity: float | None) -> None:
        self.models, self.engine, self.capacity = experiment.models, engine, capacity
        memory_gb = experiment.engine.memory_gb
        self.limit = memory_gb * GIB if memory_gb is not None else (capacity or 0.0) / 2

    def all(self) -> DeviceMemory:
        largest: dict[str, Pass] = {}
        for part in sorted(self.engine.passes.largest.values(), key=lambda part: (VERBS.index(part.verb), part.sequences)):
            largest[self.name(part)] = part
        stages = {name: self.stage(part, part, self.limit) for name, part in largest.items()}
        too_large = [name for name, stage in stages.items() if self.capacity is not None and stage.total > usable(self.capacity)]
        changes = tuple((name, change) for name in too_large for change in self.changes(largest[name]))
        return DeviceMemory(tuple(stages.values()), self.capacity, changes)

    def name(self, part: Pass) -> str:
        """What the plan calls the stage."""
        if isinstance(part.model, PolicyModel):
            return f"{part.verb}, evaluation" if part.verb == "sample" and part.sampling != part.model.sampling else part.verb
        gold = next((gold.name for gold in self.models.gold if part.model in members(gold.model)), None)
        return part.verb if gold is None else f"{part.verb.removesuffix(' reward model')} gold {gold}"

    def key(self, part: Pass) -> str:
        """Where its settings stand in an experiment file."""
        if isinstance(part.model, PolicyModel):
            return "evaluation" if part.verb == "sample" and part.sampling != part.model.sampling else "models.policy"
        return next((f"models.gold {gold.name}" for gold in self.models.gold if part.model in members(gold.model)), "models.reward")

    def shape(self, model: PolicyModel | NetworkReward) -> Shape:
        return self.engine.expected.policy if isinstance(model, PolicyModel) else self.engine.expected.reward(model)

    def stage(self, part: Pass, changed: Pass, limit: float) -> StageMemory:
        """Memory of a pass under changed settings, where other models stay loaded up to a limit."""
        stage = stage_memory(self.name(part), self.shape(part.model), changed)
        others = [stage_memory("", self.shape(other.model), other) for other in changed.beside]
        stage = replace(
            stage,
            weights=stage.weights + sum(other.weights for other in others),
            activations=max([stage.activations, *(other.activations for other in others)]),
        )
        return replace(stage, resident=max(0.0, min(limit, self.loaded) - stage.weights))

    @cached_property
    def loaded(self) -> float:
        """Bytes of all models that a run loads, one after the other; those of unknown shape left out."""
        passes, total = self.engine.passes, 0.0
        for model, keys in passes.loaded.values():
            if (shape := self.shape(model)).model is not None:
                base, adapted = read_weights(shape, model)
                total += base + len(keys) * adapted if _lora(model) else len(keys) * base
        for model, keys in passes.trained.values():
            if (shape := self.shape(model)).model is not None:
                total += len(keys) * FP32 * shape.n_weights
        return total

    def changes(self, part: Pass) -> Iterator[str]:
        """Settings that each make a pass fit; where none does, the fewest that do together."""
        for n in range(1, len(KINDS) + 1):
            ways = (way for kinds in itertools.combinations(KINDS, n) if (way := self.way(part, kinds)))
            if some := [*itertools.islice(ways, None if n == 1 else 1)]:
                yield from some
                return

    def way(self, part: Pass, kinds: Sequence[str]) -> str | None:
        """Changes of these kinds that make a pass fit: the mildest of the last kind, the furthest of the others. None: they do not."""
        labels, changed = list[str](), part
        for kind in [kind for kind in kinds[:-1] if kind != MEMORY]:
            if not (tries := [*options(kind, changed)]):
                return None
            labels.append(tries[-1][0])
            changed = tries[-1][1]
        for label, option in [("", changed)] if kinds[-1] == MEMORY else options(kinds[-1], changed):
            stage = self.stage(part, option, 0.0 if MEMORY in kinds else self.limit)
            room = usable(self.capacity or 0.0) - stage.total
            if room >= 0:
                chosen = [f"{self.key(part)}.{text}" for text in (*labels, label) if text]
                return ", ".join([*chosen, *([f"engine.memory_gb: {(stage.weights + room) / GIB:.0f}"] if MEMORY in kinds else ())])
        return None


def options(kind: str, part: Pass) -> Iterator[tuple[str, Pass]]:
    """(what changes, the pass then) of a kind of change, the mildest first."""
    model = part.model
    recipe = part.recipe if part.verb != "reference" else None
    lora = recipe.lora if recipe else _lora(model)

    def trained(label: str, **changes: Any) -> tuple[str, Pass]:
        assert recipe is not None
        return f"training.{label}", replace(part, recipe=recipe.model_copy(update=changes))

    if kind == "batch":
        for n in _halves(part.items):
            if recipe is not None and recipe.batch_size % n == 0:
                yield f"training.micro_batch_size: {n}", replace(part, items=n)
            elif part.verb == "sample":
                yield f"sampling.batch_size: {n * part.sides}", replace(part, items=n)
            elif part.verb == "score":
                yield f"score_batch_size: {n}", replace(part, items=n)
    elif kind == "dtype" and model.dtype == "float32" and (lora or recipe is None):
        yield "dtype: bfloat16", replace(part, model=model.model_copy(update={"dtype": "bfloat16"}))
    elif kind == "quantize" and isinstance(model, PolicyModel) and lora and model.quantize is None:
        yield "quantize: 4bit", replace(part, model=model.model_copy(update={"quantize": "4bit"}))
    elif recipe is None:
        return
    elif kind == "checkpointing" and not recipe.gradient_checkpointing:
        yield trained("gradient_checkpointing: true", gradient_checkpointing=True)
    elif kind == "optimizer" and STATES.get(recipe.optimizer, math.nan) > STATES[FEW_BITS] and lora is None:
        yield trained(f"optimizer: {FEW_BITS}", optimizer=FEW_BITS)
    elif kind == "lora" and lora is None:
        yield trained(f"lora: {{rank: {LORA.rank}, alpha: {LORA.alpha}}}", lora=LORA)


def _halves(n: int) -> Iterator[int]:
    while n > 1:
        n //= 2
        yield n
