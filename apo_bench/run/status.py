"""What a run folder holds, told from its files alone: also while a run goes on, or after it was killed.

A worker says what it is doing in `store/progress/<name of its record>.json`: {"stage": str, "pid": int} and, where it counts them, "steps",
"rounds" (ints) and "error" (str, once it has failed). It removes the file when its record is written. Before it starts the run itself
says "waiting" there, under its own pid.
"""

import json
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any, Literal

from apo_bench.config.load import load_experiment
from apo_bench.config.schema import Experiment
from apo_bench.errors import InputError
from apo_bench.formatting import one_line, visible
from apo_bench.report.write import report_damage
from apo_bench.run.jobs import GOLD, INITIAL, Job
from apo_bench.run.progress import duration
from apo_bench.run.records import control_jobs

State = Literal["finished", "running", "waiting", "stopped", "failed", "not started"]
Answer = Literal["up to date", "none yet", "out of date"]
WAITING = "waiting"
LOG_LINES = 4  # of a failure, shown
_KEY = re.compile(r"[0-9a-f]{24}")
_TEMPORARY = re.compile(r"\.[0-9a-f]{24}\.tmp(\d+)")


@dataclass(frozen=True)
class Part:
    """One arm-seed, one trial of tuning, or one of the bench's own jobs. None: not known."""

    arm: str
    seed: int
    trial: int | None
    state: State
    stage: str = ""  # what it is doing, was doing when it stopped, or why it failed
    pid: int | None = None
    rounds: int | None = None  # finished
    steps: int | None = None  # stages begun
    artifacts: int | None = None  # in the store, named by its record
    work_s: float | None = None  # of a finished one: making its artifacts and evaluating its rounds, in one process
    log: tuple[str, ...] = ()

    @property
    def of_the_bench(self) -> bool:
        return self.arm in (GOLD, INITIAL)

    @property
    def to_do(self) -> bool:
        """Whether a run that goes on would get to it for the first time."""
        return self.state not in ("finished", "failed") and not self.of_the_bench


@dataclass(frozen=True)
class JudgeAnswers:
    """What a judge's journal holds, under whatever settings. `unanswered`: questions left over when it was last asked; None: not known."""

    name: str
    answers: int
    undecided: int  # of the answers: without a clear verdict
    damaged_lines: int
    unanswered: int | None


@dataclass(frozen=True)
class Status:
    folder: Path
    parts: tuple[Part, ...]
    judges: tuple[JudgeAnswers, ...]
    answer: Answer  # whether tables and report are made of these records and this experiment file, by the code at hand
    building: tuple[str, ...]  # artifacts that a living process is making now
    notes: tuple[str, ...]  # files that cannot be read
    report_damage: str | None = None  # why the report that is there is not whole

    @property
    def workers(self) -> int:
        """Processes at work on a part."""
        return len({part.pid for part in self.parts if part.state == "running"})

    @property
    def busy(self) -> tuple[Part, ...]:
        """Parts that a living run is at, or will come to."""
        return tuple(part for part in self.parts if part.state in ("running", "waiting"))


def read_status(folder: Path) -> Status:
    """The state of a run folder. Raises InputError where it is none, or its experiment cannot be read."""
    if not (folder / "experiment.yaml").is_file():
        raise InputError(f"{folder}: not a run folder (no experiment.yaml)")
    experiment = load_experiment(folder / "experiment.yaml")
    notes: list[str] = []
    manifest = _read(folder / "manifest.json", notes) or {}
    present = set(artifacts(folder))
    parts = [_part(job, _message(manifest, job), present, notes) for job in asked(folder, experiment)]
    parts = [part for part in parts if not part.of_the_bench or part.state != "not started"]
    answer = _answer(folder, experiment, manifest, parts)
    damage = report_damage(folder) if (folder / "report").is_dir() else None
    return Status(
        folder, tuple(parts), tuple(_judges(folder, experiment, manifest)), answer, tuple(_building(folder)), tuple(notes), damage
    )


def asked(folder: Path, experiment: Experiment) -> Iterator[Job]:
    """Everything that a run of the experiment does, in its order."""
    question = Job(folder / "experiment.yaml", "{}", folder, INITIAL, 0)
    yield question
    yield from (replace(question, arm=GOLD, seed=seed) for seed in sorted({seed for gold in experiment.models.gold for seed in gold.seeds}))
    if tune := experiment.tune:
        for arm in tune.grids:
            for trial in range(tune.trials):
                yield from (replace(question, arm=arm, seed=seed, trial=trial) for seed in tune.seeds)
    for arm in experiment.arms:
        yield from (replace(question, arm=arm, seed=seed) for seed in experiment.seeds)
    yield from control_jobs(question, experiment)


def artifacts(folder: Path) -> dict[str, Path]:
    """The finished artifacts of a run folder, by key; whole or not."""
    return {path.name: path for path in sorted((folder / "store").glob("*/*")) if _KEY.fullmatch(path.name) and path.is_dir()}


