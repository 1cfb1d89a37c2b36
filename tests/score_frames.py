"""Long frames of scores out of arrays."""

import numpy as np
import pandas as pd

from apo_bench.stats import Layout


def frame(a: np.ndarray, b: np.ndarray, seeds_b: list[int] | None = None) -> pd.DataFrame:
    """Scores of arms a and b from (seeds, prompts) arrays."""
    rows = []
    for arm, values, seeds in (("a", a, range(len(a))), ("b", b, seeds_b or range(len(b)))):
        rows += [(arm, seed, f"p{j}", float(x)) for seed, row in zip(seeds, values, strict=True) for j, x in enumerate(row)]
    return pd.DataFrame(rows, columns=["arm", "seed", "prompt_id", "value"])


def paired_layout(first: np.ndarray, second: np.ndarray) -> Layout:
    """Arms (S, P) without holes, every prompt its own cluster."""
    return Layout(first, second, True, (first, second), np.full(first.shape[1], 1 / first.shape[1]), 0)
