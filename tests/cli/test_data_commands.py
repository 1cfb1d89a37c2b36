"""`apo-bench data` and `new-experiment`: what is shown of preference files, and that the experiment passes `check`."""

import json
from pathlib import Path
from typing import Any

import pytest
from foreign_models import policy_folder
from typer.testing import CliRunner, Result

from apo_bench.cli.main import app
from apo_bench.config.load import load_experiment
from apo_bench.run.validate import check_experiment

pytestmark = pytest.mark.slow
WORDS = "amber birch cedar dune ember fjord grove heath inlet jetty knoll ledge marsh nook oasis pond quarry ridge shoal tarn".split()


def call(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})


def write(path: Path, n: int = 200, start: int = 0, **more: Any) -> Path:
    rows = [
        {
            "prompt": f"{WORDS[i % 20]} {WORDS[(i // 20 + i) % 20]} {i * 7919 % 1000}?",
            "chosen": f"a good answer {i}" if i % 4 else f"good {i}",
            "rejected": f"bad answer {i}",
            **more,
        }
        for i in range(start, start + n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_data_shows_what_was_understood(tmp_path: Path) -> None:
    """Of the 100 + 40 rows, 3 in 4 have a chosen side of 4 words and a rejected one of 3, the others 2 and 3; 20 questions are in both."""
    first, second = write(tmp_path / "a.jsonl", 100), write(tmp_path / "b.jsonl", 40, start=80)
    with second.open("a") as file:
        file.write(json.dumps({"prompt": "Lost?", "chosen": None, "rejected": "bad"}) + "\n")
    result = call("data", str(first), str(second))
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "a.jsonl preference pairs: texts, the prompt in a column 100 100" in lines
    assert "b.jsonl preference pairs: texts, the prompt in a column 41 40" in lines
    assert "Left out: 1 rows without chosen dropped" in lines
    assert "overall: chosen is longer in 75 % of 140 pairs whose sides differ in length" in lines
    assert "rows that repeat another 20" in lines
    assert "a.jsonl b.jsonl 20 100 40" in lines
    assert "user: amber amber 0?" in lines
    assert "chosen: good 0" in lines
    assert "overall chosen 4 4 4" in lines


def test_data_takes_options_and_counts_tokens(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", 20, topic="x")
    policy = policy_folder(tmp_path / "policy")
    result = call(
        "data", str(tmp_path / "a.jsonl"), "--option", "axis={column: topic}", "--policy", str(policy), "--cut", "1", "--show", "0"
    )
    assert result.exit_code == 0, result.output
    assert "Lengths in tokens" in result.stdout
    assert "pairs whose sides are equal when cut at 1" in result.stdout
    assert "user:" not in result.stdout


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ((), "options.data_files: either files or the option hub"),
        (("absent.jsonl",), "absent.jsonl: no such file"),
        (("--option", "axis"), "--option axis: expected key=value"),
        (("--option", "axes=1"), "options.axes: no such option"),
    ],
)
def test_data_refuses(words: tuple[str, ...], error: str) -> None:
    result = call("data", *words)
    assert result.exit_code == 2
    assert error in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_experiment_passes_check_and_sizes_are_the_data_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "pairs.jsonl")
    policy_folder(tmp_path / "policy", max_position_embeddings=256)
    result = call("new-experiment", "pairs.jsonl", "--policy", "policy", "--to", "new/My Pairs.yaml")
    assert result.exit_code == 0, result.output
    path = tmp_path / "new" / "My Pairs.yaml"
    loaded = load_experiment(path)
    assert (loaded.name, loaded.models.policy.path) == ("my_pairs", "../policy")
    assert loaded.task.options == {"data_files": ["../pairs.jsonl"]}
    assert loaded.models.policy.max_prompt_tokens <= 128
    notes = check_experiment(path)
    assert "task preferences: pairs.jsonl: preference pairs: texts, the prompt in a column" in notes
    again = call("new-experiment", "pairs.jsonl", "--policy", "policy", "--to", "new/My Pairs.yaml")
    assert again.exit_code == 2
    assert "is there already; nothing was written" in again.stderr
