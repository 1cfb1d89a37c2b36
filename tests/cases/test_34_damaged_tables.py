"""A text in a table that is no UTF-8: damaged input, in one line that names the table."""

from pathlib import Path

import pandas as pd
import pytest
from judged_run import run_folder

from apo_bench.errors import InputError
from apo_bench.tables import read_table


@pytest.mark.parametrize("compression", [None, "snappy"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_a_text_that_is_no_utf_8_is_refused(compression: str | None, dictionary: bool, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = run_folder(tmp_path / "run", {"audit_pairs": 0})
    path = folder / "tables" / "responses.parquet"
    table = pa.Table.from_pandas(pd.read_parquet(path), preserve_index=False)
    damaged = pa.array([b"ri\xffnse"] * len(table), pa.binary()).cast(pa.string(), safe=False)
    table = table.set_column(table.schema.get_field_index("text"), "text", damaged)
    pq.write_table(table, path, compression=compression or "none", use_dictionary=dictionary)
    with pytest.raises(InputError, match=r"responses\.parquet: (not readable|column text)"):
        read_table(path, "responses")
