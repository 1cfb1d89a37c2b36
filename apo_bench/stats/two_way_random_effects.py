"""The two-way model: seeds and clusters of prompts are both random, so that a claim holds for new seeds and new prompts.

A claim about "the method" is a claim about seeds that were not run and prompts that were not tested. Scores share both: all prompts of
one seed come from one trained policy, all seeds answer the same prompts. Of two arms paired by seed, let

    D[s, c] = mu + seed_s + cluster_c + rest_sc        S seeds, P clusters, variances q, k, r, all normal

be the difference. Then Var(mean D) = q/S + k/P + r/(SP). The seed means vary by q + r/P (sample variance A), the cluster means by
k + r/S (B), and the residual mean square C estimates r. A/S + B/P counts the residual twice, hence V = A/S + B/P - C/(SP).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real

import numpy as np
import pandas as pd
from scipy.special import stdtridf  # scipy.stats would take a second to import

from apo_bench.stats.argument_checks import ROUNDING, Array, check_confidence, short_repr
from apo_bench.stats.confidence_intervals import design_effect, score_ends, wilson
from apo_bench.stats.score_layout import Layout, lay_out
from apo_bench.stats.t_mixture import mixture_below, mixture_quantile

NEW_SEEDS_AND_PROMPTS = "new seeds and new prompts; base policy, world and gold models as they are"
THESE_CHECKPOINTS = "these checkpoints only"


@dataclass(frozen=True)
class Contrast:
    """The difference of two arms and what may be claimed from it.

    `scope` says in words what the interval and p-value generalise to and what all seeds share, `test` which test made them
    ("none: ..." where none was). `df` are those of the t distribution that has the same critical value at the interval's confidence.
    `n_seeds` is the smaller arm's count, `n_dropped` the rows of both arms that were left out because their prompt lacks a row in some
    seed of either arm. NaN means "not available", never zero.
    """

    difference: float
    standard_error: float
    df: float
    ci_low: float
    ci_high: float
    p_value: float
    n_seeds: int
    n_clusters: int
    scope: str
    test: str
    n_dropped: int = 0


@dataclass(frozen=True)
class MeanTest:
    """A mean with its two-way error, of `mean_test`. `p_value` is two-sided, against `null`; `df` as in `Contrast`."""

    mean: float
    standard_error: float
    df: float
    ci_low: float
    ci_high: float
    p_value: float
    scope: str
    test: str


@dataclass(frozen=True)
class TwoWayError:
    """The estimated variance V of a mean over seeds and clusters, and the reference distribution of mean / sqrt(V). Arrays (...).

    `seed_share` is the seeds' share of V, `seed_df` and `cluster_df` what the two sides rest on. The reference distribution is the
    mixture of the two t distributions by their shares,

        P(|T| > t) = seed_share P(|t_seed_df| > t) + (1 - seed_share) P(|t_cluster_df| > t).

    Why: given the mean squares, P(|T| > t) is 2 Phi(-t sqrt(sum_i w_i M_i)) with true shares w_i and M_i = chi-square_i / f_i. That is
    convex in sum_i w_i M_i, so by Jensen's inequality it is at most sum_i w_i P(|t_f_i| > t), at every t, and equal to it where one
    side is everything. With estimated shares this is no theorem; measured on paired normal scores it holds from three seeds and three
    clusters on, at 5, 1 and 0.1 % alike (results/validation), where Satterthwaite's degrees of freedom reject up to 8, 3.4 and 1.5 %.
    """

    variance: Array
    seed_share: Array
    seed_df: Array
    cluster_df: Array

    def below(self, t: Array | float) -> Array:
        """P(T <= t)."""
        return mixture_below(*self._sides, t)

    def p_value(self, difference: Array | float) -> Array:
        """Two-sided p-value of a mean that is `difference` away from where it should be."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return 2 * self.below(-np.abs(difference) / np.sqrt(self.variance))

    def quantile(self, level: Array | float) -> Array:
        """t with P(T <= t) = `level`."""
        return mixture_quantile(*self._sides, level)

    @property
    def _sides(self) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        return (self.seed_share, 1 - self.seed_share), (self.seed_df, self.cluster_df)

    def df(self, confidence: float = 0.95) -> Array:
        """Degrees of freedom of the t distribution with the same critical value at `confidence`."""
        level = (1 + confidence) / 2
        between = stdtridf(level, self.quantile(level))
        return np.where(self.seed_share == 0, self.cluster_df, np.where(self.seed_share == 1, self.seed_df, between))


