"""The comparison of online steps, with the tiny experiment: each side samples, and has a row, as a share of the plain loop's seconds."""

import re
from pathlib import Path

import pytest
import yaml
from tiny_world import tiny_tree

from apo_bench.config.python_files import load_python_file


@pytest.mark.slow
def test_each_side_has_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("trl", reason="trl is not installed; run: pip install trl")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_tree()))
    online_step = load_python_file(Path(__file__).parents[2] / "benchmarks" / "online_step.py")
    online_step.main([*"--steps 2 --prompts 2 --responses 2 --repeats 1 --experiment".split(), str(tmp_path / "tiny.yaml")])
    printed = capsys.readouterr().out
    assert all(int(tokens) >= 8 for tokens in re.findall(r"\((\d+) tokens\)", printed))
    rows = [line.split("|")[1:3] for line in printed.splitlines() if line.startswith("|")][2:]
    assert [name.strip() for name, _ in rows] == ["Lab", "plain", "TRL"]
    assert float(rows[1][1]) == 1
