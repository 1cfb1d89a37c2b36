"""Where a report comes from, in words and then in hashes: data, version, seeds; for the page also machine, time, cost and files."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from apo_bench.analysis import published
from apo_bench.analysis.results import Run
from apo_bench.formatting import count, duration, minus
from apo_bench.report.document import Block, Bullets, Facts, Section
from apo_bench.report.tables import Column, Table, text_column
from apo_bench.report.text import Text, join, names, say
from apo_bench.tables import read_table, table_path

HASHED_BYTES = 64 * 2**20  # what is larger is named without a hash


def section(run: Run) -> Section:
    """The data and the run in words, then what it takes to run it again."""
    manifest = run.manifest
    arms = manifest.get("arms") or {name: arm.use for name, arm in run.experiment.arms.items()}
    facts = {
        "experiment": say("{name}", name=run.experiment.name),
        "task": say("{task}", task=manifest.get("task") or run.experiment.task.use),
        "seeds": say(", ".join(map(str, run.experiment.seeds))),
        "arms": names(f"{name} = {use}" for name, use in arms.items()),
        "command": say("`{command}`", command=manifest["command"]) if manifest.get("command") else (),
        "commit": say(f"{{commit}}{_changes(manifest)}", commit=manifest.get("commit") or "unknown"),
        "versions": names(f"{name} {version}" for name, version in sorted((manifest.get("versions") or {}).items())),
        "preregistration": _preregistration(manifest.get("preregistered") or {}),
    }
    blocks: list[Block] = [
        say("{text}", text=manifest.get("provenance") or "No provenance was recorded."),
        in_words(run),
        *_splits(manifest),
    ]
    notes = [say("{note}", note=note) for note in manifest.get("notes") or []]
    blocks += [Bullets(notes)] if notes else []
    details = Section("What it takes to run it again", [Facts({term: text for term, text in facts.items() if text})], is_folded=True)
    return Section("Data and provenance", [*blocks, details])


def in_words(run: Run) -> Text:
    """The version, the seeds, and whether the run is the one that was preregistered."""
    manifest, seeds = run.manifest, run.experiment.seeds
    version, commit = (manifest.get("versions") or {}).get("apo-bench"), str(manifest.get("commit") or "")
    code = say(f"commit `{{commit}}`{_changes(manifest)}", commit=commit[:7]) if commit else say("a commit that is not known")
    listed = f"{len(seeds)} seed{'s' * (len(seeds) > 1)} ({', '.join(map(str, seeds))})"
    registered = manifest.get("preregistered")
    n = len(registered["deviations"]) if registered else 0
    verdict = f"It was preregistered on {registered['day']}" if registered else "It was not preregistered"
    deviations = f", and differs from that in {n} place{'s' * (n > 1)}" if n else ""
    return say(
        f"Run with apo-bench{{version}}, {{code}}, under {listed}. {verdict}{deviations}.",
        version=f" {version}" if version else "",
        code=code,
    )


def _changes(manifest: Mapping[str, Any]) -> str:
    dirty = manifest.get("dirty")
    return "" if dirty is None else f", {'with' if dirty else 'without'} uncommitted changes"


def _preregistration(facts: Mapping[str, Any]) -> Text:
    """Its file, hash and first commit."""
    if not facts:
        return ()
    committed = facts["committed"]
    first = f", first in commit {committed['commit'][:12]} of {committed['day']}" if committed else ""
    return say(f"`{{file}}`, SHA-256 {facts['sha256']}{first}", file=facts["file"])


def _splits(manifest: Mapping[str, Any]) -> list[Table]:
    splits = manifest.get("splits") or {}
    kinds = ("pairs", "prompts", "clusters")
    frame = pd.DataFrame([{"split": name} | {kind: str(counts.get(kind, "-")) for kind in kinds} for name, counts in splits.items()])
    return [Table(frame, [text_column(name) for name in ("split", *kinds)], "Splits of the data")] if splits else []


def machine_section(folder: Path, run: Run) -> Section:
    """When and where it ran, its cost, and the files behind the page. Raises InputError where tables/timings.parquet is not readable."""
    columns = [
        Column("file", lambda row: say("`{path}`", path=row["path"])),
        Column("bytes", lambda row: count(row["bytes"])),
        Column("SHA-256", lambda row: say("`{digest}`", digest=row["digest"])),
    ]
    files = Table(pd.DataFrame(_files(folder)), columns, "The files behind this page")
    day = folder / "first_day.txt"
    begun = say("Begun on {day}", day=day.read_text(encoding="utf-8", errors="replace").strip()[:10]) if day.is_file() else ()
    parts = [part for part in (begun, _machine(run.manifest.get("hardware") or {}), _time_and_cost(folder)) if part]
    return Section("Machine, time and cost", [*([say("{parts}.", parts=join(parts, "; "))] if parts else []), files], is_on_page_only=True)


def _machine(hardware: Mapping[str, Any]) -> Text:
    """The system, its cores, and each kind of device that trained."""
    if not hardware:
        return ()
    cores = f" with {hardware['cores']} cores" if hardware.get("cores") else ""
    devices = [
        ", ".join(
            str(value) if key in ("device", "gpu") else f"{value} {key.removesuffix('s') if value == 1 else key}"
            for key, value in sorted(worker.items())
        )
        for worker in hardware.get("workers") or ()
    ]
    on = say("; workers on {devices}", devices=names(devices, " and on ")) if devices else ()
    return say(f"{{machine}}{cores}{{on}}", machine=hardware.get("machine") or "a machine that is not known", on=on)


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
    if "judge_usd" in values and values["judge_usd"].sum():
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
        Column(_less(head), lambda row, head=head: None if row[head] == "-" else say("{cell}", cell=minus(_less(row[head]))))
        for head in published.HEADERS
    ]
    caveats = published.comparison_caveats(run, published.read_published(published.find_published(source)), frame)
    lines = Bullets([say("{line}", line=line) for line in caveats])
    return Section(f"Published numbers: {source}", [Table(rows, columns, f"{source} beside this run", is_stacked=True), lines])
