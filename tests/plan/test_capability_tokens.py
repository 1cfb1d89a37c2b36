"""What a plan says of `evaluation.capabilities`."""

import json

import pytest
from tiny_world import tiny_tree

from apo_bench.config.schema import Experiment
from apo_bench.data import capability_tasks
from apo_bench.plan.capability_tokens import capability_note


def experiment(**capabilities: object) -> Experiment:
    tree = tiny_tree()
    tree["evaluation"] |= {"capabilities": capabilities} if capabilities else {}
    return Experiment.model_validate_json(json.dumps(tree))


def test_tokens_of_tasks_without_files_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is opened for it; without lm-eval the note says what to install; without the section there is none."""
    monkeypatch.setattr(capability_tasks, "lacking", lambda: None)
    note = capability_note(experiment(tasks=["gsm8k", "ifeval"]), None)
    assert note == (
        "evaluation.capabilities: gsm8k, ifeval: not all of their data are files of include_path, so they were not read; tokens: unknown"
    )
    monkeypatch.setattr(capability_tasks, "lacking", lambda: "lm-eval is not installed")
    assert capability_note(experiment(tasks=["gsm8k"]), None) == "lm-eval is not installed"
    assert capability_note(experiment(), None) is None


@pytest.mark.slow
def test_tokens_of_local_tasks_are_counted_for_every_policy() -> None:
    """Two arms with two seeds, and the initial policy, are five policies."""
    pytest.importorskip("lm_eval")
    note = capability_note(experiment(tasks=["sim_hh_answers"], include_path="tasks/sim_hh", limit=3), None)
    assert note is not None
    assert note.startswith("evaluation.capabilities: sim_hh_answers: 3 items, about ")
    assert note.endswith(" tokens a policy (4 characters each), at most 5 policies")
