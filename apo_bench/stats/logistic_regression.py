"""Batched logistic regression: one fit per bootstrap draw, all draws at once. Length control and Bradley-Terry models use it."""

from typing import Any

import numpy as np
from scipy.special import expit

from apo_bench.stats.argument_checks import Array

PENALTY = 1e-4  # a normal prior of SD 100 on each coefficient: negligible beside informative data, finite without them
UNBOUNDED = 0.01  # a variance beyond this share of the prior's comes from the prior, not from the data
STEPS = 1000
CLOSE = 1e-6  # a Newton step below this leaves an error of about its square


def fit_logit(x: Any, outer: Any, trials: Array, wins: Array, start: Array) -> tuple[Array, Array]:
    """Coefficients (B, k) of B weighted logistic regressions on one design x (n, k), and their information matrices (B, k, k).

    `trials` and `wins` (B, n), wins <= trials: trials and wins of the comparisons in row i; any real numbers (binomial
    quasi-likelihood). `outer` (n, k * k) holds the products of each row of x with itself; x and outer may be sparse. Maximised is
    the log-likelihood less PENALTY / 2 * sum of squared coefficients, which treats winning and losing alike. From `start` (k,) by
    Newton steps d, damped by log(1 + s)/s with s the largest |x d|: this always converges (Sun & Tran-Dinh, Math. Program. 178,
    2019: logistic regression is generalised self-concordant with nu = 2), also where the data are separated.
    """
    n_columns = x.shape[1]
    coefficients = np.tile(np.asarray(start, dtype=float), (len(trials), 1))
    predictor = (x @ coefficients.T).T  # this way round for sparse x
    for _ in range(STEPS):
        p = expit(predictor)
        slope = (x.T @ (wins - trials * p).T).T - PENALTY * coefficients
        information = ((trials * p * (1 - p)) @ outer).reshape(-1, n_columns, n_columns) + PENALTY * np.eye(n_columns)
        step = np.linalg.solve(information, slope[..., None])[..., 0]
        move = (x @ step.T).T
        size = np.maximum(np.abs(move).max(1), 1e-300)
        rate = (np.log1p(size) / size)[:, None]
        coefficients, predictor = coefficients + rate * step, predictor + rate * move
        if size.max() < CLOSE:
            return coefficients, information
    raise ArithmeticError(f"fit_logit: no convergence in {STEPS} steps")


def row_products(x: Array) -> Array:
    """Each row's products with itself, x (n, k) -> (n, k * k)."""
    return (x[:, :, None] * x[:, None, :]).reshape(len(x), -1)
