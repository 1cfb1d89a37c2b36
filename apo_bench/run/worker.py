"""One job, in a worker: an arm-seed from its method to its record, or a part of the bench."""

import traceback
from dataclasses import replace
from typing import Any

from apo_bench.config.controls import ORACLE, made_of
from apo_bench.errors import BudgetExceeded, InputError
from apo_bench.lab.ledger import STOCKS, UNITS
from apo_bench.run import records
from apo_bench.run.jobs import GOLD, INITIAL, Job, Report
from apo_bench.run.manifest import TRUNCATED
from apo_bench.store import write_text
from apo_bench.training import launch as launched


def work(job: Job, report: Report) -> str | None:
    """Run one job; returns what went wrong, or None."""
    try:
        bench = _bench(job, report)
        if job.arm == INITIAL:
            report("initial policy")
            _ = bench.initial_policy
        elif job.arm == GOLD:
            for gold in bench.experiment.models.gold:
                if job.seed in gold.seeds:
                    report(f"gold {gold.name}")
                    bench.gold(gold, job.seed)
        elif job.arm == ORACLE:
            _run_oracle(bench, job, report)
        else:
            _run_arm(bench, job, report)
    except BudgetExceeded as error:
        return str(error)
    except InputError as error:
        return f"{error}"
    except Exception as error:
        message, log = f"{type(error).__name__}: {error}".splitlines()[0], job.folder / "logs" / f"{job.record.stem}.log"
        try:
            write_text(log, traceback.format_exc())
        except OSError:  # no room for it: then the message has to do
            return message
        return f"{message} (see {log})"
    return None


def _run_arm(bench: Any, job: Job, report: Report) -> None:
    from apo_bench.evaluation.evaluate import Examination, evaluate
    from apo_bench.types import Round

    lab = bench.lab(job.seed, arm=made_of(bench.experiment, job.arm))
    records.method(job).run(lab)
    if not lab.rounds:
        raise InputError(f"{job.experiment}: arms.{job.arm}: it finished no round (lab.finish_round was not called)")
    record: dict[str, Any] = {"used": lab.used}
    if job.trial is not None:  # tuning sees dev prompts, and nothing else
        report("scoring on dev prompts")
        examined = [Examination(bench, one, job.seed) for one in lab.rounds]
        record["dev_scores"] = [one.dev_score()[0]["value"] for one in examined]
        kl = ([row["value"] for row in one.divergence(bench.dev_prompts) if row["axis"] == "all"] for one in examined)
        record["kl"] = [values[0] if values else None for values in kl]
    else:
        first = lab.rounds[0].reward_model
        rounds = [Round(bench.initial_policy, first), *lab.rounds]  # round 0: nobody has moved yet
        record["rounds"] = []
        for number, one in enumerate(rounds):
            report(f"evaluating round {number}")
            evaluation = evaluate(bench, one, job.seed, first).key
            reward_model = one.reward_model.key if one.reward_model else None
            record["rounds"].append({"policy": one.policy.key, "reward_model": reward_model, "evaluation": evaluation})
        record |= {
            "truncated": {name: sum(counts.get(name, 0) for counts in lab.charged.values()) for name in TRUNCATED},
            "charged": {key: {unit: counts[unit] for unit in UNITS if counts.get(unit)} for key, counts in lab.charged.items()},
            "seen": {unit: sorted(lab.seen[unit]) for unit in STOCKS},
            "hardware": dict(bench.hardware),
            "wall_s": lab.wall_s,
            "peak_memory_bytes": lab.peak_memory_bytes,
            "floor": bench.floor_accuracy(job.seed),
            "gold": bench.gold_accuracy().key,
        }
    records.write_record(job, {**record, "bench": bench.charged, "artifacts": bench.store.used})


def _run_oracle(bench: Any, job: Job, report: Report) -> None:
    """Of the policy that the reference ended with: its method is run once more, and finds everything in the store."""
    from apo_bench.evaluation.oracle import oracle

    reference = replace(job, arm=made_of(bench.experiment, job.arm))
    kept = records.finished(reference)
    if kept is None:
        raise InputError(f"controls.oracle: {reference.arm} has no result for seed {job.seed}")
    lab = bench.lab(job.seed, arm=reference.arm)
    records.method(reference).run(lab)
    if lab.rounds[-1].policy.key != kept["rounds"][-1]["policy"]:
        raise InputError(
            f"controls.oracle: {reference.arm}, seed {job.seed}: run once more it ends with another policy (on other hardware, or as its "
            "method is not deterministic)"
        )
    report("the best of several answers")
    made = oracle(bench, lab.rounds[-1], job.seed)
    rounds = [{"round": len(lab.rounds), "policy": lab.rounds[-1].policy.key, "evaluation": made.key}]
    about = {"rounds": rounds, "wall_s": 0.0}  # of making policies, which it does not
    records.write_record(job, {**about, "bench": bench.charged, "artifacts": bench.store.used})


def _bench(job: Job, report: Report) -> Any:
    import torch

    from apo_bench.evaluation.context import Bench
    from apo_bench.store import RunStore

    experiment, task = records.load(job.experiment, job.overrides)
    hardware = {"threads": torch.get_num_threads(), "device": "cuda" if torch.cuda.is_available() else "cpu"}
    hardware |= launched.identity(experiment.executor.launch)
    store = RunStore(job.folder)
    return Bench(experiment, task, store, hardware, lambda stage, used: report(stage, store.tokens, dict(used)))
