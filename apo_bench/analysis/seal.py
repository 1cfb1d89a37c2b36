"""Checksums of the files that a run's results are read from: compared whenever they are read, absent while they are being written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from apo_bench.errors import InputError
from apo_bench.hashing import checksum
from apo_bench.store import write_json

SEAL = Path("store") / "seal.json"
IMPORTED = "imported"  # in the run folder: verdicts from outside, which nothing here makes again


def seal(folder: Path) -> None:
    """Keep checksums of the manifest, the tables and the imported verdicts as they are now."""
    paths = [folder / "manifest.json", *sorted((folder / "tables").glob("*.parquet")), *_imported(folder)]
    write_json(folder / SEAL, {"files": {path.relative_to(folder).as_posix(): checksum(path) for path in paths}})


def break_seal(folder: Path, change: Literal["all", "judges"] = "all") -> None:
    """Say that manifest and tables, or what judges have in them, are about to change: until the next `seal` nothing is read from them."""
    try:
        kept = {name: value for name, value in _files(folder).items() if name.startswith(f"{IMPORTED}/")}
    except InputError:  # then all of it is made anew
        kept = {}
    write_json(folder / SEAL, {"files": kept, "changing": change})


def check_seal(folder: Path, *, repairing: bool = False) -> None:
    """Raise InputError where a file is not as it was sealed, or writing it was interrupted. A folder without a seal is taken as it is.

    `repairing`: for what completes an interrupted change of judges.
    """
    change = _read(folder).get("changing")
    if change and not (repairing and change == "judges"):
        raise InputError(f"{folder}: writing its tables was interrupted, or is under way; run the experiment again, which completes them")
    for name in _files(folder):
        check_file(folder, folder / name)


def check_imported(folder: Path) -> None:
    """Raise InputError for imported verdicts that are not as they were; no run makes them again."""
    for path in _imported(folder):
        check_file(folder, path)


def check_file(folder: Path, path: Path) -> None:
    """Raise InputError where a sealed file of the folder is not as it was."""
    expected = _files(folder).get(path.relative_to(folder).as_posix())
    if expected is None:
        return
    if not path.is_file():
        raise InputError(f"{path}: missing; {_remedy(path)}")
    if checksum(path) != expected:
        raise InputError(f"{path}: does not match its checksum, so it is damaged, or was changed; {_remedy(path)}")


def _remedy(path: Path) -> str:
    is_imported = path.parent.name == IMPORTED
    return "remove it and import the verdicts again" if is_imported else "run the experiment again, which makes it from the store"


def _imported(folder: Path) -> list[Path]:
    return sorted((folder / IMPORTED).glob("*.parquet"))


def _files(folder: Path) -> Mapping[str, str]:
    return _read(folder).get("files") or {}


def _read(folder: Path) -> Mapping[str, Any]:
    path = folder / SEAL
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict) and isinstance(value.get("files"), dict):
            return value
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        pass
    raise InputError(f"{path}: not readable; run the experiment again, which makes it anew")
