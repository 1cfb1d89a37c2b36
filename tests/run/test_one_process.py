"""Arms that train in one process do not go with `executor.launch`, which `check` says before anything runs."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_world import RJS, tiny_tree

from apo_bench.errors import InputError
from apo_bench.run.validate import check_experiment

GRPO = {"use": "baselines/online.py@Online", "algorithm": "grpo"}
TRL = {"use": "baselines/trl_trainer.py@TRLTrainer", "trainer": "trl.DPOTrainer"}


def check(folder: Path, arm: dict[str, Any], launch: str | None = "two.yaml") -> list[str]:
    tree = tiny_tree()
    tree["arms"]["other"] = arm
    tree["executor"] = {"launch": launch}
    (folder / "two.yaml").write_text("distributed_type: MULTI_CPU\nnum_processes: 2\n")
    path = folder / "experiment.yaml"
    path.write_text(json.dumps(tree))
    return check_experiment(path)


@pytest.mark.parametrize(
    ("arm", "kind"),
    [
        (GRPO, "Online"),
        ({**GRPO, "fit": {"unit": "sampled_responses", "to": "rjs", "by": "rounds"}}, "Online"),
        ({"use": "baselines/online_dpo.py@OnlineDPO"}, "OnlineDPO"),
        ({"use": "apo_bench.apo@APO", "player": GRPO}, "Online"),
        (TRL, "TRLTrainer"),
    ],
)
def test_they_are_refused_by_name(tmp_path: Path, arm: dict[str, Any], kind: str) -> None:
    with pytest.raises(InputError) as error:
        check(tmp_path, arm)
    assert str(error.value).endswith(f": executor.launch: two.yaml: {kind} of arms.other trains in one process; leave launch out")


@pytest.mark.parametrize(("arm", "launch"), [(GRPO, None), ({"use": RJS}, "two.yaml")])
def test_without_a_launch_or_such_an_arm_nothing_is_refused(tmp_path: Path, arm: dict[str, Any], launch: str | None) -> None:
    assert all(note.startswith("models.gold: ") for note in check(tmp_path, arm, launch))  # of a tiny world's few pairs
