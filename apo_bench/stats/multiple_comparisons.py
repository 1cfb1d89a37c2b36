"""Families of contrasts: raw differences, effect sizes, and p-values corrected for multiple comparisons."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from apo_bench.stats.argument_checks import ROUNDING, Array, as_floats, check_arm, short_repr
from apo_bench.stats.score_layout import Layout, lay_out
from apo_bench.stats.two_way_random_effects import contrast_of

Correction = Literal["holm", "bh", "none"]


@dataclass(frozen=True)
class EffectSize:
    """How large a difference is: in SDs of the second arm (`hedges_g`, `sd`; `sd_of` describes the SD), and as P(a > b) on one prompt."""

    hedges_g: float
    sd: float
    sd_of: str
    p_superior: float


def contrasts(
    scores: pd.DataFrame,
    pairs: Iterable[tuple[str, str]],
    *,
    correction: Correction = "holm",
    paired_seeds: bool | None = None,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """One family of contrasts: a row per pair (a, b), the raw difference first, then effect sizes, p-values and adjusted p-values.

    `correction`: "holm" for declared primary contrasts (no false claim in the family), "bh" for secondary slices (share of false claims
    among all claims; Benjamini & Hochberg, JRSS B 57, 1995), "none". Untested contrasts have no p-value and do not count. Pairing is
    decided pair by pair. Raises ValueError as `contrast` does, and for a pair that is given twice.
    """
    if correction not in ("holm", "bh", "none"):
        raise ValueError(f"contrasts: correction is holm, bh or none, got {correction!r}")
    if not isinstance(pairs, Iterable):
        raise ValueError(f"contrasts: pairs are a list of two arms each, got {short_repr(pairs)}")
    checked_pairs, seen, rows = [_pair(result) for result in pairs], set(), []
    for a, b in checked_pairs:
        if frozenset((a, b)) in seen:
            raise ValueError(f"contrasts: arms {a!r} and {b!r} are compared twice")
        seen.add(frozenset((a, b)))
        layout = lay_out(scores, a, b, paired_seeds=paired_seeds, caller="contrasts")
        result = contrast_of(layout, confidence, caller=f"contrasts: arms {a!r} and {b!r}")
        rows.append({"a": a, "b": b, **asdict(result), **asdict(effect_size(layout, b))})
    table = pd.DataFrame(rows, columns=COLUMNS[:-2])
    adjust = {"holm": holm, "bh": benjamini_hochberg, "none": np.asarray}[correction]
    return table.assign(p_adjusted=adjust(table["p_value"].to_numpy(dtype=float)), correction=correction)[COLUMNS]


def _pair(pair: Any) -> tuple[str, str]:
    if isinstance(pair, str) or not isinstance(pair, Iterable) or len(arms := tuple(pair)) != 2:
        raise ValueError(f"contrasts: a pair names two arms, got {pair!r}")
    for arm in arms:
        check_arm(arm, "contrasts")
    return arms


COLUMNS = [
    "a", "b", "difference", "ci_low", "ci_high", "p_value", "hedges_g", "sd", "sd_of", "p_superior", "standard_error", "df",
    "n_seeds", "n_clusters", "n_dropped", "scope", "test", "p_adjusted", "correction",
]  # fmt: skip


def effect_size(layout: Layout, b: str = "b") -> EffectSize:
    """Effect sizes of a layout's first arm over its second, `b`.

    Hedges' g = J * difference / SD. The SD is that of arm b's scores over prompts within a seed (variances averaged over seeds, prompts
    weighing alike): the spread among responses of one policy; with one arm's SD, g is Glass's delta, corrected.
    J = 1 - 3/(4 df - 1), df = S (N - 1) (Hedges, J. Educational Statistics 6, 1981). Not the SD of differences, which would grow g
    merely by pairing. P(a > b): share of prompts on which a scores higher, ties 1/2, over the paired seeds, or every two seeds where
    they are not paired; clusters weigh alike, as in the difference. Scores of b that do not vary within a seed: g is NaN.
    """
    first, second = layout.prompts
    freedom = len(second) * (second.shape[1] - 1)
    with np.errstate(over="ignore"):
        sd = float(np.sqrt(second.var(1, ddof=1).mean()))
    difference = float(layout.differences.mean())
    over = first - second if layout.paired else first[:, None] - second[None]
    wins = (np.sign(over) + 1) / 2
    varies = ROUNDING * np.abs(second).max() < sd < np.inf
    g = (1 - 3 / (4 * freedom - 1)) * difference / sd if varies else np.nan
    return EffectSize(g, sd, f"{b}: over prompts within a seed", float((wins.reshape(-1, wins.shape[-1]).mean(0) * layout.weights).sum()))


def holm(p_values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Holm's step-down adjusted p-values. NaN stays NaN and does not count, as an untested hypothesis cannot be rejected.

    Sorted p_(1) <= ... <= p_(m): adjusted_(i) = max over j <= i of min(1, (m - j + 1) p_(j)). Holm, Scand. J. Stat. 6 (1979).
    Raises ValueError for anything but a list of numbers between 0 and 1 (or NaN).
    """
    return _adjusted("holm", p_values, lambda p: np.maximum.accumulate(np.arange(len(p), 0, -1) * p))


def benjamini_hochberg(p_values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Benjamini and Hochberg's adjusted p-values: at level alpha, on average at most a share alpha of claims is false. NaN as in `holm`.

    Sorted p_(1) <= ... <= p_(m): adjusted_(i) = min over j >= i of min(1, m p_(j) / j). Raises ValueError as `holm` does.
    """
    return _adjusted("benjamini_hochberg", p_values, lambda p: np.minimum.accumulate((len(p) / np.arange(1, len(p) + 1) * p)[::-1])[::-1])


def _adjusted(caller: str, p_values: npt.ArrayLike, of_sorted: Callable[[Array], Array]) -> npt.NDArray[np.float64]:
    p = as_floats(p_values, f"{caller}: a p-value")
    if p.ndim != 1 or ((p < 0) | (p > 1)).any():
        raise ValueError(f"{caller}: p-values are a list of numbers between 0 and 1 (or NaN)")
    adjusted, tested = np.full(p.shape, np.nan), np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    adjusted[order] = np.minimum(1.0, of_sorted(p[order])) if len(order) else []
    return adjusted
