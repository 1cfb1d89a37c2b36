"""How far the difference of two arms in a rerun is from that in the first run, and whether seeds explain it. Frames in, records out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit  # scipy.stats would take a second to import

from apo_bench.stats import contrast, effective_df


@dataclass(frozen=True)
class Drift:
    """How far the second run's difference is from the first's, its interval and two-sided p-value; NaN where `test` says none."""

    drift: float
    drift_low: float
    drift_high: float
    p_drift: float
    test: str


def drift(first: pd.DataFrame, second: pd.DataFrame, *, paired: bool) -> Drift:
    """The drift between two runs' differences on the prompts that both have: seed, prompt_id, cluster_id and value (a - b) of each.

    Two-way test over seeds (`paired`: those of one label go together) and clusters of prompts. What prompts do to the difference in both
    runs alike cancels, so that the error is that of the seeds, and of what seeds do on some prompts and not on others.
    Raises ValueError as `apo_bench.stats.contrast` does; too few seeds: a Drift without a p-value.
    """
    if paired:  # a seed that one run lost has nothing to be held against
        first, second = (one[one["seed"].isin(other["seed"])] for one, other in ((first, second), (second, first)))
    rows = pd.concat([first.assign(arm="first"), second.assign(arm="second")])
    found = contrast(rows, "second", "first", paired_seeds=paired)
    test = found.test if found.n_seeds > 1 else "none: one seed tells nothing of seed noise"
    p_value = math.nan if test.startswith("none") else found.p_value
    return Drift(found.difference, found.ci_low, found.ci_high, p_value, test)


def drift_of_contrasts(one: Mapping[str, float], other: Mapping[str, float], confidence: float = 0.95) -> Drift:
    """The drift from difference, standard_error, df and n_seeds of two contrasts, as of independent runs: variances add up, and so do the
    degrees of freedom by `effective_df`."""
    value = other["difference"] - one["difference"]
    if min(one["n_seeds"], other["n_seeds"]) < 3:
        return untested("fewer than three seeds in one of the runs", value)
    errors, dfs = ([float(side[name]) for side in (one, other)] for name in ("standard_error", "df"))
    if not (np.isfinite([value, *errors, *dfs]).all() and min(errors) > 0):
        return untested("no standard error in one of the runs", value)
    error, df = math.hypot(*errors), float(effective_df([errors[0] ** 2, errors[1] ** 2], dfs))
    half = error * float(stdtrit(df, (1 + confidence) / 2))
    return Drift(value, value - half, value + half, float(2 * stdtr(df, -abs(value) / error)), "t test, errors added")


def untested(why: str, value: float = math.nan) -> Drift:
    """A drift that is not tested, and why."""
    return Drift(value, math.nan, math.nan, math.nan, f"none: {why}")
