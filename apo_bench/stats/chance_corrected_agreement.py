"""Agreement of several raters beyond chance: Krippendorff's alpha, weighted kappa and Gwet's AC1, with intervals.

All three are 1 - observed / expected disagreement; they differ in what chance is taken to do. Kappa has each of two raters draw from their
own labels, alpha any two ratings from all that were given, AC1 lets a rater guess only as often as items leave doubt, which keeps it
from collapsing where nearly all items get one label.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.special import stdtrit  # scipy.stats would take a second to import

from apo_bench.stats.argument_checks import (
    ROUNDING,
    Array,
    align,
    as_frame,
    check_columns,
    check_confidence,
    check_hashable,
    check_labels,
    short_repr,
)
from apo_bench.stats.rater_agreement import check_one_coding

Level = Literal["nominal", "ordinal", "interval"]
Weights = Literal["unweighted", "linear", "quadratic"]


@dataclass(frozen=True)
class RaterAgreement:
    """A coefficient of agreement with a jackknife interval over items, or over their clusters, on the scale of atanh (Fisher's z).

    `observed` and `expected` are disagreements (of AC1: agreements). `n` items count, `n_missing` more have too few ratings, `n_ratings`
    is the number of ratings that count. NaN: not available; all ratings alike leave nothing to correct for chance, except for AC1.
    """

    coefficient: float
    standard_error: float
    ci_low: float
    ci_high: float
    observed: float
    expected: float
    labels: tuple[Any, ...]
    n: int
    n_missing: int
    n_ratings: int
    n_clusters: int
    scope: str
    test: str


def krippendorff_alpha(
    ratings: pd.DataFrame, *, level: Level = "nominal", order: Sequence[Any] | None = None, confidence: float = 0.95
) -> RaterAgreement:
    """Krippendorff's alpha of any number of raters, of whom each may have left items out (Content Analysis, 4th ed. 2019, ch. 12).

    `ratings` is long: item, rater, label and, optionally, cluster_id. Items with fewer than two ratings do not count. With o_ck the
    coincidences (each item with m ratings gives 1 / (m - 1) for every ordered pair of its ratings), n_c their sums and n = sum n_c,

        alpha = 1 - (n - 1) sum o_ck d2_ck / sum n_c n_k d2_ck.

    d2 is 1 for any two labels (nominal), (c - k)^2 (interval), or (n_c / 2 + those between + n_k / 2)^2 (ordinal; labels in their own
    order or in `order`). Interval: atanh(alpha) +- t error / (1 - alpha^2), jackknife over items or clusters, t with as many less one
    degrees of freedom; without atanh the interval covers less, of weighted kappa as little as 84 %.
    Raises ValueError for columns that lack or are empty, a rater who rates an item twice, and labels that are no numbers where needed.
    """
    caller = "krippendorff_alpha"
    if level not in ("nominal", "ordinal", "interval"):
        raise ValueError(f"{caller}: level is nominal, ordinal or interval, got {short_repr(level)}")
    counts, labels, clusters, n_missing = _counts(ratings, order, caller, confidence)
    if level == "interval":
        _check_numbers(labels, caller)

    def coefficient(table: Array) -> tuple[float, float, float]:
        return _alpha(table, level, labels)

    scope = "new items like these; these raters"
    return _with_interval(coefficient, counts, labels, clusters, n_missing, confidence, scope)


def gwet_ac1(ratings: pd.DataFrame, *, confidence: float = 0.95) -> RaterAgreement:
    """Gwet's AC1 of two or more raters, of whom each may have left items out (Brit. J. Math. Stat. Psychol. 61, 2008).

    `ratings` as in `krippendorff_alpha`. (pa - pe) / (1 - pe): pa the mean over items with two ratings or more of the share of pairs
    that agree, pe = sum p_k (1 - p_k) / (q - 1) with p_k the mean over all items of the share of ratings k, q labels. Interval and
    errors as there. One label only: 1.
    """
    counts, labels, clusters, n_missing = _counts(ratings, None, "gwet_ac1", confidence)
    return _with_interval(_ac1, counts, labels, clusters, n_missing, confidence, "new items like these; these raters")


def weighted_kappa(
    a: Iterable[Any],
    b: Iterable[Any],
    *,
    weights: Weights = "linear",
    order: Sequence[Any] | None = None,
    clusters: Iterable[Any] | None = None,
    confidence: float = 0.95,
) -> RaterAgreement:
    """Cohen's weighted kappa of two raters' grades (Psychol. Bull. 70, 1968): 1 - sum w p_ij / sum w r_i c_j.

    w is |i - j| (linear), its square (quadratic), or 1 (unweighted: the kappa of `agreement`), of the places of the grades among all
    grades in their own order, or in `order`, which may hold grades that nobody gave. Items without a grade from either are left out and
    counted; lists are matched as in `agreement`. Interval as in `krippendorff_alpha`.
    """
    caller = "weighted_kappa"
    if weights not in ("unweighted", "linear", "quadratic"):
        raise ValueError(f"{caller}: weights are unweighted, linear or quadratic, got {short_repr(weights)}")
    columns = {"a": a, "b": b} | ({} if clusters is None else {"clusters": clusters})
    lists = [list(values) for values in align(columns, caller)]
    if len({len(values) for values in lists}) > 1:
        raise ValueError(f"{caller}: one grade (and cluster) an item, got {', '.join(str(len(values)) for values in lists)}")
    frame = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in zip(columns, lists, strict=True)})
    rated = frame.dropna(subset=["a", "b"])
    check_confidence(confidence, caller)
    if rated.empty:
        raise ValueError(f"{caller}: no item has both grades ({len(frame)} missing)")
    labels = _labels(pd.concat([rated["a"], rated["b"]]), order, caller)
    place = {label: i for i, label in enumerate(labels)}
    first, second = (rated[side].map(place).to_numpy(dtype=int) for side in ("a", "b"))
    q = len(labels)
    tables = np.zeros((len(rated), q * q))  # an item a row, so that the jackknife takes it out
    tables[np.arange(len(rated)), first * q + second] = 1
    apart = np.abs(np.subtract.outer(np.arange(q), np.arange(q))).astype(float)
    cost = {"unweighted": (apart > 0).astype(float), "linear": apart, "quadratic": apart**2}[weights]

    def coefficient(rows: Array) -> tuple[float, float, float]:
        shares = rows.sum(0).reshape(q, q) / rows.sum()
        observed, expected = float((cost * shares).sum()), float(shares.sum(1) @ cost @ shares.sum(0))
        return _ratio(observed, expected), observed, expected

    if clusters is not None:
        check_labels(rated["clusters"], f"{caller}: clusters")
    groups = np.arange(len(rated)) if clusters is None else pd.factorize(rated["clusters"])[0]
    return _with_interval(
        coefficient, tables, labels, groups, len(frame) - len(rated), confidence, "new items like these; these two raters", each=2
    )


def _counts(
    ratings: pd.DataFrame, order: Sequence[Any] | None, caller: str, confidence: float
) -> tuple[Array, tuple[Any, ...], Array, int]:
    """Ratings by item and label (items, labels), the labels, the items' clusters, and how many items have fewer than two ratings."""
    check_confidence(confidence, caller)
    ratings = as_frame(ratings)
    check_columns(ratings, ["item", "rater", "label"], caller)
    for column in ("item", "rater"):
        check_labels(ratings[column], f"{caller}: column {column}")
    if twice := int(ratings[["item", "rater"]].duplicated().to_numpy().sum()):
        raise ValueError(f"{caller}: {twice} rows repeat an item and rater (column rater)")
    rated = ratings.dropna(subset=["label"])
    times = rated.groupby("item", sort=False)["label"].transform("size")
    paired = rated[times.to_numpy() > 1]
    if paired.empty:
        raise ValueError(f"{caller}: no item has two ratings (column label)")
    labels = _labels(paired["label"].astype(object), order, caller)
    place = {label: i for i, label in enumerate(labels)}
    items, names = pd.factorize(paired["item"])
    counts = np.zeros((len(names), len(labels)))
    np.add.at(counts, (items, paired["label"].map(place).to_numpy(dtype=int)), 1)
    n_missing = ratings["item"].nunique() - len(names)
    if "cluster_id" not in paired:
        return counts, labels, np.arange(len(names)), n_missing
    check_labels(paired["cluster_id"], f"{caller}: column cluster_id")
    if paired.groupby("item")["cluster_id"].nunique().max() > 1:
        raise ValueError(f"{caller}: an item is in two clusters (column cluster_id)")
    return counts, labels, pd.factorize(paired.groupby("item", sort=False)["cluster_id"].first())[0], n_missing


def _labels(values: pd.Series, order: Sequence[Any] | None, caller: str) -> tuple[Any, ...]:
    check_hashable(values, f"{caller}: a label")
    given = set(values)
    check_one_coding(given)
    if order is not None:
        if lacking := sorted(map(str, given - set(order))):
            raise ValueError(f"{caller}: order lacks the label {lacking[0]!r}")
        return tuple(dict.fromkeys(order))
    try:
        return tuple(sorted(given))
    except TypeError:
        return tuple(sorted(given, key=lambda x: (type(x).__name__, repr(x))))


def _check_numbers(labels: tuple[Any, ...], caller: str) -> None:
    if odd := [label for label in labels if not isinstance(label, int | float | np.number) or not math.isfinite(label)]:
        raise ValueError(f"{caller}: level interval needs numbers, got the label {short_repr(odd[0])}")


def _alpha(counts: Array, level: Level, labels: tuple[Any, ...]) -> tuple[float, float, float]:
    """Alpha, observed and expected disagreement of counts (items, labels) of at least two each."""
    weight = 1 / (counts.sum(1) - 1)
    coincidences = (counts * weight[:, None]).T @ counts - np.diag((counts * weight[:, None]).sum(0))
    sums = coincidences.sum(0)
    total = float(sums.sum())
    if level == "interval":
        values = np.array(labels, dtype=float)
        apart = np.subtract.outer(values, values) ** 2
    elif level == "ordinal":
        middle = np.cumsum(sums) - sums / 2
        apart = np.subtract.outer(middle, middle) ** 2
    else:
        apart = 1 - np.eye(len(labels))
    observed = float((coincidences * apart).sum()) / total
    expected = float(sums @ apart @ sums) / (total * (total - 1))
    return _ratio(observed, expected), observed, expected


def _ac1(counts: Array) -> tuple[float, float, float]:
    raters = counts.sum(1)
    agreed = float(((counts * (counts - 1)).sum(1) / (raters * (raters - 1))).mean())
    shares = (counts / raters[:, None]).mean(0)
    q = len(shares)
    by_chance = float((shares * (1 - shares)).sum()) / (q - 1) if q > 1 else 0.0
    return (agreed - by_chance) / (1 - by_chance), agreed, by_chance


def _ratio(observed: float, expected: float) -> float:
    return 1 - observed / expected if expected > ROUNDING else math.nan


def _with_interval(
    coefficient: Callable[[Array], tuple[float, float, float]],
    rows: Array,
    labels: tuple[Any, ...],
    clusters: Array,
    n_missing: int,
    confidence: float,
    scope: str,
    each: int = 0,
) -> RaterAgreement:
    """The coefficient of `rows` (an item each) with the jackknife's error over clusters."""
    estimate, observed, expected = coefficient(rows)
    n_clusters = int(clusters.max()) + 1
    error = low = high = math.nan
    if n_clusters > 2 and not math.isnan(estimate):
        without = np.array([coefficient(rows[clusters != cluster])[0] for cluster in range(n_clusters)])
        if np.isfinite(without).all():
            error = math.sqrt((n_clusters - 1) / n_clusters * float(((without - without.mean()) ** 2).sum()))
    unit = "items" if n_clusters == len(rows) else "clusters of items"
    test = f"jackknife over {n_clusters} {unit}"
    if math.isnan(error):
        test = "none: too few items, or one without which all ratings are alike"
    elif error <= ROUNDING or abs(estimate) >= 1:
        error, test = 0.0 if error <= ROUNDING else error, "none: no item disagrees, or none agrees"
    else:
        half = float(stdtrit(n_clusters - 1, (1 + confidence) / 2)) * error / (1 - estimate**2)
        low, high = math.tanh(math.atanh(estimate) - half), math.tanh(math.atanh(estimate) + half)
    return RaterAgreement(
        coefficient=estimate,
        standard_error=error,
        ci_low=low,
        ci_high=high,
        observed=observed,
        expected=expected,
        labels=labels,
        n=len(rows),
        n_missing=n_missing,
        n_ratings=int(rows.sum()) * (each or 1),
        n_clusters=n_clusters,
        scope=scope if unit == "items" else scope.replace("new items", "new clusters of items"),
        test=test,
    )
