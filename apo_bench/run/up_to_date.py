"""Whether the tables and the report of a run folder follow from its records, its experiment file and the present code."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apo_bench.analysis.seal import check_seal
from apo_bench.hashing import checksum, code_hash, digest, digest_files
from apo_bench.report.write import report_damage
from apo_bench.run.jobs import Records
from apo_bench.store import write_json

REPORT_KEY = Path("store") / "report_key.json"


def report_key(folder: Path, manifest: Mapping[str, Any], records: Records, judges: Sequence[Path]) -> str:
    """Hash of everything that tables and report are made from. `judges`: the source files of the experiment's judges."""
    code = code_hash("apo_bench.run.tables", "apo_bench.run.judges", "apo_bench.report.report", *judges)
    experiment = digest_files([folder / "experiment.yaml"])
    return digest([manifest, [record["key"] for record in records.values()], experiment, code])


def write_report_key(folder: Path, key: str) -> None:
    """Record that tables and report are complete, and what they were made from."""
    write_json(folder / REPORT_KEY, {"key": key, "tables": _checksums(folder)})


def report_is_current(folder: Path, key: str) -> bool:
    """Whether tables and report were made from what `key` names, and are as they were written."""
    try:
        stored = json.loads((folder / REPORT_KEY).read_text())
        same = stored["key"] == key and stored["tables"] == _checksums(folder)
        check_seal(folder)
        return same and (folder / "manifest.json").exists() and report_damage(folder) is None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _checksums(folder: Path) -> dict[str, str]:
    return {path.name: checksum(path) for path in sorted((folder / "tables").glob("*.parquet"))}
