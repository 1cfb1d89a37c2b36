"""Artifacts: computed once, whole or absent, and noticed when damaged."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from apo_bench.hashing import digest
from apo_bench.store import RunStore, scratch_of, write_text


def build_value(value: str, calls: list[str]):
    def build(folder: Path):
        calls.append(value)
        (folder / "value.txt").write_text(value)
        (folder / "deep").mkdir()
        (folder / "deep" / "more.txt").write_text(value * 2)
        return {"flops": 3}

    return build


def test_equal_inputs_are_computed_once_and_charge_the_same_counts(tmp_path: Path):
    calls: list[str] = []
    first = RunStore(tmp_path).artifact("things", {"a": 1, "b": [2]}, build_value("x", calls))
    again = RunStore(tmp_path).artifact("things", {"b": [2], "a": 1}, build_value("y", calls))
    other = RunStore(tmp_path).artifact("things", {"a": 1, "b": [3]}, build_value("z", calls))
    assert calls == ["x", "z"]
    assert first == again
    assert again.counts == {"flops": 3.0}
    assert other.key != first.key


def test_a_failed_build_leaves_nothing(tmp_path: Path):
    def fails(folder: Path):
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    store = RunStore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        store.artifact("things", {}, fails)
    assert [path for path in (tmp_path / "store" / "things").iterdir() if not path.name.endswith(".lock")] == []
    calls: list[str] = []
    store.artifact("things", {}, build_value("x", calls))
    assert calls == ["x"]


@pytest.mark.slow
def test_a_killed_build_is_swept_up_and_done_again(tmp_path: Path):
    """A process killed in the middle of a build cannot tidy up; the next one to hold the lock does."""
    script = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from apo_bench.store import RunStore
        def build(folder):
            (folder / "half.txt").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        RunStore(Path(sys.argv[1])).artifact("things", {}, build)
    """)
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == -9
    assert any(".tmp" in path.name for path in (tmp_path / "store" / "things").iterdir())
    artifact = RunStore(tmp_path).artifact("things", {}, build_value("x", []))
    assert not any(".tmp" in path.name for path in artifact.folder.parent.iterdir())
    assert sorted(path.name for path in artifact.folder.iterdir()) == ["deep", "manifest.json", "timing.json", "value.txt"]


def test_what_a_build_keeps_lasts_until_the_artifact_is_whole(tmp_path: Path):
    """Two tries that fail, one after the other, and a third that finds what both kept; another artifact's is another folder."""
    files_seen: list[list[str]] = []

    def build(folder: Path):
        scratch = scratch_of(folder)
        scratch.mkdir(exist_ok=True)
        files_seen.append(sorted(path.name for path in scratch.iterdir()))
        (scratch / str(len(files_seen))).write_text("kept")
        if len(files_seen) < 3:
            raise KeyboardInterrupt
        return {}

    store = RunStore(tmp_path)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            store.artifact("things", {}, build)
    artifact = store.artifact("things", {}, build)
    assert files_seen == [[], ["1"], ["1", "2"]]
    assert scratch_of(artifact.folder).parent == artifact.folder.parent
    assert not scratch_of(artifact.folder).exists()
    assert scratch_of(artifact.folder) != scratch_of(store.artifact("things", {"a": 1}, build_value("x", [])).folder)


def test_what_was_kept_goes_also_after_a_kill_between_renaming_and_removing(tmp_path: Path):
    artifact = RunStore(tmp_path).artifact("things", {}, build_value("x", []))
    scratch_of(artifact.folder).mkdir()
    RunStore(tmp_path).artifact("things", {}, build_value("x", []))
    assert not scratch_of(artifact.folder).exists()


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_damage_is_named_moved_aside_and_recomputed(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]):
    artifact = RunStore(tmp_path).artifact("things", {}, build_value("value", []))
    victim = artifact.folder / ("manifest.json" if damage == "manifest" else "deep/more.txt")
    if damage == "remove":
        victim.unlink()
    else:
        victim.write_text({"flip": "valuevaluf", "truncate": "value", "manifest": "{"}[damage])
    calls: list[str] = []
    repaired = RunStore(tmp_path).artifact("things", {}, build_value("value", calls))
    assert calls == ["value"]
    assert (repaired.folder / "deep" / "more.txt").read_text() == "valuevalue"
    assert ("more.txt" if damage != "manifest" else "manifest") in capsys.readouterr().out
    assert (artifact.folder.parent / f"{artifact.key}.damaged").is_dir()


@pytest.mark.slow
def test_two_processes_compute_one_artifact_once(tmp_path: Path):
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from apo_bench.store import RunStore
        def build(folder):
            (folder / "value.txt").write_text("x")
            with open(Path(sys.argv[1]) / "calls", "a") as calls:
                calls.write("built\\n")
            time.sleep(0.3)
            return {}
        RunStore(Path(sys.argv[1])).artifact("things", {}, build)
    """)
    both = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert (tmp_path / "calls").read_text() == "built\n"


def test_the_manifest_says_where_an_artifact_comes_from(tmp_path: Path):
    artifact = RunStore(tmp_path).artifact("things", {"seed": 3}, build_value("x", []))
    manifest = json.loads((artifact.folder / "manifest.json").read_text())
    assert manifest["inputs"] == {"seed": 3}
    assert manifest["versions"]["torch"]
    assert set(manifest["files"]) == {"value.txt", "deep/more.txt"}
    assert "commit" in manifest


def test_a_digest_knows_order_of_lists_but_not_of_keys():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest([1, 2]) != digest([2, 1])
    with pytest.raises(ValueError, match="JSON"):
        digest(float("nan"))


def test_a_file_is_replaced_whole(tmp_path: Path):
    write_text(tmp_path / "a" / "b.txt", "one")
    write_text(tmp_path / "a" / "b.txt", "two")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]
