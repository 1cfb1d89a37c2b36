"""Where the page comes from: experiment, commit, versions, time and cost, hashes of the files behind it, and how to make it again."""

import hashlib
from pathlib import Path

import pandas as pd

from apo_bench.analysis.results import Run
from apo_bench.formatting import count, duration, rows_of
from apo_bench.report.page.markup import MISSING, Markup, details, el, join, name, table
from apo_bench.report.page.reading import read_timings

HASHED = 64 * 2**20  # bytes; what is larger is named without a hash


def provenance(folder: Path, run: Run) -> Markup:
    """The last section. Raises InputError where tables/timings.parquet is not readable."""
    manifest = run.manifest
    commit = str(manifest.get("commit") or "unknown")
    dirty = manifest.get("dirty")
    state = "" if dirty is None else ", with uncommitted changes" if dirty else ", without uncommitted changes"
    arms = manifest.get("arms") or {arm: one.use for arm, one in run.experiment.arms.items()}
    facts = {
        "Experiment": name(run.experiment.name),
        "Task": name(manifest.get("task") or run.experiment.task.use),
        "Data": name(manifest.get("provenance") or "No provenance was recorded."),
        "Notes": el("ul", *[el("li", name(note)) for note in manifest.get("notes") or ()]) if manifest.get("notes") else None,
        "Seeds": ", ".join(map(str, run.experiment.seeds)),
        "Arms": el("ul", *[el("li", el("code", name(arm)), " ", name(use)) for arm, use in arms.items()]),
        "Commit": join([el("code", name(commit)), state]),
        "Versions": name(", ".join(f"{one} {version}" for one, version in sorted((manifest.get("versions") or {}).items()))) or None,
        "Hardware": name(_flat(manifest.get("hardware"))) if manifest.get("hardware") else None,
        "Time and cost": _time_and_cost(folder),
    }
    parts = [el("dl", *[join([el("dt", term), el("dd", said)]) for term, said in facts.items() if said], class_="facts")]
    if command := manifest.get("command"):
        parts += [el("p", "Made again by"), el("pre", el("code", name(command)), tabindex="0")]
    if splits := manifest.get("splits"):
        kinds = ("pairs", "prompts", "clusters")
        rows = [[name(split), *[name(counts.get(kind, MISSING)) for kind in kinds]] for split, counts in splits.items()]
        parts.append(details("Splits of the data", table("Splits of the data", ["Split", *map(str.capitalize, kinds)], rows)))
    hashes = [[el("code", path), count(size), el("code", digest)] for path, size, digest in _hashes(folder)]
    parts.append(details("The files behind this page", table("Files and their SHA-256", ["File", "Bytes", "SHA-256"], hashes)))
    return join(parts)


def _time_and_cost(folder: Path) -> Markup | None:
    """Hours over all arm-seeds, the largest memory, and what judges cost, of what was measured."""
    rows = read_timings(folder)
    values: dict[str, pd.Series] = {str(measure): one for measure, one in rows.groupby("measure")["value"]}
    said = []
    if "wall_s" in values:
        by_arm = rows[rows["measure"] == "wall_s"].groupby("arm", sort=True)["value"].sum().reset_index()
        each = ", ".join(f"{row.arm} {duration(row.value)}" for row in rows_of(by_arm))
        said.append(f"{duration(float(values['wall_s'].sum()))} of work over all arms and seeds ({each})")
    if "peak_memory_bytes" in values:
        said.append(f"at most {values['peak_memory_bytes'].max() / 2**30:.2f} GiB of memory")
    if "judge_usd" in values:
        said.append(f"judges: {values['judge_usd'].sum():.2f} USD")
    return name("; ".join(said)) if said else None


def _hashes(folder: Path) -> list[tuple[str, int, str]]:
    paths = [folder / "experiment.yaml", folder / "manifest.json", *sorted((folder / "tables").glob("*.parquet"))]
    found = []
    for path in (one for one in paths if one.is_file()):
        size = path.stat().st_size
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if size <= HASHED else "not computed: large"
        found.append((path.relative_to(folder).as_posix(), size, digest))
    return found


def _flat(value: object) -> str:
    return ", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, dict) else str(value)
