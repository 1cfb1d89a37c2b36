"""Bradley-Terry strengths: two models by hand, evalica, clusters, one-sided and unconnected battles, order of rows and sides."""

import itertools
import math
from typing import Any

import evalica
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from apo_bench.stats.bradley_terry import BradleyTerry, bradley_terry


def frame(*rows: tuple[Any, Any, float], **columns: Any) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=["a", "b", "value"]).assign(**columns)


def arena(n: int, questions: int, seed: int = 0, luck: float = 0.0) -> pd.DataFrame:
    """Battles of four models with ties; on one question each pair has its own luck."""
    generator = np.random.default_rng(seed)
    strength, pairs = [1.0, 0.3, -0.4, -0.9], list(itertools.permutations(range(4), 2))
    drawn = [pairs[i] for i in generator.integers(len(pairs), size=n)]
    question = generator.integers(questions, size=n)
    of_question = generator.normal(0, luck, (questions, 4))
    rows = []
    for (a, b), q in zip(drawn, question, strict=True):
        p = expit(strength[a] - strength[b] + of_question[q, a] - of_question[q, b])
        rows.append((f"m{a}", f"m{b}", 0.5 if generator.random() < 0.2 else float(generator.random() < p)))
    return frame(*rows, question=question)


def by_model(result: BradleyTerry, column: str = "strength") -> dict[Any, float]:
    return dict(zip(result.strengths["model"], result.strengths[column], strict=True))


def win_rate(result: BradleyTerry, a: Any, b: Any) -> pd.Series:
    rows = result.win_rates
    return rows[(rows["a"] == a) & (rows["b"] == b)].iloc[0]


def test_two_models_by_hand():
    """x has 60 wins, 20 ties and 20 losses: share 0.7, strengths +-log(7/3)/2. The share's variance is (60 + 20/4)/100 - 0.49 = 0.16,
    its error 0.4/sqrt(99) (99 of 100 rows are drawn), that of the difference 0.4/sqrt(99)/0.21, of a strength half of that.
    """
    rows = frame(*[("x", "y", 1)] * 30, *[("y", "x", 0)] * 30, *[("x", "y", 0.5)] * 20, *[("y", "x", 1)] * 20)
    result = bradley_terry(rows)
    half = math.log(7 / 3) / 2
    assert by_model(result) == pytest.approx({"x": half, "y": -half}, abs=1e-5)
    pair = win_rate(result, "x", "y")
    assert pair["win_rate"] == pytest.approx(0.7, abs=1e-5)
    assert (pair["observed"], pair["battles"]) == (pytest.approx(0.7), 100)
    assert pair["standard_error"] == pytest.approx(0.4 / math.sqrt(99), rel=0.07)
    assert by_model(result, "standard_error")["x"] == pytest.approx(0.4 / math.sqrt(99) / 0.21 / 2, rel=0.07)
    assert pair["ci_low"] == pytest.approx(0.7 - 1.96 * 0.0402, abs=0.015)
    assert pair["ci_high"] == pytest.approx(0.7 + 1.96 * 0.0402, abs=0.015)
    assert (result.n, result.n_missing, result.n_clusters, result.draws, result.n_one_sided, result.note) == (100, 0, 100, 1000, 0, "")
    assert result.test.startswith("percentile bootstrap of battles")
    assert result.scope.startswith("new battles like these, each independent")


def test_three_models_by_hand():
    """x beats y 2 : 1, y beats z 3 : 1, x and z never met: differences log 2 and log 3, mean 0. x beats z with odds 6: 6/7."""
    rows = frame(*[("x", "y", 1)] * 2, ("x", "y", 0), *[("y", "z", 1)] * 3, ("z", "y", 1))
    result = bradley_terry(rows)
    shift = (math.log(6) + math.log(3)) / 3
    assert by_model(result) == pytest.approx({"x": math.log(6) - shift, "y": math.log(3) - shift, "z": -shift}, abs=1e-3)
    pair = win_rate(result, "x", "z")
    assert pair["win_rate"] == pytest.approx(6 / 7, abs=1e-4)
    assert (pair["battles"], math.isnan(pair["observed"])) == (0, True)
    assert list(result.strengths["model"]) == ["x", "y", "z"]
    assert list(result.strengths["battles"]) == [3, 7, 4]


def test_against_evalica():
    """Its scores are exp(strength) up to a factor, ties half a win for each."""
    rows = arena(600, 50)
    result = by_model(bradley_terry(rows, draws=100))
    winners = rows["value"].map({1.0: evalica.Winner.X, 0.0: evalica.Winner.Y, 0.5: evalica.Winner.Draw})
    scores = np.log(evalica.bradley_terry(rows["a"], rows["b"], winners, tolerance=1e-13, limit=100_000).scores)
    assert result == pytest.approx((scores - scores.mean()).to_dict(), abs=1e-5)


