"""Prediction-powered win rates: a judge's verdicts on everything, people's labels on a random part of it."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtrit  # scipy.stats would take a second to import

from apo_bench.stats.argument_checks import Array, as_floats, as_frame, check_columns, check_confidence, check_labels
from apo_bench.stats.confidence_intervals import score_ends, share_interval
from apo_bench.stats.two_way_random_effects import TwoWayError, combine_terms

TUNINGS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class PredictionPowered:
    """A win rate from `n_labelled` labels and `n` verdicts; `n_missing` more items had no verdict. NaN means "not available".

    `tuning` is the weight of the judge's verdicts: 0 leaves them out. `labels_only`, with its interval, is the labels' own win rate, and
    `judge_only` the judge's. `bought` says what the verdicts bought: so many labels alone would have the same standard error.
    """

    win_rate: float
    standard_error: float
    ci_low: float
    ci_high: float
    tuning: float
    labels_only: float
    labels_low: float
    labels_high: float
    judge_only: float
    bought: float
    n_labelled: int
    n: int
    n_missing: int
    n_seeds: int
    n_clusters: int
    scope: str
    test: str


def prediction_powered_win_rate(rows: pd.DataFrame, *, confidence: float = 0.95) -> PredictionPowered:
    """Win rate by people's standard, made surer by a judge's verdicts (Angelopoulos et al., arXiv:2301.09633 and 2311.01453).

    `rows`, one an item: judge (a verdict in [0, 1]; NaN is left out and counted), label (people's, in [0, 1]; NaN where nobody was asked)
    and, optionally, cluster_id (default: each item its own) and seed. The labelled items have to be a random part of all: labels on what
    looked doubtful make the estimate as wrong as they would be themselves. With weight w the estimate is

        mean of w judge over all + mean of (label - w judge) over the labelled,

    right whatever the judge is worth. w is that of 0, .01, .. 1 with the least variance: not above that of labels alone, w = 0.
    Influences are summed in clusters with a t quantile of the labelled clusters' number less 1; with seeds, in seeds, clusters and
    cells, combined as by `contrast` (`combine_terms`). The interval stays in [0, 1] (`share_interval`).
    Raises ValueError, naming the column, for values outside [0, 1], empty labels and fewer than two labelled clusters or seeds.
    """
    caller = "prediction_powered_win_rate"
    check_confidence(confidence, caller)
    judge, label, units, n_missing = _checked(as_frame(rows), caller)
    known = ~np.isnan(label)
    clusters = units[-1]
    effective = known.sum() ** 2 / float((np.bincount(clusters[known]).astype(float) ** 2).sum())
    n_labelled, centre = int(known.sum()), float(label[known].mean())
    of_labels = np.where(known, np.nan_to_num(label) - centre, 0.0) / n_labelled
    shift = float(judge.mean() - judge[known].mean())
    of_judge = (judge - judge.mean()) / len(judge) - np.where(known, judge - judge[known].mean(), 0.0) / n_labelled
    errors = [_error(of_labels + tuning * of_judge, units, known) for tuning in TUNINGS]
    inside = [0 < centre + tuning * shift < 1 for tuning in TUNINGS]
    best = min(range(len(TUNINGS)), key=lambda place: (not inside[place], float(errors[place].variance)))
    tuned, alone = ((centre + TUNINGS[place] * shift, errors[place]) for place in (best, 0))
    low, high = _ends(*tuned, effective, confidence)
    labels_low, labels_high = _ends(*alone, effective, confidence)
    variances = [float(error.variance) for _, error in (tuned, alone)]
    over = "new seeds and new" if len(units) > 1 else "new"
    return PredictionPowered(
        win_rate=tuned[0],
        standard_error=math.sqrt(variances[0]),
        ci_low=low,
        ci_high=high,
        tuning=float(TUNINGS[best]),
        labels_only=centre,
        labels_low=labels_low,
        labels_high=labels_high,
        judge_only=float(judge.mean()),
        bought=n_labelled * variances[1] / variances[0] if variances[0] > 0 else math.nan,
        n_labelled=n_labelled,
        n=len(judge),
        n_missing=n_missing,
        n_seeds=int(units[0].max()) + 1 if len(units) > 1 else 1,
        n_clusters=int(clusters.max()) + 1,
        scope=f"{over} clusters of items like these, by the standard of these people",
        test=f"prediction-powered score interval over {'seeds and ' if len(units) > 1 else ''}clusters",
    )


def _checked(rows: pd.DataFrame, caller: str) -> tuple[Array, Array, list[Array], int]:
    """Verdicts and labels (n,), and the items' units as 0, 1, ..: of seeds, where there are any, then of clusters."""
    named = [column for column in ("seed", "cluster_id") if isinstance(rows, pd.DataFrame) and column in rows]
    check_columns(rows, ["judge", "label", *named], caller)
    values = [as_floats(rows[column], f"{caller}: column {column}") for column in ("judge", "label")]
    for column, x in zip(("judge", "label"), values, strict=True):
        if outside := x[(x < 0) | (x > 1)].tolist():
            raise ValueError(f"{caller}: column {column} is outside [0, 1]: {outside[0]}")
    for column in named:
        check_labels(rows[column], f"{caller}: column {column}")
    there = ~np.isnan(values[0])
    judge, label = (x[there] for x in values)
    units = [pd.factorize(rows[column].to_numpy(dtype=object)[there])[0] for column in named]
    if "cluster_id" not in named:
        units.append(np.arange(len(judge)))
    for unit, name in zip(units, [*named[: len(units) - 1], "cluster_id"], strict=True):
        if (n := len(np.unique(unit[~np.isnan(label)]))) < 2:
            raise ValueError(f"{caller}: {n} labelled unit(s) of column {name}, at least 2 needed (column label)")
    return judge, label, units, int((~there).sum())


def _error(influence: Array, units: list[Array], known: Array) -> TwoWayError:
    """Variance of the sum of influences whose items share units, and its reference."""

    def term(codes: Array) -> Array:
        n = len(np.unique(codes[known]))
        return np.asarray(n / (n - 1) * float((np.bincount(codes, weights=influence) ** 2).sum()))

    freedoms = [len(np.unique(codes[known])) - 1 for codes in units]
    if len(units) == 1:
        df = np.asarray(float(freedoms[0]))
        return TwoWayError(term(units[0]), np.zeros(()), df, df)
    cells = np.unique(np.stack(units), axis=1, return_inverse=True)[1].ravel()
    return combine_terms(term(units[0]), freedoms[0], term(units[1]), freedoms[1], term(cells), freedoms[0] * freedoms[1])


def _ends(share: float, error: TwoWayError, n: float, confidence: float) -> tuple[float, float]:
    level, variance = (1 + confidence) / 2, float(error.variance)
    if share in (0.0, 1.0):
        return score_ends(share, float(ndtri(level)) ** 2 / n)
    if not 0 < share < 1 or variance == 0:
        return math.nan, math.nan
    if float(error.seed_share) > 0:
        return score_ends(share, float(error.quantile(level)) ** 2 * variance / (share * (1 - share)))
    return share_interval(share, variance, n, float(stdtrit(float(error.cluster_df), level)))
