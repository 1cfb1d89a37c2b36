"""What arms spent: matched pairs, marginal costs, plan against ledger, annotation, tuning, time and memory."""

import json
import math
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import pandas as pd

from apo_bench.analysis.results import POOLED, Run, declared_pairs, exclude_failed, in_order, seed_means, shared_seeds
from apo_bench.config.schema import Comparison, Unit
from apo_bench.config.tuning import TUNING
from apo_bench.formatting import Row, rows_of, spent

MATCH_KINDS = {
    "human_pairs": "annotation",
    "golden_responses": "annotation",
    "sampled_responses": "samples",
    "rm_updates": "updates",
    "policy_updates": "updates",
    "flops": "flops",
}
ANNOTATION = ["human_pairs", "golden_responses"]
TUNING_UNITS = ["policy_updates", "rm_updates", "sampled_responses", "flops"]
FLOPS_TOLERANCE = 0.05
PLAN_TOLERANCE = 0.1
MEASURES = {"wall_s": "seconds of work", "peak_memory_bytes": "peak memory, bytes", "peak_device_bytes": "peak device memory, bytes"}


def budget_matches(run: Run) -> pd.DataFrame:
    """The spending of each compared pair by unit, and whether it is matched as the experiment declares.

    Columns: arm_a, arm_b, unit, used_a, used_b (means over shared seeds), ratio (a / b), kind (the match the unit belongs to), declared,
    matched ("yes", "no", "unknown"). A count matches when it is equal in every seed, flops when they differ by at most 5 % of the larger
    in every seed; arms that different engines sampled match in nothing. A unit that an arm never spent is 0. `kind` and `matched` are ""
    for units of no match.
    """
    engines = sampling_engines(run)
    ledger = run.tables["ledger"]
    order = {unit: i for i, unit in enumerate(get_args(Unit))}
    rows = []
    for _, pair in declared_pairs(run):
        both = exclude_failed(ledger[ledger["arm"].isin([pair.a, pair.b])], run.failed)
        seeds = shared_seeds(both, pair)
        used = both.groupby(["arm", "unit", "seed"])["used"].sum(min_count=1).to_dict()
        for unit in sorted({*MATCH_KINDS, *both["unit"]}, key=lambda unit: (order.get(unit, len(order)), unit)):
            a, b = (np.array([float(used.get((arm, unit, seed), 0.0)) for seed in seeds]) for arm in (pair.a, pair.b))
            kind = MATCH_KINDS.get(unit, "")
            means = (float(a.mean()), float(b.mean())) if seeds else (np.nan, np.nan)
            tolerance = FLOPS_TOLERANCE * np.maximum(a, b) if kind == "flops" else 0
            same = "unknown" if np.isnan([a, b]).any() else "yes" if seeds and (np.abs(a - b) <= tolerance).all() else "no"
            matched = ("no" if different_engines(engines, pair) else same) if kind else ""
            ratio = means[0] / means[1] if means[1] else np.nan
            declared = "yes" if kind in pair.matched else "no"
            rows.append((pair.a, pair.b, unit, *means, ratio, kind, declared, matched))
    return pd.DataFrame(rows, columns=["arm_a", "arm_b", "unit", "used_a", "used_b", "ratio", "kind", "declared", "matched"])


def sampling_engines(run: Run) -> dict[str, frozenset[str]]:
    """What sampled each arm's responses, over its seeds; empty where no server sampled any arm's."""
    table = run.tables["samplers"]
    rows = table[table["purpose"] == "arm"]
    return {str(arm): frozenset(group) for arm, group in rows.groupby("arm")["engine"]}


def different_engines(engines: Mapping[str, frozenset[str]], pair: Comparison) -> bool:
    """Whether both arms of a pair were sampled, and not by the same engines."""
    return pair.a in engines and pair.b in engines and engines[pair.a] != engines[pair.b]


def missed_matches(matches: pd.DataFrame) -> list[str]:
    """A sentence for each declared match that a frame of `budget_matches` misses."""
    missed = rows_of(matches[(matches["declared"] == "yes") & (matches["matched"] != "yes")])
    return [f"{match.arm_a} against {match.arm_b}: {match.unit} {amounts_of(match)}" for match in missed]


def amounts_of(match: Row) -> str:
    """What both arms of a row of `budget_matches` used, and the ratio."""
    ratio = "" if math.isnan(match.ratio) else f", ratio {match.ratio:.3g}"
    return f"{spent(match.used_a)} against {spent(match.used_b)}{ratio}"