def contrast(scores: pd.DataFrame, a: str, b: str, *, paired_seeds: bool | None = None, confidence: float = 0.95) -> Contrast:
    """Mean score of arm `a` minus arm `b`, tested over seeds and clusters of prompts (two-way crossed random effects).

    `scores` is long: arm, seed, prompt_id, value and, optionally, cluster_id (default: each prompt is its own cluster). Only prompts
    with a row in every seed of both arms are used, so that the design is balanced; the others' rows are counted in `n_dropped`.
    A cluster's value is the mean over its prompts, and clusters weigh alike. `paired_seeds=None` decides by the labels: the same
    seeds in both arms are paired, disjoint ones are not. Variance: `paired_error`, `unpaired_error`; test: `TwoWayError`.

    One seed an arm, or seeds that do not differ at all: t test over clusters, scope "these checkpoints only". Two seeds or two clusters:
    an interval, with the one degree of freedom of the side that there are two of, and no p-value. Where nothing varies there is nothing
    to estimate an error from: standard_error 0, no df, interval or p-value (NaN).

    The model's normal distributions matter for seeds only, of which there are few: where one arm's seeds are skewed (a run in ten
    collapses, say) and the other's are not, true nulls are rejected in 10 to 35 %, and no test of so few seeds can know it. Look at them.
    Raises ValueError, naming arm and column, for rows that allow no valid estimate.
    """
    layout = lay_out(scores, a, b, paired_seeds=paired_seeds, caller="contrast")
    return contrast_of(layout, confidence, caller=f"contrast: arms {a!r} and {b!r}")


def contrast_of(layout: Layout, confidence: float = 0.95, *, caller: str = "contrast_of") -> Contrast:
    """The contrast of two arms of a layout; errors begin with `caller`."""
    tested = mean_test_of(estimate_difference(layout, caller), confidence)
    used = layout.prompts[0].size + layout.prompts[1].size
    test = (
        tested.test if layout.n_dropped <= used else f"{tested.test}; most rows were left out, as their prompts lack a score in some seed"
    )
    return Contrast(
        tested.mean,
        tested.standard_error,
        tested.df,
        tested.ci_low,
        tested.ci_high,
        tested.p_value,
        layout.n_seeds,
        layout.n_clusters,
        tested.scope,
        test,
        layout.n_dropped,
    )


def mean_test(values: Array, *, null: float = 0.0, confidence: float = 0.95, caller: str = "mean_test") -> MeanTest:
    """Test the mean of `values` (S seeds, P clusters) against `null`, seeds and clusters both random, as `contrast` tests differences.

    Raises ValueError, beginning with `caller`, for values that are not finite or not two-dimensional, and for fewer than two clusters.
    """
    if not isinstance(null, Real) or not math.isfinite(null):
        raise ValueError(f"{caller}: null is a finite number, got {short_repr(null)}")
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or values.shape[1] < 2 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"{caller}: finite values of at least one seed and two clusters are needed, got shape {values.shape}")
    return mean_test_of(_estimate_mean(values, float(np.abs(values).max()), "", caller), confidence, null)


