"""What was paid for is on disk before anything else happens: an append-only file of JSON lines that survives kill -9."""

import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from apo_bench.errors import InputError


class Journal:
    """Records by key; the last record of a key counts. One process at a time may hold it open.

    Every line carries a checksum. A line that does not match it (torn by a crash, or damaged since) is left out and counted in
    `n_damaged`: what it said is asked again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_damaged = 0
        self.records: dict[str, dict[str, Any]] = {}
        for line in path.read_bytes().split(b"\n") if path.exists() else ():
            record = _record(line)
            if record is not None:
                self.records[record["key"]] = record
            elif line:
                self.n_damaged += 1
        self._file: int | None = None

    @contextmanager
    def open(self) -> Iterator["Journal"]:
        """Hold the file for appending. Raises InputError, naming it, where another process does."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"{self.path}: another process is writing it") from None
        try:
            self.__init__(self.path)  # what another process has written meanwhile
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            if _ends_torn(self.path):
                os.write(self._file, b"\n")
            yield self
        finally:
            if self._file is not None:
                os.fsync(self._file)
                os.close(self._file)
                self._file = None
            lock.release()

    def add(self, key: str, record: Mapping[str, Any]) -> None:
        """Append a record, JSON-ready, as the last of its key. It is with the operating system before this returns."""
        if self._file is None:
            raise ValueError(f"{self.path}: the journal is not open")
        full = {"key": key, **record}
        text = json.dumps(full, sort_keys=True, ensure_ascii=True)
        line = memoryview(f"{zlib.crc32(text.encode()):08x} {text}\n".encode())
        while line:
            line = line[os.write(self._file, line) :]
        self.records[key] = full


def _record(line: bytes) -> dict[str, Any] | None:
    checksum, _, text = line.partition(b" ")
    if checksum != f"{zlib.crc32(text):08x}".encode():
        return None
    return json.loads(text)


def _ends_torn(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def add_lost(journal: Journal, key: str, usd: float) -> None:
    """Add what an answer that never came may have cost to what the journal has of that question."""
    if usd:
        lost = f"lost.{key}"
        journal.add(lost, {"lost_usd": journal.records.get(lost, {}).get("lost_usd", 0.0) + usd})


def spent_usd(journal: Journal) -> float:
    """What was paid, by the journal, for all answers in it, and may have been for those that were lost on the way."""
    return math.fsum(record.get("cost_usd", 0.0) + record.get("lost_usd", 0.0) for record in journal.records.values())
