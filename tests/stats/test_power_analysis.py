"""Power by hand, against scipy's noncentral t where the test is an exact t test, and against simulations of the test itself."""

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from scipy.optimize import brentq
from score_frames import frame

from apo_bench.stats.power_analysis import (
    Components,
    _thinned,
    binary_components,
    components,
    mde_table,
    minimum_detectable_effect,
    noncentral_t_power,
    plan_size,
    power,
)
from apo_bench.stats.two_way_random_effects import paired_error, unpaired_error

SDS = {"seed_sd": 0.2, "method_prompt_sd": 0.5, "residual_sd": 1.0}


def exact(noncentrality: float, df: float, alpha: float = 0.05) -> float:
    """Power of a two-sided t test, by scipy."""
    quantile = scipy_stats.t.ppf(1 - alpha / 2, df)
    return float(scipy_stats.nct.sf(quantile, df, noncentrality) + scipy_stats.nct.cdf(-quantile, df, noncentrality))


# --- power ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_where_only_seeds_vary_it_is_the_t_test_over_seeds(alpha: float) -> None:
    """q = 4, S = 5: V = 4/5 with 4 degrees of freedom, whatever P."""
    result = power(2.0, seed_sd=2.0, method_prompt_sd=0, residual_sd=0, n_seeds=5, n_clusters=7, alpha=alpha)
    assert result == pytest.approx(exact(2 / math.sqrt(4 / 5), 4, alpha), abs=0.002)


def test_one_seed_is_the_t_test_over_clusters() -> None:
    """k + r = 9 + 16, P = 20: V = 25/20 with 19 degrees of freedom; seed variance is not counted. Not paired: k + 2r = 41."""
    sizes = {"seed_sd": 50.0, "method_prompt_sd": 3.0, "residual_sd": 4.0, "n_seeds": 1, "n_clusters": 20}
    assert power(3.0, **sizes) == pytest.approx(exact(3 / math.sqrt(25 / 20), 19), abs=0.001)
    assert power(3.0, **sizes, paired=False) == pytest.approx(exact(3 / math.sqrt(41 / 20), 19), abs=0.001)


def equivalent_df(share: float, seed_df: float, cluster_df: float) -> float:
    """Degrees of freedom of the t distribution with the 5 % point of the mixture of two, by scipy."""

    def outside(t: float) -> float:
        return 2 * (share * scipy_stats.t.sf(t, seed_df) + (1 - share) * scipy_stats.t.sf(t, cluster_df)) - 0.05

    critical = brentq(outside, 1.5, 100)
    return float(brentq(lambda df: scipy_stats.t.ppf(0.975, df) - critical, 0.9, 1000))


def test_noncentral_t_by_hand() -> None:
    """q = .04, k = .25, r = 1, S = 4, P = 5. V = .04/4 + .25/5 + 1/20 = .11, of which A/S = .04/4 + 1/20 = .06: the seeds' share is 6/11,
    with 3 degrees of freedom to the clusters' 4.
    Not paired: V = .02 + .05 + .1 = .17. Two equal seed terms have 3 + 3 = 6 degrees of freedom together, so the clusters are the scarcer
    side and keep B/P = .25/5 + 2/20 = .15: the seeds' share is 2/17.
    """
    sizes = {**SDS, "n_seeds": 4, "n_clusters": 5}
    paired, unpaired = equivalent_df(6 / 11, 3, 4), equivalent_df(2 / 17, 6, 4)
    assert noncentral_t_power(0.9, **sizes) == pytest.approx(exact(0.9 / math.sqrt(0.11), paired), abs=0.001)
    assert noncentral_t_power(0.9, **sizes, paired=False) == pytest.approx(exact(0.9 / math.sqrt(0.17), unpaired), abs=0.001)