def share_test(values: Array, *, confidence: float = 0.95, caller: str = "share_test") -> MeanTest:
    """Test the mean of shares in [0, 1], (S seeds, P clusters), against 1/2, seeds and clusters both random; the interval stays in [0, 1].

    With V and the reference distribution of `mean_test`, the interval holds the p with |mean - p| <= T sqrt(V p (1 - p) / (mean
    (1 - mean))): the variance that p would have. p_value is that of 1/2 under the variance that 1/2 would have, so that both say the
    same. Where only clusters vary V is drawn to that of values 0 and 1 (`design_effect`). All 0 or all 1: Wilson's interval for P trials.
    Errors as in `mean_test`.
    """
    tested = mean_test(values, null=0.5, confidence=confidence, caller=caller)
    if tested.mean in (0.0, 1.0):
        low, high = wilson(len(values[0]) * tested.mean, len(values[0]), confidence)
        return replace(tested, ci_low=low, ci_high=high, scope=THESE_CHECKPOINTS)
    if math.isnan(tested.df):
        return tested
    estimated = _estimate_mean(np.asarray(values, dtype=float), 1.0, "", caller)
    ratio = tested.standard_error**2 / (tested.mean * (1 - tested.mean))
    if not estimated.seeds_differ:
        ratio = design_effect(tested.mean, tested.standard_error**2, estimated.n_clusters) / estimated.n_clusters
    low, high = score_ends(tested.mean, float(estimated.error.quantile((1 + confidence) / 2)) ** 2 * ratio)
    p_value = 2 * float(estimated.error.below(-abs(tested.mean - 0.5) / math.sqrt(ratio / 4)))
    return replace(tested, ci_low=low, ci_high=high, p_value=math.nan if math.isnan(tested.p_value) else p_value)


@dataclass(frozen=True)
class Estimate:
    """A mean and its error, before any claim. `flat`: nothing varies, and `error` is meaningless."""

    mean: float
    error: TwoWayError
    n_seeds: int
    n_clusters: int
    seeds_differ: bool
    flat: bool
    pairing: str
    caller: str


def estimate_difference(layout: Layout, caller: str) -> Estimate:
    """Difference of two arms and its error. Raises ValueError where floating-point numbers cannot hold the variance."""
    scale = float(max(np.abs(layout.first).max(), np.abs(layout.second).max()))
    if layout.paired or layout.n_seeds == 1:
        return _estimate_mean(layout.first - layout.second, scale, "paired", caller)
    with np.errstate(all="ignore"):
        error = unpaired_error(layout.first, layout.second)
        over_seeds = max(float(np.ptp(side, axis=0).max()) for side in (layout.first, layout.second))
        flat = max(over_seeds, float(np.ptp(layout.differences))) <= ROUNDING * scale
        mean = float(layout.differences.mean())
    return _checked_variance(
        Estimate(mean, error, layout.n_seeds, layout.n_clusters, over_seeds > ROUNDING * scale, flat, "not paired", caller)
    )


def _estimate_mean(values: Array, scale: float, pairing: str, caller: str) -> Estimate:
    n_seeds, n_clusters = values.shape
    with np.errstate(all="ignore"):
        if n_seeds == 1:
            between, df = np.asarray(values.var(ddof=1) / n_clusters), np.asarray(n_clusters - 1.0)
            error = TwoWayError(between, np.zeros(()), df, df)
        else:
            error = paired_error(values)
        differ = n_seeds > 1 and float(np.ptp(values, axis=0).max()) > ROUNDING * scale
        flat = bool(np.ptp(values) <= ROUNDING * scale)
    return _checked_variance(Estimate(float(values.mean()), error, n_seeds, n_clusters, differ, flat, pairing, caller))


def _checked_variance(estimated: Estimate) -> Estimate:
    if not estimated.flat and not 0 < estimated.error.variance < math.inf:
        raise ValueError(f"{estimated.caller}: column value is too small or too large for floating-point variances")
    return estimated


