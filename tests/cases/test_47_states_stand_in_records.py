"""What failed and what finished stands in the files themselves: a copy that gives all of them other times changes nothing."""

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from apo_bench.run import status
from apo_bench.run.jobs import Job, mark_failed, run_job, seal_of
from apo_bench.store import sealed, write_json, write_text


def job(folder: Path) -> Job:
    return Job(folder / "experiment.yaml", "{}", folder, "rjs", 0)


def finish(job: Job, key: str) -> None:
    write_json(job.record, sealed({"key": key, "rounds": [], "dev_scores": []}))


def states(job: Job, message: str | None = None) -> set[str]:
    """The states that any order of the files' times gives."""
    files = [path for path in (job.record, job.progress, job.log, job.folder / "manifest.json") if path.exists()]
    shown = set[str]()
    for order in itertools.permutations(range(len(files))):
        for path, time in zip(files, order, strict=True):
            os.utime(path, (1e9 + time, 1e9 + time))
        shown.add(status._job_status(job, message, set(), []).state)
    return shown


def work_of(message: str | None, key: str) -> Any:
    def work(job: Job, report: Any) -> str | None:
        if message:
            write_text(job.log, "Traceback\n")
        else:
            finish(job, key)
        return message

    return work


def test_a_success_after_a_failure_is_finished_and_takes_its_log_away(tmp_path: Path) -> None:
    run_job(work_of("ValueError: x", ""), job(tmp_path))
    assert states(job(tmp_path)) == {"failed"}
    run_job(work_of(None, "a"), job(tmp_path))
    assert not job(tmp_path).log.exists()
    assert states(job(tmp_path)) == {"finished"}
    write_text(job(tmp_path).log, "of an earlier version, which kept it\n")
    write_json(tmp_path / "manifest.json", {})
    assert states(job(tmp_path), message="of a run before") == {"finished"}


def test_a_failure_after_a_success_is_failed(tmp_path: Path) -> None:
    """Its record is of an earlier question."""
    run_job(work_of(None, "a"), job(tmp_path))
    run_job(work_of("ValueError: x", ""), job(tmp_path))
    assert states(job(tmp_path)) == {"failed"}
    mark_failed(job(tmp_path), "its process died")
    assert states(job(tmp_path)) == {"failed"}


def test_killed_after_its_record_it_is_finished_and_before_it_is_stopped(tmp_path: Path) -> None:
    """The progress file of a process that is gone: with the record that was there before, and with the one it wrote itself."""
    finish(job(tmp_path), "old")
    gone = {"pid": 2**22 + 1, "stage": "scoring", "before": seal_of(job(tmp_path).record)}
    write_json(job(tmp_path).progress, gone)
    assert states(job(tmp_path)) == {"stopped"}
    finish(job(tmp_path), "new")
    assert states(job(tmp_path)) == {"finished"}


@pytest.mark.parametrize("message", ["of the manifest", None])
def test_without_a_record_the_last_message_counts(message: str | None, tmp_path: Path) -> None:
    write_text(job(tmp_path).log, "Traceback\nValueError: of the log\n")
    write_json(tmp_path / "manifest.json", {})
    assert states(job(tmp_path), message) == {"failed"}
    assert status._job_status(job(tmp_path), message, set(), []).stage == (message or "ValueError: of the log")
    assert json.loads((tmp_path / "manifest.json").read_text()) == {}
