"""Memory that a computation takes, counted on any device: on the meta device for sizes that fit no machine at hand."""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that operations inside the context have made and that are still referenced, as `live`, and their `peak`.

    What exists before (weights, inputs) is not counted, and a storage is counted once however many tensors view it. What one operation
    allocates and frees within itself is not seen, nor is an allocator's rounding. `course` has `live` after each operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.course: list[int] = []
        self._storages: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # a view of an input or an operation in place allocates nothing
        inputs = {_storage(tensor)._cdata for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := _storage(tensor))._cdata not in inputs:
                self._count(storage)
        self.course.append(self.live)
        return result

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        def freed(_: Any) -> None:
            del self._storages[key]
            self.live -= size

        self._storages[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)


class SavedBytes:
    """Bytes that autograd saved for the backward pass, as `bytes`: every storage once, weights and inputs apart."""

    bytes = 0


@contextmanager
def saved_for_backward(apart: Iterable[Tensor] = ()) -> Iterator[SavedBytes]:
    """Counts what operations inside the context save for their backward pass, storages of `apart` (weights, inputs) left out."""
    saved = SavedBytes()
    storages = {_storage(tensor)._cdata: _storage(tensor) for tensor in apart}  # kept, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = _storage(tensor)
        if storage._cdata not in storages:
            storages[storage._cdata] = storage
            saved.bytes += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()
