"""Many arms at once: intervals that all hold together, against a reference or of all pairs, and the ranks that they permit.

Each contrast keeps its own estimate, error and mixture reference (`TwoWayError`). What is joint is the level: all intervals stand at one
pointwise level alpha*, between alpha / m (Bonferroni's, for m contrasts) and alpha, with which a true family is left out with
probability alpha in draws from the two-way model. In a draw, with w the seeds' share of a contrast's variance,

    T = (sqrt(w) Z_seeds + sqrt(1 - w) Z_clusters) / sqrt(w M_seeds + (1 - w) M_clusters),

Z and M the contrast's normal deviate and mean square over its expectation, from the arms' covariance over seeds (a Wishart matrix of
S - 1 degrees of freedom) and over clusters (P - 1). So contrasts that share an arm, or a seed that was bad for all, are dependent as
they are in the data. Of T only the ranks within a contrast count (the least p-value of the family: Westfall & Young, Resampling-based
multiple testing, 1993); its tails are the mixture's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from apo_bench.stats.argument_checks import Array, as_frame, check_arm, check_confidence, check_count, check_seed, short_repr
from apo_bench.stats.score_layout import Layout, lay_out, lay_out_cells
from apo_bench.stats.two_way_random_effects import Estimate, estimate_difference, mean_test_of
from apo_bench.stats.unbalanced_designs import estimate_unbalanced

AT_A_TIME = 4_000_000  # numbers held in memory
COLUMNS = [
    "a", "b", "difference", "standard_error", "ci_low", "ci_high", "p_adjusted", "n_seeds", "n_clusters", "n_dropped", "scope", "test",
]  # fmt: skip


@dataclass(frozen=True)
class SimultaneousContrasts:
    """A family of contrasts whose intervals all hold at once with the confidence asked for.

    `table`: COLUMNS, a row a contrast a - b; p_adjusted is the family's, and below 1 - confidence where the interval leaves out 0. Rows
    without variation, and those of two seeds or two clusters, are as in `contrast`. `pointwise_alpha` is the level of each interval by
    itself, `n_tested` the contrasts that have one.
    """

    table: pd.DataFrame
    pointwise_alpha: float
    n_tested: int
    test: str


@dataclass(frozen=True)
class RankSets:
    """Arms by mean score, with the ranks that each may have.

    `table`, best first: arm, mean, rank, rank_low, rank_high. With the confidence asked for, every arm's true rank is within rank_low to
    rank_high, for all arms at once. `contrasts` are the pairs that this rests on.
    """

    table: pd.DataFrame
    contrasts: SimultaneousContrasts
    test: str


@dataclass(frozen=True)
class ArmCovariances:
    """Of the arms' seed means and of their cluster means, (K, K) each, with the degrees of freedom of each."""

    seeds: Array
    clusters: Array
    seed_df: int
    cluster_df: int


def simultaneous_contrasts(
    scores: pd.DataFrame,
    reference: str | None = None,
    *,
    paired_seeds: bool | None = None,
    confidence: float = 0.95,
    draws: int = 20_000,
    seed: int = 0,
) -> SimultaneousContrasts:
    """Every arm of `scores` minus the `reference` (as Dunnett's, JASA 50, 1955), or without one all pairs (as Tukey's).

    `scores`, pairing and rows as in `unbalanced_contrast`; differences and standard errors are those of the single contrasts. `draws` and
    `seed` are of the level's computation: at 20,000 the family's level is known to 0.15 points. An interval is never narrower than the
    single contrast's, nor wider than Bonferroni's.
    Raises ValueError as `contrast` does, and for a reference that is no arm.
    """
    caller = "simultaneous_contrasts"
    check_confidence(confidence, caller)
    check_count(draws, "draws", caller, 1000)
    check_seed(seed, caller)
    scores = as_frame(scores)
    arms = _arms(scores, caller)
    if reference is not None and reference not in arms:
        raise ValueError(f"{caller}: reference {short_repr(reference)} is none of the arms (column arm)")
    pairs = list(combinations(arms, 2)) if reference is None else [(arm, reference) for arm in arms if arm != reference]
    layouts, estimates = zip(*(_estimate(scores, a, b, paired_seeds, caller) for a, b in pairs), strict=True)
    place = {arm: i for i, arm in enumerate(arms)}
    signs = contrast_matrix([(place[a], place[b]) for a, b in pairs], len(arms))
    covariances = arm_covariances(_cells(scores, arms), paired=all(layout.paired for layout in layouts))
    minima = least_p_values(estimates, signs, covariances, draws, np.random.default_rng(seed))
    alpha, p_adjusted = pointwise_alpha(minima, estimates, 1 - confidence)
    kind = f"all {len(pairs)} pairs" if reference is None else f"{len(pairs)} arms against {reference}"
    test = f"{kind} at once: each at {100 * (1 - alpha):.4g} %, from {draws} draws of the two-way model"
    rows = []
    for (a, b), layout, estimated, p in zip(pairs, layouts, estimates, p_adjusted, strict=True):
        single = mean_test_of(estimated, 1 - alpha)
        numbers = single.mean, single.standard_error, single.ci_low, single.ci_high, math.nan if math.isnan(single.p_value) else p
        how = f"{single.test}{', additive fit to the cells that are there' if np.isnan([*layout.first, *layout.second]).any() else ''}"
        rows.append((a, b, *numbers, layout.n_seeds, layout.n_clusters, layout.n_dropped, single.scope, how))
    n_tested = sum(not estimated.flat for estimated in estimates)
    return SimultaneousContrasts(pd.DataFrame(rows, columns=COLUMNS), alpha, n_tested, test)


