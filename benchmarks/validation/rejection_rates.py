"""Simulated rates: rejections of true nulls, coverage, families of pairs, power. Every cell draws from its own random stream."""

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from apo_bench.stats import contrast as public_contrast
from apo_bench.stats import holm, two_way_bootstrap
from apo_bench.stats.bootstrap import SHAPE_SEEDS
from apo_bench.stats.power_analysis import minimum_detectable_effect, noncentral_t_power, power
from validation.compared_tests import ALTERNATIVE_TESTS, CONTRAST, ON_ALL_DATA, RESAMPLED_NULLS, Data, contrast
from validation.simulated_worlds import LARGE_METHOD_SD, SEED_SHARES, Array, P, World, batches, draw, members, ordinary_share

BOOTSTRAP = "two_way_bootstrap"
INTERVAL = "the contrast's interval"  # of two seeds or two clusters: no p-value; how often it leaves out the truth
BOUNDED = (CONTRAST, INTERVAL, BOOTSTRAP)
LEVEL = 0.05
LEVELS = {"rejected": LEVEL, "rejected_at_1pct": 0.01, "rejected_at_0.1pct": 0.001}
MOST, LEAST = 0.06, 0.04  # bounds on the rate at which a true null is rejected
NOT_NEGLIGIBLE = 1 / 3  # the seed share from which on the rate has to reach LEAST
ENOUGH_CLUSTERS = 30  # likewise
SEEDS = (3, 5, 10)
FEW = (2, 3, 5, 10)  # clusters
PAIRS_IN_FAMILY = 6
DEPTHS = (10.0, 30.0)  # of a collapse, in SDs of the other seeds
MORE_SHARES = (0.75, 0.9)  # for families at the fewest seeds
POWER = 0.8


def grid() -> list[World]:
    return [
        World((s, s), share, method_sd, paired, size)
        for size in (1, 10)
        for s in SEEDS
        for method_sd in (0.0, LARGE_METHOD_SD)
        for share in SEED_SHARES.values()
        for paired in (True, False)
    ]


def other_shapes() -> list[World]:
    """Skewed in both arms; skewed with effects in arm a only; one seed in ten of arm a collapses; whole numbers; rare events."""
    one_arm = {"seed_ratio": (1.0, 0.0), "method_ratio": (1.0, 0.0)}
    collapses = [{"depth": depth, "seed_ratio": (1.0, ordinary_share(depth))} for depth in DEPTHS]
    kinds: list[dict[str, Any]] = [{"shape": "skewed"}, {"shape": "skewed", **one_arm}, *collapses, {"shape": "tied"}]
    varied = [
        World((s, s), share, LARGE_METHOD_SD, paired, size, **kind)
        for kind in kinds
        for size in (1, 10)
        for s in SEEDS
        for share in SEED_SHARES.values()
        for paired in (True, False)
        if share or "depth" not in kind
    ]
    return varied + [World((s, s), 0.0, 0.0, paired, size, shape="rare") for size in (1, 10) for s in SEEDS for paired in (True, False)]


def unequal_seeds() -> list[World]:
    """Not paired; the seed SD of one arm is four times the other's, which way round matters where the arms have unlike many seeds."""
    return [
        World(seeds, share, method_sd, paired=False, seed_ratio=ratio)
        for seeds in ((3, 3), (5, 5), (10, 10), (3, 10))
        for ratio in ((1.0, 0.25), (0.25, 1.0))
        for method_sd in (0.0, LARGE_METHOD_SD)
        for share in (SEED_SHARES["small"], SEED_SHARES["large"])
    ]


