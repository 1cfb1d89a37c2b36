"""How long unfinished jobs may take, judged by finished ones. The view of a running run and `apo-bench status` share this estimate."""

from collections.abc import Hashable, Mapping, Sequence
from statistics import median
from typing import TypeVar

Kind = TypeVar("Kind", bound=Hashable)


def remaining_time(
    open_jobs: Sequence[tuple[Kind, float]], finished: Mapping[Kind, Sequence[float]], default: Sequence[float] = ()
) -> tuple[float, int]:
    """Seconds of one process's work that are left, and the number of open jobs of which nothing is known.

    `open_jobs`: (kind, seconds of work so far). Each takes the median of the `finished` durations of its kind, or, where there are none,
    of `default`; with neither it is counted as unknown.
    """
    seconds, unknown = 0.0, 0
    for kind, elapsed in open_jobs:
        durations = finished.get(kind) or default
        if durations:
            seconds += max(0.0, median(durations) - elapsed)
        else:
            unknown += 1
    return seconds, unknown
