"""Non-inferiority, and better here while not worse there."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from score_frames import frame
from statsmodels.stats.weightstats import ttost_paired

from apo_bench.stats import contrast, equivalence, noninferiority, superior_and_noninferior


def scores(shift: float, seed: int = 0, n_seeds: int = 4):
    rng = np.random.default_rng(seed)
    return frame(rng.normal(shift, 1, size=(n_seeds, 20)), rng.normal(size=(n_seeds, 20)))


def test_one_seed_is_scipys_one_sided_t_test() -> None:
    rows = scores(0.3, n_seeds=1)
    a, b = (rows.loc[rows.arm == arm, "value"].to_numpy() for arm in "ab")
    result = noninferiority(rows, "a", "b", margin=0.5)
    assert result.p_value == pytest.approx(scipy_stats.ttest_rel(a + 0.5, b, alternative="greater").pvalue)
    assert result.test == "one-sided paired t test over clusters of prompts against a loss of 0.5"
    assert result.scope == "these checkpoints only"


@pytest.mark.slow
@given(st.floats(-1.5, 1.5), st.floats(0.01, 2))
def test_it_holds_where_the_interval_lies_above_the_margin(shift: float, margin: float) -> None:
    rows = scores(shift)
    result = noninferiority(rows, "a", "b", margin=margin)
    assert result.holds == (contrast(rows, "a", "b").ci_low > -margin)
    assert result.contrast == contrast(rows, "a", "b")


def test_both_must_hold() -> None:
    """The p-value is the larger one: of "no gain" (from the contrast, halved where the sign is right) and of "a loss of the margin"."""
    better, same, worse = scores(1.0), scores(0.0, seed=1), scores(-2.0, seed=2)
    result = superior_and_noninferior(better, same, "a", "b", margin=1.0)
    assert result.p_value == pytest.approx(max(contrast(better, "a", "b").p_value / 2, noninferiority(same, "a", "b", margin=1.0).p_value))
    assert result.holds
    assert "intersection-union" in result.test
    assert not superior_and_noninferior(better, worse, "a", "b", margin=1.0).holds
    refused = superior_and_noninferior(worse, same, "a", "b", margin=1.0)
    assert not refused.holds
    assert refused.p_value == pytest.approx(1 - contrast(worse, "a", "b").p_value / 2)


def test_without_a_test_nothing_holds() -> None:
    two = noninferiority(scores(3.0, n_seeds=2), "a", "b", margin=0.1)
    assert (two.holds, math.isnan(two.p_value), two.test) == (False, True, "none: two seeds give an interval only")
    both = superior_and_noninferior(scores(3.0), scores(3.0, n_seeds=2), "a", "b", margin=0.1)
    assert (both.holds, math.isnan(both.p_value), both.test) == (False, True, two.test)


def test_the_scope_is_the_narrower_ones_too() -> None:
    result = superior_and_noninferior(scores(3.0, n_seeds=5), scores(3.0, n_seeds=1), "a", "b", margin=1.0)
    assert result.holds
    assert result.scope.startswith("gained: new seeds and new prompts")
    assert result.scope.endswith("kept: these checkpoints only")


def test_which_scores_are_at_fault_is_said() -> None:
    with pytest.raises(ValueError, match="superior_and_noninferior: kept: arm 'b' has no rows"):
        superior_and_noninferior(scores(0.0), scores(0.0).query("arm == 'a'"), "a", "b", margin=1.0)


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan, math.inf, "0.1", None, True])
def test_a_margin_is_positive(margin) -> None:
    with pytest.raises(ValueError, match="noninferiority: arms 'a' and 'b': margin is a positive number"):
        noninferiority(scores(0.0), "a", "b", margin=margin)


@pytest.mark.parametrize("margin", [0.2, 0.6, 2.0])
def test_equivalence_of_one_seed_is_that_of_statsmodels(margin: float) -> None:
    rows = scores(0.1, n_seeds=1)
    a, b = (rows.loc[rows.arm == arm, "value"].to_numpy() for arm in "ab")
    result = equivalence(rows, "a", "b", margin=margin)
    assert result.p_value == pytest.approx(ttost_paired(a, b, -margin, margin)[0])
    assert result.holds == (result.p_value < 0.05) == (-margin < result.ci_low and result.ci_high < margin)


def test_equivalence_by_hand() -> None:
    """D of `paired_error`, mean 3, V = 5/9, 3/5 of it the seeds'. Margin 5: t = (3 - 5) / sqrt(5/9) = -sqrt(36/5); P(t_2 < -t) is
    (1 - t / sqrt(2 + t^2)) / 2 = (1 - sqrt(36/46)) / 2. Below 5 %, as with margin 10; with margin 4 t = -sqrt(9/5) is not."""
    rows = frame(np.array([[0, 2, 4, 2], [4, 2, 4, 6], [2, 2, 7, 1]]), np.zeros((3, 4)))
    result = equivalence(rows, "a", "b", margin=5)
    assert result.p_value == pytest.approx(0.6 * (1 - math.sqrt(36 / 46)) / 2 + 0.4 * scipy_stats.t.cdf(-math.sqrt(36 / 5), 3))
    assert (result.holds, equivalence(rows, "a", "b", margin=10).holds) == (True, True)
    assert not equivalence(rows, "a", "b", margin=4).holds


def test_equivalence_without_a_test_does_not_hold() -> None:
    result = equivalence(scores(0.0, n_seeds=2), "a", "b", margin=100)
    assert (result.holds, math.isnan(result.p_value)) == (False, True)
    with pytest.raises(ValueError, match=r"confidence is above 0.5"):
        equivalence(scores(0.0), "a", "b", margin=1, confidence=0.4)
    with pytest.raises(ValueError, match="margin is a positive number"):
        equivalence(scores(0.0), "a", "b", margin=0)


def test_lower_is_better() -> None:
    """Losses: a's larger ones are worse. As the negated scores, where higher is better."""
    rows = scores(0.8)
    negated = rows.assign(value=-rows["value"])
    assert noninferiority(rows, "a", "b", margin=0.1, higher_is_better=False) == noninferiority(negated, "a", "b", margin=0.1)
    both = superior_and_noninferior(negated, rows, "a", "b", margin=3.0, higher_is_better=(False, True))
    assert both == superior_and_noninferior(rows, rows, "a", "b", margin=3.0)
    with pytest.raises(ValueError, match=r"^noninferiority: higher_is_better is True or False"):
        noninferiority(rows, "a", "b", margin=0.1, higher_is_better="no")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"^superior_and_noninferior: higher_is_better is a pair"):
        superior_and_noninferior(rows, rows, "a", "b", margin=1, higher_is_better=True)  # pyright: ignore[reportArgumentType]
