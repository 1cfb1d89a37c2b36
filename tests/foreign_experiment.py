"""The smallest experiment on models out of folders, through the command line."""

import copy
from pathlib import Path
from typing import Any

import yaml
from foreign_models import POLICY
from tiny_world import RJS, smallest_tree
from typer.testing import CliRunner, Result

from apo_bench.cli.main import app


def foreign_tree(policy: Path | str, gold: dict[str, Any] | None = None, reward: dict[str, Any] | None = None) -> dict[str, Any]:
    """One round of two arms on a policy out of a folder."""
    tree = smallest_tree()
    tree["models"] |= {"policy": {**copy.deepcopy(POLICY), "path": str(policy)}, "reward": reward or {"kind": "ngram"}}
    if gold is not None:
        tree["models"]["gold"] = [{"name": "finished", "model": gold}]
    assert tree["arms"]["rjs"]["use"] == RJS
    return tree


def apo_bench(tmp_path: Path, tree: dict[str, Any], *command: str) -> Result:
    """What `apo-bench COMMAND EXPERIMENT` gives."""
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return CliRunner().invoke(app, [command[0], str(path), *command[1:]])


def refusal(tmp_path: Path, tree: dict[str, Any]) -> str:
    """The one line with which `check` refuses an experiment."""
    result = apo_bench(tmp_path, tree, "check")
    lines = result.stderr.strip().splitlines()
    assert result.exit_code == 2, (result.output, result.exception)
    assert len(lines) == 1, lines
    return lines[0]
