"""Judges as a random factor: by hand, by statsmodels, and how often intervals hold the truth."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from apo_bench.stats import judged_win_rate, mean_across_judges, win_rate_across_judges
from apo_bench.stats.random_judges import judges_error


def long(values: np.ndarray) -> pd.DataFrame:
    """Values (J, S, P) as rows."""
    judge, seed, prompt = (place.ravel() for place in np.indices(values.shape))
    return pd.DataFrame({"judge": [f"j{i}" for i in judge], "seed": seed, "prompt_id": prompt, "value": values.ravel()})


def additive(judges: list[float], seeds: list[float], clusters: list[float]) -> np.ndarray:
    return np.add.outer(np.add.outer(judges, seeds), clusters)


def test_three_random_factors_by_hand() -> None:
    """y = a + b + c without interactions, a = 0, 1, 2 (judges), b = 0, 2, 4 (seeds), c = 0, 1, 1, 2 (clusters): mean 1 + 2 + 1 = 4.

    Sample variances 1, 4, 2/3; V = 1/3 + 4/3 + (2/3)/4 = 11/6; shares 2/11, 8/11 and 1/11 with 2, 2 and 3 degrees of freedom.
    Var(judge) = 1; judges' own means are 3, 4 and 5.
    """
    result = mean_across_judges(long(additive([0, 1, 2], [0, 2, 4], [0, 1, 1, 2])))
    t = 4 / math.sqrt(11 / 6)
    expected = 10 / 11 * 2 * scipy_stats.t.sf(t, 2) + 1 / 11 * 2 * scipy_stats.t.sf(t, 3)
    assert (result.mean, result.standard_error, result.p_value) == pytest.approx((4, math.sqrt(11 / 6), expected))
    assert (result.judge_sd, result.lowest, result.highest) == pytest.approx((1, 3, 5))
    assert (result.n_judges, result.n_seeds, result.n_clusters, result.n_dropped) == (3, 3, 4, 0)
    assert result.scope.startswith("new judges like these; new seeds and new prompts")
    assert result.ci_high - 4 == pytest.approx(scipy_stats.t.ppf(0.975, result.df) * result.standard_error)


def test_interaction_with_clusters_by_hand() -> None:
    """[[0, 2], [4, 4], [4, 10]], one seed: the docstring of `judges_error` has the steps. V = 20/9 + 16/9 = 4, Var(judge) = 20/3."""
    error = judges_error(np.array([[[0.0, 2]], [[4, 4]], [[4, 10]]]))
    assert (error.variance, error.judge_variance) == pytest.approx((4, 20 / 3))


def test_variance_is_that_of_expected_mean_squares() -> None:
    """From statsmodels' analysis of variance: J S P V = M_j + M_s + M_c - M_js - M_jc - M_sc + M_rest, where no floor holds.

    J S P V is the sum of each component times what it counts in the mean; expected mean squares of the crossed design give the signs.
    """
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    rng = np.random.default_rng(3)
    shape = (4, 3, 6)
    values = additive([*rng.normal(size=4)], [*rng.normal(size=3)], [*rng.normal(size=6)]) + 0.5 * rng.normal(size=shape)
    formula = "value ~ (C(judge) + C(seed) + C(prompt_id)) ** 2"
    table: Any = anova_lm(ols(formula, long(values)).fit())
    squares = (table["sum_sq"] / table["df"]).to_numpy()
    assert judges_error(values).variance * values.size == pytest.approx(squares @ [1, 1, 1, -1, -1, -1, 1])


@pytest.mark.slow
def test_variance_is_a_mixed_models() -> None:
    """REML of a model with crossed judges and clusters (statsmodels): in a balanced design without a component at 0 the same V."""
    from statsmodels.regression.mixed_linear_model import MixedLM

    rng = np.random.default_rng(5)
    values = additive([*2 * rng.normal(size=5)], [0.0], [*rng.normal(size=12)]) + rng.normal(size=(5, 1, 12))
    rows = long(values).assign(all=1)
    components = {"judge": "0 + C(judge)", "cluster": "0 + C(prompt_id)"}
    fitted = MixedLM.from_formula("value ~ 1", rows, groups="all", re_formula="0", vc_formula=components).fit()
    assert mean_across_judges(rows).standard_error == pytest.approx(float(fitted.bse.iloc[0]), rel=1e-3)
    assert mean_across_judges(rows).judge_sd ** 2 == pytest.approx(
        float(dict(zip(fitted.model.exog_vc.names, fitted.vcomp, strict=True))["judge"]), rel=1e-2
    )


def test_judges_that_agree_on_everything_are_one_judge() -> None:
    """Three copies of one judge's verdicts: the numbers of `judged_win_rate`, and no claim about other judges."""
    verdicts = np.random.default_rng(7).choice([0, 0.5, 1], (1, 3, 20))
    result = win_rate_across_judges(long(np.repeat(verdicts, 3, axis=0)))
    single = judged_win_rate(
        long(verdicts).assign(seed_a=lambda rows: rows["seed"], seed_b=lambda rows: rows["seed"]).drop(columns="judge")
    )
    assert (result.mean, result.ci_low, result.ci_high, result.p_value) == pytest.approx(
        (single.win_rate, single.ci_low, single.ci_high, single.p_value)
    )
    assert result.scope.startswith("these judges, which agree on everything")