def marginal_costs(run: Run) -> pd.DataFrame:
    """The cost of each arm alone, and what it added to this run.

    Columns: arm, unit, alone, marginal (means over seeds), alone_sum, marginal_sum (sums over seeds). Marginal costs exclude whatever an
    earlier arm or seed, in the experiment's order, had computed or bought; NaN where that was not recorded. Failed seeds are left out.
    """
    ledger = exclude_failed(run.tables["ledger"], run.failed)
    by = ledger[ledger["arm"].isin(run.arms)].groupby(["arm", "unit"])
    means = by[["used", "marginal"]].mean().rename(columns={"used": "alone"})
    sums = by[["used", "marginal"]].agg(lambda values: values.sum(skipna=False)).rename(columns={"used": "alone"})
    return in_order(means.join(sums.add_suffix("_sum")).reset_index(), run, ["arm", "unit"], unit=get_args(Unit))


def planned_and_spent(run: Run) -> pd.DataFrame:
    """Planned and actual spending: arm, unit, planned, used (mean over finished seeds), ratio, off ("yes" beyond 10 %, "": no plan)."""
    ledger = exclude_failed(run.tables["ledger"], run.failed)
    used = ledger.astype({"arm": str, "unit": str}).groupby(["arm", "unit"])["used"].mean().rename("used").reset_index()
    table = run.tables["plan"].astype({"arm": str, "unit": str}).merge(used, on=["arm", "unit"])
    table = table[table["arm"].isin(run.arms)].astype({"planned": float, "used": float})
    same = (table["used"] - table["planned"]).abs() <= PLAN_TOLERANCE * table["planned"]
    ratio = (table["used"] / table["planned"]).where(table["planned"] > 0)
    table = table.assign(ratio=ratio, off=np.where(same, "no", np.where(table["planned"].isna(), "", "yes")))
    return in_order(table, run, ["arm", "unit"], unit=get_args(Unit))


def time_and_memory(run: Run, timings: pd.DataFrame) -> pd.DataFrame:
    """Time and memory, which differ from run to run: arm, measure, mean, lowest and highest over seeds, n_seeds."""
    keys = ["arm", "measure"]
    by = timings[timings["arm"].isin(run.arms)].groupby(keys)["value"]
    return in_order(by.agg(mean="mean", lowest="min", highest="max", n_seeds="size").reset_index(), run, keys, measure=tuple(MEASURES))


def annotation_curves(run: Run) -> pd.DataFrame:
    """The curves of compare.curves: score by annotation.

    Columns: curve, arm, human_pairs, golden_responses, annotation (their sum), scorer, mean, seed_sd, n_seeds. Amounts are means over
    seeds; scores are those of gold models and ground truth at the arm's final round, all axes pooled. Along a curve rows are sorted by
    annotation. An arm without a finished seed has no row.
    """
    ledger = exclude_failed(run.tables["ledger"], run.failed)
    used = ledger[ledger["unit"].isin(ANNOTATION)].groupby(["arm", "unit"])["used"].mean().to_dict()
    final = seed_means(run.final_scores, POOLED).groupby(["arm", "scorer"])["value"].agg(["mean", "std", "size"]).to_dict("index")
    rows = []
    for curve, arms in run.experiment.compare.curves.items():
        spent = {arm: [float(used.get((arm, unit), 0.0)) for unit in ANNOTATION] for arm in arms if arm in run.final_round}
        for scorer in (name for name in run.scorers if name != "proxy"):
            for arm in sorted(spent, key=lambda arm: sum(spent[arm])):
                if statistics := final.get((arm, scorer)):
                    rows.append(
                        (curve, arm, *spent[arm], sum(spent[arm]), scorer, statistics["mean"], statistics["std"], int(statistics["size"]))
                    )
    return pd.DataFrame(rows, columns=["curve", "arm", *ANNOTATION, "annotation", "scorer", "mean", "seed_sd", "n_seeds"])


def tuning_costs(run: Run) -> pd.DataFrame:
    """Tuning by arm: arm, trials, scored, chosen (JSON), dev_score (of the chosen setting), lowest, highest, and TUNING_UNITS.

    `trials` counts settings, `scored` those with a dev_score. The units are what all trials spent, over all tuning seeds.
    """
    ledger = run.tables["ledger"]
    used = ledger.groupby(["arm", "unit"])["used"].sum().to_dict()
    tuned: dict[str, Any] = run.manifest.get("tuned") or {}
    rows = []
    for arm in (arm for arm in run.arms if arm in tuned):
        chosen, trials = tuned[arm].get("chosen"), tuned[arm].get("trials", [])
        scores = [float(trial["dev_score"]) for trial in trials if trial.get("dev_score") is not None]
        reached = [float(trial["dev_score"]) for trial in trials if trial["setting"] == chosen and trial.get("dev_score") is not None]
        span = (min(scores), max(scores)) if scores else (np.nan, np.nan)
        spent = [float(used.get((f"{TUNING}{arm}", unit), np.nan)) for unit in TUNING_UNITS]
        rows.append((arm, len(trials), len(scores), json.dumps(chosen), max(reached, default=np.nan), *span, *spent))
    return pd.DataFrame(rows, columns=["arm", "trials", "scored", "chosen", "dev_score", "lowest", "highest", *TUNING_UNITS])
