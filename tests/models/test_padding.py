"""Padding of token ids, and batches cut where lengths differ."""

from typing import Any

import torch

from apo_bench.models.padding import in_like_lengths, like_lengths, pad


def test_padding_sides() -> None:
    ids, mask = pad([[1, 2, 3], [4]], 9)
    assert (ids.tolist(), mask.tolist()) == ([[1, 2, 3], [4, 9, 9]], [[1, 1, 1], [1, 0, 0]])
    ids, mask = pad([[1, 2, 3], [4]], 9, side="left")
    assert (ids.tolist(), mask.tolist()) == ([[1, 2, 3], [9, 9, 4]], [[1, 1, 1], [0, 0, 1]])


def test_like_lengths() -> None:
    """From 3 tokens up to 35, from 40 to 72, from 200 to 250; six of one length, four at most, are four and two."""
    lengths = [3, 10, 35, 40, 72, 200, 250, 251]
    assert [lengths[batch] for batch in like_lengths(lengths)] == [[3, 10, 35], [40, 72], [200, 250], [251]]
    assert like_lengths([5] * 6, most=4) == [slice(0, 4), slice(4, 6)]
    assert like_lengths([]) == []


def test_in_like_lengths_keeps_rows_in_order() -> None:
    """Rows of 50, 3, 60 and 5 tokens: those of 3 and 5 to a width of 5, those of 50 and 60 to 60. Rows of like length are one part."""

    def computed(lengths: list[int]) -> tuple[list[int], list[int]]:
        attention, widths = pad([[1] * length for length in lengths], 0)[1], []

        def tokens(rows: Any, width: int) -> torch.Tensor:
            widths.append(width)
            return attention[rows, :width].sum(dim=-1)

        return in_like_lengths(attention, tokens).tolist(), widths

    assert computed([50, 3, 60, 5]) == ([50, 3, 60, 5], [5, 60])
    assert computed([30, 3]) == ([30, 3], [30])
