"""What a run's manifest.json holds: data, notes, failures, versions, hardware, precision, and the command that made the run."""

import json
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apo_bench.config.schema import Experiment
from apo_bench.data.task import Task
from apo_bench.engines.mismatch import ELSEWHERE
from apo_bench.package_data import shipped_root
from apo_bench.provenance import origin
from apo_bench.run.jobs import Failure, Records
from apo_bench.run.records import TRUNCATED


def manifest(
    experiment: Experiment,
    task: Task,
    failures: Sequence[Failure],
    records: Records,
    overrides: Mapping[str, Any],
    path: Path,
    tiny: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What the report says of the run besides its tables. `path` is the experiment's file, `tiny` the overrides that --tiny stands for."""
    counts = dict(task.counts)
    splits = {split: {what: counts.pop(f"{split}.{what}") for what in ("pairs", "prompts", "clusters")} for split in task.pairs}
    by_axis = {name: counts.pop(name) for name in list(counts) if name.partition(".")[0] in task.pairs}
    notes = [f"{name}: {value}" for name, value in counts.items() if value]
    truncated = {name: sum(record["truncated"][name] for record in records.values()) for name in TRUNCATED}
    charged = [counts for record in records.values() for counts in record["charged"].values() if ELSEWHERE not in counts]
    sampled = sum(counts.get("sampled_responses", 0) for counts in charged)
    of_all = {"cut_responses": f" of {sampled:g}"}
    notes += [
        f"{label}: {truncated[name]:g}{of_all.get(name, '')} (over all arm-seeds)" for name, label in TRUNCATED.items() if truncated[name]
    ]
    machine = {"machine": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count()}
    return {
        "name": experiment.name,
        "task": task.name,
        "provenance": task.provenance,
        "splits": splits,
        "splits_by_axis": by_axis,
        "notes": notes,
        "failures": [{"arm": failure.arm, "seed": failure.seed, "message": failure.message} for failure in failures],
        "seeds": list(experiment.seeds),
        "arms": {name: arm.use for name, arm in experiment.arms.items()},
        "command": _command(path, overrides, tiny or {}),
        "hardware": {**machine, "workers": _distinct(records, "hardware")},
        "precision": _distinct(records, "precision"),
        **origin(),
    }


def _distinct(records: Records, name: str) -> list[Any]:
    """The values that this part of a record has, over all records: more than one where arm-seeds ran on different machines."""
    return [
        json.loads(value) for value in sorted({json.dumps(record[name], sort_keys=True) for record in records.values() if record.get(name)})
    ]


def _command(path: Path, overrides: Mapping[str, Any], tiny: Mapping[str, Any]) -> str:
    """The command line that makes this run."""
    set_by_user = {key: value for key, value in overrides.items() if key not in tiny or tiny[key] != value}
    options = ["--tiny"] if tiny else []
    options += [word for key, value in set_by_user.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    return shlex.join(["apo-bench", "run", _spelled(path), *options])


def _spelled(path: Path) -> str:
    """An experiment's file as a user would name it: a shipped one, one below the working directory, or by its whole path."""
    for root in (shipped_root(), Path.cwd()):
        if path.is_relative_to(root):
            return str(path.relative_to(root))
    return str(path)
