"""The contrast under validation and common alternatives: scores of two arms in, p-values out, for many data sets at once."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from scipy.special import stdtr

from apo_bench.stats.two_way_random_effects import TwoWayError, paired_error, unpaired_error
from validation.simulated_worlds import Array

CONTRAST = "contrast"
SATTERTHWAITE = "the contrast with plain Satterthwaite df"
RESAMPLES = 1000  # of the permutation and the bootstraps
RESAMPLED_NULLS = 2000  # data sets a cell that those are made on: a rate to within half a point


@dataclass(frozen=True)
class Data:
    """n experiments: scores `a` (n, Sa, P) and `b` (n, Sb, P). `members` (P, C) averages a cluster's prompts; None: each its own."""

    a: Array
    b: Array
    paired: bool
    members: Array | None = None

    def first(self, n: int) -> "Data":
        return Data(self.a[:n], self.b[:n], self.paired, self.members)

    @cached_property
    def matched(self) -> Array:
        """Row by row, seed i of one arm with seed i of the other, related or not. (n, S, P)"""
        shared = min(self.a.shape[1], self.b.shape[1])
        return self.a[:, :shared] - self.b[:, :shared]

    @cached_property
    def by_cluster(self) -> tuple[Array, Array]:  # (n, Sa, C), (n, Sb, C)
        return (self.a, self.b) if self.members is None else (self.a @ self.members, self.b @ self.members)

    @cached_property
    def over_seeds(self) -> Array:
        """Differences of the clusters' means over seeds, (n, C)."""
        first, second = self.by_cluster
        return first.mean(1) - second.mean(1)

    @cached_property
    def difference(self) -> Array:  # (n,)
        return self.over_seeds.mean(1)

    @cached_property
    def error(self) -> TwoWayError:
        """The two-way error of the difference, as in `contrast`."""
        a, b = self.by_cluster
        return paired_error(a - b) if self.paired else unpaired_error(a, b)


PValues = Callable[[Data, np.random.Generator], Array]


def two_sided(difference: Array, variance: Array, df: Array | float) -> Array:
    return 2 * stdtr(df, -np.abs(difference) / np.sqrt(variance))


def contrast(data: Data, _: np.random.Generator | None = None) -> Array:
    return data.error.p_value(data.difference)


def satterthwaite(data: Data, _: np.random.Generator | None = None) -> Array:
    """The contrast's variance with one t distribution of Satterthwaite's df: a share that two df estimate counts as known."""
    arms = [data.by_cluster[0] - data.by_cluster[1]] if data.paired else list(data.by_cluster)
    seeds = [arm.mean(2).var(1, ddof=1) / arm.shape[1] for arm in arms]
    rest = data.error.variance - sum(seeds)
    inverse = sum(term**2 / (arm.shape[1] - 1) for term, arm in zip(seeds, arms, strict=True)) + rest**2 / (arms[0].shape[2] - 1)
    return two_sided(data.difference, data.error.variance, data.error.variance**2 / inverse)


def sign_flips(data: Data, rng: np.random.Generator) -> Array:
    """Swap the arms within each (seed, prompt) at random: how often is the difference as large?"""
    rows = data.matched.reshape(len(data.matched), -1).astype(np.float32)
    signs = rng.integers(0, 2, (RESAMPLES - 1, rows.shape[1]), dtype=np.int8).astype(np.float32) * 2 - 1
    flipped = np.abs(signs @ rows.T)  # (flips, n)
    return (1 + (flipped >= np.abs(rows.sum(1)) * (1 - 1e-6)).sum(0)) / RESAMPLES


def prompt_t(data: Data, _: np.random.Generator) -> Array:
    """Average over seeds, then a paired t test over clusters of prompts."""
    n = data.over_seeds.shape[1]
    return two_sided(data.over_seeds.mean(1), data.over_seeds.var(1, ddof=1) / n, n - 1)


def row_t(data: Data, _: np.random.Generator) -> Array:
    """Every row as an independent observation: paired t test where seeds are paired, Welch's where not."""
    if data.paired:
        rows = data.matched.reshape(len(data.matched), -1)
        return two_sided(rows.mean(1), rows.var(1, ddof=1) / rows.shape[1], rows.shape[1] - 1)
    arms = [arm.reshape(len(arm), -1) for arm in (data.a, data.b)]
    terms = [arm.var(1, ddof=1) / arm.shape[1] for arm in arms]
    df = (terms[0] + terms[1]) ** 2 / sum(term**2 / (arm.shape[1] - 1) for term, arm in zip(terms, arms, strict=True))
    return two_sided(arms[0].mean(1) - arms[1].mean(1), terms[0] + terms[1], df)


