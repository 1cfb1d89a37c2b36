"""The curves of every fit and online step, in TensorBoard's, wandb's and trackio's own files, in `trackers/` of the run folder.

A process of its own, which `run.trackers` starts with an environment that keeps everything on the machine.
"""

import json
import math
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from apo_bench.analysis.training import counted_on
from apo_bench.config.load import load_experiment
from apo_bench.config.tuning import TUNING
from apo_bench.run.training_curves import KIND
from apo_bench.store import write_json

if TYPE_CHECKING:
    import pandas as pd

NOT_CURVES = ("round", "fit", "model", "step")


@dataclass(frozen=True)
class Curves:
    """What belongs on one x axis, named `x`: rows of x and the metrics there."""

    name: str
    x: str
    rows: Sequence[tuple[int, Mapping[str, float]]]


@dataclass(frozen=True)
class TrackedRun:
    """An arm-seed, or a trial's, as trackers know it: a run of a project."""

    project: str
    arm: str
    name: str
    curves: Sequence[Curves]


def write_missing(folder: Path, records: Sequence[Path]) -> list[str]:
    """Write what of the jobs with these records is not written yet, one process at a time; returns what failed, a line each.

    What was trained anew gets another run, with a number.
    """
    experiment, failed = load_experiment(folder / "experiment.yaml"), []
    (folder / "trackers").mkdir(exist_ok=True)
    with FileLock(folder / "trackers" / ".lock"):
        for record in records:
            (arm, name), key = _named(record), _curves_key(record)
            if key is None:
                continue
            for tracker in experiment.trackers:
                place = folder / "trackers" / tracker
                marker = place / f".{name}.json"
                earlier = json.loads(marker.read_text())["curves"] if marker.is_file() else []
                if key in earlier:
                    continue
                again = f".{len(earlier) + 1}" if earlier else ""
                try:
                    place.mkdir(exist_ok=True)
                    WRITERS[tracker](TrackedRun(experiment.name, arm, name + again, list(_curves(folder / "store" / KIND / key))), place)
                except Exception as error:  # a package of somebody else, with errors of every kind
                    failed.append(f"{tracker}, {name}: {type(error).__name__}: {error}")
                else:
                    write_json(marker, {"curves": [*earlier, key]})
    return failed


def _named(record: Path) -> tuple[str, str]:
    """The arm of a job's record, of a trial as in tables, and the name of its run: arm, number of the trial from 1, seed."""
    if record.parent.name != "trials":
        return record.stem.rpartition(".")[0], record.stem
    arm, trial, seed = record.stem.rsplit(".", 2)
    return TUNING + arm, f"{TUNING}{arm}.{int(trial) + 1}.{seed}"


def _curves_key(record: Path) -> str | None:
    """Which artifact holds a job's curves; None where it is not finished, or was by code that kept none."""
    try:
        return json.loads(record.read_text(encoding="utf-8"))["curves"]["arm"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _curves(artifact: Path) -> Iterator[Curves]:
    """Losses by update, of each kind of model, and the online steps; both count on from fit to fit."""
    import pandas as pd

    if (path := artifact / "training.parquet").is_file():
        losses = counted_on(pd.read_parquet(path), ["model"], "update")
        for model, fits in losses.groupby("model"):
            yield Curves(str(model).replace(" ", "_"), "update", _rows(fits, "update", ["loss"]))
    if (path := artifact / "steps.parquet").is_file():
        steps = counted_on(pd.read_parquet(path).assign(model="policy"), ["model"], "step")
        yield Curves("online", "step", _rows(steps, "step", [str(name) for name in steps if name not in NOT_CURVES]))


def _rows(frame: "pd.DataFrame", x: str, names: Sequence[str]) -> list[tuple[int, dict[str, float]]]:
    """Rows without what is missing in them."""
    records = frame.sort_values(x)[[x, *names]].astype(float).to_dict("records")
    return [(int(row[x]), {name: row[name] for name in names if math.isfinite(row[name])}) for row in records]


# --- trackers -----------------------------------------------------------------------------------------------------------------


def tensorboard(run: TrackedRun, folder: Path) -> None:
    """An event file in a folder of the run's name, with a scalar `policy/loss`, `online/reward` and so on for each curve."""
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportMissingImports]
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportMissingImports]
    from tensorboard.summary.writer.event_file_writer import EventFileWriter  # pyright: ignore[reportMissingImports]

    shutil.rmtree(folder / run.name, ignore_errors=True)  # of an interrupted try
    writer = EventFileWriter(str(folder / run.name))
    for curves in run.curves:
        for x, metrics in curves.rows:
            values = [Summary.Value(tag=f"{curves.name}/{name}", simple_value=value) for name, value in metrics.items()]
            writer.add_event(Event(wall_time=time.time(), step=x, summary=Summary(value=values)))
    writer.close()


def wandb(run: TrackedRun, folder: Path) -> None:
    """An offline run; `wandb sync` sends it, should its owner wish so."""
    import wandb as package  # pyright: ignore[reportMissingImports]

    with package.init(project=run.project, group=run.arm, name=run.name, dir=str(folder), mode="offline") as tracked:
        for curves in run.curves:
            tracked.define_metric(f"{curves.name}/*", step_metric=f"{curves.name}/{curves.x}")
            for x, metrics in curves.rows:
                tracked.log({f"{curves.name}/{curves.x}": x, **{f"{curves.name}/{name}": value for name, value in metrics.items()}})


def trackio(run: TrackedRun, folder: Path) -> None:
    """A run in the folder's database, which TRACKIO_DIR has to name before trackio is imported."""
    import trackio as package  # pyright: ignore[reportMissingImports]

    package.init(run.project, run.name, group=run.arm, embed=False, auto_log_gpu=False, auto_log_cpu=False)
    for curves in run.curves:
        for x, metrics in curves.rows:
            package.log({f"{curves.name}/{name}": value for name, value in metrics.items()}, step=x)
    package.finish()


WRITERS: Mapping[str, Any] = {"tensorboard": tensorboard, "wandb": wandb, "trackio": trackio}


if __name__ == "__main__":
    if failures := write_missing(Path(sys.argv[1]), [*map(Path, sys.argv[2:])]):
        sys.exit("\n".join(failures))
