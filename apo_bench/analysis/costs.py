"""What arms spent: pair against pair, alone and in this run, against the plan, on annotation and on tuning. No model, no torch."""

import json
import math
from typing import Any, get_args

import numpy as np
import pandas as pd

from apo_bench.analysis.results import POOLED, Run, declared_pairs, exclude_failed, seed_means, shared_seeds
from apo_bench.config.schema import Unit
from apo_bench.formatting import count, rows_of

MATCH_KINDS = {
    "human_pairs": "annotation",
    "golden_responses": "annotation",
    "sampled_responses": "samples",
    "rm_updates": "updates",
    "policy_updates": "updates",
    "flops": "flops",
}
ANNOTATION = ["human_pairs", "golden_responses"]
TUNING = ["policy_updates", "rm_updates", "sampled_responses", "flops"]
FLOPS_TOLERANCE = 0.05
PLAN_TOLERANCE = 0.1
MEASURES = {"wall_s": "seconds of work", "peak_memory_bytes": "peak memory, bytes"}


def budget_matches(run: Run) -> pd.DataFrame:
    """Per compared pair and unit: means over shared seeds, their ratio a / b, and whether what the experiment declares matched is.

    A count matches when it is equal in every seed, flops when they differ by at most 5 % of the larger in every seed. A unit that an arm
    never spent is 0. `kind` and `matched` are empty for units that no match speaks of.
    """
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
            matched = same if kind else ""
            ratio = means[0] / means[1] if means[1] else np.nan
            declared = "yes" if kind in pair.matched else "no"
            rows.append((pair.a, pair.b, unit, *means, ratio, kind, declared, matched))
    return pd.DataFrame(rows, columns=["arm_a", "arm_b", "unit", "used_a", "used_b", "ratio", "kind", "declared", "matched"])


def missed_matches(matches: pd.DataFrame) -> list[str]:
    """The declared matches that a frame of `budget` misses, each as a sentence."""
    found = []
    for one in rows_of(matches[(matches["declared"] == "yes") & (matches["matched"] != "yes")]):
        ratio = "" if math.isnan(one.ratio) else f", ratio {one.ratio:.3g}"
        found.append(f"{one.arm_a} against {one.arm_b}: {one.unit} {count(one.used_a)} against {count(one.used_b)}{ratio}")
    return found


def marginal_costs(run: Run) -> pd.DataFrame:
    """What each arm costs alone and what it added in this run: arm, unit, alone, marginal (means over seeds), and both summed over seeds.

    Marginal is what no arm or seed before it, in the experiment's order, had made or bought; NaN where that was not recorded. Seeds that
    failed are left out. Columns: arm, unit, alone, marginal, alone_sum, marginal_sum.
    """
    ledger = exclude_failed(run.tables["ledger"], run.failed)
    by = ledger[ledger["arm"].isin(run.arms)].groupby(["arm", "unit"])
    means = by[["used", "marginal"]].mean().rename(columns={"used": "alone"})
    sums = by[["used", "marginal"]].agg(lambda values: values.sum(skipna=False)).rename(columns={"used": "alone"})
    return _in_order(means.join(sums.add_suffix("_sum")).reset_index(), run)


def planned_and_spent(run: Run) -> pd.DataFrame:
    """What was planned and what was spent: arm, unit, planned, used (mean over seeds that came through), ratio, off (by more than 10 %)."""
    ledger = exclude_failed(run.tables["ledger"], run.failed)
    used = ledger.astype({"arm": str, "unit": str}).groupby(["arm", "unit"])["used"].mean().rename("used").reset_index()
    table = run.tables["plan"].astype({"arm": str, "unit": str}).merge(used, on=["arm", "unit"])
    table = table[table["arm"].isin(run.arms)].astype({"planned": float, "used": float})
    same = (table["used"] - table["planned"]).abs() <= PLAN_TOLERANCE * table["planned"]
    ratio = (table["used"] / table["planned"]).where(table["planned"] > 0)
    return _in_order(table.assign(ratio=ratio, off=np.where(same, "no", np.where(table["planned"].isna(), "", "yes"))), run)


