"""Random-effects means over experiments."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from statsmodels.stats.meta_analysis import combine_effects

from apo_bench.stats import meta_analysis

DIFFERENCES, ERRORS = [0.9, 0.1, 1.6, -0.2, 0.7], [0.2, 0.3, 0.25, 0.4, 0.15]


def test_by_hand() -> None:
    """0 and 4, variances 1: tau^2 = 7 (8 / (tau^2 + 1) = 1), mean 2, error^2 = max(1, 1) / (2 / 8) = 4, t(1) = 12.706.

    Q = 8 with one degree of freedom; I^2 = 7 / (7 + 1). A new experiment: 2 +- 12.706 sqrt(7 + 4).
    """
    result = meta_analysis([0, 4], [1, 1])
    assert (result.mean, result.standard_error, result.tau**2) == pytest.approx((2, 2, 7))
    assert (result.q, result.i_squared) == pytest.approx((8, 7 / 8))
    assert result.ci_high == pytest.approx(2 + 12.7062 * 2, abs=1e-3)
    assert result.predicted_high == pytest.approx(2 + 12.7062 * math.sqrt(11), abs=1e-3)
    assert math.isnan(result.p_value)


def test_equal_to_statsmodels() -> None:
    """Paule-Mandel is its `iterated`; Hartung-Knapp its WLS scale, 1 at that tau^2."""
    theirs: Any = combine_effects(np.array(DIFFERENCES), np.array(ERRORS) ** 2, method_re="iterated", use_t=True)
    ours = meta_analysis(DIFFERENCES, ERRORS)
    assert (ours.mean, ours.tau**2) == pytest.approx((theirs.mean_effect_re, theirs.tau2), rel=1e-4)
    assert ours.standard_error == pytest.approx(theirs.sd_eff_w_re_hksj, rel=1e-4)
    assert (ours.ci_low, ours.ci_high) == pytest.approx(theirs.conf_int(use_t=True)[3], rel=1e-3)
    assert ours.q == pytest.approx(theirs.q)


def test_restricted_likelihood_is_highest_at_its_tau() -> None:
    """By scipy's optimizer on -2 log L = sum log(t + s_i^2) + sum w_i (y_i - m)^2 + log sum w_i; with equal errors it is Paule-Mandel's."""
    y, variances = np.array(DIFFERENCES), np.array(ERRORS) ** 2

    def deviance(tau2: float) -> float:
        weights = 1 / (tau2 + variances)
        mean = (weights * y).sum() / weights.sum()
        return float(-np.log(weights).sum() + (weights * (y - mean) ** 2).sum() + np.log(weights.sum()))

    best: Any = minimize_scalar(deviance, bounds=(0, 10), method="bounded", options={"xatol": 1e-10})
    assert meta_analysis(DIFFERENCES, ERRORS, tau="reml").tau ** 2 == pytest.approx(best.x, rel=1e-5)
    assert meta_analysis([0, 4], [1, 1], tau="reml").tau ** 2 == pytest.approx(7)
    assert meta_analysis([1, 1.1, 0.9], [1, 1, 2], tau="reml").tau == 0
    with pytest.raises(ValueError, match="tau is one of paule_mandel, reml"):
        meta_analysis([0, 4], [1, 1], tau="dl")  # pyright: ignore[reportArgumentType]


def test_alike_experiments_are_no_surer_than_their_errors() -> None:
    """Equal differences: tau 0, and the error is that of the fixed mean, 1 / sqrt(sum 1/s^2), where Hartung-Knapp's own would be 0."""
    result = meta_analysis([1, 1, 1], [0.5, 0.5, 0.5])
    assert (result.tau, result.standard_error) == pytest.approx((0, 0.5 / math.sqrt(3)))
    assert meta_analysis([1], [0.5]).test == "none: one experiment"


@pytest.mark.parametrize(
    ("differences", "errors", "message"),
    [([1, 2], [1], "2 differences and 1 standard"), ([1.0, math.nan], [1, 1], "finite"), ([1], [0], "above 0"), ([], [], "at least one")],
)
def test_errors_name_the_cause(differences: list[float], errors: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        meta_analysis(differences, errors)


@pytest.mark.slow
def test_the_mean_is_covered() -> None:
    """600 sets of six experiments, tau 1, errors 0.3 to 1: about 95 % (binomial error 0.9) of the intervals hold the mean."""
    rng = np.random.default_rng(0)
    hold = 0
    for _ in range(600):
        errors = rng.uniform(0.3, 1, size=6)
        result = meta_analysis(rng.normal(size=6) + errors * rng.normal(size=6), errors)
        hold += result.ci_low <= 0 <= result.ci_high
    assert 0.925 < hold / 600 < 0.98