@pytest.mark.parametrize(
    ("seed_sd", "method_prompt_sd", "n_seeds", "effect", "paired"),
    [(0.0, 0.0, 3, 0.4, True), (0.3, 1.0, 5, 0.6, True), (0.3, 1.0, 3, 1.2, False), (0.1, 1.0, 3, 0.0, True)],
)
def test_power_is_how_often_the_test_rejects(seed_sd: float, method_prompt_sd: float, n_seeds: int, effect: float, paired: bool) -> None:
    """10,000 normal data sets each, the seed fixed: within 3 binomial standard errors (at most 1.5 points)."""
    rng, shape, n = np.random.default_rng(40), (10_000, n_seeds, 30), 30

    def arm() -> np.ndarray:
        return rng.normal(size=shape) + seed_sd * rng.normal(size=(*shape[:2], 1))

    a = arm() + effect + method_prompt_sd * rng.normal(size=(shape[0], 1, n))
    if paired:
        p = paired_error(a).p_value(a.mean((1, 2)))
    else:
        b = arm()
        p = unpaired_error(a, b).p_value(a.mean((1, 2)) - b.mean((1, 2)))
    rate = float((p < 0.05).mean())
    sds = {"seed_sd": seed_sd, "method_prompt_sd": method_prompt_sd, "residual_sd": 1.0}
    result = power(effect, **sds, n_seeds=n_seeds, n_clusters=n, paired=paired)
    assert abs(rate - result) <= 3 * math.sqrt(result * (1 - result) / shape[0]) + 0.001


designs = st.fixed_dictionaries(
    {
        "seed_sd": st.sampled_from([0.0, 0.1, 1.0]),
        "method_prompt_sd": st.sampled_from([0.0, 0.3, 1.0]),
        "residual_sd": st.sampled_from([0.1, 1.0]),
        "n_seeds": st.integers(3, 12),
        "n_clusters": st.integers(12, 300),
        "paired": st.booleans(),
    }
)


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(designs, st.floats(0, 3))
def test_power_grows_with_the_effect_and_not_with_its_sign_or_unit(design: dict[str, Any], effect: float) -> None:
    result = power(effect, **design)
    assert 0 <= result <= power(effect * 1.2 + 0.01, **design) <= 1
    assert power(-effect, **design) == result
    other_unit = {name: value * 1e-170 if name.endswith("sd") else value for name, value in design.items()}
    assert power(effect * 1e-170, **other_unit) == pytest.approx(result, abs=1e-9)


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(designs, st.integers(1, 10))
def test_what_is_detectable_shrinks_with_seeds_and_with_clusters(design: dict[str, Any], more: int) -> None:
    """It is found with the power it was asked for.

    With three seeds that vary most, more clusters can cost a few per cent through the degrees of freedom, as `plan_size` says.
    """
    result = minimum_detectable_effect(**design)
    assert power(result, **design) == pytest.approx(0.8, abs=1e-6)
    assert minimum_detectable_effect(**design, power=0.9) > result > minimum_detectable_effect(**design, alpha=0.1)
    for name, slack in (("n_seeds", 1.001), ("n_clusters", 1.04)):
        assert minimum_detectable_effect(**design | {name: design[name] + more}) <= slack * result


def test_no_test_no_power() -> None:
    """Two seeds have no test; nor has what does not vary. Where hardly more than alpha is wanted, no difference at all is needed."""
    for design in ({**SDS, "n_seeds": 2}, {"seed_sd": 0, "method_prompt_sd": 0, "residual_sd": 0, "n_seeds": 3}):
        assert math.isnan(power(1.0, **design, n_clusters=10))
        assert math.isnan(noncentral_t_power(1.0, **design, n_clusters=10))
        assert math.isnan(minimum_detectable_effect(**design, n_clusters=10))
    assert math.isnan(power(1.0, seed_sd=1, method_prompt_sd=0, residual_sd=0, n_seeds=1, n_clusters=10))
    only_seeds = {"seed_sd": 1.0, "method_prompt_sd": 0.0, "residual_sd": 0.0, "n_seeds": 3, "n_clusters": 10}
    assert minimum_detectable_effect(**only_seeds, power=0.0501) == pytest.approx(0, abs=0.2)


# --- sizes ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("paired", [True, False])
def test_a_planned_size_is_the_smallest(paired: bool) -> None:
    size = plan_size(0.5, **SDS, n_clusters=40, paired=paired)
    assert size.n_seeds
    assert size.n_seeds > 3
    assert (size.n_clusters, size.reason) == (40, "")
    reached = [power(0.5, **SDS, n_seeds=n, n_clusters=40, paired=paired) for n in (size.n_seeds, size.n_seeds - 1)]
    assert reached[0] == size.power >= 0.8 > reached[1]
    size = plan_size(0.8, **SDS, n_seeds=5, paired=paired)
    assert size.n_clusters
    reached = [power(0.8, **SDS, n_seeds=5, n_clusters=n, paired=paired) for n in (size.n_clusters, size.n_clusters - 1)]
    assert reached[0] == size.power >= 0.8 > reached[1]


