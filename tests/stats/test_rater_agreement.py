"""Agreement of two raters: by hand, against statsmodels, scikit-learn and a cluster bootstrap."""

import math
import random
from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, confusion_matrix
from statsmodels.stats.inter_rater import cohens_kappa

from apo_bench.stats.confidence_intervals import clustered_share, wilson
from apo_bench.stats.rater_agreement import agreement

RATED = st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from("xyz")), min_size=1, max_size=40)


def test_kappa_by_hand():
    """Table [[20, 5], [10, 15]] of 50: po = .7, r = (.5, .5), c = (.6, .4), pe = .5, kappa = .4. Fleiss, Cohen & Everitt, Eq. 13: diagonal
    .4 (1 - 1.1 * .6)^2 + .3 (1 - .9 * .6)^2 = .10972; off it .6^2 (.1 * 1.1^2 + .2 * .9^2) = .10188; less (.4 - .5 * .6)^2 = .01:
    .2016 / (50 * .5^2) = .016128. The interval is that of [[21, 6], [11, 16]] of 54: po = 37/54, r = (.5, .5), pe = .5, kappa = 10/27,
    with that table's own error."""
    a, b = "y" * 25 + "n" * 25, "y" * 20 + "n" * 5 + "y" * 10 + "n" * 15
    result = agreement(a, b)
    error = math.sqrt(0.016128)
    assert (result.raw, result.expected, result.kappa) == pytest.approx((0.7, 0.5, 0.4))
    assert result.standard_error == pytest.approx(error)
    fuller: Any = cohens_kappa(np.array([[21, 6], [11, 16]]))
    assert fuller.kappa == pytest.approx(10 / 27)
    assert (result.ci_low, result.ci_high) == pytest.approx((fuller.kappa_low, fuller.kappa_upp))
    assert (result.raw_low, result.raw_high) == wilson(35, 50)
    assert result.labels == ("n", "y")
    assert result.confusion == ((15, 10), (5, 20))
    assert (result.n, result.n_missing, result.n_clusters) == (50, 0, 50)


def test_clustered_error_by_hand():
    """a = x x y y, b = x y y y: po = .75, r = (.5, .5), c = (.25, .75), pe = .5, kappa = .5. Influences
    (1[i = j] - .75 - .5 (c_i + r_j - 1)) / .5 = .75, -1.25, .25, .25. Independent: variance 2.25 / 16, error .375. In clusters of
    items 1-2 and 3-4 the sums are -.5 and .5: 2/1 * .5 / 16, error .25, and with t(.975; 1) = 12.706205 the interval is all there is."""
    alone, together = agreement("xxyy", "xyyy"), agreement("xxyy", "xyyy", clusters=[7, 7, 8, 8])
    assert (alone.kappa, alone.standard_error) == pytest.approx((0.5, 0.375))
    assert (together.kappa, together.standard_error, together.n_clusters) == pytest.approx((0.5, 0.25, 2))
    assert (together.ci_low, together.ci_high) == (-1, 1)
    assert (together.raw, together.raw_low, together.raw_high, 2) == clustered_share([1, 0, 1, 1], [7, 7, 8, 8])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # statsmodels divides 0 by 0 where raters never differ
@settings(max_examples=60)
@given(RATED)
def test_agrees_with_statsmodels_and_sklearn(rated: list[tuple[str, str]]):
    a, b = zip(*rated, strict=True)
    result = agreement(a, b)
    if len(result.labels) == 1:
        assert math.isnan(result.kappa)
        assert result.confusion == ((len(a),),)
        return
    table = confusion_matrix(a, b)
    assert result.confusion == tuple(map(tuple, table.tolist()))
    expected: Any = cohens_kappa(table)
    assert result.kappa == pytest.approx(float(cohen_kappa_score(a, b)))
    assert result.kappa == pytest.approx(expected.kappa)
    assert result.standard_error == pytest.approx(math.sqrt(max(expected.var_kappa, 0)), abs=1e-7)  # its 0 is a root of rounding
    size = len(table)
    fuller: Any = cohens_kappa(table + np.where(np.eye(size) == 1, 2 / size, 2 / (size * size - size)))
    ends = max(-1, fuller.kappa_low), min(1, fuller.kappa_upp)
    assert (result.ci_low, result.ci_high) == pytest.approx(ends)
    assert -1 <= result.ci_low < result.ci_high <= 1


