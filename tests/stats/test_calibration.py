"""Reliability and expected calibration error."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss

from apo_bench.stats import Bin, brier, calibration_error, ece, reliability


def test_ece_by_hand() -> None:
    """.1 (wrong) and .3 (right) in [0, .5): |1/2 - .2| * 2/4 = .15; .5 and 1 (both right) in [.5, 1]: |1 - .75| * 2/4 = .125."""
    assert ece([0.1, 0.3, 0.5, 1.0], [0, 1, 1, 1], bins=2) == pytest.approx(0.275)


@pytest.mark.parametrize("function", [ece, reliability])
@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        ([], [], r"\(0,\) confidences and \(0,\) outcomes"),
        ([0.5], [1, 0], r"\(1,\) confidences and \(2,\) outcomes"),
        ([1.5], [1], r"a confidence is outside \[0, 1\]"),
        ([math.nan, 0.5], [1, 0], r"a confidence is missing \(NaN\) for 1 items"),
        ([0.5, 0.5], [1, None], r"an outcome is missing \(NaN\) for 1 items"),
        ([0.5], [2], "a confidence is outside .* an outcome is neither"),
        (["x"], [1], "a confidence is not numeric"),
        ([0.5], ["yes"], "an outcome is not numeric"),
    ],
)
def test_refusals_name_the_function(function: Any, confidence: Any, correct: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{function.__name__}: {message}") as caught:
        function(confidence, correct)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("function", [ece, reliability])
def test_items_are_matched_by_the_index_of_two_series(function: Any) -> None:
    """.9 is of item 1, which is right."""
    confidence, correct = pd.Series([0.9, 0.2], index=[1, 2]), pd.Series([0, 1], index=[2, 1])
    assert function(confidence, correct) == function([0.9, 0.2], [1, 0])
    with pytest.raises(ValueError, match=f"^{function.__name__}: the indices of confidence and correct are not of the same items"):
        function(confidence, correct.reset_index(drop=True))
    with pytest.raises(ValueError, match=f"^{function.__name__}: correct is a dict"):
        function([0.5], {0: 1})


@pytest.mark.parametrize("bins", [0, -1, 1.5, 10.0, "10", None, True, math.nan])
def test_bins_are_a_whole_number(bins: Any) -> None:
    for function in (ece, reliability):
        with pytest.raises(ValueError, match=f"^{function.__name__}: bins is a whole number of at least 1"):
            function([0.5], [1], bins)


@pytest.mark.parametrize("bins", [1, 7, 10, 29, 100, 1000])
def test_an_edge_lies_in_the_bin_that_it_opens(bins: int) -> None:
    """.29 is bin 29 of 100, though .29 * 100 is 28.999999999999996; the last bin takes 1 as well."""
    for i in range(bins):
        (bin_,) = reliability([i / bins], [1], bins)
        assert (bin_.low, bin_.high) == (i / bins, (i + 1) / bins)
        assert type(bin_.low) is type(bin_.high) is float
    assert reliability([1.0], [1], bins)[0].high == 1


def test_reliability_by_hand() -> None:
    """Four bins. .6 (wrong) and .7 (right) lie in [.5, .75), .75 on its lower edge and 1 on the last bin's upper one in [.75, 1]."""
    about: Any = pytest.approx(0.65)
    assert reliability([0.6, 0.7, 0.75, 1.0], [0, 1, 1, 1], bins=4) == (
        Bin(0.5, 0.75, about, 0.5, 2),
        Bin(0.75, 1.0, 0.875, 1.0, 2),
    )


