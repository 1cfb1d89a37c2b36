"""Calibration of confidences: expected calibration error with an interval, reliability curves, the Brier score."""

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import ndtr  # scipy.stats would take a second to import

from apo_bench.stats.argument_checks import Array, align, as_floats, check_confidence, check_count, check_labels, check_seed
from apo_bench.stats.bootstrap import draw_counts


@dataclass(frozen=True)
class Bin:
    """Items whose confidence falls between two edges: mean confidence, share correct, and how many."""

    low: float
    high: float
    confidence: float
    accuracy: float
    n: int


def ece(confidence: npt.ArrayLike, correct: npt.ArrayLike, bins: int = 10) -> float:
    """Expected calibration error: sum over bins of (share of items) * |mean correct - mean confidence|.

    Bins and errors as in `reliability`. Guo et al., arXiv:1706.04599, Eq. 3.
    """
    filled = _bins(confidence, correct, bins, "ece")
    return sum(bin_.n * abs(bin_.accuracy - bin_.confidence) for bin_ in filled) / sum(bin_.n for bin_ in filled)


@dataclass(frozen=True)
class CalibrationError:
    """`value`, the ECE over bins; `debiased`, less what chance alone puts into it; the interval is of the debiased one, not below 0.

    `note` says where there is no interval.
    """

    value: float
    debiased: float
    ci_low: float
    ci_high: float
    n: int
    n_clusters: int
    draws: int
    note: str = ""


