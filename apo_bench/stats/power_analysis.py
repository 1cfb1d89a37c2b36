"""Power analysis: the effect a design can detect, and the seeds or clusters of prompts that an effect needs.

In the model of `two_way_random_effects`, with normal scores, the mean difference and the mean squares of its error are independent: the
mean is normal with variance V = q/S + k/P + r/(SP), each mean square its expectation times a chi-square over its degrees of freedom.
The power of the test that `contrast` makes is therefore an expectation over three or four chi-squares, with the floor of V, its random
degrees of freedom and all. It is taken at fixed, evenly spread points: no draws, no seed, right to about 0.2 points.

Standard deviations mean, throughout:

    paired      seed_sd, method_prompt_sd, residual_sd: sqrt(q), sqrt(k), sqrt(r) of the difference D[s, c] of two arms
    not paired  seed_sd, residual_sd: of ONE arm's scores, each arm having S seeds of its own; method_prompt_sd: of the difference of the
                two arms' cluster means, the residual taken off. V = 2q/S + k/P + 2r/(SP)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import gammaincinv, gammaln, ndtr, stdtrit, xlogy  # scipy.stats would take a second to import

from apo_bench.stats.argument_checks import ROUNDING, Array, check_count, check_number, short_repr
from apo_bench.stats.score_layout import lay_out
from apo_bench.stats.two_way_random_effects import combine_terms, effective_df, estimate_difference, variance_terms

POINTS = 4096
MOST = 100_000  # seeds or clusters; what so many cannot do, no number can


@dataclass(frozen=True)
class Components:
    """Variance components of two arms' differences as standard deviations (defined in the module's head), and their source.

    `raw` are the estimated variances q, k, r themselves: a negative one counts as an SD of 0, and `note` says so. `seed_sd_low` and
    `seed_sd_high` are a 95 % interval: the chi-square one of the seeds' mean square, less the residual's share of it, not below 0.
    """

    seed_sd: float
    method_prompt_sd: float
    residual_sd: float
    paired: bool = True
    source: str = "given"
    note: str = ""
    raw: tuple[float, float, float] = (math.nan, math.nan, math.nan)
    seed_sd_low: float = math.nan
    seed_sd_high: float = math.nan


@dataclass(frozen=True)
class Size:
    """A design and its power for an effect; without such a design its number is None, and `reason` says why."""

    n_seeds: int | None
    n_clusters: int | None
    power: float
    reason: str = ""


def power(
    effect: float,
    *,
    seed_sd: float,
    method_prompt_sd: float,
    residual_sd: float,
    n_seeds: int,
    n_clusters: int,
    paired: bool = True,
    alpha: float = 0.05,
    missing: float = 0.0,
    **described: Any,
) -> float:
    """The probability that `contrast`'s two-sided test rejects at `alpha` where the true difference is `effect`; for normal scores.

    `n_seeds` is each arm's. One seed: the t test over clusters, which counts no seed variance ("these checkpoints only"). Two of either: no
    test, so NaN; NaN too where all three SDs are 0. An effect of 0 gives the test's size. `missing` is the share of
    cells (seed x cluster) expected without a value, as `unbalanced_contrast` takes them: the residual's part of cluster means grows.
    `described`: what else a `Components` holds, which changes nothing, so that `power(effect, **asdict(components(...)), ...)` works.
    Raises ValueError for impossible numbers.
    """
    _check_described(described, "power")
    design = _Design("power", seed_sd, method_prompt_sd, residual_sd, paired, alpha, missing)
    return design.test(n_seeds, n_clusters).power(check_number(effect, "effect", "power"))


def noncentral_t_power(
    effect: float,
    *,
    seed_sd: float,
    method_prompt_sd: float,
    residual_sd: float,
    n_seeds: int,
    n_clusters: int,
    paired: bool = True,
    alpha: float = 0.05,
    **described: Any,
) -> float:
    """The usual approximation of `power`: a noncentral t at |effect| / sqrt(V), with the degrees of freedom at expected mean squares.

    It ignores the floor of V and that V's shares are themselves estimated, and mostly overstates power: by how much is in
    results/validation. For comparison; arguments as of `power`.
    """
    _check_described(described, "noncentral_t_power")
    design = _Design("noncentral_t_power", seed_sd, method_prompt_sd, residual_sd, paired, alpha)
    return design.test(n_seeds, n_clusters, expected=True).power(check_number(effect, "effect", "noncentral_t_power"))


def minimum_detectable_effect(
    *,
    seed_sd: float,
    method_prompt_sd: float,
    residual_sd: float,
    n_seeds: int,
    n_clusters: int,
    paired: bool = True,
    power: float = 0.8,
    alpha: float = 0.05,
    missing: float = 0.0,
    **described: Any,
) -> float:
    """The size of the true difference that `contrast`'s test finds with probability `power`; NaN without a test (two of either)."""
    _check_described(described, "minimum_detectable_effect")
    design = _Design("minimum_detectable_effect", seed_sd, method_prompt_sd, residual_sd, paired, alpha, missing)
    return design.test(n_seeds, n_clusters).detectable(design.wanted(power))


