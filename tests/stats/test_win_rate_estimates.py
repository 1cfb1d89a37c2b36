"""Win rates: by hand, against scipy and statsmodels, mirrored, and at their level."""

import math
from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from apo_bench.stats.confidence_intervals import share_interval
from apo_bench.stats.two_way_random_effects import contrast
from apo_bench.stats.win_rate_estimates import JudgedWinRate, judged_win_rate, win_rate

EIGHTHS = st.integers(0, 8).map(lambda x: x / 8)


def frame(values: Any, clusters: Any = None) -> pd.DataFrame:
    """Judgments of same-seed pairs, values (S, P), without order."""
    values = np.asarray(values, dtype=float)
    seeds, prompts = (x.ravel() for x in np.indices(values.shape))
    result = pd.DataFrame({"seed_a": seeds, "seed_b": seeds, "prompt_id": [f"p{x}" for x in prompts], "value": values.ravel()})
    return result if clusters is None else result.assign(cluster_id=np.asarray(clusters)[prompts])


def orders(ab: list[float | None], ba: list[float | None]) -> pd.DataFrame:
    """Judgments of one seed in both orders."""
    prompts = range(len(ab))
    rows = [(0, 0, p, order, x[p]) for order, x in (("ab", ab), ("ba", ba)) for p in prompts]
    return pd.DataFrame(rows, columns=["seed_a", "seed_b", "prompt_id", "order", "value"])


def assert_equal(result: JudgedWinRate, expected: JudgedWinRate) -> None:
    for field, value in asdict(expected).items():
        assert getattr(result, field) == (pytest.approx(value, nan_ok=True) if isinstance(value, float) else value), field


# win_rate


def test_win_rate_by_hand():
    """1, .5, 0, .5, 1: mean .6; squared deviations .16 + .01 + .36 + .01 + .16 = .7; error sqrt(.7 / 4 / 5) = sqrt(.035) = .187083;
    t(.975; 4) = 2.776445. d = .035 * 5 / .24 = .729167, I = 4 * 5 * .24 = 4.8, D = d^(4.8 / 6.8) = .800151, c = t^2 D / 5 = 1.233616:
    centre (.6 + c/2) / (1 + c) = .544770, half-width sqrt(.24 c + c^2 / 4) / (1 + c) = .368241."""
    result = win_rate([1, 0.5, None, 0, 0.5, math.nan, 1])
    assert (result.mean, result.standard_error) == pytest.approx((0.6, math.sqrt(0.035)))
    assert (result.ci_low, result.ci_high) == pytest.approx((0.544770 - 0.368241, 0.544770 + 0.368241), abs=3e-6)
    assert (result.n, result.n_missing, result.n_wins, result.n_ties, result.n_losses) == (5, 2, 2, 2, 1)
    assert result.test == "score interval over items"


def test_a_tie_makes_nothing_surer():
    """49 wins and a tie: with a t interval .970 to 1.010. The interval stays in [0, 1] and begins below that of 50 wins."""
    tied, won = win_rate([1] * 49 + [0.5]), win_rate([1] * 50)
    assert 0.92 < tied.ci_low < won.ci_low
    assert tied.mean < tied.ci_high < 1


def test_binary_preferences_have_wilsons_interval():
    """8 of 10: sum of squared deviations 8 * .04 + 2 * .64 = 1.6, error sqrt(1.6 / 9 / 10) = .133333. Wilson: z^2 = 3.841459, centre
    (.8 + .192073) / 1.384146 = .716740, half-width 1.959964 / 1.384146 * sqrt(.016 + .009604) = .226578."""
    result = win_rate(pd.Series([1] * 8 + [0] * 2))
    assert result.standard_error == pytest.approx(0.133333, abs=1e-6)
    assert (result.ci_low, result.ci_high) == pytest.approx((0.716740 - 0.226578, 0.716740 + 0.226578), abs=2e-6)
    assert result.test == "Wilson score interval"


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.sampled_from([0.5, 0.9, 0.99]))
def test_binary_interval_is_that_of_statsmodels(preferences: list[bool], confidence: float):
    result = win_rate(preferences, confidence=confidence)
    expected = proportion_confint(sum(preferences), len(preferences), alpha=1 - confidence, method="wilson")
    assert (result.ci_low, result.ci_high) == pytest.approx(expected, abs=1e-9)


