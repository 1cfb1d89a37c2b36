"""How hard each prompt is to win on, from several models' verdicts against one baseline: the table of `length_controlled_win_rate`."""

from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, log_expit

from apo_bench.stats.argument_checks import as_floats, as_frame, check_columns, check_labels, check_number

CALLER = "instruction_difficulty"
PRIOR_VARIANCE = 1.0  # of a prompt's log-odds


def instruction_difficulty(preferences: pd.DataFrame, *, prior_variance: float = PRIOR_VARIANCE) -> dict[Any, float]:
    """The prompts' g of logit P(model wins) = intercept_m + phi_m tanh(length difference / its SD) + g_prompt, fitted to all rows at once.

    `preferences`: model, prompt_id, value (in [0, 1], NaN missing), length_a, length_b, of two models or more against one baseline. g is
    drawn to 0 as by a normal prior of `prior_variance`, and higher where the baseline is easier to beat. AlpacaEval's own table is such a
    one, of its whole leaderboard (Dubois et al., arXiv:2404.04475); of few models the table knows a model's own verdicts too well, so its
    win rates at equal lengths are drawn towards the raw ones. Raises ValueError, naming the column, for rows that allow no table, and for
    a single model.
    """
    from scipy.optimize import minimize

    rows = _checked(preferences)
    models, names = pd.factorize(rows["model"])
    prompts, prompt_names = pd.factorize(rows["prompt_id"])
    longer = (rows["length_a"] - rows["length_b"]).to_numpy()
    scale = pd.Series(longer).groupby(models).transform("std").fillna(0.0).to_numpy()
    length = np.tanh(longer / np.where(scale > 0, scale, np.inf))
    value, k, n = rows["value"].to_numpy(), len(names), len(prompt_names)
    if k < 2:
        raise ValueError(f"{CALLER}: {k} model(s) (column model); of one its wins and the prompts' ease are the same")
    if check_number(prior_variance, "prior_variance", CALLER) <= 0:
        raise ValueError(f"{CALLER}: prior_variance is above 0, got {prior_variance}")

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        z = x[models] + x[k + models] * length + x[2 * k + prompts]
        rest, prior = expit(z) - value, np.r_[np.full(2 * k, 1e-3), np.full(n, 1 / prior_variance)]
        gradient = np.r_[np.bincount(models, rest, k), np.bincount(models, rest * length, k), np.bincount(prompts, rest, n)]
        likelihood = float((value * log_expit(z) + (1 - value) * log_expit(-z)).sum())
        return float((prior * x**2).sum()) / 2 - likelihood, gradient + prior * x

    fitted = minimize(loss, np.zeros(2 * k + n), jac=True, method="L-BFGS-B", options={"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-9}).x
    return dict(zip(prompt_names.tolist(), fitted[2 * k :].tolist(), strict=True))


def _checked(preferences: Any) -> pd.DataFrame:
    preferences = as_frame(preferences)
    columns = ["model", "prompt_id", "value", "length_a", "length_b"]
    check_columns(preferences, columns, CALLER)
    for column in columns[:2]:
        check_labels(preferences[column], f"{CALLER}: column {column}")
    numbers = {column: as_floats(preferences[column], f"{CALLER}: column {column}") for column in columns[2:]}
    rows = preferences[columns[:2]].reset_index(drop=True).assign(**numbers).dropna(subset=["value"])
    if rows.empty or not rows["value"].between(0, 1).all() or not np.isfinite(rows[columns[3:]]).all(axis=None):
        raise ValueError(f"{CALLER}: values in [0, 1] and finite lengths are needed (columns value, length_a, length_b)")
    return rows
