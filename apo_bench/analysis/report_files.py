"""The files of a report, as its manifest of checksums lists them: a published table is compared with its own when it is read."""

import json
from pathlib import Path

from apo_bench.errors import InputError
from apo_bench.hashing import checksum

MANIFEST = "report.json"  # in the report's folder


def listed_files(report: Path) -> dict[str, str]:
    """The files of a report's folder by its manifest, with their checksums; none where there is no readable manifest."""
    try:
        files = json.loads((report / MANIFEST).read_text(encoding="utf-8"))["files"]
        return {str(name): str(expected) for name, expected in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def check_report_file(report: Path, name: str) -> None:
    """Raises InputError where a file of a report does not match its checksum. Without a manifest nothing is known."""
    expected, path = listed_files(report).get(name), report / name
    if expected is not None and path.is_file() and checksum(path) != expected:
        raise InputError(f"{path}: does not match its checksum in {MANIFEST}, so it is damaged, or was changed; make the report again")
