"""Agreement of two raters beyond chance: Cohen's kappa and raw agreement, with intervals."""

import math
from collections.abc import Hashable, Iterable, Set
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtrit  # scipy.stats would take a second to import

from apo_bench.stats.argument_checks import ROUNDING, Array, align, check_confidence, check_hashable, short_repr
from apo_bench.stats.confidence_intervals import clustered_share, wilson

ADDED = 4.0  # items that an interval of kappa adds


@dataclass(frozen=True)
class Agreement:
    """Two raters' agreement on `n` items; `n_missing` more lack a label and are in no other field. NaN means "not available".

    `kappa` is Cohen's, with `standard_error`, `ci_low` and `ci_high`; `raw` the share of items with equal labels, with its own interval;
    `expected` that share if the raters labelled independently. `confusion[i][j]` counts the items that a calls `labels[i]` and b
    `labels[j]`. `n_clusters` is `n` where no clusters were given.
    """

    kappa: float
    standard_error: float
    ci_low: float
    ci_high: float
    raw: float
    raw_low: float
    raw_high: float
    expected: float
    labels: tuple[Any, ...]
    confusion: tuple[tuple[int, ...], ...]
    n: int
    n_missing: int
    n_clusters: int
    scope: str
    test: str


def agreement(
    a: Iterable[Hashable], b: Iterable[Hashable], *, clusters: Iterable[Hashable] | None = None, confidence: float = 0.95
) -> Agreement:
    """Cohen's kappa and raw agreement of two raters' labels of the same items, both with intervals.

    An item without a label (None, NaN) from either is left out and counted. With p the table of shares, r and c its row and column
    sums, kappa = (po - pe) / (1 - pe), po = sum_i p_ii, pe = sum_i r_i c_i (Cohen, Educ. Psychol. Meas. 20, 1960). Linearised, an
    item labelled (i, j) adds to kappa the n-th part of its influence

        (1[i = j] - po - (1 - kappa)(c_i + r_j - 2 pe)) / (1 - pe).

    standard_error^2 is the sum of squared influences / n^2, which is the large-sample formula of Fleiss, Cohen & Everitt (Psychol.
    Bull. 72, 1969). With `clusters` (one label an item) influences are summed in each of the G clusters first: G / (G-1) * sum of
    squared sums / n^2.

    Around such an error an interval covers kappa too rarely at n = 30 (62 to 93 % instead of 95) and leaves [-1, 1]. ci_low and ci_high
    are therefore those of the table with 4 more items, 2 spread over its diagonal and 2 over the rest (as Agresti & Coull, Amer.
    Statistician 52, 1998, do for a share), cut at -1 and 1; with clusters, 4 (clustered error / plain error)^2 more items, and a t
    quantile of G-1 degrees of freedom. Raw agreement has Wilson's interval, with clusters that of `clustered_share`.

    One label only: kappa NaN. No item or cluster has influence (full agreement, one rater who gives one label only): standard_error 0.
    One cluster: no standard_error, no interval.
    Lists are compared by place, two Series by their index. Raises ValueError for lengths or indices that differ, a mapping, set or
    frame, no labelled item, an unhashable label or cluster, an empty cluster, raters whose labels are of different types with none in
    common, and a label that is there as a number and as text (1 and "1").
    """
    check_confidence(confidence, "agreement")
    items = _items(a, b, clusters)
    rated = items.dropna(subset=["a", "b"])
    n, n_missing = len(rated), len(items) - len(rated)
    if n == 0:
        raise ValueError(f"agreement: no item has both labels ({n_missing} missing)")
    labels = _labels(rated)
    place = {label: i for i, label in enumerate(labels)}
    i, j = (np.array([place[x] for x in rated[rater]]) for rater in ("a", "b"))
    groups = _groups(rated) if clusters is not None else None

    table = np.bincount(i * len(labels) + j, minlength=len(labels) ** 2).reshape(len(labels), -1).astype(float)  # (labels, labels)
    n_clusters = n if groups is None else int(groups.max()) + 1
    raw, expected, kappa = _kappa(table)
    error = low = high = math.nan
    if len(labels) > 1:
        influence = _influence(table)
        error = _error(influence[i, j], groups)
        if not math.isnan(error):
            low, high = _interval(table, (i, j), groups, _inflation(influence[i, j], groups, error), (1 + confidence) / 2)
    if groups is None:
        raw_low, raw_high = wilson(int(np.trace(table)), n, confidence)
        scope, test = "new items like these, each independent of the others", "large-sample interval of kappa with 4 items added"
    else:
        _, raw_low, raw_high, _ = clustered_share(i == j, groups, confidence)
        scope, test = "new clusters of items like these", "cluster-robust t interval of kappa with 4 clusters added"
    if math.isnan(low):
        test = "none: kappa has no standard error here"
    return Agreement(
        kappa=kappa,
        standard_error=error,
        ci_low=low,
        ci_high=high,
        raw=raw,
        raw_low=raw_low,
        raw_high=raw_high,
        expected=expected,
        labels=labels,
        confusion=tuple(tuple(row) for row in table.astype(int).tolist()),
        n=n,
        n_missing=n_missing,
        n_clusters=n_clusters,
        scope=f"{scope}; these two raters",
        test=test,
    )


