"""Where a report comes from: data, splits, commit and versions; for the page also hardware, time, cost and the files behind it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from apo_bench.analysis import published
from apo_bench.analysis.results import Run
from apo_bench.formatting import count, duration
from apo_bench.report.document import Block, Bullets, Facts, Section
from apo_bench.report.tables import Column, Table, text_column
from apo_bench.report.text import Text, join, names, say
from apo_bench.tables import read_table, table_path

HASHED_BYTES = 64 * 2**20  # what is larger is named without a hash


def section(run: Run) -> Section:
    """The data and what the experiment ran with."""
    manifest = run.manifest
    dirty = manifest.get("dirty")
    changes = "" if dirty is None else f", {'with' if dirty else 'without'} uncommitted changes"
    arms = manifest.get("arms") or {name: arm.use for name, arm in run.experiment.arms.items()}
    facts = {
        "experiment": say("{name}", name=run.experiment.name),
        "task": say("{task}", task=manifest.get("task") or run.experiment.task.use),
        "seeds": say(", ".join(map(str, run.experiment.seeds))),
        "arms": names(f"{name} = {use}" for name, use in arms.items()),
        "command": say("{command}", command=manifest["command"]) if manifest.get("command") else (),
        "commit": say(f"{{commit}}{changes}", commit=manifest.get("commit") or "unknown"),
        "versions": names(f"{name} {version}" for name, version in sorted((manifest.get("versions") or {}).items())),
    }
    blocks: list[Block] = [say("{text}", text=manifest.get("provenance") or "No provenance was recorded."), *_splits(manifest)]
    notes = [say("{note}", note=note) for note in manifest.get("notes") or []]
    blocks += [Bullets(notes)] if notes else []
    return Section("Data and provenance", [*blocks, Facts({term: text for term, text in facts.items() if text})])


def _splits(manifest: Mapping[str, Any]) -> list[Table]:
    splits = manifest.get("splits") or {}
    kinds = ("pairs", "prompts", "clusters")
    frame = pd.DataFrame([{"split": name} | {kind: str(counts.get(kind, "-")) for kind in kinds} for name, counts in splits.items()])
    return [Table(frame, [text_column(name) for name in ("split", *kinds)], "Splits of the data")] if splits else []


def machine_section(folder: Path, run: Run) -> Section:
    """Hardware, time and cost, and the files behind the page. Raises InputError where tables/timings.parquet is not readable."""
    hardware = run.manifest.get("hardware")
    facts = {
        "Hardware": say("{hardware}", hardware=", ".join(f"{key} {value}" for key, value in hardware.items())) if hardware else (),
        "Time and cost": _time_and_cost(folder),
    }
    columns = [
        Column("file", lambda row: say("`{path}`", path=row["path"])),
        Column("bytes", lambda row: count(row["bytes"])),
        Column("SHA-256", lambda row: say("`{digest}`", digest=row["digest"])),
    ]
    files = Table(pd.DataFrame(_files(folder)), columns, "The files behind this page")
    return Section("Hardware, time and files", [Facts({term: text for term, text in facts.items() if text}), files], is_on_page_only=True)


def _time_and_cost(folder: Path) -> Text:
    """Hours over all arm-seeds, the largest memory, and what judges cost, of what was measured."""
    path = table_path(folder, "timings")
    if not path.exists():
        return ()
    values = read_table(path, "timings").dropna(subset=["value"]).set_index("arm").groupby("measure")["value"]
    values = {str(measure): group for measure, group in values}
    parts = []
    if "wall_s" in values:
        each = names(f"{arm} {duration(seconds)}" for arm, seconds in values["wall_s"].groupby("arm").sum().items())
        parts.append(say(f"{duration(float(values['wall_s'].sum()))} of work over all arms and seeds ({{each}})", each=each))
    if "peak_memory_bytes" in values:
        parts.append(say(f"at most {values['peak_memory_bytes'].max() / 2**30:.2f} GiB of memory"))
    if "peak_device_bytes" in values:
        parts.append(say(f"at most {values['peak_device_bytes'].max() / 2**30:.2f} GiB on a device"))
    if "judge_usd" in values:
        parts.append(say(f"judges: {values['judge_usd'].sum():.2f} USD"))
    return join(parts, "; ")


def _files(folder: Path) -> list[dict[str, Any]]:
    paths = [folder / "experiment.yaml", folder / "manifest.json", *sorted((folder / "tables").glob("*.parquet"))]
    files = []
    for path in (path for path in paths if path.is_file()):
        size = path.stat().st_size
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if size <= HASHED_BYTES else "not computed: large"
        files.append({"path": path.relative_to(folder).as_posix(), "bytes": size, "digest": digest})
    return files


def _less(text: str) -> str:
    """A contrast with a true minus sign."""
    return text.replace(" - ", " \N{MINUS SIGN} ")


def published_section(run: Run, source: str, frame: pd.DataFrame) -> Section:
    """The published numbers called `source` beside ours, and what differs. `frame`: of `published.compare_with_published`.

    Raises InputError as `published.read_published` does.
    """
    rows = pd.DataFrame(published.comparison_cells(frame), columns=list(published.HEADERS))
    columns = [
        Column(_less(head), lambda row, head=head: None if row[head] == "-" else say("{cell}", cell=_less(row[head])))
        for head in published.HEADERS
    ]
    caveats = published.comparison_caveats(run, published.read_published(published.find_published(source)), frame)
    lines = Bullets([say("{line}", line=line) for line in caveats])
    return Section(f"Published numbers: {source}", [Table(rows, columns, f"{source} beside this run"), lines])
