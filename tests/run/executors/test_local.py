"""The local executor: processes that fail, die, are interrupted or lose their parent."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from apo_bench.config.schema import Executor
from apo_bench.engines.worker_slots import FOLDER, idle_workers
from apo_bench.errors import InputError
from apo_bench.run.executors import executor
from apo_bench.run.executors.local import run_all
from apo_bench.run.jobs import Failure, Job, ProgressEvent, Report

pytestmark = pytest.mark.slow

SETTINGS = Executor()
PATIENCE_S = 120


def job(folder: Path, arm: str, seed: int = 0, trial: int | None = None) -> Job:
    return Job(Path("mine.yaml"), "{}", folder, arm, seed, trial)


def play(job: Job, report: Report) -> str | None:
    """Stands for an arm-seed: leaves a file, says what went wrong, breaks, or takes its process with it."""
    report("at work")
    tries = job.folder / f"tries.{job.arm}.{job.seed}"
    tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
    if job.arm == "breaks":
        raise RuntimeError("out of order")
    if job.arm == "fails":
        return f"no luck with seed {job.seed}"
    if job.arm == "dies" or (job.arm == "dies_once" and tries.read_text() == "x"):
        os.kill(os.getpid(), signal.SIGKILL)
    if job.arm == "leaves":
        os._exit(3)
    if job.arm == "waits":
        (job.folder / "waiting").write_text(str(os.getpid()))
        time.sleep(PATIENCE_S)
    (job.folder / job.record.name).write_text(json.dumps(job.trial))
    return None


def test_jobs_that_fail_stop_no_other(tmp_path: Path) -> None:
    """Failures come sorted by arm and seed, whatever the order of the jobs; each job's end is shown, and it is tried once."""
    jobs = [
        job(tmp_path, "fails", 2),
        job(tmp_path, "works", 1),
        job(tmp_path, "breaks"),
        job(tmp_path, "fails", 1),
        job(tmp_path, "works", 1, 4),
    ]
    shown: list[tuple[Job, ProgressEvent]] = []
    assert run_all(jobs, play, 1, SETTINGS, lambda job, event: shown.append((job, event))) == [
        Failure("breaks", 0, "RuntimeError: out of order"),
        Failure("fails", 1, "no luck with seed 1"),
        Failure("fails", 2, "no luck with seed 2"),
    ]
    assert {path.name: json.loads(path.read_text()) for path in tmp_path.glob("*.json")} == {"works.1.json": None, "works.4.1.json": 4}
    assert [(tmp_path / f"tries.{name}").read_text() for name in ("breaks.0", "fails.1", "fails.2")] == ["x"] * 3
    assert {job: event.stage for job, event in shown if event.finished} == dict(
        zip(jobs, ("failed", "done", "failed", "failed", "done"), strict=True)
    )
    assert [event for job, event in shown if job == jobs[1]] == [
        ProgressEvent("starting"),
        ProgressEvent("at work"),
        ProgressEvent("done", finished=True),
    ]
    assert json.loads(jobs[2].progress.read_text())["error"] == "RuntimeError: out of order"


def test_a_job_can_use_workers_that_have_none(tmp_path: Path) -> None:
    """Of three workers with two jobs one is idle, and two once the shorter job is done; the longer waits for that, and has them."""
    assert run_all([job(tmp_path, "longer"), job(tmp_path, "shorter")], count_idle, 3, SETTINGS) == []
    assert [(tmp_path / name).read_text() for name in ("longer", "shorter")] == ["2", "1"]
    assert not Path((tmp_path / "slots").read_text()).exists()


def count_idle(job: Job, report: Report) -> str | None:
    """Stands for an arm-seed that samples: leaves how many workers were idle, and where their locks were."""
    (job.folder / "slots").write_text(os.environ[FOLDER])
    deadline = time.monotonic() + PATIENCE_S
    idle = 0
    while idle < (2 if job.arm == "longer" else 1):
        assert time.monotonic() < deadline
        time.sleep(0.05)
        with idle_workers(9) as environments:
            idle = len(environments)
    (job.folder / job.arm).write_text(str(idle))
    return None


def test_a_dead_worker_is_replaced_and_its_job_run_once_more(tmp_path: Path) -> None:
    """What died once comes through; what dies again is failed, with the signal or status it ended by; the rest go on."""
    jobs = [job(tmp_path, name) for name in ("dies", "dies_once", "leaves", "works")] + [job(tmp_path, "works", 1)]
    assert run_all(jobs, play, 2, SETTINGS) == [
        Failure("dies", 0, "its process died 2 times (killed by SIGKILL; out of memory?)"),
        Failure("leaves", 0, "its process died 2 times (exit status 3)"),
    ]
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["dies_once.0.json", "works.0.json", "works.1.json"]
    assert [(tmp_path / f"tries.{name}.0").read_text() for name in ("dies", "dies_once", "leaves", "works")] == ["xx", "xx", "xx", "x"]
    assert json.loads(jobs[0].progress.read_text())["stage"] == "failed"
    assert not jobs[1].progress.exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_run(tmp_path: Path, how: signal.Signals) -> None:
    """Whichever way the run itself ends, its worker does not go on alone."""
    lines = [
        "import sys; sys.path[:0] = sys.argv[1].split(':')",
        "from pathlib import Path",
        "import test_local as tests",
        "if __name__ == '__main__':",
        "    tests.run_all([tests.job(Path(sys.argv[2]), 'waits')], tests.play, 1, tests.SETTINGS)",
    ]
    script = tmp_path / "run.py"
    script.write_text("\n".join(lines))
    command = [sys.executable, str(script), ":".join(sys.path), str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    pid = int(_appears(tmp_path / "waiting"))
    process.send_signal(how)
    process.communicate(timeout=PATIENCE_S)
    deadline = time.monotonic() + PATIENCE_S / 2
    while _lives(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _appears(path: Path) -> str:
    deadline = time.monotonic() + PATIENCE_S
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return path.read_text()


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1] not in ("Z", "X")
    except OSError:
        return False


def test_an_executor_that_is_none_is_named() -> None:
    with pytest.raises(InputError, match=r"^executor: no executor named 'slurm'; there are: local, ray$"):
        executor("slurm")
    assert executor("local") is run_all
