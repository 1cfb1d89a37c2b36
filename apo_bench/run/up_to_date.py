"""Whether the tables and the report of a run folder are still the answer to its question."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apo_bench.hashing import checksum, digest, digest_files
from apo_bench.provenance import code_hash
from apo_bench.report.write import report_damage
from apo_bench.run.tables import Records
from apo_bench.store import write_json

ANSWER = Path("store") / "answer.json"


def answer_key(folder: Path, about: Mapping[str, Any], records: Records, judges: Sequence[Path]) -> str:
    """Names everything that tables and report are made from."""
    code = [code_hash("apo_bench.run.tables", "apo_bench.judging.panel", "apo_bench.report.report"), digest_files(judges)]
    question = digest_files([folder / "experiment.yaml"])
    return digest([about, [record["key"] for record in records.values()], question, code])


def write_answer(folder: Path, key: str) -> None:
    """Say that tables and report are whole, and the answer to this question."""
    write_json(folder / ANSWER, {"key": key, "tables": _tables(folder)})


def says(folder: Path, key: str) -> bool:
    """Whether a folder's tables and report answer this question, and are as they were written."""
    try:
        said = json.loads((folder / ANSWER).read_text())
        return (
            said["key"] == key
            and said["tables"] == _tables(folder)
            and (folder / "manifest.json").exists()
            and report_damage(folder) is None
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _tables(folder: Path) -> dict[str, str]:
    return {path.name: checksum(path) for path in sorted((folder / "tables").glob("*.parquet"))}
