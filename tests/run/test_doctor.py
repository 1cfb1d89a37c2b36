"""What is installed, and what an experiment lacks: every kind of need once, here and absent."""

import socket
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from apo_bench.cli.main import app
from apo_bench.config.load import read_experiment
from apo_bench.run import doctor
from apo_bench.run.doctor import EXTRAS, Need, extras, machine, missing, needs

Tree = dict[str, Any]
Write = Callable[[Tree], Path]
GPT = {"use": "apo_bench.judging.chat_judge@ChatJudge", "model": "m", "base_url": "http://127.0.0.1:9", "api_key_env": "NO_SUCH_KEY"}


def test_extras_are_those_of_the_project() -> None:
    """But for `dev`; a requirement's name ends where its version begins."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {name: tuple(line.partition(">")[0] for line in lines) for name, lines in project["optional-dependencies"].items()}
    del declared["dev"]
    assert dict(EXTRAS) == declared


def test_what_is_not_installed_names_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: {"trl": "1.16.0", "peft": "0.21"}.get(name))
    rows = dict(extras())
    assert (rows["trl"], rows["quantize"]) == ("trl 1.16.0", "not installed; pip install 'apo-bench[quantize]'")


def test_the_machine_has_a_python_and_cores() -> None:
    rows = dict(machine())
    assert {"apo-bench", "python", "torch", "transformers", "cores", "GPUs"} <= set(rows)
    assert "vllm" not in rows or rows["vllm"]


def test_the_smallest_experiment_lacks_nothing_it_names(tree: Tree, write_experiment: Write) -> None:
    assert needs(read_experiment(write_experiment(tree))) == [Need("models.reward", "extra peft", "ok")]


def test_every_kind_of_need(tree: Tree, write_experiment: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One each: an extra, an imported model, a folder, a file, a key, a server, a python of a sampling engine."""
    monkeypatch.setattr(doctor, "version", lambda name: None)
    monkeypatch.setenv("APO_BENCH_MODELS", str(tmp_path / "models"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    policy = tree["models"]["policy"]
    del policy["architecture"], policy["warmup"]
    policy |= {"path": "smolm2", "sampling": {"max_new_tokens": 16, "engine": {"python": "./absent/python"}}}
    tree["models"]["gold"] = [
        {"name": "chat", "model": {"kind": "judge", **{key: GPT[key] for key in ("model", "base_url", "api_key_env")}}}
    ]
    tree["task"] = {"use": "preferences", "options": {"data_files": ["absent.jsonl"]}}
    tree["judges"] = {"gpt": GPT, "own": {"use": "apo_bench.judging.local_judge@LocalJudge", "path": "./absent"}}
    tree |= {"executor": "ray", "trackers": ["wandb"]}
    tree["evaluation"]["prompt_sets"] = [{"name": "asked", "data_files": ["here.jsonl"]}]
    path = write_experiment(tree)
    (path.parent / "here.jsonl").write_text("{}\n")
    rows = {(need.key, need.what): need for need in needs(read_experiment(path))}
    states = {key: need.state for key, need in rows.items()}
    assert states == {
        ("models.reward", "extra peft"): "missing",
        ("models.gold.0.model", "extra judge"): "missing",
        ("judges.gpt", "extra judge"): "missing",
        ("executor", "extra ray"): "missing",
        ("trackers", "extra wandb"): "missing",
        ("models.policy.sampling.engine", "./absent/python"): "missing",
        ("models.policy.path", "smolm2"): "to download",
        ("judges.own.path", "./absent"): "missing",
        ("task.options.data_files", "absent.jsonl"): "missing",
        ("evaluation.prompt_sets.asked.data_files", "here.jsonl"): "ok",
        ("models.gold.0.model.api_key_env", "NO_SUCH_KEY"): "missing",
        ("judges.gpt.api_key_env", "NO_SUCH_KEY"): "missing",
        ("models.gold.0.model.base_url", "http://127.0.0.1:9"): "not asked",
        ("judges.gpt.base_url", "http://127.0.0.1:9"): "not asked",
    }
    assert rows["models.policy.path", "smolm2"].detail == "taken for a hub id; did you mean 'smollm2'?"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("NO_SUCH_KEY", "secret")
    again = {(need.key, need.what): need for need in needs(read_experiment(path))}
    assert again["models.policy.path", "smolm2"].state == "missing"
    assert again["judges.gpt.api_key_env", "NO_SUCH_KEY"].state == "ok"
    assert not any("secret" in str(need) for need in again.values())


def test_a_server_is_connected_to_only_where_that_is_wanted(tree: Tree, write_experiment: Write) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        tree["judges"] = {"gpt": {**GPT, "base_url": f"http://127.0.0.1:{server.getsockname()[1]}/v1", "api_key_env": None}}
        file = read_experiment(write_experiment(tree))
        states = [[need.state for need in needs(file, ask_servers=ask) if need.key == "judges.gpt.base_url"] for ask in (False, True)]
    assert states == [["not asked"], ["ok"]]
    assert [need.key for need in missing(needs(file, ask_servers=True))] == ["judges.gpt.base_url"]


@pytest.mark.slow
def test_the_command_ends_with_1_where_something_is_missing(tree: Tree, write_experiment: Write) -> None:
    runner, path = CliRunner(), write_experiment(tree)
    alone = runner.invoke(app, ["doctor"])
    assert (alone.exit_code, "Extras" in alone.stdout) == (0, True)
    whole = runner.invoke(app, ["doctor", str(path)])
    assert whole.exit_code == 0, whole.output
    assert whole.stdout.splitlines()[-1] == f"nothing is missing for {path}"
    tree["judges"] = {"gpt": GPT}
    tree["arms"]["rjs"]["use"] = "absent.py@Absent"
    lacking = runner.invoke(app, ["doctor", str(write_experiment(tree))])
    assert lacking.exit_code == 2  # a method's file is a part of the experiment, not of the machine
    assert "no such file beside the experiment" in lacking.stderr
    tree["arms"]["rjs"]["use"] = "baselines/rejection_sampling.py@RejectionSampling"
    lacking = runner.invoke(app, ["doctor", str(write_experiment(tree))])
    assert lacking.exit_code == 1, lacking.output
    assert lacking.stderr == "missing: judges.gpt.api_key_env: NO_SUCH_KEY: a variable of the environment\n"
