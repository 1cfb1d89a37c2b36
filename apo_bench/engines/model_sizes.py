"""How large an experiment's models are and how long its texts, found without loading a weight: what each step is expected to spend."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import add
from pathlib import Path
from typing import Any

from apo_bench.config.schema import Lora, NetworkReward, PolicyModel, PretrainedReward, Recipe
from apo_bench.errors import InputError
from apo_bench.models import adapters, flops
from apo_bench.models import policy as policies
from apo_bench.models.known_shapes import published_fields
from apo_bench.models.model_folder import fit_embedding
from apo_bench.models.precision import resolved
from apo_bench.models.reward import encode_texts, set_template
from apo_bench.models.tokenize import ChatFormat, load_tokenizer, transcript
from apo_bench.models.word_tokenizer import word_tokenizer
from apo_bench.training.data import sides_of
from apo_bench.types import Pair, Prompt, TrainingItem

CHARACTERS = 4  # taken for one token where there is no tokenizer
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}  # of a weight
HEADER = 65  # bytes of a weight's entry in a safetensors file beside its name
Counts = dict[str, float]


class Placeholder(str):
    """A text that stands for an answer: `body`, which many share, and a name of its own. tokens: the policy's, with the end if it ends."""

    __slots__ = ("body", "tokens")
    body: str
    tokens: int


@dataclass(frozen=True)
class Stored:
    """What a model takes on disk: its safetensors, NaN where that is not known, and sizes of the files beside them."""

    weights: float
    files: tuple[float, ...]


@dataclass(frozen=True)
class Shape:
    """A model on torch's meta device, which holds no weights, and its tokenizer; None where nothing is known of them.

    published: the hub id of a model whose files are not on this machine, where its shape is known all the same.
    """

    model: Any
    tokenizer: Any
    published: str | None = field(default=None, kw_only=True)
    _texts: dict[str, int] = field(default_factory=dict, kw_only=True)
    _prompts: dict[str, int] = field(default_factory=dict, kw_only=True)
    _adapters: dict[Lora, float] = field(default_factory=dict, kw_only=True)
    _trainings: dict[Any, flops.Training] = field(default_factory=dict, kw_only=True)

    def read(self, texts: Iterable[str]) -> None:
        """Count the tokens of many texts at once, which is many times faster than one by one."""
        new = list(dict.fromkeys([text for text in texts if type(text) is not Placeholder and text not in self._texts]))
        if new and self.tokenizer:
            self._texts.update(zip(new, map(len, self.tokenizer(new, add_special_tokens=False)["input_ids"]), strict=True))

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text by itself."""
        self.read(texts)
        known = self._texts
        bodies = [text.body if type(text) is Placeholder else text for text in texts]
        for body in bodies:
            if body not in known:
                self.text(body)
        return [known[body] + (body is not text) for body, text in zip(bodies, texts, strict=True)]  # of a placeholder its name, too

    def text(self, text: str) -> int:
        """Tokens of a text by itself."""
        if isinstance(text, Placeholder):
            return self.text(text.body) + 1  # its name
        if text not in self._texts:
            self._texts[text] = len(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if self.tokenizer else characters(text)
        return self._texts[text]

    @property
    def is_here(self) -> bool:
        """Whether the model's files are on this machine."""
        return self.model is not None and self.published is None

    @cached_property
    def n_weights(self) -> float:
        """How many weights it has, tied ones once; NaN where that is not known."""
        return math.nan if self.model is None else sum(weight.numel() for weight in self.model.parameters())

    def whole(self, spec: PolicyModel | NetworkReward) -> Stored:
        """What a whole model of these settings takes on disk."""
        dtype = resolved(spec, "cpu").stored_dtype  # which no device changes
        return Stored(_safetensors(self._weights, BYTES[dtype]) if self._weights else math.nan, self._files)

    def adapters(self, lora: Lora, *files: float) -> Stored:
        """What adapters take on disk, with configuration, base and other `files`."""
        if lora not in self._adapters:
            shapes = {} if self.model is None else adapters.trained_shapes(self.model, lora)
            self._adapters[lora] = _safetensors(shapes, BYTES["float32"]) if shapes else math.nan
        return Stored(self._adapters[lora], (1000.0, 200.0, *files))

    @cached_property
    def _weights(self) -> dict[str, tuple[int, ...]]:
        return {} if self.model is None else {name: tuple(weight.shape) for name, weight in self.model.named_parameters()}

    @cached_property
    def _files(self) -> tuple[float, ...]:
        """Sizes of what a checkpoint has beside its weights: configuration and tokenizer."""
        origin = getattr(self.tokenizer, "name_or_path", "")
        if origin and Path(origin).is_dir():
            return tuple(float(file.stat().st_size) for file in Path(origin).glob("*.json") if file.name != "apo_bench_import.json")
        return (1000.0, 500.0, 500.0, 500.0, 30.0 * len(self.tokenizer) if self.tokenizer else 0.0)

    def forward_flops(self, lengths: Sequence[int], outputs: Sequence[int] | None = None) -> float:
        """One pass over sequences of these lengths, with logits at so many positions of each; NaN where the model is not known."""
        return math.nan if self.model is None else self._size.forward(lengths, outputs)

    def training_flops(
        self, recipe: Recipe, tokens: float, lengths: Sequence[int], outputs: Sequence[int] | None = None, sequences: int = 1
    ) -> float:
        """A fit that reads so many tokens of such sequences; NaN where the model is not known."""
        if self.model is None:
            return math.nan
        key = (recipe.lora, recipe.freeze, recipe.gradient_checkpointing)
        if key not in self._trainings:
            self._trainings[key] = flops.training(self.model, recipe)
        return self._trainings[key].flops(tokens, lengths, outputs, sequences)

    @cached_property
    def _size(self) -> flops.Size:
        return flops.size(self.model)


