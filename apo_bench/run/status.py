"""The state of a run folder, read from its files alone: while a run is at work, after it has ended, or after it was killed.

A worker reports in `store/progress/<name of its record>.json`: {"stage": str, "pid": int} and, where it counts them, "steps", "rounds"
(ints) and "error" (str, once it has failed). It removes the file when its record is written. A run writes the stage "waiting", under its
own pid, before it starts its workers.
"""

import json
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from apo_bench.config.load import load_experiment
from apo_bench.config.schema import Experiment
from apo_bench.errors import InputError
from apo_bench.formatting import duration, one_line, visible
from apo_bench.report.write import report_damage
from apo_bench.run.jobs import GOLD, INITIAL, Job
from apo_bench.run.records import control_jobs
from apo_bench.run.remaining_time import remaining_time
from apo_bench.store import boot, machine

State = Literal["finished", "running", "waiting", "stopped", "failed", "not started"]
ReportState = Literal["up to date", "none yet", "out of date"]
WAITING = "waiting"
LOG_LINES = 4  # of a failure, shown
_KEY = re.compile(r"[0-9a-f]{24}")
_TEMPORARY = re.compile(r"\.[0-9a-f]{24}\.tmp-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}")


@dataclass(frozen=True)
class JobStatus:
    """The state of an arm-seed, of a tuning trial, or of a job that all arms share. None: not known."""

    arm: str
    seed: int
    trial: int | None
    state: State
    stage: str = ""  # the current stage, the last one before it stopped, or the error message
    pid: int | None = None
    rounds: int | None = None  # finished
    steps: int | None = None  # stages begun
    artifacts: int | None = None  # in the store, named by its record
    work_s: float | None = None  # of a finished job: making its artifacts and evaluating its rounds, in one process
    log: tuple[str, ...] = ()

    @property
    def is_shared(self) -> bool:
        """Whether all arms share its result: the gold models and the initial policy."""
        return self.arm in (GOLD, INITIAL)

    @property
    def to_do(self) -> bool:
        """Whether a resumed run would still have to run it; a failed job is not repeated."""
        return self.state not in ("finished", "failed") and not self.is_shared


@dataclass(frozen=True)
class JudgeAnswers:
    """What a judge's journal holds, under any settings. `unanswered`: questions left over when it was last asked; None: not known."""

    name: str
    answers: int
    undecided: int  # of the answers: without a clear verdict
    damaged_lines: int
    unanswered: int | None


@dataclass(frozen=True)
class Status:
    """The state of a run folder's jobs, judges and report."""

    folder: Path
    jobs: tuple[JobStatus, ...]
    judges: tuple[JudgeAnswers, ...]
    report: ReportState  # whether tables and report follow from these records, this experiment file and the present code
    building: tuple[str, ...]  # artifacts that a live process is making
    unreadable: tuple[str, ...]  # files that cannot be read
    report_damage: str | None = None  # why an existing report is not complete

    @property
    def workers(self) -> int:
        """Processes that are running a job."""
        return len({job.pid for job in self.jobs if job.state == "running"})

    @property
    def busy(self) -> tuple[JobStatus, ...]:
        """Jobs that a live run is working on or has queued."""
        return tuple(job for job in self.jobs if job.state in ("running", "waiting"))


def read_status(folder: Path) -> Status:
    """The state of a run folder. Raises InputError where it is none, or its experiment cannot be read."""
    if not (folder / "experiment.yaml").is_file():
        raise InputError(f"{folder}: not a run folder (no experiment.yaml)")
    experiment = load_experiment(folder / "experiment.yaml")
    unreadable: list[str] = []
    manifest = _read(folder / "manifest.json", unreadable) or {}
    present = set(artifacts(folder))
    statuses = (_job_status(job, _error_message(manifest, job), present, unreadable) for job in all_jobs(folder, experiment))
    jobs = [job for job in statuses if not job.is_shared or job.state != "not started"]
    report = _report_state(folder, experiment, manifest, jobs)
    damage = report_damage(folder) if (folder / "report").is_dir() else None
    judges, building = tuple(_judges(folder, experiment, manifest)), tuple(_building(folder))
    return Status(folder, tuple(jobs), judges, report, building, tuple(unreadable), damage)


def all_jobs(folder: Path, experiment: Experiment) -> Iterator[Job]:
    """Every job of the experiment, in the order in which a run would start them."""
    template = Job(folder / "experiment.yaml", "{}", folder, INITIAL, 0)
    yield template
    yield from (replace(template, arm=GOLD, seed=seed) for seed in sorted({seed for gold in experiment.models.gold for seed in gold.seeds}))
    if tune := experiment.tune:
        for arm in tune.grids:
            for trial in range(tune.trials):
                yield from (replace(template, arm=arm, seed=seed, trial=trial) for seed in tune.seeds)
    for arm in experiment.arms:
        yield from (replace(template, arm=arm, seed=seed) for seed in experiment.seeds)
    yield from control_jobs(template, experiment)


