"""The two-way test: hand-derived numbers, properties, and the rejection rate under the null."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats as scipy_stats
from score_frames import frame

from apo_bench.stats import TwoWayError, contrast, effective_df, mean_test, paired_error, unpaired_error


def test_paired_two_by_three_by_hand() -> None:
    """D = [[1, 2, 6], [3, 2, 4]]: mean 18/6 = 3.

    Seed means 9/3 = 3 and 9/3 = 3: A = 0. Cluster means 2, 2, 5 with mean 3: B = (1 + 1 + 4)/2 = 3. Residuals D - seed - cluster + 3:
    [-1, 0, 1], [1, 0, -1]: squares 4, C = 4/(1*2) = 2. V = 0/2 + 3/3 - 2/6 = 2/3, floored at B/P = 1.
    All of it is the clusters', for seed means do not vary: df = P - 1 = 2. Two seeds: no p-value.
    """
    d = np.array([[1.0, 2, 6], [3, 2, 4]])
    result = contrast(frame(d + 1, np.ones((2, 3))), "a", "b")
    assert result.difference == pytest.approx(3)
    assert result.standard_error == pytest.approx(1)
    assert result.df == pytest.approx(2)
    half = scipy_stats.t.ppf(0.975, 2)
    assert (result.ci_low, result.ci_high) == pytest.approx((3 - half, 3 + half))
    assert math.isnan(result.p_value)
    assert (result.n_seeds, result.n_clusters, result.n_dropped) == (2, 3, 0)
    assert "interval only" in result.test


def test_paired_three_seeds_by_hand() -> None:
    """D = [[0, 2, 4, 2], [4, 2, 4, 6], [2, 2, 7, 1]]: mean 36/12 = 3.

    Seed means 2, 4, 3: A = 1. Cluster means 2, 2, 5, 3: B = (1 + 1 + 4 + 0)/3 = 2. Residuals -1, 1, 0, 0; 1, -1, -2, 2; 0, 0, 2, -2:
    squares 20, C = 20/6. V = 1/3 + 2/4 - 20/72 = 5/9, above the floor 1/2. Seeds have a share (1/3)/(5/9) = 3/5 and two degrees of
    freedom, clusters the rest and three: p = 3/5 P(|t_2| > T) + 2/5 P(|t_3| > T) at T = 3/sqrt(5/9) = 9/sqrt 5.
    """
    d = np.array([[0.0, 2, 4, 2], [4, 2, 4, 6], [2, 2, 7, 1]])
    result = contrast(frame(d, np.zeros((3, 4))), "a", "b")
    assert (result.difference, result.standard_error) == pytest.approx((3, math.sqrt(5) / 3))
    p = [2 * scipy_stats.t.sf(9 / math.sqrt(5), df) for df in (2, 3)]
    assert result.p_value == pytest.approx(0.6 * p[0] + 0.4 * p[1])
    assert result.scope.startswith("new seeds and new prompts")
    critical = (result.ci_high - 3) / result.standard_error
    outside = [2 * scipy_stats.t.sf(critical, df) for df in (2, 3)]
    assert 0.6 * outside[0] + 0.4 * outside[1] == pytest.approx(0.05)
    assert critical == pytest.approx(scipy_stats.t.ppf(0.975, result.df))


def test_one_seed_is_scipys_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 1, 20))
    result = contrast(frame(a, b), "a", "b")
    reference = scipy_stats.ttest_rel(a[0], b[0])
    interval = reference.confidence_interval()
    assert (result.p_value, result.df) == pytest.approx((reference.pvalue, 19))
    assert (result.ci_low, result.ci_high) == pytest.approx((interval.low, interval.high))
    assert result.scope == "these checkpoints only"


def test_unpaired_by_hand() -> None:
    """a = [[0, 2, 1], [4, 6, 5], [2, 4, 3]], b = [[0, 0, 3], [2, 4, 3], [1, 2, 3]] with other seeds: difference 3 - 2 = 1.

    a: seed means 1, 5, 3: Aa = 4; rows are parallel: Ca = 0. b: seed means 1, 3, 2: Ab = 1; cluster means 1, 2, 3; residuals 0, -1, 1;
    0, 1, -1; 0, 0, 0: Cb = 4/4 = 1. Cluster differences 2 - 1, 4 - 2, 3 - 3: B = 1. V = 4/3 + 1/3 + 1/3 - 0 - 1/9 = 17/9.
    The arms' seeds together: Vs = 5/3 with df = (5/3)^2 / ((4/3)^2/2 + (1/3)^2/2) = 25/(17/2) = 50/17. Their share is (5/3)/(17/9) = 15/17.
    But two clusters' degrees of freedom, 2, are fewer than 50/17, so clusters keep their term: share (1/3)/(17/9) = 3/17.
    """
    a, b = np.array([[0.0, 2, 1], [4, 6, 5], [2, 4, 3]]), np.array([[0.0, 0, 3], [2, 4, 3], [1, 2, 3]])
    scores = frame(a, b, seeds_b=[7, 8, 9])
    result = contrast(scores, "a", "b")
    t = 1 / math.sqrt(17 / 9)
    assert (result.difference, result.standard_error) == pytest.approx((1, math.sqrt(17 / 9)))
    expected = 14 / 17 * 2 * scipy_stats.t.sf(t, 50 / 17) + 3 / 17 * 2 * scipy_stats.t.sf(t, 2)
    assert result.p_value == pytest.approx(expected)
    assert "over seeds (not paired)" in result.test
    with pytest.raises(ValueError, match="arm 'a' has seed 0 "):
        contrast(scores, "a", "b", paired_seeds=True)


def test_two_of_either_side_give_an_interval_with_its_one_degree_of_freedom() -> None:
    rng = np.random.default_rng(40)
    for shape, words, other in (((2, 9), "two seeds", None), ((6, 2), "two clusters", None), ((2, 9), "two seeds", [7, 8])):
        result = contrast(frame(*rng.normal(size=(2, *shape)), seeds_b=other), "a", "b")
        assert result.test == f"none: {words} give an interval only"
        assert math.isnan(result.p_value)
        if other is None:
            assert result.df == pytest.approx(1)
            assert result.ci_high - result.difference == pytest.approx(scipy_stats.t.ppf(0.975, 1) * result.standard_error)


def test_seeds_that_do_not_differ_are_one_seed() -> None:
    """One policy's scores under five labels: the p-value of one seed, and its scope."""
    a, b = np.random.default_rng(41).normal(size=(2, 1, 12))
    single, five = contrast(frame(a, b), "a", "b"), contrast(frame(np.repeat(a, 5, axis=0), np.repeat(b, 5, axis=0)), "a", "b")
    assert (five.p_value, five.standard_error) == pytest.approx((single.p_value, single.standard_error))
    assert five.scope == single.scope == "these checkpoints only"
    assert five.test == "paired t test over clusters of prompts; seeds do not differ"


