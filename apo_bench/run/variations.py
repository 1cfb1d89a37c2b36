"""`vary:` repeats an experiment at every level of what is fixed within one: the world, the initial policy, the gold models, any setting.

Each level is an ordinary run in a folder of its own, `<out>/<label>/`; apo_bench.report.across_variations summarises them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apo_bench.config.load import ExperimentFile, dump_experiment, load_experiment
from apo_bench.config.variations import variations
from apo_bench.errors import InputError
from apo_bench.run import pipeline
from apo_bench.run.experiment import TaskCache, resolve
from apo_bench.run.pipeline import RunResult
from apo_bench.run.progress import announce
from apo_bench.store import write_text


def run_variations(
    file: ExperimentFile, folder: Path, workers: int | None = None, *, tiny: Mapping[str, Any] | None = None, tasks: TaskCache | None = None
) -> RunResult:
    """Run every variation, or resume it, and write the spread. A failure of one does not stop the others; it starts with their label.

    `tiny`: those overrides that `--tiny` stands for. Raises InputError, before anything is written, for a variation that is not a valid
    experiment and for a folder that holds an ordinary run.
    """
    folder, tasks = folder.resolve(), tasks or TaskCache()
    if (folder / "manifest.json").exists():
        raise InputError(f"{folder}: holds a run without vary; give another folder or name")
    try:
        parts = variations(file.experiment)
    except InputError as error:
        raise InputError(f"{file.path}: {error}") from None
    files = [file.under(variation.over(file.overrides)) for variation in parts]  # all are valid before one is run
    write_text(folder / "experiment.yaml", dump_experiment(file.experiment))
    failures: list[str] = []
    for number, (variation, varied) in enumerate(zip(parts, files, strict=True), start=1):
        announce(f"variation {number}/{len(parts)}: {variation.label}")
        try:
            resolved = resolve(varied, folder / variation.label, tasks)
            result = pipeline.run(resolved, workers, variation=variation.levels, tiny=tiny)
        except InputError as error:
            failures.append(f"{variation.label}: {error}")
        else:
            failures += [f"{variation.label}: {failure}" for failure in result.failures]
    announce("report: over all variations")
    write_spread(folder)
    return RunResult(folder, tuple(failures), varied=True)


def is_varied(folder: Path) -> bool:
    """Whether a folder is one that `run_variations` writes."""
    path = folder / "experiment.yaml"
    return path.is_file() and bool(load_experiment(path).vary)


def run_folders(folder: Path) -> list[Path]:
    """The run folder itself, or, where an experiment varies, the folders of its variations that have been started."""
    if not is_varied(folder):
        return [folder]
    folders = (folder / variation.label for variation in variations(load_experiment(folder / "experiment.yaml")))
    return [part for part in folders if (part / "experiment.yaml").is_file()]


def rebuild(folder: Path, *, aggregates_only: bool = False) -> Path:
    """Write every variation's report again from its tables, then the spread. Raises InputError if none has finished."""
    from apo_bench.report.report import write_report

    finished = [part for part in run_folders(folder) if (part / "manifest.json").is_file()]
    if not finished:
        raise InputError(f"{folder}: no variation has finished (none has a manifest.json)")
    for part in finished:
        write_report(part, aggregates_only=aggregates_only)
    return write_spread(folder)


def write_spread(folder: Path) -> Path:
    """Write `folder`/report from the variations' reports; equal reports give equal bytes. Returns the path of report.md."""
    from apo_bench.report import across_variations  # pandas and matplotlib take a second to import

    experiment = load_experiment(folder / "experiment.yaml")
    return across_variations.write(folder, experiment.name, {variation.label: variation.levels for variation in variations(experiment)})
