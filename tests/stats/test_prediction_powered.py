"""Prediction-powered win rates: by hand, mirrored, never worse than the labels alone, and at their coverage."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from apo_bench.stats.confidence_intervals import share_interval
from apo_bench.stats.prediction_powered import prediction_powered_win_rate


def judged(rng: np.random.Generator, n: int, n_labelled: int, accuracy: float, share: float = 0.6) -> pd.DataFrame:
    truth = (rng.random(n) < share).astype(float)
    judge = np.where(rng.random(n) < accuracy, truth, 1 - truth)
    label = np.where(rng.permutation(n) < n_labelled, truth, math.nan)
    return pd.DataFrame({"judge": judge, "label": label})


def test_four_items_by_hand():
    """Verdicts 1, 1, 0, 0; labels 1, none, 0, none: both means 1/2, so the rate is 1/2. Influences, weight w: .25 - .125 w, .125 w and
    their negatives; least squares at w = 1, 4 / 64; times 2/1 for two labelled: 1/8. Labels alone: 2 (2 / 16) = 1/4, so four would do.
    """
    result = prediction_powered_win_rate(pd.DataFrame({"judge": [1, 1, 0, 0], "label": [1, None, 0, None]}))
    assert (result.win_rate, result.tuning, result.labels_only, result.judge_only) == pytest.approx((0.5, 1, 0.5, 0.5))
    assert (result.standard_error**2, result.bought) == pytest.approx((1 / 8, 4))
    assert (result.ci_low, result.ci_high) == pytest.approx(share_interval(0.5, 1 / 8, 2, stats.t.ppf(0.975, 1)))
    assert (result.n_labelled, result.n, result.n_clusters, result.n_missing) == (2, 4, 4, 0)


def test_the_formula_of_the_paper():
    """The estimate is w times the judge's mean over all plus the mean of label - w judge; a perfect judge's w is near 1, and the estimate
    near the judge's mean over all."""
    rows = judged(np.random.default_rng(0), 200, 50, 1.0)
    result = prediction_powered_win_rate(rows)
    assert result.tuning > 0.9
    assert result.win_rate == pytest.approx(rows["judge"].mean(), abs=0.1 * abs(rows["judge"].mean() - result.labels_only))
    noisy = judged(np.random.default_rng(1), 200, 50, 0.8)
    result, some = prediction_powered_win_rate(noisy), noisy.dropna()
    expected = result.tuning * noisy["judge"].mean() + (some["label"] - result.tuning * some["judge"]).mean()
    assert result.win_rate == pytest.approx(expected)


@pytest.mark.parametrize("accuracy", [0.2, 0.5, 0.8, 1.0])
def test_never_worse_than_the_labels_alone(accuracy: float):
    for seed in range(20):
        rows = judged(np.random.default_rng(seed), 150, 40, accuracy)
        result = prediction_powered_win_rate(rows)
        some = rows["label"].dropna()
        assert result.labels_only == pytest.approx(some.mean())
        assert result.standard_error <= some.std() / math.sqrt(len(some)) + 1e-12
        assert result.bought >= result.n_labelled - 1e-9
        assert 0 <= result.ci_low <= result.win_rate <= result.ci_high <= 1


def test_the_other_side_mirrors():
    rows = judged(np.random.default_rng(3), 120, 40, 0.8).assign(cluster_id=np.arange(120) // 3)
    result, other = prediction_powered_win_rate(rows), prediction_powered_win_rate(rows.assign(judge=1 - rows.judge, label=1 - rows.label))
    assert (other.win_rate, other.ci_low, other.ci_high) == pytest.approx((1 - result.win_rate, 1 - result.ci_high, 1 - result.ci_low))


def test_copies_in_a_cluster_add_nothing():
    rows = judged(np.random.default_rng(4), 100, 40, 0.8).assign(cluster_id=np.arange(100))
    result, copied = prediction_powered_win_rate(rows), prediction_powered_win_rate(pd.concat([rows] * 4))
    assert (copied.ci_low, copied.ci_high) == pytest.approx((result.ci_low, result.ci_high))


def test_seeds_widen_it():
    """Five seeds whose win rates are .2 to .9 answer the same 40 prompts; taken as independent items they would look surer."""
    rng = np.random.default_rng(6)
    frames = [
        judged(rng, 40, 20, 0.9, share).assign(seed=seed, cluster_id=range(40)) for seed, share in enumerate((0.2, 0.4, 0.6, 0.7, 0.9))
    ]
    rows = pd.concat(frames)
    result, flat = prediction_powered_win_rate(rows), prediction_powered_win_rate(rows.drop(columns=["seed", "cluster_id"]))
    assert result.n_seeds == 5
    assert result.ci_high - result.ci_low > 1.5 * (flat.ci_high - flat.ci_low)
    assert result.scope.startswith("new seeds")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"judge": [1, 0]}, "column label is missing"),
        ({"judge": [1, 2], "label": [1, 0]}, r"column judge is outside \[0, 1\]: 2.0"),
        ({"judge": [1, 0], "label": [1, None]}, r"1 labelled unit\(s\) of column cluster_id, at least 2 needed"),
        ({"judge": [1, None], "label": [1, 0]}, r"1 labelled unit\(s\) of column cluster_id"),
        ({"judge": [1, 0], "label": [1, 0], "seed": [1, 1]}, r"1 labelled unit\(s\) of column seed"),
        ({"judge": [1, 0], "label": [1, 0], "cluster_id": [1, None]}, "column cluster_id is empty in 1 rows"),
    ],
)
def test_refusals(rows: Any, message: str):
    with pytest.raises(ValueError, match=f"^prediction_powered_win_rate: {message}"):
        prediction_powered_win_rate(pd.DataFrame(rows))


@pytest.mark.slow
@pytest.mark.parametrize(("accuracy", "share"), [(0.9, 0.6), (0.5, 0.6), (0.9, 0.95)])
def test_coverage(accuracy: float, share: float):
    """200 samples of 60 labels among 400: 88 % would be 4.5 SDs below 95."""
    rng, covered = np.random.default_rng(7), 0
    for _ in range(200):
        result = prediction_powered_win_rate(judged(rng, 400, 60, accuracy, share))
        covered += result.ci_low <= share <= result.ci_high
    assert covered >= 176