def mean_test_of(estimated: Estimate, confidence: float, null: float = 0.0) -> MeanTest:
    """The test of an estimate: interval, p-value against `null`, scope and the test's name."""
    check_confidence(confidence, estimated.caller)
    nan, scope = math.nan, NEW_SEEDS_AND_PROMPTS if estimated.seeds_differ else THESE_CHECKPOINTS
    if estimated.flat:
        scope = NEW_SEEDS_AND_PROMPTS if estimated.n_seeds > 1 else THESE_CHECKPOINTS
        return MeanTest(estimated.mean, 0.0, nan, nan, nan, nan, scope, "none: nothing varies")
    error = math.sqrt(float(estimated.error.variance))
    half = error * float(estimated.error.quantile((1 + confidence) / 2))
    p_value = float(estimated.error.p_value(estimated.mean - null))
    pairing = f" ({estimated.pairing})" if estimated.pairing else ""
    test = f"two-way t test over seeds{pairing} and clusters of prompts"
    if not estimated.seeds_differ:
        test = f"{'paired ' if estimated.pairing else ''}t test over clusters of prompts"
        test += "; seeds do not differ" if estimated.n_seeds > 1 else ""
    elif 2 in (estimated.n_seeds, estimated.n_clusters):
        p_value, test = nan, f"none: two {'seeds' if estimated.n_seeds == 2 else 'clusters'} give an interval only"
    return MeanTest(
        estimated.mean, error, float(estimated.error.df(confidence)), estimated.mean - half, estimated.mean + half, p_value, scope, test
    )


def paired_error(differences: Array) -> TwoWayError:
    """The error of the mean of D (..., S, P); S and P at least 2, else ValueError.

    V = A/S + B/P - C/(SP) as in the module's head, floored at max(A/S, B/P): the subtraction may not make the result surer than seeds
    alone or clusters alone would. Where neither seed means nor cluster means vary at all only the residual is left: V = C/(SP) with its
    (S-1)(P-1) degrees of freedom.

    By hand, S = 3, P = 4, D = [[0, 2, 4, 2], [4, 2, 4, 6], [2, 2, 7, 1]]: mean 3; seed means 2, 4, 3, A = 1; cluster means 2, 2, 5, 3,
    B = 2; residuals -1, 1, 0, 0 / 1, -1, -2, 2 / 0, 0, 2, -2, squares 20, C = 20/6 = 10/3; V = 1/3 + 1/2 - 5/18 = 5/9, and the seeds'
    share is (1/3) / (5/9) = 3/5.
    """
    _check_shape(differences, "paired_error")
    n_seeds, n_clusters = differences.shape[-2:]
    seed, residual = variance_terms(differences)
    cluster = differences.mean(-2).var(-1, ddof=1) / n_clusters
    return combine_terms(seed, n_seeds - 1, cluster, n_clusters - 1, residual, (n_seeds - 1) * (n_clusters - 1))


def unpaired_error(a: Array, b: Array) -> TwoWayError:
    """The error of mean(a) - mean(b) for a (..., Sa, P) and b (..., Sb, P) of unrelated seeds; sizes at least 2, else ValueError.

    With arm-wise seed variances Aa, Ab and residual mean squares Ca, Cb, and B the variance of the cluster differences,
    V = Vs + B/P - Ca/(Sa P) - Cb/(Sb P) with Vs = Aa/Sa + Ab/Sb, floored at max(Vs, B/P). Each arm's seeds keep their own degrees of
    freedom (`effective_df` of Aa/Sa and Ab/Sb): pooled ones reject up to 14 % of true nulls where the arms' seed SDs differ.
    """
    _check_shape(a, "unpaired_error")
    _check_shape(b, "unpaired_error")
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"unpaired_error: {a.shape[-1]} and {b.shape[-1]} clusters; both arms need the same")
    (seed_a, residual_a), (seed_b, residual_b) = variance_terms(a), variance_terms(b)
    (s_a, n_clusters), s_b = a.shape[-2:], b.shape[-2]
    cluster = (a.mean(-2) - b.mean(-2)).var(-1, ddof=1) / n_clusters
    seed_df = effective_df([seed_a, seed_b], [s_a - 1, s_b - 1])
    residual_df = (s_a + s_b - 2) * (n_clusters - 1)
    error = combine_terms(seed_a + seed_b, seed_df, cluster, n_clusters - 1, residual_a + residual_b, residual_df)
    return all_of_two_seeds(error, seed_a + seed_b, (s_a, s_b), n_clusters)


