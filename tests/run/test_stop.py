"""A run whose shared models cannot be made stops there, in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from foreign_experiment import apo_bench, foreign_tree
from foreign_models import change_weights, policy_folder, reward_folder

from apo_bench.run import validate

pytestmark = pytest.mark.slow


def broken_policy(tmp_path: Path) -> dict[str, Any]:
    return foreign_tree(change_weights(policy_folder(tmp_path / "policy"), drop="lm_head.weight"))


def broken_gold(tmp_path: Path) -> dict[str, Any]:
    folder = change_weights(reward_folder(tmp_path / "gold"), drop="score.weight")
    return foreign_tree(policy_folder(tmp_path / "policy"), {"kind": "pretrained", "path": str(folder)})


def diverging_gold(tmp_path: Path) -> dict[str, Any]:
    spec = {"kind": "neural", "initial": "policy", "training": {"learning_rate": 1e30, "batch_size": 16}, "max_tokens": 256}
    return foreign_tree(policy_folder(tmp_path / "policy"), spec)


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (broken_policy, ["the initial policy cannot be made", "weights are missing: lm_head.weight"]),
        (broken_gold, ["a gold reward model cannot be made", "gold finished, seed 0: ", "weights are missing: score.weight"]),
        (diverging_gold, ["a gold reward model cannot be made", "gold finished, seed 0: reward model: the loss of update"]),
    ],
)
def test_the_run_stops_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: Callable[[Path], dict[str, Any]], expected: list[str]
) -> None:
    """As for a hub id, which `check` cannot look into: here it does not look."""
    monkeypatch.setattr(validate, "check_models", lambda *_: ())
    result = apo_bench(tmp_path, tree(tmp_path), "run", "--out", str(tmp_path / "out"), "--workers", "1")
    assert result.exit_code == 2, result.output
    last = result.stderr.strip().splitlines()[-1]
    assert all(part in last for part in expected), last
    assert not list((tmp_path / "out" / "store" / "arm_seeds").glob("*.json"))
    assert not (tmp_path / "out" / "report").exists()
