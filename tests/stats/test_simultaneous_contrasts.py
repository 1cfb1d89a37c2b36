"""Families of contrasts whose intervals hold together, and ranks."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.special import ndtr, ndtri
from scipy.stats import dunnett, multivariate_normal, studentized_range
from score_frames import paired_layout

from apo_bench.stats import contrast, rank_sets, simultaneous_contrasts
from apo_bench.stats.simultaneous_contrasts import arm_covariances, contrast_matrix, least_p_values, pointwise_alpha
from apo_bench.stats.two_way_random_effects import estimate_difference


def scores_of(values: np.ndarray) -> pd.DataFrame:
    """Long scores of arms m0, m1, ... from (K, S, P)."""
    rows = [(f"m{k}", s, f"p{c}", x) for (k, s, c), x in np.ndenumerate(values)]
    return pd.DataFrame(rows, columns=["arm", "seed", "prompt_id", "value"])


def draw(rng: np.random.Generator, n_arms: int, n_seeds: int, n_clusters: int) -> np.ndarray:
    return rng.normal(size=(n_arms, n_seeds, n_clusters)) + 0.5 * rng.normal(size=(n_arms, n_seeds, 1))


def test_a_family_of_one_pair_is_the_contrast() -> None:
    """One contrast: alpha* = alpha, up to the draws, and its p-value is not adjusted."""
    scores = scores_of(draw(np.random.default_rng(0), 2, 4, 30))
    family, single = simultaneous_contrasts(scores), contrast(scores, "m0", "m1")
    assert family.pointwise_alpha == pytest.approx(0.05, rel=1e-3)
    row = family.table.iloc[0]
    assert [row["difference"], row["standard_error"]] == pytest.approx([single.difference, single.standard_error])
    assert [row["ci_low"], row["ci_high"]] == pytest.approx([single.ci_low, single.ci_high], rel=1e-3)
    assert row["p_adjusted"] == pytest.approx(single.p_value)


def test_many_clusters_of_all_pairs_come_to_tukeys_level() -> None:
    """One seed, alike and independent arms: the normal limit of the studentized range, 2 (1 - Phi(q / sqrt 2)) (scipy)."""
    values = np.random.default_rng(1).normal(size=(5, 1, 3000))
    expected = 2 * ndtr(-studentized_range.ppf(0.95, 5, np.inf) / math.sqrt(2))
    signs = contrast_matrix([(a, b) for a in range(5) for b in range(a + 1, 5)], 5)
    estimates = [estimate_difference(paired_layout(values[a], values[b]), "") for a in range(5) for b in range(a + 1, 5)]
    minima = least_p_values(estimates, signs, arm_covariances(values, paired=True), 20_000, np.random.default_rng(0))
    assert pointwise_alpha(minima, estimates, 0.05)[0] == pytest.approx(expected, rel=0.07)


def test_many_clusters_against_a_reference_come_to_dunnetts_p_values() -> None:
    """scipy's Dunnett test of the same arms as independent groups, which at 3,000 prompts without shared difficulty they nearly are."""
    values = np.random.default_rng(2).normal(size=(4, 1, 3000)) + np.array([0.0, 0.0, 0.06, 0.02])[:, None, None]
    family = simultaneous_contrasts(scores_of(values), "m0")
    expected = dunnett(*values[1:, 0], control=values[0, 0], rng=0).pvalue
    np.testing.assert_allclose(family.table["p_adjusted"], expected, atol=0.03)


def test_the_level_of_a_correlation_is_that_of_the_normal_distribution() -> None:
    """Arms of SD 3, 1, 1 against the first: correlation 9/10. P(|Z1|, |Z2| < z) = .95 by scipy's bivariate normal at alpha*'s z."""
    rng = np.random.default_rng(3)
    values = rng.normal(size=(3, 1, 4000)) * np.array([3.0, 1.0, 1.0])[:, None, None]
    estimates = [estimate_difference(paired_layout(values[a], values[0]), "") for a in (1, 2)]
    signs = contrast_matrix([(1, 0), (2, 0)], 3)
    minima = least_p_values(estimates, signs, arm_covariances(values, paired=True), 40_000, rng)
    z = -float(ndtri(pointwise_alpha(minima, estimates, 0.05)[0] / 2))
    normal = multivariate_normal(cov=[[1, 0.9], [0.9, 1]])
    assert normal.cdf([z, z], lower_limit=[-z, -z]) == pytest.approx(0.95, abs=0.004)


