"""Equal tuning for every arm: which settings are tried, and which is taken. Nothing is run here.

Every arm gets the same number of trials over its own grid, on seeds of their own, judged on dev prompts: by the referee's score or, in a
simulated world that no result is reported for, by the ground truth.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from apo_bench.types import identity

TUNING = "_tune."  # before an arm's name in tables: its trials
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


def best(scores: Sequence[float], kl: Sequence[float], max_kl: float | None = None) -> int:
    """The trial with the highest score, among equals the first, of those within `max_kl` nats of the initial policy.

    NaN, a trial that failed or whose distance is not known where it matters, is never taken. Raises ValueError if none is left.
    """
    finished = [place for place, score in enumerate(scores) if not math.isnan(score)]
    if not finished:
        raise ValueError("every trial failed")
    near = [place for place in finished if max_kl is None or kl[place] <= max_kl]
    if not near:
        raise ValueError(f"no trial ended within {max_kl:g} nats of the initial policy")
    return max(near, key=lambda place: scores[place])


def taken_round(dev_scores: Sequence[float], rule: str) -> int:
    """Which of rounds 1, 2, ... (from 0) a trial is judged by: the last, or for "dev_best" the one of the highest dev score."""
    return max(range(len(dev_scores)), key=lambda place: dev_scores[place]) if rule == "dev_best" else len(dev_scores) - 1


def overrides(arm: str, setting: Mapping[str, Any]) -> dict[str, Any]:
    """The setting as replacements of an experiment's keys."""
    return {f"arms.{arm}.{parameter}": value for parameter, value in setting.items()}
