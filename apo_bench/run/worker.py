"""Runs one job in a worker process: an arm-seed, from its method to its record, or a model that all arms share."""

import json
import traceback
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from apo_bench.config.controls import ORACLE, made_of
from apo_bench.config.schema import EngineChoice, Executor, Gold
from apo_bench.engines import open_engine
from apo_bench.engines.mismatch import ELSEWHERE, sampler_rows
from apo_bench.engines.protocol import Engine
from apo_bench.errors import BudgetExceeded, InputError, shortened
from apo_bench.hashing import checksum
from apo_bench.lab.ledger import STOCKS, UNITS
from apo_bench.models.precision import summary
from apo_bench.run import records
from apo_bench.run.experiment import ResolvedExperiment, resolve_experiment
from apo_bench.run.jobs import GOLD, INITIAL, Job, Report
from apo_bench.run.training_curves import fits_of, keep_curves
from apo_bench.store import write_text

MOST_LOG = 100_000  # characters of a traceback
OTHER = {"version": "vllm"}  # a server that a method names


def work(job: Job, report: Report) -> str | None:
    """Run one job; returns its error message, or None."""
    try:
        resolved = _experiment(job)
        context = _context(job, resolved, report)
        if job.arm == INITIAL:
            report("initial policy")
            _ = context.initial_policy
        elif job.arm == GOLD:
            for gold in context.experiment.models.gold:
                if job.seed in gold.seeds:
                    report(f"gold {gold.name}")
                    _make_gold(context, gold, job.seed)
        elif job.arm == ORACLE:
            _run_oracle(context, job, resolved, report)
        else:
            _run_arm(context, job, resolved, report)
    except BudgetExceeded as error:
        return str(error)
    except InputError as error:
        return f"{error}"
    except (Exception, SystemExit, GeneratorExit) as error:  # a method may raise anything
        message, log = shortened(f"{type(error).__name__}: {error}".splitlines()[0]), job.log
        try:
            write_text(log, shortened(traceback.format_exc(), MOST_LOG))
        except OSError:  # the disk may be full
            return message
        return f"{message} (see {log})"
    return None


def _make_gold(context: Any, gold: Gold, seed: int) -> None:
    try:
        context.gold(gold, seed)
    except InputError as error:
        raise InputError(f"gold {gold.name}, seed {seed}: {error}") from None


def _run_arm(context: Any, job: Job, resolved: ResolvedExperiment, report: Report) -> None:
    """Run the arm's method, evaluate its rounds, and write its record."""
    from apo_bench.evaluation.capabilities import capability_keys
    from apo_bench.evaluation.evaluate import RoundEvaluation, evaluate
    from apo_bench.evaluation.prompt_sets import evaluate_sets
    from apo_bench.types import Round

    lab = context.lab(job.seed, arm=made_of(context.experiment, job.arm))
    records.method(job, resolved).run(lab)
    if not lab.rounds:
        raise InputError(f"{job.experiment}: arms.{job.arm}: it finished no round (lab.finish_round was not called)")
    record: dict[str, Any] = {"used": lab.used}
    if job.trial is not None:  # tuning sees dev prompts, and nothing else
        report("scoring on dev prompts")
        evaluations = [RoundEvaluation(context, round_, job.seed) for round_ in lab.rounds]
        record["dev_scores"] = [evaluation.dev_score()[0]["value"] for evaluation in evaluations]
        record["dev_truth"] = [evaluation.dev_truth() for evaluation in evaluations]
        kl = ([row["value"] for row in evaluation.divergence(context.dev_prompts) if row["axis"] == "all"] for evaluation in evaluations)
        record["kl"] = [values[0] if values else None for values in kl]
    else:
        first = lab.rounds[0].reward_model
        rounds = [Round(context.initial_policy, first), *lab.rounds]  # round 0: before any training
        record["rounds"] = []
        for number, round_ in enumerate(rounds):
            report(f"evaluating round {number}")
            evaluation = evaluate(context, round_, job.seed, first).key
            reward_model = round_.reward_model.key if round_.reward_model else None
            record["rounds"].append({"policy": round_.policy.key, "reward_model": reward_model, "evaluation": evaluation})
            if job.arm in context.experiment.arms and (sets := evaluate_sets(context, round_, job.seed, number, len(lab.rounds))):
                record["rounds"][-1]["prompt_sets"] = sets
        record |= {
            "truncated": {name: sum(counts.get(name, 0) for counts in lab.charged.values()) for name in records.TRUNCATED},
            "charged": {
                key: {unit: counts[unit] for unit in (*UNITS, ELSEWHERE) if counts.get(unit)} for key, counts in lab.charged.items()
            },
            "seen": {unit: sorted(lab.seen[unit]) for unit in STOCKS},
            "samplers": _samplers(context, lab),
            "hardware": dict(context.engine.hardware),
            "precision": summary(context.experiment.models, context.engine.hardware.get("device")),
            "wall_s": lab.wall_s,
            "peak_memory_bytes": lab.peak_memory_bytes,
            "peak_device_bytes": lab.peak_device_bytes,
            "floor": context.floor_accuracy(job.seed),
            "gold": context.gold_accuracy().key,
        }
        if context.experiment.evaluation.capabilities and job.arm in context.experiment.arms:
            report("capabilities")
            record["capabilities"] = capability_keys(context, lab.rounds[-1].policy)
    fits = {"arm": fits_of(context.store, lab.charged, lab.rounds), "shared": fits_of(context.store, sorted(context.charged))}
    record["curves"] = {whose: keep_curves(context.store, curves) for whose, curves in fits.items()}
    records.write_record(job, resolved, {**record, "bench": context.charged, "artifacts": context.store.used})


