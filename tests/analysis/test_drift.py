"""Drifts between a run and its rerun: error rates by simulation, and numbers by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from apo_bench.analysis.drift import drift, drift_of_contrasts

SEED_SD, CLUSTER_SD, REST_SD = 0.3, 0.5, 0.4


def differences(generator: np.random.Generator, mean: float, cluster: np.ndarray, seeds: int) -> pd.DataFrame:
    """Differences of one run by seed and prompt, each a cluster of its own, whose effects `cluster` both runs share."""
    values = mean + SEED_SD * generator.normal(size=(seeds, 1)) + cluster + REST_SD * generator.normal(size=(seeds, cluster.size))
    rows = [(seed, f"p{k}", f"p{k}", value) for seed, row in enumerate(values) for k, value in enumerate(row)]
    return pd.DataFrame(rows, columns=["seed", "prompt_id", "cluster_id", "value"])


def share_beyond(runs: int, moved: float, paired: bool, seeds: tuple[int, int]) -> float:
    """In what share of pairs of runs a drift beyond seed noise is found, the second's true difference being `moved` away."""
    generator, found = np.random.default_rng(7), 0
    for _ in range(runs):
        cluster = CLUSTER_SD * generator.normal(size=12)
        sides = [differences(generator, mean, cluster, n) for mean, n in zip((0.2, 0.2 + moved), seeds, strict=True)]
        found += drift(*sides, paired=paired).p_drift < 0.05
    return found / runs


@pytest.mark.parametrize(("paired", "seeds"), [(False, (3, 3)), (True, (4, 4)), (False, (3, 6))])
def test_identical_truth_is_within_seed_noise_19_times_in_20(paired: bool, seeds: tuple[int, int]) -> None:
    """400 pairs of runs each: a true rate of 5 % gives 2.8 to 7.2 % (two standard errors); a little below it is no error either."""
    assert 0.015 <= share_beyond(400, 0.0, paired, seeds) <= 0.072


def test_a_true_drift_is_found() -> None:
    """Five seeds each: the error is sqrt(2 * (0.3^2 + 0.4^2 / 12) / 5) = 0.203; a drift of 1 is five of them."""
    assert share_beyond(60, 1.0, False, (5, 5)) > 0.95


def test_added_errors_keep_the_level_where_prompts_are_others() -> None:
    """Two independent normal differences, errors estimated with 3 and 5 degrees of freedom: about 5 % of 4,000 are beyond (SE 0.35 %)."""
    generator, found = np.random.default_rng(3), 0
    for _ in range(4000):
        sides = []
        for sd, df in ((0.2, 3), (0.3, 5)):
            error = sd * math.sqrt(generator.chisquare(df) / df)
            sides.append({"difference": 1 + sd * generator.normal(), "standard_error": error, "df": df, "n_seeds": df + 1})
        found += drift_of_contrasts(*sides).p_drift < 0.05
    assert 0.03 <= found / 4000 <= 0.06


def test_added_errors_by_hand() -> None:
    """1 with error 3 and 2 with error 4, 10 degrees of freedom each: drift 1, error 5. Satterthwaite: 25^2 / ((81 + 256) / 10) = 18.546
    degrees of freedom, 95 % point 2.0964, from 1 - 10.482 to 1 + 10.482; t = 0.2."""
    one = {"difference": 1.0, "standard_error": 3.0, "df": 10.0, "n_seeds": 11.0}
    found = drift_of_contrasts(one, one | {"difference": 2.0, "standard_error": 4.0})
    assert (found.drift, found.drift_low, found.drift_high) == pytest.approx((1, 1 - 10.482, 1 + 10.482), abs=2e-3)
    assert found.p_drift == pytest.approx(0.8437, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"n_seeds": 2.0}, "fewer than three seeds"), ({"standard_error": 0.0}, "no standard error"), ({"df": math.nan}, "no standard error")],
)
def test_no_error_no_test(change: dict[str, float], said: str) -> None:
    one = {"difference": 1.0, "standard_error": 3.0, "df": 10.0, "n_seeds": 11.0}
    found = drift_of_contrasts(one, one | change)
    assert said in found.test
    assert math.isnan(found.p_drift)


def test_one_and_two_seeds_are_not_tested() -> None:
    generator, cluster = np.random.default_rng(0), np.zeros(6)
    for seeds, said in ((1, "one seed tells nothing"), (2, "two seeds give an interval only")):
        found = drift(differences(generator, 0, cluster, seeds), differences(generator, 0, cluster, seeds), paired=False)
        assert said in found.test
        assert math.isnan(found.p_drift)


def test_seeds_that_one_run_lost_are_left_out_of_pairs() -> None:
    """Runs of four seeds and of the first three, the same but for a drift of 0.5 in each: three pairs, which do not vary at all."""
    generator = np.random.default_rng(0)
    first = differences(generator, 0, np.zeros(5), 4)
    second = first[first["seed"] < 3].assign(value=lambda rows: rows["value"] + 0.5)
    found = drift(first, second, paired=True)
    assert found.drift == pytest.approx(0.5)
    assert found.test == "none: nothing varies"
    assert math.isnan(found.p_drift)
