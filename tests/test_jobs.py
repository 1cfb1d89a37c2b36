"""Jobs: what a worker is told, and that one that fails stops no other."""

import json
from pathlib import Path

import pytest

from apo_bench.jobs import GOLD, INITIAL, Job, Report, run_all
from apo_bench.tables import Failure

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
    assert len({one.record for one in jobs}) == len(set(jobs)) == len(jobs)


def play(job: Job, report: Report) -> str | None:
    """Stands for an arm-seed: leaves a file, says what went wrong, or breaks."""
    report("at work")
    if job.arm == "breaks":
        raise RuntimeError("out of order")
    if job.arm == "fails":
        return f"no luck with seed {job.seed}"
    (job.folder / job.record.name).write_text(json.dumps(job.trial))
    return None


def test_jobs_that_fail_stop_no_other(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Failures come sorted by arm and seed, whatever the order of the jobs; each job has its line of progress."""
    jobs = [
        job("fails", 2, folder=tmp_path), job("works", 1, folder=tmp_path), job("breaks", 0, folder=tmp_path),
        job("fails", 1, folder=tmp_path), job("works", 1, 4, folder=tmp_path),
    ]  # fmt: skip
    assert run_all(jobs, play, workers=1) == [
        Failure("breaks", 0, "RuntimeError: out of order"),
        Failure("fails", 1, "no luck with seed 1"),
        Failure("fails", 2, "no luck with seed 2"),
    ]
    assert {path.name: json.loads(path.read_text()) for path in tmp_path.glob("*.json")} == {"works.1.json": None, "works.4.1.json": 4}
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("[")]
    assert [line.partition("] ")[0] for line in lines] == [f"[{number}/5" for number in range(1, 6)]
    assert {line.partition("] ")[2] for line in lines} == {
        "fails seed 2: failed", "works seed 1: done", "breaks seed 0: failed", "fails seed 1: failed",
        "tuning works, trial 5, seed 1: done",
    }  # fmt: skip
