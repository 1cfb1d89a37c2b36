"""Models that stay loaded, the most recently used ones, within a limit of memory."""

import copy
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import torch

Loaded = tuple[Any, Any]  # (model, tokenizer)


class ResidentModels:
    """(model, tokenizer) by key. Whoever gets a model reads it; only a copy may be trained.

    The least recently used models leave first. A model that is larger than the whole limit is loaded, used and not kept.
    """

    def __init__(self, limit_bytes: float) -> None:
        self.limit_bytes = limit_bytes
        self._models: OrderedDict[Hashable, Loaded] = OrderedDict()

    @property
    def bytes(self) -> int:
        """What all resident models take."""
        return model_bytes(*(model for model, _ in self._models.values()))

    @property
    def keys(self) -> tuple[Hashable, ...]:
        """The least recently used first."""
        return tuple(self._models)

    def get(self, key: Hashable, load: Callable[[], Loaded], expected_bytes: float = 0.0) -> Loaded:
        """The model, loaded if it is not resident. `expected_bytes`: room to make before loading."""
        if key not in self._models:
            self._make_room(expected_bytes)
            self.put(key, *(loaded := load()))
            return loaded
        self._models.move_to_end(key)
        return self._models[key]

    def put(self, key: Hashable, model: Any, tokenizer: Any) -> None:
        """Keep a model that is in memory already."""
        self._models.pop(key, None)
        size = model_bytes(model)
        self._make_room(model_bytes(model, *(kept for kept, _ in self._models.values())) - self.bytes)
        if size <= self.limit_bytes:
            self._models[key] = (model, tokenizer)

    def copy(self, key: Hashable, load: Callable[[], Loaded], expected_bytes: float = 0.0) -> Loaded:
        """A model of the caller's own, to be trained. Where two of it do not fit, the resident one is given away."""
        model, tokenizer = self.get(key, load, expected_bytes)
        size = model_bytes(model)
        if 2 * size > self.limit_bytes:
            self._models.pop(key, None)
        else:
            self._make_room(size, spare=key)
            model = copy.deepcopy(model)
        return trainable(model), tokenizer

    def take(self, key: Hashable, load: Callable[[], Loaded], expected_bytes: float = 0.0) -> Loaded:
        """A model of the caller's own, which is resident no longer: to be trained, or to be freed when the caller is done with it."""
        model, tokenizer = self.get(key, load, expected_bytes)
        self._models.pop(key, None)
        return trainable(model), tokenizer

    def _make_room(self, size: float, spare: Hashable | None = None) -> None:
        for key in [key for key in self._models if key != spare]:
            if self.bytes + size <= self.limit_bytes:
                return
            del self._models[key]


def trainable(model: Any) -> Any:
    """The model, all of whose weights get gradients: a recipe may have frozen some when it was trained."""
    for weight in model.parameters():
        weight.requires_grad_(True)
    return model


def model_bytes(*models: Any) -> int:
    """Memory of models' weights and buffers; tied and shared ones once."""
    tensors = {value.data_ptr(): value for model in models for value in (*model.parameters(), *model.buffers())}
    return sum(value.numel() * value.element_size() for value in tensors.values())


def stored_bytes(folder: str | Path, dtype: str = "float32") -> float:
    """Memory that a model folder's weights take once they are loaded in a dtype; 0 where it has no safetensors, as for a hub id."""
    from safetensors import safe_open

    elements = 0
    for path in Path(folder).glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            elements += sum(int(torch.tensor(file.get_slice(name).get_shape()).prod()) for name in file.keys())  # noqa: SIM118
    return elements * getattr(torch, dtype).itemsize


def default_limit_bytes() -> float:
    """Half of the GPU's memory; on a CPU half of the machine's, divided among its cores, since each runs a worker."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / 2
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2 / (os.cpu_count() or 1)
