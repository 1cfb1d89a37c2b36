"""The whole harness against itself: a finished run's seeds of one arm, split at random into S against S."""

from pathlib import Path

import numpy as np
import pandas as pd

from apo_bench.analysis.results import Run, read_run
from validation.compared_tests import ALTERNATIVE_TESTS, ON_ALL_DATA, Data
from validation.rejection_rates import LEVEL, SEEDS
from validation.simulated_worlds import Array

BATCH = 200  # splits at a time


def arm_matrix(run: Run, arm: str, scorer: str) -> tuple[Array, Array]:
    """Scores of an arm's final round, all axes pooled, on the prompts that every seed answered: (S, P), and `members` (P, C)."""
    rows = run.final_scores[(run.final_scores["arm"] == arm) & (run.final_scores["scorer"] == scorer)]
    table = rows.pivot(index="seed", columns=["cluster_id", "prompt_id"], values="value").dropna(axis="columns")
    codes, names = pd.factorize(table.columns.get_level_values("cluster_id"))
    members = np.eye(len(names))[codes]
    return table.to_numpy(), members / members.sum(0)


def split(scores: Array, n_seeds: int, splits: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Two disjoint random sets of `n_seeds` rows each, `splits` times: (splits, n_seeds, P) twice."""
    order = rng.permuted(np.tile(np.arange(len(scores)), (splits, 1)), axis=1)
    return scores[order[:, :n_seeds]], scores[order[:, n_seeds : 2 * n_seeds]]


def end_to_end(folder: Path, splits: int, seed: int) -> pd.DataFrame:
    """Rejection rates at LEVEL over random splits, by arm, scorer (first gold model's mean, ground truth), S and test."""
    run, rows = read_run(folder), []
    for arm in run.arms:
        for scorer in (run.golds[0], "ground_truth"):
            scores, members = arm_matrix(run, arm, scorer)
            n, p = scores.shape
            by_cluster = scores @ members
            design = {"arm": arm, "scorer": scorer, "seeds_run": n, "prompts": p, "clusters": members.shape[1]}
            design |= {"seed_sd": round(float(by_cluster.mean(1).std(ddof=1)), 6), "mean": round(float(by_cluster.mean()), 6)}
            for s in (s for s in SEEDS if 2 * s <= n):
                rows += [design | {"seeds": s} | rates for rates in _rates(scores, members, s, splits, np.random.default_rng([seed, s]))]
    return pd.DataFrame(rows)


def _rates(scores: Array, members: Array, n_seeds: int, splits: int, rng: np.random.Generator) -> list[dict[str, object]]:
    tests = ON_ALL_DATA | {
        alternative.label: alternative.p_values for alternative in ALTERNATIVE_TESTS if alternative.concerns(paired=False, clustered=True)
    }
    rejected = dict.fromkeys(tests, 0)
    for start in range(0, splits, BATCH):
        data = Data(*split(scores, n_seeds, min(BATCH, splits - start), rng), paired=False, members=members)
        for name, p_values in tests.items():
            rejected[name] += int((p_values(data, rng) < LEVEL).sum())
    return [{"test": name, "splits": splits, "rejected": count / splits} for name, count in rejected.items()]
