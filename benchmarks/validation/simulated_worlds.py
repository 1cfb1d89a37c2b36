"""Simulated scores of two arms whose true difference is known.

    score[arm, s, p] = effect of the arm + spread * (difficulty_p + method_by_prompt[arm, c(p)] + seed[arm, s] + residual[arm, s, p])

The residual's SD is 1. Prompt difficulty (SD 1, half of its variance shared by a cluster) is the same in both arms and cancels in their
difference. The prompts of a cluster share their method-by-prompt effect, so that clusters, not prompts, are independent. Arms paired by
seed share a seed effect besides their own (an easy seed is easy for both); it cancels too.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
P = 300  # prompts, unless a cell says otherwise
LARGE_METHOD_SD = 1.0
COLLAPSES = 0.1  # of arm a's seeds, where they do
RARE = 0.01  # of the scores are 1, the others 0
SEED_SHARES = {"no": 0.0, "small": 0.4, "large": 0.95}  # the seeds' part of the variance of the mean difference


@dataclass(frozen=True)
class World:
    """One cell. `seed_share`, the seeds' part of the variance of the mean difference, fixes the seed SDs.

    `seed_ratio` is theirs between the arms, `method_ratio` that of the method-by-prompt SDs; `spread` stretches all of an arm, so that
    difficulty no longer cancels; `depth`: one seed in ten of arm a collapses, by so many SDs of its other seeds. "rare": independent events
    in place of all this.
    """

    seeds: tuple[int, int]
    seed_share: float = 0.0
    method_sd: float = 0.0
    paired: bool = True
    cluster_size: int = 1
    shape: Literal["normal", "skewed", "tied", "rare"] = "normal"
    seed_ratio: tuple[float, float] = (1.0, 1.0)
    method_ratio: tuple[float, float] = (1.0, 1.0)
    spread: tuple[float, float] = (1.0, 1.0)
    effect: float = 0.0
    prompts: int = P
    depth: float = 0.0

    @property
    def clusters(self) -> int:
        return self.prompts // self.cluster_size

    @property
    def method_sds(self) -> tuple[float, float]:
        return self.method_sd * self.method_ratio[0], self.method_sd * self.method_ratio[1]

    @property
    def variance_without_seeds(self) -> float:
        """Of the mean difference, were no seed effects drawn (before rounding, where values are tied)."""
        difficulty = (self.spread[0] - self.spread[1]) ** 2 * (0.5 / self.clusters + 0.5 / self.prompts)
        arms = zip(self.spread, self.method_sds, self.seeds, strict=True)
        return difficulty + sum(w**2 * (m**2 / self.clusters + 1 / (s * self.prompts)) for w, m, s in arms)

    @property
    def variance(self) -> float:
        return self.variance_without_seeds / (1 - self.seed_share)

    @property
    def seed_sds(self) -> tuple[float, float]:
        """Of each arm's seed effects, before `spread`."""
        unit = sum((w * r) ** 2 / s for w, r, s in zip(self.spread, self.seed_ratio, self.seeds, strict=True))
        sd = math.sqrt(self.variance * self.seed_share / unit)
        return sd * self.seed_ratio[0], sd * self.seed_ratio[1]


def draw(world: World, rng: np.random.Generator, n: int, rivals: int = 1) -> list[Array]:
    """n experiments: the scores of arm a, (n, Sa, P), and of `rivals` arms like b, (n, Sb, P); the prompts of a cluster side by side."""
    by_cluster, by_prompt = _normal(rng, (n, 1, world.clusters)), _normal(rng, (n, 1, world.prompts))
    difficulty = math.sqrt(0.5) * (np.repeat(by_cluster, world.cluster_size, axis=-1) + by_prompt)
    easy_seed = 0.5 * _normal(rng, (n, world.seeds[0], 1)) if world.paired else 0.0
    effects = _skewed if world.shape == "skewed" else _normal
    if world.shape == "rare":
        return [(rng.random((n, world.seeds[arm], world.prompts)) < RARE).astype(float) for arm in (0, *[1] * rivals)]
    arms = []
    for arm in (0, *[1] * rivals):
        n_seeds, spread = world.seeds[arm], world.spread[arm]
        by_method = difficulty + np.repeat(world.method_sds[arm] * effects(rng, (n, 1, world.clusters)), world.cluster_size, axis=-1)
        scores = effects(rng, (n, n_seeds, world.prompts))
        scores += by_method
        of_seeds = effects(rng, (n, n_seeds, 1)) if arm or not world.depth else collapsing(rng, (n, n_seeds, 1), world.depth)
        scores += world.seed_sds[arm] * of_seeds + easy_seed
        if spread != 1:
            scores *= spread
        if arm == 0:
            scores += world.effect
        arms.append(np.rint(scores) if world.shape == "tied" else scores)
    return arms


def members(world: World) -> Array:
    """Weights (P, C) that turn scores by prompt into means by cluster."""
    return np.kron(np.eye(world.clusters), np.full((world.cluster_size, 1), 1 / world.cluster_size))


def batches(world: World, nulls: int, values: int = 400_000) -> list[int]:
    """Sizes of batches that add up to `nulls`, an arm's scores in each some `values` numbers at most."""
    size = max(1, min(nulls, values // (max(world.seeds) * world.prompts)))
    return [min(size, nulls - start) for start in range(0, nulls, size)]


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.standard_normal(shape, dtype=np.float32).astype(float)  # single draws take half the time


def _skewed(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Centred exponential: SD 1, skewness 2."""
    return rng.standard_exponential(shape, dtype=np.float32).astype(float) - 1


def collapsing(rng: np.random.Generator, shape: tuple[int, ...], depth: float) -> Array:
    """Mean 0, SD 1; one in ten lies `depth` SDs of the others' normal spread below them."""
    collapsed = rng.random(shape) < COLLAPSES
    return (_normal(rng, shape) + depth * (COLLAPSES - collapsed)) * ordinary_share(depth)


def ordinary_share(depth: float) -> float:
    """The SD of seeds that did not collapse, as a part of the SD of all."""
    return 1 / math.sqrt(1 + COLLAPSES * (1 - COLLAPSES) * depth**2)
