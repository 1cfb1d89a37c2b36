"""Which engine an experiment names, and what opening one brings in."""

import subprocess
import sys
from pathlib import Path

import pytest

from apo_bench.config.schema import EngineChoice, Executor
from apo_bench.engines import engine_module, open_engine
from apo_bench.errors import InputError


@pytest.mark.parametrize("name", ["counting", "vllm", "launch"])
def test_an_engine_that_is_not_there_is_one_line(name: str) -> None:
    """Counting is the planner's: it runs nothing."""
    with pytest.raises(InputError) as refused:
        engine_module(EngineChoice(use=name))
    assert str(refused.value) == f"engine.use: no engine named '{name}'; engines: transformers"


def test_the_experiments_memory_is_the_engines_limit(tmp_path: Path) -> None:
    engine = open_engine(EngineChoice(memory_gb=0.5), Executor(), tmp_path)
    assert engine.models.resident.limit_bytes == 2**29  # pyright: ignore[reportAttributeAccessIssue]
    assert engine.identity["name"] == "transformers"
    assert engine.hardware["threads"] == 1


def test_the_lab_and_the_choice_of_an_engine_bring_in_no_torch() -> None:
    code = "import sys, apo_bench.lab.lab, apo_bench.engines; assert not {'torch', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
