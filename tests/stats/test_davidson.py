"""Strengths with ties: two models by hand, another optimiser on the likelihood, coverage with few clusters, and what is refused."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import optimize
from scipy import stats as scipy_stats

from apo_bench.stats import davidson

TWO = pd.DataFrame({"a": ["x"] * 10, "b": ["y"] * 10, "value": [1] * 5 + [0] * 2 + [0.5] * 3})


def drawn(strengths: dict[str, float], log_nu: float, n: int, seed: int, n_clusters: int | None = None) -> pd.DataFrame:
    """Battles of random pairs by the model itself; with clusters strengths also vary by cluster (SD 0.5)."""
    generator, names = np.random.default_rng(seed), list(strengths)
    rows = []
    shifts = generator.normal(0, 0.5, (n_clusters or 1, len(names))) * bool(n_clusters)
    for number in range(n):
        cluster = number % (n_clusters or 1)
        i, j = generator.choice(len(names), 2, replace=False)
        d = strengths[names[i]] + shifts[cluster, i] - strengths[names[j]] - shifts[cluster, j]
        weights = np.exp([d / 2, log_nu, -d / 2])
        value = generator.choice([1.0, 0.5, 0.0], p=weights / weights.sum())
        rows.append({"a": names[i], "b": names[j], "value": value, "question": cluster})
    return pd.DataFrame(rows)


def test_two_models_by_hand() -> None:
    """5 wins, 2 losses, 3 ties are fitted as they are: e^d = 5/2, and nu = 3 / sqrt(5 x 2), so that equals tie with chance nu / (2 + nu).

    The log of a ratio of multinomial counts has variance 1/5 + 1/2, times G / (G - 1) = 10/9; t has 9 degrees of freedom.
    """
    result = davidson(TWO, baseline="y")
    x, y = result.strengths.to_dict("records")
    assert (x["model"], y["model"], y["strength"], y["standard_error"]) == ("x", "y", 0.0, pytest.approx(0.0, abs=1e-9))
    assert x["strength"] == pytest.approx(math.log(2.5))
    assert x["standard_error"] == pytest.approx(math.sqrt(0.7 * 10 / 9))
    assert x["ci_high"] - x["strength"] == pytest.approx(scipy_stats.t.ppf(0.975, 9) * x["standard_error"])
    nu = 3 / math.sqrt(10)
    assert result.tie == pytest.approx(nu / (2 + nu))
    assert result.tie_low < result.tie < result.tie_high
    assert (result.n, result.n_ties, result.n_missing, result.n_clusters, result.df) == (10, 3, 0, 10, 9)


def test_points_and_the_mean_as_baseline() -> None:
    """400 points are a tenfold odds: ln 2.5 is 400 lg 2.5 = 159.2; without a baseline the two lie evenly around 1000."""
    points = davidson(TWO, baseline="y", elo=True).strengths.set_index("model")["strength"]
    assert points.to_dict() == pytest.approx({"x": 1000 + 400 * math.log10(2.5), "y": 1000.0})
    even = davidson(TWO, elo=True).strengths.set_index("model")["strength"]
    assert even.to_dict() == pytest.approx({"x": 1000 + 200 * math.log10(2.5), "y": 1000 - 200 * math.log10(2.5)})


def test_another_optimiser_comes_to_the_same() -> None:
    battles = drawn({"p": 0.0, "q": 0.8, "r": -0.5, "s": 0.3}, -0.4, 400, seed=1)
    names = ["p", "q", "r", "s"]

    def loss(theta: Any) -> float:
        s, total = dict(zip(names, [0.0, *theta[:3]], strict=True)), 0.0
        for row in battles.to_dict("records"):
            d = s[row["a"]] - s[row["b"]]
            weights = np.array([d / 2, theta[3], -d / 2])
            total -= weights[{1.0: 0, 0.5: 1, 0.0: 2}[row["value"]]] - np.log(np.exp(weights).sum())
        return total

    best = optimize.minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-6}).x
    result = davidson(battles, baseline="p")
    strengths = result.strengths.set_index("model")["strength"]
    assert [strengths[name] for name in names[1:]] == pytest.approx(best[:3], abs=1e-4)
    assert result.tie == pytest.approx(math.exp(best[3]) / (2 + math.exp(best[3])), abs=1e-4)


def test_neither_order_nor_sides_change_anything() -> None:
    battles = drawn({"p": 0.0, "q": 0.8, "r": -0.5}, 0.0, 150, seed=2, n_clusters=12)
    turned = battles.sample(frac=1, random_state=0).rename(columns={"a": "b", "b": "a"}).assign(value=lambda rows: 1 - rows["value"])
    first, second = davidson(battles, cluster="question"), davidson(turned, cluster="question")
    pd.testing.assert_frame_equal(first.strengths, second.strengths, atol=1e-8)
    assert first.tie == pytest.approx(second.tie)


@pytest.mark.slow
def test_intervals_hold_with_twelve_clusters() -> None:
    """300 draws, twelve questions on which strengths differ: 95 % intervals of q above p hold in 95 % of them, binomial error 1.3 points.

    The strength that is estimated is the questions' mean, drawn down a little by their spread: the mean of 20,000 battles on 400 questions.
    """
    truth = {"p": 0.0, "q": 0.6, "r": -0.4}
    many = davidson(drawn(truth, -0.5, 20_000, seed=10**6, n_clusters=400), baseline="p").strengths.set_index("model")
    target, n_covered = float(many["strength"].to_dict()["q"]), 0
    for seed in range(300):
        rows = davidson(drawn(truth, -0.5, 180, seed=seed, n_clusters=12), cluster="question", baseline="p").strengths.set_index("model")
        low, high = (float(rows[end].to_dict()["q"]) for end in ("ci_low", "ci_high"))
        n_covered += low <= target <= high
    assert 0.90 <= n_covered / 300 <= 0.99


@pytest.mark.parametrize(
    ("battles", "options", "message"),
    [
        (TWO.assign(value=0.7), {}, "column value: 0, 0.5 or 1 is needed, got 0.7"),
        (TWO.assign(value=1.0), {}, "no battle is a tie"),
        (TWO.assign(value=0.5), {}, "every battle is a tie"),
        (TWO.assign(value=math.nan), {}, "no battle has a value .column value, 10 missing"),
        (TWO.assign(b="x"), {}, "model 'x' meets itself"),
        (TWO, {"baseline": "z"}, "baseline 'z': no such model"),
        (pd.concat([TWO, pd.DataFrame({"a": ["z"], "b": ["x"], "value": [1]})]), {}, "split in two of which one never lost"),
    ],
)
def test_what_allows_no_estimate_is_refused(battles: pd.DataFrame, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        davidson(battles, **options)


def test_one_cluster_has_no_error() -> None:
    result = davidson(TWO.assign(question="q"), cluster="question")
    assert result.strengths[["standard_error", "ci_low", "ci_high"]].isna().all(axis=None)
    assert math.isnan(result.tie_low)
    assert result.tie == pytest.approx(3 / math.sqrt(10) / (2 + 3 / math.sqrt(10)))
    assert result.test == "none: one cluster has no error"
