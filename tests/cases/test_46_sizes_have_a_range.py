"""Sizes beyond anything that there is: one line that names the key, from `check`, within seconds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from apo_bench.cli.main import app

HUGE: dict[str, tuple[tuple[str, ...], Any]] = {
    "hidden_size": (("models", "policy", "architecture", "hidden_size"), 2**31),
    "num_hidden_layers": (("models", "policy", "architecture", "num_hidden_layers"), 10**9),
    "num_attention_heads": (("models", "reward", "architecture", "num_attention_heads"), 2**40),
    "intermediate_size": (("models", "policy", "architecture", "intermediate_size"), 2**62),
    "pairs_per_prompt": (("task", "options", "pairs_per_prompt"), 2**32 - 1),
    "demonstrations_per_cluster": (("task", "options", "demonstrations_per_cluster"), 2**32 - 1),
    "prompts_per_cluster": (("task", "options", "prompts_per_cluster"), 2**32 - 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("key", HUGE)
@pytest.mark.parametrize("command", ["check", "plan"])
def test_it_is_refused_by_name(command: str, key: str, tree: dict[str, Any], write_experiment: Callable[[dict[str, Any]], Path]) -> None:
    place, value = HUGE[key]
    inner = tree
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    path = write_experiment(json.loads(json.dumps(tree)))
    ended = CliRunner().invoke(app, [command, str(path)])
    assert ended.exit_code == 2, (ended.output, ended.exception)
    assert len(ended.stderr.splitlines()) == 1
    assert key in ended.stderr
