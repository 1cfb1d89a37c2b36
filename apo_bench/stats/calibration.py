"""Calibration of confidences: expected calibration error and reliability curves."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from apo_bench.stats.argument_checks import align, as_floats, check_count


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


def reliability(confidence: npt.ArrayLike, correct: npt.ArrayLike, bins: int = 10) -> tuple[Bin, ...]:
    """The reliability curve: accuracy by confidence, over the bins that hold items.

    `bins` equal-width bins on [0, 1], each closed below and open above, the last closed on both sides; the edges are i / bins as a
    float. Raises ValueError for no items, lengths that differ, a confidence outside [0, 1], or an outcome that is neither 0 nor 1.
    """
    return _bins(confidence, correct, bins, "reliability")


def _bins(confidence: npt.ArrayLike, correct: npt.ArrayLike, bins: int, caller: str) -> tuple[Bin, ...]:
    check_count(bins, "bins", caller, 1)
    confidence, correct = align({"confidence": confidence, "correct": correct}, caller)
    p, hit = as_floats(confidence, f"{caller}: a confidence"), as_floats(correct, f"{caller}: an outcome")
    if p.ndim != 1 or len(p) == 0 or p.shape != hit.shape:
        raise ValueError(f"{caller}: {p.shape} confidences and {hit.shape} outcomes; give two equally long lists of at least one")
    for x, what in ((p, "a confidence"), (hit, "an outcome")):
        if missing := int(np.isnan(x).sum()):
            raise ValueError(f"{caller}: {what} is missing (NaN) for {missing} items; leave them out")
    if not ((p >= 0) & (p <= 1)).all() or not np.isin(hit, (0, 1)).all():
        raise ValueError(f"{caller}: a confidence is outside [0, 1] or an outcome is neither 0 nor 1")
    edges = np.arange(bins + 1) / bins
    place = np.minimum(np.searchsorted(edges, p, "right") - 1, bins - 1)
    n, sums, hits = (np.bincount(place, weights=weights, minlength=bins) for weights in (None, p, hit))
    return tuple(
        Bin(float(edges[i]), float(edges[i + 1]), float(sums[i] / n[i]), float(hits[i] / n[i]), int(n[i])) for i in np.flatnonzero(n)
    )