@given(st.lists(EIGHTHS, min_size=2, max_size=30))
def test_win_rate_agrees_with_scipy_and_mirrors(preferences: list[float]):
    """The other side's preferences are 1 - x: its win rate is 1 - mean, its interval mirrored, its wins our losses."""
    result, other = win_rate(preferences), win_rate([1 - x for x in preferences])
    assert result.standard_error == pytest.approx(np.std(preferences, ddof=1) / math.sqrt(len(preferences)), abs=1e-15)
    expected = (1 - result.mean, result.standard_error, 1 - result.ci_high, 1 - result.ci_low)
    assert (other.mean, other.standard_error, other.ci_low, other.ci_high) == pytest.approx(expected, nan_ok=True)
    assert (other.n_wins, other.n_ties, other.n_losses) == (result.n_losses, result.n_ties, result.n_wins)
    if result.test != "none: every preference is equal":
        assert 0 <= result.ci_low < result.mean < result.ci_high <= 1 or result.mean in (result.ci_low, result.ci_high)


def test_degenerate_win_rates():
    """One item has no sd; Wilson still bounds a share: 1 of 1 is at least 1 / (1 + z^2) = .206549. Ties only: nothing varies."""
    single, sure, tied = win_rate([0.75]), win_rate([1]), win_rate([0.5] * 9)
    assert math.isnan(single.standard_error)
    assert math.isnan(single.ci_low)
    assert math.isnan(sure.standard_error)
    assert (sure.ci_low, sure.ci_high) == pytest.approx((0.206549, 1), abs=1e-6)
    assert (tied.mean, tied.standard_error, tied.n_ties) == (0.5, 0, 9)
    assert math.isnan(tied.ci_high)
    assert tied.test == "none: every preference is equal"


@pytest.mark.parametrize(
    ("preferences", "message"),
    [
        ([], "win_rate: no preferences"),
        ([None, math.nan, pd.NA], "win_rate: no preferences .3 missing"),
        ([0.5, 1.5], r"win_rate: a preference is outside \[0, 1\]: 1.5"),
        ([-0.1], r"win_rate: a preference is outside \[0, 1\]: -0.1"),
        ([0.5, math.inf], r"win_rate: a preference is outside \[0, 1\]: inf"),
        (["A", "B"], "win_rate: a preference is not numeric"),
        ([[0, 1], [1, 0]], "win_rate: a preference is not numeric"),
        (0.5, "win_rate: a preference is not numeric"),
        ("101", "win_rate: a preference is not numeric"),
        (b"\x00\x01", "win_rate: a preference is not numeric"),
        (["1", "0"], "win_rate: a preference is not numeric"),
        ({0: 1, 1: 1}, "win_rate: a preference is not numeric"),
        (pd.DataFrame([[0, 1]]), "win_rate: a preference is not numeric"),
        (np.array([[0, 1], [1, 0]]), "win_rate: a preference is not numeric"),
        ([np.datetime64("1970-01-01")], "win_rate: a preference is not numeric"),
        (pd.Series(pd.to_datetime(["1970-01-01"])), "win_rate: a preference is not numeric"),
        ([datetime.fromtimestamp(0, UTC)], "win_rate: a preference is not numeric"),
        (np.array([0, 1], dtype="timedelta64[ns]"), "win_rate: a preference is not numeric"),
        ([1j, 0], "win_rate: a preference is not numeric"),
        ([10**400], "win_rate: a preference is not numeric"),
    ],
)
def test_win_rate_refuses(preferences: Any, message: str):
    with pytest.raises(ValueError, match=f"^{message}"):
        win_rate(preferences)


