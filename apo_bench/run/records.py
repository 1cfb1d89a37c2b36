"""The record of a finished job, and its key, which names everything that can change it. Nothing here imports torch."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from apo_bench.config.controls import AA, ORACLE, aa_seeds, made_of
from apo_bench.config.finished_arms import with_paths
from apo_bench.config.plugins import resolve, source_files
from apo_bench.config.prompt_sets import by_content as by_content_of_sets
from apo_bench.config.schema import Arm, Experiment, SamplingEngine
from apo_bench.data.capability_tasks import file_identity
from apo_bench.engines import engine_module, launch
from apo_bench.engines.vllm_server import version_of
from apo_bench.errors import NotHere
from apo_bench.hashing import checksum, code_hash, digest, path_identity
from apo_bench.models.adapter_folder import foreign_base, is_foreign_adapter
from apo_bench.models.pretrained_weights import by_content
from apo_bench.provenance import versions
from apo_bench.run.experiment import ResolvedExperiment
from apo_bench.run.jobs import Job
from apo_bench.store import is_sealed, sealed, write_json

TRUNCATED = {  # counts in a record, with what was cut
    "truncated_prompts": "prompts cut on the left",
    "truncated_scored": "conversations scored cut on the left",
    "cut_responses": "samples cut at the length limit",
}


def finished(job: Job, resolved: ResolvedExperiment) -> dict[str, Any] | None:
    """The job's record, if it is undamaged and its key is the one that the experiment gives it; otherwise None."""
    try:
        record = json.loads(job.record.read_text())
        undamaged = is_sealed(record)
    except (OSError, ValueError, RecursionError):
        return None
    return record if undamaged and record.get("key") == record_key(job, resolved) else None


def write_record(job: Job, resolved: ResolvedExperiment, record: Mapping[str, Any]) -> None:
    """Write the job's record, with its key; from now on the job is finished."""
    write_json(job.record, sealed({"key": record_key(job, resolved), **record}))


def record_key(job: Job, resolved: ResolvedExperiment) -> str:
    """Hash of everything that can change the job's record. `resolved` is its experiment, under any overrides."""
    resolved = resolved.under(job.overrides)
    experiment, task = resolved.experiment, resolved.task
    choice, arm = arm_of(experiment, job.arm), made_of(experiment, job.arm)
    if job.arm == ORACLE:
        return digest({"reference": record_key(replace(job, arm=arm), resolved), "n": experiment.controls.oracle_n})
    return digest({
        "models": by_content(experiment.models).model_dump(mode="json", exclude={"policy": {"sampling": {"engine"}}}),
        "evaluation": experiment.evaluation.model_dump(
            mode="json", exclude={"sampling": {"engine"}, "prompt_sets": True, "capabilities": True}
        ),
        **_capabilities(job, experiment),
        "samplers": [_sampler(section.sampling.engine) for section in (experiment.models.policy, experiment.evaluation)],
        "budget": experiment.budget_of(arm),
        "tuning": job.trial is not None,
        "arm": _by_content(choice).model_dump(mode="json"),
        "seed": job.seed,
        "task": task.fingerprint,
        "code": code_hash(
            "apo_bench.run.worker",
            engine_module(experiment.engine),
            *task.source_files,
            *source_files(choice.use, choice.parameters, base=resolved.base),
        ),
        "versions": versions(),
        **launch.configuration(experiment.executor.launch),
        **(by_content_of_sets(experiment.evaluation) if job.trial is None and job.arm in experiment.arms else {}),
    })  # fmt: skip


def _capabilities(job: Job, experiment: Experiment) -> dict[str, Any]:
    """The lm-eval tasks that an arm's final policy is run on; of trials and controls none."""
    settings = experiment.evaluation.capabilities
    is_run = settings is not None and job.trial is None and job.arm in experiment.arms
    return {"capabilities": file_identity(settings)} if is_run and settings else {}


def _by_content(arm: Arm) -> Arm:
    """The arm with hashes of its finished policies and files in place of their paths; of adapters with their base."""

    def content(path: str) -> Any:
        if not is_foreign_adapter(Path(path)) or arm.parameters.get("base"):
            return path_identity(path)
        return [path_identity(path), content(foreign_base(Path(path)))]

    return with_paths(arm, content, lambda path: checksum(Path(path)) if Path(path).is_file() else path)


def _sampler(engine: SamplingEngine | None) -> Any:
    """A sampling engine, for a key: by its version, wherever its environment lies. A server at a url is not asked: a replay needs none."""
    if engine is None or engine.url:
        return engine and engine.model_dump(mode="json")
    try:
        version = version_of(engine.python, None)
    except NotHere:  # then nothing is sampled either
        version = None
    return {**engine.model_dump(mode="json", exclude={"python", "kv_cache_gb"}), "version": version}


def arm_of(experiment: Experiment, name: str) -> Arm:
    """The arm of this name; for a control, its reference."""
    return experiment.arms[made_of(experiment, name)]


def method(job: Job, resolved: ResolvedExperiment) -> Any:
    """The method of a job's arm. Raises InputError, naming the experiment's file and the arm."""
    resolved = resolved.under(job.overrides)
    choice, arm = arm_of(resolved.experiment, job.arm), made_of(resolved.experiment, job.arm)
    return resolve(choice.use, choice.parameters, base=resolved.base, arm=f"{resolved.path}: arms.{arm}")


def control_jobs(template: Job, experiment: Experiment) -> list[Job]:
    """The jobs of the controls: the reference under seeds of its own, and an oracle for each seed of the experiment.

    `template` has the overrides of the reference, as it was tuned or sized. An oracle needs the record of its seed's reference.
    """
    controls = experiment.controls
    again = [replace(template, arm=AA, seed=seed) for seed in aa_seeds(experiment)] if controls.aa else []
    return [*again, *(replace(template, arm=ORACLE, seed=seed) for seed in experiment.seeds if controls.oracle)]
