"""Long frames of scores as balanced arrays of seeds x clusters."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from apo_bench.stats.argument_checks import Array, as_floats, as_frame, check_arm, check_columns, check_labels, label_codes

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
    layout = _balanced(*_both_arms(scores, a, b, paired_seeds, caller), caller)
    _check_seeds(layout, a, b, caller)
    return layout


def lay_out_cells(scores: pd.DataFrame, a: str, b: str, *, paired_seeds: bool | None = None, caller: str = "lay_out_cells") -> Layout:
    """As `lay_out`, with every prompt that either arm has: where nothing is there, prompts and cells are NaN.

    A cell is the mean over the cluster's prompts that are there, where seeds are paired in both arms. Clusters without a cell (where seeds
    are not paired: in either arm) are left out. `n_dropped` counts rows that are in no cell.
    """
    rows, paired = _both_arms(scores, a, b, paired_seeds, caller)
    table = _matrices(rows, paired, caller)
    first, second = table.matrices
    if paired:
        lone = np.isnan(first) | np.isnan(second)
        first, second = np.where(lone, np.nan, first), np.where(lone, np.nan, second)
    cells = [_cell_means(matrix, table.cluster_of, table.n_clusters) for matrix in (first, second)]
    kept = ~(np.isnan(cells[0]).all(0) | np.isnan(cells[1]).all(0))
    if kept.sum() < 2:
        raise ValueError(f"{table.problem}{kept.sum()} cluster(s) (column {table.column}) with rows of both, at least 2 needed")
    inside, sizes = np.take(kept, table.cluster_of), np.bincount(table.cluster_of, minlength=table.n_clusters)
    used = sum(int((~np.isnan(matrix[:, inside])).sum()) for matrix in (first, second))
    layout = Layout(
        cells[0][:, kept],
        cells[1][:, kept],
        paired,
        table.matrices,
        1 / sizes[table.cluster_of] / table.n_clusters,
        sum(map(len, rows.values())) - used,
    )
    _check_seeds(layout, a, b, caller)
    if empty := sum(int(np.isnan(side).all(1).sum()) for side in (layout.first, layout.second)):
        raise ValueError(f"{table.problem}{empty} seed(s) (column seed) without any cell of both; leave them out")
    return layout


def _cell_means(matrix: Array, cluster_of: Array, n_clusters: int) -> Array:
    """Means over the prompts of each cluster that are there, (S, N) -> (S, clusters)."""
    there = ~np.isnan(matrix)
    sums = np.stack([np.bincount(cluster_of, weights=row, minlength=n_clusters) for row in np.where(there, matrix, 0.0)])
    counts = np.stack([np.bincount(cluster_of, weights=row, minlength=n_clusters) for row in there])
    with np.errstate(invalid="ignore"):
        return sums / counts


def _both_arms(scores: pd.DataFrame, a: str, b: str, paired_seeds: bool | None, caller: str) -> tuple[dict[str, pd.DataFrame], bool]:
    """The checked rows of both arms, and whether their seeds are paired."""
    if paired_seeds is not None and not isinstance(paired_seeds, bool | np.bool_):
        raise ValueError(f"{caller}: paired_seeds is True, False or None, got {paired_seeds!r}")
    for arm in (a, b):
        check_arm(arm, caller)
    if a == b:
        raise ValueError(f"{caller}: arm {a!r} cannot be compared with itself")
    scores = as_frame(scores)
    rows = {arm: _arm_rows(scores, arm, caller) for arm in (a, b)}
    return rows, _pairing(rows, paired_seeds, caller)


def _check_seeds(layout: Layout, a: str, b: str, caller: str) -> None:
    if layout.n_seeds == 1 < max(len(layout.first), len(layout.second)):
        lone, other = (a, b) if len(layout.first) == 1 else (b, a)
        raise ValueError(f"{caller}: arm {lone!r} has one seed (column seed) and arm {other!r} several; run more seeds or pair them")


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


@dataclass(frozen=True)
class _Table:
    """Both arms by prompt, (Sa, N) and (Sb, N), NaN where there is no row; the prompts' clusters (N,) as 0 .. n_clusters - 1."""

    matrices: tuple[Array, Array]
    cluster_of: Array
    n_clusters: int
    column: str
    problem: str


def _matrices(rows: dict[str, pd.DataFrame], paired: bool, caller: str) -> _Table:
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
    return _Table((matrices[0], matrices[1]), cluster_of, len(cluster_names), column, problem)


def _balanced(rows: dict[str, pd.DataFrame], paired: bool, caller: str) -> Layout:
    table = _matrices(rows, paired, caller)
    whole = ~np.isnan(np.concatenate(table.matrices)).any(0)  # (prompts,)
    sizes = np.bincount(table.cluster_of[whole], minlength=table.n_clusters)
    codes, seen = table.cluster_of[whole], sizes > 0
    if seen.sum() < 2:
        few = f"{seen.sum()} cluster(s) (column {table.column}) with rows in every seed of both"
        raise ValueError(f"{table.problem}{few}, at least 2 needed")
    first, second = (matrix[:, whole] for matrix in table.matrices)
    first_clusters, second_clusters = (
        np.stack([np.bincount(codes, weights=row, minlength=len(sizes)) for row in matrix])[:, seen] / sizes[seen]
        for matrix in (first, second)
    )
    n_dropped = sum(map(len, rows.values())) - (len(first) + len(second)) * int(whole.sum())
    return Layout(first_clusters, second_clusters, paired, (first, second), 1 / sizes[codes] / seen.sum(), n_dropped)
