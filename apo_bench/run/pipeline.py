"""Runs an experiment in its folder: tuning, arm-seeds, controls; then tables, manifest, judges and report.

A worker gets an experiment file, an arm and a seed, never objects. The result of a job is a record in the store. A record whose key is
current is not computed again, so that a finished run replays without importing torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from apo_bench.analysis import preregistration
from apo_bench.analysis.seal import check_imported, seal
from apo_bench.config.controls import AA, ORACLE, chooser, hard_failure
from apo_bench.config.load import dump_experiment
from apo_bench.config.plugins import source_files
from apo_bench.config.schema import Experiment
from apo_bench.data.task import Task
from apo_bench.errors import InputError
from apo_bench.plan import match_spend
from apo_bench.plan import saved as plans
from apo_bench.plan.match_spend import MatchedArm
from apo_bench.run import records
from apo_bench.run.experiment import FIRST_DAY, ResolvedExperiment, first_day
from apo_bench.run.first_prompts import read_first_prompts, write_first_prompts
from apo_bench.run.gc import sweep
from apo_bench.run.inputs import INDEX, keep_inputs
from apo_bench.run.jobs import Job, Records, Trials
from apo_bench.run.manifest import manifest
from apo_bench.run.models_csv import write_models
from apo_bench.run.preregister import compare_with_preregistration
from apo_bench.run.progress import announce
from apo_bench.run.scheduler import ALL, JobRunner, JobSubset
from apo_bench.run.tables import gather_tables, remove_tables, write_tables
from apo_bench.run.trackers import write_curves
from apo_bench.run.trials import Tuning, run_tuning, trial_jobs
from apo_bench.run.up_to_date import REPORT_KEY, report_is_current, report_key, write_report_key
from apo_bench.store import free_name, updating, write_json, write_text


@dataclass(frozen=True)
class RunResult:
    """What a run left. `failures`, each with its message: arm-seeds, judges without all answers, variations, a broken control.

    `n_left`: arm-seeds that this run leaves to another; until none is left there are no tables and no report. `preview`: of a dry run,
    its jobs and whether each is finished. `set_aside`: the new name of a folder that a fresh start moved out of the way.
    """

    folder: Path
    failures: tuple[Any, ...] = ()
    n_left: int = 0
    varied: bool = False
    preview: tuple[tuple[Job, bool], ...] = ()
    set_aside: Path | None = None


def run(
    resolved: ResolvedExperiment,
    workers: int | None = None,
    subset: JobSubset = ALL,
    *,
    variation: Mapping[str, Any] | None = None,
    tiny: Mapping[str, Any] | None = None,
) -> RunResult:
    """Run an experiment, or resume it, and write its report. Raises InputError before anything is written.

    `variation` is the level of a varied experiment, `tiny` those overrides that `--tiny` stands for; both only describe the run in its
    manifest. A run of a `subset` makes no tables, so that no result is seen before the planned seeds are complete: the run that finishes
    the last arm-seed makes them.
    """
    given = resolved
    _check(resolved, subset)
    registered = None if tiny else compare_with_preregistration(resolved, variation)
    fits = _fits(resolved)
    resolved = resolved.with_overrides(match_spend.overrides(fits))
    runner = JobRunner(resolved, workers)
    missing = [job for job in _first_jobs(resolved, subset) if runner.record(job) is None]
    for job in missing:
        records.method(job, resolved)  # raises what is wrong with a method or a setting before anything is written
    if missing or not (resolved.folder / REPORT_KEY).exists():
        _open_judges(resolved)
    _write_plan(resolved, fits, given, running=bool(missing))

    tuning = run_tuning(runner, subset)
    runner.failures += tuning.failed
    arm_seeds = _arm_seeds(resolved, tuning)
    controls = _controls(resolved, tuning)
    again = [job for job in controls if job.arm == AA]
    runner.run([*(job for job in arm_seeds if subset.has(job)), *(again if subset == ALL else ())])
    left = [job for job in arm_seeds if not subset.has(job) and (job.arm in tuning.postponed or runner.record(job) is None)]
    if left:
        return RunResult(resolved.folder, tuple(runner.failures), len(left))
    arm_records = runner.records(arm_seeds)
    oracles = [job for job in controls if job.arm == ORACLE and (resolved.experiment.reference, job.seed) in arm_records]
    runner.run([*(again if subset != ALL else ()), *oracles])  # controls belong to the run that makes the tables
    control_records = runner.records([*again, *oracles])
    if resolved.experiment.trackers:  # of jobs that were finished before
        finished = [job for job in (*trial_jobs(resolved), *arm_seeds, *again) if runner.record(job)]
        write_curves(resolved.folder, [job.record for job in finished])
    facts = manifest(resolved.experiment, resolved.task, runner.failures, arm_records, given.file.overrides, resolved.path, tiny)
    facts |= {"first_prompts": read_first_prompts(resolved.folder)}
    facts |= {"plan": plans.plan_key(resolved.experiment, resolved.task, resolved.base)}
    facts |= {"tuned": dict(tuning.arms)} if tuning.arms else {}
    facts |= {"fits": {name: asdict(fit) for name, fit in fits.items()}} if fits else {}
    facts |= {"variation": dict(variation)} if variation else {}
    facts |= {"preregistered": registered} if registered else {}
    with updating(resolved.folder):  # of several runs on one folder the first writes, the others find it written
        if (resolved.folder / "experiment.yaml").read_text(encoding="utf-8") != dump_experiment(given.file.experiment):
            raise InputError(f"{resolved.folder / 'experiment.yaml'}: another run has changed the experiment of this folder meanwhile")
        incomplete_judges = _write_report(resolved, facts, arm_records, tuning.records, control_records, fits)
        broken_control = hard_failure(resolved.folder)
    if not runner.failures:
        _keep_models(resolved)
    write_models(resolved.folder, arm_records)
    return RunResult(resolved.folder, (*runner.failures, *incomplete_judges, *([broken_control] if broken_control else ())))


def preview(resolved: ResolvedExperiment, subset: JobSubset = ALL) -> tuple[tuple[Job, bool], ...]:
    """The jobs that `run` would begin with (trials, where arms are tuned), and whether each is finished. Writes nothing."""
    subset.check(resolved.experiment)
    resolved = resolved.with_overrides(match_spend.overrides(_fits(resolved)))
    return tuple((job, records.finished(job, resolved) is not None) for job in _first_jobs(resolved, subset))


def set_aside(folder: Path) -> Path | None:
    """Rename a run folder so that the next run starts afresh; its new name, or None where there is none.

    Raises InputError for a folder that is not a run's.
    """
    if not folder.exists():
        return None
    if not (folder / "experiment.yaml").is_file():
        raise InputError(f"{folder}: not a run folder (no experiment.yaml); it is left as it is")
    new_name = free_name(folder.with_name(f"{folder.name}.before"))
    folder.rename(new_name)
    return new_name


# --- before the jobs ----------------------------------------------------------------------------------------------------------


def _check(resolved: ResolvedExperiment, subset: JobSubset) -> None:
    subset.check(resolved.experiment)
    if resolved.experiment.controls.oracle:
        chooser(resolved.experiment, resolved.task.ground_truth is not None)


def _fits(resolved: ResolvedExperiment) -> dict[str, MatchedArm]:
    return match_spend.read_or_size(resolved.folder, resolved.experiment, resolved.task, resolved.base)


def _first_jobs(resolved: ResolvedExperiment, subset: JobSubset) -> list[Job]:
    """The jobs that are run first: trials, or, where nothing is tuned, all arm-seeds and controls."""
    experiment = resolved.experiment
    jobs = [resolved.job(arm, seed) for arm in experiment.arms for seed in experiment.seeds]
    jobs += _controls(resolved) if subset == ALL else []
    return [job for job in trial_jobs(resolved) or jobs if subset.has(job)]


def _arm_seeds(resolved: ResolvedExperiment, tuning: Tuning) -> list[Job]:
    """Seeds vary fastest: jobs that run in parallel then differ in seed, and seldom wait for the same artifact."""
    experiment = resolved.experiment
    arms = {arm: resolved.with_overrides(tuning.overrides(arm)) for arm in experiment.arms if not tuning.without_setting(arm)}
    return [tuned.job(arm, seed) for arm, tuned in arms.items() for seed in experiment.seeds]


def _controls(resolved: ResolvedExperiment, tuning: Tuning | None = None) -> list[Job]:
    """A/A arm-seeds and oracles, with the reference's chosen setting; none where tuning could not choose one."""
    reference = resolved.experiment.reference
    if tuning is None:
        return records.control_jobs(resolved.job(reference, 0), resolved.experiment)
    if tuning.without_setting(reference):
        return []
    return records.control_jobs(resolved.with_overrides(tuning.overrides(reference)).job(reference, 0), resolved.experiment)