def test_unpaired_may_be_asked_for_and_one_lone_seed_is_refused() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 3, 6))
    assert "not paired" in contrast(frame(a, b), "a", "b", paired_seeds=False).test
    with pytest.raises(ValueError, match="arm 'a' has one seed"):
        contrast(frame(a[:1], b, seeds_b=[5, 6, 7]), "a", "b")


def test_clusters_average_their_prompts_and_carry_the_degrees_of_freedom() -> None:
    """Prompts p0, p1 in cluster x, p2 alone in y, p3 in z: the same numbers as three prompts with values (mean of p0 and p1, p2, p3)."""
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 3, 4))
    scores = frame(a, b)
    scores["cluster_id"] = scores["prompt_id"].map({"p0": "x", "p1": "x", "p2": "y", "p3": "z"})
    by_cluster, merged = contrast(scores, "a", "b"), [np.column_stack([m[:, :2].mean(1), m[:, 2:]]) for m in (a, b)]
    expected = contrast(frame(*merged), "a", "b")
    assert by_cluster.n_clusters == 3
    assert (by_cluster.difference, by_cluster.df, by_cluster.p_value) == pytest.approx((expected.difference, expected.df, expected.p_value))


def test_prompts_missing_in_any_seed_are_left_out_and_counted() -> None:
    """One row of p0 is missing: the other 5 rows of p0 (2 arms x 3 seeds - 1) go too."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 3, 5))
    scores = frame(a, b)
    holed = scores[~((scores.arm == "b") & (scores.seed == 1) & (scores.prompt_id == "p0"))]
    result = contrast(holed, "a", "b")
    assert result.n_dropped == 5
    assert result.n_clusters == 4
    assert result.difference == pytest.approx((a - b)[:, 1:].mean())


def test_equal_differences_give_no_error_no_interval_and_no_p_value() -> None:
    """0.3 - 0.1 differs from 0.2 by rounding only: that is no variation either."""
    result = contrast(frame(np.full((3, 4), 0.3), np.full((3, 4), 0.1)), "a", "b")
    assert result.difference == pytest.approx(0.2)
    assert result.standard_error == 0
    assert all(math.isnan(x) for x in (result.df, result.ci_low, result.ci_high, result.p_value))
    assert result.test == "none: nothing varies"


def test_where_no_mean_varies_the_residual_is_what_is_left() -> None:
    """D = [[1, 0], [0, 1]]: seed and cluster means are 1/2, A = B = 0; residuals +-1/2, C = 4 * 1/4 / 1 = 1, V = C/4, one degree.

    The same without pairing, where only arm a has a residual.
    """
    result = contrast(frame(np.eye(2), np.zeros((2, 2))), "a", "b")
    assert (result.difference, result.standard_error, result.df) == (0.5, 0.5, 1.0)
    unpaired = contrast(frame(np.eye(2), np.zeros((2, 2)), seeds_b=[5, 6]), "a", "b")
    assert (unpaired.difference, unpaired.standard_error) == (0.5, 0.5)
    rounded = contrast(frame(np.array([[1.0, 1e-14], [0.0, 1.0]]), np.zeros((2, 2))), "a", "b")
    assert rounded.standard_error == pytest.approx(0.5)


matrices = hnp.arrays(float, st.tuples(st.integers(2, 5), st.integers(2, 7)), elements=st.floats(-100, 100, width=32))


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(matrices, st.floats(-5, 5), st.floats(0.1, 10), st.randoms(use_true_random=False))
def test_contrast_is_antisymmetric_and_moves_with_shift_and_scale(values: np.ndarray, shift: float, scale: float, random) -> None:
    zeros = np.zeros_like(values)
    plain = contrast(frame(values, zeros), "a", "b")
    assert contrast(frame(zeros, values), "a", "b").difference == pytest.approx(-plain.difference)
    moved = contrast(frame(values * scale + shift, zeros), "a", "b")
    assert moved.difference == pytest.approx(plain.difference * scale + shift, abs=1e-9)
    assert moved.standard_error == pytest.approx(plain.standard_error * scale, abs=1e-6)
    rows = frame(values, zeros)
    order = list(range(len(rows)))
    random.shuffle(order)
    assert contrast(rows.iloc[order], "a", "b").standard_error == pytest.approx(plain.standard_error, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(matrices)
def test_variance_equals_a_plain_loop(values: np.ndarray) -> None:
    """An independent transcription of the formula, term by term, with python loops."""
    n_seeds, n_clusters = values.shape
    seeds = [sum(row) / n_clusters for row in values.tolist()]
    clusters = [sum(column) / n_seeds for column in values.T.tolist()]
    mean = sum(seeds) / n_seeds
    a = sum((x - mean) ** 2 for x in seeds) / (n_seeds - 1)
    b = sum((x - mean) ** 2 for x in clusters) / (n_clusters - 1)
    pairs = itertools.product(range(n_seeds), range(n_clusters))
    c = sum((values[s, p] - seeds[s] - clusters[p] + mean) ** 2 for s, p in pairs) / ((n_seeds - 1) * (n_clusters - 1))
    variance = paired_error(values).variance
    largest, residual = max(a / n_seeds, b / n_clusters), c / n_seeds / n_clusters
    expected = max(largest, a / n_seeds + b / n_clusters - residual) if largest > 1e-12 * residual else residual
    assert variance == pytest.approx(expected, abs=1e-8)


def rejection_rate(n_seeds: int, seed_sd: float, prompt_sd: float, nulls: int = 4000, n_clusters: int = 100) -> list[float]:
    """At 5, 1 and 0.1 %."""
    rng = np.random.default_rng(20)
    d = rng.normal(size=(nulls, n_seeds, n_clusters))
    d += seed_sd * rng.normal(size=(nulls, n_seeds, 1)) + prompt_sd * rng.normal(size=(nulls, 1, n_clusters))
    p = paired_error(d).p_value(d.mean((1, 2)))
    return [float((p < level).mean()) for level in (0.05, 0.01, 0.001)]


@pytest.mark.parametrize("n_seeds", [3, 5])
@pytest.mark.parametrize(("seed_sd", "prompt_sd"), [(0.0, 0.0), (1.0, 0.0), (0.5, 1.0), (0.2, 0.5)])
def test_true_nulls_are_rejected_no_more_often_than_the_level_says(n_seeds: int, seed_sd: float, prompt_sd: float) -> None:
    """5, 1 and 0.1 % plus 3 binomial standard errors of 4,000 nulls (1.03, 0.47 and 0.15 points); the seed is fixed.

    With seed variance also not far below 5 %. Satterthwaite's degrees of freedom reject 7.5, 3 and 1.5 % of the third cell at three seeds.
    """
    five, hundredth, tenth = rejection_rate(n_seeds, seed_sd, prompt_sd)
    assert (five <= 0.0603, hundredth <= 0.0147, tenth <= 0.0025) == (True, True, True)
    if seed_sd >= 0.5:
        assert five >= 0.039


@given(st.floats(0, 1), st.integers(1, 9), st.integers(1, 300), st.floats(0.001, 0.999))
def test_quantiles_and_probabilities_are_inverse(share: float, seed_df: int, cluster_df: int, level: float) -> None:
    error = TwoWayError(*(np.asarray(x, dtype=float) for x in (1.0, share, seed_df, cluster_df)))
    t = error.quantile(level)
    assert error.below(t) == pytest.approx(level, abs=1e-9)
    ends = sorted(scipy_stats.t.ppf(level, df) for df in (seed_df, cluster_df))
    assert ends[0] - 1e-6 * abs(ends[0]) <= t <= ends[1] + 1e-6 * abs(ends[1])
    assert min(seed_df, cluster_df) * (1 - 1e-6) <= error.df(0.9) <= max(seed_df, cluster_df) * (1 + 1e-6)


def test_effective_df_by_hand() -> None:
    """Terms 1 and 3 with 2 and 6 degrees of freedom: shares 1/4 and 3/4, F = 6.

    1/df = (1/16)/2 + (9/16)/6 + (3/16)(1/2 - 1/6) + 0 = 1/32 + 3/32 + 2/32 = 6/32. Satterthwaite alone would say 8.
    """
    assert effective_df([1.0, 3.0], [2, 6]) == pytest.approx(32 / 6)
    assert effective_df([1.0, 0.0], [2, 6]) == pytest.approx(2)
    assert effective_df([0.0, 1.0], [2, 6]) == pytest.approx(6)
    assert np.isnan(effective_df([0.0, 0.0], [2, 6]))


terms = st.lists(st.tuples(st.floats(1e-3, 1e3), st.integers(1, 300)), min_size=2, max_size=4)


@given(terms)
def test_effective_df_lie_between_the_smallest_and_satterthwaites(result: list[tuple[float, int]]) -> None:
    variances, dfs = zip(*result, strict=True)
    satterthwaite = sum(variances) ** 2 / sum(x**2 / f for x, f in result)
    assert min(dfs) * (1 - 1e-9) <= effective_df(variances, dfs) <= satterthwaite * (1 + 1e-9)


def test_effective_df_of_two_arms_are_welchs() -> None:
    """scipy's t test with unequal variances, on seven values each."""
    x, y = np.random.default_rng(6).normal(size=(2, 7)) * [[1.0], [3.0]]
    welch = scipy_stats.ttest_ind(x, y, equal_var=False)
    assert effective_df([x.var(ddof=1) / 7, y.var(ddof=1) / 7], [6, 6]) == pytest.approx(welch.df)


