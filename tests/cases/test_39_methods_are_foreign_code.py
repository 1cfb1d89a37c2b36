"""A method that ends the process it runs in, by whatever exception: its arm fails in one line, where it is planned as where it is run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from apo_bench.errors import InputError
from apo_bench.plan import arm_spend, match_spend
from apo_bench.run import worker
from apo_bench.run.jobs import Job

ENDS = {"SystemExit": SystemExit(0), "GeneratorExit": GeneratorExit("x"), "ValueError": ValueError("x")}


def method(error: BaseException) -> Any:
    def run(lab: Any) -> None:
        raise error

    return SimpleNamespace(run=run)


@pytest.mark.parametrize("name", ENDS)
def test_a_plan_says_so_and_goes_on(name: str) -> None:
    context: Any = SimpleNamespace(lab=lambda seed, arm: SimpleNamespace(), experiment=SimpleNamespace(seeds=[0]))
    _, message = arm_spend.play(context, "arm", method(ENDS[name]), 0)
    assert message.startswith(f"{name}:")
    with pytest.raises(InputError, match=name):
        match_spend._spending(context, "arm", "flops", method(ENDS[name]))


@pytest.mark.parametrize("name", ENDS)
def test_a_worker_returns_a_line_and_lives_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(job: Job) -> Any:
        raise ENDS[name]

    monkeypatch.setattr(worker, "_experiment", raising)
    job = Job(tmp_path / "experiment.yaml", "{}", tmp_path, "rjs", 0)
    message = worker.work(job, lambda stage, tokens=0.0, used=None: None)
    assert message is not None
    assert message.startswith(f"{name}:")
    assert job.log.is_file()
