"""A parquet file of a user's whose texts are no UTF-8, or whose values Python has not: one line that names the file."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from apo_bench.data.row_files import read_rows
from apo_bench.errors import InputError


@pytest.mark.parametrize(
    "column",
    [
        pa.array([b"good", b"ri\xffnse"], pa.binary()).cast(pa.string(), safe=False),
        pa.array([2**50, 2**62], pa.timestamp("us")),
        pa.array([[1], [2]], pa.list_(pa.int64())).cast(pa.list_(pa.timestamp("us"))),
    ],
    ids=["bytes", "year 148,107", "fine"],
)
def test_values_that_cannot_be_read(column: pa.Array, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["p", "q"], "chosen": column}), path, write_statistics=False)
    if pa.types.is_list(column.type):
        assert len(list(read_rows(path))) == 2
        return
    with pytest.raises(InputError, match=r"rows\.parquet.*cannot be read"):
        list(read_rows(path))
