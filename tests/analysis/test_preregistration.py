"""The peeking rule: what was planned at the first look is kept, and a later change is told."""

from pathlib import Path

import pytest
from run_folder import experiment, frame, scored, write_run

from apo_bench.analysis import preregistration as looks
from apo_bench.config.schema import Experiment
from apo_bench.errors import InputError
from apo_bench.report.report import write_report


def planned(seeds: list[int], prompts: int | None = 40) -> Experiment:
    settings = experiment(seeds=seeds)
    settings["evaluation"] |= {"prompts": prompts}
    return Experiment.model_validate(settings)


def test_a_plan_is_frozen_by_the_first_look(tmp_path: Path) -> None:
    """Looked at with seeds 0, 1; then 0, 1, 2; then back: the second is told of both times it is asked, the first plan never."""
    first, more = planned([1, 0]), planned([0, 1, 2])
    assert looks.changed(tmp_path, first) is None
    looks.record(tmp_path, first)
    assert looks.changed(tmp_path, first) is None
    looks.record(tmp_path, first)
    change = looks.changed(tmp_path, more)
    assert change == {
        "first": {"seeds": [0, 1], "prompts": 40}, "now": {"seeds": [0, 1, 2], "prompts": 40}, "seeds_added": [2], "seeds_removed": [],
    }  # fmt: skip
    looks.record(tmp_path, more)
    assert looks.changed(tmp_path, more) == change
    assert looks.changed(tmp_path, first) is None


def test_taken_out_seeds_and_other_prompts_are_told_too(tmp_path: Path) -> None:
    looks.record(tmp_path, planned([0, 1, 2], prompts=None))
    change = looks.changed(tmp_path, planned([0, 1]))
    assert change is not None
    assert looks.sentence(change) == (
        "results were first seen with seeds 0, 1, 2; seeds 2 were taken out; the number of prompts was changed from all to 40. "
        "The p-values and intervals below take the sizes as planned in advance, which they were not."
    )


def test_a_broken_record_of_looks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "store" / "looks.json"
    path.parent.mkdir()
    for text, problem in (
        ("[", "not readable as JSON"),
        ("null", "not a list of looks"),
        ("{}", "not a list of looks"),
        ("[" * 100_000, "not readable as JSON"),
        ("[{}]", "not a list of looks"),
        ("[1]", "not a list"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=rf"looks\.json: {problem}"):
            looks.changed(tmp_path, planned([0]))


def test_the_report_opens_with_it(tmp_path: Path) -> None:
    scores = scored({(arm, seed, 1): (seed, arm == "apo_rjs", 2) for arm in ("apo_rjs", "golden_refresh", "rjs") for seed in (0, 1, 2)})
    ledger = frame("ledger", [("rjs", 0, "flops", 1.0, float("nan"))])
    looks.record(tmp_path / "run", planned([0, 1], prompts=None))
    change = looks.changed(tmp_path / "run", planned([0, 1, 2], prompts=None))
    (tmp_path / "run" / "store" / "looks.json").rename(tmp_path / "looks.json")
    folder = write_run(tmp_path / "run", {"scores": scores, "ledger": ledger}, changed_after_a_look=change)
    head = write_report(folder).read_text().partition("## Answer")[0]
    assert "**Changed after a look:** results were first seen with seeds 0, 1; seeds 2 were added after that look." in head
