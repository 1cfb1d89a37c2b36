"""Means and proportions with confidence intervals."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import ndtri, stdtrit  # scipy.stats would take a second to import

from apo_bench.stats.argument_checks import ROUNDING, Array, align, as_floats, check_confidence, check_count, check_labels, short_repr

PRIOR = 2.0  # what one variance as of 0s and 1s counts for against the data's; coverage: results/validation


def clustered_mean(values: npt.ArrayLike, clusters: Iterable[Any], confidence: float = 0.95) -> tuple[float, float, float, int]:
    """Mean of `values` with a cluster-robust t interval: (mean, low, high, number of clusters).

    With n values m apart in P clusters: Var = P/(P-1) * sum over clusters of (sum of (x - mean) in it)^2 / n^2, P-1 degrees of freedom.
    For any real values; of shares use `clustered_share`, which stays in [0, 1]. Constant values, a single cluster and clusters whose
    deviations all cancel have no interval (NaN). Any hashable labels a cluster; 1 and "1" are two. Two Series are matched by their index.
    Raises ValueError for no values, NaN, infinite or too large ones (their squares must be floats), lengths or indices that differ, and a
    cluster that is missing.
    """
    check_confidence(confidence, "clustered_mean")
    x, codes = _clustered(values, clusters, "clustered_mean")
    n_clusters = int(codes.max()) + 1
    with np.errstate(over="ignore", invalid="ignore"):
        mean, spread = float(x.mean()), float(np.ptp(x))
        variance = _cluster_variance(x, codes, mean)
    if not math.isfinite(mean) or not math.isfinite(variance):
        raise ValueError(f"clustered_mean: values up to {np.abs(x).max():g} are too large, their squares are infinite")
    if n_clusters < 2 or spread == 0:
        return mean, math.nan, math.nan, n_clusters
    error = math.sqrt(variance)
    if error <= ROUNDING * np.abs(x).max():
        return mean, math.nan, math.nan, n_clusters
    half = error * float(stdtrit(n_clusters - 1, (1 + confidence) / 2))
    return mean, mean - half, mean + half, n_clusters


def _clustered(values: Any, clusters: Any, caller: str) -> tuple[Array, Array]:
    """Checked values (n,) and their clusters as 0 .. P-1 (n,)."""
    values, clusters = align({"values": values, "clusters": clusters}, caller)
    x = as_floats(values, f"{caller}: a value")
    try:
        labels = pd.Series(list(clusters), dtype=object)  # objects, so that labels keep their types
    except TypeError:
        raise ValueError(f"{caller}: clusters are a list of labels, got {short_repr(clusters)}") from None
    if x.ndim != 1 or len(x) == 0 or len(x) != len(labels):
        raise ValueError(f"{caller}: {x.size} values and {len(labels)} clusters; give one cluster for each of at least one value")
    if not np.isfinite(x).all():
        raise ValueError(f"{caller}: a value is NaN or infinite")
    check_labels(labels, f"{caller}: clusters")
    return x, pd.factorize(labels)[0]


def _cluster_variance(x: Array, codes: Array, mean: float) -> float:
    """P/(P-1) * sum over clusters of (sum of deviations in it)^2 / n^2; of a single cluster 0."""
    sums = np.bincount(codes, weights=x - mean)
    return len(sums) / max(len(sums) - 1, 1) * float((sums**2).sum()) / len(x) ** 2


def clustered_share(values: npt.ArrayLike, clusters: Iterable[Any], confidence: float = 0.95) -> tuple[float, float, float, int]:
    """Mean of `values` in [0, 1] with a cluster-robust interval that stays in [0, 1]: (share, low, high, number of clusters).

    Variance and degrees of freedom as in `clustered_mean`, ends as in `share_interval`, clusters counting (sum m)^2 / sum m^2 of their
    sizes m. All values 0 or all 1: Wilson's interval for so many trials. No interval and errors as in `clustered_mean`, and an error for
    a value outside [0, 1].
    """
    check_confidence(confidence, "clustered_share")
    x, codes = _clustered(values, clusters, "clustered_share")
    if outside := x[(x < 0) | (x > 1)].tolist():
        raise ValueError(f"clustered_share: a value is outside [0, 1]: {outside[0]}")
    mean, sizes = float(x.mean()), np.bincount(codes)
    n_clusters, effective = len(sizes), len(x) ** 2 / float((sizes.astype(float) ** 2).sum())
    if mean in (0.0, 1.0):
        return mean, *score_ends(mean, float(ndtri((1 + confidence) / 2)) ** 2 / effective), n_clusters
    variance = _cluster_variance(x, codes, mean)
    if n_clusters < 2 or np.ptp(x) == 0 or math.sqrt(variance) <= ROUNDING:
        return mean, math.nan, math.nan, n_clusters
    quantile = float(stdtrit(n_clusters - 1, (1 + confidence) / 2))
    return mean, *share_interval(mean, variance, effective, quantile), n_clusters


def share_interval(share: float, variance: float, n: float, quantile: float) -> tuple[float, float]:
    """Ends of an interval of a share strictly between 0 and 1 whose estimate has `variance` and rests on `n` items or clusters.

    Wilson's idea for any variance: the p with |share - p| <= quantile sqrt(D p (1 - p) / n), D from `design_effect`; always within
    [0, 1]. Items that are 0 or 1 have D = 1, which is Wilson's own interval.
    """
    return score_ends(share, quantile**2 * design_effect(share, variance, n) / n)


def design_effect(share: float, variance: float, n: float) -> float:
    """`variance` over that of n independent values 0 or 1, share (1 - share) / n, drawn to 1 where the data know little of it.

    D = d^w with w = I / (I + 2), I = 4 n share (1 - share); d itself where it is above 1. Values in [0, 1] vary most where they are 0 or 1,
    and clusters where all of a cluster is alike: d is 1 there, and elsewhere less. Next to 0 or 1 it rests on a handful of values: a single
    tie among 49 wins has d = .5, and would make a result surer than 50 wins are.
    """
    spread = share * (1 - share)
    d, information = variance * n / spread, 4 * n * spread
    return max(d, d ** (information / (information + PRIOR)))


def score_ends(share: float, c: float) -> tuple[float, float]:
    """The p between which (share - p)^2 <= c p (1 - p)."""
    centre = (share + c / 2) / (1 + c)
    half = math.sqrt(c * share * (1 - share) + c * c / 4) / (1 + c)
    return max(0.0, centre - half), min(1.0, centre + half)  # beyond only by rounding


def wilson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share of n independent trials: the p with |share - p| <= z sqrt(p (1 - p) / n).

    Successes may be fractions (a tie is half of one). Raises ValueError for n that is no whole number of at least 1, and for successes
    outside [0, n].
    """
    check_confidence(confidence, "wilson")
    check_count(n, "n", "wilson", 1)
    (count,) = as_floats([successes], "wilson: successes")
    if not 0 <= count <= n:
        raise ValueError(f"wilson: {successes} successes of {n}")
    return score_ends(float(count) / n, float(ndtri((1 + confidence) / 2)) ** 2 / n)
