"""Do the intervals of shares and of kappa cover what they should?

    OMP_NUM_THREADS=1 python benchmarks/validate_estimators.py

Simulates samples of known truth, and counts how often the 95 % intervals of `apo_bench.stats` hold it. Writes
results/validation/estimators.csv: a row a cell, with the share that each interval covers and its mean width. The same --seed
gives the same file. About four minutes on one core.
"""

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from apo_bench.stats import agreement, clustered_mean, clustered_share, share_test

OUT = Path(__file__).resolve().parents[1] / "results" / "validation"
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2_000, help="samples a cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    rows = [row for study in STUDIES for row in study(np.random.default_rng(arguments.seed), arguments.samples)]
    pd.DataFrame(rows).to_csv(arguments.out / "estimators.csv", index=False, float_format="%.4g", lineterminator="\n")


def covered(study: str, cell: str, method: str, ends: list[tuple[float, float]], truth: float) -> Row:
    """Coverage and mean width of the intervals that exist."""
    low, high = np.array(ends).T
    known = ~np.isnan(low)
    inside = (low <= truth) & (truth <= high)
    return {
        "study": study, "cell": cell, "method": method, "samples": int(known.sum()),
        "coverage": float(inside[known].mean()), "width": float((high - low)[known].mean()),
    }  # fmt: skip


def ties(rng: np.random.Generator, samples: int) -> Iterator[Row]:
    """Independent preferences of 0, 1/2 and 1."""
    for n, (win, tie) in product((10, 30, 50, 200), ((0.98, 0.02), (0.95, 0.04), (0.9, 0.1), (0.7, 0.28), (0.3, 0.4))):
        draws = rng.choice([1.0, 0.5, 0.0], (samples, n), p=[win, tie, max(0.0, 1 - win - tie)])
        for method, function in (("share", clustered_share), ("t", clustered_mean)):
            ends = [function(values, range(n))[1:3] for values in draws]
            yield covered("ties", f"{n} items, {win:g} won, {tie:g} tied", method, ends, win + tie / 2)


def clusters(rng: np.random.Generator, samples: int) -> Iterator[Row]:
    """Beta-binomial clusters."""
    for n, size, share, correlation in product((10, 20, 50), (3, 20), (0.5, 0.9, 0.97), (0.05, 0.5)):
        spread, codes = 1 / correlation - 1, np.repeat(np.arange(n), size)
        chances = rng.beta(share * spread, (1 - share) * spread, (samples, n))
        draws = rng.random((samples, n * size)) < np.repeat(chances, size, axis=1)
        for method, function in (("share", clustered_share), ("t", clustered_mean)):
            ends = [function(values, codes)[1:3] for values in draws]
            yield covered("clusters", f"{n} clusters of {size}, share {share:g}, correlation {correlation:g}", method, ends, share)


def seeds(rng: np.random.Generator, samples: int) -> Iterator[Row]:
    """Seeds and prompts with normal effects on the logit; verdicts in both orders."""
    for n_seeds, n_prompts, share, sd in product((1, 3, 5, 10), (20, 100), (0.5, 0.8, 0.95, 0.98), (0.0, 0.5)):
        sd_seeds = sd if n_seeds > 1 else 0.0
        base = np.log(share / (1 - share))
        truth = float((1 / (1 + np.exp(-base - np.hypot(sd_seeds, 1) * rng.standard_normal(1_000_000)))).mean())
        ends = []
        for _ in range(samples // 4):
            logit = base + sd_seeds * rng.standard_normal((n_seeds, 1)) + rng.standard_normal(n_prompts)
            tested = share_test(rng.binomial(2, 1 / (1 + np.exp(-logit))) / 2)
            ends.append((tested.ci_low, tested.ci_high))
        yield covered("seeds", f"{n_seeds} seeds, {n_prompts} prompts, share {truth:.3f}, seed SD {sd_seeds:g}", "share", ends, truth)


def kappas(rng: np.random.Generator, samples: int) -> Iterator[Row]:
    """b has a's label with probability kappa and draws one as a does otherwise: Cohen's kappa is that probability."""
    for n, shares, kappa in product((30, 100), ([0.5, 0.5], [0.8, 0.2], [0.9, 0.1], [0.5, 0.3, 0.2]), (0.0, 0.2, 0.6, 0.9)):
        ends, wald = [], []
        for _ in range(samples // 4):
            a, other = (rng.choice(len(shares), n, p=shares) for _ in range(2))
            result = agreement(a, np.where(rng.random(n) < kappa, a, other))
            ends.append((result.ci_low, result.ci_high))
            half = 1.959964 * result.standard_error
            wald.append((result.kappa - half, result.kappa + half))
        for method, intervals in (("4 added", ends), ("Wald", wald)):
            yield covered("kappa", f"{n} items, labels {'/'.join(map(str, shares))}, kappa {kappa:g}", method, intervals, kappa)


STUDIES = [ties, clusters, seeds, kappas]


if __name__ == "__main__":
    main()
