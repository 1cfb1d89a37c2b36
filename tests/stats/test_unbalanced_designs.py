"""Contrasts of seeds x clusters with holes: by hand, against statsmodels, equal to `contrast` without holes, and at their level."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf

from apo_bench.stats.two_way_random_effects import contrast
from apo_bench.stats.unbalanced_designs import additive_fit, unbalanced_contrast


def frame(first: Any, second: Any = 0.0, clusters: Any = None) -> pd.DataFrame:
    """Rows of arms a and b from values (S, P); NaN is no row."""
    first = np.asarray(first, dtype=float)
    second = np.where(np.isnan(first), math.nan, second) if np.ndim(second) == 0 else np.asarray(second, dtype=float)
    rows = [
        {"arm": arm, "seed": s, "prompt_id": f"p{p}", "value": value} | ({} if clusters is None else {"cluster_id": clusters[p]})
        for arm, values in (("a", first), ("b", second))
        for (s, p), value in np.ndenumerate(values)
    ]
    return pd.DataFrame(rows).dropna(subset=["value"])


def holes(rng: np.random.Generator, n_seeds: int, n_clusters: int, share: float) -> np.ndarray:
    values = rng.normal(size=(n_seeds, 1)) + rng.normal(size=n_clusters) + rng.normal(size=(n_seeds, n_clusters))
    values[rng.random(values.shape) < share] = math.nan
    return values[:, ~np.isnan(values).all(0)]


def test_an_additive_table_is_filled_by_hand():
    """Seeds differ by 2, clusters by 2 and 4: the hole is 6, the mean 18 / 6 = 3 (of the cells that are there 12 / 5). Residual 0, with
    5 - 2 - 3 + 1 = 1 degree of freedom."""
    fit = additive_fit(np.array([[0, 2, 4], [2, 4, math.nan]]))
    assert (fit.mean, fit.df) == (pytest.approx(3), 1)
    assert fit.seeds == pytest.approx([2, 4])
    assert fit.clusters == pytest.approx([1, 3, 5])
    assert fit.residual == pytest.approx(0)


@pytest.mark.parametrize("seed", range(4))
def test_the_fit_is_that_of_statsmodels(seed: int):
    """Under sum coding the intercept is the mean over seeds plus that over clusters; its squared error is C of_mean."""
    values = holes(np.random.default_rng(seed), 4, 7, 0.3)
    long = pd.DataFrame([{"s": s, "c": c, "y": y} for (s, c), y in np.ndenumerate(values)]).dropna()
    model, fit = smf.ols("y ~ C(s, Sum) + C(c, Sum)", long).fit(), additive_fit(values)
    assert fit.mean == pytest.approx(model.params["Intercept"])
    assert fit.residual == pytest.approx(model.mse_resid)
    assert fit.residual * fit.of_mean == pytest.approx(model.bse["Intercept"] ** 2)
    assert fit.df == model.df_resid


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_parts_of_the_residual(share: float):
    """From the whole design's pseudo-inverse: the trace of a block of effects, centred, over its number less 1. Without holes 1/(SP), 1/P
    and 1/S."""
    values = holes(np.random.default_rng(5), 4, 9, share)
    n_seeds, n_clusters = values.shape
    s, c = np.nonzero(~np.isnan(values))
    design = np.concatenate([np.eye(n_seeds)[s], np.eye(n_clusters)[c]], axis=1)
    covariance, fit = np.linalg.pinv(design.T @ design), additive_fit(values)
    for block, n, part in ((slice(0, n_seeds), n_seeds, fit.of_seeds), (slice(n_seeds, None), n_clusters, fit.of_clusters)):
        inner = covariance[block, block]
        assert part == pytest.approx((np.trace(inner) - inner.sum() / n) / (n - 1))
    if share == 0:
        assert (fit.of_mean, fit.of_seeds, fit.of_clusters) == pytest.approx((1 / 36, 1 / 9, 1 / 4))


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("shape", [(2, 5), (3, 4), (5, 2), (5, 30), (1, 6)])
def test_without_holes_it_is_the_contrast(shape: tuple[int, int], paired: bool):
    rng = np.random.default_rng(1)
    rows = frame(rng.normal(size=shape), rng.normal(size=shape), [p // 2 if shape[1] > 5 else p for p in range(shape[1])])
    expected, result = contrast(rows, "a", "b", paired_seeds=paired), unbalanced_contrast(rows, "a", "b", paired_seeds=paired)
    for name in expected.__dataclass_fields__:
        value = getattr(expected, name)
        assert getattr(result, name) == (pytest.approx(value, nan_ok=True) if isinstance(value, float) else value), name
    assert result.n_missing == 0


def test_what_is_missing_by_seed_and_cluster_does_no_harm():
    """Differences 1 + seed + cluster, exactly: 1 + 2 + 4.5 whatever is missing. The complete cases are the low clusters of all seeds."""
    values = 1 + np.arange(5.0)[:, None] + np.arange(10.0)
    values[3:, 6:] = math.nan
    rows = frame(values)
    result = unbalanced_contrast(rows, "a", "b")
    assert result.difference == pytest.approx(7.5)
    assert contrast(rows, "a", "b").difference == pytest.approx(5.5)
    assert (result.n_clusters, result.n_missing, result.n_dropped) == (10, 8, 0)
    assert result.test.endswith("additive fit to all cells but 8 missing")


def test_a_score_without_its_partner_is_dropped_and_bounds_by_hand():
    """a (1, 1, 0 / 1, 0, none), b (0, 0, 0 / 0, none, 0): pairs 1, 1, 0 / 1. Of scores 0 and 1 a's mean over prompts, the missing one lost
    or won: (1 + 1/2 + 0) / 3 or (1 + 1/2 + 1/2) / 3; b's 0 or 1/6: bounds 1/2 - 1/6 and 2/3 - 0."""
    a, b = [[1, 1, 0], [1, 0, math.nan]], [[0, 0, 0], [0, math.nan, 0]]
    rows = frame(a, b)
    with pytest.raises(ValueError, match="4 cells of 2 seeds and 3 clusters leave no residual"):
        unbalanced_contrast(rows, "a", "b")
    more = pd.concat([rows, *(rows[rows["prompt_id"] == "p0"].assign(prompt_id=f"p{place}") for place in (3, 4, 5))])
    result = unbalanced_contrast(more, "a", "b", value_range=(0, 1))
    assert (result.n_dropped, result.n_missing) == (2, 2)
    assert (result.worst_low, result.worst_high) == pytest.approx((4.5 / 6 - 0.5 / 6, 5 / 6))