def test_the_least_there_is() -> None:
    """Three seeds make a test, and two clusters; one seed may be planned with, for these checkpoints only."""
    assert plan_size(-50, **SDS, n_clusters=40).n_seeds == 3
    assert plan_size(50, **SDS, n_seeds=10).n_clusters == 3
    assert plan_size(0.5, **SDS, n_seeds=1).n_clusters


@pytest.mark.slow
def test_what_more_seeds_or_clusters_cannot_do() -> None:
    """With ever more seeds k/P = 1/25 is left, so .4 is two standard errors of .2, at 24 degrees of freedom.

    With ever more clusters q/S = 1/4, so 1 is two standard errors of .5, at 3 degrees of freedom.
    """
    size = plan_size(0.4, seed_sd=0.5, method_prompt_sd=1.0, residual_sd=0.5, n_clusters=25)
    assert (size.n_seeds, size.n_clusters) == (None, 25)
    assert size.power == pytest.approx(exact(2, 24), abs=0.002)
    assert size.reason.startswith("power stays below 0.8: 100,000 seeds reach 0.4")
    assert "method_prompt_sd at 25 clusters" in size.reason
    size = plan_size(1.0, seed_sd=1.0, method_prompt_sd=0.5, residual_sd=0.5, n_seeds=4)
    assert (size.n_seeds, size.n_clusters) == (4, None)
    assert size.power == pytest.approx(exact(2, 3), abs=0.002)
    assert "seed_sd at 4 seeds" in size.reason
    with pytest.raises(ValueError, match="plan_size: effect is not 0"):
        plan_size(0.0, **SDS, n_clusters=25)
    assert plan_size(1.0, **SDS, n_seeds=2).reason == "no test: two seeds"
    assert plan_size(1.0, seed_sd=0, method_prompt_sd=0, residual_sd=0, n_clusters=9).reason == "no test: nothing varies"


# --- components -------------------------------------------------------------------------------------------------------------------


def test_components_by_hand() -> None:
    """D = [[0, 2], [3, 3], [6, 10]]: A = 13, B = 2, C = 2 (derived for `contrast`). r = 2, q = 13 - 2/2 = 12, k = 2 - 2/3 = 4/3.

    A has 2 degrees of freedom, and a chi-square with 2 has quantiles -2 log(1 - p): 13 lies between 26 / (-2 log .025) and
    26 / (-2 log .975), q 1 lower.
    """
    result = components(frame([[0, 2], [3, 3], [6, 10]], np.zeros((3, 2))), "a", "b")
    assert (result.seed_sd, result.method_prompt_sd, result.residual_sd) == pytest.approx((12**0.5, (4 / 3) ** 0.5, 2**0.5))
    assert result.raw == pytest.approx((12, 4 / 3, 2))
    assert result.seed_sd_low == pytest.approx(math.sqrt(13 / -math.log(0.025) - 1))
    assert result.seed_sd_high == pytest.approx(math.sqrt(13 / -math.log(0.975) - 1))
    assert (result.paired, result.note) == (True, "")
    assert result.source == "analysis of variance of a - b over 3 paired seeds and 2 clusters"


def test_a_negative_variance_is_kept_and_named() -> None:
    """D = [[1, 2, 6], [3, 2, 4]]: A = 0, B = 3, C = 2. q = 0 - 2/3, k = 3 - 2/2 = 2. Seed means that do not vary have no interval."""
    result = components(frame([[1, 2, 6], [3, 2, 4]], np.zeros((2, 3))), "a", "b")
    assert result.raw == pytest.approx((-2 / 3, 2, 2))
    assert (result.seed_sd, result.method_prompt_sd) == (0, pytest.approx(2**0.5))
    assert result.note == "seed variance came out as -0.667, taken as 0"
    assert math.isnan(result.seed_sd_low)
    assert math.isnan(result.seed_sd_high)


def test_unpaired_components_by_hand() -> None:
    """a = [[0, 2], [4, 6]], b = [[0, 0], [2, 4]], other seeds: Aa = 8, Ca = 0, Ab = 4.5, Cb = 1, B = .5 (derived for `contrast`).

    r = (0 + 1)/2, q = (8 + 4.5)/2 - r/2 = 6, k = .5 - 0/2 - 1/2 = 0.
    """
    result = components(frame([[0, 2], [4, 6]], [[0, 0], [2, 4]], seeds_b=[7, 8]), "a", "b")
    assert result.raw == pytest.approx((6, 0, 0.5))
    assert not result.paired
    assert result.seed_sd_low < result.seed_sd < result.seed_sd_high
    assert "2 and 2 unpaired seeds" in result.source


