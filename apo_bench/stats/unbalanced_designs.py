"""Contrasts of crossed data with holes: seeds x clusters of prompts of which some have no score.

Complete cases throw away a prompt for one missing score: 10 % missing at random cost 41 % of the other rows at three seeds, 87 % at ten.
Here all rows count. The additive model D[s, c] = seed_s + cluster_c + rest_sc is fitted by least squares to the cells that are there; the
estimate is the mean over seeds plus the mean over clusters of its fitted effects, so that seeds and clusters weigh alike, however many
cells each has. It is unbiased where a cell is missing whatever its seed and its cluster are like, though not whatever the rest is like.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from apo_bench.stats.argument_checks import ROUNDING, Array, check_number
from apo_bench.stats.score_layout import Layout, lay_out_cells
from apo_bench.stats.two_way_random_effects import Contrast, Estimate, all_of_two_seeds, combine_terms, contrast, effective_df, mean_test_of

SHARED = 1e-9  # of the clusters' number: what is below is 0 but for rounding


@dataclass(frozen=True)
class UnbalancedContrast(Contrast):
    """A contrast of all rows: `n_dropped` are those whose partner (the other arm's score on the same seed and prompt) is missing.

    `n_missing` cells of seeds x clusters have no value. `worst_low` and `worst_high` are the difference, had every missing score been
    the worst for a and the best for b, or the reverse; NaN where no range of scores was given.
    """

    n_missing: int = 0
    worst_low: float = math.nan
    worst_high: float = math.nan


@dataclass(frozen=True)
class AdditiveFit:
    """Least squares of values (S, P) with holes on seeds and clusters.

    `mean` as in the module's head; `seeds` (S,) and `clusters` (P,) the fitted means of each over all of the other; `residual` the mean
    square C with `df` degrees of freedom. A residual variance r adds r `of_mean` to the variance of the mean, r `of_seeds` to the sample
    variance of `seeds` and r `of_clusters` to that of `clusters`: 1/(SP), 1/P and 1/S without holes.
    """

    mean: float
    seeds: Array
    clusters: Array
    residual: float
    df: int
    of_mean: float
    of_seeds: float
    of_clusters: float

    @property
    def counted_twice(self) -> float:
        """What variances of seeds / S and of clusters / P together hold too much of the residual; C/(SP) without holes."""
        return self.residual * (self.of_seeds / len(self.seeds) + self.of_clusters / len(self.clusters) - self.of_mean)


def unbalanced_contrast(
    scores: pd.DataFrame,
    a: str,
    b: str,
    *,
    paired_seeds: bool | None = None,
    confidence: float = 0.95,
    value_range: tuple[float, float] | None = None,
) -> UnbalancedContrast:
    """Mean score of arm `a` minus arm `b` from all rows, also of prompts that lack a score in some seed.

    Rows, pairing, scope and test as in `contrast`, to which it is equal where nothing is missing. A cell is the mean over the cluster's
    prompts that are there (where seeds are paired: in both arms). With A and B the sample variances of the fitted seed and cluster
    means and the residual's parts of `AdditiveFit`, V = A/S + B/P - C (of_seeds/S + of_clusters/P - of_mean), floored as ever; the
    reference is the same mixture. Scores that are missing because of what they would have been bias this estimate as they bias any:
    `value_range`, the lowest and highest possible score, gives bounds that hold whatever they were.
    Raises ValueError as `contrast` does, for cells that leave no residual, and for holes that cut the design in two (no seed of one part on
    a cluster of the other).
    """
    caller = "unbalanced_contrast"
    layout = lay_out_cells(scores, a, b, paired_seeds=paired_seeds, caller=caller)
    estimated = estimate_unbalanced(layout, f"{caller}: arms {a!r} and {b!r}")
    tested = mean_test_of(estimated, confidence)
    sides = [layout.first - layout.second] if layout.paired else [layout.first, layout.second]
    n_missing = sum(int(np.isnan(side).sum()) for side in sides)
    worst = (math.nan, math.nan) if value_range is None else _worst(layout, value_range, caller)
    return UnbalancedContrast(
        tested.mean,
        tested.standard_error,
        tested.df,
        tested.ci_low,
        tested.ci_high,
        tested.p_value,
        layout.n_seeds,
        layout.n_clusters,
        tested.scope,
        f"{tested.test}, additive fit to all cells but {n_missing} missing" if n_missing else tested.test,
        layout.n_dropped,
        n_missing,
        *worst,
    )


def contrast_of_all_rows(scores: pd.DataFrame, a: str, b: str, *, paired_seeds: bool | None = None, confidence: float = 0.95) -> Contrast:
    """`unbalanced_contrast`, or `contrast`, of the complete cases, where the holes allow no such fit."""
    try:
        return unbalanced_contrast(scores, a, b, paired_seeds=paired_seeds, confidence=confidence)
    except ValueError:
        return contrast(scores, a, b, paired_seeds=paired_seeds, confidence=confidence)


def estimate_unbalanced(layout: Layout, caller: str) -> Estimate:
    """Difference of two arms whose cells may be NaN, and its error; as `estimate_difference` where none is."""
    sides = [layout.first - layout.second] if layout.paired or layout.n_seeds == 1 else [layout.first, layout.second]
    scale = float(max(np.nanmax(np.abs(layout.first)), np.nanmax(np.abs(layout.second))))
    n_clusters, pairing = layout.n_clusters, "paired" if len(sides) == 1 else "not paired"
    fits = [additive_fit(side, caller) for side in sides]
    clusters = fits[0].clusters if len(fits) == 1 else fits[0].clusters - fits[1].clusters
    mean = fits[0].mean if len(fits) == 1 else fits[0].mean - fits[1].mean
    flat = max(float(np.ptp(clusters)), *(float(np.nanmax(side) - np.nanmin(side)) for side in sides)) <= ROUNDING * scale
    between = clusters.var(ddof=1) / n_clusters
    if layout.n_seeds == 1:
        error = combine_terms(np.zeros(()), n_clusters - 1, between, n_clusters - 1, np.zeros(()), 1)
        return Estimate(mean, error, 1, n_clusters, False, flat, pairing, caller)
    seeds = [np.asarray(fit.seeds.var(ddof=1) / len(fit.seeds)) for fit in fits]
    df = effective_df(seeds, [len(fit.seeds) - 1 for fit in fits])
    twice = np.asarray(sum(fit.counted_twice for fit in fits))
    error = combine_terms(np.asarray(sum(seeds)), df, between, n_clusters - 1, twice, sum(fit.df for fit in fits))
    if len(fits) == 2:
        error = all_of_two_seeds(error, np.asarray(sum(seeds)), (len(layout.first), len(layout.second)), n_clusters)
    differ = any(float(np.ptp(fit.seeds)) > ROUNDING * scale or fit.residual > (ROUNDING * scale) ** 2 for fit in fits)
    return Estimate(mean, error, layout.n_seeds, n_clusters, differ, flat, pairing, caller)


def additive_fit(values: Array, caller: str = "additive_fit") -> AdditiveFit:
    """The fit of values (S, P), NaN where missing; every row and column has a value.

    With N the 0-1 table of cells, n_c its column sums and M = diag(N 1) - N diag(1/n_c) N', the seeds' effects are M^+ times the sums
    of the seeds less those of their clusters' means; M^+ r is their covariance. By hand, [[1, 2], [3, NaN]]: seeds 0 and 2, clusters
    1 and 2, the missing cell fitted as 4, mean 2.5; but no cell is left for a residual.
    """
    there = ~np.isnan(values)
    n_seeds, n_clusters = values.shape
    filled, table = np.where(there, values, 0.0), there.astype(float)
    counts, sums = table.sum(0), filled.sum(0)
    share = table / counts  # (S, P)
    sizes, vectors = np.linalg.eigh(np.diag(table.sum(1)) - share @ table.T)
    sizes, vectors = sizes[1:], vectors[:, 1:]  # the first is 0: a constant may go from seeds to clusters
    if (sizes < SHARED * n_clusters).any():
        raise ValueError(f"{caller}: missing scores cut seeds and clusters in two parts that share none (column value)")
    inverse = (vectors / sizes) @ vectors.T
    seeds = inverse @ (filled.sum(1) - share @ sums)
    clusters = (sums - table.T @ seeds) / counts
    df = int(there.sum()) - n_seeds - n_clusters + 1
    if n_seeds > 1 and df < 1:
        raise ValueError(
            f"{caller}: {int(there.sum())} cells of {n_seeds} seeds and {n_clusters} clusters leave no residual (column value)"
        )
    rest = np.where(there, values - seeds[:, None] - clusters, 0.0)
    towards = inverse @ (1 / n_seeds - share.mean(1))
    weights = table * (1 / (n_clusters * counts) + towards[:, None] - share.T @ towards)
    spread = inverse @ share
    covariance = (1 / counts).sum() + (share * spread).sum(), (1 / counts).sum() + float(share.sum(1) @ spread.sum(1))  # trace, total
    return AdditiveFit(
        float(seeds.mean() + clusters.mean()),
        seeds + clusters.mean(),
        clusters + seeds.mean(),
        float((rest**2).sum()) / max(df, 1),
        df,
        float((weights**2).sum()),
        float(np.trace(inverse)) / max(n_seeds - 1, 1),
        float(covariance[0] - covariance[1] / n_clusters) / (n_clusters - 1),
    )


def _worst(layout: Layout, value_range: tuple[float, float], caller: str) -> tuple[float, float]:
    """The difference with every missing score at the end of its range that is worst, and best, for the first arm."""
    low, high = (check_number(end, "value_range", caller) for end in value_range)
    if low >= high or any(((side < low) | (side > high)).any() for side in layout.prompts):
        raise ValueError(f"{caller}: value_range is the lowest and highest possible score, got {value_range} (column value)")

    def mean(side: Array, fill: float) -> float:
        return float((np.where(np.isnan(side), fill, side).mean(0) * layout.weights).sum())

    first, second = layout.prompts
    return mean(first, low) - mean(second, high), mean(first, high) - mean(second, low)
