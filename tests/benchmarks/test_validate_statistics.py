"""A fast slice of benchmarks/validate_statistics.py: does the contrast keep its level, and do the tests people make instead lose it?

Bounds are the script's (at most 6 % of true nulls rejected at a nominal 5 %, at least 4 % where seeds matter), widened by three binomial
standard errors of the 2,000 data sets drawn here: 3 sqrt(0.06 * 0.94 / 2000) = 1.6 points, so at most 7.6 %; 3 sqrt(0.04 * 0.96 / 2000)
= 1.3 points, so at least 2.7 %.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

from apo_bench.analysis.results import read_run

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from run_folder import frame, scored, write_run
from validation import compared_tests, end_to_end, missed_bounds, rejection_rates, simulated_worlds
from validation.simulated_worlds import World, draw, members

pytestmark = pytest.mark.slow

NULLS = 2000


def rate(world: World, test: str = compared_tests.CONTRAST) -> float:
    table = rejection_rates.null_rates("slice", [world], NULLS, seed=1, wrong=test != compared_tests.CONTRAST)
    return float(table.set_index("test").at[test, "rejected"])


def error(share: float, n: int = NULLS) -> float:
    return float(np.sqrt(share * (1 - share) / n))


@pytest.mark.parametrize("world", [
    World((3, 3), 0.95, 1.0),
    World((3, 3), 0.0, 1.0, cluster_size=10),
    World((3, 3), 0.9, 1.0, paired=False, cluster_size=10),
    World((3, 10), 0.95, paired=False, seed_ratio=(1.0, 0.25)),
    World((5, 5), 0.4, 1.0, shape="tied", cluster_size=10),
    World((5, 5), 0.95, 1.0, shape="skewed"),
    World((20, 20), 0.2, 1.0, prompts=3),
], ids=repr)  # fmt: skip
def test_at_most_six_percent(world: World) -> None:
    assert rate(world) <= 0.06 + 3 * error(0.06)


@pytest.mark.parametrize("world", [World((5, 5), 0.95, 1.0), World((5, 5), 0.95, 1.0, paired=False)], ids=repr)
def test_not_idle_where_seeds_matter(world: World) -> None:
    assert rate(world) >= 0.04 - 3 * error(0.04)


@pytest.mark.parametrize(("test", "world", "least"), [
    ("permutation within (seed, prompt)", World((3, 3), 0.95), 0.5),
    ("t test over prompts, seeds averaged", World((3, 3), 0.95), 0.5),
    ("t test over all rows", World((3, 3), 0.95), 0.5),
    ("bootstrap over prompts, seeds averaged", World((3, 3), 0.95), 0.5),
    ("t test over seed means", World((5, 5), 0.0, 1.0, cluster_size=10), 0.3),
    ("percentile bootstrap over seeds and prompts", World((3, 3), 0.95, 1.0), 0.1),
    ("the contrast, clusters ignored", World((5, 5), 0.0, 1.0, cluster_size=10), 0.2),
    (compared_tests.SATTERTHWAITE, World((3, 3), 0.8, 1.0), 0.05),
    ("the contrast, not paired, seed df pooled", World((3, 3), 0.95, paired=False, seed_ratio=(1.0, 0.25)), 0.05),
])  # fmt: skip
def test_what_people_do_instead_rejects_too_often(test: str, world: World, least: float) -> None:
    assert rate(world, test) > least + 3 * error(least)


def test_arrays_and_frames_give_the_same_p_value() -> None:
    worlds = [World((3, 3), 0.4, 1.0, paired, size) for paired in (True, False) for size in (1, 10)]
    assert rejection_rates.frame_and_array_disagree(worlds, seed=0, each=1) < 1e-12


@pytest.mark.parametrize("paired", [True, False])
def test_the_seed_share_is_what_it_says(paired: bool) -> None:
    """Simulated mean differences vary by `variance`, of which seeds make up seed_share; the chi-square error is sqrt(2/1500) = 3.7 %."""
    world = World((3, 3), 0.4, 1.0, paired, 10, seed_ratio=(1.0, 0.5), spread=(1.5, 1.0), effect=0.5)
    a, b = draw(world, np.random.default_rng(0), 1500)
    difference = a.mean((1, 2)) - b.mean((1, 2))
    assert difference.var() == pytest.approx(world.variance, rel=3 * 0.037)
    assert difference.mean() == pytest.approx(0.5, abs=4 * np.sqrt(world.variance / 1500))
    seeds = sum((w * sd) ** 2 / 3 for w, sd in zip(world.spread, world.seed_sds, strict=True))
    assert seeds / world.variance == pytest.approx(0.4)


def test_sign_flips_agree_with_counting_them_all() -> None:
    """Three rows of differences 1, 2, 4: of the 8 sign patterns only +++ and --- give a sum of 7 or more in size: p = 2/8."""
    data = compared_tests.Data(np.array([[[1.0, 2.0, 4.0]]]), np.zeros((1, 1, 3)), paired=True)
    assert compared_tests.sign_flips(data, np.random.default_rng(0))[0] == pytest.approx(0.25, abs=0.05)


def test_t_tests_agree_with_scipy() -> None:
    from scipy.stats import ttest_ind, ttest_rel

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(1, 3, 20)), rng.normal(0.3, 2.0, size=(1, 4, 20))
    unpaired, paired = compared_tests.Data(a, b, paired=False), compared_tests.Data(a, b[:, :3], paired=True)
    assert compared_tests.row_t(unpaired, rng)[0] == pytest.approx(ttest_ind(a.ravel(), b.ravel(), equal_var=False).pvalue)
    assert compared_tests.row_t(paired, rng)[0] == pytest.approx(ttest_rel(a.ravel(), b[:, :3].ravel()).pvalue)
    assert compared_tests.seed_t(unpaired, rng)[0] == pytest.approx(ttest_ind(a.mean(2)[0], b.mean(2)[0], equal_var=False).pvalue)
    assert compared_tests.prompt_t(unpaired, rng)[0] == pytest.approx(ttest_rel(a.mean(1)[0], b.mean(1)[0]).pvalue)


def test_members_average_a_clusters_prompts() -> None:
    scores = np.arange(300.0)
    assert (scores @ members(World((3, 3), cluster_size=10)))[:2] == pytest.approx([4.5, 14.5])


def test_splits_are_disjoint_halves() -> None:
    halves = end_to_end.split(np.arange(8.0)[:, None], 3, 50, np.random.default_rng(0))
    drawn = np.concatenate(halves, axis=1)[..., 0]  # (splits, 6)
    assert all(len(set(row)) == 6 for row in drawn.tolist())
    assert len({tuple(row) for row in drawn.tolist()}) > 40


def test_scores_of_a_run_folder(tmp_path: Path) -> None:
    """Final round 1 only; prompt p2 lacks a row in seed 1 and is left out."""
    rounds = {("rjs", 0, 0): (9, 9, 9), ("rjs", 0, 1): (1, 2, 3), ("rjs", 1, 1): (4, 5, float("nan"))}
    run = read_run(write_run(tmp_path / "run", {"scores": scored(rounds), "ledger": frame("ledger", [("rjs", 0, "flops", 1.0, 2.0)])}))
    scores, weights = end_to_end.arm_matrix(run, "rjs", "ground_truth")
    assert (scores @ weights).tolist() == [[1, 2], [4, 5]]


def test_a_miss_is_beyond_the_bound_by_more_than_two_errors() -> None:
    """At 10,000 data sets two errors are 0.47 points at 6 % and 0.39 at 4 %."""
    large, none = World((5, 5), 0.95), World((5, 5))
    result = [rejection_rates.verdict(large, share, 10_000) for share in (0.065, 0.064, 0.037, 0.036)]
    assert result == ["above 6 %", "", "", "below 4 %"]
    assert rejection_rates.verdict(none, 0.01, 10_000) == ""


def test_the_page_gives_a_reason_for_every_miss() -> None:
    world = World((3, 3), 0.95, 1.0, shape="skewed", seed_ratio=(1.0, 0.0), method_ratio=(1.0, 0.0))
    row = {**rejection_rates.described(world), "misses": "above 6 %", "test": compared_tests.CONTRAST}
    assert missed_bounds.reason(row) == "skewed seeds"
    assert missed_bounds.reason(row | {"shape": "normal", "misses": "below 4 %", "paired": False}) == "Welch's df"
    assert missed_bounds.reason(row | {"shape": "normal", "misses": "below 4 %", "seed_share": 0.4}) == "guards"
    assert missed_bounds.reason(row | {"shape": "normal"}) == "chance or unexplained"


def test_collapsing_seeds_have_mean_0_and_the_spread_they_are_given() -> None:
    """One in ten lies ten SDs of the others below: with SD u of the others, u^2 + 0.1 * 0.9 * (10 u)^2 = 10 u^2 = 1.

    The mean of 30,000 is right to 4 / sqrt(30000); of those within 5 u of the upper centre there are nine in ten, and their SD is u.
    """
    assert simulated_worlds.ordinary_share(10.0) == pytest.approx(0.1**0.5)
    effects = simulated_worlds.collapsing(np.random.default_rng(0), (30_000,), 10.0)
    ordinary = effects[effects > -0.5]
    assert effects.mean() == pytest.approx(0, abs=4 / np.sqrt(30_000))
    assert effects.std() == pytest.approx(1, rel=0.03)
    assert len(ordinary) / 30_000 == pytest.approx(0.9, abs=0.01)
    assert ordinary.std() == pytest.approx(0.1**0.5, rel=0.03)


def test_the_interval_leaves_out_0_where_the_p_value_is_below_5_percent() -> None:
    """What is counted of two seeds, who have an interval only."""
    data = next(rejection_rates.simulated(World((2, 2), 0.999, prompts=10), np.random.default_rng(0), 500))
    outside = np.abs(data.difference) > np.sqrt(data.error.variance) * data.error.quantile(0.975)
    assert outside.any()
    assert (outside == (compared_tests.contrast(data) < 0.05)).all()


def test_the_bootstrap_is_measured_where_it_is_not_the_contrast() -> None:
    result = rejection_rates.bootstrap_rates("slice", [World((3, 3), prompts=20), World((5, 5), prompts=20)], nulls=3, draws=100, seed=0)
    assert list(result["seeds_a"]) == [5]


def test_two_seeds_are_measured_by_their_interval_and_asked_for_no_more_than_six_percent() -> None:
    result = rejection_rates.null_rates("slice", [World((2, 2), 0.4, prompts=10)], 200, seed=0, wrong=False)
    assert list(result["test"]) == [rejection_rates.INTERVAL]
    assert rejection_rates.verdict(World((2, 2), 0.95), 0.01, 10_000) == ""
    assert rejection_rates.verdict(World((2, 2), 0.95), 0.08, 10_000) == "above 6 %"
