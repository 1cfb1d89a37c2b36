"""Trainers of TRL as arms: each that can be one runs, alone or as a player, and the page says which."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import DOCS, blocks
from safetensors.torch import load_file
from tiny_world import tiny_bench, tiny_lab, tiny_tree

from apo_bench.config.load import load_experiment
from apo_bench.config.plugins import resolve
from apo_bench.errors import InputError
from apo_bench.evaluation.context import EvaluationContext
from apo_bench.training.trl_trainers import REFUSED, TRAINERS

TRL = "baselines/trl_trainer.py@TRLTrainer"
READS = {
    "demonstrations": "demonstrations: chosen sides of human pairs",
    "pairs": "human pairs",
    "unpaired": "sides of human pairs, desirable or not",
    "prompts": "prompts, the arm's reward model",
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> EvaluationContext:
    return tiny_bench(tmp_path_factory.mktemp("trl_arms"))


def arm(trainer: str, **parameters: Any) -> Any:
    args = {"num_generations": 4} if TRAINERS[trainer].group else {}
    return resolve(TRL, {"trainer": trainer, "args": args, **parameters}, base=None)


def weights(bench: EvaluationContext, key: str) -> dict[str, torch.Tensor]:
    return load_file(bench.store.root / "policies" / key / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_trainer_that_can_be_an_arm_is_one(bench: EvaluationContext, trainer: str) -> None:
    """32 pairs, or 8 prompts; 16 items an update, of which unpaired ones are two a pair and GRPO's are 4 a prompt."""
    lab = tiny_lab(bench, {"human_pairs": 32})
    arm(trainer, prompts_per_round=8, rounds=2).run(lab)
    form = TRAINERS[trainer]
    updates = {"unpaired": 4, "prompts": 2 if form.group else 1}.get(form.reads, 2)
    assert len(lab.rounds) == 2
    assert lab.used["human_pairs"] == 32
    assert lab.used["policy_updates"] == 2 * updates
    assert lab.used["sampled_responses"] == lab.used["scored_responses"] == 2 * {"prompts": 32 if form.group else 16}.get(form.reads, 0)
    assert (lab.used["rm_updates"] > 0) == (form.reads == "prompts")
    assert lab.used["policy_train_tokens"] > 0
    first, second = (weights(bench, round_.policy.key) for round_ in lab.rounds)
    assert max((first[name] - second[name]).abs().max().item() for name in first) > 1e-4


@pytest.mark.slow
def test_the_dpo_arms_of_trl_and_ours_are_one_arm(bench: EvaluationContext) -> None:
    """16 pairs, so that each of 2 rounds is one update, and no order of batches can differ. A second round of TRL's compares with the
    first's policy, of ours with the initial one, so the first rounds are equal and the second are not."""
    ours, theirs = (tiny_lab(bench, {"human_pairs": 16}) for _ in range(2))
    resolve("baselines/preference.py@Preference", {"rounds": 2}, base=None).run(ours)
    arm("trl.DPOTrainer", rounds=2).run(theirs)
    own, other = ([weights(bench, round_.policy.key) for round_ in lab.rounds] for lab in (ours, theirs))
    for name in own[0]:
        torch.testing.assert_close(own[0][name], other[0][name], atol=1e-5, rtol=1e-4)
    assert max((own[1][name] - other[1][name]).abs().max().item() for name in own[1]) > 1e-4
    for unit in ("human_pairs", "policy_updates", "policy_train_tokens"):
        assert ours.used[unit] == theirs.used[unit]


@pytest.mark.slow
def test_an_online_trainer_is_a_player(bench: EvaluationContext) -> None:
    """In APO: golden responses and the policy's samples train the reward model, which the trainer then pleases."""
    player = {"use": TRL, "trainer": "trl.GRPOTrainer", "args": {"num_generations": 4}, "prompts_per_round": 8}
    lab = tiny_lab(bench, {"human_pairs": 16, "golden_responses": 4})
    resolve("apo_bench.apo@APO", {"rounds": 1, "samples_per_prompt": 2, "player": player}, base=None).run(lab)
    assert len(lab.rounds) == 1
    assert lab.used["golden_responses"] == 4
    assert lab.used["sampled_responses"] == 4 * 2 + 8 * 4


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        ({"trainer": "trl.GRPOTrainr"}, "no trainer 'trl.GRPOTrainr', did you mean trl.GRPOTrainer?"),
        ({"trainer": "trl.RewardTrainer"}, "trainer: trl.RewardTrainer: it trains a reward model"),
        ({"trainer": "trl.DPOTrainer", "args": {"max_steps": 5}}, "args.max_steps: not an arm's to decide: models.policy.training.epochs"),
    ],
)
def test_check_refuses_what_cannot_be(parameters: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as error:
        resolve(TRL, parameters, base=None)
    assert line in str(error.value)


def test_the_arms_of_the_page_are_valid(tmp_path: Path) -> None:
    """In place of a small experiment's own."""
    import yaml

    (block,) = [block for block in blocks(DOCS / "trl.md") if block.language == "yaml"]
    tree = tiny_tree()
    tree["arms"] = yaml.safe_load(block.text)["arms"]
    tree["compare"] = {"primary": [{"a": "trl_grpo", "b": "trl_dpo"}]}
    (tmp_path / "page.yaml").write_text(json.dumps(tree))
    experiment = load_experiment(tmp_path / "page.yaml")
    methods = [resolve(each.use, each.parameters, base=tmp_path) for each in experiment.arms.values()]
    assert len(methods) == 3


def test_the_table_of_the_page_is_what_the_code_knows() -> None:
    rows = [f"| `{name}` | {READS[form.reads]} | yes |" for name, form in TRAINERS.items()]
    rows += [f"| `{name}` | | no: {why} |" for name, why in REFUSED.items()]
    assert "\n".join(rows) in (DOCS / "trl.md").read_text(encoding="utf-8")