def _items(a: Iterable[Hashable], b: Iterable[Hashable], clusters: Iterable[Hashable] | None) -> pd.DataFrame:
    """Columns a, b and, where given, cluster; as objects, so that labels keep their types."""
    columns = {"a": a, "b": b} | ({} if clusters is None else {"cluster": clusters})
    given = {}
    for name, values in zip(columns, align(columns, "agreement"), strict=True):
        try:
            given[name] = list(values)
        except TypeError:
            raise ValueError(f"agreement: {name} is one label an item, got {short_repr(values)}") from None
    lengths = {len(values) for values in given.values()}
    if len(lengths) > 1:
        counts = ", ".join(f"{len(values)} in {name}" for name, values in given.items())
        raise ValueError(f"agreement: one label (and cluster) an item, got {counts}")
    return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in given.items()})


def _labels(rated: pd.DataFrame) -> tuple[Any, ...]:
    """All labels, sorted; labels that cannot be compared are sorted by type and text."""
    for rater in ("a", "b"):
        check_hashable(rated[rater], f"agreement: {rater}")
    first, second = (set(rated[rater]) for rater in ("a", "b"))
    types = [{type(x).__name__ for x in labels} for labels in (first, second)]
    if not first & second and not types[0] & types[1]:
        names = " and ".join("/".join(sorted(type_names)) for type_names in types)
        raise ValueError(f"agreement: labels of a and b are {names} and have none in common; code them alike")
    check_one_coding(first | second)
    try:
        return tuple(sorted(first | second))
    except TypeError:
        return tuple(sorted(first | second, key=lambda x: (type(x).__name__, repr(x))))


def check_one_coding(labels: Set[Any]) -> None:
    """No label is there twice, as a number (a truth value, ...) and as text."""
    texts = {label for label in labels if isinstance(label, str)}
    for label in labels - texts:
        spelled = {str(label), f"{label:g}"} if isinstance(label, Real) and not isinstance(label, bool) else {str(label)}
        if spelled & texts:
            raise ValueError(f"agreement: label {short_repr(label)} is there as {type(label).__name__} and as text; code labels alike")


def _groups(rated: pd.DataFrame) -> Array:
    """The items' clusters as 0 .. G-1."""
    if empty := int(rated["cluster"].isna().to_numpy().sum()):
        raise ValueError(f"agreement: clusters is empty for {empty} items")
    check_hashable(rated["cluster"], "agreement: clusters")
    return pd.factorize(rated["cluster"])[0]


def _kappa(table: Array) -> tuple[float, float, float]:
    """Raw agreement, agreement by chance and kappa of a table of counts; kappa NaN where chance agrees on everything."""
    shares = table / table.sum()
    raw, expected = float(np.trace(shares)), float(shares.sum(1) @ shares.sum(0))
    return raw, expected, (raw - expected) / (1 - expected) if len(table) > 1 else math.nan


def _influence(table: Array) -> Array:
    """The influence on kappa of an item in each cell, (labels, labels)."""
    raw, expected, kappa = _kappa(table)
    rows, columns = table.sum(1) / table.sum(), table.sum(0) / table.sum()
    return (np.eye(len(table)) - raw - (1 - kappa) * (columns[:, None] + rows[None, :] - 2 * expected)) / (1 - expected)


def _interval(table: Array, cells: tuple[Array, Array], groups: Array | None, inflation: float, quantile: float) -> tuple[float, float]:
    """Ends of kappa's interval: those of the table with ADDED * inflation items more, half of them agreed, half not."""
    n_labels = len(table)
    more = ADDED / 2 * inflation * np.where(np.eye(n_labels) == 1, 1 / n_labels, 1 / (n_labels * (n_labels - 1)))
    fuller = table + more
    kappa, influence = _kappa(fuller)[2], _influence(fuller)
    sums, correction = influence[cells], 1.0
    if groups is not None:
        sums = np.bincount(groups, weights=sums)
        correction = len(sums) / (len(sums) - 1)
    squares = correction * float((sums**2).sum()) + inflation * float((more * influence**2).sum())
    half = float(ndtri(quantile) if groups is None else stdtrit(len(sums) - 1, quantile)) * math.sqrt(squares) / float(fuller.sum())
    return max(-1.0, kappa - half), min(1.0, kappa + half)


def _inflation(influence: Array, groups: Array | None, error: float) -> float:
    """How much larger clusters make the squared error, at least 1; where nothing varies, as if all of a cluster were alike."""
    if groups is None:
        return 1.0
    alone = _error(influence, None)
    if alone == 0 or error == 0:
        return float((np.bincount(groups).astype(float) ** 2).sum()) / len(influence)
    return max(1.0, (error / alone) ** 2)


def _error(influence: Array, groups: Array | None) -> float:
    """Standard error of kappa; NaN for one cluster."""
    sums = influence if groups is None else np.bincount(groups, weights=influence)
    if groups is not None and len(sums) < 2:
        return math.nan
    if np.abs(sums).max() <= ROUNDING * len(influence):
        return 0.0
    correction = 1 if groups is None else len(sums) / (len(sums) - 1)
    return math.sqrt(correction * float((sums**2).sum())) / len(influence)
