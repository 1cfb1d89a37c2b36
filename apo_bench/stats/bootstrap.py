"""The two-way bootstrap over seeds and clusters of prompts, by weights and matrix products instead of copied rows."""

import math
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri  # scipy.stats would take a second to import

from apo_bench.stats.argument_checks import Array, check_count, check_seed
from apo_bench.stats.score_layout import Layout, lay_out
from apo_bench.stats.two_way_random_effects import Contrast, contrast_of, estimate_difference

SHAPE_SEEDS = 5  # fewer resampled seeds show no shape of a distribution
AT_A_TIME = 1_000_000  # weights held in memory


@dataclass(frozen=True)
class Bootstrap(Contrast):
    """A contrast whose interval and p-value come from `draws` resamples; `resampled_error` is the plain SD of the resampled differences."""

    draws: int = 0
    resampled_error: float = math.nan


def two_way_bootstrap(
    scores: pd.DataFrame, a: str, b: str, *, draws: int = 10_000, seed: int = 0, paired_seeds: bool | None = None, confidence: float = 0.95
) -> Bootstrap:
    """The difference of two arms with an interval that resampled seeds and clusters may make lopsided.

    Rows, pairing, scope and errors as in `contrast`. Every draw takes S - 1 of the S seeds and P - 1 of the P clusters with replacement
    (Rao & Wu, JASA 83, 1988: so many leave no bias in a variance; drawing S of 3 seeds would lose a third of it): the same seeds for
    both arms where they are paired, the same clusters always. The residual enters such a draw three times over (Owen, Annals of Applied
    Statistics 1, 2007), so draws are standardised, z* = (difference* - difference) / SD*, and put on the standard error of `contrast`.
    With q the quantile of z*, the draws' ends are difference + SE * Q(Phi(q)), Q the quantile of the reference distribution of
    `contrast`: the draws give the shape, the reference the heavier tails of few seeds. The draws' p-value is the smallest level at
    which these leave out 0, never below 2/(draws + 1).
    The draws may widen what `contrast` says, never narrow it: each end is the farther one of both, the p-value the larger. Where a score
    is rarely other than 0 no draw leaves the side on which the difference came out, and the draws alone would be sure of it.
    Two to four resampled seeds have no shape to show (three give ten different means): interval and p-value are then those of
    `contrast`, and `resampled_error` is there to compare. Nor can it detect what few seeds do not show, such as skewed seeds in one arm.
    The order of rows changes nothing; exchanging arms whose seeds are not paired draws other seeds.
    """
    check_count(draws, "draws", "two_way_bootstrap", least=100)
    check_seed(seed, "two_way_bootstrap")
    caller = f"two_way_bootstrap: arms {a!r} and {b!r}"
    layout = lay_out(scores, a, b, paired_seeds=paired_seeds, caller="two_way_bootstrap")
    t_test = contrast_of(layout, confidence, caller=caller)
    result = Bootstrap(**asdict(t_test), draws=draws)
    if math.isnan(t_test.df):
        return result
    means = resampled_differences(layout, draws, seed)
    spread = float(means.std())
    result = replace(result, resampled_error=spread)
    if math.isnan(t_test.p_value):
        return result
    if 1 < layout.n_seeds < SHAPE_SEEDS:
        return replace(result, test=f"{t_test.test} ({layout.n_seeds} seeds are too few for a bootstrap's)")
    reference, error, z = estimate_difference(layout, caller).error, t_test.standard_error, (means - t_test.difference) / spread
    ends = reference.quantile(ndtr(np.quantile(z, [(1 - confidence) / 2, (1 + confidence) / 2])))
    low, high = (t_test.difference + error * float(end) for end in ends)
    low, high = min(low, t_test.ci_low), max(high, t_test.ci_high)
    reached = ndtri(reference.below(-t_test.difference / error))  # the z* whose end of the interval is 0
    p_value = min(1.0, 2 * (min(int((z <= reached).sum()), int((z >= reached).sum())) + 1) / (draws + 1))
    over = "clusters" if layout.n_seeds == 1 else f"seeds ({'paired' if layout.paired else 'not paired'}) and clusters"
    test = f"bootstrap over {over} of prompts, {draws} draws, t tails, never narrower than the t interval"
    return replace(result, ci_low=low, ci_high=high, p_value=max(p_value, t_test.p_value), test=test)


def resampled_differences(layout: Layout, draws: int, seed: int) -> Array:
    """Differences of the arms' means (draws,), seeds and clusters resampled as in `two_way_bootstrap`."""
    generator = np.random.default_rng(seed)
    seeds_a = _weights(generator, draws, len(layout.first))
    seeds_b = seeds_a if layout.paired else _weights(generator, draws, len(layout.second))
    columns, means = np.concatenate([layout.first, layout.second]).T, np.empty(draws)  # (P, Sa + Sb)
    step = max(1, AT_A_TIME // layout.n_clusters)
    for start in range(0, draws, step):
        rows = slice(start, min(start + step, draws))
        by_seed = _weights(generator, rows.stop - start, layout.n_clusters) @ columns  # (n, Sa + Sb)
        means[rows] = (by_seed[:, : len(layout.first)] * seeds_a[rows]).sum(1) - (by_seed[:, len(layout.first) :] * seeds_b[rows]).sum(1)
    return means


def _weights(generator: np.random.Generator, draws: int, n: int) -> Array:
    return draw_counts(generator, draws, n) / max(n - 1, 1)


def draw_counts(generator: np.random.Generator, draws: int, n: int) -> Array:
    """How often each of n units comes up in each draw (draws, n): n - 1 are drawn with replacement, one unit alone always comes up.

    Drawing n - 1 leaves no bias in the variance of a mean (Rao & Wu, JASA 83, 1988); n would make it (n - 1)/n of what it is.
    """
    if n == 1:
        return np.ones((draws, 1), dtype=int)
    drawn = generator.integers(0, n, size=(draws, n - 1), dtype=np.min_scalar_type(n))  # 16 bits take half the time of 64
    return np.stack([np.bincount(row, minlength=n) for row in drawn])
