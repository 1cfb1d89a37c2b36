"""Preregistration: the plan of the first results is kept, and a later change is reported."""

from pathlib import Path

import pytest
from run_folder import experiment, frame, scored, write_run

from apo_bench.analysis import preregistration
from apo_bench.config.schema import Experiment
from apo_bench.errors import InputError
from apo_bench.report.report import write_report


def planned(seeds: list[int], prompts: int | None = 40, stopping: str = "fixed") -> Experiment:
    settings = experiment(seeds=seeds)
    settings["compare"] |= {"stopping": stopping}
    settings["evaluation"] |= {"prompts": prompts}
    return Experiment.model_validate(settings)


def test_the_first_results_fix_the_plan(tmp_path: Path) -> None:
    """Results with seeds 0, 1; then with 0, 1, 2: a change, before and after it is recorded itself; back to the first plan: none."""
    first, more = planned([1, 0]), planned([0, 1, 2])
    assert preregistration.plan_change(tmp_path, first) is None
    preregistration.register_plan(tmp_path, first)
    assert preregistration.plan_change(tmp_path, first) is None
    preregistration.register_plan(tmp_path, first)
    change = preregistration.plan_change(tmp_path, more)
    assert change == {
        "first": {"seeds": [0, 1], "prompts": 40, "stopping": "fixed"}, "now": {"seeds": [0, 1, 2], "prompts": 40, "stopping": "fixed"},
        "seeds_added": [2], "seeds_removed": [],
    }  # fmt: skip
    preregistration.register_plan(tmp_path, more)
    assert preregistration.plan_change(tmp_path, more) == change
    assert preregistration.plan_change(tmp_path, first) is None


def test_removed_seeds_and_other_prompts_are_changes_too(tmp_path: Path) -> None:
    preregistration.register_plan(tmp_path, planned([0, 1, 2], prompts=None))
    change = preregistration.plan_change(tmp_path, planned([0, 1]))
    assert change is not None
    assert preregistration.describe_change(change) == (
        "results were first seen with seeds 0, 1, 2; seeds 2 were removed; the number of prompts was changed from all to 40. "
        "The p-values and intervals below assume that seeds and prompts were fixed in advance."
    )


def test_seeds_may_be_added_where_that_was_declared_from_the_start(tmp_path: Path) -> None:
    first = planned([0, 1], stopping="anytime")
    preregistration.register_plan(tmp_path, first)
    assert preregistration.plan_change(tmp_path, planned([0, 1, 2], stopping="anytime")) is None
    for other in (planned([0], stopping="anytime"), planned([0, 1, 2], prompts=None, stopping="anytime")):
        assert preregistration.plan_change(tmp_path, other) is not None
    change = preregistration.plan_change(tmp_path, planned([0, 1]))
    assert change is not None
    assert "compare.stopping was changed from anytime to fixed" in preregistration.describe_change(change)


def test_a_folder_is_named_by_a_text_too(tmp_path: Path) -> None:
    preregistration.register_plan(str(tmp_path), planned([0]))
    assert preregistration.plan_change(str(tmp_path), planned([0, 1])) == preregistration.plan_change(tmp_path, planned([0, 1]))


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "store" / "preregistration.json"
    path.parent.mkdir()
    for text, problem in (
        ("[", "not readable as JSON"),
        ("null", "not a list of plans"),
        ("{}", "not a list of plans"),
        ("[" * 100_000, "not readable as JSON"),
        ("[{}]", "not a list of plans"),
        ("[1]", "not a list"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=rf"preregistration\.json: {problem}"):
            preregistration.plan_change(tmp_path, planned([0]))


@pytest.mark.slow
def test_the_answer_stands_beside_a_change(tmp_path: Path) -> None:
    scores = scored({(arm, seed, 1): (seed, arm == "apo_rjs", 2) for arm in ("apo_rjs", "golden_refresh", "rjs") for seed in (0, 1, 2)})
    ledger = frame("ledger", [("rjs", 0, "flops", 1.0, float("nan"))])
    preregistration.register_plan(tmp_path / "run", planned([0, 1], prompts=None))
    change = preregistration.plan_change(tmp_path / "run", planned([0, 1, 2], prompts=None))
    (tmp_path / "run" / "store" / "preregistration.json").rename(tmp_path / "preregistration.json")
    folder = write_run(tmp_path / "run", {"scores": scores, "ledger": ledger}, preregistration_change=change)
    answer = write_report(folder).read_text().partition("## Answer")[2].partition("\n## ")[0]
    expected = "**Not as preregistered:** results were first seen with seeds 0, 1; seeds 2 were added after results were seen."
    assert expected in answer
