"""A comparison that may be looked at after every seed: the run may stop or go on whatever it shows.

Let d_1, d_2, ... be the seeds' differences, alike and normal, n of them with t = mean / (s / sqrt n). With a N(0, c^2) mixture over the
standardised effect, the likelihood ratio of the scale-invariant data against no effect is

    E_n = (1 + n c^2)^(-1/2) ((1 + t^2 / f) / (1 + t^2 / (f (1 + n c^2))))^(n / 2),   f = n - 1.

It is a martingale of mean 1 without an effect, whatever the SD, so that it ever passes 1/alpha with probability at most alpha (Ville;
Lai, Ann. Statist. 4, 1976; Wang & Ramdas, Sequential Analysis 44, 2025, "Anytime-valid t-tests and confidence sequences for Gaussian
means with unknown variance"). The means that E_n does not rule out are a confidence sequence: at all looks at once it holds the truth.
"""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.special import stdtrit  # scipy.stats would take a second to import

from apo_bench.stats.argument_checks import Array, check_confidence, check_number
from apo_bench.stats.score_layout import Layout, lay_out
from apo_bench.stats.two_way_random_effects import NEW_SEEDS_AND_PROMPTS, Contrast, contrast_of

EFFECT_SCALE = 3.0  # c: intervals exist from three seeds on, and are narrow at 5 to 20
PROMPTS_SHARE = 0.2  # of alpha; clusters are many, so little of it costs little
HALVINGS = 60


def anytime_contrast(
    scores: pd.DataFrame, a: str, b: str, *, effect_scale: float = EFFECT_SCALE, confidence: float = 0.95, paired_seeds: bool | None = None
) -> Contrast:
    """Mean score of arm `a` minus arm `b`, valid at every number of seeds at once, over new seeds and new prompts.

    `scores` as in `contrast`; seeds are paired and prompts the same at every look. The interval is the sum of two: the confidence sequence
    over seeds at 1 - 0.8 alpha, and a t interval over clusters of prompts, which are drawn once, at 1 - 0.2 alpha. p_value is the
    smallest alpha whose interval leaves out 0; standard_error that of `contrast`, df NaN. At 95 % two seeds give no interval, three a very
    wide one.
    What it costs: t is 5.7 at 5 seeds and 4.3 at 10, where a number of seeds fixed in advance has 2.8 and 2.3.
    Raises ValueError as `contrast` does, and for seeds that are not paired.
    """
    layout = lay_out(scores, a, b, paired_seeds=paired_seeds, caller="anytime_contrast")
    return anytime_contrast_of(layout, confidence, effect_scale, caller=f"anytime_contrast: arms {a!r} and {b!r}")


def anytime_contrast_of(
    layout: Layout, confidence: float = 0.95, effect_scale: float = EFFECT_SCALE, *, caller: str = "anytime_contrast_of"
) -> Contrast:
    """`anytime_contrast` of a layout; errors begin with `caller`."""
    check_confidence(confidence, caller)
    if check_number(effect_scale, "effect_scale", caller) <= 0:
        raise ValueError(f"{caller}: effect_scale is above 0, got {effect_scale}")
    if not layout.paired:
        raise ValueError(f"{caller}: a sequence over seeds needs them paired (column seed)")
    fixed = contrast_of(layout, confidence, caller=caller)
    nan, n_seeds = math.nan, layout.n_seeds
    test = f"confidence sequence over {n_seeds} paired seeds, valid at any look, and t interval over clusters of prompts"
    if fixed.standard_error == 0 or n_seeds < 2:
        return replace(fixed, df=nan, ci_low=nan, ci_high=nan, p_value=nan, test=f"none: {n_seeds} seed(s) start no sequence")
    half = half_width(layout.differences, 1 - confidence, effect_scale)
    low, high = (fixed.difference - half, fixed.difference + half) if math.isfinite(half) else (nan, nan)
    if math.isnan(low):
        test = f"none: {n_seeds} seeds are too few for a confidence sequence at {100 * confidence:g} %"
    p_value = nan if math.isnan(low) else _p_value(layout.differences, fixed.difference, effect_scale)
    return replace(fixed, df=nan, ci_low=low, ci_high=high, p_value=p_value, scope=NEW_SEEDS_AND_PROMPTS, test=test)


def half_width(differences: Array, alpha: float, effect_scale: float = EFFECT_SCALE) -> float:
    """Half of the interval of the mean of D (S, P) at level `alpha`; infinite where there are too few seeds."""
    n_seeds, n_clusters = differences.shape
    seeds = critical_t(n_seeds, (1 - PROMPTS_SHARE) * alpha, effect_scale) * math.sqrt(differences.mean(1).var(ddof=1) / n_seeds)
    clusters = -float(stdtrit(n_clusters - 1, PROMPTS_SHARE * alpha / 2)) * math.sqrt(differences.mean(0).var(ddof=1) / n_clusters)
    return seeds + clusters


def critical_t(n: int, alpha: float, effect_scale: float = EFFECT_SCALE) -> float:
    """The t at which E_n is 1/alpha; infinite where none is.

    With u = 1 + n c^2 and L = (sqrt(u) / alpha)^(2/n): t^2 = (n - 1) (L - 1) / (1 - L/u) where L < u.
    By hand, n = 4, c = 3, alpha = .04: u = 37, L = (25 sqrt(37))^(1/2) = 12.332, t^2 = 3 * 11.332 / (1 - .33329) = 50.99.
    """
    u = 1 + n * effect_scale**2
    size = (math.sqrt(u) / alpha) ** (2 / n)
    return math.sqrt((n - 1) * (size - 1) / (1 - size / u)) if size < u else math.inf


def e_value(values: Array, effect_scale: float = EFFECT_SCALE) -> float:
    """E_n of values (n,) against mean 0: their evidence for another mean; 1 for one value."""
    n = len(values)
    if n < 2:
        return 1.0
    u, ratio = 1 + n * effect_scale**2, n * float(np.mean(values)) ** 2 / float(np.var(values, ddof=1)) / (n - 1)  # t^2 / f
    return math.exp(-0.5 * math.log(u) + n / 2 * (math.log1p(ratio) - math.log1p(ratio / u)))


def _p_value(differences: Array, difference: float, effect_scale: float) -> float:
    """The smallest alpha whose interval leaves out 0, by halving its logarithm."""
    low, high = -700.0, 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if half_width(differences, math.exp(middle), effect_scale) < abs(difference) else (middle, high)
    return math.exp(high)
