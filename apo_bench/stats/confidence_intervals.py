"""Means and proportions with confidence intervals."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import ndtri, stdtrit  # scipy.stats would take a second to import

from apo_bench.stats.argument_checks import ROUNDING, as_floats, check_confidence, check_count, check_labels, short_repr


def clustered_mean(values: npt.ArrayLike, clusters: Iterable[Any], confidence: float = 0.95) -> tuple[float, float, float, int]:
    """Mean of `values` with a cluster-robust t interval: (mean, low, high, number of clusters).

    With n values m apart in P clusters: Var = P/(P-1) * sum over clusters of (sum of (x - mean) in it)^2 / n^2, P-1 degrees of freedom.
    All values 0 or all 1 leave no variance: the interval is then Wilson's with n = P. Other constants, a single cluster and clusters
    whose deviations all cancel have no interval (NaN). Any hashable labels a cluster; 1 and "1" are two.
    Raises ValueError for no values, NaN, infinite or too large ones (their squares must be floats), lengths that differ, and a cluster
    that is missing.
    """
    check_confidence(confidence, "clustered_mean")
    x = as_floats(values, "clustered_mean: a value")
    try:
        labels = pd.Series(list(clusters), dtype=object)  # objects, so that labels keep their types
    except TypeError:
        raise ValueError(f"clustered_mean: clusters are a list of labels, got {short_repr(clusters)}") from None
    if x.ndim != 1 or len(x) == 0 or len(x) != len(labels):
        raise ValueError(f"clustered_mean: {x.size} values and {len(labels)} clusters; give one cluster for each of at least one value")
    if not np.isfinite(x).all():
        raise ValueError("clustered_mean: a value is NaN or infinite")
    check_labels(labels, "clustered_mean: clusters")
    codes = pd.factorize(labels)[0]
    n_clusters = int(codes.max()) + 1
    with np.errstate(over="ignore", invalid="ignore"):
        mean, spread = float(x.mean()), float(np.ptp(x))
        squares = float((np.bincount(codes, weights=x - mean) ** 2).sum())
    if not math.isfinite(mean) or not math.isfinite(squares):
        raise ValueError(f"clustered_mean: values up to {np.abs(x).max():g} are too large, their squares are infinite")
    if spread == 0 and mean in (0.0, 1.0):
        return mean, *wilson(n_clusters * mean, n_clusters, confidence), n_clusters
    if n_clusters < 2 or spread == 0:
        return mean, math.nan, math.nan, n_clusters
    error = math.sqrt(n_clusters / (n_clusters - 1) * squares) / len(x)
    if error <= ROUNDING * np.abs(x).max():
        return mean, math.nan, math.nan, n_clusters
    half = error * float(stdtrit(n_clusters - 1, (1 + confidence) / 2))
    return mean, mean - half, mean + half, n_clusters


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
    z, share = float(ndtri((1 + confidence) / 2)), float(count) / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)  # beyond only by rounding