def test_a_cell_is_the_mean_of_the_prompts_that_are_there():
    """Cluster x holds prompts 0 and 1: seed 1 lacks 1, and its cell is prompt 0's value."""
    values = [[1, 3, 5, 2], [2, math.nan, 6, 1], [0, 2, 2, 2]]
    result = unbalanced_contrast(frame(values, clusters=["x", "x", "y", "z"]), "a", "b")
    assert result.difference == pytest.approx(np.mean([[2, 5, 2], [2, 6, 1], [1, 2, 2]]))
    assert result.n_missing == 0


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([[1, 2, math.nan, math.nan], [math.nan, math.nan, 1, 2]], {}, "missing scores cut seeds and clusters in two"),
        ([[1, 2, math.nan], [math.nan, 3, 1]], {}, "4 cells of 2 seeds and 3 clusters leave no residual"),
        ([[1, math.nan], [2, math.nan]], {}, r"1 cluster\(s\)"),
        ([[1, 2, 3], [2, 3, 1]], {"value_range": (0, 2)}, "value_range is the lowest and highest possible score"),
        ([[1, 2, 3], [2, 3, 1]], {"value_range": (0, math.inf)}, "value_range is a finite number"),
    ],
)
def test_unbalanced_contrast_refuses(values: Any, options: Any, message: str):
    with pytest.raises(ValueError, match=message):
        unbalanced_contrast(frame(values), "a", "b", **options)


@pytest.mark.slow
def test_level_where_missing_goes_with_seed_and_cluster():
    """100 nulls of 4 seeds x 30 clusters, of which 30 % are missing, more where seed and cluster are good: at 5 % 5 with SD 2.2; 4 SDs
    above is 13. Power at 2.8 standard errors is above that of the complete cases."""
    rng, rejected, detected, complete = np.random.default_rng(9), 0, 0, 0
    for _ in range(100):
        seeds, clusters = 0.4 * rng.normal(size=(4, 1)), 0.6 * rng.normal(size=30)
        values = seeds + clusters + 0.6 * rng.normal(size=(4, 30))
        values[rng.random(values.shape) < 0.3 + 0.15 * np.sign(seeds) + 0.1 * np.sign(clusters)] = math.nan
        effect = 2.8 * math.sqrt(0.16 / 4 + 0.36 / 30 + 0.36 / 120)
        rejected += unbalanced_contrast(frame(values), "a", "b").p_value < 0.05
        detected += unbalanced_contrast(frame(values + effect), "a", "b").p_value < 0.05
        complete += contrast(frame(values + effect), "a", "b").p_value < 0.05 if (~np.isnan(values).any(0)).sum() > 2 else 0
    assert rejected <= 13
    assert detected > complete