@pytest.mark.parametrize(
    "preferences",
    [
        [True, False, None],
        pd.Series([1, pd.NA, 0], dtype="Int64"),
        pd.Series([True, False, None], dtype="boolean"),
        pd.array([1.0, None, 0.0], dtype="Float64"),
        [Decimal(1), np.int8(0), pd.NA],
        (x for x in [1, math.nan, 0]),
    ],
)
def test_numbers_of_any_kind(preferences: Any):
    result = win_rate(preferences)
    assert (result.mean, result.n, result.n_missing) == (0.5, 2, 1)


@pytest.mark.parametrize("preferences", [[0.1 + 0.2, 0.3], [1e-300, 0, 0], [1e-200, 2e-200]])
def test_what_differs_by_rounding_does_not_differ(preferences: list[float]):
    """.1 + .2 is .30000000000000004."""
    result = win_rate(preferences)
    assert result.standard_error == 0
    assert math.isnan(result.ci_low)
    assert result.test == "none: every preference is equal"


def test_graded_preferences_count_by_the_side_they_are_on():
    result = win_rate([0.3, 0.5, 0.7, 0.9])
    assert (result.n_losses, result.n_ties, result.n_wins) == (1, 1, 2)


@pytest.mark.parametrize("confidence", [0, 1, math.nan, "0.9", None, True, [0.9]])
def test_confidence_is_a_share(confidence: Any):
    with pytest.raises(ValueError, match=r"^win_rate: confidence"):
        win_rate([0, 1], confidence=confidence)
    with pytest.raises(ValueError, match=r"^judged_win_rate: confidence"):
        judged_win_rate(frame([[0, 1]]), confidence=confidence)


# judged_win_rate


def test_judged_win_rate_by_hand():
    """Three seeds, four prompts, eighths 0 2 4 2 / 4 2 4 6 / 2 2 7 1: mean 3; seed means 2, 4, 3, A/S = 1/3; prompt means 2, 2, 5, 3,
    B/P = 1/2; residuals -1 1 0 0 / 1 -1 -2 2 / 0 0 2 -2, C = 20/6, C/(SP) = 5/18. V = A/S + B/P - C/(SP) = 5/9, 3/5 of it the seeds'.
    In wins: V / (3/8 * 5/8) = (5/9 / 64) / (15/64) = 1/27, so that 1/2 would have the variance 1/4 / 27 = 1/108; t^2 = 108/64 = 27/16;
    p = 3/5 p(2 df) + 2/5 p(3 df), with 2 df 1 - t / sqrt(2 + t^2) = 1 - sqrt(27/59). An end e has (3/8 - e)^2 = T^2 e (1 - e) / 27."""
    result = judged_win_rate(frame(np.array([[0, 2, 4, 2], [4, 2, 4, 6], [2, 2, 7, 1]]) / 8))
    error = math.sqrt(5 / 9) / 8
    assert (result.win_rate, result.standard_error) == pytest.approx((3 / 8, error))
    assert result.p_value == pytest.approx(0.6 * (1 - math.sqrt(27 / 59)) + 0.4 * 2 * stats.t.sf(math.sqrt(27 / 16), 3))
    c = stats.t.ppf(0.975, result.df) ** 2 / 27
    for end in (result.ci_low, result.ci_high):
        assert (3 / 8 - end) ** 2 == pytest.approx(c * end * (1 - end))
    assert 0 < result.ci_low < 3 / 8 < result.ci_high < 1
    assert 2 < result.df < 3
    assert (result.n_seeds, result.n_clusters, result.n_comparisons, result.n_missing, result.n_dropped) == (3, 4, 12, 0, 0)
    assert (result.worst_low, result.worst_high, result.note) == (pytest.approx(3 / 8), pytest.approx(3 / 8), "")
    assert math.isnan(result.first_position_rate)
    assert math.isnan(result.inconsistency_rate)
    assert result.scope.startswith("new seeds and new prompts")
    assert result.test.endswith("win rate against 1/2")


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(arrays.arrays(float, st.tuples(st.integers(1, 4), st.integers(2, 6)), elements=EIGHTHS))
def test_the_error_is_that_of_contrast(values: np.ndarray):
    """Against an arm that scores 1/2 everywhere the paired difference is the win rate less 1/2. The variance that 1/2 would have is not
    below that at the win rate, so the p-value is not below the contrast's; and it is below 5 % where the interval leaves out 1/2."""
    rows = frame(values)
    scores = rows[["prompt_id", "value"]].assign(arm="a", seed=rows["seed_a"])
    expected = contrast(pd.concat([scores, scores.assign(arm="b", value=0.5)]), "a", "b")
    result = judged_win_rate(rows)
    assert result.win_rate - 0.5 == pytest.approx(expected.difference)
    actual, wanted = ([x.standard_error, x.df] for x in (result, expected))
    assert actual == pytest.approx(wanted, nan_ok=True)
    assert math.isnan(result.p_value) == math.isnan(expected.p_value)
    assert math.isnan(result.ci_low) or 0 <= result.ci_low <= result.win_rate <= result.ci_high <= 1
    if not math.isnan(result.p_value):
        assert result.p_value >= expected.p_value - 1e-12
        assert (result.p_value < 0.05) == (not result.ci_low <= 0.5 <= result.ci_high)


