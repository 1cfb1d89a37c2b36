"""What is seen of a run while it works: on a terminal one calm view that stays in place, elsewhere a line for every finished job.

The view has a row an arm with a mark a seed, then a line for each job at work, then the totals.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from apo_bench.formatting import one_line
from apo_bench.run.jobs import Job, Told

WAITING, AT_WORK, DONE, FAILED = "·", "▸", "✓", "✗"
WINDOW_S = 30.0  # that tokens per second are the mean of
Show = Callable[[Job, Told], None]


@dataclass
class Standing:
    """How far a job is."""

    mark: str = WAITING
    told: Told | None = None
    started: float = 0.0
    took_s: float | None = None


@dataclass
class View:
    """A run's jobs and how far they are, as a rich renderable. `budgets`: arm -> unit -> what it may spend; `now` is the clock."""

    jobs: Sequence[Job]
    budgets: Mapping[str, Mapping[Any, float]]
    workers: int
    now: Callable[[], float] = time.monotonic
    standings: dict[Job, Standing] = field(default_factory=dict)
    _tokens: dict[Job, float] = field(default_factory=dict)
    _heard: deque[tuple[float, float]] = field(default_factory=deque)  # (when, tokens of all jobs until then)
    _began: float = 0.0

    def __post_init__(self) -> None:
        self.standings, self._began = {job: Standing() for job in self.jobs}, self.now()

    def show(self, job: Job, told: Told) -> None:
        one, now = self.standings[job], self.now()
        if one.mark == WAITING:
            one.started = now
        one.told = told
        one.mark = AT_WORK if not told.finished else FAILED if told.failed else DONE
        if told.finished:
            one.took_s = now - one.started
        self._tokens[job] = max(self._tokens.get(job, 0.0), told.tokens)
        self._heard.append((now, sum(self._tokens.values())))
        while len(self._heard) > 2 and self._heard[0][0] < now - WINDOW_S:
            self._heard.popleft()

    def tokens_per_s(self) -> float | None:
        """Tokens sampled, scored and trained on, over the last half minute; None while nothing is known."""
        if len(self._heard) < 2 or self._heard[-1][0] <= self._heard[0][0]:
            return None
        (early, before), (late, after) = self._heard[0], self._heard[-1]
        return (after - before) / (late - early)

    def left_s(self) -> float | None:
        """Seconds left if each job takes as long as the finished ones of its arm did, or of all arms; None before there is one."""
        took: dict[str, list[float]] = {}
        for job, one in self.standings.items():
            if one.took_s is not None and one.mark == DONE and not job.arm.startswith("_"):
                took.setdefault(job.arm, []).append(one.took_s)
        if not took:
            return None
        of_any = mean(seconds for many in took.values() for seconds in many)
        left = 0.0
        for job, one in self.standings.items():
            whole = mean(took.get(job.arm, [of_any]))
            left += whole if one.mark == WAITING else max(0.0, whole - (self.now() - one.started)) if one.mark == AT_WORK else 0.0
        return left / self.workers

    def spent(self, job: Job) -> str:
        """Of the units that the arm has a budget in, the one it has used the largest share of."""
        budget = self.budgets.get(job.arm, {})
        used = told.used if (told := self.standings[job].told) else {}
        shares = {unit: used.get(unit, 0.0) / most for unit, most in budget.items() if most > 0}
        if not shares:
            return ""
        unit = max(shares, key=lambda one: shares[one])
        return f"{shares[unit]:.0%} of its {unit}"

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        grid = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for arm in dict.fromkeys(_row(job) for job in self.jobs):
            marks = " ".join(one.mark for job, one in self.standings.items() if _row(job) == arm)
            grid.add_row(Text(arm), Text(marks))
        working = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for job, one in self.standings.items():
            if one.mark == AT_WORK:
                working.add_row(Text(job.label), Text(one_line(one.told.stage) if one.told else ""), Text(self.spent(job)))
        done = sum(one.mark in (DONE, FAILED) for one in self.standings.values())
        rate, left = self.tokens_per_s(), self.left_s()
        parts = [f"{done} of {len(self.jobs)} done", f"{duration(self.now() - self._began)} so far"]
        parts += [f"about {duration(left)} left"] if left is not None and done < len(self.jobs) else []
        parts += [f"{rate:,.0f} tokens/s"] if rate else []
        if failed := sum(one.mark == FAILED for one in self.standings.values()):
            parts.append(f"{failed} failed")
        return Group(grid, Text(), working, Text(), Text(", ".join(parts)))


@contextmanager
def live(jobs: Sequence[Job], budgets: Mapping[str, Mapping[Any, float]], workers: int) -> Iterator[Show]:
    """show(job, told): the view on a terminal; a line for every finished job elsewhere."""
    if not sys.stderr.isatty():
        done = 0

        def line(job: Job, told: Told) -> None:
            nonlocal done
            if told.finished:
                done += 1
                print(f"[{done}/{len(jobs)}] {job.label}: {one_line(told.stage)}", file=sys.stderr, flush=True)

        yield line
        return

    from rich.console import Console
    from rich.live import Live

    view = View(jobs, budgets, workers)
    with Live(view, console=Console(stderr=True), refresh_per_second=2):
        yield view.show


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _row(job: Job) -> str:
    return job.label if job.arm.startswith("_") and job.trial is None and not job.arm.startswith("_aa") else job.arm.removeprefix("_")