def test_two_judges_give_an_interval_with_one_degree_of_freedom_and_no_p_value() -> None:
    """Judges' means 0.4 and 0.8 on many prompts: T is 12.7, so the interval of a win rate is nearly all of [0, 1], and never beyond."""
    values = np.zeros((2, 1, 50))
    values[0, 0, :20] = values[1, 0, :40] = 1
    result = win_rate_across_judges(long(values))
    assert (result.df, result.mean) == pytest.approx((1, 0.6))
    assert math.isnan(result.p_value)
    assert result.test == "none: two judges give an interval only"
    assert 0 <= result.ci_low < 0.02
    assert 0.98 < result.ci_high <= 1


def test_interval_and_p_value_of_a_win_rate_agree() -> None:
    """1/2 is an end of the interval at confidence 1 - p."""
    rng = np.random.default_rng(11)
    chances = 0.7 + 0.1 * rng.normal(size=(6, 1, 1)) + np.zeros((6, 3, 60))
    rows = long((rng.random(chances.shape) < chances).astype(float))
    result = win_rate_across_judges(rows)
    again = win_rate_across_judges(rows, confidence=1 - result.p_value)
    assert again.ci_low == pytest.approx(0.5)
    assert result.these_low > result.ci_low  # the same for these judges is surer


def test_prompts_without_a_value_by_every_judge_are_left_out_and_counted() -> None:
    """Of 3 judges x 2 seeds x 5 prompts one value is missing: the 5 others of its prompt go too. Prompts 1 and 2 are one cluster."""
    values = np.random.default_rng(13).normal(size=(3, 3, 5))
    rows = long(values).assign(cluster_id=lambda rows: rows["prompt_id"].replace(2, 1))
    rows.loc[(rows["judge"] == "j1") & (rows["seed"] == 1) & (rows["prompt_id"] == 0), "value"] = math.nan
    result = mean_across_judges(rows)
    merged = np.stack([values[..., 1:3].mean(-1), values[..., 3], values[..., 4]], axis=-1)
    assert (result.n_dropped, result.n_clusters) == (8, 3)
    assert (result.mean, result.standard_error) == pytest.approx((merged.mean(), math.sqrt(judges_error(merged).variance)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"judge": "j0"}, "repeat the columns judge, seed, prompt_id"),
        ({"value": 2.0}, r"column value: numbers in \[0, 1\]"),
        ({"value": math.nan}, "0 cluster"),
        ({"prompt_id": None}, "column prompt_id is empty"),
    ],
)
def test_errors_name_the_column(change: dict[str, Any], message: str) -> None:
    rows = long(np.random.default_rng(17).random((2, 2, 3)))
    with pytest.raises(ValueError, match=message):
        win_rate_across_judges(rows.assign(**change))


@pytest.mark.slow
@pytest.mark.parametrize("n_judges", [3, 5])
def test_intervals_hold_the_truth(n_judges: int) -> None:
    """400 samples, judges' SD a third of the rest's: 95 % intervals hold 0 in 93 % or more (binomial error 1.1)."""
    rng, hold = np.random.default_rng(n_judges), 0
    for _ in range(400):
        values = 0.3 * rng.normal(size=(n_judges, 1, 1)) + 0.3 * rng.normal(size=(3, 1)) + 0.5 * rng.normal(size=30)
        values = values + rng.normal(size=(n_judges, 3, 30))
        result = mean_across_judges(long(values))
        hold += result.ci_low <= 0 <= result.ci_high
    assert hold / 400 >= 0.93
