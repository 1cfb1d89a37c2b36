"""An experiment file in, a run folder out: arms x seeds by an executor, then tables, manifest and report.

Workers get the experiment file, an arm and a seed, never objects. What an arm-seed ends with is a record in the store; a record
whose key still holds is not run again, so a finished run replays without importing torch.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from apo_bench.analysis import preregistration
from apo_bench.config import tuning as tune
from apo_bench.config.controls import AA, ORACLE, chooser, hard_failure
from apo_bench.config.load import dump_experiment, load_experiment
from apo_bench.config.plugins import source_files
from apo_bench.config.schema import Experiment
from apo_bench.data.task import Task
from apo_bench.errors import InputError
from apo_bench.plan import fit as fitting
from apo_bench.plan import saved as kept
from apo_bench.plan.fit import Fitted
from apo_bench.run import records
from apo_bench.run.executors import cores, executor
from apo_bench.run.jobs import GOLD, INITIAL, Job, mark_waiting
from apo_bench.run.progress import live
from apo_bench.run.tables import Failure, Records, manifest, rows_in, write_tables
from apo_bench.run.up_to_date import REPORT_KEY, report_is_current, report_key, write_report_key
from apo_bench.run.worker import work
from apo_bench.store import RUN_LOCK, damage_of, free_name, write_json, write_text


@dataclass(frozen=True)
class RunResult:
    folder: Path
    failures: tuple[Any, ...]  # what failed, each with its line: arm-seeds, then judges that were left without answers
    n_left: int = 0  # arm-seeds that were not asked for and have not been run: then there are no tables and no report yet


@dataclass(frozen=True)
class JobSubset:
    """The arm-seeds of an experiment that are to run now; None: all."""

    arms: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None

    def has(self, job: Job) -> bool:
        return (self.arms is None or job.arm in self.arms) and (self.seeds is None or job.trial is not None or job.seed in self.seeds)

    def check(self, experiment: Experiment) -> None:
        """Raises InputError for an arm or seed that the experiment does not have."""
        for name, asked, there in (("arms", self.arms, list(experiment.arms)), ("seeds", self.seeds, list(experiment.seeds))):
            if odd := [one for one in asked or () if one not in there]:
                raise InputError(f"--{name} {odd[0]}: the experiment has no such {name[:-1]}; it has: {', '.join(map(str, there))}")


ALL = JobSubset()
CHANGED = "its record answers another question: the experiment, or a file it names, was changed while it ran"


def run(
    experiment_path: Path,
    overrides: Mapping[str, Any] | None = None,
    out: Path | None = None,
    workers: int | None = None,
    variation: Mapping[str, Any] | None = None,
    tiny: Mapping[str, Any] | None = None,
    subset: JobSubset = ALL,
) -> RunResult:
    """Run an experiment, or go on with it, and write its report. Raises InputError before anything is written.

    `variation` says which level of a varied experiment this is, `tiny` which overrides are those of `--tiny`; both only name the run in
    its manifest. Of a `subset` alone no table is made, lest somebody looks before the planned seeds are there: the run after which no
    arm-seed is missing makes them.
    """
    question, experiment, task = _question(experiment_path, overrides, out)
    subset.check(experiment)
    if experiment.controls.oracle:
        chooser(experiment, task.ground_truth is not None)
    folder, base = question.folder, question.experiment.parent
    fits = fitting.sized(folder, experiment, task, base)
    question, experiment = _sized(question, fits)
    runner = _Runner(question, experiment, task, workers, subset)
    missing = [job for job in runner.first_jobs() if records.finished(job) is None]
    for job in missing:
        records.method(job)  # whatever is wrong with a method or a setting is said before anything is written
    if missing or not (folder / REPORT_KEY).exists():
        _open_judges(question, experiment, task)
    plan = kept.kept(folder, experiment, task, base)
    if missing:  # then torch is here already, and disk is still to be taken
        plan = plan or kept.make(experiment, task, base, fits)
        kept.check_disk(folder, plan)
    asked = dump_experiment(load_experiment(question.experiment, overrides))
    write_text(folder / "experiment.yaml", asked)
    if missing and plan:
        fitting.keep(folder, experiment, task, base, fits)
        kept.keep(folder, plan)
    tuned = runner.tune()
    jobs = [
        replace(question, arm=arm, seed=seed, overrides=_with(question.overrides, _chosen(arm, tuned)))
        for arm in experiment.arms
        if arm not in runner.untuned
        for seed in experiment.seeds
    ]
    again, oracles = runner.controls(tuned)
    whole = subset == ALL
    runner.work([*(job for job in jobs if subset.has(job)), *(again if whole else ())])
    left = [job for job in jobs if not subset.has(job) and (job.arm in runner.put_off or records.finished(job) is None)]
    if left:
        return RunResult(folder, tuple(runner.failures), len(left))
    found = runner.found(jobs)
    oracles = [job for job in oracles if (experiment.reference, job.seed) in found]
    runner.work([*(() if whole else again), *oracles])  # controls belong to the run that makes the tables
    beside = runner.found([*again, *oracles])
    about = manifest(experiment, task, runner.failures, found, overrides or {}, question.experiment, tiny)
    about |= {"plan": kept.plan_key(experiment, task, base)}
    about |= {"tuned": tuned} if tuned else {}
    about |= {"fits": {name: asdict(one) for name, one in fits.items()}} if fits else {}
    about |= {"variation": dict(variation)} if variation else {}
    with FileLock(folder / "store" / ".report.lock"):  # of several runs on one folder one writes, and the others find it written
        if (folder / "experiment.yaml").read_text(encoding="utf-8") != asked:
            raise InputError(f"{folder / 'experiment.yaml'}: another run has meanwhile asked another question of this folder")
        unanswered = runner.answer(about, found, beside, fits)
        broken = hard_failure(folder)
    return RunResult(folder, (*runner.failures, *unanswered, *([broken] if broken else ())))


def preview(
    experiment_path: Path, overrides: Mapping[str, Any] | None = None, out: Path | None = None, subset: JobSubset = ALL
) -> list[tuple[Job, bool]]:
    """The jobs that `run` would begin with (tuning's trials, where there is tuning), and whether each is finished. Writes nothing."""
    question, experiment, task = _question(experiment_path, overrides, out)
    subset.check(experiment)
    question, experiment = _sized(question, fitting.sized(question.folder, experiment, task, question.experiment.parent))
    return [(job, records.finished(job) is not None) for job in _Runner(question, experiment, task, 1, subset).first_jobs()]


def set_aside(folder: Path) -> Path | None:
    """Give a run folder another name, so that the next run starts afresh; its new name, or None where there is none.

    Raises InputError for a folder that is no run's.
    """
    if not folder.exists():
        return None
    if not (folder / "experiment.yaml").is_file():
        raise InputError(f"{folder}: not a run folder (no experiment.yaml); it is left as it is")
    aside = free_name(folder.with_name(f"{folder.name}.before"))
    folder.rename(aside)
    return aside


def _open_judges(question: Job, experiment: Experiment, task: Task) -> None:
    """What a judge lacks (a key in the environment, a model, a ground truth) is said before anything is spent or lost."""
    from apo_bench.run import judges

    judges.open_judges(question.folder, experiment, task, question.experiment.parent)


def _ask_judges(question: Job, experiment: Experiment, task: Task) -> list[Any]:
    from apo_bench.run import judges

    return judges.judge_run(question.folder, experiment, task, question.experiment.parent)


def _question(path: Path, overrides: Mapping[str, Any] | None, out: Path | None) -> tuple[Job, Experiment, Task]:
    """What every job of a run is made from, and what it asks."""
    path, as_json = path.resolve(), json.dumps(dict(overrides or {}), sort_keys=True)
    experiment, task = records.load(path, as_json)
    return Job(path, as_json, (out or Path("results") / experiment.name).resolve(), arm="", seed=0), experiment, task


def _sized(question: Job, fits: Mapping[str, Fitted]) -> tuple[Job, Experiment]:
    """The question with its sized arms as they were sized."""
    question = replace(question, overrides=_with(question.overrides, fitting.overrides(fits))) if fits else question
    return question, records.load(question.experiment, question.overrides)[0]


class _Runner:
    """What has been run of one question, and what failed."""

    def __init__(self, question: Job, experiment: Experiment, task: Task, workers: int | None, subset: JobSubset = ALL) -> None:
        self.question, self.experiment, self.task, self.workers, self.subset = question, experiment, task, workers, subset
        self.run_all = executor(experiment.executor.use)
        self.failures: list[Failure] = []
        self.trials: dict[tuple[str, int, int], Mapping[str, Any]] = {}  # (arm, trial, seed) -> record
        self.untuned: set[str] = set()
        self.put_off: set[str] = set()  # arms whose tuning belongs to another run
        asked = experiment.tune
        self.settings = {arm: tune.trials(arm, grid, asked.trials) for arm, grid in asked.grids.items()} if asked else {}
        self._prepared = False

    def work(self, jobs: Sequence[Job]) -> list[Failure]:
        """Run what is missing; a failed trial is not a failure of the run."""
        missing = [job for job in jobs if records.finished(job) is None]
        if not missing:
            return []
        first = []
        if not self._prepared:
            sizes = (
                f"{split} {self.task.counts[f'{split}.prompts']}/{self.task.counts[f'{split}.clusters']}" for split in self.task.prompts
            )
            print(f"{self.task.name}: no cluster in two splits; prompts/clusters: {', '.join(sizes)}", file=sys.stderr)
            seeds = sorted({seed for gold in self.experiment.models.gold for seed in gold.seeds})
            first = [replace(self.question, arm=INITIAL), *(replace(self.question, arm=GOLD, seed=seed) for seed in seeds)]
            self._prepared = True
        # seeds run fastest: jobs that run side by side then differ in seed, and seldom wait for a shared artifact
        budgets: dict[str, Mapping[Any, float]] = {arm: self.experiment.budget_of(arm) for arm in self.experiment.arms}
        jobs = [*first, *missing]
        with FileLock(self.question.folder / "store" / RUN_LOCK):  # not while a sweep is looking for what nobody needs
            mark_waiting(jobs)
        with live(jobs, budgets, self.workers or cores()) as show:
            failures = self.run_all(jobs, work, self.workers, self.experiment.executor, show)
        told = {(one.arm, one.seed, one.trial) for one in failures}
        failures += [
            Failure(job.arm, job.seed, CHANGED, job.trial)
            for job in missing
            if (job.arm, job.seed, job.trial) not in told and records.finished(job) is None
        ]
        self.failures += [one for one in failures if one.trial is None]
        return failures

    def found(self, jobs: Sequence[Job]) -> Records:
        """The records of finished arm-seeds. One whose rows are damaged on disk is run again first, which makes them anew."""
        damaged = [job for job in jobs if (one := records.finished(job)) and any(map(damage_of, rows_in(job.folder, one)))]
        for job in damaged:
            job.record.unlink(missing_ok=True)
        self.work(damaged)
        return {(job.arm, job.seed): record for job in jobs if (record := records.finished(job))}

    def controls(self, tuned: Mapping[str, Any]) -> tuple[list[Job], list[Job]]:
        """The A/A arm-seeds and the oracles, with the setting that tuning chose for the reference; none where it found none."""
        reference = self.experiment.reference
        question = replace(self.question, overrides=_with(self.question.overrides, _chosen(reference, tuned)))
        jobs = [] if reference in self.untuned else records.control_jobs(question, self.experiment)
        return [job for job in jobs if job.arm == AA], [job for job in jobs if job.arm == ORACLE]

    def answer(self, about: dict[str, Any], found: Records, beside: Records, fits: Mapping[str, Fitted]) -> list[Any]:
        """Write tables, manifest and report, and ask the judges, unless that has been done; the judges that were left without answers."""
        question, experiment, folder = self.question, self.experiment, self.question.folder
        about |= {"preregistration_change": change} if (change := preregistration.plan_change(folder, experiment)) else {}
        base = question.experiment.parent
        judges = [path for one in experiment.judges.values() for path in source_files(one.use, one.parameters, base=base)]
        key, written = report_key(folder, about, {**found, **beside}, judges), folder / REPORT_KEY
        if report_is_current(folder, key):  # a replay has nothing new to write
            return []
        from apo_bench.report.report import write_report

        _open_judges(question, experiment, self.task)  # before earlier tables are removed
        written.unlink(missing_ok=True)  # until the new report is complete there is none
        plan = kept.kept(folder, experiment, self.task, base) or kept.make(experiment, self.task, base, fits)
        kept.keep(folder, plan)
        used = _pairs_used(experiment, self.task)
        write_tables(
            folder, experiment, found, self.trials, pairs_used=used, prompts=self.task.prompts["test"], controls=beside, plan=plan.arms
        )
        write_json(folder / "manifest.json", about)
        unanswered = []
        if found:
            preregistration.register_plan(folder, experiment)
            unanswered = _ask_judges(question, experiment, self.task)
        write_report(folder)
        if not unanswered:
            write_report_key(folder, key)
        return unanswered

    def first_jobs(self) -> list[Job]:
        """What is run first: trials, or where nothing is tuned all arm-seeds; of this run's subset."""
        arms = [replace(self.question, arm=arm, seed=seed) for arm in self.experiment.arms for seed in self.experiment.seeds]
        arms += records.control_jobs(self.question, self.experiment) if self.subset == ALL else []
        return [job for job in self.trial_jobs() or arms if self.subset.has(job)]

    def trial_jobs(self) -> list[Job]:
        """What tuning runs; empty where nothing is tuned."""
        return [
            replace(self.question, arm=arm, seed=seed, trial=number, overrides=_with(self.question.overrides, tune.overrides(arm, setting)))
            for arm, tried in self.settings.items()
            for number, setting in enumerate(tried)
            for seed in (self.experiment.tune.seeds if self.experiment.tune else ())
        ]

    def tune(self) -> dict[str, Any]:
        """Each arm's trials and the setting chosen by their dev scores; an arm whose trials all failed is a failure."""
        jobs = self.trial_jobs()
        errors = {(one.arm, one.trial): one.message for one in self.work([job for job in jobs if self.subset.has(job)])}
        self.put_off = {job.arm for job in jobs if not self.subset.has(job) and records.finished(job) is None}
        self.trials = {(job.arm, job.trial or 0, job.seed): record for job in jobs if (record := records.finished(job))}
        tuned: dict[str, Any] = {}
        for arm, tried in self.settings.items():
            if arm in self.put_off:
                continue
            outcomes = [self._outcome(arm, number) for number in range(len(tried))]
            scores, kl = zip(*outcomes, strict=True)
            try:
                chosen = tried[tune.best(scores, kl, self.experiment.tune.max_kl if self.experiment.tune else None)]
            except ValueError as error:
                why = f": {errors[arm, 0]}" if (arm, 0) in errors else ""
                self.untuned.add(arm)
                self.failures += [Failure(arm, seed, f"tuning: {error}{why}") for seed in self.experiment.seeds]
                continue
            tuned[arm] = {"chosen": chosen, "trials": []}
            for number, (setting, (score, nats)) in enumerate(zip(tried, outcomes, strict=True)):
                about = {"dev_score": None, "error": errors[arm, number]} if math.isnan(score) else {"dev_score": score}
                tuned[arm]["trials"].append({"setting": setting, **about, "kl": None if math.isnan(nats) else nats})
        return tuned

    def _outcome(self, arm: str, number: int) -> tuple[float, float]:
        """Dev score and KL in nats at the round that counts, means over the tuning seeds; NaN if one of them failed, or is not known."""
        assert self.experiment.tune is not None
        found = []
        for seed in self.experiment.tune.seeds:
            if record := self.trials.get((arm, number, seed)):
                place = tune.taken_round(record["dev_scores"], self.experiment.compare.round)
                found.append((record["dev_scores"][place], math.nan if record["kl"][place] is None else record["kl"][place]))
            else:
                found.append((math.nan, math.nan))
        scores, kl = zip(*found, strict=True)
        return sum(scores) / len(scores), sum(kl) / len(kl)


def _pairs_used(experiment: Experiment, task: Task) -> int:
    """Human pairs that the bench itself learns from: the gold models', and the referee's where there is one."""
    return len(task.pairs["gold"]) + (len(task.pairs["dev"]) if experiment.evaluation.dev_prompts else 0)


def _chosen(arm: str, tuned: Mapping[str, Any]) -> dict[str, Any]:
    """The setting that tuning chose for an arm, as overrides."""
    return tune.overrides(arm, tuned[arm]["chosen"]) if arm in tuned else {}


def _with(overrides: str, more: Mapping[str, Any]) -> str:
    return json.dumps({**json.loads(overrides), **more}, sort_keys=True)
