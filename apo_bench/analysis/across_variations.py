"""How far an experiment's contrasts differ between its variations: mean, SD and test over them. No model, no torch.

Within one variation, world, base policy and gold models are fixed; here they are what varies.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import stdtr, stdtrit  # scipy.stats would take a second to import

from apo_bench.analysis.results import UNINFORMATIVE
from apo_bench.config.schema import JUDGE
from apo_bench.judging.audit_report import UNINFORMATIVE as UNINFORMATIVE_JUDGE
from apo_bench.stats import holm

CHOSEN = "none: these levels were chosen, and stand for no others"
NEW = {  # what the levels of a factor are draws from; whatever does not vary with it is the same in all of them
    "world": "new worlds",
    "initial_policy": "new base policies; world, prompts and gold data as they are",
    "gold": "new gold models; world, prompts and policies as they are",
}
KEY = ["arm_a", "arm_b", "axis", "scorer", "at"]  # what is one contrast in every variation
NUMBERS = ["difference", "ci_low", "ci_high"]  # a variation's own estimate
READ = [*KEY, "family", *NUMBERS, "scope", "test"]
DOUBTS = (UNINFORMATIVE, f"none: {UNINFORMATIVE_JUDGE}")  # how a scope, or a test, begins where no claim may rest on a scorer


@dataclass(frozen=True)
class OverLevels:
    """A mean over levels and what may be claimed of levels that were not run. NaN: not available; `test` gives the reason."""

    mean: float
    sd: float
    ci_low: float
    ci_high: float
    p_value: float
    test: str


def over_levels(values: npt.ArrayLike, confidence: float = 0.95) -> OverLevels:
    """Mean, sample SD and t interval of differences (K,), each level one draw; NaN ones do not count.

    Three levels or more are tested against a mean of 0, two give an interval and no p-value, one gives neither, nor an SD.
    By hand, 1, 2, 3: mean 2, SD 1, error 1/sqrt(3), 2 degrees of freedom, t = sqrt(12). For 2 degrees of freedom
    P(|T| < t) = t / sqrt(2 + t^2), so p = 1 - sqrt(12/14) = 0.0742, and the 95 % point is 4.3027: from -0.484 to 4.484.
    """
    x = np.asarray(values, dtype=float)
    x = x[~np.isnan(x)]
    nan = math.nan
    if len(x) < 2:
        return OverLevels(float(x[0]) if len(x) else nan, nan, nan, nan, nan, f"none: {'one level only' if len(x) else 'no result'}")
    mean, sd = float(x.mean()), float(x.std(ddof=1))
    if np.ptp(x) <= 1e-12 * np.abs(x).max():
        return OverLevels(mean, 0.0, nan, nan, nan, "none: every level gives the same difference")
    error, df = sd / math.sqrt(len(x)), len(x) - 1
    half = error * float(stdtrit(df, (1 + confidence) / 2))
    if len(x) == 2:
        return OverLevels(mean, sd, mean - half, mean + half, nan, "none: two levels give an interval only")
    p_value = float(2 * stdtr(df, -abs(mean) / error))
    return OverLevels(mean, sd, mean - half, mean + half, p_value, f"t test over {len(x)} levels, each one draw")


def by_level(differences: Mapping[str, float]) -> dict[str, float]:
    """For each factor of labels such as "world=1,gold=0": the sample SD, over its levels, of the means over the other factors.

    NaN where a variation is missing: a mean over other levels than its neighbour's would differ by those too.
    By hand, worlds 0, 1 by golds 0, 1, differences 1, 2 and 3, 6: world means 1.5 and 4.5, SD 3/sqrt(2); gold means 2 and 4, SD sqrt(2).
    """
    values = pd.Series([*differences.values()])
    levels = pd.DataFrame([dict(part.split("=", 1) for part in label.split(",")) for label in differences])
    means = {factor: values.groupby(of).agg(lambda level: level.mean(skipna=False)) for factor, of in levels.items()}
    return {str(factor): float(of_levels.std(skipna=False)) for factor, of_levels in means.items()}


def spread(contrasts: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """A row for each contrast x axis x scorer (x `at`): its difference in each variation, and mean, SD and test over them.

    `contrasts` has the columns READ and `variation`. One factor: a t interval over its levels, Holm-adjusted over the primary family.
    Several: their levels are crossed, so that the variations are no independent draws; SDs by factor and no interval or p-value.
    Nor is there one where a factor is a setting whose levels somebody chose, or where gold, or a judge, is uninformative in a variation,
    as within a run.
    """
    factors = [part.split("=", 1)[0] for part in labels[0].split(",")]
    rows = []
    for key, group in contrasts.groupby(KEY, sort=False):
        cells = group.set_index("variation")[NUMBERS].reindex(list(labels)).astype(float)
        values = cells["difference"]
        numbers = asdict(over_levels(values))
        is_chosen = not NEW.keys() >= set(factors)
        scope = "these levels" if is_chosen else NEW[factors[0]]
        reasons = group[["scope", "test"]].fillna("").astype(str)
        n_doubtful = int((reasons["scope"].str.startswith(DOUBTS) | reasons["test"].str.startswith(DOUBTS)).sum())
        if is_chosen:
            numbers |= {"ci_low": math.nan, "ci_high": math.nan, "p_value": math.nan, "test": CHOSEN}
        elif len(factors) > 1:
            crossed, scope = f"none: {' and '.join(factors)} are crossed, so the variations are no independent draws", "these levels"
            numbers |= {"ci_low": math.nan, "ci_high": math.nan, "p_value": math.nan, "test": crossed}
        elif n_doubtful:
            who = UNINFORMATIVE_JUDGE if str(group["scorer"].iloc[0]).startswith(JUDGE) else UNINFORMATIVE
            numbers |= {"p_value": math.nan, "test": f"none: {who} in {n_doubtful} of {len(labels)} variations"}
        counts = {"n_variations": values.notna(), "n_missing": values.isna(), "n_positive": values > 0, "n_negative": values < 0}
        counts |= {"n_above": cells["ci_low"] > 0, "n_below": cells["ci_high"] < 0}  # whose own interval lies above 0, or below
        row = dict(zip(KEY, key, strict=True)) | {"family": group["family"].iloc[0], **numbers, "scope": scope}
        row |= {name: int(which.sum()) for name, which in counts.items()}
        if len(factors) > 1:
            row |= {f"sd_{factor}": sd for factor, sd in by_level({str(label): value for label, value in values.items()}).items()}
        row |= {f"{column}.{label}": cells.loc[label, column] for label in labels for column in NUMBERS}
        rows.append(row)
    table = pd.DataFrame(rows)
    if len(table):
        adjusted = holm(table["p_value"].where(table["family"] == "primary"))
        table.insert(int(table.columns.get_loc("p_value")) + 1, "p_adjusted", adjusted)  # pyright: ignore[reportArgumentType]
    return table