@pytest.mark.slow
def test_clusters_widen_what_rows_hide():
    """On one question a model's luck is shared by all its battles there. Battles copied four times over: errors twice the rows'."""
    rows = arena(3000, 40, luck=1.0)
    by_row, by_question = bradley_terry(rows), bradley_terry(rows, cluster="question")
    assert by_model(by_row) == pytest.approx(by_model(by_question), abs=1e-9)
    assert all(by_question.win_rates["standard_error"] > 1.4 * by_row.win_rates["standard_error"])
    assert by_question.n_clusters == 40
    assert by_question.scope.startswith("new values of question like these")

    once = arena(300, 300).assign(item=range(300))
    fourfold = pd.concat([once] * 4, ignore_index=True)
    copies, naive = bradley_terry(fourfold, cluster="item"), bradley_terry(fourfold)
    ratio = copies.win_rates["standard_error"] / naive.win_rates["standard_error"]
    assert ratio.mean() == pytest.approx(2, rel=0.06)


@pytest.mark.slow
@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.sampled_from([(0, 1), (1, 2), (2, 0), (0, 3), (1, 0)]), st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.integers(0, 4)),
        min_size=1,
        max_size=20,
    ),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_order_and_sides_change_nothing(items: list[tuple[tuple[int, int], float, int]], chance: Any, clustered: bool):
    rows = pd.DataFrame([(a, b, value, q) for (a, b), value, q in items], columns=["a", "b", "value", "q"])
    turned = rows.copy()
    other = np.array([chance.random() < 0.5 for _ in items])
    turned.loc[other, ["a", "b"]] = rows.loc[other, ["b", "a"]].to_numpy()
    turned.loc[other, "value"] = 1 - rows.loc[other, "value"]
    turned = turned.iloc[chance.sample(range(len(rows)), len(rows))]
    plain, changed = (bradley_terry(x, cluster="q" if clustered else None, draws=100) for x in (rows, turned))
    assert abs(plain.strengths["strength"].sum()) < 1e-6
    assert plain.note == changed.note
    for name, keys in (("strengths", ["model"]), ("win_rates", ["a", "b"])):
        first, second = (getattr(x, name).sort_values(keys, ignore_index=True) for x in (plain, changed))
        pd.testing.assert_frame_equal(first, second, check_exact=False, rtol=0, atol=1e-6)
    mirror = plain.win_rates.merge(plain.win_rates, left_on=["a", "b"], right_on=["b", "a"])
    assert mirror["win_rate_x"].to_numpy() == pytest.approx(1 - mirror["win_rate_y"].to_numpy(), abs=1e-12, nan_ok=True)
    assert mirror["ci_low_x"].to_numpy() == pytest.approx(1 - mirror["ci_high_y"].to_numpy(), abs=1e-9, nan_ok=True)


def test_a_model_that_won_everything():
    """x is above y and z, by how much nobody knows; y and z, 3 : 1, are fitted by themselves: log 3 apart, win rate 3/4."""
    rows = frame(*[("x", "y", 1)] * 7, *[("z", "x", 0)] * 2, *[("y", "z", 1)] * 3, ("y", "z", 0))
    result = bradley_terry(rows)
    assert next(iter(result.strengths["model"])) == "x"
    assert np.isfinite(result.strengths["strength"]).all()
    assert result.strengths[["standard_error", "ci_low", "ci_high"]].isna().all(axis=None)
    assert (win_rate(result, "x", "y")["win_rate"], win_rate(result, "z", "x")["win_rate"]) == (1, 0)
    assert math.isnan(win_rate(result, "x", "y")["ci_low"])
    inside = win_rate(result, "y", "z")
    assert inside["win_rate"] == pytest.approx(0.75, abs=1e-4)
    assert 0 < inside["ci_low"] < 0.75 < inside["ci_high"]
    assert "one-sided or unconnected" in result.note
    assert "(x | y, z)" in result.note
    assert result.n_one_sided == result.draws


def test_models_that_never_met():
    """Two islands: win rates across are not available, those within are 2/3 and 1/2."""
    rows = frame(*[("a", "b", 1)] * 2, ("a", "b", 0), ("c", "d", 1), ("d", "c", 1))
    result = bradley_terry(rows)
    assert math.isnan(win_rate(result, "a", "c")["win_rate"])
    assert win_rate(result, "a", "b")["win_rate"] == pytest.approx(2 / 3, abs=1e-4)
    assert win_rate(result, "d", "c")["win_rate"] == pytest.approx(0.5, abs=1e-9)
    assert "(a, b | c, d)" in result.note