def test_both_orders_by_hand():
    """Orders (ab, ba) of five prompts: (1, 1), (1, 0), (.5, 0), (.5, missing), (1, not asked). Comparisons 1, .5, .25 and two missing:
    win rate 1.75 / 3; the missing verdicts lost, (1.75 + .25 + .5) / 5, and won, (1.75 + .75 + 1) / 5. Shown first wins (1 + 0) / 2,
    (1 + 1) / 2, (.5 + 1) / 2: 2.25 / 3. Two of three comparisons change with the order. One seed: mean 7/12, squared deviations
    42/144, variance of the mean 7/144; d = 3 * 7/144 / (35/144) = 3/5, I = 12 * 35/144 = 35/12, D = (3/5)^(35/59); 1/2 would have the
    variance D / 12, t = (1/12) / sqrt(D / 12) with 2 degrees of freedom."""
    result = judged_win_rate(orders([1, 1, 0.5, 0.5, 1], [1, 0, 0, None, None]).iloc[:-1])
    assert result.win_rate == pytest.approx(1.75 / 3)
    assert (result.n_comparisons, result.n_missing, result.n_dropped) == (3, 2, 0)
    assert (result.worst_low, result.worst_high) == pytest.approx((0.5, 0.7))
    assert (result.first_position_rate, result.inconsistency_rate) == pytest.approx((0.75, 2 / 3))
    effect = 0.6 ** (35 / 59)
    assert (result.p_value, result.df) == pytest.approx((2 * stats.t.sf(1 / 12 / math.sqrt(effect / 12), 2), 2))
    assert (result.ci_low, result.ci_high) == pytest.approx(share_interval(7 / 12, 7 / 144, 3, stats.t.ppf(0.975, 2)))
    assert result.scope.startswith("these checkpoints only")


def test_missing_and_clusters_by_hand():
    """Two seeds; cluster x holds prompts 0 and 1, y 2, z 3: (1, 0, 1, 0) and (missing, 1, .5, .5). Prompt 0 falls out, with seed 0's
    verdict on it: (0, 1, 0), (1, .5, .5), mean .5. Of all asked, cluster means if the missing one is lost: x 2/4, y .75, z .25, mean
    .5; if won: x 3/4, mean 1.75 / 3."""
    result = judged_win_rate(frame([[1, 0, 1, 0], [math.nan, 1, 0.5, 0.5]], ["x", "x", "y", "z"]))
    assert (result.n_seeds, result.n_clusters, result.n_comparisons, result.n_missing, result.n_dropped) == (2, 3, 6, 1, 1)
    assert result.win_rate == pytest.approx(0.5)
    assert (result.worst_low, result.worst_high) == pytest.approx((0.5, 1.75 / 3))
    assert math.isnan(result.p_value)
    assert result.ci_low < 0.5 < result.ci_high


