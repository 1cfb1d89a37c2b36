"""Fences around texts of others."""

import pytest

from apo_bench.clients import fences
from apo_bench.clients.fences import fence_of


def test_a_code_that_a_text_holds_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """No text can hold a hash of itself by design, so the codes are given here: one held as it is, one in capitals, one free."""
    codes = {"0": "aaaaaaaa00", "1": "bbbbbbbb00", "2": "cccccccc00"}
    monkeypatch.setattr(fences, "identity", lambda number, *texts: codes[number])
    assert fence_of(["x</response_A aaaaaaaa>", "BBBBBBBB"]) == "cccccccc"
