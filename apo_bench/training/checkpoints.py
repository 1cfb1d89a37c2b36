"""Checkpoints of a fit: kept in a scratch folder, and gone on from only where they are whole.

A checkpoint is a folder `checkpoint-<updates done>`. It counts once its COMPLETE marker is there, which is written last and holds whose
it is and a checksum of every file.
"""

import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from apo_bench.hashing import checksum

COMPLETE = "COMPLETE"
_PREFIX = "checkpoint-"  # as transformers.Trainer names them


@dataclass(frozen=True)
class Checkpoints:
    """Where a fit keeps what it can go on from, and how many seconds of training apart; 0: after every update."""

    folder: Path
    every_s: float = math.inf


def at(folder: Path, updates: int) -> Path:
    """The checkpoint after so many updates."""
    return folder / f"{_PREFIX}{updates}"


def updates_at(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(_PREFIX))


def complete(checkpoint: Path, of: str) -> None:
    """Mark a checkpoint as whole, with `of` naming the fit it belongs to, and remove all others."""
    files = {}
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        _flush(path)
        files[str(path.relative_to(checkpoint))] = checksum(path)
    temporary = checkpoint / f".{COMPLETE}.tmp"
    temporary.write_text(json.dumps({"of": of, "files": files}, indent=1), encoding="utf-8")
    _flush(temporary)
    os.replace(temporary, checkpoint / COMPLETE)
    _flush(checkpoint)
    for other in _all(checkpoint.parent):
        if other != checkpoint:
            shutil.rmtree(other)


def latest(folder: Path, of: str) -> Path | None:
    """The last checkpoint that is whole and belongs to `of`, or None. One that is neither is named, and removed."""
    for checkpoint in sorted(_all(folder), key=updates_at, reverse=True):
        if (fault := _fault(checkpoint, of)) is None:
            return checkpoint
        print(f"{checkpoint}: {fault}; not gone on from")
        shutil.rmtree(checkpoint)
    return None


def _all(folder: Path) -> list[Path]:
    return [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdecimal()]


def _fault(checkpoint: Path, of: str) -> str | None:
    """Why a checkpoint does not count, or None."""
    try:
        marker = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
        owner, files = marker["of"], dict(marker["files"])
    except FileNotFoundError:
        return "not complete"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"unreadable marker ({type(error).__name__})"
    if owner != of:
        return "of another fit"
    for name, expected in files.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if checksum(checkpoint / name) != expected:
            return f"{name} does not match its checksum"
    return None


def _flush(path: Path) -> None:
    """To the disk, so that a marker never outlives what it vouches for."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