def test_clusters_weigh_alike():
    """Cluster x: prompts 0, 1, 2 all won; y: prompt 3 lost in seed 0, tied in seed 1: (1 + .25) / 2, not (3 + .25) / 4."""
    result = judged_win_rate(frame([[1, 1, 1, 0], [1, 1, 1, 0.5]], ["x", "x", "x", "y"]))
    assert result.win_rate == result.worst_low == result.worst_high == pytest.approx(0.625)


def test_a_comparison_never_asked_is_missing():
    """Seed 1 was never asked about prompt 2, seed 0 won there: that verdict is dropped, and seed 1's is missing as if its row were there.
    Worst case, prompt means (.5, .25) and 1/2 or 1: 1.25 / 3 and 1.75 / 3."""
    rows = frame([[1, 0, 1], [0, 0.5, math.nan]])
    result, there = judged_win_rate(rows.iloc[:-1]), judged_win_rate(rows)
    assert (result.n_comparisons, result.n_missing, result.n_dropped) == (4, 1, 1)
    assert result.win_rate == pytest.approx(1.5 / 4)
    assert (result.worst_low, result.worst_high) == pytest.approx((1.25 / 3, 1.75 / 3))
    assert_equal(result, there)


@pytest.mark.parametrize("absent", [False, True])
def test_verdicts_that_one_seed_lacks_decide_what_is_tested(absent: bool):
    """Three seeds, 20 prompts, all won on prompts 0 to 3 (one tie), lost elsewhere; seed 0 lacks prompts 4 to 19. Left are 4 of 20 clusters
    and 12 of 60 comparisons, win rate 11.5 / 12; over all 60 it is 11.5 / 60 to 27.5 / 60."""
    values = np.zeros((3, 20))
    values[:, :4], values[1, 0], values[0, 4:] = 1, 0.5, math.nan
    rows = frame(values)
    result = judged_win_rate(rows.dropna() if absent else rows)
    assert (result.n_comparisons, result.n_missing, result.n_dropped, result.n_clusters) == (12, 16, 32, 4)
    assert result.win_rate == pytest.approx(11.5 / 12)
    assert (result.worst_low, result.worst_high) == pytest.approx((11.5 / 60, 27.5 / 60))
    left, few, outside = result.note.split("; ")
    assert left.startswith("16 of 20 clusters have no prompt that every seed has")
    assert few == "only 12 of 60 comparisons are used"
    assert outside.startswith("over all comparisons the win rate is 0.192 to 0.458")


def test_a_note_only_where_there_is_something_to_note():
    """Clusters x (prompts 0, 1) and y (2, 3); prompt 0 lacks a verdict: both clusters and 6 of 8 comparisons are left, means .5
    and .625. With prompt 0 x is (.5 + 0 + 0 + 1) / 4 or (.5 + 0 + 1 + 1) / 4: .5 <= .5625 <= .625."""
    result = judged_win_rate(frame([[0.5, 0, 1, 0], [math.nan, 1, 0.5, 1]], ["x", "x", "y", "y"]))
    assert (result.worst_low, result.win_rate, result.worst_high, result.note) == (0.5, 0.5625, 0.625, "")


def test_without_a_row_is_as_without_a_value():
    """Any mixture, in both orders."""
    rows = orders([1, 1, 0.5, 0.5, 1, None], [1, 0, 0, None, None, None])
    both = pd.concat([rows, rows.assign(seed_a=1, seed_b=1, value=rows["value"].fillna(0.5))])
    assert_equal(judged_win_rate(both), judged_win_rate(both.dropna()))


