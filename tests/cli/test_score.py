"""`apo-bench score`: from checkpoints and response files to a table with intervals."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from foreign_models import policy_folder
from tiny_world import tiny_task
from typer.testing import CliRunner

from apo_bench.cli.main import app
from apo_bench.cli.score import experiment_tree
from apo_bench.config.load import read_experiment
from apo_bench.data.task import load_task
from apo_bench.errors import InputError
from apo_bench.stats import clustered_mean

OPTIONS: dict[str, Any] = {
    "data": (), "task": "preferences", "golds": (), "judges": (), "initial": None, "base": None, "prompts": None, "max_new_tokens": 8,
    "max_prompt_tokens": 64,
}  # fmt: skip
JUDGE = "{name: sim, use: apo_bench.judging.simulated_judge@SimulatedJudge, seed: 3}"


def tree(*arms: str, **options: Any) -> dict[str, Any]:
    return experiment_tree(arms, **{**OPTIONS, **options})


def test_three_checkpoints_are_an_experiment(tmp_path: Path) -> None:
    """Each is an arm with one seed; the first is compared with the others, these with each other beside it; the file can be read."""
    written = tree("org/one", "two=org/two", "three=org/three", data=[tmp_path / "pairs.jsonl"], golds=["org/reward"], judges=[JUDGE])
    assert list(written["arms"]) == ["one", "two", "three"]
    assert written["arms"]["two"] == {"use": "apo_bench.finished@Finished", "policies": "org/two"}
    assert written["seeds"] == [0]
    assert written["task"] == {"use": "preferences", "options": {"data_files": [str(tmp_path / "pairs.jsonl")]}}
    assert written["models"]["policy"]["path"] == "org/one"
    assert written["models"]["gold"] == [{"name": "gold", "model": {"kind": "pretrained", "path": "org/reward"}}]
    assert written["compare"] == {
        "scorer": "judge/sim",
        "primary": [{"a": "two", "b": "one"}, {"a": "three", "b": "one"}],
        "secondary": [{"a": "three", "b": "two"}],
    }
    path = tmp_path / "score.yaml"
    path.write_text(yaml.safe_dump(written))
    assert read_experiment(path).experiment.judges["sim"].use == "apo_bench.judging.simulated_judge@SimulatedJudge"


def test_several_paths_are_seeds_and_kinds_are_recognised(tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    lora = str(tmp_path / "lora")
    written = tree("a=org/x,org/y", f"{lora},{lora}", "outputs.json,others.jsonl", base="org/base", initial="org/start")
    assert written["seeds"] == [0, 1]
    assert written["arms"]["a"]["policies"] == {"0": "org/x", "1": "org/y"}
    assert written["arms"]["lora"] == {"use": "apo_bench.finished@Finished", "adapters": {"0": lora, "1": lora}, "base": "org/base"}
    assert written["arms"]["outputs"]["responses"] == {"0": "outputs.json", "1": "others.jsonl"}
    assert written["models"]["policy"]["path"] == "org/start"


@pytest.mark.parametrize(
    ("arms", "reason"),
    [
        (["org/one"], "score: one arm, one; give another to compare it with"),
        (["org/one", "other/one"], "score: 'other/one': two arms have this name; give NAME=PATH"),
        (["a=org/one,org/two", "b=org/three"], "score: b: 1 paths, a has 2; each is a seed, and arms have equally many"),
        (["one.json", "two.json"], "score: no whole model among the arms; give --initial, a model to measure KL to"),
    ],
)
def test_what_it_refuses(arms: list[str], reason: str) -> None:
    with pytest.raises(InputError, match=f"^{reason}$"):
        tree(*arms)


@pytest.mark.slow
def test_from_three_checkpoints_and_a_file_to_a_table_with_intervals(tmp_path: Path) -> None:
    """The intervals are those of clustered_mean on the clusters' means; one seed is said to be one; the same command replays."""
    for number, name in enumerate(("base", "first", "second")):
        policy_folder(tmp_path / name, initializer_range=0.2 + 0.05 * number)
    rows = [{"prompt": prompt.messages[0].content, "response": "dry it"} for prompt in tiny_task().prompts["test"]]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = {"prompts_per_cluster": 1, "pairs_per_prompt": 1, "demonstrations_per_cluster": 2}
    arms = [str(tmp_path / name) for name in ("base", "first", "second", "texts.jsonl")]
    command = [
        "score", *arms, "--task", "sim_hh", "--out", str(tmp_path / "out"), "--max-new-tokens", "8", "--max-prompt-tokens", "64",
        "--workers", "1", "--set", f"task.options={json.dumps(small)}",
    ]  # fmt: skip
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, (result.output, result.exception)
    assert "Mean scores; intervals over prompts, of these checkpoints only" in result.stdout
    assert "1 seed" in result.stdout
    frame = pd.read_csv(tmp_path / "out" / "run" / "report" / "tables" / "checkpoints.csv").set_index(["arm", "scorer"])
    scores = pd.read_parquet(tmp_path / "out" / "run" / "tables" / "scores.parquet")
    chosen = scores[(scores["arm"] == "first") & (scores["round"] == 1) & (scores["scorer"] == "gold")]
    by_cluster = chosen.groupby("cluster_id")["value"].mean()
    mean, low, high, clusters = clustered_mean(by_cluster, by_cluster.index)
    assert frame.loc[("first", "gold"), ["mean", "ci_low", "ci_high"]].tolist() == pytest.approx([mean, low, high])
    assert frame.loc[("first", "gold"), "clusters"] == clusters
    assert frame.loc[("texts", "gold"), "unmatched"] == 0
    again = CliRunner().invoke(app, command)
    assert again.stdout == result.stdout
    other = CliRunner().invoke(app, [*command[:3], *command[5:]])
    assert other.exit_code == 2
    assert "another experiment is there; choose another --out" in other.stderr


