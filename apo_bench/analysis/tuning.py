"""What the referee's choice of settings cost, where trials also have a ground truth, and which KL limit would have spared it most."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from apo_bench.analysis.results import Run
from apo_bench.config.tuning import best

LIMITS = (1.0, 2.0, 4.0, 8.0, 16.0, math.inf)  # nats

Trial = Mapping[str, Any]


def referee_choices(run: Run) -> pd.DataFrame:
    """By arm, the setting that the referee takes within tune.max_kl, and the one of the highest truth among all trials.

    Columns: arm, by_referee, by_truth (settings), truth_by_referee, truth_by_truth, cost (their difference), taken ("referee", "truth",
    "both"). Arms with a trial that has no truth, or of which the referee takes none, have no row.
    """
    tune = run.experiment.tune
    rows = []
    for arm, trials in _with_truth(run):
        place = _by_referee(trials, tune.max_kl if tune else None)
        if place is None:
            continue
        top = max(range(len(trials)), key=lambda number: trials[number]["dev_truth"])
        referee, truth = trials[place], trials[top]
        taken = "both" if place == top else "truth" if tune and tune.by == "ground_truth" else "referee"
        values = (referee["dev_truth"], truth["dev_truth"], truth["dev_truth"] - referee["dev_truth"])
        rows.append((arm, referee["setting"], truth["setting"], *values, taken))
    columns = ["arm", "by_referee", "by_truth", "truth_by_referee", "truth_by_truth", "cost", "taken"]
    return pd.DataFrame(rows, columns=columns)


def referee_limits(run: Run) -> pd.DataFrame:
    """What the referee's choice costs in truth under each KL limit: limit (nats, inf for none), cost (mean over arms), worst, n_arms.

    Arms whose trials all end beyond the limit are not in its mean; `n_arms` counts the others.
    """
    arms = [trials for _, trials in _with_truth(run)]
    rows = []
    for limit in LIMITS:
        costs = []
        for trials in arms:
            place = _by_referee(trials, limit)
            if place is not None:
                costs.append(max(trial["dev_truth"] for trial in trials) - trials[place]["dev_truth"])
        rows.append((limit, sum(costs) / len(costs) if costs else math.nan, max(costs, default=math.nan), len(costs)))
    return pd.DataFrame(rows, columns=["limit", "cost", "worst", "n_arms"])


def _with_truth(run: Run) -> Iterator[tuple[str, Sequence[Trial]]]:
    """Tuned arms whose finished trials all have a ground truth, with those trials."""
    for arm in run.arms:
        trials = [trial for trial in (run.manifest.get("tuned") or {}).get(arm, {}).get("trials", ()) if trial.get("dev_score") is not None]
        if trials and all(trial.get("dev_truth") is not None for trial in trials):
            yield arm, trials


def _by_referee(trials: Sequence[Trial], max_kl: float | None) -> int | None:
    """The place of the trial that the referee takes; None where none is near enough."""
    kl = [math.nan if trial.get("kl") is None else trial["kl"] for trial in trials]
    try:
        return best([trial["dev_score"] for trial in trials], kl, max_kl)
    except ValueError:
        return None