@dataclass(frozen=True)
class PolicySize(Shape):
    """What sampling from a policy and training it are expected to spend."""

    spec: PolicyModel
    _generations: dict[tuple[int, ...], float] = field(default_factory=dict, kw_only=True)

    def prompt(self, prompt: Prompt) -> int:
        """Tokens of a prompt, template included."""
        if prompt.id not in self._prompts:
            limit = self.spec.max_prompt_tokens
            if self.tokenizer:
                length = len(ChatFormat.of(self.tokenizer, self.spec).encode_prompt(prompt, limit).ids)
            else:
                length = min(limit, characters(transcript(prompt)))
            self._prompts[prompt.id] = length
        return self._prompts[prompt.id]

    def response(self, text: str, limit: int | None = None) -> int:
        """Tokens of a response with its end; `limit` in place of max_response_tokens."""
        if isinstance(text, Placeholder):
            return min(limit or self.spec.max_response_tokens, text.tokens)
        return min(limit or self.spec.max_response_tokens, self.text(text) + 1)

    def sampled(self, prompts: Sequence[Prompt], n: int, tokens: Sequence[int]) -> Counts:
        """n responses to each prompt, of so many tokens."""
        lengths = [self.prompt(prompt) for prompt in prompts]
        answers = Counter(zip(lengths, *(tokens[number::n] for number in range(n)), strict=True))
        known = self.model is not None
        spent = sum(times * self._generation(each) for each, times in answers.items()) if known else math.nan
        return {"sampled_responses": len(tokens), "sampled_tokens": sum(tokens), "flops": spent}

    def _generation(self, lengths: tuple[int, ...]) -> float:
        """FLOPs of a prompt's length and its responses'."""
        if lengths not in self._generations:
            self._generations[lengths] = self._size.generation(lengths[0], lengths[1:])
        return self._generations[lengths]

    def read_flops(self, items: Sequence[tuple[Prompt, str]]) -> float:
        """One forward pass over prompts with their responses, with logits of these."""
        self.read(text for _, text in items)
        outputs = [self.response(text) for _, text in items]
        return self.forward_flops([self.prompt(prompt) + output for (prompt, _), output in zip(items, outputs, strict=True)], outputs)

    def trained(self, data: Sequence[TrainingItem], loss: Any, recipe: Recipe) -> Counts:
        """A fit to these data; a reference's log-probabilities are read once."""
        self.read(text for item in data for text in sides_of(item))
        each = [(self.prompt(item.prompt), sides_of(item)) for item in data]
        limit = self.spec.max_response_tokens
        outputs = [min(limit, text.tokens) if type(text) is Placeholder else self.response(text) for _, texts in each for text in texts]
        lengths = list(map(add, (prompt for prompt, texts in each for _ in texts), outputs))
        tokens = sum(lengths) * _passes(recipe, len(data))
        reference = self.forward_flops(lengths, outputs) if loss.needs_reference else 0.0
        sequences = min(len(data), recipe.items_per_pass) * len(outputs) // len(data)
        spent = reference + self.training_flops(recipe, tokens, lengths, outputs, sequences)
        return {"policy_updates": recipe.updates(len(data)), "policy_train_tokens": tokens, "flops": spent}


