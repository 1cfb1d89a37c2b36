"""Preregistrations: what is frozen, what counts as a deviation, and what a run's report says of it."""

import json
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from command_line import write_experiment
from tiny_world import smallest_tree

from apo_bench.errors import InputError
from apo_bench.run import run_experiment
from apo_bench.run.experiment import ResolvedExperiment, resolve_experiment
from apo_bench.run.preregister import (
    compare_with_preregistration,
    deviations,
    leading_comment,
    preregister,
    preregistration_file,
    read_preregistration,
)

DAY = date(2026, 1, 31)


def resolved(folder: Path, tree: dict[str, Any]) -> ResolvedExperiment:
    return resolve_experiment(write_experiment(folder, tree), folder=folder / "run")


def test_the_comment_at_the_top_is_the_question() -> None:
    text = "# apo-bench run experiments/x.yaml\n#\n# Does it help,\n# and whom?\nname: x\n# not this\n"
    assert leading_comment(text) == "Does it help, and whom?"
    assert leading_comment("name: x\n") == ""


def test_what_is_frozen_is_read_back_and_nothing_deviates(tmp_path: Path) -> None:
    experiment = resolved(tmp_path, smallest_tree())
    path = preregister(experiment, question="Is rjs better?", today=DAY)
    assert path == preregistration_file(experiment.path) == tmp_path / "tiny.preregistration.json"
    frozen = read_preregistration(path)
    assert [frozen[key] for key in ("question", "primary", "secondary", "seeds", "day")] == [
        "Is rjs better?", ["rjs - best"], [], [0, 1], "2026-01-31",
    ]  # fmt: skip
    assert list(deviations(frozen, experiment)) == []
    with pytest.raises(InputError, match="is there already"):
        preregister(experiment, question="Again?")


def test_an_experiment_without_a_question_or_with_results_is_refused(tmp_path: Path) -> None:
    experiment = resolved(tmp_path, smallest_tree())
    with pytest.raises(InputError, match="says no question; give --question"):
        preregister(experiment)
    (experiment.folder / "report").mkdir(parents=True)
    with pytest.raises(InputError, match="has results already"):
        preregister(experiment, question="Is rjs better?")


def test_each_deviation_is_named_and_free_keys_are_none(tmp_path: Path) -> None:
    """A seed more, another recipe, an arm of its own budget; where it runs and what the report shows is free."""
    frozen = read_preregistration(preregister(resolved(tmp_path, smallest_tree()), question="?", today=DAY))
    tree = smallest_tree()
    tree["seeds"] = [0, 1, 2]
    tree["models"]["policy"]["training"] = tree["models"]["policy"]["training"] | {"learning_rate": 0.5}
    tree["arms"]["best"]["budget"] = {"human_pairs": 8}
    tree["report"] = {"aggregates_only": True}
    tree["executor"] = {"use": "local"}
    lines = list(deviations(frozen, resolved(tmp_path, tree)))
    assert sorted(lines) == [
        "arms.best.budget.human_pairs: null was preregistered, 8.0 was run",
        "arms.best.budget: {} was preregistered, null was run",
        "models.policy.training.learning_rate: 0.01 was preregistered, 0.5 was run",
        "seeds: [0, 1] was preregistered, [0, 1, 2] was run",
    ]


def test_code_data_and_versions_are_compared(tmp_path: Path) -> None:
    experiment = resolved(tmp_path, smallest_tree())
    frozen = read_preregistration(preregister(experiment, question="?", today=DAY))
    other = frozen | {"code": "0", "task": "0", "commit": "abc", "versions": frozen["versions"] | {"torch": "0.1"}}
    data, code, torch = deviations(other, experiment)
    assert data == "the task's data are others"
    assert code.startswith("the code that makes results changed (commit abc, now ")
    assert torch.startswith("torch 0.1 was installed, now ")


def test_a_level_of_what_varies_is_held_against_the_same_level(tmp_path: Path) -> None:
    tree = smallest_tree() | {"vary": {"world": [0, 1], "task.options.label_noise": [0.0, 0.25]}}
    whole = resolved(tmp_path, tree)
    frozen = read_preregistration(preregister(whole, question="?", today=DAY))
    level = {"task.options.world_seed": 1, "task.options.label_noise": 0.25, "vary": {}}
    part = whole.under(json.dumps(level))
    assert list(deviations(frozen, part, {"world": 1, "label_noise": 0.25})) == []
    (line,) = deviations(frozen, part, {"world": 1, "label_noise": 0.0})
    assert line == "task.options.label_noise: 0.0 was preregistered, 0.25 was run"


@pytest.mark.parametrize("damage", [{"seeds": [0, 1, 2]}, {"sha256": "0"}, {"question": None}])
def test_a_file_that_was_changed_afterwards_is_refused(tmp_path: Path, damage: dict[str, Any]) -> None:
    experiment = resolved(tmp_path, smallest_tree())
    path = preregister(experiment, question="?", today=DAY)
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(InputError, match=r"preregistration\.json: sha256: does not fit the content"):
        compare_with_preregistration(experiment)
    path.write_text("[]")
    with pytest.raises(InputError, match=r"preregistration\.json: not a preregistration"):
        compare_with_preregistration(experiment)


def test_the_commit_that_first_has_the_file_is_named(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
        return subprocess.run(["git", "-C", str(tmp_path), *identity, *words], capture_output=True, text=True, check=True).stdout.strip()

    experiment = resolved(tmp_path, smallest_tree())
    path = preregister(experiment, question="?", today=DAY)
    git("init", "-q")
    compared = compare_with_preregistration(experiment)
    assert compared is not None
    assert compared["committed"] is None
    git("add", path.name)
    git("commit", "-qm", "Preregistered")
    compared = compare_with_preregistration(experiment)
    assert compared is not None
    assert compared["committed"]["commit"] == git("rev-parse", "HEAD")
    assert (compared["file"], compared["deviations"]) == ("tiny.preregistration.json", [])


@pytest.mark.slow
def test_the_report_says_as_preregistered_or_lists_the_deviations(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, smallest_tree())
    preregister(resolve_experiment(path, folder=tmp_path / "run"), question="Is rjs better?", today=DAY)
    run_experiment(path, out=tmp_path / "run", workers=1)
    text = (tmp_path / "run" / "report" / "report.md").read_text()
    assert "**As preregistered** on 2026-01-31 in `tiny.preregistration.json`" in text
    assert "Question: Is rjs better?" in text
    run_experiment(path, overrides={"evaluation.prompts": 5}, out=tmp_path / "other", workers=1)
    text = (tmp_path / "other" / "report" / "report.md").read_text()
    assert "**Preregistered, with 1 deviation** on 2026-01-31" in text
    assert "evaluation.prompts: 6 was preregistered, 5 was run" in text
