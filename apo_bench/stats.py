"""Valid claims about arms: frames and arrays in, frozen results out, no I/O.

A claim about "the method" is a claim about seeds that were not run and prompts that were not asked. Scores share both: all
prompts of one seed come from one trained policy, all seeds answer the same prompts. `contrast` treats both as random.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import ndtri, stdtr, stdtrit  # scipy.stats would take a second to import

Array = npt.NDArray[Any]
NEW_SEEDS_AND_PROMPTS = "new seeds and new prompts; base policy, world and gold models as they are"
THESE_CHECKPOINTS = "these checkpoints only"


@dataclass(frozen=True)
class Contrast:
    """The difference of two arms and what may be claimed from it.

    `scope` says in words what the interval and p-value generalise to, `test` which test made them ("none: ..." where none was).
    `n_seeds` is the smaller arm's count, `n_dropped` the rows of both arms that were left out because their prompt lacks a row in
    some seed of either arm. NaN means "not available", never zero.
    """

    difference: float
    standard_error: float
    df: float
    ci_low: float
    ci_high: float
    p_value: float
    n_seeds: int
    n_clusters: int
    scope: str
    test: str
    n_dropped: int = 0


def contrast(scores: pd.DataFrame, a: str, b: str, *, paired_seeds: bool | None = None, confidence: float = 0.95) -> Contrast:
    """Mean score of arm `a` minus arm `b`, tested over seeds and clusters of prompts (two-way crossed random effects).

    `scores` is long: arm, seed, prompt_id, value and, optionally, cluster_id (default: each prompt is its own cluster). Only prompts
    with a row in every seed of both arms are used, so that the design is balanced; the others' rows are counted in `n_dropped`.
    A cluster's value is the mean over its prompts, and clusters weigh alike. `paired_seeds=None` decides by the labels: the same
    seeds in both arms are paired, disjoint ones are not.

    Paired by seed. D[s, c] = a - b for S seeds and P clusters is modelled as mu + seed_s + cluster_c + rest_sc, variances q, k, r, so
    Var(mean D) = q/S + k/P + r/(SP). The seed means vary by q + r/P (sample variance A), the cluster means by k + r/S (B), and the
    residual mean square C estimates r. A/S + B/P = q/S + k/P + 2r/(SP) counts the residual twice, hence

        V = A/S + B/P - C/(SP),    df = V^2 / ((A/S)^2/(S-1) + (B/P)^2/(P-1) + (C/(SP))^2/((S-1)(P-1)))    (Satterthwaite)

    V is floored at its largest positive term: the subtraction may not make the result surer than seeds alone or clusters alone would.
    Where neither seed means nor cluster means vary at all, only the residual term is left: V = C/(SP).
    Without seed variance that is conservative (about 2 % rejections at a nominal 5 % with three seeds); with three seeds and
    seed and cluster terms of like size Satterthwaite's df is too generous (up to 8 %; benchmarks/validate_contrast.py).

    By hand, S = 2, P = 3, D = [[1, 2, 6], [3, 2, 4]]: mean 3; seed means 3, 3, A = 0; cluster means 2, 2, 5, B = 3; residuals
    +-(1, 0, 1), sum of squares 4, C = 4/2 = 2; V = 0 + 1 - 1/3 = 2/3, floored at 1; df = 1 / (1/2 + (1/9)/2) = 9/5.

    Not paired. With arm-wise seed variances Aa, Ab and residual mean squares Ca, Cb, and B the variance of the cluster differences:
    V = Aa/Sa + Ab/Sb + B/P - Ca/(Sa P) - Cb/(Sb P), each term with its own degrees of freedom.

    One seed an arm: t test over clusters, scope "these checkpoints only". Two: an interval and no p-value. Where every difference is
    equal there is nothing to estimate an error from: standard_error 0, no df, interval or p-value (NaN).
    Raises ValueError, naming arm and column, for rows that permit no honest number.
    """
    if a == b:
        raise ValueError(f"contrast: arm {a!r} cannot be compared with itself")
    if not 0 < confidence < 1:
        raise ValueError(f"contrast: confidence is between 0 and 1, got {confidence}")
    rows = {arm: _arm_rows(scores, arm) for arm in (a, b)}
    paired = _pairing(rows, paired_seeds)
    first, second, n_dropped = _balanced(rows)
    n_seeds, n_clusters = min(len(first), len(second)), first.shape[1]
    if 1 in (len(first), len(second)) and len(first) != len(second):
        lone, other = (a, b) if len(first) == 1 else (b, a)
        raise ValueError(f"contrast: arm {lone!r} has one seed (column seed) and arm {other!r} several; run more seeds or pair them")

    differences = first - second if paired else first.mean(0, keepdims=True) - second.mean(0, keepdims=True)
    difference = float(differences.mean())
    sizes = {"n_seeds": n_seeds, "n_clusters": n_clusters, "n_dropped": n_dropped}
    scale = max(np.abs(first).max(), np.abs(second).max())
    constant = np.ptp(differences) <= 1e-12 * scale and (paired or max(np.ptp(first.mean(1)), np.ptp(second.mean(1))) <= 1e-12 * scale)
    if constant:
        nan = math.nan
        scope = THESE_CHECKPOINTS if n_seeds == 1 else NEW_SEEDS_AND_PROMPTS
        return Contrast(difference, 0.0, nan, nan, nan, nan, scope=scope, test="none: every difference is equal", **sizes)

    if n_seeds == 1:
        variance, df = float((first - second).var(ddof=1)) / n_clusters, float(n_clusters - 1)
        scope, test = THESE_CHECKPOINTS, "paired t test over clusters of prompts"
    else:
        variance, df = (float(x) for x in (paired_variance(differences) if paired else unpaired_variance(first, second)))
        scope = NEW_SEEDS_AND_PROMPTS
        test = f"two-way t test over seeds ({'paired' if paired else 'not paired'}) and clusters of prompts"
    if not 0 < variance < math.inf:
        raise ValueError(f"contrast: arms {a!r} and {b!r}: column value is too small or too large for floating-point variances")
    error = math.sqrt(variance)
    half = error * float(stdtrit(df, (1 + confidence) / 2))
    if n_seeds == 2:
        p_value, test = math.nan, "none: two seeds give an interval only"
    else:
        p_value = float(2 * stdtr(df, -abs(difference) / error))
    return Contrast(difference, error, df, difference - half, difference + half, p_value, scope=scope, test=test, **sizes)


def paired_variance(differences: Array) -> tuple[Array, Array]:
    """Variance of the mean of D (..., S, P) and its degrees of freedom, both (...); derived in `contrast`. S and P at least 2."""
    seed, residual = _arm_terms(differences)
    n_clusters = differences.shape[-1]
    cluster = differences.mean(-2).var(-1, ddof=1) / n_clusters, n_clusters - 1
    return _satterthwaite([seed, cluster], [residual])


def unpaired_variance(a: Array, b: Array) -> tuple[Array, Array]:
    """Variance of mean(a) - mean(b) for a (..., Sa, P) and b (..., Sb, P) of unrelated seeds, and its degrees of freedom."""
    (seed_a, residual_a), (seed_b, residual_b) = _arm_terms(a), _arm_terms(b)
    n_clusters = a.shape[-1]
    cluster = (a.mean(-2) - b.mean(-2)).var(-1, ddof=1) / n_clusters, n_clusters - 1
    return _satterthwaite([seed_a, seed_b, cluster], [residual_a, residual_b])


Term = tuple[Array, int]  # a variance of the mean, and its degrees of freedom


def _arm_terms(values: Array) -> tuple[Term, Term]:
    """A/S and C/(SP) of values (..., S, P)."""
    n_seeds, n_clusters = values.shape[-2:]
    seed_means, cluster_means = values.mean(-1, keepdims=True), values.mean(-2, keepdims=True)
    residuals = values - seed_means - cluster_means + values.mean((-1, -2), keepdims=True)
    df = (n_seeds - 1) * (n_clusters - 1)
    mean_square = (residuals**2).sum((-1, -2)) / df
    seed = seed_means[..., 0].var(-1, ddof=1) / n_seeds
    return (seed, n_seeds - 1), (mean_square / (n_seeds * n_clusters), df)


def _satterthwaite(added: Sequence[Term], subtracted: Sequence[Term]) -> tuple[Array, Array]:
    largest, residual = np.max([term for term, _ in added], axis=0), np.sum([term for term, _ in subtracted], axis=0)
    total = np.sum([term for term, _ in added], axis=0) - residual
    variance = np.where(largest > 1e-12 * residual, np.maximum(total, largest), residual)  # the rest may vary where no mean does
    with np.errstate(invalid="ignore"):  # no variation at all: df is NaN
        return variance, variance**2 / sum(term**2 / df for term, df in [*added, *subtracted])


def _arm_rows(scores: pd.DataFrame, arm: str) -> pd.DataFrame:
    for column in ("arm", "seed", "prompt_id", "value"):
        if column not in scores:
            raise ValueError(f"contrast: arm {arm!r}: column {column} is missing")
    columns = ["seed", "prompt_id", *(["cluster_id"] if "cluster_id" in scores else [])]
    rows = scores.loc[scores["arm"] == arm, [*columns, "value"]]
    if rows.empty:
        raise ValueError(f"contrast: arm {arm!r} has no rows (column arm)")
    for column in columns:
        if missing := int(rows[column].isna().to_numpy().sum()):
            raise ValueError(f"contrast: arm {arm!r}: column {column} is empty in {missing} rows")
    try:
        values = rows["value"].to_numpy(dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"contrast: arm {arm!r}: column value is not numeric") from None
    if bad := int((~np.isfinite(values)).sum()):
        raise ValueError(f"contrast: arm {arm!r}: column value is NaN or infinite in {bad} rows")
    if twice := int(rows[["seed", "prompt_id"]].duplicated().to_numpy().sum()):
        raise ValueError(f"contrast: arm {arm!r}: {twice} rows repeat a seed and prompt (column prompt_id)")
    return rows.assign(value=values)


def _pairing(rows: dict[str, pd.DataFrame], asked: bool | None) -> bool:
    (a, first), (b, second) = ((arm, set(frame["seed"])) for arm, frame in rows.items())
    if asked is False or (asked is None and not first & second):
        return False
    lonely = [(arm, other, seed) for arm, other, seeds in ((a, b, first - second), (b, a, second - first)) for seed in sorted(seeds)]
    if lonely:
        arm, other, seed = lonely[0]
        raise ValueError(f"contrast: arm {arm!r} has seed {seed!r} (column seed) and arm {other!r} has not: nothing to pair it with")
    return True


def _balanced(rows: dict[str, pd.DataFrame]) -> tuple[Array, Array, int]:
    """Both arms as (seeds, clusters), from the prompts that have a row in every seed of both; and how many rows that left out."""
    together = pd.concat(rows.values())
    column = "cluster_id" if "cluster_id" in together else "prompt_id"
    problem = f"contrast: arms {' and '.join(repr(arm) for arm in rows)}: "
    prompts, prompt_names = pd.factorize(together["prompt_id"].to_numpy())
    clusters, cluster_names = pd.factorize(together[column].to_numpy())
    cluster_of = np.zeros(len(prompt_names), dtype=int)
    cluster_of[prompts] = clusters
    if (cluster_of[prompts] != clusters).any():
        raise ValueError(f"{problem}a prompt is in two clusters (column cluster_id)")

    matrices, start = [], 0
    for frame in rows.values():
        seeds, seed_names = pd.factorize(frame["seed"].to_numpy(), sort=True)
        matrix = np.full((len(seed_names), len(prompt_names)), np.nan)
        matrix[seeds, prompts[start : start + len(frame)]] = frame["value"].to_numpy()
        matrices.append(matrix)
        start += len(frame)
    whole = ~np.isnan(np.concatenate(matrices)).any(0)  # (prompts,)
    sizes = np.bincount(cluster_of[whole], minlength=len(cluster_names))
    codes, seen = cluster_of[whole], sizes > 0
    if seen.sum() < 2:
        raise ValueError(f"{problem}{seen.sum()} cluster(s) (column {column}) with rows in every seed of both, at least 2 needed")
    first, second = (
        np.stack([np.bincount(codes, weights=row, minlength=len(sizes)) for row in matrix[:, whole]])[:, seen] / sizes[seen]
        for matrix in matrices
    )
    n_seeds = len(matrices[0]) + len(matrices[1])
    return first, second, len(together) - n_seeds * int(whole.sum())


def holm(p_values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Holm's step-down adjusted p-values. NaN stays NaN and does not count: a hypothesis that is not tested cannot be rejected.

    Sorted p_(1) <= ... <= p_(m): adjusted_(i) = max over j <= i of min(1, (m - j + 1) p_(j)). Holm, Scand. J. Stat. 6 (1979).
    """
    p = np.asarray(p_values, dtype=float)
    if p.ndim != 1 or ((p < 0) | (p > 1)).any():
        raise ValueError("holm: a list of p-values between 0 and 1 (or NaN)")
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = np.arange(len(order), 0, -1) * p[order]
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps)) if len(order) else []
    return adjusted