def test_index_and_nullable_types_do_not_matter():
    rows = frame([[1, 0.5, 1], [1, 0, math.nan], [0.5, 0.5, 0]])
    expected = judged_win_rate(rows)
    assert_equal(judged_win_rate(rows.set_index(["seed_a"], drop=False)), expected)
    types = {"seed_a": "Int64", "seed_b": "category", "value": "Float64"}
    assert_equal(judged_win_rate(rows.astype(types)), expected)
    mixed = rows["seed_a"].map({0: 0, 1: "0", 2: "x"})
    tuples = rows["prompt_id"].map(lambda prompt: (prompt, 1))
    assert_equal(judged_win_rate(rows.assign(seed_a=mixed, prompt_id=tuples)), expected)


def test_any_one_to_one_pairing_of_seeds_will_do():
    rows = frame([[1, 0.5, 1], [1, 0, 1], [0.5, 0.5, 0]])
    same, other = judged_win_rate(rows), judged_win_rate(rows.assign(seed_b=10 + rows["seed_a"]))
    assert other.p_value == same.p_value
    assert other.n_seeds == 3


def test_other_order_labels_have_no_first_position():
    """What "0" and "1" mean is not guessed; that two verdicts differ is plain: 1 of 3."""
    result = judged_win_rate(orders([1, 0, 0.5], [1, 0, 1]).replace({"order": {"ab": "0", "ba": "1"}}))
    assert math.isnan(result.first_position_rate)
    assert result.inconsistency_rate == pytest.approx(1 / 3)
    assert result.win_rate == pytest.approx(1.75 / 3)


def test_all_won_has_wilsons_interval_over_clusters():
    """Four clusters, all won: at least 4 / (4 + z^2) = .510109. All tied: nothing."""
    result, tied = judged_win_rate(frame(np.ones((3, 4)))), judged_win_rate(frame(np.full((3, 4), 0.5)))
    assert (result.win_rate, result.standard_error) == (1, 0)
    assert (result.ci_low, result.ci_high) == pytest.approx((0.510109, 1), abs=1e-6)
    assert result.scope.startswith("these checkpoints only")
    assert math.isnan(tied.ci_low)
    assert math.isnan(result.p_value)
    assert result.test.startswith("none")


VALUES = arrays.arrays(float, st.tuples(st.integers(1, 4), st.integers(2, 6)), elements=st.sampled_from([0, 0.5, 1, math.nan]))


def judged(rows: pd.DataFrame) -> JudgedWinRate | None:
    try:
        return judged_win_rate(rows)
    except ValueError as error:
        if "at least 2 needed" not in str(error):
            raise
        return None


@pytest.mark.slow
@settings(max_examples=40)
@given(VALUES)
def test_swapping_the_arms_mirrors_everything(values: np.ndarray):
    result, other = judged(frame(values)), judged(frame(1 - values))
    assert (result is None) == (other is None)
    if result is None or other is None:
        return
    expected = (1 - result.win_rate, result.standard_error, 1 - result.ci_high, 1 - result.ci_low, result.p_value)
    assert (other.win_rate, other.standard_error, other.ci_low, other.ci_high, other.p_value) == pytest.approx(expected, nan_ok=True)
    assert (other.worst_low, other.worst_high) == pytest.approx((1 - result.worst_high, 1 - result.worst_low))


@pytest.mark.slow
@settings(max_examples=40)
@given(VALUES, st.sampled_from([0, 0.25, 1]))
def test_whatever_the_missing_verdicts_were_the_win_rate_is_in_the_bounds(values: np.ndarray, truth: float):
    result, whole = judged(frame(values)), judged_win_rate(frame(np.where(np.isnan(values), truth, values)))
    if result is not None:
        assert result.worst_low - 1e-12 <= whole.win_rate <= result.worst_high + 1e-12
        assert result.n_comparisons + result.n_missing + result.n_dropped == values.size
        assert result.n_missing == np.isnan(values).sum()
        outside = not result.worst_low - 1e-12 <= result.win_rate <= result.worst_high + 1e-12
        assert outside == ("over all comparisons the win rate is" in result.note)


