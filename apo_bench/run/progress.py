"""The progress of a run on the screen: one live view on a terminal, elsewhere a line for every finished job.

The view has a row per arm with a mark per seed, a line for each running job, and the totals.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from apo_bench.formatting import duration, one_line
from apo_bench.run.jobs import Job, ProgressEvent
from apo_bench.run.remaining_time import remaining_time

WAITING, RUNNING, DONE, FAILED = "·", "▸", "✓", "✗"
WINDOW_S = 30.0  # over which tokens per second are averaged
Show = Callable[[Job, ProgressEvent], None]


@dataclass
class JobProgress:
    """How far a job is. Times are by the view's clock."""

    mark: str = WAITING
    event: ProgressEvent | None = None  # the latest
    started: float = 0.0
    duration_s: float | None = None  # of a finished job


@dataclass
class View:
    """A run's jobs and how far they are, as a rich renderable. `budgets`: arm -> unit -> limit; `now` is the clock."""

    jobs: Sequence[Job]
    budgets: Mapping[str, Mapping[Any, float]]
    workers: int
    now: Callable[[], float] = time.monotonic
    progress: dict[Job, JobProgress] = field(default_factory=dict)
    _tokens: dict[Job, float] = field(default_factory=dict)
    _totals: deque[tuple[float, float]] = field(default_factory=deque)  # (time, tokens of all jobs until then)
    _began: float = 0.0

    def __post_init__(self) -> None:
        self.progress, self._began = {job: JobProgress() for job in self.jobs}, self.now()

    def show(self, job: Job, event: ProgressEvent) -> None:
        """Take in an event of a job."""
        progress, now = self.progress[job], self.now()
        if progress.mark == WAITING:
            progress.started = now
        progress.event = event
        progress.mark = RUNNING if not event.finished else FAILED if event.failed else DONE
        if event.finished:
            progress.duration_s = now - progress.started
        self._tokens[job] = max(self._tokens.get(job, 0.0), event.tokens)
        self._totals.append((now, sum(self._tokens.values())))
        while len(self._totals) > 2 and self._totals[0][0] < now - WINDOW_S:
            self._totals.popleft()

    def tokens_per_s(self) -> float | None:
        """Tokens sampled, scored and trained on per second, over the last half minute; None while nothing is known."""
        if len(self._totals) < 2 or self._totals[-1][0] <= self._totals[0][0]:
            return None
        (early, before), (late, after) = self._totals[0], self._totals[-1]
        return (after - before) / (late - early)

    def left_s(self) -> float | None:
        """Seconds left if each job takes as long as the finished ones of its arm, or of any arm; None before one has finished."""
        finished: dict[str, list[float]] = {}
        for job, progress in self.progress.items():
            if progress.duration_s is not None and progress.mark == DONE and not job.arm.startswith("_"):
                finished.setdefault(job.arm, []).append(progress.duration_s)
        if not finished:
            return None
        open_jobs = [
            (job.arm, self.now() - progress.started if progress.mark == RUNNING else 0.0)
            for job, progress in self.progress.items()
            if progress.mark in (WAITING, RUNNING)
        ]
        seconds, _ = remaining_time(open_jobs, finished, default=[seconds for durations in finished.values() for seconds in durations])
        return seconds / self.workers

    def spent(self, job: Job) -> str:
        """The budget unit of which the arm has used the largest share, with that share."""
        budget = self.budgets.get(job.arm, {})
        used = event.used if (event := self.progress[job].event) else {}
        shares = {unit: used.get(unit, 0.0) / limit for unit, limit in budget.items() if limit > 0}
        if not shares:
            return ""
        unit = max(shares, key=lambda name: shares[name])
        return f"{shares[unit]:.0%} of its {unit}"

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        grid = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for row in dict.fromkeys(_row(job) for job in self.jobs):
            marks = " ".join(progress.mark for job, progress in self.progress.items() if _row(job) == row)
            grid.add_row(Text(row), Text(marks))
        running = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for job, progress in self.progress.items():
            if progress.mark == RUNNING:
                stage = one_line(progress.event.stage) if progress.event else ""
                running.add_row(Text(job.label), Text(stage), Text(self.spent(job)))
        marks = [progress.mark for progress in self.progress.values()]
        done, failed = sum(mark in (DONE, FAILED) for mark in marks), marks.count(FAILED)
        rate, left = self.tokens_per_s(), self.left_s()
        totals = [f"{done} of {len(self.jobs)} done", f"{duration(self.now() - self._began)} so far"]
        totals += [f"about {duration(left)} left"] if left is not None and done < len(self.jobs) else []
        totals += [f"{rate:,.0f} tokens/s"] if rate else []
        totals += [f"{failed} failed"] if failed else []
        return Group(grid, Text(), running, Text(), Text(", ".join(totals)))


def announce(stage: str) -> None:
    """Print what a run does now, a line on stderr."""
    print(one_line(stage), file=sys.stderr, flush=True)


@contextmanager
def live(jobs: Sequence[Job], budgets: Mapping[str, Mapping[Any, float]], workers: int) -> Iterator[Show]:
    """Yields show(job, event): the view on a terminal, elsewhere a line on stderr for every finished job."""
    if not sys.stderr.isatty():
        done = 0

        def print_finished(job: Job, event: ProgressEvent) -> None:
            nonlocal done
            if event.finished:
                done += 1
                print(f"[{done}/{len(jobs)}] {job.label}: {one_line(event.stage)}", file=sys.stderr, flush=True)

        yield print_finished
        return

    from rich.console import Console
    from rich.live import Live

    view = View(jobs, budgets, workers)
    with Live(view, console=Console(stderr=True), refresh_per_second=2):
        yield view.show


def _row(job: Job) -> str:
    """Arms, trials and A/A seeds share a row each; the other jobs have their own."""
    return job.label if job.arm.startswith("_") and job.trial is None and not job.arm.startswith("_aa") else job.arm.removeprefix("_")
