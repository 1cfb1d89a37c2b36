"""Files of rows: every kind gives the same rows, and a broken one is an error of one line."""

import csv
import gzip
import io
import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from apo_bench.data.row_files import KINDS, hub_rows, read_rows
from apo_bench.errors import InputError

ROWS: list[dict[str, Any]] = [
    {"prompt": 'Where, "exactly"?\nHere?', "chosen": "Über there.", "rejected": None},
    {"prompt": "[no list", "chosen": "a\tb", "rejected": "c"},
]


def content(kind: str) -> bytes:
    if kind == ".parquet":
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), buffer)
        return buffer.getvalue()
    if kind in (".csv", ".tsv"):
        text = io.StringIO()
        writer = csv.DictWriter(text, ROWS[0].keys(), delimiter="," if kind == ".csv" else "\t")
        writer.writeheader()
        writer.writerows(ROWS)
        return ("\ufeff" + text.getvalue()).encode()
    return (json.dumps(ROWS, indent=1) if kind == ".json" else "\n".join(map(json.dumps, ROWS))).encode()


@pytest.mark.parametrize("compression", ["", ".gz"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_rows(kind: str, compression: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{kind}{compression}"
    path.write_bytes(gzip.compress(content(kind)) if compression else content(kind))
    assert [row for _, row in read_rows(path)] == ROWS


def test_a_json_may_be_json_lines_an_object_of_a_list_or_one_row(tmp_path: Path) -> None:
    for text in ("\n".join(map(json.dumps, ROWS)), json.dumps({"version": 1, "data": ROWS})):
        (tmp_path / "rows.json").write_text(text)
        assert [row for _, row in read_rows(tmp_path / "rows.json")] == ROWS
    (tmp_path / "rows.json").write_text(json.dumps(ROWS[1]))
    assert [row for _, row in read_rows(tmp_path / "rows.json")] == ROWS[1:]


def test_a_cell_may_hold_a_list(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('chosen,n\n"[{""role"": ""user"", ""content"": ""a""}]",1\n')
    ((where, row),) = read_rows(tmp_path / "rows.csv")
    assert row == {"chosen": [{"role": "user", "content": "a"}], "n": "1"}
    assert where.endswith("rows.csv: line 2")


@pytest.mark.parametrize("name", ["rows", "rows.txt"])
def test_a_file_of_another_name_that_begins_with_an_object_holds_json_lines(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"a": 1}\n{"a": 2}\n')
    assert [row["a"] for _, row in read_rows(tmp_path / name)] == [1, 2]


@pytest.mark.parametrize(
    ("name", "data", "pattern"),
    [
        ("rows.txt", b"", r"rows\.txt: its kind is not known; .*\.parquet"),
        ("rows.jsonl", b'{"a": 1}\n{"a":', r"rows\.jsonl: line 2: broken JSON"),
        ("rows.jsonl", b'{"a": 1}\n[1]\n', r"rows\.jsonl: line 2: an object is needed, got list"),
        ("rows.json", b"[1]", r"rows\.json: item 1: an object is needed, got int"),
        ("rows.json", b'"a"', r"rows\.json: a list of objects is needed, got str"),
        ("rows.json", b"[\n{]", r"rows\.json: line 2: broken JSON"),
        ("rows.json", b'["\xff"]', r"rows\.json: not UTF-8"),
        ("rows.csv", b"a,b\n1,2,3\n", r"rows\.csv: line 2: more cells"),
        ("rows.csv", b'a,b\n"1"x,2\n', r"rows\.csv: line \d: "),
        ("rows.csv", b'a,b\n"1,2\n', r"rows\.csv: line \d: "),
        ("rows.parquet", b"PAR1", r"rows\.parquet: cannot be read"),
        ("rows.csv.gz", b"no gzip", r"rows\.csv\.gz: cannot be read"),
        ("rows.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9], r"rows\.jsonl\.gz: line \d+: cannot be read"),
    ],
)
def test_broken_files(name: str, data: bytes, pattern: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=pattern) as error:
        list(read_rows(tmp_path / name))
    assert "\n" not in str(error.value)


class Reversed:
    """Stands for a frame of zstandard's: the file's bytes backwards."""

    eof, unused_data = True, b""

    def decompress(self, data: bytes) -> bytes:
        return data[::-1]


def test_zst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(content(".jsonl")[::-1])
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(InputError, match=r"\.zst needs the package zstandard"):
        list(read_rows(path))
    double = SimpleNamespace(ZstdDecompressor=lambda: SimpleNamespace(decompressobj=Reversed), ZstdError=RuntimeError)
    monkeypatch.setitem(sys.modules, "zstandard", double)
    assert [row for _, row in read_rows(path)] == ROWS


def test_zst_by_the_package_itself(tmp_path: Path) -> None:
    """A file of two frames, as `cat` joins two files, is read to its end; one that is cut off, or no zst at all, is refused in a line.

    So is a long one of random digits, which is cut in its second chunk after many whole rows.
    """
    zstandard = pytest.importorskip("zstandard")
    path, whole = tmp_path / "rows.jsonl.zst", content(".jsonl")
    half = whole.index(b"\n") + 1
    path.write_bytes(zstandard.compress(whole[:half]) + zstandard.compress(whole[half:]))
    assert [row for _, row in read_rows(path)] == ROWS
    digits = random.Random(0)
    long = zstandard.compress(b"".join(b'{"x": "%d"}\n' % digits.getrandbits(600) for _ in range(2000)))
    path.write_bytes(long)
    assert sum(1 for _ in read_rows(path)) == 2000
    for data in (long[: len(long) // 2], zstandard.compress(b"{}\n" * 1000)[:-4], zstandard.compress(whole) + long[:3], b"not compressed"):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"rows\.jsonl\.zst: ") as error:
            list(read_rows(path))
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_folder_laid_out_like_the_hub_s(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "train.jsonl").write_bytes(content(".jsonl"))
    assert [row for _, row in hub_rows(str(tmp_path / "copy"), "train")] == ROWS
    with pytest.raises(ValueError, match="test"):
        list(hub_rows(str(tmp_path / "copy"), "test"))
