"""Batches of token ids: padded, and cut where lengths differ."""

import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


def pad(sequences: Sequence[Sequence[int]], value: int, side: str = "right") -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both (B, T)."""
    width = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), width), value, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        place = slice(0, len(sequence)) if side == "right" else slice(width - len(sequence), width)
        ids[row, place] = torch.tensor(sequence, dtype=torch.long)
        mask[row, place] = 1
    return ids, mask


def like_lengths(lengths: Sequence[int], most: int = sys.maxsize) -> list[slice]:
    """Slices of ascending lengths that make a batch, of `most` at most: the longest exceeds the shortest by a quarter or by 32 tokens."""
    starts, longest = [], -1
    for place, length in enumerate(lengths):
        if length > longest or place == starts[-1] + most:
            starts.append(place)
            longest = length + max(32, length // 4)
    return [slice(*ends) for ends in pairwise([*starts, len(lengths)])]


def in_like_lengths(attention: Tensor, compute: Callable[[Any, int], Tensor]) -> Tensor:
    """`compute(rows, width)` of all rows of a batch padded on the right: (B, ...) in the batch's order. `attention` is its mask (B, T).

    On a CPU rows of like length are computed at a time, to their own width: padding costs what tokens cost. Else all are at once: a GPU
    has room for padding, and processes that share weights need equally many passes.
    """
    shared = torch.distributed.is_available() and torch.distributed.is_initialized()
    if attention.device.type != "cpu" or shared:
        return compute(slice(None), attention.shape[1])
    lengths, order = attention.sum(dim=-1).sort(stable=True)
    if len(parts := like_lengths(lengths.tolist())) == 1:
        return compute(slice(None), attention.shape[1])
    return torch.cat([compute(order[part], int(lengths[part.stop - 1])) for part in parts])[order.argsort()]
