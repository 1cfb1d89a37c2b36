"""The trials of tuning: their jobs, and the setting that each arm gets by what its trials reached on dev prompts."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from apo_bench.config import tuning
from apo_bench.config.controls import TRUTH
from apo_bench.config.schema import Tune
from apo_bench.run.experiment import ResolvedExperiment
from apo_bench.run.jobs import Failure, Job, Trials
from apo_bench.run.scheduler import JobRunner, JobSubset


@dataclass(frozen=True)
class Tuning:
    """The result of tuning. `arms`: arm -> its chosen setting and its trials, as the manifest holds them."""

    arms: Mapping[str, Mapping[str, Any]]
    records: Trials
    failed: tuple[Failure, ...] = ()  # of arms that no setting could be chosen for, one for each seed
    postponed: frozenset[str] = frozenset()  # arms with trials that this run leaves to another

    def overrides(self, arm: str) -> dict[str, Any]:
        """The arm's chosen setting as overrides of the experiment; empty where it was not tuned."""
        return tuning.overrides(arm, self.arms[arm]["chosen"]) if arm in self.arms else {}

    def without_setting(self, arm: str) -> bool:
        """Whether the arm was tuned and no setting could be chosen."""
        return any(failure.arm == arm for failure in self.failed)


@dataclass(frozen=True)
class Outcome:
    """What a trial reached on dev prompts; NaN where a seed failed, or where it is not known."""

    dev_score: float = math.nan  # the referee's
    dev_truth: float = math.nan
    kl: float = math.nan  # nats


def trial_jobs(resolved: ResolvedExperiment) -> list[Job]:
    """Every trial of every tuned arm on every tuning seed; empty where nothing is tuned."""
    tune = resolved.experiment.tune
    return [
        resolved.with_overrides(tuning.overrides(arm, setting)).job(arm, seed, trial)
        for arm, settings in _settings(tune).items()
        for trial, setting in enumerate(settings)
        for seed in (tune.seeds if tune else ())
    ]


def run_tuning(runner: JobRunner, subset: JobSubset) -> Tuning:
    """Run the trials of a subset and choose each arm's setting, unless trials of it are left to another run."""
    tune = runner.resolved.experiment.tune
    if tune is None:
        return Tuning({}, {})
    jobs = trial_jobs(runner.resolved)
    wanted = [job for job in jobs if subset.has(job)]
    runner.discard_damaged(wanted)
    messages = {(failure.arm, failure.trial): failure.message for failure in runner.run(wanted)}
    postponed = frozenset(job.arm for job in jobs if not subset.has(job) and runner.record(job) is None)
    records = {(job.arm, job.trial or 0, job.seed): record for job in jobs if (record := runner.record(job))}
    arms: dict[str, Mapping[str, Any]] = {}
    failed: list[Failure] = []
    for arm, settings in _settings(tune).items():
        if arm in postponed:
            continue
        outcomes = [_outcome(records, arm, trial, tune, runner.resolved.experiment.compare.round) for trial in range(len(settings))]
        by = [outcome.dev_truth if tune.by == TRUTH else outcome.dev_score for outcome in outcomes]
        try:
            chosen = settings[tuning.best(by, [outcome.kl for outcome in outcomes], tune.max_kl)]
        except ValueError as error:
            reason = f": {messages[arm, 0]}" if (arm, 0) in messages else ""
            failed += [Failure(arm, seed, f"tuning: {error}{reason}") for seed in runner.resolved.experiment.seeds]
            continue
        trials = []
        for trial, (setting, outcome) in enumerate(zip(settings, outcomes, strict=True)):
            reached = {name: None if math.isnan(value) else value for name, value in asdict(outcome).items()}
            error = {"error": messages[arm, trial]} if math.isnan(outcome.dev_score) else {}
            trials.append({"setting": setting, **reached, **error})
        arms[arm] = {"chosen": chosen, "trials": trials}
    return Tuning(arms, records, tuple(failed), postponed)


def _settings(tune: Tune | None) -> dict[str, tuple[tuning.Setting, ...]]:
    return {arm: tuning.trials(arm, grid, tune.trials) for arm, grid in tune.grids.items()} if tune else {}


def _outcome(records: Trials, arm: str, trial: int, tune: Tune, rule: str) -> Outcome:
    """Means over the tuning seeds at the round that counts."""
    rounds = []
    for seed in tune.seeds:
        record = records.get((arm, trial, seed))
        if record is None:
            return Outcome()
        place = tuning.taken_round(record["dev_scores"], rule)
        rounds.append([math.nan if record[name][place] is None else record[name][place] for name in ("dev_scores", "dev_truth", "kl")])
    return Outcome(*(sum(values) / len(values) for values in zip(*rounds, strict=True)))
