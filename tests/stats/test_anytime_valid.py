"""Comparisons that may be looked at after every seed."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import nct, norm
from scipy.stats import t as student
from score_frames import frame, paired_layout

from apo_bench.stats import anytime_contrast, anytime_contrast_of, contrast, e_value
from apo_bench.stats.anytime_valid import critical_t, half_width


def test_critical_t_by_hand() -> None:
    """n = 4, c = 3, alpha = .04: u = 37, L = (25 sqrt 37)^(1/2) = 12.3318, t^2 = 3 * 11.3318 / (1 - 12.3318 / 37) = 50.988."""
    assert critical_t(4, 0.04) == pytest.approx(math.sqrt(50.988), rel=1e-4)
    assert math.isinf(critical_t(2, 0.04))
    assert math.isinf(critical_t(1, 0.04))


@pytest.mark.parametrize("values", [[0.3, 1.2, 0.7, 1.9], [-1.0, 0.4, 0.1, -0.2, 0.5, 1.4, 0.2]])
def test_the_e_value_is_the_mixtures_likelihood_ratio(values: list[float]) -> None:
    """Of t: the noncentral t density, noncentrality sqrt(n) delta, mixed over delta ~ N(0, c^2), over the central one (scipy)."""
    x, c = np.array(values), 1.5
    n = len(x)
    t = float(x.mean() / x.std(ddof=1) * math.sqrt(n))
    mixed = quad(lambda delta: nct.pdf(t, n - 1, math.sqrt(n) * delta) * norm.pdf(delta, scale=c), -12, 12)[0]
    assert e_value(x, c) == pytest.approx(mixed / student.pdf(t, n - 1), rel=1e-4)
    assert critical_t(n, 1 / e_value(x, c), c) == pytest.approx(abs(t))
    assert e_value(7 * x, c) == pytest.approx(e_value(x, c))  # whatever the unit


def test_the_interval_and_the_p_value_say_the_same() -> None:
    """p is the level at which an end of the interval is 0."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 6, 20))
    result = anytime_contrast(frame(first + 1.5, second), "a", "b")
    plain = contrast(frame(first + 1.5, second), "a", "b")
    assert (result.difference, result.standard_error) == pytest.approx((plain.difference, plain.standard_error))
    assert result.ci_high - result.ci_low > plain.ci_high - plain.ci_low
    assert half_width(first + 1.5 - second, result.p_value) == pytest.approx(result.difference, rel=1e-6)
    assert (result.p_value < 0.05) == (result.ci_low > 0)
    assert "valid at any look" in result.test


def test_few_seeds_start_no_interval() -> None:
    rng = np.random.default_rng(1)
    for n_seeds, reason in ((1, "1 seed(s) start no sequence"), (2, "2 seeds are too few")):
        result = anytime_contrast(frame(*rng.normal(size=(2, n_seeds, 8))), "a", "b")
        assert math.isnan(result.ci_low)
        assert math.isnan(result.p_value)
        assert reason in result.test


def test_errors_name_their_argument() -> None:
    scores = frame(*np.random.default_rng(2).normal(size=(2, 4, 5)), seeds_b=[4, 5, 6, 7])
    with pytest.raises(ValueError, match="needs them paired"):
        anytime_contrast(scores, "a", "b")
    with pytest.raises(ValueError, match="effect_scale is above 0"):
        anytime_contrast_of(paired_layout(np.ones((2, 2)), np.ones((2, 2))), effect_scale=0)


@pytest.mark.slow
def test_the_level_holds_at_all_looks_together() -> None:
    """2,000 sequences of up to 30 normal values without an effect: 1/.05 is passed in at most 5 % (+ 2 binomial errors: 6 %)."""
    rng = np.random.default_rng(3)
    passed = sum(any(e_value(x[:n]) >= 20 for n in range(2, 31)) for x in rng.normal(size=(2_000, 30)))
    assert passed / 2_000 < 0.06
