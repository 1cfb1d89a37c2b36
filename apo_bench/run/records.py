"""What a job ends with: its record, and the key that says which question it answers. Nothing here imports torch."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from apo_bench.config.controls import AA, ORACLE, aa_seeds, made_of
from apo_bench.config.load import load_experiment
from apo_bench.config.plugins import resolve, source_files
from apo_bench.config.schema import Arm, Experiment
from apo_bench.data.task import Task, load_task
from apo_bench.engines import engine_module, launch
from apo_bench.hashing import digest
from apo_bench.models.resolve import by_content, resolve_model, with_paths
from apo_bench.provenance import code_hash, versions
from apo_bench.run.jobs import Job
from apo_bench.shipped import find_beside
from apo_bench.store import is_sealed, sealed, write_json


def finished(job: Job) -> dict[str, Any] | None:
    """The record of a finished arm-seed, if it still answers this question and is as it was written."""
    try:
        record = json.loads(job.record.read_text())
        whole = is_sealed(record)
    except (OSError, ValueError, RecursionError):
        return None
    return record if whole and record.get("key") == record_key(job) else None


def write_record(job: Job, record: Mapping[str, Any]) -> None:
    """Keep what a job ended with; from now on it is finished."""
    write_json(job.record, sealed({"key": record_key(job), **record}))


def record_key(job: Job) -> str:
    """Names everything that can change an arm-seed's record."""
    experiment, task = load(job.experiment, job.overrides)
    choice, arm = chosen(experiment, job.arm), made_of(experiment, job.arm)
    if job.arm == ORACLE:
        return digest({"reference": record_key(replace(job, arm=arm)), "n": experiment.controls.oracle_n})
    return digest({
        "models": by_content(experiment.models).model_dump(mode="json"),
        "evaluation": experiment.evaluation.model_dump(mode="json"),
        "budget": experiment.budget_of(arm),
        "tuning": job.trial is not None,
        "arm": choice.model_dump(mode="json"),
        "seed": job.seed,
        "task": task.fingerprint,
        "code": code_hash(
            "apo_bench.run.worker",
            engine_module(experiment.engine),
            *task.source_files,
            *source_files(choice.use, choice.parameters, base=job.experiment.parent),
        ),
        "versions": versions(),
        **launch.configuration(experiment.executor.launch),
    })  # fmt: skip


def chosen(experiment: Experiment, arm: str) -> Arm:
    """What an arm is made of; a control, what its reference is."""
    return experiment.arms[made_of(experiment, arm)]


def method(job: Job) -> Any:
    """The method of a job's arm. Raises InputError, naming the experiment's file and the arm."""
    experiment, _ = load(job.experiment, job.overrides)
    choice, arm = chosen(experiment, job.arm), made_of(experiment, job.arm)
    return resolve(choice.use, choice.parameters, base=job.experiment.parent, arm=f"{job.experiment}: arms.{arm}")


def control_jobs(question: Job, experiment: Experiment) -> list[Job]:
    """What the controls run: the reference under seeds of its own, and, where its records are there, an oracle for each of its seeds.

    `question` has the reference's own overrides, where it was tuned or sized.
    """
    asked = experiment.controls
    again = [replace(question, arm=AA, seed=seed) for seed in aa_seeds(experiment)] if asked.aa else []
    return [*again, *(replace(question, arm=ORACLE, seed=seed) for seed in experiment.seeds if asked.oracle)]


def opened(path: Path, overrides: Mapping[str, Any] | None = None) -> tuple[Experiment, Task]:
    """The experiment of a file, with model names resolved to folders or hub ids, and its task."""
    return load(path.resolve(), json.dumps(dict(overrides or {}), sort_keys=True))


def reopen(folder: Path, base: Path) -> tuple[Experiment, Task]:
    """The experiment of a run folder and its task; `base` is the folder that their files are relative to."""
    return _resolved(load_experiment(folder / "experiment.yaml"), base)


@cache
def load(path: Path, overrides: str) -> tuple[Experiment, Task]:
    """As `opened`, once for each question; overrides as JSON, since a cache needs them hashable."""
    return _resolved(load_experiment(path, json.loads(overrides)), path.parent)


def _resolved(experiment: Experiment, base: Path) -> tuple[Experiment, Task]:
    task = _task(experiment.task.use, json.dumps(experiment.task.options, sort_keys=True), base)
    models = with_paths(experiment.models, lambda path: resolve_model(path, base))
    executor = experiment.executor
    if executor.launch is not None:
        executor = executor.model_copy(update={"launch": str(find_beside(executor.launch, base) or executor.launch)})
    return experiment.model_copy(update={"models": models, "executor": executor}), task


@cache
def _task(use: str, options: str, base: Path) -> Task:
    """One for all settings of an experiment; options as JSON, since a cache needs them hashable."""
    return load_task(use, json.loads(options), base=base)