def named(value: Any) -> Iterator[str]:
    """Every text in a JSON value, keys of mappings too: a record or a manifest names artifacts by their keys, wherever it does so."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from (key, *named(one))
    elif isinstance(value, list):
        for one in value:
            yield from named(one)


def time_left(parts: Sequence[Part]) -> tuple[float, int]:
    """Seconds of one process's work on what is still to do, by the median of the same arm's finished ones; and how many have none to go by.

    What is under way counts in full, and what failed not at all.
    """
    seconds, unknown = 0.0, 0
    for part in parts:
        if part.to_do:
            like = [
                one.work_s for one in parts if one.work_s is not None and (one.arm, one.trial is None) == (part.arm, part.trial is None)
            ]
            seconds, unknown = (seconds + median(like), unknown) if like else (seconds, unknown + 1)
    return seconds, unknown


def tables(status: Status) -> list[Any]:
    """The status as rich tables and lines, at most 100 columns wide: arms, judges, failures, the answer, the time left."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    arms = Table("arm", "seeds", "state", "rounds", "artifacts", "work", box=SIMPLE_HEAD, padding=(0, 1), title=str(status.folder))
    for (arm, state, stage, rounds, steps), group in groupby(status.parts, key=_row):
        same = list(group)
        seeds = ", ".join(dict.fromkeys(str(part.seed) for part in same))
        work = _span([part.work_s for part in same], duration)
        about = f"{state}: {one_line(stage)}" if stage and state != "failed" else state  # why it failed stands below
        about += f" (step {steps})" if steps and state != "failed" else ""
        arms.add_row(arm, seeds, about, "-" if rounds is None else str(rounds), _span([part.artifacts for part in same], str), work)
    shown: list[Any] = [arms]
    if status.judges:
        judges = Table("judge", "answers", "without a verdict", "unanswered", box=SIMPLE_HEAD, padding=(0, 1))
        for one in status.judges:
            damaged = f" (and {one.damaged_lines} damaged lines)" if one.damaged_lines else ""
            judges.add_row(one.name, f"{one.answers}{damaged}", str(one.undecided), "-" if one.unanswered is None else str(one.unanswered))
        shown.append(judges)
    for part in status.parts:
        if part.state == "failed":
            said = f"failed: {_name(part)}, seed {part.seed}: {one_line(part.stage)}"
            shown.append("\n".join([said, *(f"    {visible(line)}" for line in part.log)]))
    if status.building and not status.workers:
        shown.append(f"at work: {', '.join(status.building)}; for which arm is not on disk")
    shown += [f"unreadable: {one_line(note)}" for note in status.notes]
    damage = f" ({status.report_damage})" if status.report_damage else ""
    return [*shown, f"tables and report: {status.answer}{damage}", f"time left: {_left(status)}"]


# --- one part -----------------------------------------------------------------------------------------------------------------


def _part(job: Job, message: str | None, present: set[str], notes: list[str]) -> Part:
    """Of what the files say of it the newest holds: its record, its progress, a failure in the manifest, a traceback in its log."""
    place = (job.arm, job.seed, job.trial)
    store, log_file = job.folder / "store", job.folder / "logs" / f"{job.record.stem}.log"
    log = tuple(log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]) if log_file.is_file() else ()
    found: list[tuple[int, Part]] = []
    if log:
        found.append((_when(log_file), Part(*place, "failed", log[-1], log=log)))
    if message is not None:
        found.append((_when(job.folder / "manifest.json"), Part(*place, "failed", message, log=log)))
    said_in = store / "progress" / job.record.name
    if said := _read(said_in, notes):
        found.append((_when(said_in), _said(place, said, log)))
    if record := _read(job.record, notes):
        n = len(present & set(named(record)))
        rounds = len(record["rounds"]) - 1 if "rounds" in record else len(record["dev_scores"])  # an arm's begin with round 0
        part = Part(*place, "finished", rounds=rounds, artifacts=n, work_s=_work_s(store, record, notes))
        found.append((_when(job.record), part))
    return sorted(found, key=lambda one: one[0])[-1][1] if found else Part(*place, "not started")


def _said(place: tuple[str, int, int | None], said: Mapping[str, Any], log: tuple[str, ...]) -> Part:
    """What a worker's progress says, in view of whether it lives."""
    part = Part(*place, "running", str(said.get("stage", "")), said.get("pid"), said.get("rounds"), said.get("steps"))
    if said.get("error") is not None:
        return replace(part, state="failed", stage=str(said["error"]), log=log)
    if said.get("host") not in (None, socket.gethostname()):  # whose processes cannot be seen from here: as it says
        return replace(part, state="waiting", stage="") if part.stage == WAITING else part
    if lives(part.pid):
        return replace(part, state="waiting", stage="") if part.stage == WAITING else part
    return replace(part, state="not started", stage="") if part.stage == WAITING else replace(part, state="stopped")