def calibration_error(
    confidence: npt.ArrayLike,
    correct: npt.ArrayLike,
    *,
    clusters: Iterable[Hashable] | None = None,
    bins: int = 10,
    equal_mass: bool = False,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> CalibrationError:
    """The ECE of `ece` with an interval over items, or clusters of them.

    |accuracy - confidence| of a bin is not 0 by chance even where confidences are right, so the ECE is too large, the more so the more bins
    there are. `debiased` takes off the mean of what a bin's chance error e, normal with the SD of its items' outcomes, adds:
    sum of shares * max(0, 2 |gap| - E|gap + e|), E|x + e| = s sqrt(2/pi) exp(-x^2/2s^2) + x (2 Phi(x/s) - 1). The interval is the
    percentile bootstrap's of that (G - 1 of G clusters drawn), the same bins kept, widened to hold the estimate.
    `equal_mass`: bins of as many items each (ties of confidence stay together), else of equal width. Errors as in `ece`.
    """
    caller = "calibration_error"
    check_confidence(level, caller)
    check_count(draws, "draws", caller, 100)
    check_seed(seed, caller)
    confidence, correct, clusters = align({"confidence": confidence, "correct": correct, "clusters": clusters}, caller)
    p, hit = _items(confidence, correct, bins, caller)
    place = _equal_mass(p, bins) if equal_mass else _equal_width(p, bins)
    if clusters is None:
        groups = np.arange(len(p))
    else:
        labels = pd.Series(list(clusters), dtype=object)
        if len(labels) != len(p):
            raise ValueError(f"{caller}: {len(p)} confidences and {len(labels)} clusters")
        check_labels(labels, f"{caller}: clusters")
        groups = pd.factorize(labels)[0]
    n_clusters, n_bins = int(groups.max()) + 1, int(place.max()) + 1
    sums = np.zeros((n_clusters, 3, n_bins))  # items, outcomes, confidences
    for row, weights in enumerate((np.ones(len(p)), hit, p)):
        np.add.at(sums[:, row], (groups, place), weights)
    value, debiased = (float(x[0]) for x in _errors(sums.sum(0)[None]))
    if n_clusters < 2:
        return CalibrationError(value, debiased, math.nan, math.nan, len(p), n_clusters, 0, "one cluster has no interval")
    counts = draw_counts(np.random.default_rng(seed), draws, n_clusters).astype(float)
    drawn = _errors((counts @ sums.reshape(n_clusters, -1)).reshape(draws, 3, n_bins))[1]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return CalibrationError(value, debiased, min(float(low), debiased), max(float(high), debiased), len(p), n_clusters, draws)


def brier(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Mean of (confidence - correct)^2 (Brier, Monthly Weather Review 78, 1950): 0 is best; 1/4 is what 1/2 for everything has.

    For an interval over clusters pass the squares to `clustered_share`. Errors as in `ece`.
    """
    confidence, correct = align({"confidence": confidence, "correct": correct}, "brier")
    p, hit = _items(confidence, correct, 1, "brier")
    return float(((p - hit) ** 2).mean())


def reliability(confidence: npt.ArrayLike, correct: npt.ArrayLike, bins: int = 10) -> tuple[Bin, ...]:
    """The reliability curve: accuracy by confidence, over the bins that hold items.

    `bins` equal-width bins on [0, 1], each closed below and open above, the last closed on both sides; the edges are i / bins as a
    float. Raises ValueError for no items, lengths that differ, a confidence outside [0, 1], or an outcome that is neither 0 nor 1.
    """
    return _bins(confidence, correct, bins, "reliability")


def _bins(confidence: npt.ArrayLike, correct: npt.ArrayLike, bins: int, caller: str) -> tuple[Bin, ...]:
    confidence, correct = align({"confidence": confidence, "correct": correct}, caller)
    p, hit = _items(confidence, correct, bins, caller)
    edges, place = np.arange(bins + 1) / bins, _equal_width(p, bins)
    n, sums, hits = (np.bincount(place, weights=weights, minlength=bins) for weights in (None, p, hit))
    return tuple(
        Bin(float(edges[i]), float(edges[i + 1]), float(sums[i] / n[i]), float(hits[i] / n[i]), int(n[i])) for i in np.flatnonzero(n)
    )


def _items(confidence: npt.ArrayLike, correct: npt.ArrayLike, bins: int, caller: str) -> tuple[Array, Array]:
    """Checked confidences and outcomes (n,)."""
    check_count(bins, "bins", caller, 1)
    p, hit = as_floats(confidence, f"{caller}: a confidence"), as_floats(correct, f"{caller}: an outcome")
    if p.ndim != 1 or len(p) == 0 or p.shape != hit.shape:
        raise ValueError(f"{caller}: {p.shape} confidences and {hit.shape} outcomes; give two equally long lists of at least one")
    for x, what in ((p, "a confidence"), (hit, "an outcome")):
        if missing := int(np.isnan(x).sum()):
            raise ValueError(f"{caller}: {what} is missing (NaN) for {missing} items; leave them out")
    if not ((p >= 0) & (p <= 1)).all() or not np.isin(hit, (0, 1)).all():
        raise ValueError(f"{caller}: a confidence is outside [0, 1] or an outcome is neither 0 nor 1")
    return p, hit


def _equal_width(p: Array, bins: int) -> Array:
    return np.minimum(np.searchsorted(np.arange(bins + 1) / bins, p, "right") - 1, bins - 1)


def _equal_mass(p: Array, bins: int) -> Array:
    """Bins by rank; items of one confidence are in the bin of the first of them."""
    first = np.searchsorted(np.sort(p), p, "left")
    return np.unique(first * bins // len(p), return_inverse=True)[1]


def _errors(sums: Array) -> tuple[Array, Array]:
    """ECE and debiased ECE (B,) of sums over bins (B, 3, bins): items, outcomes, confidences."""
    n = np.maximum(sums[:, 0], 1)
    accuracy, gap = sums[:, 1] / n, np.abs(sums[:, 1] - sums[:, 2]) / n
    share = sums[:, 0] / sums[:, 0].sum(1, keepdims=True)
    sd = np.sqrt(accuracy * (1 - accuracy) / n)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(sd > 0, gap / sd, np.inf)
        expected = np.where(sd > 0, sd * math.sqrt(2 / math.pi) * np.exp(-(z**2) / 2) + gap * (2 * ndtr(z) - 1), gap)
    return (share * gap).sum(1), (share * np.maximum(0.0, 2 * gap - expected)).sum(1)