def clustered_mean(values: npt.ArrayLike, clusters: Sequence[Any] | Array, confidence: float = 0.95) -> tuple[float, float, float, int]:
    """Mean of `values` with a cluster-robust t interval: (mean, low, high, number of clusters).

    With n values m apart in P clusters: Var = P/(P-1) * sum over clusters of (sum of (x - mean) in it)^2 / n^2, P-1 degrees of freedom.
    All values 0 or all 1 leave no variance: the interval is then Wilson's with n = P. Other constants and a single cluster have
    no interval (NaN). Raises ValueError for no values, NaN or infinite ones, or lengths that differ.
    """
    x = np.asarray(values, dtype=float)
    codes, labels = pd.factorize(np.asarray(clusters), use_na_sentinel=False)
    if x.ndim != 1 or len(x) == 0 or len(x) != len(codes):
        raise ValueError(f"clustered_mean: {x.size} values and {len(codes)} clusters; give one cluster for each of at least one value")
    if not np.isfinite(x).all():
        raise ValueError("clustered_mean: a value is NaN or infinite")
    mean, n_clusters = float(x.mean()), len(labels)
    if np.ptp(x) == 0 and mean in (0.0, 1.0):
        return mean, *wilson(n_clusters * mean, n_clusters, confidence), n_clusters
    if n_clusters < 2 or np.ptp(x) == 0:
        return mean, math.nan, math.nan, n_clusters
    sums = np.bincount(codes, weights=x - mean)
    error = math.sqrt(n_clusters / (n_clusters - 1) * float((sums**2).sum())) / len(x)
    half = error * float(stdtrit(n_clusters - 1, (1 + confidence) / 2))
    return mean, mean - half, mean + half, n_clusters


