"""Writes a report beside the old one and swaps them, so that there is one or the other; a manifest of checksums tells damage."""

import ctypes
import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from apo_bench.analysis.report_files import MANIFEST, listed_files
from apo_bench.hashing import checksum
from apo_bench.store import temporary_name, write_bytes, write_json


def write_report_files(folder: Path, files: Mapping[str, bytes | str]) -> None:
    """Put `files` (by path within `folder`/report) and their manifest, `report.json`, in place of an earlier report.

    What else lies in the folder stays.
    """
    target = folder / "report"
    earlier = {MANIFEST, *listed_files(target)}
    for left_over in folder.glob(".report.tmp-*"):  # of a killed process: the caller holds the lock
        shutil.rmtree(left_over, ignore_errors=True)
    beside = temporary_name(target)
    try:
        checksums = {}
        for name, content in sorted(files.items()):
            data = content if isinstance(content, bytes) else content.encode("utf-8")
            write_bytes(beside / name, data)
            checksums[name] = hashlib.sha256(data).hexdigest()
        write_json(beside / MANIFEST, {"files": checksums})
        for path in sorted(target.rglob("*")):
            name = path.relative_to(target).as_posix()
            if path.is_file() and name not in earlier and not (beside / name).exists():
                (beside / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, beside / name)
        _swap(beside, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _swap(new: Path, old: Path) -> None:
    """Exchange two folders in one step; where the system has none, by two renames. Without an old one the new takes its name."""
    if not old.exists():
        new.rename(old)
        return
    exchange = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, flag = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if exchange is None or exchange(here, os.fsencode(new), here, os.fsencode(old), flag) != 0:
        aside = temporary_name(old)
        old.rename(aside)
        new.rename(old)
        shutil.rmtree(aside, ignore_errors=True)


def report_damage(folder: Path) -> str | None:
    """Why `folder`/report is not a whole report, or None: interrupted before its manifest, or files missing or changed since."""
    target = folder / "report"
    if not (target / MANIFEST).is_file():
        return f"report/{MANIFEST} is missing: the report was interrupted, or never written"
    files = listed_files(target)
    if not files:
        return f"report/{MANIFEST} is not readable"
    for name, expected in files.items():
        if not (target / name).is_file():
            return f"report/{name} is missing"
        if checksum(target / name) != expected:
            return f"report/{name} does not match its checksum"
    return None