def test_components_of_what_does_not_vary() -> None:
    """.3 - .1 differs from .2 by rounding only."""
    result = components(frame(np.full((3, 4), 0.3), np.full((3, 4), 0.1)), "a", "b")
    assert (result.seed_sd, result.method_prompt_sd, result.residual_sd) == (0, 0, 0)
    assert result.note == "nothing varies"


@pytest.mark.slow
def test_components_are_right_on_average() -> None:
    """120 pilots of 3 seeds and 5 clusters with q = .25, k = 1, r = 4: means within 4 standard errors of their own."""
    rng = np.random.default_rng(41)
    labels = frame(np.zeros((3, 5)), np.zeros((3, 5)))
    result = []
    for _ in range(120):
        d = 2 * rng.normal(size=(3, 5)) + 0.5 * rng.normal(size=(3, 1)) + rng.normal(size=(1, 5))
        result.append(components(labels.assign(value=np.concatenate([d.ravel(), np.zeros(15)])), "a", "b").raw)
    error = np.std(result, axis=0) / math.sqrt(len(result))
    assert (np.abs(np.mean(result, axis=0) - (0.25, 1, 4)) <= 4 * error).all()


@pytest.mark.slow
def test_a_table_of_sizes() -> None:
    """Two seeds have no test; one has, for these checkpoints only. As paired as the components."""
    for paired in (True, False):
        table = mde_table(Components(**SDS, paired=paired), seeds=[1, 2, 4], clusters=[10, 30], power=0.9, alpha=0.01)
        assert (table.index.name, table.columns.name, table.shape) == ("n_seeds", "n_clusters", (3, 2))
        assert table.loc[2].isna().all()
        for s in (1, 4):
            for p in (10, 30):
                single = minimum_detectable_effect(**SDS, n_seeds=s, n_clusters=p, paired=paired, power=0.9, alpha=0.01)
                assert table.loc[s, p] == single


# --- bad input --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"effect": math.nan}, "power: effect is a finite number, got nan"),
        ({"seed_sd": -1.0}, "power: seed_sd is a finite number of at least 0, got -1.0"),
        ({"method_prompt_sd": math.inf}, "power: method_prompt_sd is"),
        ({"residual_sd": math.nan}, "power: residual_sd is"),
        ({"n_seeds": 0}, "power: n_seeds is a whole number of at least 1, got 0"),
        ({"n_seeds": 3.5}, "power: n_seeds is a whole number"),
        ({"n_seeds": math.inf}, "power: n_seeds is a whole number"),
        ({"n_clusters": 1}, "power: n_clusters is a whole number of at least 2, got 1"),
        ({"n_clusters": math.nan}, "power: n_clusters is"),
        ({"alpha": 0.0}, "power: alpha is between 0 and 1, got 0"),
    ],
)
def test_impossible_numbers_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        power(**{"effect": 1.0, **SDS, "n_seeds": 3, "n_clusters": 10} | changes)


def test_impossible_questions_are_named() -> None:
    for wanted in (0.05, 1.0):
        with pytest.raises(ValueError, match=r"minimum_detectable_effect: power is between alpha \(0.05\) and 1"):
            minimum_detectable_effect(**SDS, n_seeds=3, n_clusters=10, power=wanted)
    with pytest.raises(ValueError, match="plan_size: power is between"):
        plan_size(1.0, **SDS, n_clusters=10, power=2)
    for sizes in ({}, {"n_seeds": 3, "n_clusters": 10}):
        with pytest.raises(ValueError, match="plan_size: give n_clusters, to find the seeds, or n_seeds"):
            plan_size(1.0, **SDS, **sizes)
    with pytest.raises(ValueError, match="plan_size: n_clusters is a whole number of at least 2, got 1"):
        plan_size(1.0, **SDS, n_clusters=1)
    with pytest.raises(ValueError, match="mde_table: 0 numbers of seeds and 1 of clusters"):
        mde_table(Components(**SDS), seeds=[], clusters=[10])


