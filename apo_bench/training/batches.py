"""Which items a fit sees together, in what order, and with what weight in the loss."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler


class UpdateBatchSampler(Sampler[list[tuple[int, float]]]):
    """Micro-batches of (item, loss_weight), freshly shuffled each epoch; a weight is 1 / the update's denominator.

    Items are shuffled, sorted by length within stretches of 16 updates (so that like lengths share a batch), and the
    updates shuffled again. A short last update stays last, since accumulation counts micro-batches.

    Several processes take an update's micro-batches in turn. A process that has none left in the last round gets one item of
    weight 0, so that all make equally many steps.
    """

    def __init__(
        self, sizes: Sequence[int], lengths: Sequence[int], batch_size: int, micro_batch_size: int, seed: int,
        process: int = 0, processes: int = 1,
    ) -> None:  # fmt: skip
        self.sizes, self.lengths = np.asarray(sizes), np.asarray(lengths)
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.process, self.processes = process, processes
        self.generator = np.random.default_rng(seed)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.sizes), self.batch_size)
        at_once = self.micro_batch_size * self.processes
        return whole * (self.batch_size // at_once) + -(-rest // at_once)

    def __iter__(self) -> Iterator[list[tuple[int, float]]]:
        order = self.generator.permutation(len(self.sizes))
        rest = order[len(order) - len(order) % self.batch_size :]
        order = order[: len(order) - len(rest)]
        stretch = 16 * self.batch_size
        bucketed = [part[np.argsort(self.lengths[part], kind="stable")] for part in np.split(order, range(stretch, len(order), stretch))]
        updates = np.concatenate(bucketed).reshape(-1, self.batch_size) if len(order) else np.empty((0, self.batch_size), int)
        at_once = self.micro_batch_size * self.processes
        for update in [*updates[self.generator.permutation(len(updates))], *([rest] if len(rest) else [])]:
            loss_weight = 1.0 / self.sizes[update].sum()
            for start in range(self.process * self.micro_batch_size, len(update) + (-len(update)) % at_once, at_once):
                batch = update[start : start + self.micro_batch_size]
                yield [(int(item), loss_weight) for item in batch] if len(batch) else [(int(update[0]), 0.0)]

    def skip(self, epochs: int) -> None:
        """Advance the generator past so many epochs; an epoch draws all its random numbers before its first batch."""
        for _ in range(epochs):
            next(iter(self))


def processes_share(items: Sequence[Mapping[str, Any]], batch_size: int, process: int, processes: int) -> list[int]:
    """Places of the items that a process reads, where processes take batches of items of like length in turn.

    Batches are whole but for the last: a process that batches its own items by length forms those that one process would.
    """
    order = sorted(range(len(items)), key=lambda place: items[place]["length"])
    starts = range(process * batch_size, len(order), processes * batch_size)
    return [place for start in starts for place in order[start : start + batch_size]]