def plan_size(
    effect: float,
    *,
    seed_sd: float,
    method_prompt_sd: float,
    residual_sd: float,
    n_clusters: int | None = None,
    n_seeds: int | None = None,
    paired: bool = True,
    power: float = 0.8,
    alpha: float = 0.05,
    missing: float = 0.0,
    **described: Any,
) -> Size:
    """The fewest seeds (of each arm, at least 3) that find `effect` with probability `power` on `n_clusters` clusters of prompts.

    With `n_seeds` given instead, the fewest clusters (at least 3; with one seed 2). More of one cannot make up for the other: with ever
    more seeds k/P is left of V, with ever more clusters q/S (2q/S). That limit is read off at 100,000; where it falls short the number
    asked for is None, and `reason` says what is left. (Where the scarcer of the two varies most, more of the other can cost the test a
    little power. The number is then where doubling and halving first meet the power.)
    """
    _check_described(described, "plan_size")
    design = _Design("plan_size", seed_sd, method_prompt_sd, residual_sd, paired, alpha, missing)
    if check_number(effect, "effect", "plan_size") == 0:
        raise ValueError("plan_size: effect is not 0; no design finds what is not there")
    if n_clusters is not None and n_seeds is None:
        reached, least, left = (lambda n: design.test(n, n_clusters).power(effect)), 3, f"method_prompt_sd at {n_clusters} clusters"
    elif n_seeds is not None and n_clusters is None:
        least = 2 if n_seeds == 1 else 3
        reached, left = (lambda n: design.test(n_seeds, n).power(effect)), f"seed_sd at {n_seeds} seeds"
    else:
        raise ValueError("plan_size: give n_clusters, to find the seeds, or n_seeds, to find the clusters")
    fewest, best_power = _fewest(least, reached, design.wanted(power))
    if math.isnan(best_power):
        why = "two seeds" if n_seeds == 2 else "two clusters" if n_clusters == 2 else "nothing varies"
        return Size(n_seeds, n_clusters, math.nan, f"no test: {why}")
    if fewest is None:
        reason = (
            f"power stays below {power:g}: {MOST:,} {'clusters' if n_seeds else 'seeds'} reach {best_power:.2f}, as {left} is what is left"
        )
        return Size(n_seeds, n_clusters, best_power, reason)
    return Size(n_seeds or fewest, n_clusters or fewest, reached(fewest))