def seed_t(data: Data, _: np.random.Generator) -> Array:
    """One mean a seed, then a t test over seeds (paired, or Welch's): the prompts at hand are the only ones."""
    a, b = (arm.mean(2) for arm in data.by_cluster)
    if data.paired:
        return two_sided(data.difference, (a - b).var(1, ddof=1) / a.shape[1], a.shape[1] - 1)
    terms = [arm.var(1, ddof=1) / arm.shape[1] for arm in (a, b)]
    df = (terms[0] + terms[1]) ** 2 / sum(term**2 / (arm.shape[1] - 1) for term, arm in zip(terms, (a, b), strict=True))
    return two_sided(data.difference, terms[0] + terms[1], df)


def prompt_bootstrap(data: Data, rng: np.random.Generator) -> Array:
    """Average over seeds, then the percentile bootstrap over clusters of prompts."""
    return _percentile(_weights(rng, data.over_seeds.shape[1]) @ data.over_seeds.T)


def percentile_bootstrap(data: Data, rng: np.random.Generator) -> Array:
    """The percentile bootstrap over seeds and clusters: resample both, take the middle 95 % of the differences as they come."""
    a, b = data.by_cluster
    clusters = _weights(rng, a.shape[2])
    if data.paired:
        return _percentile(_resampled(a - b, _weights(rng, a.shape[1]), clusters))
    return _percentile(_resampled(a, _weights(rng, a.shape[1]), clusters) - _resampled(b, _weights(rng, b.shape[1]), clusters))


def ignoring_clusters(data: Data, _: np.random.Generator) -> Array:
    """The contrast with every prompt as its own cluster."""
    return contrast(Data(data.a, data.b, data.paired))


def pooled_df(data: Data, _: np.random.Generator) -> Array:
    """The unpaired test with Sa + Sb - 2 degrees of freedom for the seeds, as if both arms' seeds varied alike."""
    pooled = np.full_like(data.difference, data.a.shape[1] + data.b.shape[1] - 2)
    return replace(data.error, seed_df=pooled).p_value(data.difference)


@dataclass(frozen=True)
class AlternativeTest:
    """A common alternative test, its name on the page, and the cells where it differs from the contrast."""

    label: str
    p_values: PValues
    only: Literal["any", "unpaired", "clustered"] = "any"  # elsewhere it equals the contrast, or is no test

    def concerns(self, paired: bool, clustered: bool) -> bool:
        return self.only == "any" or (clustered if self.only == "clustered" else not paired)


ON_ALL_DATA = {CONTRAST: contrast, SATTERTHWAITE: satterthwaite}  # the rest on RESAMPLED_NULLS data sets a cell
ALTERNATIVE_TESTS = (
    AlternativeTest("permutation within (seed, prompt)", sign_flips),
    AlternativeTest("t test over prompts, seeds averaged", prompt_t),
    AlternativeTest("t test over all rows", row_t),
    AlternativeTest("t test over seed means", seed_t),
    AlternativeTest("bootstrap over prompts, seeds averaged", prompt_bootstrap),
    AlternativeTest("percentile bootstrap over seeds and prompts", percentile_bootstrap),
    AlternativeTest("the contrast, clusters ignored", ignoring_clusters, only="clustered"),
    AlternativeTest("the contrast, not paired, seed df pooled", pooled_df, only="unpaired"),
)


def _weights(rng: np.random.Generator, n: int) -> Array:
    """How often each of n is drawn in a resample, as shares. (RESAMPLES, n)"""
    drawn = rng.integers(0, n, (RESAMPLES, n)) + n * np.arange(RESAMPLES)[:, None]
    return np.bincount(drawn.ravel(), minlength=RESAMPLES * n).reshape(RESAMPLES, n) / n


def _resampled(arm: Array, seeds: Array, clusters: Array) -> Array:
    """Means of arms (n, S, C) under weights (R, S) and (R, C): (R, n)."""
    return sum(seeds[:, s, None] * (clusters @ arm[:, s].T) for s in range(arm.shape[1]))  # pyright: ignore[reportReturnType]


def _percentile(means: Array) -> Array:
    """Two-sided p-values of resampled means (R, n): below 0.05 where the middle 95 % leave out 0."""
    return np.minimum(1.0, 2 * np.minimum((means <= 0).mean(0), (means >= 0).mean(0)))
