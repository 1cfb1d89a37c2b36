"""`run_experiment`: everything that `apo-bench run` does, for callers from Python."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from apo_bench.config.load import ExperimentFile, load_experiment, read_experiment
from apo_bench.config.schema import Experiment
from apo_bench.errors import InputError
from apo_bench.run import pipeline, variations
from apo_bench.run.experiment import ResolvedExperiment, TaskCache, find_experiment, resolve
from apo_bench.run.pipeline import RunResult
from apo_bench.run.progress import announce
from apo_bench.run.scheduler import ALL, JobSubset
from apo_bench.run.status import read_status


def run_experiment(
    path: Path | str,
    *,
    overrides: Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    workers: int | None = None,
    tiny: bool = False,
    fresh: bool = False,
    arms: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    dry_run: bool = False,
) -> RunResult:
    """Run an experiment, or resume it; with `vary`, at every level of what varies.

    path: the experiment file, or that of a shipped one, such as "experiments/quickstart.yaml".
    overrides: dotted keys of the experiment ("budget.flops") and the values that replace theirs.
    out: the run folder; `results/<name>` if not given, with `tiny` `results/<name>-tiny`.
    workers: processes at a time; None: as the executor sees fit, locally one per GPU, or per core where there is none.
    tiny: use tiny random models and small sizes, to see that the file works.
    fresh: start afresh; an existing run folder is renamed.
    arms, seeds: run only these now; the report is written when no arm-seed is left.
    dry_run: run and write nothing; the result's `preview` has the jobs that would be run.

    A script calls it under `if __name__ == "__main__":`, since worker processes import the script.
    Raises InputError, before anything is written, for whatever is wrong with the input, and for `fresh` while a run is at work.
    """
    subset = JobSubset(None if arms is None else tuple(arms), None if seeds is None else tuple(seeds))
    file, tiny_overrides = open_experiment(path, overrides, tiny=tiny)
    announce(f"reading {file.path}: task, methods and models")
    experiment, tasks = file.experiment, TaskCache()
    folder = Path(out) if out is not None else Path("results") / f"{experiment.name}{'-tiny' if tiny else ''}"
    if not _was_checked(folder, experiment):
        from apo_bench.run.validate import check

        for note in check(file, tasks, sizes=False):
            announce(f"note: {note}")
    subset.check(experiment)
    if experiment.vary and (subset != ALL or dry_run):
        raise InputError("--arms, --seeds and --dry-run: name one level of what varies with --set, and vary={}")
    if dry_run:
        resolved = resolve(file, folder, tasks)
        return RunResult(resolved.folder, preview=pipeline.preview(resolved, subset))
    aside = _set_aside(folder) if fresh else None
    if experiment.vary:
        result = variations.run_variations(file, folder, workers, tiny=tiny_overrides, tasks=tasks)
    else:
        result = pipeline.run(resolve(file, folder, tasks), workers, subset, tiny=tiny_overrides)
    return replace(result, set_aside=aside)


def open_experiment(
    path: Path | str, overrides: Mapping[str, Any] | None = None, *, tiny: bool = False
) -> tuple[ExperimentFile, dict[str, Any]]:
    """Read an experiment file, perhaps a shipped one, with the overrides that `tiny` stands for, if it is given.

    `overrides` take precedence over those of `tiny`. Raises InputError as `read_experiment` does.
    """
    path = find_experiment(Path(path))
    if not tiny:
        return read_experiment(path, overrides), {}
    from apo_bench.models.pretrained_weights import models_folder
    from apo_bench.run.tiny import tiny_overrides

    file = read_experiment(path)
    small = tiny_overrides(file.experiment, path, models_folder())
    return file.under({**small, **(overrides or {})}), small


def check_and_resolve(path: Path | str, overrides: Mapping[str, Any] | None = None, *, tiny: bool = False) -> ResolvedExperiment:
    """Read, check and resolve an experiment without running it. Raises InputError, one line naming the file and the first wrong key."""
    from apo_bench.run.validate import check

    file, tasks = open_experiment(path, overrides, tiny=tiny)[0], TaskCache()
    check(file, tasks, sizes=False)
    return resolve(file, Path("results") / file.experiment.name, tasks)


def _was_checked(folder: Path, experiment: Experiment) -> bool:
    """Whether this very experiment was run in the folder before: a replay then need not load its task and methods to check them."""
    path = folder / "experiment.yaml"
    try:
        return path.is_file() and load_experiment(path) == experiment
    except InputError:
        return False


def _set_aside(folder: Path) -> Path | None:
    """Rename an existing run folder. Raises InputError while a run is at work in it."""
    for part in variations.run_folders(folder) if (folder / "experiment.yaml").is_file() else ():
        if busy := read_status(part).busy:
            raise InputError(f"{part}: a run is at work (process {busy[0].pid}); --fresh would rename its folder")
    new_name = pipeline.set_aside(folder)
    if new_name:
        announce(f"{folder} is now {new_name}")
    return new_name