@given(RATED)
def test_raters_and_clusters_of_one_item(rated: list[tuple[str, str]]):
    """Swapped raters agree as well, with the confusion transposed. Clusters of one item each: G/(G-1) times the variance."""
    a, b = zip(*rated, strict=True)
    result, swapped, alone = agreement(a, b), agreement(b, a), agreement(a, b, clusters=range(len(a)))
    assert (swapped.kappa, swapped.standard_error) == pytest.approx((result.kappa, result.standard_error), nan_ok=True)
    assert swapped.confusion == tuple(zip(*result.confusion, strict=True))
    if len(a) > 1:
        assert alone.standard_error == pytest.approx(result.standard_error * math.sqrt(len(a) / (len(a) - 1)), nan_ok=True)


def test_copies_in_a_cluster_add_nothing():
    """Every item four times, each cluster its copies: kappa and clustered error as from the items alone, the plain error half of it."""
    rng = random.Random(0)
    a, b = (rng.choices("xyz", k=30) for _ in range(2))
    once, copied = agreement(a, b, clusters=range(30)), agreement(a * 4, b * 4, clusters=[*range(30)] * 4)
    assert (copied.kappa, copied.standard_error) == pytest.approx((once.kappa, once.standard_error))
    assert agreement(a * 4, b * 4).standard_error == pytest.approx(agreement(a, b).standard_error / 2)


def test_clustered_error_against_a_cluster_bootstrap():
    """80 clusters of 1 to 9 items; how often b errs and which label is likely vary by cluster. The bootstrap draws whole clusters."""
    rng = np.random.default_rng(11)
    clusters = np.repeat(np.arange(80), rng.integers(1, 10, 80))
    share, care = rng.beta(0.7, 0.7, 80)[clusters], rng.beta(0.8, 0.5, 80)[clusters]
    a = (rng.random(len(clusters)) < share).astype(int) + (rng.random(len(clusters)) < 0.2)
    b = np.where(rng.random(len(clusters)) < care, a, rng.integers(0, 3, len(clusters)))
    tables = np.zeros((80, 3, 3))
    np.add.at(tables, (clusters, a, b), 1)
    drawn = np.einsum("dc,cij->dij", rng.multinomial(80, np.full(80, 1 / 80), size=4000), tables)
    drawn /= drawn.sum((1, 2), keepdims=True)
    expected = (drawn.sum(2) * drawn.sum(1)).sum(1)
    kappas = (np.trace(drawn, axis1=1, axis2=2) - expected) / (1 - expected)

    result = agreement(a, b, clusters=clusters)
    assert result.standard_error == pytest.approx(kappas.std(ddof=1), rel=0.06)
    assert result.standard_error > 1.3 * agreement(a, b).standard_error
    assert result.kappa == pytest.approx(kappas.mean(), abs=0.02)


def test_missing_labels_are_counted_and_their_clusters_with_them():
    result = agreement(["x", None, "y", "x", "y"], ["x", "x", math.nan, "y", "y"], clusters=[1, None, 2, 3, 3])
    assert (result.n, result.n_missing, result.n_clusters) == (3, 2, 2)
    assert result.confusion == ((1, 1), (0, 1))


@pytest.mark.parametrize(
    ("a", "b", "labels"),
    [
        ([2, 1, 2], [2, 2, 1], (1, 2)),
        ([1.0, 2.0], [1, 2], (1, 2)),
        ([("x", 1), ("x", 2)], [("x", 2), ("x", 2)], (("x", 1), ("x", 2))),
        (["tie", 1, 2], [1, 1, 2], (1, 2, "tie")),
        ([True, False], np.array([0, 1]), (0, 1)),
    ],
)
def test_any_hashable_label(a: Any, b: Any, labels: tuple[Hashable, ...]):
    result = agreement(a, b)
    assert result.labels == labels
    assert [sum(row) for row in result.confusion] == [sum(x == label for x in a) for label in labels]