@dataclass(frozen=True)
class RewardSize(Shape):
    """What scoring with a neural reward model and training it are expected to spend."""

    spec: NetworkReward

    def prompt(self, prompt: Prompt) -> int:
        """Tokens of a prompt, template included."""
        if prompt.id not in self._prompts:
            if self.tokenizer:
                unlimited = self.spec.model_copy(update={"max_tokens": 2**30})
                length = len(encode_texts(self.tokenizer, [(prompt, "")], unlimited)[0].ids)
            else:
                length = characters(transcript(prompt))
            self._prompts[prompt.id] = length
        return self._prompts[prompt.id]

    def conversations(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[int]:
        """Tokens of prompts with responses: the two parts' counts added up, which is exact up to a token where they meet."""
        for prompt in prompts:
            if prompt.id not in self._prompts:
                self.prompt(prompt)
        known, limit = self._prompts, self.spec.max_tokens
        lengths = [known[prompt.id] + response for prompt, response in zip(prompts, self.tokens(texts), strict=True)]
        return [length if length < limit else limit for length in lengths]

    def scored(self, items: Sequence[tuple[Prompt, str]]) -> Counts:
        lengths = self.conversations([prompt for prompt, _ in items], [text for _, text in items])
        return {"scored_responses": len(items), "scored_tokens": sum(lengths), "flops": self.forward_flops(lengths)}

    def trained(self, pairs: Sequence[Pair]) -> Counts:
        recipe = self.spec.training
        assert recipe is not None
        prompts = [pair.prompt for pair in pairs]
        lengths = [
            *self.conversations(prompts, [pair.chosen for pair in pairs]),
            *self.conversations(prompts, [pair.rejected for pair in pairs]),
        ]
        tokens = sum(lengths) * _passes(recipe, len(pairs))
        spent = self.training_flops(recipe, tokens, lengths)
        return {"rm_updates": recipe.updates(len(pairs)), "rm_train_tokens": tokens, "flops": spent}


def policy_size(spec: PolicyModel, vocabulary: Sequence[str] | None) -> PolicySize:
    """A policy's size from its architecture, or from a model folder's configuration."""
    from transformers import AutoModelForCausalLM

    model, tokenizer, published = _shape(AutoModelForCausalLM, spec, spec.trust_remote_code, vocabulary)
    return PolicySize(model, tokenizer, spec, published=published)


def reward_size(spec: NetworkReward, policy: PolicyModel, axes: Sequence[str], vocabulary: Sequence[str] | None) -> RewardSize:
    """A neural reward model's size; one that starts from the policy has the policy's body."""
    from transformers import AutoModelForSequenceClassification

    body, auto = policy if spec.initial else spec, AutoModelForSequenceClassification
    labels = {} if isinstance(spec, PretrainedReward) else {"num_labels": len(axes) if spec.axis_heads else 1}
    model, tokenizer, published = _shape(auto, body, spec.trust_remote_code, vocabulary, **labels)
    if tokenizer is not None:
        set_template(tokenizer, spec)
    return RewardSize(model, tokenizer, spec, published=published)


def characters(text: str) -> int:
    """Tokens of a text where there is no tokenizer."""
    return math.ceil(len(text) / CHARACTERS)


def _shape(
    auto: Any, spec: PolicyModel | NetworkReward, trust: bool, vocabulary: Sequence[str] | None, **more: Any
) -> tuple[Any, Any, str | None]:
    """(model, tokenizer, hub id of a model that is not on this machine and whose shape is published); None where there is none."""
    import torch
    from transformers import AutoConfig

    published = None
    if spec.architecture is not None:
        if vocabulary is None:
            raise InputError("architecture: the task has no vocabulary to build a tokenizer from; give a path")
        tokenizer, fields = word_tokenizer(vocabulary), dict(spec.architecture)
        config = AutoConfig.for_model(fields.pop("model_type"), **fields, **policies.token_ids(tokenizer), **more)
    else:
        assert spec.path is not None
        try:
            config = AutoConfig.from_pretrained(spec.path, local_files_only=True, trust_remote_code=trust, **more)
            tokenizer = load_tokenizer(spec.path, trust)
        except OSError:
            fields, tokenizer, published = published_fields(spec.path), None, spec.path
            if fields is None:
                return None, None, None
            config = AutoConfig.for_model(fields.pop("model_type"), **fields, **more)
    with torch.device("meta"):
        model = auto.from_config(config, trust_remote_code=trust)
        if tokenizer is not None:
            fit_embedding(model, tokenizer)
    return model, tokenizer, published


def _safetensors(shapes: Mapping[str, tuple[int, ...]], each: int) -> float:
    """Bytes of a file with such weights."""
    return sum(math.prod(shape) * each + len(name) + HEADER for name, shape in shapes.items())


def _passes(recipe: Recipe, items: int) -> float:
    """How often each item is read; a broken last epoch reads a random part of them."""
    return recipe.updates(items) / math.ceil(items / recipe.batch_size)