def test_a_mean_against_one_half() -> None:
    """The contrast of values with a constant is the same test, moved by the constant."""
    values = np.random.default_rng(7).uniform(size=(4, 9))
    result, same = mean_test(values, null=0.5), contrast(frame(values, np.full((4, 9), 0.5)), "a", "b")
    assert (result.mean - 0.5, result.p_value) == pytest.approx((same.difference, same.p_value))
    assert (result.ci_low - 0.5, result.ci_high - 0.5) == pytest.approx((same.ci_low, same.ci_high))
    with pytest.raises(ValueError, match="mean_test: null is a finite number, got '0'"):
        mean_test(values, null="0")  # pyright: ignore[reportArgumentType]
    for bad in (values[0], values[:, :1], np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match="mean_test: finite values"):
            mean_test(bad)


def test_unpaired_nulls() -> None:
    """Seed SDs 0.1 and 1 in the two arms, five seeds each: at most 6 % plus 3 binomial standard errors."""
    rng = np.random.default_rng(21)
    a, b = (sd * rng.normal(size=(3000, 5, 1)) + rng.normal(size=(3000, 5, 60)) for sd in (0.1, 1.0))
    p = unpaired_error(a, b).p_value(a.mean((1, 2)) - b.mean((1, 2)))
    assert (p < 0.05).mean() <= 0.06 + 3 * math.sqrt(0.06 * 0.94 / 3000)


