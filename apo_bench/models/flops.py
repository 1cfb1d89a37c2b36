"""FLOPs by one rule, for runs and plans alike: 2 for each weight and token in a forward pass, 6 in training, and attention beside.

N counts the weights that take part in a product for every token: not those that are only looked up (word and position embeddings), but
the word embedding where it is the output layer as well. Attention multiplies each token with every token of its sequence, once for the
scores and once for the values: 4 x layers x heads x head size x length FLOPs a token, masked or not, as it is computed. In training both
come three times, once forward and twice backward; frozen weights need no gradient of their own, which is one of the two. Padding is not
counted, nor norms and activations. At the shipped experiments' lengths attention is 2 to 20 % of the weights' part.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from apo_bench.config.schema import Recipe

HEADS = ("score", "classifier")  # a classification head is new, so it is trained in full beside adapters


@dataclass(frozen=True)
class Size:
    """weights: N. attention: layers x heads x head size."""

    weights: int
    attention: int

    def forward(self, lengths: Iterable[int]) -> float:
        """One pass over sequences of these lengths."""
        return sum(2.0 * self.weights * length + 4.0 * self.attention * length**2 for length in lengths)

    def generation(self, prompt: int, response: int) -> float:
        """A response of so many tokens to a prompt: the prompt in one pass, then token by token on what is kept of those before."""
        seen = prompt * response + response**2 / 2  # pairs of a new token and one before it
        return self.forward([prompt]) + 2.0 * self.weights * response + 4.0 * self.attention * seen


@dataclass(frozen=True)
class Training:
    """trained: those of the weights that get gradients. adapters: weights beside the model's own, which it does not have afterwards."""

    size: Size
    trained: int
    adapters: int

    def flops(self, tokens: float, lengths: Sequence[int]) -> float:
        """A fit that read so many tokens of sequences with these lengths, each as often as the others."""
        context = sum(length**2 for length in lengths) / max(1, sum(lengths))  # what a token attends to, on average
        return tokens * (4.0 * self.size.weights + 2.0 * self.trained + 6.0 * self.adapters + 12.0 * self.size.attention * context)


def size(model: Any) -> Size:
    """Of a model with or without a language-model head; on any device, meta as well."""
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    multiplied = _multiplied(model)
    return Size(sum(multiplied.values()), config.num_hidden_layers * config.num_attention_heads * head)


def training(model: Any, recipe: Recipe) -> Training:
    """Of a model before it is fitted by the recipe, that is without adapters."""
    multiplied = _multiplied(model)
    if lora := recipe.lora:
        adapters = lora.rank * sum(rows + columns for rows, columns in _adapted(model, lora.target_modules))
        heads = sum(count for name, count in multiplied.items() if name.partition(".")[0] in HEADS)
        return Training(size(model), heads, adapters)
    frozen = re.compile(recipe.freeze) if recipe.freeze else None
    return Training(size(model), sum(count for name, count in multiplied.items() if not (frozen and frozen.search(name))), 0)


def _multiplied(model: Any) -> dict[str, int]:
    """The weights of N by name, with how many they are."""
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    output = model.get_output_embeddings()
    kept = id(output.weight) if output is not None else None
    return {name: weight.numel() for name, weight in model.named_parameters() if id(weight) not in looked_up or id(weight) == kept}


def _adapted(model: Any, targets: Sequence[str] | str) -> Iterable[tuple[int, int]]:
    """Shapes of the weights that adapters are put beside: those named, or all of linear layers but the output's and a head's."""
    output = model.get_output_embeddings()
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None or weight.dim() != 2 or isinstance(module, nn.Embedding):
            continue
        named = name.rpartition(".")[2] in targets if targets != "all-linear" else module is not output
        if named and name.partition(".")[0] not in HEADS:
            yield tuple(weight.shape)
