"""Resident models: the least recently used leave first, the limit is kept, and what is trained is a copy."""

import os
import re
from pathlib import Path

import pytest
import torch
from constant_policy import LLAMA
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from apo_bench.engines.model_cache import Loaded, ResidentModels, default_limit_bytes, model_bytes, stored_bytes
from apo_bench.models import policy as policies

WEIGHT = 4  # bytes
LIMIT = 10 * WEIGHT
SIZES = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6, "whole": 10, "larger": 11}  # weights of each model


class Model(nn.Module):
    """Some weights of one value."""

    def __init__(self, weights: int, value: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((weights,), value))


class Disk:
    """Loads models by name, and counts how often."""

    def __init__(self) -> None:
        self.loads: list[str] = []

    def load(self, name: str) -> Loaded:
        self.loads.append(name)
        return Model(SIZES[name]), f"tokenizer of {name}"


def get(models: ResidentModels, disk: Disk, name: str, verb: str = "get") -> Model:
    model, tokenizer = getattr(models, verb)(name, lambda: disk.load(name), WEIGHT * SIZES[name])
    assert tokenizer == f"tokenizer of {name}"
    assert model.weight.numel() == SIZES[name]
    return model


def kept_after(before: list[str], name: str) -> list[str]:
    """Resident models after a use of `name`, the least recently used first: of the others the most recently used that still fit."""
    if name in before:
        return [*(other for other in before if other != name), name]
    others = list(before)
    while others and sum(SIZES[other] for other in others) + SIZES[name] > 10:
        others.pop(0)
    return [*others, name] if SIZES[name] <= 10 else others


def test_the_least_recently_used_leaves_first() -> None:
    """a, b, c and d are 10 weights and b was used last: for the 5 weights of e, a, c and d leave and b stays."""
    models, disk = ResidentModels(LIMIT), Disk()
    for name in ("a", "b", "c", "d", "b"):
        get(models, disk, name)
    assert disk.loads == ["a", "b", "c", "d"]
    assert models.keys == ("a", "c", "d", "b")
    assert models.bytes == LIMIT
    get(models, disk, "e")
    assert models.keys == ("b", "e")  # without a and c there would be 6 + 5 weights
    get(models, disk, "c")
    assert models.keys == ("b", "e", "c")
    assert disk.loads == ["a", "b", "c", "d", "e", "c"]


@given(calls=st.lists(st.tuples(st.sampled_from(["get", "put", "copy"]), st.sampled_from(list(SIZES))), max_size=30))
def test_the_limit_is_kept_whatever_is_called(calls: list[tuple[str, str]]) -> None:
    """Resident models and the copy that a caller got take no more than the limit together; a larger model is not kept at all.

    Only what is not resident is loaded. A model of more than half the limit is given away where a copy of it is wanted.
    """
    models, disk, kept = ResidentModels(LIMIT), Disk(), list[str]()
    for verb, name in calls:
        loads, size = len(disk.loads), SIZES[name]
        if verb == "put":
            models.put(name, Model(size), f"tokenizer of {name}")
            kept = kept_after([other for other in kept if other != name], name)
        else:
            get(models, disk, name, verb)
            assert len(disk.loads) - loads == (name not in kept)
            kept = kept_after(kept, name)
        if verb == "copy" and 2 * size > 10:
            kept = [other for other in kept if other != name]
        elif verb == "copy":
            while sum(SIZES[other] for other in kept) + size > 10:
                kept.remove(next(other for other in kept if other != name))
        assert list(models.keys) == kept
        assert models.bytes == WEIGHT * sum(SIZES[name] for name in kept)
        own = WEIGHT * size if verb == "copy" and size <= 10 else 0
        assert models.bytes + own <= LIMIT
        assert "larger" not in models.keys