def all_of_two_seeds(error: TwoWayError, seed: Array, n_seeds: tuple[int, int], n_clusters: int) -> TwoWayError:
    """The error of arms whose seeds are not paired: where an arm has two, the seeds' side is taken as all of V."""
    if 2 not in n_seeds or n_clusters == 2:
        return error
    return replace(error, seed_share=np.where(seed > 0, 1.0, error.seed_share))


def effective_df(variances: Sequence[Array | float], dfs: Sequence[Array | float]) -> Array:
    """Degrees of freedom of a sum of independent variance estimates x_i with f_i degrees of freedom each; arrays broadcast.

    With shares u_i = x_i / sum x and F the largest f_i,

        1/df = sum u_i^2 / f_i + sum u_i (1 - u_i) (1/f_i - 1/F).

    The first sum is Satterthwaite's (Biometrics Bulletin 2, 1946), Welch's where there are two terms. The second is nil where all f_i are
    equal or one term is everything; elsewhere it keeps a term with few degrees of freedom from hiding behind a share that came out
    small by luck. No variance: NaN.
    """
    x = [np.asarray(values, dtype=float) for values in variances]
    f = [np.asarray(values, dtype=float) for values in dfs]
    largest = np.maximum.reduce(np.broadcast_arrays(*f))
    total = sum(x)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = [values / total for values in x]
        inverse = sum(u**2 / df + u * (1 - u) * (1 / df - 1 / largest) for u, df in zip(shares, f, strict=True))
        return 1 / np.asarray(inverse)


def variance_terms(values: Array) -> tuple[Array, Array]:
    """The terms of V that one arm (or difference) gives: A/S and C/(SP) of values (..., S, P)."""
    n_seeds, n_clusters = values.shape[-2:]
    seed_means, cluster_means = values.mean(-1, keepdims=True), values.mean(-2, keepdims=True)
    residuals = values - seed_means - cluster_means + values.mean((-1, -2), keepdims=True)
    mean_square = (residuals**2).sum((-1, -2)) / ((n_seeds - 1) * (n_clusters - 1))
    return seed_means[..., 0].var(-1, ddof=1) / n_seeds, mean_square / (n_seeds * n_clusters)


def combine_terms(seed: Array, seed_df: Array | int, cluster: Array, cluster_df: int, residual: Array, residual_df: int) -> TwoWayError:
    """The error from its terms, each a variance of the mean: V with its floor, and the shares of seeds and clusters.

    The residual that V gives back is taken off the side with more degrees of freedom: the scarcer one keeps its whole term. A side with
    one degree of freedom (two seeds, two clusters) is too uncertain about its share, and is taken as all of V.
    """
    largest = np.maximum(seed, cluster)
    means_vary = largest > ROUNDING * residual
    variance = np.where(means_vary, np.maximum(seed + cluster - residual, largest), residual)
    seed_df = np.where(np.isnan(seed_df), cluster_df, seed_df)  # no seed varies
    scarce = seed_df <= cluster_df
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(scarce, seed / variance, 1 - cluster / variance)
    share = np.where(scarce & (seed_df == 1) & (seed > 0), 1.0, np.where(~scarce & (cluster_df == 1) & (cluster > 0), 0.0, share))
    share = np.where(means_vary, np.clip(share, 0.0, 1.0), 0.0)  # beyond only by rounding
    return TwoWayError(variance, share, seed_df, np.where(means_vary, cluster_df, residual_df))


def _check_shape(values: Array, caller: str) -> None:
    if np.ndim(values) < 2 or min(values.shape[-2:]) < 2:
        raise ValueError(f"{caller}: an array (..., seeds, clusters) of at least two each is needed, got shape {np.shape(values)}")
