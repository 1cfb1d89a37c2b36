"""transformers' caches of keys and values, as sampling uses them: joined, with room to grow, and rows selected from them."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 64  # tokens that a layer grows by at a time


def selectable(cache: Any) -> Any | None:
    """The cache, if its layers are all its state, so that `reorder_cache` selects rows of it; None for one of a model's own kind."""
    return cache if type(cache) is DynamicCache else None


def is_joinable(cache: Any) -> bool:
    """Whether the cache's layers are all of full attention, where a column that is masked may hold anything."""
    return type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)


def join(caches: Sequence[DynamicCache]) -> DynamicCache:
    """The rows of all caches in the first, padded on the left to the longest."""
    columns = max(cache.get_seq_length() for cache in caches)
    for layer, *others in zip(*(cache.layers for cache in caches), strict=True):
        for name in ("keys", "values"):
            parts = [getattr(each, name) for each in (layer, *others)]
            setattr(layer, name, torch.cat([F.pad(part, (0, 0, columns - part.shape[-2], 0)) for part in parts]))
    return caches[0]


def make_room(cache: DynamicCache) -> None:
    """From here on, layers of full attention do not copy all they hold for every token."""
    cache.layers = [GrowingLayer(layer) if type(layer) is DynamicLayer else layer for layer in cache.layers]


class GrowingLayer(DynamicLayer):
    """Keys and values (B, heads, T, size) as the first T columns of tensors that have room for more."""

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        vars(self).update(vars(layer))
        self._room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized or self.keys is None or self.values is None:
            return super().update(key_states, value_states, *args, **kwargs)
        before = self.keys.shape[-2]
        after = before + key_states.shape[-2]
        if self._room is None or after > self._room[0].shape[-2]:
            self._room = (_roomy(self.keys, after + ROOM), _roomy(self.values, after + ROOM))
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[..., before:after, :] = states
        self.keys, self.values = (room[..., :after, :] for room in self._room)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Any) -> None:
        super().reorder_cache(beam_idx)
        self._room = None


def _roomy(states: Tensor, columns: int) -> Tensor:
    room = states.new_empty((*states.shape[:-2], columns, states.shape[-1]))
    room[..., : states.shape[-2], :] = states
    return room