def test_between_the_single_contrast_and_bonferroni() -> None:
    scores = scores_of(draw(np.random.default_rng(4), 5, 3, 20))
    family = simultaneous_contrasts(scores, "m2", draws=2000)
    assert 0.05 / 4 <= family.pointwise_alpha <= 0.05
    for row in family.table.to_dict("records"):
        single = contrast(scores, row["a"], row["b"])
        assert row["ci_high"] - row["ci_low"] >= single.ci_high - single.ci_low
        assert single.p_value <= row["p_adjusted"] <= min(1, 4 * single.p_value) + 1e-12
        assert (row["p_adjusted"] < 0.05) == (row["ci_low"] > 0 or row["ci_high"] < 0)


def test_covariances_by_hand() -> None:
    """Two arms, S = 2, P = 2, unpaired values 0, 2 / 4, 6 and 0, 0 / 0, 0: seed means 1, 5 and 0, 0, variances 8, 0.

    Centred over two arms, diag(8, 0) is 2 [[1, -1], [-1, 1]], of mean variance 4; over that, 1/2 [[1, -1], [-1, 1]], which is the
    spherical one: two arms have one contrast.
    """
    values = np.array([[[0.0, 2], [4, 6]], [[0, 0], [0, 0]]])
    covariances = arm_covariances(values, paired=False)
    np.testing.assert_allclose(covariances.seeds, [[0.5, -0.5], [-0.5, 0.5]])
    assert (covariances.seed_df, covariances.cluster_df) == (1, 1)


def test_ranks_by_hand() -> None:
    """Means 5, 1, 1, 0 with errors near .1: the first is best, the second and third cannot be told apart, the last is last.

    Where lower is better the ranks turn round: 4, 2 to 3, 2 to 3, 1.
    """
    rng = np.random.default_rng(5)
    values = np.array([1.0, 5.0, 0.0, 1.0])[:, None, None] + 0.1 * rng.normal(size=(4, 4, 30))
    table = rank_sets(scores_of(values), draws=2000).table.set_index("arm")
    assert table[["rank_low", "rank_high"]].to_dict("index") == {
        "m1": {"rank_low": 1, "rank_high": 1},
        "m0": {"rank_low": 2, "rank_high": 3},
        "m3": {"rank_low": 2, "rank_high": 3},
        "m2": {"rank_low": 4, "rank_high": 4},
    }
    low = rank_sets(scores_of(values), higher_is_better=False, draws=2000).table.set_index("arm")
    assert low[["rank", "rank_low", "rank_high"]].T["m2"].tolist() == [1, 1, 1]
    assert low[["rank_low", "rank_high"]].T["m0"].tolist() == [2, 3]


def test_holes_two_seeds_and_arms_without_variation() -> None:
    rng = np.random.default_rng(6)
    scores = scores_of(draw(rng, 3, 4, 12))
    holes = simultaneous_contrasts(scores.drop(index=[3, 50]), "m0", draws=1000)
    assert holes.table["test"].str.contains("additive fit").all()
    two = simultaneous_contrasts(scores[scores["seed"] < 2], draws=1000).table
    assert two["p_adjusted"].isna().all()
    assert two["ci_low"].notna().all()
    flat = simultaneous_contrasts(scores_of(np.ones((3, 2, 3))), draws=1000)
    assert flat.n_tested == 0
    assert flat.table["ci_low"].isna().all()
    unpaired = scores.assign(seed=scores["seed"] + 10 * scores["arm"].str[1].astype(int))
    assert simultaneous_contrasts(unpaired, draws=1000).table["test"].str.contains("not paired").all()


def test_errors_name_their_argument() -> None:
    scores = scores_of(draw(np.random.default_rng(7), 3, 3, 5))
    with pytest.raises(ValueError, match="simultaneous_contrasts: reference 'm9' is none of the arms"):
        simultaneous_contrasts(scores, "m9")
    with pytest.raises(ValueError, match="1 arm"):
        simultaneous_contrasts(scores[scores["arm"] == "m0"])
    with pytest.raises(ValueError, match="draws is a whole number of at least 1000"):
        simultaneous_contrasts(scores, draws=10)
    with pytest.raises(ValueError, match="rank_sets: higher_is_better"):
        rank_sets(scores, higher_is_better="yes")  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_families_hold_together_at_their_level() -> None:
    """300 families of six alike arms, five seeds: all 15 intervals hold 0 in 95 % (binomial error 1.3 points) or somewhat more."""
    rng = np.random.default_rng(8)
    pairs = [(a, b) for a in range(6) for b in range(a + 1, 6)]
    signs, hold = contrast_matrix(pairs, 6), 0
    for _ in range(300):
        values = draw(rng, 6, 5, 40)
        estimates = [estimate_difference(paired_layout(values[a], values[b]), "") for a, b in pairs]
        alpha, _ = pointwise_alpha(least_p_values(estimates, signs, arm_covariances(values, paired=True), 1000, rng), estimates, 0.05)
        hold += all(float(estimated.error.p_value(estimated.mean)) > alpha for estimated in estimates)
    assert hold / 300 > 0.91
