"""Mixtures of Student's t distributions: the reference of a mean whose error has several sides, each with its own degrees of freedom."""

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtr, stdtrit  # scipy.stats would take a second to import

from apo_bench.stats.argument_checks import Array

HALVINGS = 80


def mixture_below(shares: Sequence[Array], dfs: Sequence[Array], t: Array | float) -> Array:
    """P(T <= t) of the mixture with these shares, which sum to 1; arrays (...) broadcast."""
    return np.asarray(sum(share * stdtr(df, t) for share, df in zip(shares, dfs, strict=True)))


def mixture_quantile(shares: Sequence[Array], dfs: Sequence[Array], level: Array | float) -> Array:
    """t with P(T <= t) = `level`: between those of the t distributions, by halving."""
    level = np.asarray(level, dtype=float)
    upper = np.maximum(level, 1 - level)
    ends = [stdtrit(df, upper) for df in dfs]
    low, high = np.minimum.reduce(np.broadcast_arrays(*ends)), np.maximum.reduce(np.broadcast_arrays(*ends))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        under = mixture_below(shares, dfs, middle) < upper
        low, high = np.where(under, middle, low), np.where(under, high, middle)
    return np.where(level < 0.5, -high, high)
