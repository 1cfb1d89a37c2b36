"""What alignment cost: lm-eval scores of final policies against those of the initial one, item by item."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from apo_bench.analysis.results import Run, exclude_failed
from apo_bench.config.finished_arms import is_same_in_every_seed
from apo_bench.config.schema import Capabilities
from apo_bench.stats import NonInferiority, holm, noninferiority
from apo_bench.tables import INITIAL_POLICY

COLUMNS = [
    "arm", "task", "metric", "mean", "seed_sd", "initial", "difference", "ci_low", "ci_high", "margin", "p_value", "p_adjusted", "outcome",
    "n_seeds", "n_items", "n_clusters", "scope", "test",
]  # fmt: skip
KEPT, LOST, EQUAL, OPEN = "not worse", "worse", "equal on every item", "not shown"
ALPHA = 0.025  # one-sided, as the end of a 95 % interval
NO_ROWS = "none: best-of-n policies and files of responses have no weights for lm-eval"


def capability_losses(run: Run) -> pd.DataFrame:
    """A row for each task and arm: COLUMNS; empty where no task was run.

    `mean` is over seeds of means over clusters, as of all scores, and `initial` the initial policy's. `difference` (above 0: better than
    the initial policy, whichever way the metric goes) is paired by item and seed: the two-way test over seeds and clusters of items.
    `p_value` is one-sided, against a loss of `margin` or more; `p_adjusted` by Holm over the table. `outcome`: KEPT where p_adjusted is
    below ALPHA; LOST where the interval lies below -margin; EQUAL where no score differs; else OPEN.
    """
    settings = run.experiment.evaluation.capabilities
    items = exclude_failed(run.tables["capabilities"], run.failed)
    if settings is None or items.empty:
        return pd.DataFrame(columns=COLUMNS)
    judged = judged_metrics(items, settings)
    rows = [_row(run, items, arm, task, metric, settings.margin) for task, metric in judged.items() for arm in run.arms]
    frame = pd.DataFrame(rows)
    frame["p_adjusted"] = holm(frame["p_value"].to_numpy(dtype=float))
    frame["outcome"] = [_outcome(row) for row in frame.to_dict("records")]
    return frame[COLUMNS].astype({"n_seeds": int, "n_items": int, "n_clusters": int})


def judged_metrics(items: pd.DataFrame, settings: Capabilities) -> dict[str, str]:
    """Each task's metric that it is judged by: as the experiment names it, or its first; a metric without rows is passed over."""
    judged = {}
    for task, rows in items.groupby("task", sort=False):
        own = rows.drop_duplicates("metric").sort_values("rank")["metric"].tolist()
        wanted = settings.metrics.get(str(task))
        judged[str(task)] = wanted if wanted in own else own[0]
    return judged


def _row(run: Run, items: pd.DataFrame, arm: str, task: str, metric: str, margin: float) -> dict[str, Any]:
    of_task = items[(items["task"] == task) & (items["metric"] == metric)]
    start, own = of_task[of_task["arm"] == INITIAL_POLICY], of_task[of_task["arm"] == arm]
    if is_same_in_every_seed(run.experiment.arms[arm]) and len(own):
        own = own[own["seed"] == own["seed"].min()]  # one checkpoint is one draw
    means = _means(own)
    labels = {"arm": arm, "task": task, "metric": metric, "margin": margin, "initial": _means(start).mean()}
    sizes = {"n_seeds": len(means), "n_items": own["doc_id"].nunique(), "n_clusters": own["cluster_id"].nunique()}
    labels |= {"mean": means.mean(), "seed_sd": means.std(), **sizes}
    nothing = {**dict.fromkeys(("difference", "ci_low", "ci_high", "p_value"), math.nan), "scope": "no result"}
    if own.empty or start.empty:
        return labels | nothing | {"test": NO_ROWS}
    paired = pd.concat([own, *(start.assign(seed=seed) for seed in means.index)])
    paired, higher = paired.rename(columns={"doc_id": "prompt_id"}), bool(own["higher_is_better"].iloc[0])
    paired, higher = paired.rename(columns={"doc_id": "prompt_id"}), bool(own["higher_is_better"].iloc[0])
    try:
        claim = noninferiority(paired, arm, INITIAL_POLICY, margin=margin, higher_is_better=higher)
    except ValueError as error:
        return labels | nothing | {"test": f"none: {error}"}
    return labels | _numbers(claim)


def _numbers(claim: NonInferiority) -> dict[str, Any]:
    numbers = {name: getattr(claim.contrast, name) for name in ("difference", "ci_low", "ci_high")}
    return {**numbers, "p_value": claim.p_value, "scope": claim.scope, "test": claim.test}


def _means(items: pd.DataFrame) -> pd.Series:
    """By seed; clusters weigh alike."""
    return items.groupby(["seed", "cluster_id"])["value"].mean().groupby(level="seed").mean()


def _outcome(row: Mapping[Any, Any]) -> str:
    if row["p_adjusted"] < ALPHA:
        return KEPT
    if row["ci_high"] < -row["margin"]:
        return LOST
    return EQUAL if row["difference"] == 0 and row["test"].startswith("none: nothing varies") else OPEN
