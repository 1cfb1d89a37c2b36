"""A model folder that lacks one tensor, wherever in it: refused by that tensor's name, and never drawn at random."""

import json
import random
from pathlib import Path

import pytest
from foreign_models import change_weights, policy_folder, reward_folder
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from apo_bench.errors import InputError
from apo_bench.models.model_folder import check_model, read_model

pytestmark = pytest.mark.slow
KINDS = {"policy": (policy_folder, AutoModelForCausalLM), "reward": (reward_folder, AutoModelForSequenceClassification)}


@pytest.mark.parametrize("kind", KINDS)
def test_each_tensor_is_missed_by_name(kind: str, tmp_path: Path) -> None:
    """Ten of them, drawn by a seed; checked without reading weights, and refused when they are read. A tied head has no tensor."""
    make, auto = KINDS[kind]
    whole = make(tmp_path / "whole")
    with safe_open(whole / "model.safetensors", "pt") as file:
        names = sorted(file.keys())
    assert json.loads((whole / "config.json").read_text())
    for place, name in enumerate(random.Random(0).sample(names, min(10, len(names)))):
        folder = make(tmp_path / str(place))
        change_weights(folder, drop=name)
        for read in (lambda folder: check_model(auto, folder), lambda folder: read_model(auto, folder)):
            with pytest.raises(InputError, match="weights are missing") as caught:
                read(folder)
            assert name in str(caught.value)
