"""Jobs: what a worker is told, where it leaves word, and what it says of itself."""

import json
import os
import socket
from pathlib import Path

import pytest

from apo_bench.run.jobs import GOLD, INITIAL, Job, ProgressEvent, Report, run_job

HERE = Path("run")


def job(arm: str, seed: int = 0, trial: int | None = None, folder: Path = HERE) -> Job:
    return Job(Path("mine.yaml"), "{}", folder, arm, seed, trial)


@pytest.mark.parametrize(
    ("arm", "seed", "trial", "label", "record"),
    [
        ("rjs", 3, None, "rjs seed 3", "arm_seeds/rjs.3.json"),
        ("rjs", 1000, 0, "tuning rjs, trial 1, seed 1000", "trials/rjs.0.1000.json"),
        (INITIAL, 0, None, "initial policy", None),
        (GOLD, 2, None, "gold seed 2", None),
    ],
)
def test_labels_and_records(arm: str, seed: int, trial: int | None, label: str, record: str | None) -> None:
    assert job(arm, seed, trial).label == label
    if record:
        assert job(arm, seed, trial).record == HERE / "store" / record


def test_no_two_jobs_share_a_record() -> None:
    jobs = [job(arm, seed, trial) for arm in ("a", "b") for seed in (0, 1) for trial in (None, 0, 1)]
    assert len({job.record for job in jobs}) == len(set(jobs)) == len(jobs)


def test_a_failed_job_leaves_word_and_a_finished_one_none(tmp_path: Path) -> None:
    """Its progress file holds what it was doing and why it failed, the process and the machine; of a finished job nothing is left."""
    events: list[ProgressEvent] = []

    def work(job: Job, report: Report) -> str | None:
        report("round 1 done", 12.0, {"flops": 3.0})
        progress = json.loads(job.progress.read_text())
        assert (progress["stage"], progress["rounds"], progress["steps"], progress["pid"]) == ("round 1 done", 1, 1, os.getpid())
        assert (progress["tokens"], progress["used"]) == (12.0, {"flops": 3.0})
        return "no luck" if job.arm == "fails" else None

    good, bad = job("works", folder=tmp_path), job("fails", folder=tmp_path)
    assert run_job(work, good, events.append) is None
    assert not good.progress.exists()
    assert run_job(work, bad, events.append) == "no luck"
    progress = json.loads(bad.progress.read_text())
    assert (progress["stage"], progress["error"], progress["host"]) == ("failed", "no luck", socket.gethostname())
    assert events == [ProgressEvent("starting"), ProgressEvent("round 1 done", 12.0, {"flops": 3.0})] * 2