def test_room_is_made_before_a_model_is_loaded() -> None:
    models, disk = ResidentModels(LIMIT), Disk()
    get(models, disk, "f")
    resident = []

    def load() -> Loaded:
        resident.append(models.keys)
        return disk.load("e")

    models.get("e", load, WEIGHT * 5)
    assert resident == [()]
    assert models.keys == ("e",)


def test_a_put_model_replaces_the_one_of_its_key() -> None:
    models = ResidentModels(LIMIT)
    old, new = Model(3, 1.0), Model(4, 2.0)
    models.put("policy", old, None)
    models.put("policy", new, None)
    assert models.get("policy", lambda: pytest.fail("it is resident"))[0] is new
    assert models.bytes == 4 * WEIGHT
    models.put("policy", Model(11), None)  # one that does not fit leaves no old one in its place
    assert models.keys == ()


def test_a_copy_may_change_without_the_resident_model() -> None:
    models, disk = ResidentModels(LIMIT), Disk()
    resident = get(models, disk, "c")
    copied = get(models, disk, "c", "copy")
    with torch.no_grad():
        copied.weight.add_(1)
    assert get(models, disk, "c") is resident
    assert resident.weight.tolist() == [0, 0, 0]
    assert copied.weight.tolist() == [1, 1, 1]
    assert disk.loads == ["c"]


def test_a_copy_of_which_two_do_not_fit_is_the_resident_model_given_away() -> None:
    """Only the caller has the changed model; the next call loads it again."""
    models, disk = ResidentModels(LIMIT), Disk()
    resident = get(models, disk, "f")
    copied = get(models, disk, "f", "copy")
    assert copied is resident
    assert models.keys == ()
    with torch.no_grad():
        copied.weight.add_(1)
    assert get(models, disk, "f").weight.tolist() == [0] * 6
    assert disk.loads == ["f", "f"]


def test_a_taken_model_is_resident_no_longer() -> None:
    models, disk = ResidentModels(LIMIT), Disk()
    resident = get(models, disk, "c")
    resident.weight.requires_grad_(False)
    taken = get(models, disk, "c", "take")
    assert taken is resident
    assert taken.weight.requires_grad
    assert models.keys == ()
    assert get(models, disk, "larger", "take") is not taken
    assert disk.loads == ["c", "larger"]


@pytest.mark.parametrize("name", ["c", "f", "larger"], ids=["copied", "given away", "never kept"])
def test_every_weight_of_a_copy_can_be_trained(name: str) -> None:
    """Also where the recipe that trained it had frozen some; the resident model stays as it is."""
    models = ResidentModels(LIMIT)
    frozen = Model(SIZES[name])
    frozen.weight.requires_grad_(False)
    copied, _ = models.copy(name, lambda: (frozen, None))
    assert copied.weight.requires_grad
    if name in models.keys:
        assert not frozen.weight.requires_grad


def test_tied_weights_and_buffers_are_counted_once() -> None:
    model = nn.Module()
    model.first = nn.Linear(4, 4, bias=False)
    model.second = nn.Linear(4, 4, bias=False)
    model.second.weight = model.first.weight
    model.register_buffer("positions", torch.zeros(5, dtype=torch.float64))
    assert model_bytes(model) == 16 * 4 + 5 * 8


@pytest.mark.parametrize("tied", [False, True])
def test_stored_bytes_are_the_loaded_weights(tied: bool, tmp_path: Path) -> None:
    model, tokenizer = policies.new_policy({**LLAMA, "tie_word_embeddings": tied}, ["a", "b"], seed=0)
    policies.save_model(model, tokenizer, tmp_path)
    assert stored_bytes(tmp_path) == 4 * sum(weight.numel() for weight in model.parameters())
    assert stored_bytes(tmp_path / "nowhere") == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="the limit of a CPU")
def test_by_default_the_workers_of_a_machine_keep_half_of_its_memory() -> None:
    [total] = re.findall(r"^MemTotal: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert default_limit_bytes() * (os.cpu_count() or 1) == pytest.approx(int(total) * 1024 / 2, rel=0.01)
