"""A command that executes users' code, in a process of its own: code that ends it, or that never ends, comes to one line."""

import faulthandler
import os
import re
import signal
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import typer

from apo_bench.errors import InputError
from apo_bench.hashing import PACKAGE

ENDED = b"ended"
_PLACE = re.compile(r'File "(.+)", line (\d+) in ')


@contextmanager
def contained(limit_s: float) -> Iterator[None]:
    """Do what follows in a child that has `limit_s` seconds; this process waits and exits as the child does.

    Without forks, and where output is captured in this process, it is done here, without a limit. It must be entered before there are
    threads. Raises InputError, in the process that waits, where the child came to no end of its own.
    """
    if not hasattr(os, "fork") or sys.stdout is not sys.__stdout__:
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    record = TemporaryFile()  # noqa: SIM115 (open until the child is gone)
    if child := os.fork():
        raise typer.Exit(_exit_status(child, record, limit_s))
    faulthandler.dump_traceback_later(limit_s, exit=True, file=record)
    try:
        yield
    finally:
        os.write(record.fileno(), ENDED)


def _exit_status(child: int, record: IO[bytes], limit_s: float) -> int:
    before = signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, number))
    status = None
    while status is None:
        try:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        except KeyboardInterrupt:  # the child was interrupted too, and says so
            continue
    signal.signal(signal.SIGTERM, before)
    record.seek(0)
    left = record.read()
    if b"Timeout" in left:
        raise InputError(f"no end after {limit_s:g} seconds (--time-limit){_place(left.decode('utf-8', 'replace'))}")
    if ENDED in left and status >= 0:
        return status
    how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    raise InputError(f"the process ended in the middle ({how}): code of a method, task or judge may raise, but not exit, or memory ran out")


def _place(traceback: str) -> str:
    """Where users' code was at work, as far as a traceback of all threads knows."""
    ours = (str(PACKAGE), *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")))
    places = [place for place in _PLACE.findall(traceback) if place[0][:1] != "<" and not place[0].startswith(ours)]
    return f"; at work in {Path(places[0][0])}, line {places[0][1]}" if places else ""
