"""Tuning's choices: which settings an arm tries, and which is taken."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apo_bench.config.tuning import best, overrides, taken_round, trials

NAN = math.nan
values = st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True)
grids = st.dictionaries(st.sampled_from(["learning_rate", "player.beta", "rounds"]), values, min_size=1)


@given(grids, st.sampled_from(["rjs", "apo_dpo"]), st.data())
def test_trials_are_n_distinct_settings_of_the_grid(grid: dict[str, list[int]], arm: str, data: st.DataObject) -> None:
    size = math.prod(map(len, grid.values()))
    n = data.draw(st.integers(1, size))
    tried = trials(arm, grid, n)
    assert len(tried) == n == len({tuple(setting.items()) for setting in tried})
    assert all(setting.keys() == grid.keys() and all(setting[name] in grid[name] for name in grid) for setting in tried)
    assert trials(arm, grid, n) == tried  # by name and grid alone
    places = [sum(grid[name].index(setting[name]) * math.prod(len(grid[later]) for later in list(grid)[place + 1 :])
                  for place, name in enumerate(grid)) for setting in tried]  # fmt: skip
    assert places == sorted(places)  # in the grid's order
    if n < size:
        assert set(map(str, tried)) <= set(map(str, trials(arm, grid, n + 1)))  # a trial more changes none of the others
    with pytest.raises(ValueError, match=f"{size + 1} trials of {size} settings for arm {arm}"):
        trials(arm, grid, size + 1)


def test_arms_draw_for_themselves() -> None:
    """4 of 36 settings: that six names draw alike by chance has odds of 1 in 58,905 for each two."""
    grid = {"a": list(range(6)), "b": list(range(6))}
    drawn = {name: trials(name, grid, 4) for name in ("rjs", "rrhf", "dpo", "apo_rjs", "apo_rrhf", "apo_dpo")}
    assert len(set(map(str, drawn.values()))) == 6


def test_a_whole_grid_is_tried_in_its_order() -> None:
    assert trials("rjs", {"a": [1, 2], "b": [[3, 4], None]}, 4) == (
        {"a": 1, "b": [3, 4]}, {"a": 1, "b": None}, {"a": 2, "b": [3, 4]}, {"a": 2, "b": None},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([0.1, 0.3, 0.2], 1), ([0.3, 0.1, 0.3], 0), ([NAN, -2.0, NAN, -3.0], 1), ([-1.0, NAN], 0), ([-math.inf, NAN], 0)],
)
def test_the_best_is_the_first_of_the_highest_and_never_a_failed_one(scores: list[float], expected: int) -> None:
    assert best(scores, [NAN] * len(scores)) == expected


@pytest.mark.parametrize("scores", [[], [NAN], [NAN, NAN]])
def test_where_every_trial_failed_none_is_best(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="every trial failed"):
        best(scores, [0.0] * len(scores), 1.0)


def test_a_trial_too_far_from_the_initial_policy_is_never_taken() -> None:
    """The highest score is 9 nats away, the next unknown; of those within 5, both ends included, the better is the last."""
    scores, kl = [0.9, 0.8, 0.3, 0.4], [9.0, NAN, 1.0, 5.0]
    assert best(scores, kl, 5.0) == 3
    assert best(scores, kl, 4.0) == 2
    assert best(scores, kl) == 0
    with pytest.raises(ValueError, match=r"no trial ended within 0\.5 nats"):
        best(scores, kl, 0.5)


@pytest.mark.parametrize(("rule", "expected"), [("final", 2), ("dev_best", 1)])
def test_a_trial_is_judged_by_the_experiments_own_rule(rule: str, expected: int) -> None:
    assert taken_round([0.1, 0.7, 0.2], rule) == expected
    assert taken_round([0.7, 0.7], "dev_best") == 0  # among equals the first


def test_a_setting_replaces_keys_of_its_arm() -> None:
    setting: dict[str, Any] = {"learning_rate": [1e-3, 1e-4], "player.beta": 0.5}
    assert overrides("apo_dpo", setting) == {"arms.apo_dpo.learning_rate": [1e-3, 1e-4], "arms.apo_dpo.player.beta": 0.5}
