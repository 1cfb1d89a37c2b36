"""Bradley-Terry strengths of models from pairwise battles."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from apo_bench.stats.argument_checks import (
    Array,
    as_floats,
    as_frame,
    check_columns,
    check_confidence,
    check_count,
    check_labels,
    check_seed,
)
from apo_bench.stats.bootstrap import draw_counts
from apo_bench.stats.logistic_regression import fit_logit

AT_A_TIME = 4_000_000  # numbers held in memory
NO_ERROR = 1e-9  # refits that vary by less than this do not vary
ERRORS = ["standard_error", "ci_low", "ci_high"]


@dataclass(frozen=True)
class BradleyTerry:
    """Strengths of models fitted to `n` battles; `n_missing` more had no value. NaN means "not available", and `note` says why.

    `strengths`, strongest first: model, strength (log-odds; the models' mean is 0), standard_error, ci_low, ci_high, battles, group.
    Models of one `group` have beaten each other, directly or through others; only within a group do the battles fix a difference of
    strengths, and only where there is one group has a strength an error. `win_rates`, one row for each ordered pair: a, b, win_rate (the
    predicted chance that a beats b), standard_error, ci_low, ci_high, battles, observed (the share that a won of them, NaN without any).
    `n_one_sided` of the `draws` had more than one group: the penalty holds their strengths. Intervals keep these draws and reach as far
    as that; standard errors of strengths leave them out (with them they would be infinite), and are NaN where most draws are such.
    """

    strengths: pd.DataFrame
    win_rates: pd.DataFrame
    n: int
    n_missing: int
    n_clusters: int
    draws: int
    n_one_sided: int
    scope: str
    test: str
    note: str


def bradley_terry(
    battles: pd.DataFrame, *, cluster: str | None = None, draws: int = 1000, seed: int = 0, confidence: float = 0.95
) -> BradleyTerry:
    """Strengths s with P(a beats b) = expit(s_a - s_b) (Bradley & Terry, Biometrika 39, 1952), by maximum likelihood.

    `battles`: a, b (names of models), value (in [0, 1]: 1 where a wins, 0 where b does, 1/2 a tie, which is half a win for each; NaN
    missing). `cluster` names a column whose values are drawn together (the question, say: battles on one question are not independent);
    None draws rows. Errors are SDs, intervals percentiles, over `draws` refits, each on G - 1 of the G clusters drawn with replacement;
    for fewer than about 20 clusters such intervals are too short.
    Neither the order of rows nor which model is called a changes anything. A model whose battles are all missing has no strength (NaN).

    The estimate is finite only if every split of the models in two has wins both ways (Ford, Amer. Math. Monthly 64, 1957). Where one
    has not (a model that won everything, models that never met), a ridge penalty (`fit_logit`) holds the strengths, which then give the
    order only: no errors or intervals of strengths, a win rate across the split of 1 or 0, NaN where neither side is above the other.
    Within a group win rates are fitted to its own battles. One cluster: no errors or intervals; nothing that varies: error 0, no interval.
    Raises ValueError, naming the column, for no battle, a model that meets itself, and rows that allow no valid estimate.
    """
    check_confidence(confidence, "bradley_terry")
    check_count(draws, "draws", "bradley_terry", 100)
    check_seed(seed, "bradley_terry")
    every = read_battles(as_frame(battles), cluster, "bradley_terry")
    rows = every.dropna(subset=["value"])
    n_missing = len(every) - len(rows)
    absent = in_order(list({*every["a"], *every["b"]} - {*rows["a"], *rows["b"]}))
    models = in_order(pd.concat([rows["a"], rows["b"]]).unique().tolist())
    trials, wins, pairs = _by_cluster(rows, models)  # (G, pairs)
    n_clusters = trials.shape[0]
    x, outer = _design(pairs, len(models))
    all_trials, all_wins = (np.asarray(counted.sum(0)).reshape(1, -1) for counted in (trials, wins))
    start = fit_logit(x, outer, all_trials, all_wins, np.zeros(len(models)))[0][0]
    above = _above(all_trials, all_wins, pairs, len(models))[0]
    groups = np.unique(np.argmax(above & above.T, axis=1), return_inverse=True)[1]

    inside = (groups[pairs[0]] == groups[pairs[1]]).astype(float)  # battles across groups would pull on differences within
    within = start if inside.all() else fit_logit(x, outer, all_trials * inside, all_wins * inside, start)[0][0]
    drawn, one_sided = np.empty((0, len(models))), np.zeros(0, dtype=bool)
    if n_clusters > 1:
        generator, step = np.random.default_rng(seed), max(1, AT_A_TIME // max(n_clusters, outer.shape[1]))
        fits, flags = [], []
        for first in range(0, draws, step):
            counts = draw_counts(generator, min(step, draws - first), n_clusters)
            some_trials, some_wins = counts @ trials, counts @ wins
            fits.append(fit_logit(x, outer, some_trials * inside, some_wins * inside, within)[0])
            flags.append(~_above(some_trials, some_wins, pairs, len(models)).all((1, 2)))
        drawn, one_sided = np.concatenate(fits), np.concatenate(flags)
    n_one_sided = int(one_sided.sum())

    strengths = pd.DataFrame({"model": models, "strength": start})
    strengths[ERRORS] = _errors(drawn, confidence, known=np.full(len(models), groups.max() == 0))
    if n_one_sided and groups.max() == 0:
        strengths["standard_error"] = drawn[~one_sided].std(0) if 2 * n_one_sided < draws else math.nan
    strengths["battles"] = np.bincount(pairs.ravel(), weights=np.tile(all_trials[0], 2), minlength=len(models)).astype(int)
    strengths["group"] = groups
    lost = pd.DataFrame({"model": absent}).reindex(columns=strengths.columns).assign(battles=0, group=-1)
    strengths = strengths.sort_values("strength", ascending=False, kind="stable")
    notes = _notes(models, groups, absent)
    if n_one_sided and groups.max() == 0:
        notes.append(f"{n_one_sided} of {draws} draws are one-sided: a bound that they reach is the penalty's")
    unit = "battles" if cluster is None else f"values of {cluster}"
    independent = "new battles like these, each independent of the others" if cluster is None else f"new values of {cluster} like these"
    return BradleyTerry(
        strengths=pd.concat([strengths, lost], ignore_index=True) if absent else strengths.reset_index(drop=True),
        win_rates=_win_rates(models, within, drawn, above, (pairs, all_trials[0], all_wins[0]), confidence),
        n=len(rows),
        n_missing=n_missing,
        n_clusters=n_clusters,
        draws=len(drawn),
        n_one_sided=n_one_sided,
        scope=f"{independent}; these models and this judge",
        test=f"percentile bootstrap of {unit}, {draws} draws, each refitted" if len(drawn) else "none: one cluster has no error",
        note="; ".join(notes),
    )


def read_battles(battles: pd.DataFrame, cluster: str | None, caller: str) -> pd.DataFrame:
    """The battles, those without a value (NaN) too: a, b, value (a's win, in [0, 1]) and, with `cluster`, cluster. Raises ValueError."""
    keys = ["a", "b", *([] if cluster is None else [cluster])]
    check_columns(battles, [*keys, "value"], caller)
    for column in keys:
        check_labels(battles[column], f"{caller}: column {column}")
    value = as_floats(battles["value"], f"{caller}: column value")
    if outside := value[(value < 0) | (value > 1)].tolist():
        raise ValueError(f"{caller}: column value is outside [0, 1]: {outside[0]}")
    rows = pd.DataFrame({"a": battles["a"].to_numpy(dtype=object), "b": battles["b"].to_numpy(dtype=object), "value": value})
    if cluster is not None:
        rows["cluster"] = battles[cluster].to_numpy(dtype=object)
    if selves := rows.loc[rows["a"] == rows["b"], "a"].tolist():
        raise ValueError(f"{caller}: model {selves[0]!r} meets itself (columns a and b)")
    if rows["value"].isna().all():
        raise ValueError(f"{caller}: no battle has a value (column value, {len(rows)} missing)")
    return rows


def in_order(labels: list[Any]) -> list[Any]:
    """Labels in an order that does not depend on where they stood: numbers by size, all else by its text."""
    return sorted(labels, key=lambda label: (type(label).__name__, label if isinstance(label, int | float) else repr(label)))


def _by_cluster(rows: pd.DataFrame, models: list[Any]) -> tuple[Any, Any, Array]:
    """Battles and first models' wins, each sparse (G, pairs), and the pairs (2, pairs) as places in `models`, first < second."""
    from scipy.sparse import csr_array

    place = {model: i for i, model in enumerate(models)}
    a, b = (rows[column].map(place).to_numpy(dtype=int) for column in ("a", "b"))
    won = np.where(a < b, rows["value"], 1 - rows["value"])
    keys, pair = np.unique(np.minimum(a, b) * len(models) + np.maximum(a, b), return_inverse=True)
    if "cluster" in rows:
        places = {label: i for i, label in enumerate(in_order(rows["cluster"].unique().tolist()))}
        unit = rows["cluster"].map(places).to_numpy(dtype=int)
    else:
        unit = np.empty(len(rows), dtype=int)
        unit[np.lexsort([won, pair])] = np.arange(len(rows))  # whatever the rows' order
    shape = int(unit.max()) + 1, len(keys)
    trials, wins = (csr_array((weights, (unit, pair)), shape=shape) for weights in (np.ones(len(rows)), won))
    return trials, wins, np.stack(np.divmod(keys, len(models)))


def _design(pairs: Array, n_models: int) -> tuple[Any, Any]:
    """Sparse x (pairs, models) with 1 for the first and -1 for the second model, and its rows' products (pairs, models^2)."""
    from scipy.sparse import csr_array

    first, second = pairs
    row, ones = np.arange(len(first)), np.ones(len(first))
    x = csr_array((np.r_[ones, -ones], (np.r_[row, row], np.r_[first, second])), shape=(len(row), n_models))
    places = [i * n_models + j for i in (first, second) for j in (first, second)]
    signs = np.r_[ones, -ones, -ones, ones]
    return x, csr_array((signs, (np.tile(row, 4), np.concatenate(places))), shape=(len(row), n_models**2))


def _above(trials: Array, wins: Array, pairs: Array, n_models: int) -> Array:
    """Whether i has won against j, directly or through others (B, models, models); i itself counts."""
    first, second = pairs
    above = np.tile(np.eye(n_models, dtype=np.float32), (len(trials), 1, 1))
    above[:, first, second] = wins > 0
    above[:, second, first] = trials - wins > 0
    for _ in range(max(1, math.ceil(math.log2(n_models)))):
        above = np.minimum(above @ above, 1)
    return above > 0


def _errors(drawn: Array, confidence: float, known: Array) -> Array:
    """Standard error and interval (n, 3) of what was drawn (draws, n); NaN without draws and where not `known`."""
    if not len(drawn):
        return np.full((len(known), 3), math.nan)
    error = drawn.std(0)
    ends = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    flat = error < NO_ERROR
    errors = np.stack([np.where(flat, 0.0, error), *np.where(flat, math.nan, ends)], axis=1)
    return np.where(known[:, None], errors, math.nan)


def _win_rates(
    models: list[Any], strengths: Array, drawn: Array, above: Array, battles: tuple[Array, Array, Array], confidence: float
) -> pd.DataFrame:
    (first, second), trials, wins = battles
    met, won = (np.zeros(above.shape) for _ in range(2))
    met[first, second] = met[second, first] = trials
    won[first, second], won[second, first] = wins, trials - wins
    frames = []
    for i, model in enumerate(models):
        others = np.delete(np.arange(len(models)), i)
        up, down = above[i, others], above[others, i]
        rate = np.where(up & down, expit(strengths[i] - strengths[others]), np.where(up | down, up.astype(float), math.nan))
        errors = _errors(expit(drawn[:, [i]] - drawn[:, others]), confidence, known=up & down)
        with np.errstate(invalid="ignore"):
            observed = won[i, others] / met[i, others]
        frame = pd.DataFrame({"a": [model] * len(others), "b": [models[j] for j in others], "win_rate": rate})
        frame[ERRORS] = errors
        frames.append(frame.assign(battles=met[i, others].astype(int), observed=observed))
    return pd.concat(frames, ignore_index=True)


def _notes(models: list[Any], groups: Array, absent: list[Any]) -> list[str]:
    notes = []
    if groups.max() > 0:
        named = " | ".join(
            ", ".join(str(m) for m, g in zip(models, groups, strict=True) if g == group) for group in range(groups.max() + 1)
        )
        notes.append(
            f"one-sided or unconnected battles: only within a group are differences of strengths known ({named}); a penalty holds the rest"
        )
    if absent:
        notes.append(f"no battle has a value for {', '.join(str(model) for model in absent)}")
    return notes