def rank_sets(
    scores: pd.DataFrame,
    *,
    higher_is_better: bool = True,
    paired_seeds: bool | None = None,
    confidence: float = 0.95,
    draws: int = 20_000,
    seed: int = 0,
) -> RankSets:
    """Ranks of all arms with simultaneous confidence sets, from the intervals of all pairs.

    An arm's best possible rank is 1 + the number of arms whose interval says that they are better, its worst one K - the number that are
    worse (Klein, Wright & Wieczorek, JRSS C 69, 2020; from all pairs: Al Mohamad, Goeman & van Zwet, Biometrics 78, 2022). As the
    intervals hold together, so do the ranks. Arguments and errors as in `simultaneous_contrasts`.
    """
    if not isinstance(higher_is_better, bool | np.bool_):
        raise ValueError(f"rank_sets: higher_is_better is True or False, got {short_repr(higher_is_better)}")
    scores = as_frame(scores)
    family = simultaneous_contrasts(scores, paired_seeds=paired_seeds, confidence=confidence, draws=draws, seed=seed)
    arms, sign = _arms(scores, "rank_sets"), 1 if higher_is_better else -1
    means = np.nanmean(np.nanmean(_cells(scores, arms), axis=1), axis=1)
    better, worse = dict.fromkeys(arms, 0), dict.fromkeys(arms, 0)
    for row in family.table.to_dict("records"):
        if row["ci_low"] > 0 or row["ci_high"] < 0:
            winner, loser = (row["a"], row["b"]) if sign * row["difference"] > 0 else (row["b"], row["a"])
            better[loser] += 1
            worse[winner] += 1
    ranks = [(arm, mean, 1 + better[arm], len(arms) - worse[arm]) for arm, mean in zip(arms, means, strict=True)]
    table = pd.DataFrame(ranks, columns=["arm", "mean", "rank_low", "rank_high"])
    table.insert(2, "rank", (sign * table["mean"]).rank(ascending=False, method="min").astype(int))
    return RankSets(table.sort_values(["rank", "rank_low"], kind="stable", ignore_index=True), family, family.test)


def contrast_matrix(pairs: Sequence[tuple[int, int]], n_arms: int) -> Array:
    """A row a pair: 1 for the first arm, -1 for the second, (m, K)."""
    eye = np.eye(n_arms)
    return np.stack([eye[a] - eye[b] for a, b in pairs])


def arm_covariances(values: Array, *, paired: bool) -> ArmCovariances:
    """Of values (K, S, P), NaN where missing; clusters that lack a cell are left out, where fewer than two are left no covariance counts.

    Seed means of arms whose seeds are not paired have nothing to do with each other. Covariances are centred over arms, as contrasts see
    them, and drawn to the spherical one (arms alike and independent) as by K more observations: three seeds say little of six arms.
    """
    n_arms = len(values)
    whole = values[:, :, ~np.isnan(values).any((0, 1))]
    if whole.shape[2] < 2:
        whole = np.zeros((n_arms, values.shape[1], 2))
    n_seeds, n_clusters = whole.shape[1:]
    seeds = np.cov(whole.mean(2)) if n_seeds > 1 else np.zeros((n_arms, n_arms))
    seeds = seeds if paired else np.diag(np.diag(seeds))
    seed_df, cluster_df = max(n_seeds - 1, 1), n_clusters - 1
    return ArmCovariances(_shrunk(seeds, seed_df), _shrunk(np.cov(whole.mean(1)), cluster_df), seed_df, cluster_df)


def _shrunk(covariance: Array, df: int) -> Array:
    n_arms = len(covariance)
    centre = np.eye(n_arms) - 1 / n_arms
    centred = centre @ covariance @ centre
    variance = float(np.trace(centred)) / (n_arms - 1)
    return centre if variance <= 0 else (df * centred / variance + n_arms * centre) / (df + n_arms)


