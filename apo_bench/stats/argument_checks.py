"""Checks of arguments. Each error is one line that begins with the name of the function that was called."""

import math
from collections.abc import Hashable, Mapping, Sequence, Set
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Array = npt.NDArray[Any]

ROUNDING = 1e-12  # variation below this share of the values' size is rounding


def check_confidence(confidence: Any, caller: str) -> None:
    """A real number strictly between 0 and 1."""
    if not (isinstance(confidence, float | np.floating) and 0 < confidence < 1):
        raise ValueError(f"{caller}: confidence is between 0 and 1, got {short_repr(confidence)}")


def check_count(value: Any, name: str, caller: str, least: int) -> None:
    """A whole number (Python's or numpy's int) of at least `least`."""
    if not is_whole(value) or value < least:
        raise ValueError(f"{caller}: {name} is a whole number of at least {least}, got {short_repr(value)}")


def check_number(value: Any, name: str, caller: str) -> float:
    """A finite real number, as a float."""
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{caller}: {name} is a finite number, got {short_repr(value)}")
    return float(value)


def check_seed(seed: Any, caller: str) -> None:
    """A random seed: a whole number of at least 0."""
    check_count(seed, "seed", caller, 0)


def check_columns(frame: Any, columns: Sequence[Any], caller: str) -> None:
    """A frame that has each of `columns` once."""
    if not isinstance(frame, pd.DataFrame):
        raise ValueError(f"{caller}: rows come as a DataFrame, got {type(frame).__name__}")
    names = list(frame.columns)
    for column in columns:
        if (times := names.count(column)) != 1:
            raise ValueError(f"{caller}: column {column} {'is missing' if times == 0 else f'occurs {times} times'}")


def as_frame(frame: Any) -> Any:
    """A pandas frame of a table of another library that narwhals knows (polars, pyarrow, ...), lazy ones too; anything else as it is."""
    if isinstance(frame, pd.DataFrame):
        return frame
    import narwhals as nw

    table = nw.from_native(frame, pass_through=True)
    table = table.collect() if isinstance(table, nw.LazyFrame) else table
    return table.to_pandas() if isinstance(table, nw.DataFrame) else frame


def check_arm(arm: Any, caller: str) -> None:
    """The name of an arm: one label, not a list of them."""
    if not isinstance(arm, Hashable) or arm is None:
        raise ValueError(f"{caller}: an arm is one label (column arm), got {short_repr(arm)}")


def label_codes(labels: Any) -> tuple[Array, Array]:
    """Labels as 0 .. n-1 and the distinct labels, in an order that does not depend on that of the rows."""
    codes, names = pd.factorize(labels)
    order = sorted(range(len(names)), key=lambda place: str(names[place]))
    ranks = np.empty(len(names), dtype=int)
    ranks[order] = np.arange(len(names))
    return ranks[codes], np.asarray(names, dtype=object)[order]


def check_labels(labels: pd.Series, what: str) -> None:
    """Hashable labels, none of them missing."""
    if empty := int(labels.isna().to_numpy().sum()):
        raise ValueError(f"{what} is empty in {empty} rows")
    check_hashable(labels, what)


def check_hashable(labels: pd.Series, what: str) -> None:
    """Hashable labels: no lists, dicts or arrays."""
    try:
        set(labels)
    except TypeError:
        raise ValueError(f"{what} holds a label that is not hashable") from None


def check_one_cluster(rows: pd.DataFrame, caller: str) -> None:
    """Rows in which each prompt_id has one cluster_id."""
    prompts = rows[["prompt_id", "cluster_id"]].drop_duplicates()["prompt_id"]
    if several := prompts[prompts.duplicated()].tolist():
        raise ValueError(f"{caller}: prompt {several[0]!r} is in two clusters (column cluster_id)")


def align(lists: Mapping[str, Any], caller: str) -> list[Any]:
    """Lists with an item at each place, Series among them put into the order of the first one's index.

    A mapping, a set or a frame has no such order. Series whose indices hold other labels, or the same ones twice and in another order,
    are not of the same items. Each raises ValueError; lists that are None pass.
    """
    for name, values in lists.items():
        if isinstance(values, Mapping | Set | pd.DataFrame):
            raise ValueError(f"{caller}: {name} is a {type(values).__name__}, which has no order of items; give a list or a Series")
    indexed = [(name, values) for name, values in lists.items() if isinstance(values, pd.Series)]
    aligned = dict(lists)
    for name, values in indexed[1:]:
        first, own = indexed[0][1].index, values.index
        if first.equals(own):
            continue
        if len(first) != len(own) or not first.is_unique or not own.is_unique or not first.isin(own).all():
            raise ValueError(
                f"{caller}: the indices of {indexed[0][0]} and {name} are not of the same items; "
                "join them, or reset both to compare by place"
            )
        aligned[name] = values.reindex(first)
    return list(aligned.values())


def as_floats(values: Any, what: str) -> Array:
    """A series, array or list as floats; None, NaN and pd.NA become NaN.

    Numbers, truth values, nullable types and objects that hold numbers will do. Text, times, complex numbers and whole numbers too large
    for a float raise ValueError, "`what` is not numeric".
    """
    if isinstance(dtype := getattr(values, "dtype", None), np.dtype) and dtype.kind in "buif" and not isinstance(values, pd.DataFrame):
        return np.asarray(values, dtype=float)
    try:
        if isinstance(values, str | bytes | bytearray | Mapping | Set | pd.DataFrame):
            raise TypeError
        return np.array([_number(x) for x in values], dtype=float)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{what} is not numeric") from None


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, and neither a bool nor a timedelta."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool | np.timedelta64)


def short_repr(value: Any) -> str:
    """A value in one short line, for an error."""
    return " ".join((str(value) if isinstance(value, Real | np.generic) else repr(value)).split())[:80]


def _number(x: Any) -> float:
    if x is None or x is pd.NA:
        return math.nan
    if isinstance(x, Real | Decimal | np.bool_) and not isinstance(x, np.timedelta64):
        return float(x)
    raise TypeError
