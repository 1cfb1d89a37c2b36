"""Margins: an arm is not worse by one, no different by one, or better on one scale while not worse on another."""

import math
from dataclasses import dataclass, replace
from numbers import Real

import numpy as np
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


@dataclass(frozen=True)
class Equivalence:
    """Whether arms differ by less than `margin` either way. `p_value` is the larger of the two one-sided p-values (TOST).

    `ci_low` and `ci_high` are the interval at 2 confidence - 1, which lies within the margins exactly where `holds`. NaN without a test.
    """

    contrast: Contrast
    margin: float
    ci_low: float
    ci_high: float
    p_value: float
    holds: bool
    scope: str
    test: str


def noninferiority(
    scores: pd.DataFrame,
    a: str,
    b: str,
    *,
    margin: float,
    higher_is_better: bool = True,
    paired_seeds: bool | None = None,
    confidence: float = 0.95,
) -> NonInferiority:
    """Is arm `a` not worse than arm `b` by `margin` (in the scores' unit, fixed before results are seen)?

    `higher_is_better=False`: the scores are losses, and the contrast is that of their negatives, so that above 0 means better.
    One-sided two-way t test of a - b > -margin at level (1 - confidence) / 2: where there is a test, the same as asking whether the
    two-sided interval of `contrast` lies wholly above -margin. Raises ValueError as `contrast` does, and for a margin that is not positive.
    """
    layout = _toward_better(lay_out(scores, a, b, paired_seeds=paired_seeds, caller="noninferiority"), higher_is_better, "noninferiority")
    return _not_worse(layout, margin, confidence, f"noninferiority: arms {a!r} and {b!r}")


def equivalence(
    scores: pd.DataFrame, a: str, b: str, *, margin: float, paired_seeds: bool | None = None, confidence: float = 0.95
) -> Equivalence:
    """Do arms `a` and `b` differ by less than `margin` either way (in the scores' unit, fixed before results are seen)?

    Two one-sided two-way t tests at level 1 - confidence (Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987): of a - b > -margin and of
    a - b < margin; both must reject, so no correction is needed. That no difference was shown is no such claim. Raises ValueError as
    `contrast` does, and for a margin that is not positive or a confidence of 1/2 or less.
    """
    layout = lay_out(scores, a, b, paired_seeds=paired_seeds, caller="equivalence")
    caller = f"equivalence: arms {a!r} and {b!r}"
    _check_margin(margin, caller)
    difference = contrast_of(layout, confidence, caller=caller)
    if confidence <= 0.5:
        raise ValueError(f"{caller}: confidence is above 0.5, got {confidence}")
    if math.isnan(difference.p_value):
        return Equivalence(difference, margin, math.nan, math.nan, math.nan, False, difference.scope, difference.test)
    error = estimate_difference(layout, caller).error
    centre, scale = difference.difference, difference.standard_error
    p_value = max(float(error.below((sign * centre - margin) / scale)) for sign in (1, -1))
    half = scale * float(error.quantile(confidence))
    test = f"two one-sided tests against {margin:g} either way: {difference.test}"
    holds = p_value < 1 - confidence
    return Equivalence(difference, margin, centre - half, centre + half, p_value, holds, difference.scope, test)


def superior_and_noninferior(
    gained: pd.DataFrame,
    kept: pd.DataFrame,
    a: str,
    b: str,
    *,
    margin: float,
    higher_is_better: tuple[bool, bool] = (True, True),
    paired_seeds: bool | None = None,
    confidence: float = 0.95,
) -> SuperiorAndNonInferior:
    """Is arm `a` better than `b` on the scores `gained` (say, helpfulness) and not worse by `margin` on `kept` (say, harmlessness)?

    Intersection-union test (Berger, Technometrics 24, 1982): both one-sided tests must reject at level (1 - confidence) / 2, and no
    correction is needed, since a single true null keeps the larger p-value large. `higher_is_better`: of gained and of kept.
    Raises ValueError as `contrast` does.
    """
    better, kept_up = (f"superior_and_noninferior: {name}" for name in ("gained", "kept"))
    if not isinstance(higher_is_better, tuple) or len(higher_is_better) != 2:
        raise ValueError(f"superior_and_noninferior: higher_is_better is a pair, of gained and of kept, got {short_repr(higher_is_better)}")
    more = _toward_better(lay_out(gained, a, b, paired_seeds=paired_seeds, caller=better), higher_is_better[0], better)
    same = _toward_better(lay_out(kept, a, b, paired_seeds=paired_seeds, caller=kept_up), higher_is_better[1], kept_up)
    safe = _not_worse(same, margin, confidence, f"{kept_up}: arms {a!r} and {b!r}")
    superior = contrast_of(more, confidence, caller=f"{better}: arms {a!r} and {b!r}")
    gain = _one_sided(more, 0.0, superior, better)
    p_value = math.nan if math.isnan(gain + safe.p_value) else max(gain, safe.p_value)
    untested = [claim.test for claim in (superior, safe) if claim.test.startswith("none")]
    test = untested[0] if untested else f"intersection-union of: one-sided {superior.test} against no gain; {safe.test}"
    scope = superior.scope if superior.scope == safe.scope else f"gained: {superior.scope}; kept: {safe.scope}"
    return SuperiorAndNonInferior(superior, safe, p_value, p_value < (1 - confidence) / 2, scope, test)


def _not_worse(layout: Layout, margin: float, confidence: float, caller: str) -> NonInferiority:
    _check_margin(margin, caller)
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


def _check_margin(margin: float, caller: str) -> None:
    if not isinstance(margin, Real) or isinstance(margin, bool) or not 0 < margin < math.inf:
        raise ValueError(f"{caller}: margin is a positive number, got {short_repr(margin)}")


def _toward_better(layout: Layout, higher_is_better: bool, caller: str) -> Layout:
    """The layout of scores of which more is better: as it is, or negated."""
    if not isinstance(higher_is_better, bool | np.bool_):
        raise ValueError(f"{caller}: higher_is_better is True or False, got {short_repr(higher_is_better)}")
    first, second = layout.prompts
    return layout if higher_is_better else replace(layout, first=-layout.first, second=-layout.second, prompts=(-first, -second))
