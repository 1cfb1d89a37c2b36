"""Judges as a random factor: a mean over several judges that holds for other judges like them.

Every judge scored the same prompts in the same seeds. With judges, seeds and clusters of prompts all random,

    y[j, s, c] = mu + judge_j + seed_s + cluster_c + (their interactions) + rest_jsc        J judges, S seeds, P clusters

the variance of the mean is that of the judges' mean scores over seeds and clusters (`two_way_random_effects`), in which every interaction
with judges counts once, plus Var(judge) / J. The mean squares of a balanced design estimate the latter without bias:

    Var(judge) / J  =  M_judges - M_judges_by_seeds - M_judges_by_clusters + M_rest        each divided by J S P
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import stdtridf  # scipy.stats would take a second to import

from apo_bench.stats.argument_checks import (
    ROUNDING,
    Array,
    as_floats,
    as_frame,
    check_columns,
    check_confidence,
    check_labels,
    check_number,
    check_one_cluster,
    label_codes,
)
from apo_bench.stats.confidence_intervals import score_ends
from apo_bench.stats.t_mixture import mixture_below, mixture_quantile
from apo_bench.stats.two_way_random_effects import TwoWayError, mean_test, paired_error, share_test, variance_terms

NEW_JUDGES = "new judges like these"


@dataclass(frozen=True)
class AcrossJudges:
    """A mean over `n_judges` judges and what may be claimed from it for others like them. NaN means "not available".

    `judge_sd` is the estimated SD of judges' true means, `lowest` and `highest` are the judges' own means. `these_low` to `these_high` is
    the interval for these very judges. `df` are those of the t distribution with the same critical value. `n_dropped` counts values that
    were left out because their prompt lacks one by some judge in some seed.
    """

    mean: float
    standard_error: float
    df: float
    ci_low: float
    ci_high: float
    p_value: float
    judge_sd: float
    lowest: float
    highest: float
    these_low: float
    these_high: float
    n_judges: int
    n_seeds: int
    n_clusters: int
    n_dropped: int
    scope: str
    test: str


def mean_across_judges(scores: pd.DataFrame, *, null: float = 0.0, confidence: float = 0.95) -> AcrossJudges:
    """Test a mean (of differences of scores, say) against `null`, judges, seeds and clusters of prompts all random.

    `scores`: judge, prompt_id, value (NaN missing) and, optionally, seed and cluster_id (default: each prompt its own). Only prompts with
    a value by every judge in every seed are used; a cluster's value is the mean over its prompts, clusters weigh alike. Variance: see the
    module's head, floored at the judges' part alone and at what it is for these very judges. Reference: a mixture of three t
    distributions, with J - 1 degrees of freedom for the judges' share of the variance, and the seeds' and clusters' as in `TwoWayError`.

    Few judges say little of others: with three, of which most of the variance comes, an interval is 4.3 standard errors to each side,
    with five 2.8. Two judges (or seeds, or clusters) give an interval, of 12.7 standard errors, and no p-value.
    Judges that agree on every value are no sample of anything: the test is that of these judges.
    Raises ValueError, naming the column, for fewer than two judges or clusters and rows that repeat.
    """
    null = check_number(null, "null", "mean_across_judges")
    return _across(scores, null, False, confidence, "mean_across_judges")


def win_rate_across_judges(comparisons: pd.DataFrame, *, confidence: float = 0.95) -> AcrossJudges:
    """As `mean_across_judges`, of values in [0, 1] against 1/2; the interval stays in [0, 1], as in `share_test`.

    Raises ValueError also for values outside [0, 1].
    """
    return _across(comparisons, 0.5, True, confidence, "win_rate_across_judges")


@dataclass(frozen=True)
class JudgesError:
    """The variance of a mean over judges, seeds and clusters, and the mixture that it refers to: shares and dfs, three of each.

    `judge_variance` is the estimate of Var(judge), not below 0.
    """

    variance: float
    judge_variance: float
    shares: tuple[Array, ...]
    dfs: tuple[Array, ...]


def judges_error(values: Array) -> JudgesError:
    """The error of the mean of values (J judges, S seeds, P clusters); J and P at least 2.

    The sides with the fewest degrees of freedom keep their whole terms, as in `combine_terms`; one with a single degree of freedom is
    taken as all of the variance.

    By hand, J = 3, S = 1, P = 2, values [[0, 2]], [[4, 4]], [[4, 10]]: judges' means 1, 4, 7, sample variance 9, 9/3 = 3. Judges by
    clusters: clusters' means 8/3, 16/3; residuals 1/3, -1/3; 4/3, -4/3; -5/3, 5/3; squares 84/9, mean square (84/9) / 2 = 14/3, over
    J P 7/9. Var(judge) / J = 3 - 7/9 = 20/9. The judges' mean scores are 8/3 and 16/3, sample variance 32/9, over P 16/9.
    V = 20/9 + 16/9 = 4.
    """
    n_judges, n_seeds, n_clusters = values.shape
    seeds_and_clusters = values.mean(0)
    (judges, by_clusters), clusters_df = variance_terms(values.mean(1)), np.asarray(n_clusters - 1.0)
    if n_seeds == 1:
        alone = seeds_and_clusters.var(ddof=1) / n_clusters
        these, added = TwoWayError(np.asarray(alone), np.zeros(()), clusters_df, clusters_df), judges - by_clusters
    else:
        these = paired_error(seeds_and_clusters)
        added = judges - by_clusters - variance_terms(values.mean(2))[1] + _residual_term(values)
    variance = float(max(these.variance + added, these.variance, judges))
    of_seeds = these.seed_share * these.variance
    sides = [(n_judges - 1.0, judges), (float(these.seed_df), of_seeds), (float(these.cluster_df), these.variance - of_seeds)]
    sides = sorted(sides, key=lambda side: side[0])
    left, shares = 1.0, []
    for place, (df, term) in enumerate(sides):
        takes_all = place == len(sides) - 1 or (df == 1 and term > ROUNDING * variance)
        shares.append(left if takes_all else min(left, float(term) / variance))
        left -= shares[-1]
    return JudgesError(
        variance, max(0.0, n_judges * float(added)), tuple(map(np.asarray, shares)), tuple(np.asarray(df) for df, _ in sides)
    )


def _residual_term(values: Array) -> float:
    """The three-way residual mean square over J S P."""
    residuals = values
    for axis in range(3):
        residuals = residuals - residuals.mean(axis, keepdims=True)
    return float((residuals**2).sum()) / math.prod(n - 1 for n in values.shape) / values.size


def _across(rows: pd.DataFrame, null: float, is_share: bool, confidence: float, caller: str) -> AcrossJudges:
    check_confidence(confidence, caller)
    values, n_dropped = _values(as_frame(rows), is_share, caller)
    return replace(across_judges_of(values, null, is_share=is_share, confidence=confidence, caller=caller), n_dropped=n_dropped)


def across_judges_of(
    values: Array, null: float, *, is_share: bool, confidence: float = 0.95, caller: str = "across_judges_of"
) -> AcrossJudges:
    """The mean of values (J, S, P) against `null`; with `is_share` they are in [0, 1], and so is the interval."""
    n_judges, n_seeds, n_clusters = values.shape
    scale, averaged = float(np.abs(values).max()), values.mean(0)
    if is_share:
        these = share_test(averaged, confidence=confidence, caller=caller)
    else:
        these = mean_test(averaged, null=null, confidence=confidence, caller=caller)
    judges = values.mean((1, 2))
    own = (float(judges.min()), float(judges.max()), these.ci_low, these.ci_high, n_judges, n_seeds, n_clusters, 0)
    if np.ptp(values, axis=0).max() <= ROUNDING * scale:
        scope, test = f"these judges, which agree on everything; {these.scope}", these.test
        return AcrossJudges(these.mean, these.standard_error, these.df, these.ci_low, these.ci_high, these.p_value, 0.0, *own, scope, test)
    if n_seeds > 1 and np.ptp(averaged, axis=0).max() <= ROUNDING * scale:  # several seeds that are one policy
        values = values.mean(1, keepdims=True)
    error, level = judges_error(values), (1 + confidence) / 2
    quantile, standard_error = float(mixture_quantile(error.shares, error.dfs, level)), math.sqrt(error.variance)
    at_null = standard_error
    low, high = these.mean - quantile * standard_error, these.mean + quantile * standard_error
    if is_share:
        ratio = error.variance / (these.mean * (1 - these.mean))
        (low, high), at_null = score_ends(these.mean, quantile**2 * ratio), math.sqrt(ratio / 4)
    p_value = 2 * float(mixture_below(error.shares, error.dfs, -abs(these.mean - null) / at_null))
    seeds = "seeds, " if values.shape[1] > 1 else ""
    test = f"t test over judges, {seeds}clusters of prompts"
    if two := [name for name, n in zip(("judges", "seeds", "clusters"), values.shape, strict=True) if n == 2]:
        p_value, test = math.nan, f"none: two {' and two '.join(two)} give an interval only"
    df = float(stdtridf(level, quantile))
    sd = math.sqrt(error.judge_variance)
    return AcrossJudges(these.mean, standard_error, df, low, high, p_value, sd, *own, f"{NEW_JUDGES}; {these.scope}", test)


def _values(rows: pd.DataFrame, is_share: bool, caller: str) -> tuple[Array, int]:
    """Means over the prompts of each cluster (J, S, P), and how many values were left out."""
    check_columns(rows, ["judge", "prompt_id", "value"], caller)
    named = [column for column in ("seed", "cluster_id") if column in rows]
    check_columns(rows, named, caller)
    keys = rows[["judge", "prompt_id", *named]].reset_index(drop=True)
    for column in keys:
        check_labels(keys[column], f"{caller}: column {column}")
    keys = keys.assign(seed=keys.get("seed", 0), cluster_id=keys.get("cluster_id", keys["prompt_id"]))
    check_one_cluster(keys, caller)
    value = as_floats(rows["value"], f"{caller}: column value")
    if np.isinf(value).any() or (is_share and ((value < 0) | (value > 1)).any()):
        raise ValueError(f"{caller}: column value: {'numbers in [0, 1]' if is_share else 'finite numbers'} are needed")
    if twice := int(keys[["judge", "seed", "prompt_id"]].duplicated().to_numpy().sum()):
        raise ValueError(f"{caller}: {twice} rows repeat the columns judge, seed, prompt_id")
    (judge, judges), (seed, seeds), (prompt, prompts) = (label_codes(keys[column]) for column in ("judge", "seed", "prompt_id"))
    grid = np.full((len(judges), len(seeds), len(prompts)), math.nan)
    grid[judge, seed, prompt] = value
    cluster_of = np.zeros(len(prompts), dtype=int)
    cluster_of[prompt] = label_codes(keys["cluster_id"])[0]
    whole = ~np.isnan(grid).any((0, 1))
    n_clusters = len(np.unique(cluster_of[whole]))
    if len(judges) < 2 or n_clusters < 2:
        problem = f"{len(judges)} judge(s) and {n_clusters} cluster(s) with a value by every judge in every seed"
        raise ValueError(f"{caller}: {problem}, at least 2 of each needed (columns judge and value)")
    codes = np.unique(cluster_of[whole], return_inverse=True)[1]
    membership = np.eye(n_clusters)[codes] / np.bincount(codes)  # (prompts, clusters)
    return grid[..., whole] @ membership, int((~np.isnan(value)).sum() - grid[..., whole].size)
