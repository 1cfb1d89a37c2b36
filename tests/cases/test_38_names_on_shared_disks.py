"""Two processes with one number, in two containers on one folder: temporary names differ, and nobody takes one for the other."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from apo_bench import store
from apo_bench.run import status
from apo_bench.run.gc import LEFT_OVER
from apo_bench.run.jobs import this_process
from apo_bench.store import RunStore, temporary_name, write_json, write_text


def test_temporary_names_differ_in_every_call_and_hold_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [temporary_name(tmp_path / "a.json").name for _ in range(100)]
    assert len(set(names)) == 100
    assert {name.split("-")[1] for name in names} == {store.machine()}
    own = store.machine()
    monkeypatch.setattr(store.socket, "gethostname", lambda: "elsewhere")
    assert store.machine() != own
    assert all(LEFT_OVER.fullmatch(name) for name in names)
    assert LEFT_OVER.fullmatch(temporary_name(tmp_path / ("0" * 24)).name)
    assert len(temporary_name(tmp_path / ("x" * 250)).name) < 255


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a full disk."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    write_json(tmp_path / "a.json", {"old": 1})
    with monkeypatch.context() as patch:
        patch.setattr(store.os, "replace", full)
        with pytest.raises(OSError, match="No space"):
            write_text(tmp_path / "a.json", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}


@pytest.mark.parametrize(
    ("differing", "alive"),
    [
        ({}, True),
        ({"pid": 2**22 + 1}, False),
        ({"boot": "another"}, False),
        ({"machine": "another"}, True),
        ({"host": "another", "boot": "another"}, True),
    ],
)
def test_a_process_is_looked_for_only_where_its_number_means_it(differing: Mapping[str, Any], alive: bool) -> None:
    """A number of this boot in another container, or on another host, cannot be looked up; one of an earlier boot is gone."""
    assert status.at_work({**this_process(), **differing}) == alive


def test_what_another_machine_builds_is_not_shown_as_a_process_of_this(tmp_path: Path) -> None:
    store_ = RunStore(tmp_path)
    seen = list[list[str]]()

    def build(folder: Path) -> Mapping[str, float]:
        seen.append(list(status._building(tmp_path)))
        (folder / "a").write_text("a")
        other = folder.with_name(folder.name.replace(store.machine(), "0" * 8))
        other.mkdir()
        seen.append(list(status._building(tmp_path)))
        other.rmdir()
        return {}

    store_.artifact("kind", {"a": 1}, build)
    assert seen == [[f"process {os.getpid()} makes kind"]] * 2
