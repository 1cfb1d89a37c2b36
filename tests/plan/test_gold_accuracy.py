"""What is expected of a gold model before any training."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_world import tiny_bench, tiny_task

from apo_bench.config.schema import Gold
from apo_bench.plan.gold_accuracy import GoldForecast, detectable_accuracy, forecast, of_independent_pairs, sentences, warnings
from apo_bench.run.validate import check_experiment
from apo_bench.stats import clustered_share


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=4, max_size=80))
def test_an_accuracy_above_it_has_an_interval_above_one_half(pairs: list[tuple[int, bool]]) -> None:
    """By the interval itself: it leaves out one half just where the share is above what its own width can tell from it."""
    share, low, high, _ = clustered_share([float(right) for _, right in pairs], [cluster for cluster, _ in pairs])
    detectable = detectable_accuracy(share, low, high)
    if math.isfinite(detectable) and detectable < 1 and abs(share - detectable) > 1e-9:
        assert (share > detectable) == (low > 0.5)


def test_independent_pairs_tell_what_their_number_allows() -> None:
    """t(99) = 1.984 at 95 %: 1/2 + 1.984 / (2 x 10). 61 right of 100 have an interval above one half, 59 do not."""
    assert of_independent_pairs(100, 100) == pytest.approx(0.5992, abs=1e-4)
    lows = [clustered_share(np.arange(100) < right, range(100))[1] for right in (59, 61)]
    assert lows[0] < 0.5 < lows[1]
    assert math.isnan(of_independent_pairs(5, 1))
    assert of_independent_pairs(2, 2) == 1.0
    assert math.isnan(detectable_accuracy(0.5, math.nan, math.nan))


def test_the_forecast_is_the_accuracy_of_the_ngram_floor(tmp_path: Path) -> None:
    """As the evaluation measures it, on the same held-out pairs; sim_hh has few gold pairs and two axes."""
    context = tiny_bench(tmp_path)
    rows = {each.axis: each for each in forecast(context.experiment, tiny_task())}
    assert set(rows) == set(tiny_task().axes)
    table = context.gold_accuracy().folder / "gold.parquet"
    import pandas as pd

    floor = pd.read_parquet(table).query("gold == '_floor'").set_index("axis")
    for axis, each in rows.items():
        assert (each.accuracy, each.low) == pytest.approx((floor["value"][axis], floor["ci_low"][axis]))
        assert each.n_held_out == floor["n_pairs"][axis]


def test_only_gold_that_is_tested_and_trained_is_fitted() -> None:
    experiment = tiny_bench(Path("unused")).experiment
    compare = experiment.compare.model_copy(update={"scorer": "ground_truth"})
    assert forecast(experiment.model_copy(update={"compare": compare}), tiny_task()) == []
    frozen = Gold.model_validate({"name": "linear", "model": {"kind": "pretrained", "path": "a/b"}})
    models = experiment.models.model_copy(update={"gold": (frozen,)})
    compare = experiment.compare.model_copy(update={"axes": ("helpful",)})
    (only,) = forecast(experiment.model_copy(update={"models": models, "compare": compare}), tiny_task())
    assert (only.axis, math.isnan(only.accuracy)) == ("helpful", True)


def test_what_is_said_of_it() -> None:
    weak, strong = GoldForecast("a", 80, 60, 0.63, 0.52, 0.41, 0.63), GoldForecast("b", 900, 800, 0.53, 0.66, 0.62, 0.7)
    first, second = warnings([weak, strong])
    assert first.startswith("models.gold: on a 60 held-out pairs tell only an accuracy above 0.63 from one half")
    assert second.startswith("models.gold: on a an n-gram model of 80 gold pairs has an accuracy of 0.52 (0.41 to 0.63)")
    assert len([*sentences([weak, strong])]) == 3
    assert [*sentences([strong])] == [
        "Gold on b: 800 held-out pairs tell one above 0.53 from an accuracy of one half. An n-gram model of its 900 gold pairs has 0.66 "
        "(0.62 to 0.70)."
    ]
    lacking = next(warnings([replace(weak, detectable=math.nan, low=math.nan)]))
    assert "tell no accuracy from one half" in lacking


@pytest.mark.slow
def test_check_warns_of_few_held_out_pairs(tree: dict[str, Any], write_experiment: Callable[[dict[str, Any]], Path]) -> None:
    path = write_experiment(tree)
    assert check_experiment(path) == []
    notes = check_experiment(path, {"evaluation.diagnostic_pairs": 20})
    assert notes
    assert all(note.startswith("models.gold: on ") for note in notes)
    assert check_experiment(path, {"evaluation.diagnostic_pairs": 20}, sizes=False) == []
