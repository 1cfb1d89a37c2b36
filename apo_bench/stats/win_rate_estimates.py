"""Win rates: of independent preferences, and of a judge's verdicts on two arms, tested over seeds and clusters of prompts."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit  # scipy.stats would take a second to import

from apo_bench.stats.argument_checks import (
    ROUNDING,
    Array,
    as_floats,
    as_frame,
    check_columns,
    check_confidence,
    check_hashable,
    check_labels,
    check_one_cluster,
)
from apo_bench.stats.confidence_intervals import share_interval, wilson
from apo_bench.stats.two_way_random_effects import share_test

NEW_ITEMS = "new items like these, each independent of the others; the two systems and the judge as they are"
ONE_QUESTION = ("arm_a", "arm_b", "round", "axis", "judge")


@dataclass(frozen=True)
class WinRate:
    """The mean of `n` preferences; `n_missing` more had no value and are in no other field. NaN means "not available".

    `n_wins`, `n_ties` and `n_losses` count preferences above, at and below 1/2: of graded ones, .3 is a loss and .7 a win.
    """

    mean: float
    standard_error: float
    ci_low: float
    ci_high: float
    n: int
    n_missing: int
    n_wins: int
    n_ties: int
    n_losses: int
    scope: str
    test: str


@dataclass(frozen=True)
class JudgedWinRate:
    """Win rate of arm_a over arm_b and what may be claimed from it. NaN means "not available".

    `p_value` is two-sided, against 1/2. The design is every seed on every prompt: of these comparisons `n_comparisons` were used;
    `n_missing` have no value or no row; `n_dropped` have a value but were left out, because their prompt lacks a comparison in another
    seed. `worst_low` and `worst_high` are the win rate over all of them, had arm_a lost or won every missing verdict. `note` says in words
    where missing verdicts decide what was tested: clusters without a prompt that every seed has, fewer than half of the comparisons
    used, or a win rate outside [worst_low, worst_high] ("" where nothing is to be said).
    With both orders judged, and over the comparisons that have both verdicts: `first_position_rate`, the share of verdicts for the
    response shown first (ties 1/2; 1/2 = no position bias), and `inconsistency_rate`, the share whose two orders name different
    winners (a tie and a win differ too).
    """

    win_rate: float
    standard_error: float
    df: float
    ci_low: float
    ci_high: float
    p_value: float
    n_seeds: int
    n_clusters: int
    n_comparisons: int
    n_missing: int
    n_dropped: int
    worst_low: float
    worst_high: float
    first_position_rate: float
    inconsistency_rate: float
    scope: str
    test: str
    note: str


def win_rate(preferences: Iterable[Any], *, confidence: float = 0.95) -> WinRate:
    """Mean preference with its interval: 1 = wins, 1/2 = tie, 0 = loses, any real between; NaN or None = missing, left out and counted.

    standard_error is sd (ddof 1) / sqrt n, as AlpacaEval's. The interval stays in [0, 1]: Wilson's where every preference is 0 or 1, else
    its like for any variance (`share_interval`, t quantile). One preference has no standard error and, unless it is 0 or 1, no interval;
    preferences that all equal another value (to 1e-12) have standard error 0 and no interval. Items are taken as independent: for items
    in clusters see `clustered_share`, for runs with seeds `judged_win_rate`.
    Raises ValueError where no preference is left, one is outside [0, 1] or no number ("1", a date).
    """
    check_confidence(confidence, "win_rate")
    x = _preferences(preferences, "win_rate: a preference")
    missing = np.isnan(x)
    x = x[~missing]
    n, nan = len(x), math.nan
    if n == 0:
        raise ValueError(f"win_rate: no preferences ({missing.sum()} missing)")
    mean, flat = float(x.mean()), bool(np.ptp(x) <= ROUNDING)
    error = nan if n == 1 else 0.0 if flat else float(x.std(ddof=1)) / math.sqrt(n)
    if np.isin(x, (0, 1)).all():
        test, (low, high) = "Wilson score interval", wilson(float(x.sum()), n, confidence)
    elif flat:
        test, low, high = "none: every preference is equal", nan, nan
    else:
        test, (low, high) = "score interval over items", share_interval(mean, error**2, n, float(stdtrit(n - 1, (1 + confidence) / 2)))
    wins, ties = int((x > 0.5).sum()), int((x == 0.5).sum())
    return WinRate(mean, error, low, high, n, int(missing.sum()), wins, ties, n - wins - ties, NEW_ITEMS, test)


def judged_win_rate(judgments: pd.DataFrame, *, confidence: float = 0.95) -> JudgedWinRate:
    """Win rate of one arm over another, tested against 1/2 with seeds and clusters of prompts both random (`share_test`).

    `judgments`: the rows of one pair of arms with seed_a, seed_b, prompt_id, value (in [0, 1]: 1, 1/2, 0 where arm_a wins, ties, loses;
    NaN where the verdict is missing) and, optionally, cluster_id (default: each prompt is its own cluster) and order. With `order`, two
    rows make a comparison, their mean, which is missing unless both are there and have a value; without, each row is a comparison.
    Any two labels of order will do; first_position_rate needs "ab" (arm_a's response is shown first) and "ba".
    A prompt is used only where every seed has its comparison, so that seeds are compared on the same prompts. A cluster's value is the
    mean over its prompts, clusters weigh alike.

    As in `contrast`: one seed, or seeds that do not differ, scope "these checkpoints only"; two seeds or two clusters, an interval and
    no p-value. The interval stays in [0, 1]. Where all cluster values are equal there is no error to estimate: standard_error 0, no df
    or p-value, and an interval only where every comparison was won, or lost: Wilson's over clusters.
    Raises ValueError, naming the column, where arm_a, arm_b, round, axis or judge hold several values (one call, one question), seeds
    do not map one to one, rows repeat, values are outside [0, 1], or fewer than two clusters are left.
    """
    check_confidence(confidence, "judged_win_rate")
    verdicts, clusters, orders = _grid(_checked(as_frame(judgments)))
    compared = verdicts.mean(2)  # (S, N), NaN where a verdict is missing
    missing = np.isnan(compared)
    whole = ~missing.any(0)  # (N,)
    values = _by_cluster(compared[:, whole], clusters[whole])  # (S, P)
    n_missing, n_comparisons = int(missing.sum()), values.shape[0] * int(whole.sum())
    if values.shape[1] < 2:
        problem = f"{values.shape[1]} cluster(s) with a comparison in every seed"
        raise ValueError(
            f"judged_win_rate: {problem}, at least 2 needed ({n_missing} of {compared.size} comparisons missing, column value)"
        )
    tested = share_test(values, confidence=confidence, caller="judged_win_rate")
    worst = [float(_by_cluster(np.where(np.isnan(verdicts), x, verdicts).mean(2), clusters).mean()) for x in (0.0, 1.0)]
    first_position, inconsistency = _by_order(verdicts[~missing], orders)
    return JudgedWinRate(
        win_rate=tested.mean,
        standard_error=tested.standard_error,
        df=tested.df,
        ci_low=tested.ci_low,
        ci_high=tested.ci_high,
        p_value=tested.p_value,
        n_seeds=values.shape[0],
        n_clusters=values.shape[1],
        n_comparisons=n_comparisons,
        n_missing=n_missing,
        n_dropped=compared.size - n_missing - n_comparisons,
        worst_low=worst[0],
        worst_high=worst[1],
        first_position_rate=first_position,
        inconsistency_rate=inconsistency,
        scope=f"{tested.scope}; this judge",
        test=tested.test if tested.test.startswith("none") else f"{tested.test}, win rate against 1/2",
        note=_note(tested.mean, worst, (values.shape[1], int(clusters.max()) + 1), (n_comparisons, compared.size)),
    )


def _preferences(values: Any, what: str) -> Array:
    """`values` as floats in [0, 1], NaN where missing."""
    x = as_floats(values, what)
    if x.ndim != 1:
        raise ValueError(f"{what} is not numeric")
    if outside := x[(x < 0) | (x > 1)].tolist():
        raise ValueError(f"{what} is outside [0, 1]: {outside[0]}")
    return x


def _checked(judgments: pd.DataFrame) -> pd.DataFrame:
    """The columns in use, checked, with cluster_id and numeric values."""
    caller = "judged_win_rate"
    keys = ["seed_a", "seed_b", "prompt_id"]
    check_columns(judgments, [*keys, "value"], caller)
    keys += [column for column in ("cluster_id", "order") if column in judgments]
    fixed = [column for column in ONE_QUESTION if column in judgments]
    check_columns(judgments, [*keys, *fixed], caller)
    if judgments.empty:
        raise ValueError(f"{caller}: no rows")
    for column in fixed:
        check_hashable(judgments[column], f"{caller}: column {column}")
        if len(labels := judgments[column].unique().tolist()) > 1:
            raise ValueError(f"{caller}: column {column} holds {labels[:5]}; give the rows of one value, one call is one question")
    rows = judgments[keys].reset_index(drop=True)
    rows["value"] = _preferences(judgments["value"], f"{caller}: a value (column value)")
    for column in keys:
        check_labels(rows[column], f"{caller}: column {column}")
    pairs = rows[["seed_a", "seed_b"]].drop_duplicates()
    for column, other in (("seed_a", "seed_b"), ("seed_b", "seed_a")):
        if several := pairs.loc[pairs[column].duplicated(), column].tolist():
            problem = f"seed {several[0]!r} (column {column}) meets several seeds of column {other}"
            raise ValueError(f"{caller}: {problem}; seeds must map one to one")
    once = [column for column in keys if column not in ("seed_b", "cluster_id")]
    if twice := int(rows[once].duplicated().to_numpy().sum()):
        raise ValueError(f"{caller}: {twice} rows repeat the columns {', '.join(once)}")
    if "cluster_id" not in rows:
        return rows.assign(cluster_id=rows["prompt_id"])
    check_one_cluster(rows, caller)
    return rows


def _grid(rows: pd.DataFrame) -> tuple[Array, Array, list[Any]]:
    """Verdicts (S, N prompts, orders), NaN where there is no row; the prompts' clusters (N,) as 0 .. P-1; the labels of the orders."""
    seeds, prompts, clusters = (pd.factorize(rows[column])[0] for column in ("seed_a", "prompt_id", "cluster_id"))
    order, orders = pd.factorize(rows["order"]) if "order" in rows else (0, [None])
    if "order" in rows and len(orders) != 2:
        raise ValueError(f"judged_win_rate: column order holds {list(orders[:5])}, two orders are needed (or no such column)")
    verdicts = np.full((seeds.max() + 1, prompts.max() + 1, len(orders)), math.nan)
    verdicts[seeds, prompts, order] = rows["value"]
    cluster_of = np.zeros(verdicts.shape[1], dtype=int)
    cluster_of[prompts] = clusters
    return verdicts, cluster_of, list(orders)


def _by_cluster(values: Array, clusters: Array) -> Array:
    """Means over the prompts of each cluster, (S, N) -> (S, P)."""
    return pd.DataFrame(values.T).groupby(clusters, sort=False).mean().to_numpy().T


def _by_order(both: Array, orders: list[Any]) -> tuple[float, float]:
    """First-position rate and inconsistency rate of comparisons with all verdicts, (n, orders)."""
    if len(orders) < 2 or len(both) == 0:
        return math.nan, math.nan
    winners = np.sign(both - 0.5)
    inconsistency = float((winners[:, 0] != winners[:, 1]).mean())
    if set(orders) != {"ab", "ba"}:
        return math.nan, inconsistency
    return float((both[:, orders.index("ab")] + 1 - both[:, orders.index("ba")]).mean() / 2), inconsistency


def _note(win_rate: float, worst: list[float], clusters: tuple[int, int], comparisons: tuple[int, int]) -> str:
    """The effect of missing verdicts; `clusters` and `comparisons` are numbers used and numbers in all."""
    notes = []
    if clusters[0] < clusters[1]:
        notes.append(f"{clusters[1] - clusters[0]} of {clusters[1]} clusters have no prompt that every seed has a comparison on: left out")
    if 2 * comparisons[0] < comparisons[1]:
        notes.append(f"only {comparisons[0]} of {comparisons[1]} comparisons are used")
    if not worst[0] - ROUNDING <= win_rate <= worst[1] + ROUNDING:
        notes.append(f"over all comparisons the win rate is {worst[0]:.3g} to {worst[1]:.3g}: the one tested is that of what is left only")
    return "; ".join(notes)
