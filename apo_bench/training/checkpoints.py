"""Checkpoints of a fit, kept in a scratch folder. Only complete ones are resumed from.

A checkpoint is a folder `checkpoint-<updates done>`. Its COMPLETE marker is written last and holds the fit's identity and a checksum of
every file.
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
    """Where a fit saves checkpoints, and after how many seconds of training each; 0: after every update."""

    folder: Path
    every_s: float = math.inf


def checkpoint_after(folder: Path, updates: int) -> Path:
    """The checkpoint after so many updates."""
    return folder / f"{_PREFIX}{updates}"


def updates_at(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(_PREFIX))


def mark_complete(checkpoint: Path, of: str) -> None:
    """Mark a checkpoint of the fit `of` as complete, and remove all others."""
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


def latest_checkpoint(folder: Path, of: str) -> Path | None:
    """The last complete checkpoint of the fit `of`, or None. Invalid ones are reported and removed."""
    for checkpoint in sorted(_all(folder), key=updates_at, reverse=True):
        if (fault := _fault(checkpoint, of)) is None:
            return checkpoint
        print(f"{checkpoint}: {fault}; skipping an invalid checkpoint")
        shutil.rmtree(checkpoint)
    return None


def _all(folder: Path) -> list[Path]:
    return [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdecimal()]


def _fault(checkpoint: Path, of: str) -> str | None:
    """Why a checkpoint is invalid, or None."""
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
    """Flush to disk, so that a marker never outlives the files it vouches for."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
