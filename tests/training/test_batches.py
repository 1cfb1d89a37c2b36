"""Batches: every item once an epoch, one denominator an update, and the same update for several processes."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apo_bench.training.batches import UpdateBatchSampler


@pytest.mark.slow
@given(data=st.data(), micro=st.integers(1, 4), steps=st.integers(1, 4), seed=st.integers(0, 5))
def test_updates(data: st.DataObject, micro: int, steps: int, seed: int) -> None:
    """Every item once an epoch; each update but the last has batch_size items; its loss weights times its sizes sum to 1."""
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=60))
    batch_size = micro * steps
    sampler = UpdateBatchSampler(sizes, sizes, batch_size, micro, seed)
    epochs = [list(sampler), list(sampler)]
    for epoch in epochs:
        assert len(epoch) == len(sampler)
        places = [place for batch in epoch for place in batch]
        assert Counter(item for item, _ in places) == Counter(range(len(sizes)))
        assert all(len(batch) <= micro for batch in epoch)
        for start in range(0, len(places), batch_size):
            update = places[start : start + batch_size]
            assert sum(loss_weight * sizes[item] for item, loss_weight in update) == pytest.approx(1)
            assert len({loss_weight for _, loss_weight in update}) == 1
        total = sum(loss_weight * sizes[item] for item, loss_weight in places)
        assert total == pytest.approx(math.ceil(len(sizes) / batch_size))
        updates = [epoch[start : start + steps] for start in range(0, len(epoch), steps)]  # as the trainer accumulates
        assert all(sum(map(len, update)) == batch_size for update in updates[:-1])
        assert sum(map(len, updates[-1])) == (len(sizes) % batch_size or batch_size)
    assert list(UpdateBatchSampler(sizes, sizes, batch_size, micro, seed)) == epochs[0]


def test_updates_are_shuffled_afresh_and_like_lengths_share_one() -> None:
    """256 items of lengths 0..255 in updates of 16 are one stretch: each update spans 16 neighbouring lengths."""
    sampler = UpdateBatchSampler([1] * 256, range(256), 16, 16, 0)
    first, second = ([[item for item, _ in batch] for batch in sampler] for _ in range(2))
    assert first != second
    assert [max(batch) - min(batch) for batch in first] == [15] * 16
    assert first != sorted(first)


@given(data=st.data(), micro=st.integers(1, 4), steps=st.integers(1, 3), processes=st.integers(2, 4), seed=st.integers(0, 5))
def test_several_processes_share_an_update(data: st.DataObject, micro: int, steps: int, processes: int, seed: int) -> None:
    """In turn: process p has the micro-batches p, p + processes, ... of the one process's update; all make equally many steps.

    Where the last round has too few, a process gets one item with loss weight 0, which counts for nothing.
    """
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=60))
    batch_size = micro * steps * processes
    alone = UpdateBatchSampler(sizes, sizes, batch_size, micro, seed)
    together = [UpdateBatchSampler(sizes, sizes, batch_size, micro, seed, process, processes) for process in range(processes)]
    for _ in range(2):
        by_process = [list(sampler) for sampler in together]
        assert {len(batches) for batches in by_process} == {len(together[0])}
        in_turn = [batch for batches in zip(*by_process, strict=True) for batch in batches]
        batches = list(alone)
        assert in_turn[: len(batches)] == batches
        assert all(len(batch) == 1 and batch[0][1] == 0 for batch in in_turn[len(batches) :])
        assert len(in_turn) - len(batches) < processes


@given(n=st.integers(1, 60), epochs=st.integers(0, 3), processes=st.integers(1, 2))
def test_epochs_are_skipped_as_if_they_had_been_drawn(n: int, epochs: int, processes: int) -> None:
    drawn, skipped = (UpdateBatchSampler([1] * n, range(n), 8, 2, 0, 0, processes) for _ in range(2))
    for _ in range(epochs):
        list(drawn)
    skipped.skip(epochs)
    assert list(skipped) == list(drawn)