def artifacts(folder: Path) -> dict[str, Path]:
    """The finished artifacts of a run folder, by key; they may be damaged."""
    return {path.name: path for path in sorted((folder / "store").glob("*/*")) if _KEY.fullmatch(path.name) and path.is_dir()}


def strings_in(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys of mappings too: records and manifests name artifacts by key in many places."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from (key, *strings_in(inner))
    elif isinstance(value, list):
        for inner in value:
            yield from strings_in(inner)


def time_left(jobs: Sequence[JobStatus]) -> tuple[float, int]:
    """Seconds of one process's work on the jobs still to do, and how many of them have no finished job of their arm to go by.

    Running jobs count in full, failed ones not at all.
    """
    finished: dict[tuple[str, bool], list[float]] = {}
    for job in jobs:
        if job.work_s is not None:
            finished.setdefault((job.arm, job.trial is None), []).append(job.work_s)
    return remaining_time([((job.arm, job.trial is None), 0.0) for job in jobs if job.to_do], finished)


def tables(status: Status) -> list[Any]:
    """The status as rich tables and lines, at most 100 columns wide: arms, judges, failures, the report, the time left."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    arms = Table("arm", "seeds", "state", "rounds", "artifacts", "work", box=SIMPLE_HEAD, padding=(0, 1), title=str(status.folder))
    for (arm, state, stage, rounds, steps), group in groupby(status.jobs, key=_row):
        jobs = list(group)
        seeds = ", ".join(dict.fromkeys(str(job.seed) for job in jobs))
        work = _span([job.work_s for job in jobs], duration)
        text = f"{state}: {one_line(stage)}" if stage and state != "failed" else state  # the error is shown below
        text += f" (step {steps})" if steps and state != "failed" else ""
        arms.add_row(arm, seeds, text, "-" if rounds is None else str(rounds), _span([job.artifacts for job in jobs], str), work)
    shown: list[Any] = [arms]
    if status.judges:
        judges = Table("judge", "answers", "without a verdict", "unanswered", box=SIMPLE_HEAD, padding=(0, 1))
        for judge in status.judges:
            damaged = f" (and {judge.damaged_lines} damaged lines)" if judge.damaged_lines else ""
            unanswered = "-" if judge.unanswered is None else str(judge.unanswered)
            judges.add_row(judge.name, f"{judge.answers}{damaged}", str(judge.undecided), unanswered)
        shown.append(judges)
    for job in status.jobs:
        if job.state == "failed":
            first = f"failed: {_name(job)}, seed {job.seed}: {one_line(job.stage)}"
            shown.append("\n".join([first, *(f"    {visible(line)}" for line in job.log)]))
    if status.building and not status.workers:
        shown.append(f"at work: {', '.join(status.building)}; for which arm is not on disk")
    shown += [f"unreadable: {one_line(path)}" for path in status.unreadable]
    damage = f" ({status.report_damage})" if status.report_damage else ""
    return [*shown, f"tables and report: {status.report}{damage}", f"time left: {_time_left_text(status)}"]


# --- one job ------------------------------------------------------------------------------------------------------------------


def _job_status(job: Job, message: str | None, present: set[str], unreadable: list[str]) -> JobStatus:
    """By its progress, unless its record came after that; else by its record, an error in the manifest, or a traceback in its log.

    What came after what stands in these files: a progress names the record that was there when it began.
    """
    place = (job.arm, job.seed, job.trial)
    store, log_file = job.folder / "store", job.log
    log = tuple(log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]) if log_file.is_file() else ()
    progress, record = _read(store / "progress" / job.record.name, unreadable), _read(job.record, unreadable)
    if progress and (record is None or progress.get("before", record.get("seal")) == record.get("seal")):
        return _from_progress(place, progress, log)
    if record:
        n = len(present & set(strings_in(record)))
        rounds = len(record["rounds"]) - 1 if "rounds" in record else len(record["dev_scores"])  # an arm's begin with round 0
        return JobStatus(*place, "finished", rounds=rounds, artifacts=n, work_s=_work_s(store, record, unreadable))
    if log and message is None:
        message = log[-1]
    if message is not None:
        return JobStatus(*place, "failed", message, log=log)
    return JobStatus(*place, "not started")


def _from_progress(place: tuple[str, int, int | None], progress: Mapping[str, Any], log: tuple[str, ...]) -> JobStatus:
    """The status by a worker's progress file, and by whether that worker is alive."""
    status = JobStatus(
        *place, "running", str(progress.get("stage", "")), progress.get("pid"), progress.get("rounds"), progress.get("steps")
    )
    if progress.get("error") is not None:
        return replace(status, state="failed", stage=str(progress["error"]), log=log)
    if at_work(progress):
        return replace(status, state="waiting", stage="") if status.stage == WAITING else status
    return replace(status, state="not started", stage="") if status.stage == WAITING else replace(status, state="stopped")


def at_work(process: Mapping[str, Any]) -> bool:
    """Whether the process of a progress file runs, as far as can be seen: those of another host or container are taken to."""
    if process.get("host") not in (None, socket.gethostname()):
        return True
    if process.get("boot") not in (None, boot()):
        return False
    return process.get("machine") not in (None, machine()) or lives(process.get("pid"))


def lives(pid: int | None) -> bool:
    """Whether a process with this number runs on this machine; a zombie does not."""
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's process
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1] not in ("Z", "X")
    except OSError:  # no /proc here
        return True


