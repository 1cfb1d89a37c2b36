"""A folder that lacks weights draws others at every load: RLHFlow/Online-RLHF#4, deepspeedai/DeepSpeedExamples#808; and 36, our own."""

from pathlib import Path

import pytest
from foreign_experiment import foreign_tree, refusal
from foreign_models import change_weights, policy_folder, reward_folder

from apo_bench.config.schema import NeuralReward, Recipe
from apo_bench.errors import InputError
from apo_bench.models import reward as rewards
from apo_bench.models.policy import load_policy

NORM = "model.layers.1.input_layernorm.weight"
RECIPE = Recipe(learning_rate=1.0)


@pytest.mark.parametrize("lost", ["lm_head.weight", NORM, "model.embed_tokens.weight"])
def test_missing_weights_are_refused_by_name(tmp_path: Path, lost: str) -> None:
    folder = change_weights(policy_folder(tmp_path / "policy"), drop=lost)
    assert f"models.policy.path: {folder}: weights are missing: {lost}" in refusal(tmp_path, foreign_tree(folder))
    with pytest.raises(InputError, match=f"weights are missing: {lost}"):
        load_policy(folder)


def test_weights_of_another_shape_are_refused_by_name(tmp_path: Path) -> None:
    folder = change_weights(policy_folder(tmp_path / "policy"), shapes={NORM: 7})
    assert f"{NORM} is 7, not 32" in refusal(tmp_path, foreign_tree(folder))


def test_a_tied_output_layer_is_not_missing(tmp_path: Path) -> None:
    """Folders with tied embeddings hold them once."""
    load_policy(policy_folder(tmp_path, tie_word_embeddings=True))


def test_a_new_head_may_be_missing_and_a_body_may_not(tmp_path: Path) -> None:
    spec = NeuralReward(path=".", training=RECIPE)
    folder = policy_folder(tmp_path)
    rewards.new_reward_model(spec, folder, ("helpful",), None, seed=0)
    change_weights(folder, drop=NORM)
    with pytest.raises(InputError, match=f"weights are missing: {NORM}"):
        rewards.new_reward_model(spec, folder, ("helpful",), None, seed=0)


def test_a_finished_reward_model_without_its_head_is_refused(tmp_path: Path) -> None:
    folder = change_weights(reward_folder(tmp_path / "gold"), drop="score.weight")
    tree = foreign_tree(policy_folder(tmp_path / "policy"), {"kind": "pretrained", "path": str(folder)})
    assert f"models.gold.0.model.path: {folder}: weights are missing: score.weight" in refusal(tmp_path, tree)