def binary_components(
    share_a: float, share_b: float, *, seed_sd: float = 0.0, method_prompt_sd: float = 0.0, correlation: float = 0.0
) -> Components:
    """Variance components of 0-1 scores (pass or fail, refused or not) of two paired arms whose shares of 1 are `share_a` and `share_b`.

    A cell's difference has variance pa (1 - pa) + pb (1 - pb) - 2 rho sqrt(pa (1 - pa) pb (1 - pb)), `correlation` rho being that of the
    two arms' scores on one prompt; what seeds (`seed_sd`) and prompts (`method_prompt_sd`) do not take of it is residual. For use in
    `power(share_a - share_b, **asdict(...), ...)`: the mean over many cells is near normal.
    By hand, .5 and .4: .25 + .24 = .49, residual SD .7. Raises ValueError for shares that are not between 0 and 1, and components beyond
    that variance.
    """
    caller = "binary_components"
    for name, share in (("share_a", share_a), ("share_b", share_b)):
        if not 0 < check_number(share, name, caller) < 1:
            raise ValueError(f"{caller}: {name} is between 0 and 1, got {share}")
    if not -1 <= check_number(correlation, "correlation", caller) <= 1:
        raise ValueError(f"{caller}: correlation is between -1 and 1, got {correlation}")
    first, second = share_a * (1 - share_a), share_b * (1 - share_b)
    residual = first + second - 2 * correlation * math.sqrt(first * second) - seed_sd**2 - method_prompt_sd**2
    if residual < 0:
        raise ValueError(f"{caller}: seed_sd and method_prompt_sd are larger than 0-1 scores of such shares can vary")
    return Components(seed_sd, method_prompt_sd, math.sqrt(residual), source=f"0-1 scores, shares {share_a:g} and {share_b:g}")


def _check_described(described: Mapping[str, Any], caller: str) -> None:
    if odd := sorted(set(described) - set(Components.__dataclass_fields__)):
        raise TypeError(f"{caller}() got an unexpected keyword argument {odd[0]!r}")


def components(scores: pd.DataFrame, a: str, b: str, *, paired_seeds: bool | None = None) -> Components:
    """Analysis-of-variance estimates from a pilot's long frame (as `contrast` takes): r = C, q = A - C/P, k = B - C/S.

    Not paired: q and r are the means of the two arms' estimates, and k = B - Ca/Sa - Cb/Sb. These are unbiased (Searle, Casella and
    McCulloch, Variance Components, 1992, section 4.3), hence sometimes negative: such a one counts as 0. From few seeds all are rough.
    Raises ValueError, naming arm and column, for rows that `contrast` refuses, and for a single seed.
    """
    layout = lay_out(scores, a, b, paired_seeds=paired_seeds, caller="components")
    if layout.n_seeds < 2:
        raise ValueError(f"components: arms {a!r} and {b!r} have one seed (column seed); seed variance needs at least two")
    estimate_difference(layout, f"components: arms {a!r} and {b!r}")  # refuses what floating-point variances cannot hold
    sides, n_clusters = [layout.differences] if layout.paired else [layout.first, layout.second], layout.n_clusters
    counts, terms = [len(side) for side in sides], [variance_terms(side) for side in sides]
    seed = [n * float(term) for n, (term, _) in zip(counts, terms, strict=True)]  # A of each side
    residual = [n * n_clusters * float(term) for n, (_, term) in zip(counts, terms, strict=True)]  # C
    mean_square, between, r = float(np.mean(seed)), float(layout.differences.mean(0).var(ddof=1)), float(np.mean(residual))
    q, k = mean_square - r / n_clusters, between - sum(side / n for side, n in zip(residual, counts, strict=True))

    scale = max(np.abs(layout.first).max(), np.abs(layout.second).max())
    rounding = ROUNDING * max(mean_square, between, r) + (ROUNDING * scale) ** 2
    raw = {name: value if abs(value) > rounding else 0.0 for name, value in (("seed", q), ("method x prompt", k), ("residual", r))}
    notes = [f"{name} variance came out as {value:.3g}, taken as 0" for name, value in raw.items() if value < 0]
    low, high = math.nan, math.nan
    if mean_square > rounding:
        df = float(effective_df(seed, [n - 1 for n in counts]))
        low, high = (df * mean_square / (2 * float(gammaincinv(df / 2, at))) - r / n_clusters for at in (0.975, 0.025))
    seeds = f"{counts[0]} paired seeds" if layout.paired else f"{counts[0]} and {counts[1]} unpaired seeds"
    return Components(
        *map(_sd, raw.values()),
        paired=layout.paired,
        source=f"analysis of variance of {a} - {b} over {seeds} and {n_clusters} clusters",
        note="; ".join(notes if any(raw.values()) else ["nothing varies"]),
        raw=(raw["seed"], raw["method x prompt"], raw["residual"]),
        seed_sd_low=_sd(low),
        seed_sd_high=_sd(high),
    )