def changed(**columns: Any) -> pd.DataFrame:
    return frame([[1, 0, 1], [0, 0.5, 1]]).assign(**columns)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (changed().drop(columns="seed_b"), "column seed_b is missing"),
        (changed().iloc[:0], "no rows"),
        (changed(judge=list("ggghhh")), r"column judge holds \['g', 'h'\]"),
        (changed(axis=["helpful"] * 5 + [None]), r"column axis holds \['helpful', "),
        (changed(round=[1, 1, 1, 2, 2, 2]), r"column round holds \[1, 2\]"),
        (changed(arm_a=list("abaaaa")), r"column arm_a holds \['a', 'b'\]"),
        (changed(seed_b=[0, 0, 0, 1, 1, 0]), r"seed 1 \(column seed_a\) meets several seeds of column seed_b; .* one to one"),
        (changed(seed_b=0), r"seed 0 \(column seed_b\) meets several seeds of column seed_a"),
        (changed(prompt_id=["p0", "p0", "p1"] * 2), "2 rows repeat the columns seed_a, prompt_id"),
        (changed(prompt_id=["p0", None, "p1"] * 2), "column prompt_id is empty in 2 rows"),
        (changed(cluster_id=list("xyzyyz")), "prompt 'p0' is in two clusters .column cluster_id."),
        (changed(cluster_id=[*"xyzxy", None]), "column cluster_id is empty in 1 rows"),
        (changed(cluster_id="x"), r"1 cluster\(s\) with a comparison in every seed"),
        (changed(value=[1, 0, 1, 0, 2, 1]), r"a value \(column value\) is outside \[0, 1\]: 2.0"),
        (changed(value="A"), r"a value \(column value\) is not numeric"),
        (changed(value=[1, 0, 1] + [None] * 3), r"0 cluster\(s\) .* \(3 of 6 comparisons missing, column value\)"),
        (changed(order="ab"), r"column order holds \['ab'\]"),
        (changed(order=["ab", "ba", "both"] * 2), r"column order holds \['ab', 'ba', 'both'\]"),
        (changed(prompt_id=[["p0"], ["p1"], ["p2"]] * 2), "column prompt_id holds a label that is not hashable"),
        (changed(arm_a=[["x"]] * 6), "column arm_a holds a label that is not hashable"),
        (changed(value=[10**400, 0, 1, 0, 0.5, 1]), r"a value \(column value\) is not numeric"),
        (changed(value=pd.Timestamp("1970-01-01")), r"a value \(column value\) is not numeric"),
        (pd.concat([changed(), changed()[["seed_a"]]], axis=1), "column seed_a occurs 2 times"),
        (pd.concat([changed(), changed()[["value"]]], axis=1), "column value occurs 2 times"),
        (None, "rows come as a DataFrame, got NoneType"),
        (orders([1, 1], [None, 1]), r"1 cluster\(s\) with a comparison in every seed"),
        (orders([1, 1], [None, None]), r"0 cluster\(s\) .* \(2 of 2 comparisons missing"),
    ],
)
def test_judged_win_rate_refuses(rows: pd.DataFrame, message: str):
    with pytest.raises(ValueError, match=f"^judged_win_rate: {message}") as caught:
        judged_win_rate(rows)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_level_where_seeds_vary():
    """120 nulls of 5 seeds x 24 prompts, the seeds' true win rates .5 +- .1, verdicts 0, 1/2, 1: at 5 % 6 rejections with sd 2.4, three sd
    above is 13. Verdicts taken as independent items reject more than twice as often as that."""
    rng, by_judged, by_items = np.random.default_rng(4), 0, 0
    for _ in range(120):
        chance = 0.5 + 0.1 * rng.standard_normal((5, 1)) + 0.1 * rng.standard_normal(24)
        values = rng.binomial(2, chance.clip(0, 1)) / 2
        by_judged += judged_win_rate(frame(values)).p_value < 0.05
        items = win_rate(values.ravel())
        by_items += not items.ci_low <= 0.5 <= items.ci_high
    assert 1 <= by_judged <= 13
    assert by_items > 26
