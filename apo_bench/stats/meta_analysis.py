"""One question answered by several experiments or scorers: their mean difference when they differ by more than chance."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import chdtrc, stdtr, stdtrit  # scipy.stats would take a second to import

from apo_bench.stats.argument_checks import Array, align, as_floats, check_confidence, short_repr

HALVINGS = 200
STEPS, CLOSE = 10_000, 1e-12
Tau = Literal["paule_mandel", "reml"]


@dataclass(frozen=True)
class MetaAnalysis:
    """The random-effects mean of `n` differences, of `meta_analysis`. NaN: not available; `test` says why.

    `tau` is the SD of true differences between experiments, `i_squared` the share of the observed variance that this is, `q` Cochran's
    statistic with `q_p_value` against "all experiments have one true difference". `predicted_low` to `predicted_high` is where the true
    difference of a new experiment like these lies.
    """

    mean: float
    standard_error: float
    ci_low: float
    ci_high: float
    p_value: float
    tau: float
    i_squared: float
    q: float
    q_p_value: float
    predicted_low: float
    predicted_high: float
    n: int
    scope: str
    test: str


def meta_analysis(
    differences: npt.ArrayLike, standard_errors: npt.ArrayLike, *, tau: Tau = "paule_mandel", confidence: float = 0.95
) -> MetaAnalysis:
    """The mean of independent differences (K,) with known standard errors, each from an experiment that is a draw of its own.

    y_i = mu + u_i + e_i with Var u = tau^2, Var e_i = s_i^2. tau^2 by Paule & Mandel (J. Res. Nat. Bur. Stand. 87, 1982): where
    sum w_i (y_i - m)^2 = K - 1, w_i = 1 / (tau^2 + s_i^2) and m their weighted mean, or 0; or by restricted maximum likelihood
    (`tau="reml"`), which is a little more precise where differences are normal. Standard error by Hartung & Knapp (Stat. Med.
    20, 2001), max(1, sum w_i (y_i - m)^2 / (K - 1)) / sum w_i squared, t with K - 1 degrees of freedom; without the 1 it may be smaller
    than if tau were 0. Prediction: m +- t sqrt(tau^2 + error^2). Two experiments give an interval and no p-value, one gives neither.
    Errors that are themselves estimates of few degrees of freedom make both tau and weights rough: of 6 experiments with 2 each, 95 %
    intervals cover 90 to 97 %, by likelihood 92 to 96 % (results/validation).
    Scorers of one experiment share its answers, so that they are not independent: average them first, or look at them one by one.
    Raises ValueError for lengths that differ, another `tau`, nothing, numbers that are not finite and errors that are not above 0.
    """
    caller = "meta_analysis"
    check_confidence(confidence, caller)
    if tau not in (known := {"paule_mandel": between_variance, "reml": restricted_variance}):
        raise ValueError(f"{caller}: tau is one of {', '.join(known)}, got {short_repr(tau)}")
    lists = align({"differences": differences, "standard_errors": standard_errors}, caller)
    y, s = (as_floats(values, f"{caller}: {name}") for values, name in zip(lists, ("a difference", "a standard error"), strict=True))
    if y.ndim != 1 or y.shape != s.shape or not len(y):
        raise ValueError(f"{caller}: {y.size} differences and {s.size} standard errors; give one of each for at least one experiment")
    if not np.isfinite(y).all() or not np.isfinite(s).all() or (s <= 0).any():
        raise ValueError(f"{caller}: differences are finite and standard errors above 0")
    k, nan, scope = len(y), math.nan, "new experiments like these"
    tau2 = known[tau](y, s**2)
    mean, q_at_tau, total = _weighted(y, s**2 + tau2)
    q = _weighted(y, s**2)[1]
    if k == 1:
        return MetaAnalysis(mean, nan, nan, nan, nan, nan, nan, nan, nan, nan, nan, 1, scope, "none: one experiment")
    error = math.sqrt(max(1.0, q_at_tau / (k - 1)) / total)
    t = float(stdtrit(k - 1, (1 + confidence) / 2))
    typical = (k - 1) * float((1 / s**2).sum()) / float((1 / s**2).sum() ** 2 - (1 / s**4).sum())  # Higgins & Thompson's within variance
    reach = t * math.sqrt(tau2 + error**2)
    two = k == 2
    return MetaAnalysis(
        mean=mean,
        standard_error=error,
        ci_low=mean - t * error,
        ci_high=mean + t * error,
        p_value=nan if two else 2 * float(stdtr(k - 1, -abs(mean) / error)),
        tau=math.sqrt(tau2),
        i_squared=tau2 / (tau2 + typical),
        q=q,
        q_p_value=float(chdtrc(k - 1, q)),
        predicted_low=mean - reach,
        predicted_high=mean + reach,
        n=k,
        scope=scope,
        test="none: two experiments give an interval only" if two else f"random effects over {k} experiments, Hartung-Knapp t",
    )


def between_variance(y: Array, variances: Array) -> float:
    """Paule and Mandel's tau^2, by halving; 0 where the experiments differ by no more than their errors.

    By hand, 0, 4 with variances 1: equal weights 1 / (tau^2 + 1), sum of squares 8 / (tau^2 + 1) = 1, tau^2 = 7.
    """

    def excess(tau2: float) -> float:
        return _weighted(y, variances + tau2)[1] - (len(y) - 1)

    low, high = 0.0, float(np.ptp(y)) ** 2
    if len(y) < 2 or excess(0.0) <= 0:
        return 0.0
    while excess(high) > 0:
        high *= 2
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return (low + high) / 2


def restricted_variance(y: Array, variances: Array) -> float:
    """The tau^2 with the highest restricted likelihood, by Fisher scoring from Paule and Mandel's; 0 where it falls below.

    By hand, 0, 4 with variances 1: the sample variance less 1, 8 - 1 = 7.
    """
    tau2 = between_variance(y, variances)
    for _ in range(STEPS if len(y) > 1 else 0):
        weights = 1 / (variances + tau2)
        residuals = y - _weighted(y, variances + tau2)[0]
        squares = float((weights**2).sum())
        new = max(0.0, float((weights**2 * (residuals**2 - variances)).sum()) / squares + 1 / float(weights.sum()))
        if abs(new - tau2) <= CLOSE * (1 + tau2):
            return new
        tau2 = new
    return tau2


def _weighted(y: Array, variances: Array) -> tuple[float, float, float]:
    """Weighted mean, weighted sum of squares about it, and sum of weights."""
    weights = 1 / variances
    mean = float((weights * y).sum() / weights.sum())
    return mean, float((weights * (y - mean) ** 2).sum()), float(weights.sum())
