"""Length-controlled win rates: the win rate of two systems at equal response lengths."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, logit, stdtrit  # scipy.stats would take a second to import

from apo_bench.stats.argument_checks import (
    ROUNDING,
    Array,
    as_floats,
    as_frame,
    check_columns,
    check_confidence,
    check_count,
    check_labels,
    check_one_cluster,
    check_seed,
    label_codes,
    short_repr,
)
from apo_bench.stats.bootstrap import draw_counts
from apo_bench.stats.logistic_regression import PENALTY, UNBOUNDED, fit_logit, row_products
from apo_bench.stats.two_way_random_effects import NEW_SEEDS_AND_PROMPTS, THESE_CHECKPOINTS, effective_df

CALLER = "length_controlled_win_rate"
LABEL = "sensitivity analysis: length is post-treatment"
NEW_PROMPTS = "new prompts like these; the two systems and the judge as they are"
AT_A_TIME = 1_000_000  # weights held in memory
LARGEST = 1e100  # beyond it squares overflow
FEW_LONGER = 0.1  # of the comparisons; beyond it equal lengths lie at the edge of the data
NO_ERROR = 1e-9  # refits that vary by less than this do not vary


@dataclass(frozen=True)
class LengthControlled:
    """A win rate and its prediction at equal lengths. NaN means "not available", and `note` says why.

    `win_rate` is the plain mean of `n` preferences (`n_missing` more had no value and are in no other field), `lc_win_rate` the
    length-controlled one, with `standard_error` and interval. `coefficients` are on the log-odds scale: intercept; length, per unit of
    tanh; difficulty, per SD of the table's values around their mean. `share_longer` is the share of comparisons where a's response is
    the longer one (equal lengths 1/2): at 0 or 1, equal lengths lie outside the data, and below .1 or above .9 `note` warns. `n_unbounded`
    counts the draws whose estimate rests on the penalty (of so few wins, say, that lengths separate them); they are kept.
    """

    win_rate: float
    lc_win_rate: float
    standard_error: float
    ci_low: float
    ci_high: float
    coefficients: Mapping[str, float]
    share_longer: float
    n: int
    n_missing: int
    n_clusters: int
    n_seeds: int
    draws: int
    n_unbounded: int
    scope: str
    test: str
    note: str
    label: str = LABEL


def length_controlled_win_rate(
    preferences: pd.DataFrame,
    *,
    difficulty: Mapping[Any, float] | pd.Series | None = None,
    draws: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> LengthControlled:
    """Win rate of a over b, had both answers been equally long: the model of AlpacaEval 2 for one pair of systems.

        logit P(a wins) = intercept + phi tanh((length_a - length_b) / SD of that difference) + psi difficulty

    (Dubois et al., "Length-Controlled AlpacaEval", arXiv:2404.04475, section 3), fitted by cross-entropy, so that preferences may be
    fractions. lc_win_rate is the mean prediction over the comparisons with the length term at zero. Exchanging a and b gives 1 -
    lc_win_rate. It is a sensitivity analysis: length is part of what a system does, and nothing here makes it a cause.
    AlpacaEval's own numbers differ: theirs is an L1 fit with a cross-validated penalty, difficulty always in it, and phi pulled towards
    that of rewritten baseline answers (weight 0.2). Its lc_standard_error is the standard error of the predictions' mean, as if the
    coefficients were known; without difficulty that would be 0.

    `preferences`: prompt_id, value (in [0, 1]: 1, 1/2, 0 where a wins, ties, loses; NaN missing), length_a, length_b (one unit for both)
    and, optionally, cluster_id (default: each prompt is its own cluster) and seed. One row a prompt (and seed): average two orders first.
    `difficulty` maps each prompt to a number made elsewhere, not from these rows. None: the term is left out, which `note` says.

    The error is the SD over `draws` refits, each on G - 1 of the G clusters (and S - 1 of the S seeds) drawn with replacement, the SD of
    the length difference and the difficulty scale held as they are. The interval is a t interval on the log-odds scale; its degrees of
    freedom are G - 1, with seeds `effective_df` of the seeds' part (by leaving out one seed at a time) and the rest. Where seeds
    hardly differ the error is too large: resampling both ways counts the residual three times (Owen, Annals of Applied Statistics 1,
    2007). A draw without a row is left out of `draws`.

    A ridge penalty (`fit_logit`) keeps coefficients finite. Where the data leave the log-odds at equal lengths with a standard error above
    10, lc_win_rate is NaN: a difference that is the same everywhere (and not 0) or always large, wins that lengths or difficulty
    separate from losses at a distance, difficulty that follows length. Lengths that are all equal and difficulty that is constant drop
    out. Preferences that are all 0 or all 1 are that at equal lengths too, if a's answer is neither always longer nor always shorter.
    One cluster, or nothing that varies: no interval.
    Raises ValueError, naming the column, for rows that allow no valid estimate, and for a prompt that `difficulty` lacks.
    """
    check_confidence(confidence, CALLER)
    check_count(draws, "draws", CALLER, 100)
    check_seed(seed, CALLER)
    preferences = as_frame(preferences)
    rows, n_missing = _checked(preferences)
    value, longer = rows["value"].to_numpy(), (rows["length_a"] - rows["length_b"]).to_numpy()
    x, names, notes = _design(longer, _difficulties(rows["prompt_id"], difficulty))
    clusters, seeds = (label_codes(rows[column])[0] for column in ("cluster_id", "seed"))
    n_clusters, n_seeds = int(clusters.max()) + 1, int(seeds.max()) + 1
    win_rate = float(value.mean())

    fitted, rates, bounded = _refit(x, names, value, np.ones((1, len(value))), np.zeros(len(names)))
    estimable = bool(bounded[0]) and not (np.ptp(longer) == 0 and longer[0] != 0)
    coefficients, lc = (fitted[0], float(rates[0])) if estimable else (np.full(len(names), math.nan), math.nan)
    error, df, used, n_unbounded = math.nan, math.nan, 0, 0
    if win_rate in (0.0, 1.0):  # the coefficients run off to infinity
        notes.append(f"every preference is {win_rate:.0f}")
        coefficients = np.full(len(names), math.nan)
        lc, error = (win_rate, 0.0) if longer.min() <= 0 <= longer.max() else (math.nan, math.nan)
    elif estimable and n_clusters > 1:
        generator = np.random.default_rng(seed)
        counts = draw_counts(generator, draws, n_clusters), draw_counts(generator, draws, n_seeds)
        drawn, n_unbounded = _redraw(x, names, value, (clusters, seeds), counts, coefficients)
        used, variance, by_seed = len(drawn), float(drawn.var()), 0.0
        if n_seeds > 1:
            without = _refit(x, names, value, 1.0 - (seeds == np.arange(n_seeds)[:, None]), coefficients)[1]
            by_seed = (n_seeds - 1) * float(without.var())
        variance = max(variance, by_seed)
        error = math.sqrt(variance) if variance > NO_ERROR**2 else 0.0
        df = float(effective_df([by_seed, variance - by_seed], [max(n_seeds - 1, 1), n_clusters - 1])) if error > 0 else math.nan
    if math.isnan(lc):
        notes.append("not available: the data do not say what happens at equal lengths")
    share_longer = float((np.sign(longer) + 1).mean() / 2)
    if not math.isnan(lc) and not FEW_LONGER <= share_longer <= 1 - FEW_LONGER:
        notes.append(f"extrapolates: a's answer is the longer one in {100 * share_longer:.2g} % of the comparisons")
    low = high = math.nan
    test = "none: the win rate at equal lengths has no standard error here"
    if error > 0:
        half = float(stdtrit(df, (1 + confidence) / 2)) * error / (lc * (1 - lc))
        low, high = (float(expit(logit(lc) + sign * half)) for sign in (-1, 1))
        resampled = "seeds and clusters" if n_seeds > 1 else "clusters"
        test = f"bootstrap of {resampled} of prompts, {used} draws, each refitted; t interval of the log-odds"
    scope = f"{THESE_CHECKPOINTS if n_seeds == 1 else NEW_SEEDS_AND_PROMPTS}; this judge" if "seed" in preferences else NEW_PROMPTS
    return LengthControlled(
        win_rate=win_rate,
        lc_win_rate=lc,
        standard_error=error,
        ci_low=low,
        ci_high=high,
        coefficients=dict(zip(names, coefficients.tolist(), strict=True)),
        share_longer=share_longer,
        n=len(rows),
        n_missing=n_missing,
        n_clusters=n_clusters,
        n_seeds=n_seeds,
        draws=used,
        n_unbounded=n_unbounded,
        scope=scope,
        test=test,
        note="; ".join(notes),
    )


def _refit(x: Array, names: list[str], value: Array, weights: Array, start: Array) -> tuple[Array, Array, Array]:
    """Coefficients (B, k), length-controlled win rates (B,; NaN without a row) and whether data bound them (B,), for weights (B, n)."""
    coefficients, information = fit_logit(x, row_products(x), weights, weights * value, start)
    level = np.where([name == "length" for name in names], 0.0, x)  # (n, k), equal lengths
    p = expit(coefficients @ level.T)
    total = weights.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = (weights * p).sum(1) / total
        slope = (weights * p * (1 - p)) @ level / (total * rates * (1 - rates))[:, None]  # of the log-odds of the rate
        variance = (slope * np.linalg.solve(information, slope[..., None])[..., 0]).sum(1)
    return coefficients, rates, variance <= UNBOUNDED / PENALTY


def _redraw(
    x: Array, names: list[str], value: Array, codes: tuple[Array, Array], counts: tuple[Array, Array], start: Array
) -> tuple[Array, int]:
    """Win rates of the draws that have rows, and how many of them the data do not bound.

    `codes` are the rows' cluster and seed, `counts` (draws, clusters) and (draws, seeds) how often each comes up.
    """
    rates, n_unbounded, step = [], 0, max(1, AT_A_TIME // len(value))
    for first in range(0, len(counts[0]), step):
        weights = np.prod([count[first : first + step, code] for count, code in zip(counts, codes, strict=True)], axis=0).astype(float)
        weights = weights[weights.any(1)]
        if len(weights):
            _, drawn_rates, bounded = _refit(x, names, value, weights, start)
            rates.append(drawn_rates)
            n_unbounded += int((~bounded).sum())
    return np.concatenate(rates), n_unbounded


def _design(longer: Array, difficulties: Array | None) -> tuple[Array, list[str], list[str]]:
    """The terms that vary, (n, k), with their names, and in words what was left out."""
    columns, notes = {"intercept": np.ones(len(longer))}, []
    if (longer == 0).all():
        notes.append("lengths are all equal: no length term")
    else:
        scale = longer.std(ddof=1) if len(longer) > 1 else 0.0
        columns["length"] = np.tanh(longer / scale) if scale > 0 else np.sign(longer)
    if difficulties is None:
        notes.append("no difficulty table: no difficulty term")
    elif (spread := difficulties.std()) <= ROUNDING * np.abs(difficulties).max():
        notes.append("difficulty is the same for every prompt: no difficulty term")
    else:
        columns["difficulty"] = (difficulties - difficulties.mean()) / spread
    return np.column_stack(list(columns.values())), list(columns), notes


def _difficulties(prompts: pd.Series, difficulty: Mapping[Any, float] | pd.Series | None) -> Array | None:
    if difficulty is None:
        return None
    if not isinstance(difficulty, Mapping | pd.Series):
        raise ValueError(f"{CALLER}: difficulty is a table of prompts and numbers, got {short_repr(difficulty)}")
    if isinstance(difficulty, pd.Series) and (twice := difficulty.index[difficulty.index.duplicated()].tolist()):
        raise ValueError(f"{CALLER}: difficulty lists prompt {twice[0]!r} twice")
    table = dict(difficulty)
    if lacking := [prompt for prompt in prompts if prompt not in table]:
        raise ValueError(f"{CALLER}: difficulty lacks prompt {lacking[0]!r} (and {len(lacking) - 1} more rows' prompts)")
    return _finite([table[prompt] for prompt in prompts], "difficulty")


def _checked(preferences: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """The rows that have a value, with cluster_id and seed, and how many have none."""
    check_columns(preferences, ["prompt_id", "value", "length_a", "length_b"], CALLER)
    keys = [column for column in ("prompt_id", "cluster_id", "seed") if column in preferences]
    check_columns(preferences, keys, CALLER)
    for column in keys:
        check_labels(preferences[column], f"{CALLER}: column {column}")
    once = [column for column in keys if column != "cluster_id"]
    if twice := int(preferences[once].duplicated().to_numpy().sum()):
        raise ValueError(f"{CALLER}: {twice} rows repeat a prompt{' and seed' if 'seed' in once else ''} (column prompt_id)")
    present = ~np.isnan(as_floats(preferences["value"], f"{CALLER}: column value"))
    rows = preferences.loc[present, keys].reset_index(drop=True)
    if rows.empty:
        raise ValueError(f"{CALLER}: no row has a value (column value, {len(preferences)} missing)")
    for column in ("value", "length_a", "length_b"):
        rows[column] = _finite(preferences.loc[present, column], f"column {column}")
        if rows[column].min() < 0 or (column == "value" and rows[column].max() > 1):
            raise ValueError(f"{CALLER}: column {column} holds {rows[column].min():g} to {rows[column].max():g}, out of range")
    rows = rows.assign(**{name: default for name, default in (("cluster_id", rows["prompt_id"]), ("seed", 0)) if name not in rows})
    check_one_cluster(rows, CALLER)
    return rows, int((~present).sum())


def _finite(values: Any, what: str) -> Array:
    x = as_floats(values, f"{CALLER}: {what}")
    if bad := int((~np.isfinite(x)).sum()):
        raise ValueError(f"{CALLER}: {what} is NaN or infinite in {bad} rows")
    if (largest := np.abs(x).max()) > LARGEST:
        raise ValueError(f"{CALLER}: {what} holds {largest:g}, too large to be squared")
    return x