def sweep() -> list[World]:
    """Few seeds, with seed shares between those of the grid."""
    shares = (0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
    designs = (((3, 3), True), ((5, 5), True), ((3, 3), False), ((5, 5), False), ((3, 10), False))
    return [World(seeds, share, LARGE_METHOD_SD, paired) for seeds, paired in designs for share in shares]


def few() -> list[World]:
    """Two seeds or two clusters (an interval only), and three to twenty seeds on three to ten clusters, of one prompt each."""
    designs = [(s, p) for s in (3, 5, 10, 20) for p in FEW] + [(2, p) for p in (*FEW, P)]
    return [
        World((s, s), share, method_sd, paired, prompts=p)
        for s, p in designs
        for method_sd in (0.0, LARGE_METHOD_SD, 4 * LARGE_METHOD_SD)
        for share in (0.0, 0.2, 0.4, 0.6, 0.8, 0.95, 0.999)
        for paired in (True, False)
    ]


GROUPS = {"grid": grid, "shapes": other_shapes, "unequal": unequal_seeds, "sweep": sweep, "few": few}


def stream(world: World, seed: int, purpose: str) -> np.random.Generator:
    """A random stream named by the cell, so that adding or removing cells changes no other."""
    return np.random.default_rng([seed, zlib.crc32(f"{purpose} {world!r}".encode())])


def simulated(world: World, rng: np.random.Generator, n: int) -> Iterator[Data]:
    weights = None if world.cluster_size == 1 else members(world)
    for size in batches(world, n):
        a, b = draw(world, rng, size)
        yield Data(a, b, world.paired, weights)


def described(world: World) -> dict[str, object]:
    a, b = world.seed_sds
    return {
        "seeds_a": world.seeds[0], "seeds_b": world.seeds[1], "paired": world.paired, "clusters": world.clusters, "shape": world.shape,
        "collapse_depth": world.depth,
        "method_sd_a": world.method_sds[0], "method_sd_b": world.method_sds[1], "seed_share": world.seed_share,
        "seed_sd_a": round(a, 6), "seed_sd_b": round(b, 6),
    }  # fmt: skip


def null_rates(group: str, worlds: Iterable[World], nulls: int, seed: int, *, wrong: bool = True) -> pd.DataFrame:
    """Rejection rates of the contrast, of plain Satterthwaite df and, on RESAMPLED_NULLS data sets, of the tests people make instead."""
    rows = []
    for world in worlds:
        rng, others = stream(world, seed, "nulls"), stream(world, seed, "resamples")
        tests = [alternative for alternative in ALTERNATIVE_TESTS if wrong and alternative.concerns(world.paired, world.cluster_size > 1)]
        on_all = ON_ALL_DATA if 2 not in (*world.seeds, world.clusters) else {INTERVAL: contrast}
        p_values_by_test: dict[str, list[Array]] = {name: [] for name in (*on_all, *(alternative.label for alternative in tests))}
        counted = 0
        for data in simulated(world, rng, nulls):
            for name, p_values in on_all.items():
                p_values_by_test[name].append(p_values(data))
            part = data.first(min(len(data.a), RESAMPLED_NULLS - counted))
            counted += len(part.a)
            for alternative in tests if len(part.a) else ():
                p_values_by_test[alternative.label].append(alternative.p_values(part, others))
        rows += [_rejections(group, world, test, np.concatenate(p_values)) for test, p_values in p_values_by_test.items()]
    return pd.DataFrame(rows)


def bootstrap_shapes() -> list[World]:
    """Where an interval from draws could differ from the contrast's: skewed scores, and rare events."""
    return [world for world in other_shapes() if world.shape in ("skewed", "rare")]


def bootstrap_rates(group: str, worlds: Iterable[World], nulls: int, draws: int, seed: int) -> pd.DataFrame:
    """Rejection rates of the public `two_way_bootstrap`, frame by frame (of cluster means: a tenth of the rows, the same answer).

    Worlds with fewer seeds than it makes a shape of are left out: its interval is the contrast's there.
    """
    rows = []
    for world in (world_ for world_ in worlds if min(world_.seeds) >= SHAPE_SEEDS):
        p_values: list[float] = []
        for data in simulated(world, stream(world, seed, "bootstrap"), nulls):
            clustered = Data(*data.by_cluster, world.paired)
            for i in range(len(data.a)):
                frame = long_frame(clustered, i)
                p_values.append(two_way_bootstrap(frame, "a", "b", draws=draws, seed=len(p_values)).p_value)
        rows.append(_rejections(group, world, BOOTSTRAP, np.array(p_values)))
    return pd.DataFrame(rows)


def _rejections(group: str, world: World, test: str, p_values: Array) -> dict[str, object]:
    rates = {name: float((p_values < level).mean()) for name, level in LEVELS.items()}
    misses = verdict(world, rates["rejected"], len(p_values)) if test in BOUNDED else ""
    return {"group": group, **described(world), "test": test, "nulls": len(p_values), **rates, "misses": misses}


def verdict(world: World, rate: float, n: int) -> str:
    """Which bound the rate misses by more than two binomial standard errors (those of n draws at the bound itself), or ''."""
    if rate > MOST + 2 * binomial_error(MOST, n):
        return f"above {100 * MOST:.0f} %"
    bounded_below = world.seed_share >= NOT_NEGLIGIBLE and world.clusters >= ENOUGH_CLUSTERS and min(world.seeds) > 2
    if bounded_below and rate < LEAST - 2 * binomial_error(LEAST, n):
        return f"below {100 * LEAST:.0f} %"
    return ""


def binomial_error(share: float, n: int) -> float:
    return float(np.sqrt(share * (1 - share) / n))


def frame_and_array_disagree(worlds: Iterable[World], seed: int, each: int = 2) -> float:
    """The largest |difference| between the p-values of the public `contrast` on long frames and of the arrays simulated here."""
    worst = 0.0
    for world in worlds:
        for data in simulated(world, stream(world, seed, "frames"), each):
            p_values = contrast(data)
            public = [public_contrast(long_frame(data, i, world.cluster_size), "a", "b").p_value for i in range(len(data.a))]
            worst = max(worst, float(np.abs(p_values - public).max()))
    return worst


def long_frame(data: Data, i: int, cluster_size: int = 1) -> pd.DataFrame:
    """Data set i as `contrast` takes it. Seeds that are not paired have labels of their own."""
    (n_a, n_prompts), n_b = data.a[i].shape, len(data.b[i])
    seeds = np.concatenate([np.arange(n_a), np.arange(n_b) + (0 if data.paired else 100)])
    prompts = np.tile(np.arange(n_prompts), n_a + n_b)
    return pd.DataFrame({
        "arm": np.repeat(["a", "b"], [n_a * n_prompts, n_b * n_prompts]), "seed": np.repeat(seeds, n_prompts), "prompt_id": prompts,
        "cluster_id": prompts // cluster_size, "value": np.concatenate([data.a[i].ravel(), data.b[i].ravel()]),
    })  # fmt: skip


def coverage(n: int, seed: int) -> pd.DataFrame:
    """How often the 95 % interval holds a true difference of 0.5 where arm a varies more than b, in everything."""
    rows = []
    unlike: dict[str, Any] = {"spread": (1.5, 1.0), "seed_ratio": (1.0, 0.5), "effect": 0.5}
    for seeds, paired in [*(((s, s), pairing) for s in SEEDS for pairing in (True, False)), ((3, 10), False), ((10, 3), False)]:
        for size in (1, 10):
            for share in SEED_SHARES.values():
                world = World(seeds, share, LARGE_METHOD_SD, paired, size, **unlike)
                missed = np.zeros(2)
                for data in simulated(world, stream(world, seed, "coverage"), n):
                    half = np.sqrt(data.error.variance) * data.error.quantile(1 - LEVEL / 2)
                    low, high = data.difference - half, data.difference + half
                    missed += (low > world.effect).sum(), (high < world.effect).sum()
                bounded = verdict(world, missed.sum() / n, n)
                rates = {"covered": 1 - missed.sum() / n, "interval_too_high": missed[0] / n, "interval_too_low": missed[1] / n}
                rows.append({**described(world), "draws": n, **rates, "misses": bounded})
    return pd.DataFrame(rows)


def families(n: int, seed: int) -> pd.DataFrame:
    """Six arms against one, all nulls true: how often is at least one pair declared different, with and without Holm's correction?"""
    rows = []
    for s in SEEDS:
        for share in (*SEED_SHARES.values(), *(MORE_SHARES if s == min(SEEDS) else ())):
            for paired in (True, False):
                world = World((s, s), share, LARGE_METHOD_SD, paired)
                rng, any_raw, any_holm = stream(world, seed, "families"), 0, 0
                for size in batches(world, n):
                    reference, *rivals = draw(world, rng, size, rivals=PAIRS_IN_FAMILY)
                    p_values = np.stack([contrast(Data(rival, reference, paired)) for rival in rivals], axis=1)  # (n, pairs)
                    any_raw += int((p_values < LEVEL).any(1).sum())
                    any_holm += sum(bool((holm(row) < LEVEL).any()) for row in p_values)
                rates = {"pairs": PAIRS_IN_FAMILY, "uncorrected": any_raw / n, "holm": any_holm / n}
                high = any_holm / n > MOST + 2 * binomial_error(MOST, n)
                rows.append({**described(world), "families": n, **rates, "misses": f"above {100 * MOST:.0f} %" if high else ""})
    return pd.DataFrame(rows)


def powers(n: int, seed: int) -> pd.DataFrame:
    """Rejections of a false null beside the predictions of `power_analysis`: `power`, and the textbook's noncentral t."""
    rows = []
    for s in SEEDS:
        for paired in (True, False):
            for share in SEED_SHARES.values():
                null = World((s, s), share, LARGE_METHOD_SD, paired)
                arms = np.sqrt(2) if paired else 1.0  # a paired design is planned with the SDs of differences
                design: dict[str, Any] = {
                    "seed_sd": arms * null.seed_sds[0], "method_prompt_sd": np.sqrt(2) * null.method_sd, "residual_sd": arms,
                    "n_seeds": s, "n_clusters": null.clusters, "paired": paired,
                }  # fmt: skip
                effect = minimum_detectable_effect(**design, power=POWER)
                world = World((s, s), share, LARGE_METHOD_SD, paired, effect=effect)
                rejected = sum(int((contrast(data) < LEVEL).sum()) for data in simulated(world, stream(world, seed, "power"), n)) / n
                promised = {"predicted": power(effect, **design), "noncentral_t": noncentral_t_power(effect, **design)}
                rows.append({**described(world), "effect": round(effect, 6), "draws": n, "simulated": rejected, **promised})
    return pd.DataFrame(rows)
