"""Non-inferiority: an arm is not worse by a margin, or better on one scale while not worse on another."""

import math
from dataclasses import dataclass
from numbers import Real

import pandas as pd

from apo_bench.stats.argument_checks import short_repr
from apo_bench.stats.score_layout import Layout, lay_out
from apo_bench.stats.two_way_random_effects import Contrast, contrast_of, estimate_difference


@dataclass(frozen=True)
class NonInferiority:
    """Whether arm a is not worse than b by `margin` or more: `holds` where the contrast was tested and its interval lies above -margin.

    `p_value` is one-sided, against "a - b <= -margin"; `holds` means that it is below (1 - confidence) / 2. Without a test (two seeds,
    no variation) it is NaN and `holds` is False.
    """

    contrast: Contrast
    margin: float
    p_value: float
    holds: bool
    scope: str
    test: str


@dataclass(frozen=True)
class SuperiorAndNonInferior:
    """Whether arm a is better on one scale and not worse on another. `p_value` is the larger of the two one-sided p-values."""

    superior: Contrast
    noninferior: NonInferiority
    p_value: float
    holds: bool
    scope: str
    test: str


def noninferiority(
    scores: pd.DataFrame, a: str, b: str, *, margin: float, paired_seeds: bool | None = None, confidence: float = 0.95
) -> NonInferiority:
    """Is arm `a` not worse than arm `b` by `margin` (in the scores' unit, higher is better, fixed before results are seen)?

    One-sided two-way t test of a - b > -margin at level (1 - confidence) / 2: where there is a test, the same as asking whether the
    two-sided interval of `contrast` lies wholly above -margin. Raises ValueError as `contrast` does, and for a margin that is not positive.
    """
    layout = lay_out(scores, a, b, paired_seeds=paired_seeds, caller="noninferiority")
    return _not_worse(layout, margin, confidence, f"noninferiority: arms {a!r} and {b!r}")


def superior_and_noninferior(
    gained: pd.DataFrame, kept: pd.DataFrame, a: str, b: str, *, margin: float, paired_seeds: bool | None = None, confidence: float = 0.95
) -> SuperiorAndNonInferior:
    """Is arm `a` better than `b` on the scores `gained` (say, helpfulness) and not worse by `margin` on `kept` (say, harmlessness)?

    Intersection-union test (Berger, Technometrics 24, 1982): both one-sided tests must reject at level (1 - confidence) / 2, and no
    correction is needed, since a single true null keeps the larger p-value large. Raises ValueError as `contrast` does.
    """
    better, kept_up = (f"superior_and_noninferior: {name}" for name in ("gained", "kept"))
    more = lay_out(gained, a, b, paired_seeds=paired_seeds, caller=better)
    same = lay_out(kept, a, b, paired_seeds=paired_seeds, caller=kept_up)
    safe = _not_worse(same, margin, confidence, f"{kept_up}: arms {a!r} and {b!r}")
    superior = contrast_of(more, confidence, caller=f"{better}: arms {a!r} and {b!r}")
    gain = _one_sided(more, 0.0, superior, better)
    p_value = math.nan if math.isnan(gain + safe.p_value) else max(gain, safe.p_value)
    untested = [claim.test for claim in (superior, safe) if claim.test.startswith("none")]
    test = untested[0] if untested else f"intersection-union of: one-sided {superior.test} against no gain; {safe.test}"
    scope = superior.scope if superior.scope == safe.scope else f"gained: {superior.scope}; kept: {safe.scope}"
    return SuperiorAndNonInferior(superior, safe, p_value, p_value < (1 - confidence) / 2, scope, test)


def _not_worse(layout: Layout, margin: float, confidence: float, caller: str) -> NonInferiority:
    if not isinstance(margin, Real) or isinstance(margin, bool) or not 0 < margin < math.inf:
        raise ValueError(f"{caller}: margin is a positive number, got {short_repr(margin)}")
    difference = contrast_of(layout, confidence, caller=caller)
    p_value = _one_sided(layout, -margin, difference, caller)
    test = difference.test if math.isnan(p_value) else f"one-sided {difference.test} against a loss of {margin:g}"
    return NonInferiority(difference, margin, p_value, p_value < (1 - confidence) / 2, difference.scope, test)


def _one_sided(layout: Layout, null: float, difference: Contrast, caller: str) -> float:
    """P-value against "the difference is at most `null`"; NaN where the contrast has none."""
    if math.isnan(difference.p_value):
        return math.nan
    error = estimate_difference(layout, caller).error
    return float(error.below((null - difference.difference) / difference.standard_error))
