"""Training data of a policy to token ids, batches of them, and the view that a loss reads."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from apo_bench.config.schema import PolicyModel
from apo_bench.losses import PolicyLoss, View, also_reads, denominator_of
from apo_bench.models.output_layer import entropy, is_recognised, log_collision, token_logps
from apo_bench.models.padding import in_like_lengths, pad
from apo_bench.models.tokenize import ChatFormat
from apo_bench.training.data import sides_of
from apo_bench.training.training_spec import TokenIds
from apo_bench.types import Group, TrainingItem, UnpairedExample

ON_DEMAND: Mapping[str, Callable[[Tensor], Tensor]] = {"log_collision": log_collision, "entropy": entropy}  # of logits, see data.ON_DEMAND
PER_ITEM = ("scores", "labels", "advantages")
PER_TOKEN = ("reference_logps", "old_logps", "advantages")  # of each side, as lists of (tokens,)


def encode_items(
    tokenizer: Any, data: Sequence[TrainingItem], loss: PolicyLoss, model: PolicyModel, token_ids: TokenIds | None = None
) -> list[dict[str, Any]]:
    """Encoded items for `trainer.fit`; responses in `token_ids` are those ids.

    `size`: an item's part of the update's denominator; `length`: its tokens, which bucket it.
    """
    chat = ChatFormat.of(tokenizer, model)
    items: list[dict[str, Any]] = []
    for item in data:
        start = chat.encode_prompt(item.prompt, model.max_prompt_tokens).ids
        sampled = (token_ids or {}).get(item.prompt.id, {})
        ends = [chat.encode_response(item.prompt, text, model.max_response_tokens, sampled.get(text)) for text in sides_of(item)]
        sides = [(start + end, [0] * len(start) + [1] * len(end)) for end in ends]
        size = sum(map(len, ends)) if denominator_of(loss) == "tokens" else 1
        items.append({"sides": sides, "size": size, "length": sum(len(ids) for ids, _ in sides)})
        if isinstance(item, Group):
            items[-1]["scores"] = item.scores
        elif isinstance(item, UnpairedExample):
            items[-1]["labels"] = item.desirable
    return items


def collate(items: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """Token ids and masks, (S, B, T): the first side of every item, then the second, and so on."""
    n_sides = len(items[0]["sides"])
    sides = [item["sides"][side] for side in range(n_sides) for item in items]
    ids, attention = pad([ids for ids, _ in sides], pad_id)
    batch = {"input_ids": ids, "attention_mask": attention, "response_mask": pad([mask for _, mask in sides], 0)[0]}
    for name in PER_TOKEN:
        if isinstance(items[0].get(name), list):
            batch[name] = torch.zeros(ids.shape)
            for number, values in enumerate(item[name][side] for side in range(n_sides) for item in items):
                batch[name][number, : len(values)] = values
    batch = {name: value.view(n_sides, len(items), -1) for name, value in batch.items()}
    return batch | {name: torch.tensor([item[name] for item in items]) for name in PER_ITEM if name in items[0] and name not in batch}


def view_of(model: Any, batch: Mapping[str, Tensor], recognised: bool = True, also: Sequence[str] = ()) -> View:
    """A batch as a loss reads it, with the fields `also`. `recognised`: what `output_layer.is_recognised` gave for the model."""
    ids, attention, mask = (batch[name].flatten(0, 1) for name in ("input_ids", "attention_mask", "response_mask"))

    def logps_of(rows: Any, width: int) -> Tensor:
        logps = token_logps(model, ids[rows, :width], attention[rows, :width], mask[rows, :width], recognised, measures)
        return F.pad(logps, (*(0, 0) * (logps.ndim - 2), 0, ids.shape[1] - width))

    measures = [ON_DEMAND[name] for name in also]
    logps, *more = in_like_lengths(attention, logps_of).view(*batch["input_ids"].shape, 1 + len(also)).unbind(dim=-1)
    optional = {name: batch[name] for name in PER_ITEM if name in batch}
    optional |= {name: batch[name].transpose(0, 1) for name in PER_TOKEN if name in batch and batch[name].ndim == 3}
    optional |= {name: value.transpose(0, 1) for name, value in zip(also, more, strict=True)}
    return View(logps.transpose(0, 1), batch["response_mask"].transpose(0, 1), optional)


def loss_terms(model: Any, batch: Mapping[str, Tensor], loss: PolicyLoss, recognised: bool = True) -> Tensor:
    """One loss term per item, (B,)."""
    return loss(view_of(model, batch, recognised, also_reads(loss)))


@torch.no_grad()
def response_logps(
    model: Any, items: Sequence[Mapping[str, Any]], pad_id: int, batch_size: int, recognised: bool | None = None
) -> list[list[Tensor]]:
    """Log-probabilities of every side's tokens, 0 off the response: items x sides of (tokens,).

    `recognised`: what `output_layer.is_recognised` gave for the model, where that is known.
    """
    model.eval()
    recognised = is_recognised(model) if recognised is None else recognised
    order = sorted(range(len(items)), key=lambda place: items[place]["length"])
    logps: dict[int, list[Tensor]] = {}
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = {name: value.to(model.device) for name, value in collate([items[place] for place in places], pad_id).items()}
        for place, rows in zip(places, view_of(model, batch, recognised).logps.cpu(), strict=True):
            logps[place] = [row[: len(ids)].clone() for row, (ids, _) in zip(rows, items[place]["sides"], strict=True)]
    return [logps[place] for place in range(len(items))]
