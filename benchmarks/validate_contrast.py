"""How often does the contrast reject a true null? python benchmarks/validate_contrast.py [--nulls 10000]

Prints rejection rates (%) at a nominal 5 % of `apo_bench.stats.contrast`'s test, next to the paired t test that treats every prompt
of every seed as independent. D[s, c] = seed_s + cluster_c + rest_sc, all normal, rest_sc with SD 1; no true difference.
"""

import argparse

import numpy as np
from scipy.stats import t as student

from apo_bench.stats import paired_variance, unpaired_variance


def rejections(difference: np.ndarray, variance: np.ndarray, df: np.ndarray | float) -> float:
    return float(np.mean(2 * student.sf(np.abs(difference) / np.sqrt(variance), df) < 0.05))


def draw(rng: np.random.Generator, nulls: int, n_seeds: int, n_clusters: int, seed_sd: float, cluster_sd: float) -> np.ndarray:
    """(nulls, seeds, clusters)"""
    d = rng.normal(size=(nulls, n_seeds, n_clusters))
    return d + seed_sd * rng.normal(size=(nulls, n_seeds, 1)) + cluster_sd * rng.normal(size=(nulls, 1, n_clusters))


def cell(rng: np.random.Generator, nulls: int, n_seeds: int, n_clusters: int, seed_sd: float, cluster_sd: float) -> list[float]:
    """Rejection rates of the paired contrast, the unpaired one (two arms with these seed and cluster SDs each) and the naive t test."""
    rates, batch = [], 500
    for start in range(0, nulls, batch):
        size = min(batch, nulls - start)
        a, b = (draw(rng, size, n_seeds, n_clusters, seed_sd, cluster_sd) for _ in range(2))
        paired = rejections(a.mean((1, 2)), *paired_variance(a))
        unpaired = rejections(a.mean((1, 2)) - b.mean((1, 2)), *unpaired_variance(a, b))
        flat = a.reshape(size, -1)
        naive = rejections(flat.mean(1), flat.var(1, ddof=1) / flat.shape[1], flat.shape[1] - 1)
        rates.append((size, paired, unpaired, naive))
    table = np.array(rates)
    return list(np.average(table[:, 1:], axis=0, weights=table[:, 0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nulls", type=int, default=10_000)
    parser.add_argument("--clusters", type=int, default=100)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    print(f"{arguments.nulls} nulls a cell, {arguments.clusters} clusters; rejections in % at a nominal 5 %\n")
    print("| seeds | seed SD | method-by-prompt SD | contrast, paired | contrast, not paired | naive t over prompts |")
    print("|---|---|---|---|---|---|")
    for n_seeds in (3, 5, 10):
        for seed_sd in (0.0, 0.1, 0.3, 1.0):
            for cluster_sd in (0.0, 1.0):
                rates = cell(rng, arguments.nulls, n_seeds, arguments.clusters, seed_sd, cluster_sd)
                print(f"| {n_seeds} | {seed_sd:g} | {cluster_sd:g} | " + " | ".join(f"{100 * rate:.1f}" for rate in rates) + " |")


if __name__ == "__main__":
    main()
