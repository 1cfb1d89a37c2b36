"""What arms spent: pair against pair, what annotation bought, and what tuning cost. No model, no torch."""

import json
from typing import Any, get_args

import numpy as np
import pandas as pd

from apo_bench.config import Unit
from apo_bench.results import POOLED, Run, comparisons, seed_means, shared_seeds, without

KINDS = {
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


def budget(run: Run) -> pd.DataFrame:
    """Per compared pair and unit: means over shared seeds, their ratio a / b, and whether what the experiment declares matched is.

    A count matches when it is equal in every seed, flops when they differ by at most 5 % of the larger in every seed. A unit that an arm
    never spent is 0. `kind` and `matched` are empty for units that no match speaks of.
    """
    ledger = run.tables["ledger"]
    order = {unit: i for i, unit in enumerate(get_args(Unit))}
    rows = []
    for _, pair in comparisons(run):
        both = without(ledger[ledger["arm"].isin([pair.a, pair.b])], run.failed)
        seeds = shared_seeds(both, pair)
        used = both.groupby(["arm", "unit", "seed"])["used"].sum().to_dict()
        for unit in sorted({*KINDS, *both["unit"]}, key=lambda unit: (order.get(unit, len(order)), unit)):
            a, b = (np.array([float(used.get((arm, unit, seed), 0.0)) for seed in seeds]) for arm in (pair.a, pair.b))
            kind = KINDS.get(unit, "")
            means = (float(a.mean()), float(b.mean())) if seeds else (np.nan, np.nan)
            tolerance = FLOPS_TOLERANCE * np.maximum(a, b) if kind == "flops" else 0
            matched = "" if not kind else "yes" if seeds and (np.abs(a - b) <= tolerance).all() else "no"
            ratio = means[0] / means[1] if means[1] else np.nan
            declared = "yes" if kind in pair.matched else "no"
            rows.append((pair.a, pair.b, unit, *means, ratio, kind, declared, matched))
    return pd.DataFrame(rows, columns=["arm_a", "arm_b", "unit", "used_a", "used_b", "ratio", "kind", "declared", "matched"])


def by_annotation(run: Run) -> pd.DataFrame:
    """compare.curves as rows: curve, arm, human_pairs, golden_responses, annotation, scorer, mean, seed_sd, n_seeds.

    What was used is the mean over seeds, `annotation` the sum of both kinds; scores are gold means and ground truth at the arm's final
    round, all axes pooled. Along a curve rows are in the order of annotation. An arm without a finished seed has no row.
    """
    ledger = without(run.tables["ledger"], run.failed)
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


def tuning(run: Run) -> pd.DataFrame:
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