@pytest.mark.slow
def test_importing_stats_imports_no_torch() -> None:

    subprocess.run([sys.executable, "-c", "import apo_bench.stats, sys; assert 'torch' not in sys.modules"], check=True)


def test_the_variance_is_that_of_a_mixed_model() -> None:
    """Balanced and with positive components, restricted maximum likelihood gives the analysis of variance's estimates, hence this V."""
    from statsmodels.regression.mixed_linear_model import MixedLM

    rng = np.random.default_rng(30)
    d = rng.normal(size=(6, 12)) + 0.8 * rng.normal(size=(6, 1)) + rng.normal(size=(1, 12)) + 0.5
    rows = pd.DataFrame({"d": d.ravel(), "seed": np.repeat(range(6), 12), "cluster": np.tile(range(12), 6)})
    crossed = {"seed": "0 + C(seed)", "cluster": "0 + C(cluster)"}
    fitted = MixedLM.from_formula("d ~ 1", rows, groups=np.ones(len(rows)), vc_formula=crossed, re_formula="0").fit(reml=True)
    variance = float(paired_error(d).variance)
    assert fitted.params["Intercept"] == pytest.approx(d.mean())
    assert fitted.bse["Intercept"] == pytest.approx(math.sqrt(variance), rel=1e-3)


def test_a_design_that_lost_most_of_its_rows_says_so() -> None:
    """One seed of b answered four of twelve prompts: 6 * 8 rows go less the 8 that are not there, 40 against 24 that are used."""
    scores = frame(*np.random.default_rng(42).normal(size=(2, 3, 12)))
    lost = scores[(scores.arm == "a") | (scores.seed != 2) | scores.prompt_id.isin(["p0", "p1", "p2", "p3"])]
    result = contrast(lost, "a", "b")
    assert (result.n_dropped, result.n_clusters) == (40, 4)
    assert result.test.endswith("; most rows were left out, as their prompts lack a score in some seed")
    assert "left out" not in contrast(scores, "a", "b").test