def wilson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share of n independent trials: the p with |share - p| <= z sqrt(p (1 - p) / n)."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"wilson: {successes} successes of {n}")
    z, share = float(ndtri((1 + confidence) / 2)), successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)  # beyond only by rounding


@dataclass(frozen=True)
class Bin:
    """Items whose confidence falls between two edges: mean confidence, share correct, and how many."""

    low: float
    high: float
    confidence: float
    accuracy: float
    n: int


def ece(confidence: npt.ArrayLike, correct: npt.ArrayLike, bins: int = 10) -> float:
    """Expected calibration error: sum over bins of (share of items) * |mean correct - mean confidence|.

    Bins and errors as in `reliability`. Guo et al., arXiv:1706.04599, Eq. 3.
    """
    filled = reliability(confidence, correct, bins)
    return sum(one.n * abs(one.accuracy - one.confidence) for one in filled) / sum(one.n for one in filled)


def reliability(confidence: npt.ArrayLike, correct: npt.ArrayLike, bins: int = 10) -> tuple[Bin, ...]:
    """The reliability curve: accuracy by confidence, over the bins that hold items.

    `bins` equal-width bins on [0, 1], each closed below and open above, the last closed on both sides.
    Raises ValueError for no items, lengths that differ, or a confidence outside [0, 1].
    """
    p, hit = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=float)
    if p.ndim != 1 or len(p) == 0 or p.shape != hit.shape or bins < 1:
        raise ValueError(
            f"reliability: {p.shape} confidences, {hit.shape} outcomes and {bins} bins; give two equally long lists and at least one bin"
        )
    if not ((p >= 0) & (p <= 1)).all() or not np.isin(hit, (0, 1)).all():
        raise ValueError("reliability: a confidence is outside [0, 1] or an outcome is neither 0 nor 1")
    place = np.minimum((p * bins).astype(int), bins - 1)
    n, sums, hits = (np.bincount(place, weights=weights, minlength=bins) for weights in (None, p, hit))
    return tuple(
        Bin(one / bins, (one + 1) / bins, float(sums[one] / n[one]), float(hits[one] / n[one]), int(n[one])) for one in np.flatnonzero(n)
    )
