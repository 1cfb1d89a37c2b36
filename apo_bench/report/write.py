"""Writes the files of a report so that an interrupted or damaged one is noticed: each file whole, and a manifest of checksums last."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from apo_bench.hashing import checksum
from apo_bench.store import write_bytes, write_json

MANIFEST = "report.json"


def write_report_files(folder: Path, files: Mapping[str, bytes | str]) -> None:
    """Write `files` (by path within `folder`/report) and then their manifest, `report.json`.

    The old manifest goes first, so an interrupted report has none; files that only the old one lists are removed last.
    """
    target = folder / "report"
    earlier = set(_listed(target))
    (target / MANIFEST).unlink(missing_ok=True)
    checksums = {}
    for name, content in sorted(files.items()):
        data = content if isinstance(content, bytes) else content.encode("utf-8")
        write_bytes(target / name, data)
        checksums[name] = hashlib.sha256(data).hexdigest()
    for path in sorted(target.rglob("*")):
        if path.is_file() and path.relative_to(target).as_posix() in earlier - set(files):
            path.unlink()
    write_json(target / MANIFEST, {"files": checksums})


def report_damage(folder: Path) -> str | None:
    """Why `folder`/report is not a whole report, or None: interrupted before its manifest, or files missing or changed since."""
    target = folder / "report"
    if not (target / MANIFEST).is_file():
        return f"report/{MANIFEST} is missing: the report was interrupted, or never written"
    files = _listed(target)
    if not files:
        return f"report/{MANIFEST} is not readable"
    for name, expected in files.items():
        if not (target / name).is_file():
            return f"report/{name} is missing"
        if checksum(target / name) != expected:
            return f"report/{name} does not match its checksum"
    return None


def _listed(target: Path) -> dict[str, str]:
    """The files of a report by its manifest, with their checksums; none where there is no readable manifest."""
    try:
        files = json.loads((target / MANIFEST).read_text(encoding="utf-8"))["files"]
        return {str(name): str(expected) for name, expected in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
