"""Krippendorff's alpha, weighted kappa and AC1."""

import math
from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from apo_bench.stats import agreement, gwet_ac1, krippendorff_alpha, weighted_kappa

# Four observers and twelve units, "." for no rating (Krippendorff, Computing Krippendorff's alpha-reliability, 2011, section C).
PUBLISHED = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")


def long(rows: Sequence[Sequence[object]]) -> pd.DataFrame:
    """A string or list a rater, an item a place; "." is missing."""
    cells = [(i, r, None if x == "." else int(str(x)) if str(x).isdigit() else x) for r, row in enumerate(rows) for i, x in enumerate(row)]
    return pd.DataFrame(cells, columns=["item", "rater", "label"])


@pytest.mark.parametrize(("level", "expected"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_the_published_example(level: str, expected: float) -> None:
    """40 pairable values in 11 units; unit 12 has one rating."""
    result = krippendorff_alpha(long(PUBLISHED), level=level)  # pyright: ignore[reportArgumentType]
    assert result.coefficient == pytest.approx(expected, abs=5e-4)
    assert (result.n, result.n_missing, result.n_ratings) == (11, 1, 40)
    assert -1 <= result.ci_low < result.coefficient < result.ci_high <= 1


def test_alpha_by_hand() -> None:
    """Two raters, 0 1 1 and 0 1 0: coincidences o_00 = 2, o_11 = 2, o_01 = o_10 = 1; n_0 = n_1 = 3, n = 6.

    Observed 2/6; expected 2 * 9 / 30 = 3/5; alpha = 1 - 5/9 = 4/9.
    """
    result = krippendorff_alpha(long([[0, 1, 1], [0, 1, 0]]))
    assert (result.coefficient, result.observed, result.expected) == pytest.approx((4 / 9, 1 / 3, 3 / 5))


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_alpha_equals_its_definition_over_pairs_of_ratings(level: str) -> None:
    """Mean distance of two ratings of one item, each item by its number of ratings, over that of any two ratings."""
    rng = np.random.default_rng(0)
    ratings = long(rng.integers(0, 4, size=(5, 12)).tolist())
    ratings.loc[rng.random(len(ratings)) < 0.3, "label"] = None
    items = [x for _, group in ratings.groupby("item") if len(x := group["label"].dropna().astype(int).tolist()) > 1]
    everything = [x for item in items for x in item]
    number = np.bincount(everything, minlength=4)

    def distance(x: int, y: int) -> float:
        if level == "nominal":
            return float(x != y)
        low, high = min(x, y), max(x, y)
        return (y - x) ** 2 if level == "interval" else (number[low : high + 1].sum() - (number[x] + number[y]) / 2) ** 2

    within = sum(distance(x, y) / (len(item) - 1) for item in items for x, y in permutations(item, 2)) / len(everything)
    among = np.mean([distance(x, y) for x, y in permutations(everything, 2)])
    assert krippendorff_alpha(ratings, level=level).coefficient == pytest.approx(1 - within / among)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("weights", ["linear", "quadratic", "unweighted"])
def test_weighted_kappa_equals_scikit_learns(weights: str) -> None:
    rng = np.random.default_rng(1)
    a = rng.integers(1, 6, size=60)
    b = np.clip(a + rng.integers(-1, 2, size=60), 1, 5)
    result = weighted_kappa(a, b, weights=weights)  # pyright: ignore[reportArgumentType]
    assert result.coefficient == pytest.approx(cohen_kappa_score(a, b, weights=None if weights == "unweighted" else weights))
    assert result.n_ratings == 120
    if weights == "unweighted":
        plain = agreement(a, b)
        assert (result.coefficient, result.standard_error) == pytest.approx((plain.kappa, plain.standard_error), rel=0.05)


def test_weighted_kappa_by_hand() -> None:
    """Grades 1 2 3 3 and 1 3 3 2: costs 0 1 0 1, observed 1/2 (linear).

    Shares of both: 1/4, 1/4, 1/2; by chance |i - j| is 1 with 2 (1/4 * 1/4 + 1/4 * 1/2) = 3/8 and 2 with 2 * 1/8 = 1/4: 7/8.
    kappa = 1 - 4/7 = 3/7. With a grade 2.5 between 2 and 3 that nobody gave, 2 and 3 are two apart.
    """
    a, b = [1, 2, 3, 3], [1, 3, 3, 2]
    assert weighted_kappa(a, b).coefficient == pytest.approx(3 / 7)
    wider = weighted_kappa(a, b, order=[1, 2, 2.5, 3])
    assert wider.observed == pytest.approx(1.0)
    assert weighted_kappa([*a, None], [*b, 1]).n_missing == 1


def test_ac1_by_hand() -> None:
    """118 items yes/yes, 5 yes/no, 2 no/yes: agreement .944, p = (123 + 120) / 250 = .972, chance 2 * .972 * .028 = .054432.

    AC1 = (.944 - .054432) / (1 - .054432) = .94078, where kappa is below 0 (Gwet's paradox).
    """
    rows = [["yes"] * 118 + ["yes"] * 5 + ["no"] * 2, ["yes"] * 118 + ["no"] * 5 + ["yes"] * 2]
    result = gwet_ac1(long(rows))
    assert result.coefficient == pytest.approx(0.940777, abs=1e-6)
    assert agreement(*rows).kappa < 0
    assert gwet_ac1(long([[1, 1, 1], [1, 1, 1]])).coefficient == 1


def test_clusters_count_once() -> None:
    """Every item four times in its cluster: the estimate of alpha's ratio hardly moves, the error is that of the clusters."""
    rng = np.random.default_rng(2)
    once = long(rng.integers(0, 2, size=(2, 30)).tolist())
    copies = pd.concat([once.assign(item=once["item"] + 100 * copy, cluster_id=once["item"]) for copy in range(4)])
    alone, clustered = gwet_ac1(once), gwet_ac1(copies)
    assert (clustered.n, clustered.n_clusters) == (120, 30)
    assert (clustered.coefficient, clustered.standard_error) == pytest.approx((alone.coefficient, alone.standard_error))


def test_nothing_to_estimate() -> None:
    alike = krippendorff_alpha(long([[1, 1, 1], [1, 1, 1]]))
    assert math.isnan(alike.coefficient)
    assert alike.test.startswith("none")
    perfect = krippendorff_alpha(long([[0, 1, 0, 1, 2, 2], [0, 1, 0, 1, 2, 2]]))
    assert (perfect.coefficient, perfect.standard_error) == (1.0, 0.0)
    assert math.isnan(perfect.ci_low)


def test_errors_name_their_argument() -> None:
    ratings = long([[0, 1], [1, 1]])
    cases = [
        (lambda: krippendorff_alpha(ratings, level="ratio"), "level is nominal, ordinal or interval"),  # pyright: ignore[reportArgumentType]
        (lambda: krippendorff_alpha(ratings.drop(columns="rater")), "column rater is missing"),
        (lambda: krippendorff_alpha(pd.concat([ratings, ratings])), "4 rows repeat an item and rater"),
        (lambda: krippendorff_alpha(ratings.assign(label=["a", "b", "a", "b"]), level="interval"), "needs numbers"),
        (lambda: krippendorff_alpha(ratings.iloc[:2]), "no item has two ratings"),
        (lambda: krippendorff_alpha(ratings, order=[0]), "order lacks the label '1'"),
        (lambda: weighted_kappa([1], [2, 3]), "one grade"),
        (lambda: weighted_kappa([1, None], [None, 3]), "no item has both grades"),
        (lambda: weighted_kappa([1, 2], [2, 1], weights="cubic"), "weights are"),  # pyright: ignore[reportArgumentType]
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