def _samplers(context: Any, lab: Any) -> list[dict[str, Any]]:
    """Rows of the table `samplers`; none where no server samples."""
    settings = {"arm": context.policy_model.sampling, "evaluation": context.experiment.evaluation.sampling}
    servers = {purpose: context.engine.sampler(sampling, context.policy_model) for purpose, sampling in settings.items()}
    charged = {"arm": lab.charged.values(), "evaluation": context.charged.values()}
    rows = [row for purpose, server in servers.items() for row in sampler_rows(purpose, charged[purpose], (server or OTHER)["version"])]
    return rows if any(row["measured"] for row in rows) else []


def _run_oracle(context: Any, job: Job, resolved: ResolvedExperiment, report: Report) -> None:
    """Run the oracle on the reference's last policy, which the reference's method, run once more, takes from the store."""
    from apo_bench.evaluation.oracle import oracle

    reference = replace(job, arm=made_of(context.experiment, job.arm))
    reference_record = records.finished(reference, resolved)
    if reference_record is None:
        raise InputError(f"controls.oracle: {reference.arm} has no result for seed {job.seed}")
    lab = context.lab(job.seed, arm=reference.arm)
    records.method(reference, resolved).run(lab)
    if lab.rounds[-1].policy.key != reference_record["rounds"][-1]["policy"]:
        raise InputError(
            f"controls.oracle: {reference.arm}, seed {job.seed}: run once more it ends with another policy (on other hardware, or as its "
            "method is not deterministic)"
        )
    report("the best of several answers")
    evaluation = oracle(context, lab.rounds[-1], job.seed)
    rounds = [{"round": len(lab.rounds), "policy": lab.rounds[-1].policy.key, "evaluation": evaluation.key}]
    record = {"rounds": rounds, "wall_s": 0.0}  # it trains no policy
    records.write_record(job, resolved, {**record, "bench": context.charged, "artifacts": context.store.used})


def _context(job: Job, resolved: ResolvedExperiment, report: Report) -> Any:
    from apo_bench.evaluation.context import EvaluationContext
    from apo_bench.store import RunStore

    experiment, store = resolved.experiment, RunStore(job.folder)
    engine = _engine(experiment.engine, experiment.executor, job.folder)  # pyright: ignore[reportArgumentType] (frozen models can be hashed)
    return EvaluationContext(experiment, resolved.task, store, engine, lambda stage, used: report(stage, store.tokens, dict(used)))


@cache
def _engine(choice: EngineChoice, executor: Executor, folder: Path) -> Engine:
    """One for all jobs of a worker, so that models stay loaded from one job to the next."""
    return open_engine(choice, executor, folder)


_experiments: dict[tuple[Path, str, Path], ResolvedExperiment] = {}  # by file, its content, and run folder


def _experiment(job: Job) -> ResolvedExperiment:
    """The job's experiment. A worker runs many jobs, and reads a file again only when it has changed."""
    key = (job.experiment, checksum(job.experiment), job.folder)
    if key not in _experiments:
        _experiments[key] = resolve_experiment(job.experiment, json.loads(job.overrides), job.folder)
    return _experiments[key].under(job.overrides)
