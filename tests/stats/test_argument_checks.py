"""What the statistics take as a number, a count, a seed, a share of confidence and a column."""

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from score_frames import frame

from apo_bench.stats import bradley_terry, contrast, krippendorff_alpha, simultaneous_contrasts
from apo_bench.stats.argument_checks import as_floats, as_frame, check_columns, check_confidence, check_count, check_labels, check_seed


@pytest.mark.parametrize(
    "values",
    [
        [1, 0.5, None],
        (x for x in [1, 0.5, math.nan]),
        np.array([1, 0.5, math.nan]),
        np.array([1, 0.5, math.nan], dtype=np.float32),
        np.array([True, Decimal("0.5"), pd.NA], dtype=object),
        [np.int8(1), Fraction(1, 2), pd.NA],
        pd.Series([1, 0.5, None], index=[5, 5, 6]),
        pd.Series([1, 0.5, pd.NA], dtype="Float64"),
        pd.Series(pd.Categorical([1, 0.5, None])),
    ],
)
def test_numbers(values: Any):
    result = as_floats(values, "f: x")
    assert result.dtype == float
    assert result[:2].tolist() == [1, 0.5]
    assert math.isnan(result[2])


def test_whole_numbers_and_truth_values_are_numbers():
    for values in ([True, False], np.array([True, False]), pd.Series([True, False], dtype="boolean"), np.array([1, 0], dtype="uint8")):
        assert as_floats(values, "f: x").tolist() == [1, 0]
    assert as_floats([], "f: x").tolist() == []


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "values",
    [
        "101",
        b"101",
        ["1"],
        pd.Series(["1", "0"]),
        pd.Series(pd.to_datetime(["1970-01-01"])),
        pd.Series(pd.to_timedelta([1])),
        [pd.Timestamp("1970-01-01")],
        [pd.NaT],
        [np.timedelta64(1, "s")],
        np.array([1], dtype="timedelta64[s]"),
        [1j],
        np.array([1j]),
        [10**400],
        [[1.0]],
        [np.array([1.0])],
        {1: 1.0},
        {1, 0},
        pd.DataFrame({0: [1.0]}),
        None,
        5,
    ],
)
def test_not_numbers(values: Any):
    with pytest.raises(ValueError, match=r"^f: x is not numeric$"):
        as_floats(values, "f: x")


@pytest.mark.parametrize("confidence", [0, 1, 0.0, 1.0, -0.5, 95, math.nan, math.inf, "0.95", None, True, False, [0.95], pd.Series([0.9])])
def test_not_a_confidence(confidence: Any):
    with pytest.raises(ValueError, match=r"^f: confidence is between 0 and 1, got ") as caught:
        check_confidence(confidence, "f")
    assert "\n" not in str(caught.value)


def test_what_passes():
    for confidence in (0.95, np.float64(0.5), np.float32(0.9)):
        check_confidence(confidence, "f")
    for count in (3, np.int64(3), 10**30):
        check_count(count, "n", "f", 3)
    check_seed(0, "f")
    check_columns(pd.DataFrame({"x": []}), ["x"], "f")
    check_labels(pd.Series([1, "1", (1, 2)], dtype=object), "f: x")


@pytest.mark.parametrize("value", [2, -1, 3.0, 3.5, math.nan, math.inf, "3", None, True, np.timedelta64(5, "s"), np.random.default_rng(0)])
def test_not_a_count(value: Any):
    with pytest.raises(ValueError, match=r"^f: n is a whole number of at least 3, got "):
        check_count(value, "n", "f", 3)


@pytest.mark.parametrize("seed", [-1, 1.0, None, "1", False])
def test_not_a_seed(seed: Any):
    with pytest.raises(ValueError, match=r"^f: seed is a whole number of at least 0, got "):
        check_seed(seed, "f")


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame({"y": [1]}), "column x is missing"),
        (pd.DataFrame([[1, 2]], columns=["x", "x"]), "column x occurs 2 times"),
        ({"x": [1]}, "rows come as a DataFrame, got dict"),
    ],
)
def test_not_a_column(frame: Any, message: str):
    with pytest.raises(ValueError, match=f"^f: {message}$"):
        check_columns(frame, ["x"], "f")


@pytest.mark.parametrize(("labels", "message"), [([1, None, pd.NA], "is empty in 2 rows"), ([[1], [2]], "holds a label that is not")])
def test_not_labels(labels: list[Any], message: str):
    with pytest.raises(ValueError, match=f"^f: x {message}"):
        check_labels(pd.Series(labels, dtype=object), "f: x")


def test_tables_of_other_libraries_are_taken() -> None:
    """A pyarrow table: the results are those of the pandas frame. A dict is no table."""
    assert as_frame({"x": [1]}) == {"x": [1]}
    rng = np.random.default_rng(0)
    scores = frame(*rng.normal(size=(2, 3, 6)))
    table: Any = pa.Table.from_pandas(scores)
    assert contrast(table, "a", "b") == contrast(scores, "a", "b")
    pd.testing.assert_frame_equal(simultaneous_contrasts(table, draws=1000).table, simultaneous_contrasts(scores, draws=1000).table)
    battles = pd.DataFrame({"a": ["x", "y", "x"], "b": ["y", "x", "y"], "value": [1.0, 1.0, 0.5]})
    other: Any = pa.Table.from_pandas(battles)
    pd.testing.assert_frame_equal(bradley_terry(other, draws=100).strengths, bradley_terry(battles, draws=100).strengths)
    ratings = pd.DataFrame({"item": [0, 0, 1, 1], "rater": [0, 1, 0, 1], "label": [1, 1, 2, 1]})
    other = pa.Table.from_pandas(ratings)
    assert krippendorff_alpha(other).coefficient == krippendorff_alpha(ratings).coefficient


def test_polars_frames_are_taken() -> None:
    """Eager and lazy ones, with missing values: the same frame and the same contrast as from pandas."""
    polars = pytest.importorskip("polars")
    scores = frame(*np.random.default_rng(0).normal(size=(2, 3, 6)))
    table = polars.DataFrame({name: scores[name].to_list() for name in scores})
    for other in (table, table.lazy()):
        pd.testing.assert_frame_equal(as_frame(other), scores, check_dtype=False)
        assert contrast(other, "a", "b") == contrast(scores, "a", "b")
    missing = as_frame(polars.DataFrame({"x": [1.0, None], "name": ["a", None]}))
    assert missing.isna().to_numpy().tolist() == [[False, False], [True, True]]
