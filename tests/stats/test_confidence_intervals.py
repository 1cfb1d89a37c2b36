"""Means and shares with intervals."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from scipy.special import stdtrit

from apo_bench.stats import clustered_mean, clustered_share, share_interval, wilson


def test_clustered_mean_by_hand() -> None:
    """1, 1, 0 in cluster x and 0, 1, 1, 0, 0 in y: mean 4/8 = .5; sums of deviations .5 and -.5.

    Variance 2/1 * (.25 + .25) / 64 = 1/64, error 1/8, one degree of freedom.
    """
    mean, low, high, n = clustered_mean([1, 1, 0, 0, 1, 1, 0, 0], list("xxxyyyyy"))
    half = scipy_stats.t.ppf(0.975, 1) / 8
    assert (mean, low, high, n) == pytest.approx((0.5, 0.5 - half, 0.5 + half, 2))


def test_clustered_mean_without_clustering_is_the_t_interval() -> None:
    """With clusters of one, P/(P-1) * sum d^2 / n^2 = (sample variance) / n."""
    x = np.random.default_rng(5).normal(size=30)
    mean, low, high, n = clustered_mean(x, range(30), confidence=0.9)
    reference = scipy_stats.ttest_1samp(x, 0).confidence_interval(0.9)
    assert (mean, low, high, n) == pytest.approx((x.mean(), reference.low, reference.high, 30))


def test_clustered_mean_without_variation() -> None:
    assert all(math.isnan(x) for x in clustered_mean([1, 1, 1], [0, 1, 1])[1:3])
    assert all(math.isnan(x) for x in clustered_mean([0.3, 0.3], [0, 1])[1:3])
    assert all(math.isnan(x) for x in clustered_mean([0.3, 0.4], [0, 0])[1:3])
    assert all(math.isnan(x) for x in clustered_mean([0, 1, 0, 1], [0, 0, 1, 1])[1:3])  # each cluster has the mean


def test_clustered_share_by_hand() -> None:
    """1, 1, 0 in x and 0, 1, 1, 0, 0 in y, as above: share 1/2, variance 1/64. Clusters of 3 and 5 count 64 / 34; d = 64/34 / 16 = 2/17,
    I = 64/34, D = d^(64 / 132) and T = 12.706205: c = T^2 D 34 / 64, centre 1/2, half-width sqrt(c / (1 + c)) / 2."""
    c = stdtrit(1, 0.975) ** 2 * (2 / 17) ** (64 / 132) * 34 / 64
    half = math.sqrt(c / (1 + c)) / 2
    assert clustered_share([1, 1, 0, 0, 1, 1, 0, 0], list("xxxyyyyy")) == pytest.approx((0.5, 0.5 - half, 0.5 + half, 2))


def test_clustered_share_at_its_ends() -> None:
    """All 1 in clusters of 1 and 2, which count 9/5: at least 1 / (1 + z^2 5/9)."""
    assert clustered_share([1, 1, 1], [0, 1, 1])[1:3] == pytest.approx((1 / (1 + stdtrit(1e9, 0.975) ** 2 * 5 / 9), 1), abs=1e-6)
    assert clustered_share([0, 0], [0, 1])[1:3] == pytest.approx(wilson(0, 2))
    assert all(math.isnan(x) for x in clustered_share([0.3, 0.3], [0, 1])[1:3])
    assert all(math.isnan(x) for x in clustered_share([0.3, 0.4], [0, 0])[1:3])
    with pytest.raises(ValueError, match=r"^clustered_share: a value is outside \[0, 1\]: 1.5"):
        clustered_share([1.5, 0], [0, 1])


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from([0, 0.25, 0.5, 1])), min_size=2, max_size=40))
def test_clustered_share_stays_in_its_range_and_mirrors(items: list[tuple[int, float]]) -> None:
    clusters, values = zip(*items, strict=True)
    mean, low, high, _ = clustered_share(values, clusters)
    if not math.isnan(low):
        assert 0 <= low <= mean <= high <= 1
        assert clustered_share([1 - x for x in values], clusters)[:3] == pytest.approx((1 - mean, 1 - high, 1 - low))


@given(st.integers(1, 39), st.sampled_from([1.96, 2.5]))
def test_share_interval_of_items_that_are_0_or_1_is_wilsons(wins: int, quantile: float) -> None:
    """Their variance is share (1 - share) / n, so D = 1."""
    share = wins / 40
    reference = scipy_stats.binomtest(wins, 40).proportion_ci(2 * scipy_stats.norm.cdf(quantile) - 1, method="wilson")
    assert share_interval(share, share * (1 - share) / 40, 40, quantile) == pytest.approx((reference.low, reference.high))


@pytest.mark.slow
@pytest.mark.parametrize(("win", "tie", "correlation"), [(0.97, 0.02, 0.0), (0.9, 0.1, 0.0), (0.97, 0.0, 0.5), (0.9, 0.0, 0.1)])
def test_coverage_near_1(win: float, tie: float, correlation: float) -> None:
    """1,000 samples, the expected coverage 95 %: below 92.5 % would be 3.6 SDs. Ties on 30 items; else 20 clusters of 5, beta-binomial."""
    rng, covered = np.random.default_rng(3), 0
    for _ in range(1000):
        if tie:
            low, high = clustered_share(rng.choice([1, 0.5, 0], 30, p=[win, tie, max(0.0, 1 - win - tie)]), range(30))[1:3]
        else:
            chance = rng.beta(win * (1 / correlation - 1), (1 - win) * (1 / correlation - 1), 20)
            low, high = clustered_share((rng.random((20, 5)) < chance[:, None]).ravel(), np.repeat(np.arange(20), 5))[1:3]
        covered += low <= win + tie / 2 <= high
    assert covered >= 925


def test_two_series_are_matched_by_their_index() -> None:
    values, clusters = pd.Series([1.0, 0, 1], index=[3, 4, 5]), pd.Series(["x", "y", "y"], index=[4, 3, 5])
    assert clustered_mean(values, clusters) == clustered_mean([1, 0, 1], ["y", "x", "y"])
    with pytest.raises(ValueError, match=r"^clustered_mean: the indices of values and clusters are not of the same items"):
        clustered_mean(values, clusters.reset_index(drop=True))


def test_clusters_are_told_apart_by_label() -> None:
    """1 and "1" are two clusters, as are two tuples: relabelled, the result is the same."""
    values = [1.0, 0, 1, 0]
    expected = clustered_mean(values, [0, 1, 2, 2])
    assert expected[3] == 3
    assert clustered_mean(values, [1, "1", 2, 2]) == expected
    assert clustered_mean(values, [(1, 1), (1, 2), ("x", 1), ("x", 1)]) == expected


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("values", "clusters", "message"),
    [
        ([], [], "0 values and 0 clusters"),
        ([1.0], [1, 2], "1 values and 2 clusters"),
        ([math.nan], [0], "a value is NaN or infinite"),
        ([None, 1.0], [0, 1], "a value is NaN or infinite"),
        (["x", 1], [1, 2], "a value is not numeric"),
        ([1, 1 + 2j], [1, 2], "a value is not numeric"),
        ([1, 10**400], [1, 2], "a value is not numeric"),
        ([[1, 2]], [1], "a value is not numeric"),
        ([1.0, 0, 1], [None, 1, 1], "clusters is empty in 1 rows"),
        ([1.0, 0, 1], [math.nan, math.nan, 1], "clusters is empty in 2 rows"),
        ([1.0, 2], [[1], [2]], "clusters holds a label that is not hashable"),
        ([1.0, 2], 7, "clusters are a list of labels, got 7"),
        ([1e300, -1e300, 2e300], [1, 2, 3], r"values up to 2e\+300 are too large"),
        ([1e308, 1e308], [1, 2], r"values up to 1e\+308 are too large"),
    ],
)
def test_clustered_mean_refuses(values: Any, clusters: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^clustered_mean: {message}") as caught:
        clustered_mean(values, clusters)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("confidence", [0, 1, 1.5, -1, math.nan, "0.9", None, True])
def test_confidence_is_a_share(confidence: Any) -> None:
    with pytest.raises(ValueError, match=r"^clustered_mean: confidence is between 0 and 1"):
        clustered_mean([1, 0], [0, 1], confidence)
    with pytest.raises(ValueError, match=r"^wilson: confidence is between 0 and 1"):
        wilson(1, 2, confidence)


@given(st.integers(0, 40), st.integers(1, 40))
def test_wilson_equals_scipys(successes: int, extra: int) -> None:
    n = successes + extra - 1 or 1
    successes = min(successes, n)
    reference = scipy_stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson(successes, n) == pytest.approx((reference.low, reference.high), abs=1e-9)


@pytest.mark.parametrize("n", [0, -1, 3.5, 3.0, math.inf, math.nan, "3", None, True])
def test_wilson_wants_a_number_of_trials(n: Any) -> None:
    with pytest.raises(ValueError, match=r"^wilson: n is a whole number of at least 1"):
        wilson(0, n)


@pytest.mark.parametrize(("successes", "message"), [(-1, "-1 successes of 3"), (4, "4 successes"), (math.nan, "nan s"), ("1", "successes")])
def test_wilson_wants_successes_among_them(successes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^wilson: {message}"):
        wilson(successes, 3)
