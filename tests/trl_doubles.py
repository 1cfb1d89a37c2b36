"""TRL's trainers without a model, data or arguments of their own, and models whose logits are given."""

from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from apo_bench.losses import token_logps


def model_of(logits: Tensor, ids: Tensor) -> Callable[..., Any]:
    """A model whose logits (N, T, V) are given, with what TRL's fused output layer returns."""

    def forward(input_ids: Tensor, labels: Tensor | None = None, **_: Any) -> Any:
        assert torch.equal(input_ids, ids)
        if labels is None:
            return SimpleNamespace(logits=logits)
        logps = token_logps(logits, ids)[:, 1:] * (labels[:, 1:] != -100)
        probabilities = logits[:, :-1].softmax(dim=-1)
        entropy = -(probabilities * probabilities.log()).sum(dim=-1)
        squares, unused = probabilities.square().sum(dim=-1).log(), torch.zeros(logps.shape)
        return SimpleNamespace(log_probs=logps, entropy=entropy, log_sum_sq_probs=squares, mean_logits=unused, is_top1=unused.bool())

    return forward


def trainer_of(cls: type, **attributes: Any) -> Any:
    """A trainer without a model, data or arguments of its own."""
    trainer: Any = object.__new__(cls)
    same = {name: lambda value, **_: value for name in ("gather", "gather_for_metrics", "reduce")}
    alone = {"num_processes": 1, "process_index": 0, "is_main_process": False, "sync_gradients": False}
    accelerator = SimpleNamespace(device=torch.device("cpu"), autocast=nullcontext, **alone, **same)
    counts = {"_metrics": {"train": defaultdict(list)}, "_total_train_tokens": 0, "_tp_size": 1}
    common = {"aux_loss_enabled": False, "accelerator": accelerator, "model": SimpleNamespace(training=True), **counts}
    for name, value in {**common, **attributes}.items():
        setattr(trainer, name, value)
    return trainer