def test_degenerate_agreement():
    """One label: pe = 1, kappa 0/0. Full agreement: kappa 1, no item has influence. One rater always "x": po = pe, kappa 0, none either.
    Two equal clusters: each sums to zero. The added items leave an interval all the same. One cluster: nothing to see between
    clusters. Raw agreement keeps Wilson's interval."""
    same, full, constant = agreement("xxx", "xxx"), agreement("xyxy", "xyxy"), agreement("xxxx", "xyxy")
    assert [result.kappa for result in (full, constant)] == [1, 0]
    assert math.isnan(same.kappa)
    assert math.isnan(same.standard_error)
    assert (same.raw, same.expected) == (1, 1)
    assert (same.raw_low, same.raw_high) == wilson(3, 3)
    for result in (
        full,
        constant,
        agreement("xyxy", "yxyx"),
        agreement("x", "y"),
        agreement("xxyxxy", "xyyxyy", clusters=[1] * 3 + [2] * 3),
    ):
        assert result.standard_error == 0
        assert -1 <= result.ci_low < result.ci_high <= 1
    assert same.test.startswith("none")
    lone = agreement("xyx", "xyy", clusters=[1, 1, 1])
    assert (lone.kappa, lone.n_clusters) == pytest.approx((0.4, 1))
    assert math.isnan(lone.standard_error)
    assert math.isnan(lone.raw_low)


@pytest.mark.parametrize(
    ("a", "b", "clusters", "message"),
    [
        ("xy", "x", None, "one label .* got 2 in a, 1 in b"),
        ("xy", "xy", [1], "one label .* got 2 in a, 2 in b, 1 in cluster"),
        ([], [], None, "no item has both labels .0 missing"),
        (["x", None], [None, "x"], None, "no item has both labels .2 missing"),
        ([1, 2], ["1", "2"], None, "labels of a and b are int and str and have none in common"),
        ([["x"], ["y"]], ["x", "y"], None, "a holds a label that is not hashable"),
        ([1, 2, "tie"], ["1", "2", "tie"], None, "label . is there as int and as text; code labels alike"),
        ([1.0, 2.0, "tie"], ["1", "tie", "tie"], None, "label 1.0 is there as float and as text"),
        ([True, "no"], ["True", "no"], None, "label True is there as bool and as text"),
        ({"p": 1, "q": 2}, {"p": 2, "q": 1}, None, "a is a dict, which has no order of items"),
        (["x", "y"], {"x", "y"}, None, "b is a set, which has no order of items"),
        ("xy", "xy", {0: 1, 1: 2}, "cluster is a dict, which has no order of items"),
        (pd.Series([1, 2]), pd.Series([1, 2], index=[1, 2]), None, "the indices of a and b are not of the same items"),
        (pd.Series([1, 2], index=[0, 0]), pd.Series([1, 2], index=[0, 1]), None, "the indices of a and b are not"),
        (["x", "y"], [{}, "y"], None, "b holds a label that is not hashable"),
        ("xy", "xy", [[1], [2]], "clusters holds a label that is not hashable"),
        (None, "xy", None, "a is one label an item, got None"),
        ("xy", "xy", 3, "cluster is one label an item, got 3"),
        ("xy", "xy", [1, math.nan], "clusters is empty for 1 items"),
    ],
)
def test_agreement_refuses(a: Any, b: Any, clusters: Any, message: str):
    with pytest.raises(ValueError, match=f"^agreement: {message}"):
        agreement(a, b, clusters=clusters)


@pytest.mark.parametrize("confidence", [0, 1, math.nan, "0.9", None, True])
def test_confidence_is_a_share(confidence: Any):
    with pytest.raises(ValueError, match=r"^agreement: confidence"):
        agreement("xy", "xy", confidence=confidence)


def test_series_are_matched_by_their_index():
    """1 is item 5 of both, 2 item 6 of both; against a list the place decides."""
    a, b = pd.Series([1, 2], index=[5, 6]), pd.Series([2, 1], index=[6, 5])
    assert agreement(a, b).kappa == 1
    assert agreement(a, b.tolist()).kappa == -1
    assert agreement(a, b, clusters=pd.Series([8, 9], index=[6, 5])).n_clusters == 2


@pytest.mark.slow
@pytest.mark.parametrize(("kappa", "shares"), [(0.2, [0.8, 0.2]), (0.6, [0.9, 0.1]), (0.9, [0.8, 0.2]), (0.9, [0.5, 0.3, 0.2])])
def test_coverage_at_30_items(kappa: float, shares: list[float]):
    """b is a's label with probability kappa, else drawn as a's: kappa exactly. 800 samples; 92 % would be 4 SDs below 95."""
    rng, covered, n = np.random.default_rng(0), 0, 0
    for _ in range(800):
        a, other = (rng.choice(len(shares), 30, p=shares) for _ in range(2))
        result = agreement(a, np.where(rng.random(30) < kappa, a, other))
        if not math.isnan(result.kappa):
            n, covered = n + 1, covered + (result.ci_low <= kappa <= result.ci_high)
    assert covered >= 0.92 * n