def least_p_values(estimates: Sequence[Estimate], signs: Array, arms: ArmCovariances, draws: int, rng: np.random.Generator) -> Array:
    """The least p-value of the contrasts `signs` (m, K) in each of `draws` draws where all are null, sorted; flat ones are left out."""
    tested = [i for i, estimated in enumerate(estimates) if not estimated.flat]
    if not tested:
        return np.ones(draws)
    share = np.array([float(estimates[i].error.seed_share) for i in tested])
    sides = [(_loadings(signs[tested], side), df) for side, df in ((arms.seeds, arms.seed_df), (arms.clusters, arms.cluster_df))]
    step, squares = max(1, AT_A_TIME // (len(tested) * signs.shape[1])), []
    for start in range(0, draws, step):
        n = min(step, draws - start)
        (seeds, seed_squares), (clusters, cluster_squares) = (_draw(loadings, df, n, rng) for loadings, df in sides)
        deviates = np.sqrt(share) * seeds + np.sqrt(1 - share) * clusters
        squares.append(deviates**2 / (share * seed_squares + (1 - share) * cluster_squares))
    order = np.argsort(-np.concatenate(squares), axis=0)
    p_values = np.empty(order.shape)
    np.put_along_axis(p_values, order, np.broadcast_to((np.arange(draws)[:, None] + 1) / draws, order.shape), axis=0)
    return np.sort(p_values.min(1))


def _loadings(signs: Array, covariance: Array) -> Array:
    """Rows g with g g' = 1, so that contrasts are g z of independent z; (m, K)."""
    sizes, vectors = np.linalg.eigh(covariance)
    loadings = signs @ (vectors * np.sqrt(np.maximum(sizes, 0.0)))
    return loadings / np.linalg.norm(loadings, axis=1, keepdims=True)


def _draw(loadings: Array, df: int, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Deviates and mean squares (n, m) of contrasts; the Wishart matrix by Bartlett's triangle (Proc. R. Soc. Edinburgh 53, 1933)."""
    n_arms = loadings.shape[1]
    deviates = rng.standard_normal((n, n_arms)) @ loadings.T
    rows = min(df, n_arms)
    triangle = np.triu(rng.standard_normal((n, rows, n_arms)), 1)
    places = np.arange(rows)
    triangle[:, places, places] = np.sqrt(rng.chisquare(df - places, (n, rows)))
    return deviates, ((triangle @ loadings.T) ** 2).sum(1) / df


def pointwise_alpha(minima: Array, estimates: Sequence[Estimate], alpha: float) -> tuple[float, Array]:
    """The level of each contrast at which the family has `alpha`, and the family's p-values; NaN of what does not vary."""
    tested = [estimated for estimated in estimates if not estimated.flat]
    draws, n_tested = len(minima), max(len(tested), 1)
    level = float(minima[max(int(alpha * (draws + 1)) - 1, 0)])
    p_values = np.array([math.nan if x.flat else float(x.error.p_value(x.mean)) for x in estimates])
    drawn = (1 + np.searchsorted(minima, p_values, side="right")) / (draws + 1)
    adjusted = np.maximum(p_values, np.minimum(drawn, n_tested * p_values))  # NaN stays NaN
    return min(max(level, alpha / n_tested), alpha), adjusted


def _arms(scores: pd.DataFrame, caller: str) -> list[str]:
    """The arms in the order in which they come; at least two."""
    if not isinstance(scores, pd.DataFrame) or "arm" not in scores:
        raise ValueError(f"{caller}: scores are a DataFrame with a column arm")
    arms = scores["arm"].dropna().drop_duplicates().tolist()
    for arm in arms:
        check_arm(arm, caller)
    if len(arms) < 2:
        raise ValueError(f"{caller}: {len(arms)} arm(s) (column arm), at least two are compared")
    return arms


def _estimate(scores: pd.DataFrame, a: str, b: str, paired_seeds: bool | None, caller: str) -> tuple[Layout, Estimate]:
    """One contrast from all rows, or from the complete cases where the holes allow no fit."""
    try:
        layout = lay_out_cells(scores, a, b, paired_seeds=paired_seeds, caller=caller)
        return layout, estimate_unbalanced(layout, caller)
    except ValueError:
        layout = lay_out(scores, a, b, paired_seeds=paired_seeds, caller=caller)
        return layout, estimate_difference(layout, f"{caller}: arms {a!r} and {b!r}")


def _cells(scores: pd.DataFrame, arms: Sequence[str]) -> Array:
    """Cluster means by arm and seed (K, S, P), NaN where missing; row s of arms is the same seed where all arms have the same ones."""
    cluster = "cluster_id" if "cluster_id" in scores else "prompt_id"
    means = scores.assign(value=scores["value"].astype(float)).groupby(["arm", "seed", cluster], observed=True)["value"].mean()
    tables = [means.loc[arm].unstack(cluster) for arm in arms]
    columns = sorted(set().union(*(table.columns for table in tables)), key=str)
    n_seeds = max(map(len, tables))
    cells = np.full((len(arms), n_seeds, len(columns)), np.nan)
    for place, table in enumerate(tables):
        rows = table.reindex(sorted(table.index, key=str), columns=columns).to_numpy(dtype=float)
        cells[place, : len(rows)] = rows
    return cells
