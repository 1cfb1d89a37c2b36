"""A report that is interrupted while it is written: what lies there is the old one, whole."""

import os
import shutil
from pathlib import Path

import pytest

from apo_bench.report import write
from apo_bench.report.write import report_damage, write_report_files

OLD, NEW = ({"report.md": f"{age}\n", "tables/a.csv": f"{age}\n", f"tables/{age}.csv": "1\n"} for age in ("old", "new"))


def present(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder / "report").as_posix(): path.read_text() for path in (folder / "report").rglob("*") if path.is_file()}


class Killed(BaseException):
    """As a signal would end it, without anything being tidied up."""


@pytest.mark.parametrize("moment", range(6))
def test_whenever_it_is_killed_the_report_is_the_old_or_the_new(moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The moments: before each of four files, at the swap, and after it. A left-over goes with the next report."""
    write_report_files(tmp_path, OLD)
    before, written = present(tmp_path), 0

    def counted(path: Path, data: bytes) -> None:
        nonlocal written
        if written == moment:
            raise Killed
        written += 1
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(write, "write_bytes", counted)
        patch.setattr(write, "write_json", lambda path, value: counted(path, b'{"files": {}}') if moment == 3 else path.write_text("{}"))
        patch.setattr(write.shutil, "rmtree", lambda *given, **how: None)
        if moment == 4:
            patch.setattr(write, "_swap", killed)
        if moment < 5:
            with pytest.raises(Killed):
                write_report_files(tmp_path, NEW)
            assert present(tmp_path) == before
            assert report_damage(tmp_path) is None
    write_report_files(tmp_path, NEW)
    assert {name: text for name, text in present(tmp_path).items() if name != "report.json"} == NEW
    assert report_damage(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


@pytest.mark.parametrize("exchange", [True, False], ids=["one step", "two renames"])
def test_what_a_user_put_beside_it_stays(exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(write.ctypes, "CDLL", lambda *given, **how: object())
    write_report_files(tmp_path, OLD)
    (tmp_path / "report" / "tables" / "mine.txt").write_text("mine")
    write_report_files(tmp_path, NEW)
    assert present(tmp_path)["tables/mine.txt"] == "mine"
    assert "tables/old.csv" not in present(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_the_system_exchanges_folders_in_one_step(tmp_path: Path) -> None:
    """By their inodes: neither name is ever without a folder."""
    if not hasattr(write.ctypes.CDLL(None), "renameat2"):
        pytest.skip("no renameat2")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    inodes = [os.stat(tmp_path / name).st_ino for name in ("a", "b")]
    write._swap(tmp_path / "a", tmp_path / "b")
    assert [os.stat(tmp_path / name).st_ino for name in ("b", "a")] == inodes
    shutil.rmtree(tmp_path / "a")
