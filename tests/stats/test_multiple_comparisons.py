"""Families of contrasts: corrections and effect sizes."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control
from score_frames import frame

from apo_bench.stats import benjamini_hochberg, contrast, contrasts, holm, lay_out
from apo_bench.stats.multiple_comparisons import effect_size


def test_holm_by_hand() -> None:
    """Sorted .01, .02, .04 of three tests: 3*.01 = .03, 2*.02 = .04, 1*.04 = .04. The untested one stays NaN and is not counted."""
    np.testing.assert_allclose(holm([0.04, math.nan, 0.01, 0.02]), [0.04, math.nan, 0.03, 0.04])
    assert holm([]).shape == (0,)
    assert np.isnan(holm([math.nan])).all()
    for bad, message in (([1.2], "holm: p-values are"), (["x"], "holm: a p-value is not numeric")):
        with pytest.raises(ValueError, match=message):
            holm(bad)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(p: list[float]) -> None:
    """The procedure: go through the sorted p-values while p_(i) <= alpha / (m - i + 1), stop at the first that is not."""
    alpha, rejected = 0.05, set()
    for step, place in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if p[place] * (len(p) - step) > alpha:
            break
        rejected.add(place)
    assert {i for i, adjusted in enumerate(holm(p)) if adjusted <= alpha} == rejected


@given(st.lists(st.one_of(st.just(math.nan), st.floats(0, 1)), max_size=8))
def test_benjamini_hochberg_equals_scipys(p: list[float]) -> None:
    adjusted, tested = benjamini_hochberg(p), [x for x in p if not math.isnan(x)]
    assert [math.isnan(x) for x in adjusted] == [math.isnan(x) for x in p]
    expected = false_discovery_control(tested) if tested else []
    np.testing.assert_allclose(adjusted[~np.isnan(adjusted)], expected, atol=1e-12)


def test_a_family_by_hand() -> None:
    """Three arms; every row is that of `contrast`, and Holm's correction covers what was tested: smallest p twice, the other once."""
    rng = np.random.default_rng(9)
    a, b, c = rng.normal(size=(3, 4, 6))
    scores = pd.concat([frame(a, b + 0.4), frame(c, b).query("arm == 'a'").replace("a", "c")])
    table = contrasts(scores, [("a", "b"), ("c", "b")])
    for row in table.itertuples():
        single = contrast(scores, row.a, row.b)
        assert (row.difference, row.p_value, row.df, row.scope, row.test) == (
            single.difference,
            single.p_value,
            single.df,
            single.scope,
            single.test,
        )
    small, large = sorted(table["p_value"])
    assert sorted(table["p_adjusted"]) == pytest.approx([min(1, 2 * small), max(large, min(1, 2 * small))])
    assert list(table.columns)[:3] == ["a", "b", "difference"]
    assert contrasts(scores, [("a", "b")], correction="none")["p_adjusted"].tolist() == [contrast(scores, "a", "b").p_value]


def test_a_family_is_asked_once() -> None:
    scores = frame(*np.random.default_rng(10).normal(size=(2, 3, 4)))
    assert contrasts(scores, []).empty
    bad = {
        "twice": [["a", "b"], ("a", "b")],
        "compared twice": [("a", "b"), ("b", "a")],
        "cannot be compared with itself": [("a", "a")],
        "a pair names two arms, got 'ab'": ["ab"],
        "a pair names two arms, got 3": [3],
        "pairs are a list of two arms each, got None": None,
        "an arm is one label": [(["a"], "b")],
        "contrasts: arm 'x' has no rows": [("a", "x")],
    }
    for message, pairs in bad.items():
        with pytest.raises(ValueError, match=message):
            contrasts(scores, pairs)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="correction is holm, bh or none, got 'b'"):
        contrasts(scores, [("a", "b")], correction="b")  # pyright: ignore[reportArgumentType]


def test_effect_sizes_by_hand() -> None:
    """b = [[0, 2], [1, 5]], a = [[1, 3], [0, 6]]: differences 1, 1, -1, 1, mean 1/2.

    Variances of b within seeds: 2 and 8, mean 5, SD sqrt 5, df = 2 (2 - 1) = 2, J = 1 - 3/7 = 4/7. a > b on three of four prompts.
    """
    result = effect_size(lay_out(frame(np.array([[1.0, 3], [0, 6]]), np.array([[0.0, 2], [1, 5]])), "a", "b"))
    assert result.hedges_g == pytest.approx(4 / 7 * 0.5 / math.sqrt(5))
    assert (result.sd, result.sd_of, result.p_superior) == (pytest.approx(math.sqrt(5)), "b: over prompts within a seed", 0.75)


def test_p_superior_without_pairing_compares_every_two_seeds() -> None:
    """One prompt of two: a = 0, 2 against b = 1, 1: half. The other: 3, 3 against 3, 4: ties 1/2, 1/2 and two losses: 1/4."""
    scores = frame(np.array([[0.0, 3], [2, 3]]), np.array([[1.0, 3], [1, 4]]), seeds_b=[5, 6])
    assert effect_size(lay_out(scores, "a", "b")).p_superior == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_constant_scores_have_no_standardised_effect() -> None:
    result = effect_size(lay_out(frame(np.eye(2), np.zeros((2, 2))), "a", "b"))
    assert math.isnan(result.hedges_g)
    assert result.sd == 0
    assert result.p_superior == 0.75
    rounding = effect_size(lay_out(frame(np.random.default_rng(3).normal(size=(3, 9)), np.full((3, 9), 0.1)), "a", "b"))
    assert math.isnan(rounding.hedges_g)


def test_a_family_of_partly_shared_seeds_may_be_taken_as_unpaired() -> None:
    scores = frame(*np.random.default_rng(12).normal(size=(2, 3, 6)), seeds_b=[2, 3, 4])
    with pytest.raises(ValueError, match="contrasts: arm 'a' has seed 0"):
        contrasts(scores, [("a", "b")])
    row = contrasts(scores, [("a", "b")], paired_seeds=False).iloc[0]
    assert row.p_value == contrast(scores, "a", "b", paired_seeds=False).p_value