def test_bad_pilots_are_refused_by_arm_and_column() -> None:
    scores = frame(np.eye(3), np.ones((3, 3)))
    with pytest.raises(ValueError, match=r"components: arms 'a' and 'b' have one seed \(column seed\)"):
        components(scores[scores["seed"] == 0], "a", "b")
    with pytest.raises(ValueError, match="components: arm 'c' has no rows"):
        components(scores, "a", "c")
    with pytest.raises(ValueError, match="components: arm 'b': column value is NaN or infinite"):
        components(scores.assign(value=scores["value"].where(scores["arm"] == "a")), "a", "b")


def test_a_pilot_beyond_floating_point_is_refused() -> None:
    values = np.random.default_rng(50).normal(size=(2, 4, 6))
    for unit in (1e160, 1e-170):
        with pytest.raises(ValueError, match="components: arms 'a' and 'b': column value is too small or too large"):
            components(frame(*(values * unit)), "a", "b")


@pytest.mark.parametrize(("n_seeds", "missing", "factor"), [(2, 0.5, 5 / 3), (5, 0.0, 1.0), (1, 0.3, 1.0)])
def test_missing_cells_make_the_residual_larger(n_seeds: int, missing: float, factor: float):
    """Of two seeds, half missing, one is there twice as often as both: 2 (2/3 + 1/3 * 1/2) = 5/3."""
    assert _thinned(n_seeds, missing) == pytest.approx(factor)
    sizes = {"seed_sd": 0.3, "method_prompt_sd": 0.5, "n_seeds": 5, "n_clusters": 40}
    larger = power(0.4, residual_sd=math.sqrt(_thinned(5, missing)), **sizes)
    assert power(0.4, residual_sd=1.0, missing=missing, **sizes) == pytest.approx(larger)


@pytest.mark.parametrize("missing", [1, -0.1, math.nan, "0.1"])
def test_missing_is_a_share(missing: Any):
    with pytest.raises(ValueError, match=r"^power: missing is"):
        power(0.4, seed_sd=0.3, method_prompt_sd=0.5, residual_sd=1, n_seeds=5, n_clusters=40, missing=missing)


def test_a_pilots_components_go_into_a_plan_as_they_are() -> None:
    rng = np.random.default_rng(51)
    pilot = components(frame(*rng.normal(size=(2, 4, 20))), "a", "b")
    sds = {name: getattr(pilot, name) for name in ("seed_sd", "method_prompt_sd", "residual_sd")}
    assert power(0.4, **asdict(pilot), n_seeds=5, n_clusters=40) == power(0.4, **sds, n_seeds=5, n_clusters=40)
    assert plan_size(0.4, **asdict(pilot), n_clusters=40) == plan_size(0.4, **sds, n_clusters=40)
    with pytest.raises(TypeError, match="unexpected keyword argument 'alhpa'"):
        power(0.4, **sds, n_seeds=5, n_clusters=40, alhpa=0.1)


def test_components_of_binary_scores_by_hand() -> None:
    """.5 and .4: .25 + .24 = .49; with correlation .5 less sqrt(.06) = .2449; with a seed SD of .1 less .01."""
    assert binary_components(0.5, 0.4).residual_sd == pytest.approx(0.7)
    assert binary_components(0.5, 0.4, correlation=0.5).residual_sd == pytest.approx(math.sqrt(0.49 - math.sqrt(0.06)))
    assert binary_components(0.5, 0.4, seed_sd=0.1).residual_sd == pytest.approx(math.sqrt(0.48))
    for changes, message in (({"share_a": 1.0}, "share_a is between"), ({"seed_sd": 2.0}, "larger than"), ({"correlation": 2.0}, "corr")):
        with pytest.raises(ValueError, match=f"binary_components: .*{message}"):
            binary_components(**{"share_a": 0.5, "share_b": 0.4} | changes)


@pytest.mark.slow
def test_power_for_binary_scores_is_the_share_of_rejections() -> None:
    """1,000 runs of 5 seeds on 60 prompts, shares .7 and .6, no seed or prompt effects: within 3 binomial errors and the test's floor."""
    rng = np.random.default_rng(52)
    expected = power(0.1, **asdict(binary_components(0.7, 0.6)), n_seeds=5, n_clusters=60)
    values = (rng.random((1_000, 5, 60)) < 0.7).astype(float) - (rng.random((1_000, 5, 60)) < 0.6)
    assert float((paired_error(values).p_value(values.mean((1, 2))) < 0.05).mean()) == pytest.approx(expected, abs=0.05)