@pytest.mark.slow
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40), st.integers(1, 12))
def test_reliability_accounts_for_every_item_and_gives_the_ece(items: list[tuple[float, bool]], bins: int) -> None:
    """Each item in the bin its confidence falls in, edges to the upper bin, by a plain loop; their sum is the ECE, exactly."""
    confidence, correct = zip(*items, strict=True)
    curve = reliability(confidence, correct, bins)
    for bin_ in curve:
        number = round(bin_.low * bins)
        inside = [item for item in items if bin_.low <= item[0] < bin_.high or item[0] == 1 == bin_.high]
        assert (bin_.low, bin_.high) == (number / bins, (number + 1) / bins)
        assert bin_.n == len(inside) > 0
        assert bin_.confidence == pytest.approx(sum(p for p, _ in inside) / len(inside))
        assert bin_.accuracy == sum(hit for _, hit in inside) / len(inside)
    assert sum(bin_.n for bin_ in curve) == len(items)
    assert [bin_.low for bin_ in curve] == sorted({bin_.low for bin_ in curve})
    assert ece(confidence, correct, bins) == sum(bin_.n * abs(bin_.accuracy - bin_.confidence) for bin_ in curve) / len(items)


def test_brier_by_hand_and_sklearn() -> None:
    """.5 (wrong), .9 (right): (.25 + .01) / 2 = .13."""
    assert brier([0.5, 0.9], [0, 1]) == pytest.approx(0.13)
    rng = np.random.default_rng(0)
    p, hit = rng.random(50), rng.integers(0, 2, 50)
    assert brier(p, hit) == pytest.approx(brier_score_loss(hit, p))


def test_calibration_error_by_hand() -> None:
    """One bin of four: confidence .5, accuracy .75, gap .25, SD sqrt(.75 * .25 / 4) = .216506, z = 1.154701. E|gap + e| = .216506 *
    .797885 * exp(-2/3) + .25 (2 Phi(z) - 1) = .088691 + .25 * .751787 = .276638; debiased .5 - .276638."""
    result = calibration_error([0.4, 0.6, 0.5, 0.5], [1, 1, 1, 0], bins=1)
    assert result.value == pytest.approx(0.25)
    assert result.debiased == pytest.approx(0.5 - 0.276638, abs=1e-5)
    assert 0 <= result.ci_low <= result.debiased <= result.ci_high


def test_equal_mass_bins_by_hand() -> None:
    """.1, .2 | .3, .3, .3 | .9: with three bins the .3 that is fifth by rank stays with its like. Gaps: |1/2 - .15| * 2 + |1/3 - .3| * 3 +
    |1 - .9| = .7 + .1 + .1 of 6."""
    values = [0.1, 0.2, 0.3, 0.3, 0.3, 0.9]
    assert calibration_error(values, [0, 1, 1, 0, 0, 1], bins=3, equal_mass=True).value == pytest.approx(0.9 / 6)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30), st.integers(1, 12))
def test_the_error_is_that_of_ece(items: list[tuple[float, bool]], bins: int) -> None:
    confidence, correct = zip(*items, strict=True)
    result = calibration_error(confidence, correct, bins=bins, draws=100)
    assert result.value == pytest.approx(ece(confidence, correct, bins))
    assert 0 <= result.debiased <= result.value + 1e-12
    assert math.isnan(result.ci_low) == (len(items) == 1)


def test_copies_in_a_cluster_add_nothing() -> None:
    rng = np.random.default_rng(2)
    p = rng.random(60)
    hit = rng.random(60) < p**2
    once, copied = calibration_error(p, hit), calibration_error(np.repeat(p, 5), np.repeat(hit, 5), clusters=np.repeat(np.arange(60), 5))
    assert copied.n_clusters == once.n_clusters == 60
    assert copied.value == pytest.approx(once.value)
    assert copied.ci_high - copied.ci_low > 0.7 * (once.ci_high - once.ci_low)


@pytest.mark.slow
def test_debiased_error_is_nearer_and_its_interval_covers() -> None:
    """Confidences that are right but for .1 too much: ECE .1. 200 samples of 300 items: 88 % would be 4.5 SDs below 95."""
    rng, plain, debiased, covered = np.random.default_rng(5), [], [], 0
    for _ in range(200):
        p = rng.uniform(0.3, 1, 300)
        result = calibration_error(p, rng.random(300) < p - 0.1, draws=300)
        plain.append(result.value)
        debiased.append(result.debiased)
        covered += result.ci_low <= 0.1 <= result.ci_high
    assert abs(np.mean(debiased) - 0.1) < abs(np.mean(plain) - 0.1)
    assert covered >= 176