def mde_table(
    components: Components, *, seeds: Sequence[int], clusters: Sequence[int], power: float = 0.8, alpha: float = 0.05
) -> pd.DataFrame:
    """`minimum_detectable_effect` of every design: rows n_seeds, columns n_clusters; paired or not as the components are."""
    if not len(seeds) or not len(clusters):
        raise ValueError(f"mde_table: {len(seeds)} numbers of seeds and {len(clusters)} of clusters; give at least one of each")
    sds = components.seed_sd, components.method_prompt_sd, components.residual_sd
    design = _Design("mde_table", *sds, components.paired, alpha)
    rows = [[design.test(s, p).detectable(design.wanted(power)) for p in clusters] for s in seeds]
    return pd.DataFrame(rows, index=pd.Index(seeds, name="n_seeds"), columns=pd.Index(clusters, name="n_clusters"))


@dataclass(frozen=True)
class _Test:
    """A test of a normal mean: its standard error, and the critical means over the distribution of V and df. NaN: no test."""

    error: float
    margins: Array

    def power(self, effect: float) -> float:
        above, below = ((sign * effect - self.margins) / self.error for sign in (1, -1))
        return float((ndtr(above) + ndtr(below)).mean())

    def detectable(self, power: float) -> float:
        from scipy.optimize import brentq

        if math.isnan(self.error) or self.power(0.0) >= power:  # wanted is hardly more than alpha
            return 0.0 * self.error
        most = float(self.margins.max()) + 9 * self.error  # there every point rejects
        return brentq(lambda effect: self.power(effect) - power, 0.0, most, xtol=1e-9 * self.error)  # pyright: ignore[reportReturnType]


NO_TEST = _Test(math.nan, np.array([math.nan]))