@pytest.mark.slow
def test_two_checkpoints_on_a_file_of_preferences(tmp_path: Path) -> None:
    """`--data`: the task `preferences` reads the file; both answer its test prompts, and nothing else is in the tables."""
    words = "amber birch cedar dune ember fjord grove heath inlet jetty knoll ledge marsh nook oasis pond quarry ridge shoal tarn".split()
    rows = [
        {"prompt": f"{words[i % 20]} {words[(i // 20 + i) % 20]} {i * 7919 % 1000}?", "chosen": f"good {i}", "rejected": f"no {i}"}
        for i in range(120)
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arms = [str(policy_folder(tmp_path / name, initializer_range=0.2 + 0.05 * place)) for place, name in enumerate(("one", "two"))]
    command = ["score", *arms, "--data", str(data), "--out", str(tmp_path / "out"), "--prompts", "6"]
    result = CliRunner().invoke(app, [*command, "--max-new-tokens", "4", "--max-prompt-tokens", "64", "--workers", "1"])
    assert result.exit_code == 0, (result.output, result.exception)
    task = load_task("preferences", {"data_files": [str(data)]}, base=None)
    texts = {prompt.id: prompt.messages[0].content for prompt in task.prompts["test"]}
    scores = pd.read_parquet(tmp_path / "out" / "run" / "tables" / "scores.parquet")
    assert scores.groupby("arm")["prompt_id"].nunique().to_dict() == {"one": 6, "two": 6}
    assert set(scores["prompt_id"]) <= set(texts)
    assert set(texts.values()) <= {row["prompt"] for row in rows}
    contrasts = pd.read_csv(tmp_path / "out" / "run" / "report" / "tables" / "contrasts.csv")
    primary = contrasts[contrasts["family"] == "primary"]
    assert (primary["arm_a"].tolist(), primary["arm_b"].tolist()) == (["two"], ["one"])
