"""Equal tuning for every arm: which settings are tried, and which is taken. Nothing is run here.

Every arm gets the same number of trials over its own grid, on seeds of their own, judged by the referee's score on dev prompts.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from apo_bench.types import identity

Setting = dict[str, Any]  # dotted parameter of an arm -> value


def trials(arm: str, grid: Mapping[str, Sequence[Any]], n: int) -> tuple[Setting, ...]:
    """n distinct settings of a grid, in the grid's order; of a larger grid the n that the arm's name draws by chance.

    Raises ValueError for a grid of fewer settings.
    """
    settings = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    if n > len(settings):
        raise ValueError(f"tune: {n} trials of {len(settings)} settings for arm {arm}")
    by_chance = sorted(range(len(settings)), key=lambda place: identity("trial", arm, str(place)))
    return tuple(settings[place] for place in sorted(by_chance[:n]))


def best(dev_scores: Sequence[float]) -> int:
    """The trial with the highest score, among equals the first; NaN, a trial that failed, is never taken.

    Raises ValueError if every trial failed.
    """
    places = [place for place, score in enumerate(dev_scores) if not math.isnan(score)]
    if not places:
        raise ValueError("every trial failed")
    return max(places, key=lambda place: dev_scores[place])


def outcome(by_round: Sequence[float], rule: str) -> float:
    """A trial's score from its dev scores of rounds 1, 2, ...: the last, or for "dev_best" the highest."""
    return max(by_round) if rule == "dev_best" else by_round[-1]


def overrides(arm: str, setting: Mapping[str, Any]) -> dict[str, Any]:
    """The setting as replacements of an experiment's keys."""
    return {f"arms.{arm}.{parameter}": value for parameter, value in setting.items()}
