"""What a trainer from elsewhere spends, counted at its models: every forward pass and everything that is sampled."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from apo_bench.config.schema import Recipe
from apo_bench.models import flops


class Meter:
    """Counts of a fit: tokens, samples, scores and FLOPs by `models.flops`. Padding is not counted.

    `ends`: tokens that end a response. A forward pass with gradients trains, any other only reads.
    """

    def __init__(self, model: Any, recipe: Recipe, ends: frozenset[int], pad_id: int) -> None:
        self._training, self._ends, self._pad_id = flops.training(model, recipe), ends, pad_id
        self._counts: Counter[str] = Counter()
        self._sampling = False
        self.scores: list[float] = []  # of what was sampled, in order

    def watch(self, model: Any, *, trained: bool) -> None:
        """Count what `model` reads and samples from now on."""
        size = flops.size(model)

        def reads(module: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            if not self._sampling:
                self._read(size, arguments, named, trained and torch.is_grad_enabled())

        model.register_forward_pre_hook(reads, with_kwargs=True)
        generate = model.generate

        def samples(*arguments: Any, **named: Any) -> Any:
            self._sampling = True
            try:
                sampled = generate(*arguments, **named)
            finally:
                self._sampling = False
            ids = named["input_ids"] if "input_ids" in named else arguments[0]
            self._sample(size, ids, named.get("attention_mask"), sampled if isinstance(sampled, Tensor) else sampled.sequences)
            return sampled

        model.generate = samples

    def add(self, counts: Mapping[str, float]) -> None:
        """Add what was spent elsewhere, such as in scoring."""
        self._counts.update(counts)

    def counts(self, updates: int) -> dict[str, float]:
        """What so many updates spent; NaN where passes that train could not be seen."""
        counts: dict[str, float] = {"policy_updates": updates, "policy_train_tokens": 0, "flops": 0.0, **self._counts}
        if updates and not counts["policy_train_tokens"]:
            counts |= {"policy_train_tokens": math.nan, "flops": math.nan}
        return counts

    def _read(self, size: flops.Size, arguments: tuple[Any, ...], named: Mapping[str, Any], trains: bool) -> None:
        ids = named["input_ids"] if named.get("input_ids") is not None else arguments[0]
        mask, labels = named.get("attention_mask"), named.get("labels")
        lengths = [ids.shape[1]] * len(ids) if mask is None else mask.sum(dim=-1).tolist()
        kept, fused = named.get("logits_to_keep") or 0, bool(named.get("fused_lm_head"))
        outputs = [min(length, kept) for length in lengths] if kept else lengths
        if fused and labels is not None and ids.is_cuda:  # on a CPU TRL computes the logits of every position
            outputs = (labels[:, 1:] != -100).sum(dim=-1).tolist()
        if not trains:
            self._counts.update(flops=size.rates.total(lengths, outputs))  # pyright: ignore
            return
        again = size.rates.output * sum(outputs) if fused else 0.0  # whose logits its backward pass computes again
        self._counts.update(policy_train_tokens=sum(lengths), flops=self._training.step.total(lengths, outputs) + again)  # pyright: ignore

    def _sample(self, size: flops.Size, ids: Tensor, mask: Tensor | None, sequences: Tensor) -> None:
        rows, each = sequences[:, ids.shape[1] :].tolist(), len(sequences) // len(ids)
        prompts = [ids.shape[1]] * len(ids) if mask is None else mask.sum(dim=-1).tolist()
        for place, row in enumerate(rows):
            length = self._length(row)
            spent = size.generation(prompts[place // each], [length])
            cut = not (length and row[length - 1] in self._ends)
            self._counts.update(sampled_responses=1, sampled_tokens=length, cut_responses=int(cut), flops=spent)  # pyright: ignore

    def _length(self, row: list[int]) -> int:
        """Tokens of a sampled row up to its end, or to the padding after it."""
        end = next((place + 1 for place, token in enumerate(row) if token in self._ends), len(row))
        while end and row[end - 1] == self._pad_id:
            end -= 1
        return end