def time_and_memory(run: Run, timings: pd.DataFrame) -> pd.DataFrame:
    """What was measured: arm, measure, mean, lowest and highest over seeds, n_seeds. It differs from machine to machine and run to run."""
    by = timings[timings["arm"].isin(run.arms)].groupby(["arm", "measure"])["value"]
    return _in_order(by.agg(mean="mean", lowest="min", highest="max", n_seeds="size").reset_index(), run, "measure", tuple(MEASURES))


def _in_order(table: pd.DataFrame, run: Run, column: str = "unit", values: tuple[str, ...] = get_args(Unit)) -> pd.DataFrame:
    """By arm in the experiment's order, then by another column in the order of its values."""
    order = {"arm": run.arms, column: values}
    return table.sort_values(["arm", column], key=lambda one: one.map(order[str(one.name)].index), ignore_index=True)


def annotation_curves(run: Run) -> pd.DataFrame:
    """compare.curves as rows: curve, arm, human_pairs, golden_responses, annotation, scorer, mean, seed_sd, n_seeds.

    What was used is the mean over seeds, `annotation` the sum of both kinds; scores are gold means and ground truth at the arm's final
    round, all axes pooled. Along a curve rows are in the order of annotation. An arm without a finished seed has no row.
    """
    ledger = exclude_failed(run.tables["ledger"], run.failed)
    used = ledger[ledger["unit"].isin(ANNOTATION)].groupby(["arm", "unit"])["used"].mean().to_dict()
    final = seed_means(run.final, POOLED).groupby(["arm", "scorer"])["value"].agg(["mean", "std", "size"]).to_dict("index")
    rows = []
    for curve, arms in run.experiment.compare.curves.items():
        spent = {arm: [float(used.get((arm, unit), 0.0)) for unit in ANNOTATION] for arm in arms if arm in run.final_round}
        for scorer in (one for one in run.scorers if one != "proxy"):
            for arm in sorted(spent, key=lambda arm: sum(spent[arm])):
                if found := final.get((arm, scorer)):
                    rows.append((curve, arm, *spent[arm], sum(spent[arm]), scorer, found["mean"], found["std"], int(found["size"])))
    return pd.DataFrame(rows, columns=["curve", "arm", *ANNOTATION, "annotation", "scorer", "mean", "seed_sd", "n_seeds"])


def tuning_costs(run: Run) -> pd.DataFrame:
    """manifest["tuned"] as rows: arm, trials, scored, chosen (JSON), dev_score of the chosen, lowest and highest, and TUNING's units.

    `trials` counts settings, `scored` those that came to a dev_score. The units are what all trials spent, over all tuning seeds.
    """
    ledger = run.tables["ledger"]
    used = ledger.groupby(["arm", "unit"])["used"].sum().to_dict()
    tuned: dict[str, Any] = run.manifest.get("tuned") or {}
    rows = []
    for arm in (arm for arm in run.arms if arm in tuned):
        chosen, trials = tuned[arm].get("chosen"), tuned[arm].get("trials", [])
        scores = [float(one["dev_score"]) for one in trials if one.get("dev_score") is not None]
        reached = [float(one["dev_score"]) for one in trials if one["setting"] == chosen and one.get("dev_score") is not None]
        span = (min(scores), max(scores)) if scores else (np.nan, np.nan)
        spent = [float(used.get((f"_tune.{arm}", unit), np.nan)) for unit in TUNING]
        rows.append((arm, len(trials), len(scores), json.dumps(chosen), max(reached, default=np.nan), *span, *spent))
    return pd.DataFrame(rows, columns=["arm", "trials", "scored", "chosen", "dev_score", "lowest", "highest", *TUNING])
