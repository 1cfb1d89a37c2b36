"""Long frames of scores as balanced arrays of seeds x clusters."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from apo_bench.stats.argument_checks import Array, as_floats, check_arm, check_columns, check_labels, label_codes

NEEDED = ("arm", "seed", "prompt_id", "value")


@dataclass(frozen=True)
class Layout:
    """Two arms on the same clusters of prompts: `first` (Sa, P) and `second` (Sb, P), a cluster's value being the mean over its prompts.

    Where `paired`, row s of both is the same seed. `prompts` holds both arms by prompt, (Sa, N) and (Sb, N), `weights` (N,) what each
    prompt counts if clusters count alike; they sum to 1. `n_dropped` counts the rows of both arms that were left out because their
    prompt lacks a row in some seed of either arm.
    """

    first: Array
    second: Array
    paired: bool
    prompts: tuple[Array, Array]
    weights: Array
    n_dropped: int

    @property
    def n_seeds(self) -> int:
        """The smaller arm's count."""
        return min(len(self.first), len(self.second))

    @property
    def n_clusters(self) -> int:
        return self.first.shape[1]

    @property
    def differences(self) -> Array:
        """D (S, P) where seeds are paired, else the differences of the arms' cluster means (1, P)."""
        return self.first - self.second if self.paired else self.first.mean(0, keepdims=True) - self.second.mean(0, keepdims=True)


def lay_out(scores: pd.DataFrame, a: str, b: str, *, paired_seeds: bool | None = None, caller: str = "lay_out") -> Layout:
    """The rows of two arms as balanced arrays.

    `scores` is long: arm, seed, prompt_id, value and, optionally, cluster_id (default: each prompt is its own cluster). Only prompts
    with a row in every seed of both arms are used. `paired_seeds=None` decides by the labels: the same seeds in both arms are paired,
    disjoint ones are not. Errors begin with `caller`. Raises ValueError, naming arm and column, for rows that allow no valid estimate.
    """
    if paired_seeds is not None and not isinstance(paired_seeds, bool | np.bool_):
        raise ValueError(f"{caller}: paired_seeds is True, False or None, got {paired_seeds!r}")
    for arm in (a, b):
        check_arm(arm, caller)
    if a == b:
        raise ValueError(f"{caller}: arm {a!r} cannot be compared with itself")
    rows = {arm: _arm_rows(scores, arm, caller) for arm in (a, b)}
    paired = _pairing(rows, paired_seeds, caller)
    layout = _balanced(rows, paired, caller)
    if layout.n_seeds == 1 < max(len(layout.first), len(layout.second)):
        lone, other = (a, b) if len(layout.first) == 1 else (b, a)
        raise ValueError(f"{caller}: arm {lone!r} has one seed (column seed) and arm {other!r} several; run more seeds or pair them")
    return layout


def _arm_rows(scores: pd.DataFrame, arm: str, caller: str) -> pd.DataFrame:
    named = f"{caller}: arm {arm!r}"
    check_columns(scores, NEEDED, named)
    columns = [*NEEDED, *(["cluster_id"] if "cluster_id" in scores else [])]
    check_columns(scores, columns, named)
    if unnamed := int(scores["arm"].isna().to_numpy().sum()):
        raise ValueError(f"{caller}: column arm is empty in {unnamed} rows")
    rows = scores.loc[(scores["arm"] == arm).to_numpy(dtype=bool), columns[1:]]
    if rows.empty:
        raise ValueError(f"{named} has no rows (column arm)")
    values = as_floats(rows["value"], f"{named}: column value")
    if bad := int((~np.isfinite(values)).sum()):
        raise ValueError(f"{named}: column value is NaN or infinite in {bad} rows")
    labels = [column for column in columns[1:] if column != "value"]
    for column in labels:
        check_labels(rows[column], f"{named}: column {column}")
    if twice := int(rows[["seed", "prompt_id"]].duplicated().to_numpy().sum()):
        raise ValueError(f"{named}: {twice} rows repeat a seed and prompt (column prompt_id)")
    return rows.astype(dict.fromkeys(labels, object)).assign(value=values)


def _pairing(rows: dict[str, pd.DataFrame], paired_seeds: bool | None, caller: str) -> bool:
    (a, first), (b, second) = ((arm, set(frame["seed"])) for arm, frame in rows.items())
    if (
        paired_seeds is None
        and not first & second
        and {isinstance(seed, str) for seed in first} ^ {isinstance(seed, str) for seed in second}
    ):
        raise ValueError(f"{caller}: seeds (column seed) are text in one of the arms {a!r}, {b!r} and not in the other")
    if (paired_seeds is not None and not paired_seeds) or (paired_seeds is None and not first & second):
        return False
    lonely = [
        (arm, other, seed) for arm, other, seeds in ((a, b, first - second), (b, a, second - first)) for seed in sorted(seeds, key=repr)
    ]
    if lonely:
        arm, other, seed = lonely[0]
        raise ValueError(f"{caller}: arm {arm!r} has seed {seed!r} (column seed) and arm {other!r} has not: nothing to pair it with")
    return True


def _balanced(rows: dict[str, pd.DataFrame], paired: bool, caller: str) -> Layout:
    together = pd.concat(rows.values())
    column = "cluster_id" if "cluster_id" in together else "prompt_id"
    problem = f"{caller}: arms {' and '.join(repr(arm) for arm in rows)}: "
    prompts, prompt_names = label_codes(together["prompt_id"].to_numpy())
    clusters, cluster_names = label_codes(together[column].to_numpy())
    cluster_of = np.zeros(len(prompt_names), dtype=int)
    cluster_of[prompts] = clusters
    if (cluster_of[prompts] != clusters).any():
        raise ValueError(f"{problem}a prompt is in two clusters (column cluster_id)")

    matrices, start = [], 0
    orders = [sorted(set(frame["seed"]), key=str) for frame in rows.values()]
    for frame, seed_names in zip(rows.values(), orders[:1] * 2 if paired else orders, strict=True):
        seeds = frame["seed"].map({seed: place for place, seed in enumerate(seed_names)}).to_numpy(dtype=int)
        matrix = np.full((len(seed_names), len(prompt_names)), np.nan)
        matrix[seeds, prompts[start : start + len(frame)]] = frame["value"].to_numpy()
        matrices.append(matrix)
        start += len(frame)
    whole = ~np.isnan(np.concatenate(matrices)).any(0)  # (prompts,)
    sizes = np.bincount(cluster_of[whole], minlength=len(cluster_names))
    codes, seen = cluster_of[whole], sizes > 0
    if seen.sum() < 2:
        raise ValueError(f"{problem}{seen.sum()} cluster(s) (column {column}) with rows in every seed of both, at least 2 needed")
    first, second = (matrix[:, whole] for matrix in matrices)
    first_clusters, second_clusters = (
        np.stack([np.bincount(codes, weights=row, minlength=len(sizes)) for row in matrix])[:, seen] / sizes[seen]
        for matrix in (first, second)
    )
    n_dropped = len(together) - (len(first) + len(second)) * int(whole.sum())
    return Layout(first_clusters, second_clusters, paired, (first, second), 1 / sizes[codes] / seen.sum(), n_dropped)
