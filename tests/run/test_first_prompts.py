"""What models read is shown before a run, and stands in its manifest."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chat_families import family_policy
from typer.testing import CliRunner

from apo_bench.cli.main import app
from apo_bench.run.experiment import resolve_experiment
from apo_bench.run.first_prompts import first_prompts, read_first_prompts, write_first_prompts

Tree = dict[str, Any]


def test_text_tokens_and_target(tree: Tree, write_experiment: Callable[[Tree], Path], tmp_path: Path) -> None:
    """The policy reads a prompt and learns the preferred answer; the reward model reads both; an n-gram gold reads words."""
    resolved = resolve_experiment(write_experiment(tree), folder=tmp_path / "run")
    policy, reward = first_prompts(resolved.experiment, resolved.task, resolved.base)
    pair = resolved.task.pairs["rm"][0]
    assert (policy.model, reward.model) == ("models.policy", "models.reward")
    assert policy.tokens == ("<user>", *pair.prompt.messages[0].content.split(), "<assistant>")
    assert policy.target == (*pair.chosen.split(), "<eos>")
    assert policy.text == reward.text == f"<user> {pair.prompt.messages[0].content} <assistant> {pair.chosen} <eos>"
    assert reward.tokens == policy.tokens + policy.target
    assert (policy.end, policy.note) == ("<eos>", "")


def test_another_end_in_the_generation_configuration_is_noted(tree: Tree, write_experiment: Callable[[Tree], Path], tmp_path: Path) -> None:
    policy = tree["models"]["policy"]
    del policy["architecture"], policy["warmup"]
    policy |= {"path": str(family_policy("gemma", tmp_path / "gemma")), "max_prompt_tokens": 99}
    resolved = resolve_experiment(write_experiment(tree), folder=tmp_path / "run")
    shown = next(first_prompts(resolved.experiment, resolved.task, resolved.base))
    assert shown.end == "<end_turn>"
    assert shown.note == "generation_config.json ends at <eos>; sampling stops at both"
    write_first_prompts(tmp_path, resolved.experiment, resolved.task, resolved.base)
    assert read_first_prompts(tmp_path)["models.policy"] == {"text": shown.text, "end": "<end_turn>", "note": shown.note}


def test_a_folder_without_any_has_none(tmp_path: Path) -> None:
    assert read_first_prompts(tmp_path) == {}


def test_show_prompt(tree: Tree, write_experiment: Callable[[Tree], Path]) -> None:
    path = write_experiment(tree)
    result = CliRunner().invoke(app, ["show-prompt", str(path)])
    assert result.exit_code == 0, result.output
    resolved = resolve_experiment(path)
    pair = resolved.task.pairs["rm"][0]
    words = pair.prompt.messages[0].content.split()
    assert result.stdout.startswith(f"models.policy\n  <user> {' '.join(words)} <assistant> ")
    assert f"\n  {len(words) + 2} tokens | {len(pair.chosen.split()) + 1} to learn\n" in result.stdout
    assert '"<assistant>" | "' in " ".join(result.stdout.split())
    assert json.dumps(words[0]) in result.stdout
    assert result.stdout.count("a response ends with <eos>") == 2


def test_a_judge_of_single_responses_is_shown_as_it_is_sent(tree: Tree, write_experiment: Callable[[Tree], Path]) -> None:
    judge = {"kind": "judge", "model": "grader", "base_url": "http://127.0.0.1:9/v1", "api_key_env": None, "template": "overall.v1"}
    tree["models"]["gold"] = [{"name": "grader", "model": judge}]
    path = write_experiment(tree)
    checked, shown = (CliRunner().invoke(app, [command, str(path)]) for command in ("check", "show-prompt"))
    assert (checked.exit_code, shown.exit_code) == (0, 0), checked.output + shown.output
    last = shown.output[shown.output.index("models.gold.0.model  grader") :]
    assert "How good is the response, from 1 to 9?" in last
    assert "note: as it is sent to the server" in last


def test_a_judges_settings_are_checked_before_a_run(tree: Tree, write_experiment: Callable[[Tree], Path]) -> None:
    judge = {"kind": "judge", "model": "grader", "base_url": "http://127.0.0.1:9/v1", "api_key_env": "NO_SUCH_KEY", "scale": [1, 9]}
    tree["models"]["gold"] = [{"name": "grader", "model": judge}]
    lacking = CliRunner().invoke(app, ["check", str(write_experiment(tree))])
    assert lacking.exit_code == 0
    assert "models.gold.0.model.api_key_env: the environment variable NO_SUCH_KEY is not set" in " ".join(lacking.output.split())
    judge["scale"] = [1, 100]
    wrong = CliRunner().invoke(app, ["check", str(write_experiment(tree))])
    assert wrong.exit_code == 2
    assert "models.gold.0.model.scale: above 9 a number may be several tokens" in " ".join(wrong.output.split())