def _open_judges(resolved: ResolvedExperiment) -> None:
    """Raise what a judge lacks (a key in the environment, a model, a ground truth) before anything is spent or overwritten."""
    from apo_bench.run import judges

    judges.open_judges(resolved.folder, resolved.experiment, resolved.task, resolved.base)


def _write_plan(resolved: ResolvedExperiment, fits: Mapping[str, MatchedArm], given: ResolvedExperiment, *, running: bool) -> None:
    """Write the experiment into its folder and, where jobs are to run, how arms were sized and what they are planned to spend.

    Raises InputError where the disk has no room for what is planned.
    """
    folder, experiment, task, base = resolved.folder, resolved.experiment, resolved.task, resolved.base
    plan = None
    if running:  # then torch is needed anyway, and disk will be
        announce("planning: what each arm will spend")
        plan = plans.read(folder, experiment, task, base) or plans.make(experiment, task, base, fits)
        plans.check_disk(folder, plan)
    write_text(folder / "experiment.yaml", dump_experiment(given.file.experiment))
    if running or not (folder / INDEX).exists():
        keep_inputs(folder, given.file.experiment, base)
    if not (folder / FIRST_DAY).exists():
        write_text(folder / FIRST_DAY, f"{first_day(folder)}\n")
    if plan:
        write_first_prompts(folder, experiment, task, base)
        match_spend.save(folder, given.experiment, task, base, fits)
        plans.save(folder, plan)