def _work_s(store: Path, record: Mapping[str, Any], unreadable: list[str]) -> float | None:
    """Seconds for the arm's own artifacts (`wall_s`) and for evaluating its rounds."""
    timings = [_read(store / "evaluations" / round_["evaluation"] / "timing.json", unreadable) for round_ in record.get("rounds", ())]
    if "wall_s" not in record or None in timings:
        return None
    return record["wall_s"] + sum(timing["wall_s"] for timing in timings if timing)


def _error_message(manifest: Mapping[str, Any], job: Job) -> str | None:
    """Why the job failed, by the manifest of the last run that ended."""
    if job.trial is not None:
        trials = manifest.get("tuned", {}).get(job.arm, {}).get("trials", [])
        return trials[job.trial].get("error") if job.trial < len(trials) else None
    failures = manifest.get("failures", ())
    return next((failure["message"] for failure in failures if (failure["arm"], failure["seed"]) == (job.arm, job.seed)), None)


def _read(path: Path, unreadable: list[str]) -> dict[str, Any] | None:
    """A JSON mapping, or None; the path of a file that is there but holds none is added to `unreadable`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict):
        unreadable.append(str(path))
        return None
    return value


# --- judges, artifacts, report ------------------------------------------------------------------------------------------------


def _judges(folder: Path, experiment: Experiment, manifest: Mapping[str, Any]) -> Iterator[JudgeAnswers]:
    from apo_bench.clients.journal import Journal

    journals = {path.stem: path for path in sorted((folder / "store" / "judging").glob("*.jsonl"))}
    for name in dict.fromkeys([*experiment.judges, *journals]):
        journal = Journal(journals.get(name, folder / "store" / "judging" / f"{name}.jsonl"))  # reading takes no lock
        answers = [record for record in journal.records.values() if "final" in record]
        counts = manifest.get("judges", {}).get(name, {}).get("unanswered")
        unanswered = None if counts is None else sum(counts.values())
        yield JudgeAnswers(name, len(answers), sum(answer.get("choice") is None for answer in answers), journal.n_damaged, unanswered)


def _building(folder: Path) -> Iterator[str]:
    """Artifacts in the making: the folder they are built in is named by the pid."""
    for path in sorted((folder / "store").glob("*/.*")):
        if (match := _TEMPORARY.fullmatch(path.name)) and match[1] == machine() and lives(int(match[2])):
            yield f"process {match[2]} makes {path.parent.name}"


def _report_state(folder: Path, experiment: Experiment, manifest: Mapping[str, Any], statuses: Sequence[JobStatus]) -> ReportState:
    from apo_bench.config.plugins import source_files
    from apo_bench.run.inputs import with_inputs
    from apo_bench.run.up_to_date import REPORT_KEY, report_is_current, report_key

    if not (folder / REPORT_KEY).exists():
        return "none yet"
    jobs = {(job.arm, job.seed): job for job in all_jobs(folder, experiment) if job.trial is None}
    finished = [(status.arm, status.seed) for status in statuses if status.trial is None and status.state == "finished"]
    records = {place: json.loads(jobs[place].record.read_text()) for place in finished}
    facts = {name: value for name, value in manifest.items() if name != "judges"}  # added once the judges had been asked
    try:
        chosen = with_inputs(folder, experiment).judges.values()
        judges = [path for judge in chosen for path in source_files(judge.use, judge.parameters, base=Path.cwd())]
    except InputError:  # a judge's file that is not here cannot be compared
        return "out of date"
    current = report_is_current(folder, report_key(folder, facts, records, judges))
    return "up to date" if current and not any(status.to_do for status in statuses) else "out of date"


# --- text ---------------------------------------------------------------------------------------------------------------------


def _name(job: JobStatus) -> str:
    if job.is_shared:
        return {GOLD: "gold models", INITIAL: "initial policy"}[job.arm]
    return job.arm if job.trial is None else f"{job.arm}, trial {job.trial + 1}"


def _row(job: JobStatus) -> tuple[Any, ...]:
    """Neighbours with equal values share a row."""
    return _name(job), job.state, job.stage, job.rounds, job.steps


def _span(values: Sequence[Any], text: Any) -> str:
    """The lowest and the highest known value."""
    known = sorted(value for value in values if value is not None)
    return " to ".join(dict.fromkeys([text(known[0]), text(known[-1])])) if known else "-"


def _time_left_text(status: Status) -> str:
    seconds, unknown = time_left(status.jobs)
    n = sum(job.to_do for job in status.jobs)
    if not n:
        return "none"
    if unknown == n:
        return f"not known yet ({n} to do, and none of the same arm has finished)"
    shared = f", about {duration(seconds / status.workers)} with the {status.workers} at work" if status.workers > 1 else ""
    more = f"; and {unknown} more, of arms that have finished none" if unknown else ""
    return f"about {duration(seconds)} of work for one process{shared}{more}"