def lives(pid: int | None) -> bool:
    """Whether a process of this machine has this number; one that has ended, and that nobody has waited for yet, does not live."""
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1] not in ("Z", "X")
    except OSError:  # no /proc here
        return True


def _work_s(store: Path, record: Mapping[str, Any], notes: list[str]) -> float | None:
    """`wall_s` is of the arm's own artifacts; evaluating the rounds took time as well."""
    timings = [_read(store / "evaluations" / one["evaluation"] / "timing.json", notes) for one in record.get("rounds", ())]
    if "wall_s" not in record or None in timings:
        return None
    return record["wall_s"] + sum(one["wall_s"] for one in timings if one)


def _message(manifest: Mapping[str, Any], job: Job) -> str | None:
    """Why it failed, by the manifest of the last run that came to an end."""
    if job.trial is not None:
        trials = manifest.get("tuned", {}).get(job.arm, {}).get("trials", [])
        return trials[job.trial].get("error") if job.trial < len(trials) else None
    messages = [one["message"] for one in manifest.get("failures", ()) if (one["arm"], one["seed"]) == (job.arm, job.seed)]
    return messages[0] if messages else None


def _when(path: Path) -> int:
    return path.stat().st_mtime_ns


def _read(path: Path, notes: list[str]) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        notes.append(str(path))
        return None
    return found


# --- beside the parts ---------------------------------------------------------------------------------------------------------


def _judges(folder: Path, experiment: Experiment, manifest: Mapping[str, Any]) -> Iterator[JudgeAnswers]:
    from apo_bench.clients.journal import Journal

    journals = {path.stem: path for path in sorted((folder / "store" / "judging").glob("*.jsonl"))}
    for name in dict.fromkeys([*experiment.judges, *journals]):
        journal = Journal(journals.get(name, folder / "store" / "judging" / f"{name}.jsonl"))  # reading takes no lock
        answers = [one for one in journal.records.values() if "final" in one]
        unanswered = manifest.get("judges", {}).get(name, {}).get("unanswered")
        left = None if unanswered is None else sum(unanswered.values())
        yield JudgeAnswers(name, len(answers), sum(one.get("choice") is None for one in answers), journal.n_damaged, left)


def _building(folder: Path) -> Iterator[str]:
    """Artifacts under way: the folder they are built in bears the pid."""
    for path in sorted((folder / "store").glob("*/.*")):
        if (match := _TEMPORARY.fullmatch(path.name)) and lives(int(match[1])):
            yield f"process {match[1]} makes {path.parent.name}"


def _answer(folder: Path, experiment: Experiment, manifest: Mapping[str, Any], parts: Sequence[Part]) -> Answer:
    from apo_bench.config.plugins import source_files
    from apo_bench.run.up_to_date import ANSWER, answer_key, says

    if not (folder / ANSWER).exists():
        return "none yet"
    jobs = {(job.arm, job.seed): job for job in asked(folder, experiment) if job.trial is None}
    finished = [(part.arm, part.seed) for part in parts if part.trial is None and part.state == "finished"]
    records = {place: json.loads(jobs[place].record.read_text()) for place in finished}
    about = {name: value for name, value in manifest.items() if name != "judges"}  # which are asked after it was written
    try:
        judges = [path for one in experiment.judges.values() for path in source_files(one.use, one.parameters, base=Path.cwd())]
    except InputError:  # a judge's file that is not here cannot be compared
        return "out of date"
    same = says(folder, answer_key(folder, about, records, judges))
    return "up to date" if same and not any(part.to_do for part in parts) else "out of date"


# --- in words -----------------------------------------------------------------------------------------------------------------


def _name(part: Part) -> str:
    if part.of_the_bench:
        return {GOLD: "gold models", INITIAL: "initial policy"}[part.arm]
    return part.arm if part.trial is None else f"{part.arm}, trial {part.trial + 1}"


def _row(part: Part) -> tuple[Any, ...]:
    """Neighbours that agree in this share a row."""
    return _name(part), part.state, part.stage, part.rounds, part.steps


def _span(values: Sequence[Any], say: Any) -> str:
    """The lowest and the highest of the values that are known."""
    known = sorted(value for value in values if value is not None)
    return " to ".join(dict.fromkeys([say(known[0]), say(known[-1])])) if known else "-"


def _left(status: Status) -> str:
    seconds, unknown = time_left(status.parts)
    n = sum(part.to_do for part in status.parts)
    if not n:
        return "none"
    if unknown == n:
        return f"not known yet ({n} to do, and none of the same arm has finished)"
    shared = f", about {duration(seconds / status.workers)} with the {status.workers} at work" if status.workers > 1 else ""
    more = f"; and {unknown} more, of arms that have finished none" if unknown else ""
    return f"about {duration(seconds)} of work for one process{shared}{more}"
