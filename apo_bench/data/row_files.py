"""Rows of files as people have them: JSON lines, JSON, CSV, TSV and parquet, plain or compressed, and data sets by `datasets`."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from apo_bench.data.strict_json import parse_json
from apo_bench.errors import InputError

Row = dict[str, Any]
COMPRESSED = (".gz", ".zst")
KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_ZST_CHUNK = 1 << 14  # compressed bytes at a time
_CELL = 1 << 27  # characters of a CSV's cell; the module's own limit is 131,072, which a transcript can pass


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """("file: line n", row) of every row of a file, whose kind is its name's ending: one of KINDS, perhaps with .gz or .zst after it. A
    file of another name whose first line is an object holds JSON lines.

    A .json is a list of objects, an object that holds one under `data` or `examples`, or JSON lines. A CSV's first line names its columns;
    an empty cell is a missing value, and one that holds a JSON list is that list. Raises InputError, one line, for what is broken.
    """
    kind = _kind(path)
    if kind == ".parquet":
        yield from _parquet(path)
    elif kind in (".csv", ".tsv"):
        yield from _table(path, "," if kind == ".csv" else "\t")
    elif kind == ".json" and not all(_first_lines(path)):
        yield from _json(path)
    else:
        yield from read_jsonl(path)


def read_jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    """("file: line n", row) of a file of JSON lines; blank lines are passed over."""
    number = 0
    try:
        with opened(path) as lines:
            for number, line in enumerate(lines, 1):
                where = f"{path}: line {number}"
                if not line.strip():
                    continue
                row = parse_json(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                if not isinstance(row, dict):
                    raise InputError(f"{where}: an object is needed, got {type(row).__name__}")
                yield where, row
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: line {number}: not UTF-8 (byte {error.start} of the line)") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {number}: broken JSON: {error.msg} (column {error.colno})") from None
    except InputError:
        raise
    except (ValueError, RecursionError) as error:  # a key given twice, a number of too many digits, or lists too deep
        raise InputError(f"{path}: line {number}: broken JSON: {error}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: line {number + 1}: cannot be read: {error}") from None


def hub_rows(hub: str, split: str, *, data_dir: str | None = None, subset: str | None = None) -> Iterator[tuple[str, Row]]:
    """(where it stands, row) of a data set of the hub, or of a folder that is laid out like one. Raises ValueError with the reason."""
    import datasets

    try:
        table = datasets.load_dataset(hub, subset, data_dir=data_dir, split=split)
    except Exception as error:  # network, cache, hub and parser each have their own
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0]) from None
    for number, row in enumerate(table, 1):
        yield f"{'/'.join(filter(None, (hub, subset, data_dir)))} {split}: row {number}", dict(cast(Row, row))


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, decompressed by its name's ending. Raises InputError for .zst without the package that reads it."""
    if path.suffix == ".gz":
        with gzip.open(path) as file:
            yield cast(IO[bytes], file)
    elif path.suffix == ".zst":
        try:
            import zstandard  # pyright: ignore[reportMissingImports] (whoever has such files has it)
        except ImportError:
            raise InputError(f"{path}: .zst needs the package zstandard, which is not installed; or decompress it") from None
        try:
            with path.open("rb") as raw:
                yield io.BufferedReader(_ZstFrames(raw, zstandard.ZstdDecompressor()))
        except zstandard.ZstdError as error:
            raise OSError(error) from None
    else:
        with path.open("rb") as file:
            yield file


class _ZstFrames(io.RawIOBase):
    """What a .zst file's frames hold. Raises EOFError for a frame that is cut off, which zstandard's own stream takes for the end."""

    def __init__(self, raw: IO[bytes], decompressor: Any) -> None:
        self.raw, self.decompressor = raw, decompressor
        self.frame: Any = None
        self.compressed = self.left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.left:
            self.compressed = self.compressed or self.raw.read(_ZST_CHUNK)
            if not self.compressed and self.frame is not None:
                raise EOFError("the file is cut off")
            if not self.compressed:
                return 0
            frame = self.frame or self.decompressor.decompressobj()
            self.left = frame.decompress(self.compressed)
            self.frame, self.compressed = (None, frame.unused_data) if frame.eof else (frame, b"")
        part, self.left = self.left[: len(buffer)], self.left[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def _kind(path: Path) -> str:
    kind = path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix
    if kind.lower() not in KINDS and _first_lines(path)[0]:
        return ".jsonl"
    if kind.lower() not in KINDS:
        raise InputError(f"{path}: its kind is not known; a name ends with {', '.join(KINDS)}, perhaps with .gz or .zst after it")
    return kind.lower()


def _content(path: Path) -> bytes:
    try:
        with opened(path) as file:
            return file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def _text(path: Path) -> str:
    try:
        return _content(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start})") from None


def _first_lines(path: Path) -> tuple[bool, bool]:
    """Whether the first line is an object by itself, and whether another line follows."""
    try:
        with opened(path) as lines:
            first, second = next(lines, b""), next(lines, b"")
        return isinstance(json.loads(first.decode("utf-8-sig")), dict), bool(second.strip())
    except (ValueError, RecursionError, OSError, EOFError, zlib.error):
        return False, False


def _json(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        items = parse_json(_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {error.lineno}: broken JSON: {error.msg} (column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: broken JSON: {error}") from None
    if isinstance(items, dict):
        items = next((items[key] for key in ("data", "examples") if isinstance(items.get(key), list)), [items])
    if not isinstance(items, list):
        raise InputError(f"{path}: a list of objects is needed, got {type(items).__name__}")
    for number, item in enumerate(items, 1):
        if not isinstance(item, dict):
            raise InputError(f"{path}: item {number}: an object is needed, got {type(item).__name__}")
        yield f"{path}: item {number}", item


def _table(path: Path, delimiter: str) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(_CELL)
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
    try:
        _once(path, [name for name in reader.fieldnames or () if name])
        for row in reader:
            if None in row:
                raise InputError(f"{path}: line {reader.line_num}: more cells than the first line has columns")
            yield f"{path}: line {reader.line_num}", {name: _cell(value) for name, value in row.items()}
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: {error}") from None


def _cell(value: str | None) -> Any:
    """A cell's value: None where it is empty, a list where it is one in JSON, else its text."""
    if not value:
        return None
    if value.lstrip()[:1] == "[":
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        table = pyarrow.parquet.ParquetFile(path if path.suffix == ".parquet" else pyarrow.BufferReader(_content(path)))
        _once(path, table.schema_arrow.names)
        for batch in table.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path}: row {number}", row
    except InputError:
        raise
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:  # values that Python has not, or text that is no UTF-8
        where = f"{path}: a row after {number}" if number else str(path)
        raise InputError(f"{where}: cannot be read: {error}") from None


def _once(path: Path, columns: Sequence[str]) -> None:
    if twice := next((name for place, name in enumerate(columns) if name in columns[:place]), None):
        raise InputError(f"{path}: column {twice!r} occurs twice")
