"""Counted bytes, by hand: fp32 takes 4 bytes, and a storage counts once."""

import pytest
import torch

from apo_bench.models.memory import LiveBytes, saved_for_backward


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_live_bytes_by_hand(device: str) -> None:
    """400 weights before are no part of it. x is 1000 numbers, its view none, the product 1000, and the sum 1."""
    weight = torch.ones(10, 40, device=device)
    with LiveBytes() as memory:
        x = torch.ones(100, 10, device=device)
        view = x.view(10, 100)
        assert memory.live == 4000
        product = x @ weight[:, :10]
        x.add_(1)
        assert memory.live == memory.peak == 8000
        del x
        assert memory.live == 8000  # the view still holds it
        del view
        assert memory.live == 4000
        product = product.sum()
        assert memory.live == 4
    assert memory.peak == 8000


def test_gradients_count() -> None:
    """A weight of 50 numbers; y = w * w has 50, its sum 1. Backward: the sum's gradient 1, y's is a view of it, and some of w's size."""
    weight = torch.ones(50, requires_grad=True)
    with LiveBytes() as memory:
        (weight * weight).sum().backward()
    assert memory.live == 200  # the weight's gradient
    assert memory.peak >= 400


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_saved_bytes_by_hand(device: str) -> None:
    """exp saves its result, 6 numbers, and the product its two factors: that result, counted once, and the weight, which is left out."""
    weight, x = torch.ones(3, 4, device=device, requires_grad=True), torch.ones(2, 3, device=device, requires_grad=True)
    with saved_for_backward([weight]) as saved:
        y = x.exp() @ weight
    assert saved.bytes == 24
    with saved_for_backward() as saved, torch.no_grad():
        x.exp()
    assert saved.bytes == 0
    y.sum().backward()
    assert x.grad is not None
