"""Hashes of values, files and folders: what artifacts are named by and checked against."""

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any


def digest(value: Any) -> str:
    """A short hash of a JSON-ready value; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()[:24]


def digest_files(paths: Iterable[Path]) -> str:
    """A short hash of files' contents, by name and in order of name."""
    return digest([(path.name, checksum(path)) for path in sorted(paths, key=lambda path: (path.name, str(path)))])


def digest_folder(folder: Path) -> str:
    """A short hash of a model folder's files."""
    return digest([(str(path.relative_to(folder)), checksum(path)) for path in sorted(folder.rglob("*")) if path.is_file()])


@cache
def path_identity(path: str | None) -> str | None:
    """A model folder by its content; a hub id by its name."""
    return digest_folder(Path(path)) if path and Path(path).is_dir() else path


def checksum(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
