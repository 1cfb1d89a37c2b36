"""A probe's rates, and what a plan's work takes at them: by hand, and on the tiny experiment."""

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_world import tiny_task, tiny_tree

from apo_bench.config.schema import Experiment
from apo_bench.engines.counting import PlannedArtifact
from apo_bench.plan import probe as probing
from apo_bench.plan.accounts import Work
from apo_bench.plan.probe import Probe, Rate, answer_tokens, probe, timing

KINDS = ("samples", "scores", "reward_models", "policies")


def planned(**work: Work) -> Any:
    return SimpleNamespace(work=work)


def test_time_and_memory_by_hand() -> None:
    """An arm-seed: 2 samplings of 100 tokens in all, 2 x 1 + 100 x 0.5 = 52 s; a fit of 10, 3 + 10 x 2 = 23 s: 75 s, and 9 bytes at most.

    The run: 4 samplings of 200, 104 s, and 40 of scores at 1 s each, and 6 of divergences, which are read like scores: 150 s, by two
    workers 75 s, and a worker takes 5 s to start. Evaluations take no model.
    """
    rates = {"samples": Rate(1, 0.5, 9), "policies": Rate(3, 2, 7), "scores": Rate(0, 1, 8)}
    arm = Work({"samples": 2, "policies": 1}, {"samples": 100, "policies": 10})
    run = Work({"samples": 4, "scores": 9, "kl": 1, "evaluations": 5}, {"samples": 200, "scores": 40, "kl": 6, "evaluations": 0})
    two_workers = timing(planned(arm=arm, _run=run), Probe(rates, 5.0), workers=2)
    assert (two_workers.arm_s, two_workers.arm_bytes) == ({"arm": 75}, {"arm": 9})
    assert (two_workers.run_s, two_workers.run_bytes) == (80, 18)
    alone = timing(planned(arm=arm, _run=run), Probe(rates, 5.0), workers=50)
    assert alone.run_s == 80  # no run is done before its longest arm-seed


def test_what_was_not_measured_is_not_known() -> None:
    """A verb that the arm needs; one without work (an n-gram model counts no FLOPs) is not missed."""
    rates = {"samples": Rate(1, 0.5, 9)}
    needs = Work({"samples": 1, "policies": 1}, {"samples": 100, "policies": 10})
    free = Work({"samples": 1, "scores": 3}, {"samples": 100, "scores": 0})
    times = timing(planned(needs=needs, free=free, _run=needs), Probe(rates, 5.0, ("why",)), workers=1)
    assert math.isnan(times.arm_s["needs"])
    assert math.isnan(times.arm_bytes["needs"])
    assert (times.arm_s["free"], times.arm_bytes["free"]) == (51, 9)
    assert math.isnan(times.run_s)
    assert times.notes == ("why",)


def test_a_rate_by_two_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that a verb moves on: 0.1 s a call and 0.01 s for each 10 units of work. One that takes 5 s for 20 is not tried again."""
    now = 0.0

    def verb(size: int) -> float:
        nonlocal now
        now += 0.1 + 0.01 * size
        return 10.0 * size

    monkeypatch.setattr(probing.time, "monotonic", lambda: now)
    rate = probing._rate(verb, 2, 8)
    assert (rate.call_s, rate.unit_s) == pytest.approx((0.1, 0.001))

    def slow(size: int) -> float:
        nonlocal now
        now += 5.0
        return 10.0 * size

    rate = probing._rate(slow, 2, 8)
    assert (rate.call_s, rate.unit_s) == (0, 0.25)


def test_work_by_hand() -> None:
    samples = [PlannedArtifact("samples", 3.0, 1.0), PlannedArtifact("samples", 5.0, 1.0)]
    artifacts = [*samples, PlannedArtifact("policies", 2.0, 1.0, 1.0)]
    assert Work.of(artifacts, 1 / 2) == Work({"samples": 1, "policies": 0.5}, {"samples": 4, "policies": 1})


@pytest.mark.slow
def test_a_probe_of_the_tiny_experiment() -> None:
    """Every verb has a rate, in a process that takes memory; nothing is said against it. How fast it is, no test can say."""
    experiment = Experiment.model_validate_json(json.dumps(tiny_tree()))
    measured = probe(experiment, tiny_task())
    assert not measured.notes
    assert sorted(measured.rates) == sorted(KINDS)
    for rate in measured.rates.values():
        assert rate.unit_s > 0
        assert rate.call_s >= 0
        assert rate.peak_bytes > 50e6
    assert measured.start_s > 0
    assert answer_tokens(experiment, tiny_task()) is None  # it answers as the task does


@pytest.mark.parametrize("which", ["policy", "reward"])
def test_models_that_are_elsewhere_are_not_probed(which: str) -> None:
    tree = tiny_tree()
    elsewhere = {"path": "nobody/nothing", "training": {"learning_rate": 1e-3}}
    tree["models"][which] = {**elsewhere, **({"sampling": {"max_new_tokens": 9}} if which == "policy" else {"kind": "neural"})}
    experiment = Experiment.model_validate_json(json.dumps(tree))
    measured = probe(experiment, tiny_task())
    assert not measured.rates
    assert measured.notes == (f"time and memory are not known: models.{which} is not on this machine",)
    assert answer_tokens(experiment, tiny_task()) is None


def test_a_model_that_does_not_fit_is_not_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "_free_bytes", lambda: 1.0)
    measured = probe(Experiment.model_validate_json(json.dumps(tiny_tree())), tiny_task())
    assert not measured.rates
    assert "training models.policy takes" in measured.notes[0]