def test_an_upset_that_draws_may_miss():
    """One loss in 30: a draw of 29 rows misses it with probability (29/30)^29 = 0.374. These are counted; interval and error finite."""
    result = bradley_terry(frame(*[("x", "y", 1)] * 29, ("y", "x", 1)))
    assert result.n_one_sided / result.draws == pytest.approx(0.374, abs=0.05)
    assert by_model(result)["x"] == pytest.approx(math.log(29) / 2, abs=1e-3)
    assert 0 < by_model(result, "standard_error")["x"] < 1
    assert math.log(29) / 2 < by_model(result, "ci_high")["x"] < 10
    assert "draws are one-sided" in result.note


def test_only_ties_and_one_cluster():
    """Ties only: equal strengths, nothing varies, no interval. One cluster: strengths, no error."""
    ties = bradley_terry(frame(*[("x", "y", 0.5)] * 5))
    assert by_model(ties) == {"x": 0, "y": 0}
    assert by_model(ties, "standard_error")["x"] == 0
    assert ties.win_rates["ci_low"].isna().all()
    single = bradley_terry(frame(("x", "y", 1), ("x", "y", 0), day=1), cluster="day")
    assert single.strengths["standard_error"].isna().all()
    assert (single.n_clusters, single.draws) == (1, 0)
    assert single.test.startswith("none")


def test_missing_battles_are_counted():
    """k's only battle has no value: it is named, without a strength."""
    result = bradley_terry(frame(("x", "y", 1), ("x", "y", 0), ("x", "k", math.nan)))
    assert (result.n, result.n_missing) == (2, 1)
    assert math.isnan(by_model(result)["k"])
    assert by_model(result, "battles")["k"] == 0
    assert "no battle has a value for k" in result.note


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"value": 2}, r"column value is outside \[0, 1\]: 2"),
        ({"value": -math.inf}, r"column value is outside \[0, 1\]: -inf"),
        ({"value": "x"}, "column value is not numeric"),
        ({"value": ["1", "0"]}, "column value is not numeric"),
        ({"value": pd.to_datetime(["1970-01-01", "1970-01-01"])}, "column value is not numeric"),
        ({"value": [1 + 0j, 0j]}, "column value is not numeric"),
        ({"value": pd.Series([1, 10**400], dtype=object)}, "column value is not numeric"),
        ({"a": [["x"], ["x"]]}, "column a holds a label that is not hashable"),
        ({"question": [["q"], ["q"]]}, "column question holds a label that is not hashable"),
        ({"value": math.nan}, r"no battle has a value \(column value, 2 missing\)"),
        ({"a": None}, "column a is empty in 2 rows"),
        ({"b": "x"}, "model 'x' meets itself"),
        ({"question": [1, None]}, "column question is empty in 1 rows"),
    ],
)
def test_bad_rows(change: dict[str, Any], words: str):
    rows = frame(("x", "y", 1), ("x", "z", 0), question=1).assign(**change)
    with pytest.raises(ValueError, match=rf"^bradley_terry: {words}"):
        bradley_terry(rows, cluster="question")


def test_bad_arguments():
    rows = frame(("x", "y", 1))
    with pytest.raises(ValueError, match=r"^bradley_terry: column day is missing"):
        bradley_terry(rows, cluster="day")
    with pytest.raises(ValueError, match="no battle has a value"):
        bradley_terry(rows.head(0))
    with pytest.raises(ValueError, match="confidence is between 0 and 1"):
        bradley_terry(rows, confidence=0)
    with pytest.raises(ValueError, match=r"^bradley_terry: column value occurs 2 times"):
        bradley_terry(pd.concat([rows, rows[["value"]]], axis=1))
    with pytest.raises(ValueError, match=r"^bradley_terry: rows come as a DataFrame, got list"):
        bradley_terry([("x", "y", 1)])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        *(("draws", draws, "draws is a whole number of at least 100") for draws in (10, 1000.0, None, "1000", True, math.nan)),
        *(("seed", seed, "seed is a whole number of at least 0") for seed in (None, -1, 1.5, "x", True, np.random.default_rng(0))),
        *(("confidence", confidence, "confidence is between 0 and 1") for confidence in ("0.9", None, math.nan)),
    ],
)
def test_arguments_that_are_no_numbers(name: str, value: Any, words: str):
    with pytest.raises(ValueError, match=f"^bradley_terry: {words}, got .") as caught:
        bradley_terry(frame(("x", "y", 1), ("y", "x", 1)), **{name: value})
    assert "\n" not in str(caught.value)