@dataclass(frozen=True)
class _Design:
    """Variance components and test of a design, checked; sizes are given to `test`."""

    caller: str
    seed_sd: float
    method_prompt_sd: float
    residual_sd: float
    paired: bool
    alpha: float
    missing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("seed_sd", "method_prompt_sd", "residual_sd"):
            if check_number(getattr(self, name), name, self.caller) < 0:
                raise ValueError(f"{self.caller}: {name} is a finite number of at least 0, got {short_repr(getattr(self, name))}")
        if not 0 < check_number(self.alpha, "alpha", self.caller) < 1:
            raise ValueError(f"{self.caller}: alpha is between 0 and 1, got {self.alpha}")
        if not 0 <= check_number(self.missing, "missing", self.caller) < 1:
            raise ValueError(f"{self.caller}: missing is a share of at least 0 and below 1, got {self.missing}")
        if not isinstance(self.paired, bool | np.bool_):
            raise ValueError(f"{self.caller}: paired is True or False, got {short_repr(self.paired)}")

    def wanted(self, power: float) -> float:
        """`power`, checked."""
        if not self.alpha < check_number(power, "power", self.caller) < 1:
            raise ValueError(f"{self.caller}: power is between alpha ({self.alpha:g}) and 1, got {power}")
        return power

    def test(self, n_seeds: int, n_clusters: int, *, expected: bool = False) -> _Test:
        """The test at these sizes; with `expected`, with V and df as they come out where all mean squares are what is expected of them."""
        for name, number, least in (("n_seeds", n_seeds, 1), ("n_clusters", n_clusters, 2)):
            check_count(number, name, self.caller, least)
        scale = max(self.seed_sd, self.method_prompt_sd, self.residual_sd)
        arms, free = 1 if self.paired else 2, n_clusters - 1
        if (
            2 in (n_seeds, n_clusters if n_seeds > 1 else 0)
            or scale == 0
            or (n_seeds == 1 and self.method_prompt_sd == self.residual_sd == 0)
        ):
            return NO_TEST
        q, k, r = ((sd / scale) ** 2 for sd in (self.seed_sd, self.method_prompt_sd, self.residual_sd))  # 1e-200 has no square
        r *= _thinned(n_seeds, self.missing)
        if n_seeds == 1:
            return self._t_test((k + arms * r) / n_clusters, free, scale)

        rest = r / (n_seeds * n_clusters)  # in every mean square: an arm's seeds, the clusters, an arm's residual
        seed_df, residual_df = n_seeds - 1, arms * (n_seeds - 1) * free
        freedoms = [*[seed_df] * arms, free, residual_df]
        *ratios, cluster, residual = [np.ones(1)] * len(freedoms) if expected else _mean_squares(freedoms)
        seeds = [(q / n_seeds + rest) * ratio for ratio in ratios]
        between, within = (k / n_clusters + arms * rest) * cluster, arms * rest * residual
        error = combine_terms(np.sum(seeds, axis=0), effective_df(seeds, [seed_df] * arms), between, free, within, residual_df)
        true = arms * q / n_seeds + k / n_clusters + arms * rest
        if expected:
            return self._t_test(true, float(error.df(1 - self.alpha)[0]), scale)
        return _Test(scale * math.sqrt(true), scale * error.quantile(1 - self.alpha / 2) * np.sqrt(error.variance))

    def _t_test(self, variance: float, df: float, scale: float) -> _Test:
        """A plain t test whose V is `variance` times a chi-square with `df` degrees of freedom, over df."""
        error = scale * math.sqrt(variance)
        (ratio,) = _mean_squares([df])
        return _Test(error, error * stdtrit(df, 1 - self.alpha / 2) * np.sqrt(ratio))


def _mean_squares(freedoms: Sequence[float]) -> list[Array]:
    """Independent chi-squares over their degrees of freedom at POINTS points that fill the unit cube evenly.

    The points are Roberts' additive recurrence: steps 1/g, 1/g^2, ... modulo 1 with g^(d+1) = g + 1.
    """
    g = 2.0
    for _ in range(60):
        g = (1 + g) ** (1 / (len(freedoms) + 1))
    shares = (0.5 + np.outer(np.arange(1, POINTS + 1), g ** -np.arange(1.0, len(freedoms) + 1))) % 1
    return [2 * gammaincinv(df / 2, share) / df for df, share in zip(freedoms, shares.T, strict=True)]


def _fewest(least: int, reached: Callable[[int], float], power: float) -> tuple[int | None, float]:
    """The smallest number that reaches `power`, by doubling, then halving; None where MOST does not. And the power doubling came to."""
    below, enough = least - 1, least
    while not (power_reached := reached(enough)) >= power:
        if enough == MOST:
            return None, power_reached
        below, enough = enough, min(2 * enough, MOST)
    best_power = power_reached
    while enough - below > 1:
        middle = (below + enough) // 2
        below, enough = (below, middle) if reached(middle) >= power else (middle, enough)
    return enough, best_power


def _thinned(n_seeds: int, missing: float) -> float:
    """How much larger the residual's part of cluster means is with a share of cells missing: S E[1/n] of the n > 0 cells that are there.

    By hand, 2 seeds, half missing: n = 1 twice as often as 2, (2/3 + 1/3 * 1/2) * 2 = 5/3.
    """
    n = np.arange(1, n_seeds + 1)
    logs = gammaln(n_seeds + 1) - gammaln(n + 1) - gammaln(n_seeds - n + 1) + n * np.log1p(-missing) + xlogy(n_seeds - n, missing)
    chances = np.exp(logs - logs.max())
    return n_seeds * float((chances / n).sum() / chances.sum())


def _sd(variance: float) -> float:
    return math.sqrt(max(0.0, variance)) if not math.isnan(variance) else math.nan
