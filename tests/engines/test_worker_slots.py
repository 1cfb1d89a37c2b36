"""Locks of workers: an idle one's device is used by one process at a time, and by none while its worker has a job."""

from pathlib import Path

import pytest
from filelock import FileLock

from apo_bench.engines.worker_slots import FOLDER, hold, idle_workers, open_slots

ENVIRONMENTS = [{"GPU": "0"}, {"GPU": "5"}, {}]


@pytest.fixture
def slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[FileLock]:
    """Those of three workers, as one of their processes sees them."""
    monkeypatch.setenv(FOLDER, str(tmp_path))
    return open_slots(tmp_path, ENVIRONMENTS)


def test_idle_workers_are_those_whose_lock_is_free(slots: list[FileLock]) -> None:
    """At most as many as wanted; another process gets the rest, and all of them once the first is done."""
    assert hold(slots[1])
    assert hold(slots[1])  # it is held already
    with idle_workers(1) as first, idle_workers(9) as second:
        assert (first, second) == (ENVIRONMENTS[:1], ENVIRONMENTS[2:])
        assert not hold(slots[0])
    slots[1].release()
    with idle_workers(0) as none, idle_workers(9) as all_of_them:
        assert (none, all_of_them) == ([], ENVIRONMENTS)
    assert all(map(hold, slots))
    with idle_workers(9) as idle:
        assert idle == []


def test_outside_a_worker_nothing_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    with idle_workers(9) as idle:
        assert idle == []
