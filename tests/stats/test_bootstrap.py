"""The two-way bootstrap against the variances it must have, a plain loop, and the two-way test."""

import math

import numpy as np
import pandas as pd
import pytest
from score_frames import frame

from apo_bench.stats import contrast, lay_out, two_way_bootstrap
from apo_bench.stats.bootstrap import resampled_differences


def effects(n_seeds: int, n_clusters: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = (n_seeds, n_clusters)
    return rng.normal(size=shape) + 0.5 * rng.normal(size=(n_seeds, 1)) + 0.7 * rng.normal(size=(1, n_clusters)) + 0.3


@pytest.mark.parametrize("paired", [True, False])
def test_draws_have_the_mean_and_variance_that_resampling_has(paired: bool) -> None:
    """Mean the difference; variance A/S + B/P + C/(SP) (unpaired: A/S and C/(SP) of each arm), by plain sums of squares here.

    30,000 draws: the variance is known to 1.1 % (sqrt(2/30000) and a bit for kurtosis is .8 %), the mean to SD/173; bounds four times that.
    """
    a, b = effects(4, 7), effects(4, 7, seed=1)
    layout = lay_out(frame(a, b, None if paired else [7, 8, 9, 10]), "a", "b")
    draws = resampled_differences(layout, 30_000, seed=5)
    terms = float((a - b).mean(0).var(ddof=1)) / 7
    for scores_ in [a - b] if paired else [a, b]:
        rest = scores_ - scores_.mean(1, keepdims=True) - scores_.mean(0) + scores_.mean()
        terms += scores_.mean(1).var(ddof=1) / 4 + (rest**2).sum() / 18 / 28
    assert draws.var() == pytest.approx(terms, rel=0.045)
    assert draws.mean() == pytest.approx((a - b).mean(), abs=4 * math.sqrt(terms / 30_000))


@pytest.mark.slow
def test_weights_equal_copied_rows() -> None:
    """A plain loop over pandas resamples, S - 1 seeds and P - 1 clusters with replacement, has the same spread.

    2,000 draws know an SD to 1.6 %.
    """
    a, b = effects(5, 8), effects(5, 8, seed=1)
    scores, rng, means = frame(a, b), np.random.default_rng(11), []
    wide = scores.pivot(index="seed", columns=["arm", "prompt_id"], values="value")
    for _ in range(2000):
        rows, columns = wide.loc[rng.choice(5, 4)], [f"p{j}" for j in rng.choice(8, 7)]
        means.append(rows["a"][columns].to_numpy().mean() - rows["b"][columns].to_numpy().mean())
    draws = resampled_differences(lay_out(scores, "a", "b"), 20_000, seed=2)
    assert draws.std() == pytest.approx(np.std(means), rel=0.08)
    np.testing.assert_allclose(np.quantile(draws, [0.1, 0.9]), np.quantile(means, [0.1, 0.9]), atol=0.15 * draws.std())


@pytest.mark.parametrize(("n_seeds", "paired"), [(1, True), (6, True), (8, False), (12, True)])
def test_on_normal_scores_it_agrees_with_the_two_way_test(n_seeds: int, paired: bool) -> None:
    a, b = effects(n_seeds, 200), effects(n_seeds, 200, seed=1) * 0.5
    scores = frame(a, b, None if paired else list(range(20, 20 + n_seeds)))
    result, exact = two_way_bootstrap(scores, "a", "b", seed=3), contrast(scores, "a", "b")
    assert (result.difference, result.standard_error, result.df) == (exact.difference, exact.standard_error, exact.df)
    assert (result.ci_low, result.ci_high) == pytest.approx((exact.ci_low, exact.ci_high), abs=0.35 * exact.standard_error)
    assert result.p_value == pytest.approx(exact.p_value, abs=0.05)
    assert exact.standard_error * 0.95 < result.resampled_error < exact.standard_error * 1.5  # the residual is in it three times
    assert (result.n_seeds, result.n_clusters, result.scope, result.draws) == (exact.n_seeds, 200, exact.scope, 10_000)
    assert result.test.startswith("bootstrap over clusters" if n_seeds == 1 else "bootstrap over seeds")


@pytest.mark.parametrize("n_seeds", [3, 4])
def test_few_seeds_have_no_shape_and_keep_the_two_way_test(n_seeds: int) -> None:
    scores = frame(effects(n_seeds, 30), effects(n_seeds, 30, seed=1))
    result, exact = two_way_bootstrap(scores, "a", "b", draws=500, seed=3), contrast(scores, "a", "b")
    assert (result.ci_low, result.ci_high, result.p_value) == (exact.ci_low, exact.ci_high, exact.p_value)
    assert result.test == f"{exact.test} ({n_seeds} seeds are too few for a bootstrap's)"


@pytest.mark.slow
def test_interval_and_p_value_say_the_same() -> None:
    """The p-value is below 5 % where the 95 % interval leaves out 0 (unless it is closer to 5 % than a draw or two)."""
    for shift in np.linspace(-0.5, 1.5, 21):
        result = two_way_bootstrap(frame(effects(6, 30) + shift, effects(6, 30, seed=1)), "a", "b", draws=2000, seed=4)
        if abs(result.p_value - 0.05) > 0.003:
            assert (result.p_value < 0.05) == (result.ci_low > 0 or result.ci_high < 0)


def test_skewed_scores_give_a_skewed_interval() -> None:
    """One cluster in forty is far above the rest: the interval reaches farther up than that of the two-way test, and down as far."""
    a = np.random.default_rng(12).normal(scale=0.1, size=(6, 40))
    a[:, 0] += 8
    scores = frame(a, np.zeros((6, 40)))
    result, exact = two_way_bootstrap(scores, "a", "b", draws=4000, seed=5), contrast(scores, "a", "b")
    assert result.ci_low == exact.ci_low
    assert result.ci_high - result.difference > 1.05 * (exact.ci_high - exact.difference)


def test_one_event_among_many_scores_is_no_finding() -> None:
    """A single 1 among 200 scores of arm a, none in b: D = 1/200, A/S = B/P = C/(SP) = (1/200)^2, so T = 1 and p = P(|t_9| > 1) = .343.

    No draw goes below 0, where its draws alone would put the interval's end.
    """
    a = np.zeros((10, 20))
    a[0, 0] = 1
    result = two_way_bootstrap(frame(a, np.zeros((10, 20))), "a", "b", draws=1000, seed=0)
    assert result.difference == result.standard_error == pytest.approx(1 / 200)
    assert result.p_value == pytest.approx(0.3434, abs=1e-3)
    assert result.ci_low < 0 < result.ci_high


@pytest.mark.slow
@pytest.mark.parametrize("paired", [True, False])
def test_rare_events_are_not_declared_different(paired: bool) -> None:
    """One score in a hundred is 1, in both arms: of 200 true nulls at most 5 % + 3 sqrt(.05 * .95 / 200) = 9.6 % are rejected."""
    rng, rejected = np.random.default_rng(13), 0
    for _ in range(200):
        a, b = (rng.random((2, 5, 60)) < 0.01).astype(float)
        rejected += two_way_bootstrap(frame(a, b, None if paired else [5, 6, 7, 8, 9]), "a", "b", draws=200, seed=1).p_value < 0.05
    assert rejected <= 19


def test_the_order_of_rows_changes_nothing() -> None:
    scores = frame(effects(6, 10), effects(6, 10, seed=1))
    shuffled = scores.sample(frac=1, random_state=2)
    assert two_way_bootstrap(scores, "a", "b", draws=500, seed=1) == two_way_bootstrap(shuffled, "a", "b", draws=500, seed=1)


def test_it_is_the_seed_that_decides() -> None:
    scores = frame(effects(4, 10), effects(4, 10, seed=1))
    first, again, other = (two_way_bootstrap(scores, "a", "b", draws=500, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_what_permits_no_honest_number() -> None:
    two = two_way_bootstrap(frame(effects(2, 10), effects(2, 10, seed=1)), "a", "b", draws=500, seed=0)
    assert (math.isnan(two.p_value), math.isfinite(two.ci_low), two.test) == (True, True, "none: two seeds give an interval only")
    flat = two_way_bootstrap(frame(np.ones((3, 4)), np.zeros((3, 4))), "a", "b", draws=500, seed=0)
    assert (flat.standard_error, math.isnan(flat.ci_low), flat.test) == (0, True, "none: nothing varies")
    bad = ((10, 0, "draws is a whole number of at least 100"), (1000.0, 0, "draws"), (500, None, "seed"), (500, -1, "seed"))
    for draws, seed, message in bad:
        with pytest.raises(ValueError, match=f"two_way_bootstrap: {message}"):
            two_way_bootstrap(frame(effects(3, 4), effects(3, 4)), "a", "b", draws=draws, seed=seed)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="two_way_bootstrap: arm 'b' has no rows"):
        two_way_bootstrap(pd.DataFrame(frame(effects(3, 4), effects(3, 4)).query("arm == 'a'")), "a", "b", seed=0)