# --- after the jobs -----------------------------------------------------------------------------------------------------------


def _write_report(
    resolved: ResolvedExperiment,
    facts: dict[str, Any],
    arm_records: Records,
    trial_records: Trials,
    control_records: Records,
    fits: Mapping[str, MatchedArm],
) -> Sequence[Any]:
    """Write tables, manifest and report, and ask the judges, unless all of it is current; returns the judges without all answers."""
    folder, experiment, task, base = resolved.folder, resolved.experiment, resolved.task, resolved.base
    if change := preregistration.plan_change(folder, experiment):
        facts |= {"preregistration_change": change}
    judges = [path for judge in experiment.judges.values() for path in source_files(judge.use, judge.parameters, base=base)]
    judges += [Path(part.refusal_labels) for part in experiment.evaluation.prompt_sets if part.refusal_labels]
    key = report_key(folder, facts, {**arm_records, **control_records}, judges)
    if report_is_current(folder, key):
        return []
    from apo_bench.report.report import write_report
    from apo_bench.run.judges import judge_new_tables
    from apo_bench.run.prompt_sets import gather_sets

    check_imported(folder)  # before earlier tables are removed
    _open_judges(resolved)
    (folder / REPORT_KEY).unlink(missing_ok=True)
    plan = plans.read(folder, experiment, task, base) or plans.make(experiment, task, base, fits)
    plans.save(folder, plan)
    announce("tables: scores, responses and what was spent")
    tables = gather_tables(
        folder, experiment, arm_records, trial_records, pairs_used=_shared_pairs(experiment, task), prompts=task.prompts["test"],
        controls=control_records, plan=plan.arms,
    )  # fmt: skip
    sets = gather_sets(folder, experiment, task, arm_records, base) if experiment.evaluation.prompt_sets else None
    if sets is not None:
        tables, facts = {**tables, **sets.tables}, {**facts, "prompt_sets": dict(sets.facts)}
    remove_tables(folder)
    write_tables(folder, {name: rows for name, rows in tables.items() if name != "timings"})  # judges add their own timings
    write_json(folder / "manifest.json", facts)
    incomplete_judges: Sequence[Any] = []
    if arm_records:
        preregistration.register_plan(folder, experiment)
        if experiment.judges:
            announce(f"judges: {', '.join(experiment.judges)}")
        incomplete_judges = [*judge_new_tables(folder, experiment, facts, tables, task, base), *(sets.incomplete if sets else ())]
    seal(folder)
    announce("report: statistics, figures and page")
    write_report(folder)
    if not incomplete_judges:
        write_report_key(folder, key)
    return incomplete_judges


def _keep_models(resolved: ResolvedExperiment) -> None:
    """Remove the models that `store.keep` leaves out, unless another run is at work on this folder: then its own end does so."""
    keep = resolved.experiment.store.keep
    if keep != "all":
        try:
            sweep(resolved.folder, keep=keep)
        except InputError as error:
            print(f"store.keep {keep}: nothing was removed: {error}")


def _shared_pairs(experiment: Experiment, task: Task) -> int:
    """Human pairs used for all arms: those of the gold models, and of the referee that scores dev prompts, where there is one."""
    return len(task.pairs["gold"]) + (len(task.pairs["dev"]) if experiment.evaluation.dev_prompts else 0)
