"""Records of finished arm-seeds -> the run folder's tables and manifest. Only `timings` holds measured values."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from apo_bench.budget import STOCKS, UNITS
from apo_bench.config import Experiment
from apo_bench.store import origin, write_table
from apo_bench.tasks import Task

Records = Mapping[tuple[str, int], Mapping[str, Any]]  # (arm, seed) -> what the arm-seed ended with
Trials = Mapping[tuple[str, int, int], Mapping[str, Any]]  # (arm, trial, seed) -> what a trial of tuning ended with
TRUNCATED = {"truncated_prompts": "prompts", "truncated_scored": "conversations scored"}


@dataclass(frozen=True)
class Failure:
    """An arm-seed that did not finish; the others went on."""

    arm: str
    seed: int
    message: str
    trial: int | None = None  # of tuning

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}: {self.message}"


def write_tables(folder: Path, experiment: Experiment, records: Records, trials: Trials, pairs_used: int) -> None:
    """Rows of all finished arm-seeds, sorted by key, one parquet file a table. Only timings hold measured values."""
    import pandas as pd  # here, so that a replay, which has nothing to write, does without

    @cache
    def part(evaluation: str, name: str) -> Any:
        return pd.read_parquet(folder / "store" / "evaluations" / evaluation / f"{name}.parquet")

    found: dict[str, list[Any]] = {"scores": [], "metrics": [], "reward_models": [], "reliability": [], "responses": []}
    ledger: list[dict[str, Any]] = []
    timings: list[dict[str, Any]] = []
    for (arm, seed), record in records.items():
        for number, one in enumerate(record["rounds"]):
            for name, frames in found.items():
                frames.append(part(one["evaluation"], name).assign(arm=arm, seed=seed, round=number))
        ledger += [
            {
                "arm": arm,
                "seed": seed,
                "unit": unit,
                "used": record["used"][unit],
                "budget": experiment.budget_of(arm).get(unit, float("nan")),
            }
            for unit in UNITS
        ]
        timings += [{"arm": arm, "seed": seed, "measure": name, "value": float(record[name])} for name in ("wall_s", "peak_memory_bytes")]
        found["reward_models"].append(pd.DataFrame(record["floor"]).assign(arm="_floor", seed=seed, round=0))
    ledger += _tuning_rows(trials)
    bench = {
        key: counts for record in (*records.values(), *trials.values()) for key, counts in record["bench"].items()
    }  # each artifact once
    spent = {unit: sum(counts.get(unit, 0.0) for counts in bench.values()) for unit in UNITS} | {"human_pairs": float(pairs_used)}
    ledger += [{"arm": "_bench", "seed": -1, "unit": unit, "used": spent[unit], "budget": float("nan")} for unit in UNITS if records]
    tables = {name: pd.concat(frames, ignore_index=True) for name, frames in found.items() if frames}
    tables |= {name: pd.DataFrame(rows) for name, rows in (("ledger", ledger), ("timings", timings)) if rows}
    shutil.rmtree(folder / "tables", ignore_errors=True)  # of an earlier question; whatever still holds is in the store
    if "reward_models" in tables:
        rows = tables["reward_models"]
        tables["reward_models"] = rows[rows["metric"] != ""].drop_duplicates(subset=["arm", "seed", "round", "axis", "metric"])
    if "reliability" in tables:
        tables["reliability"] = tables["reliability"][tables["reliability"]["n"] > 0]
    for key in {record["gold"] for record in records.values()}:  # one: all arm-seeds share their gold
        tables["gold"] = pd.read_parquet(folder / "store" / "gold_accuracy" / key / "gold.parquet")
    for name, table in tables.items():
        keys = [
            key
            for key in ("arm", "gold", "seed", "round", "prompt_id", "cluster_id", "axis", "scorer", "metric", "bin", "unit", "measure")
            if key in table
        ]
        ordered = table[[*keys, *(column for column in table if column not in keys)]].sort_values(keys, ignore_index=True)
        write_table(folder / "tables" / f"{name}.parquet", ordered)


def _tuning_rows(trials: Trials) -> list[dict[str, Any]]:
    """What an arm's trials spent, by tuning seed: flows added up; a stock is the largest, since trials see the same items."""
    spent: dict[tuple[str, int, Any], list[float]] = {}
    for (arm, _, seed), record in trials.items():
        for unit in UNITS:
            spent.setdefault((arm, seed, unit), []).append(record["used"][unit])
    return [
        {"arm": f"_tune.{arm}", "seed": seed, "unit": unit, "used": max(used) if unit in STOCKS else sum(used), "budget": float("nan")}
        for (arm, seed, unit), used in spent.items()
    ]


def manifest(
    experiment: Experiment,
    task: Task,
    failures: Sequence[Failure],
    records: Records,
    overrides: Mapping[str, Any],
    path: Path,
    tiny: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What the report says of the run besides its rows: data, notes, failures, versions, and the command that made it."""
    counts = dict(task.counts)
    splits = {split: {what: counts.pop(f"{split}.{what}") for what in ("pairs", "prompts", "clusters")} for split in task.pairs}
    by_axis = {name: counts.pop(name) for name in list(counts) if name.partition(".")[0] in task.pairs}
    notes = [f"{name}: {value}" for name, value in counts.items() if value]
    truncated = {name: sum(record["truncated"][name] for record in records.values()) for name in TRUNCATED}
    notes += [
        f"{label} truncated on the left: {truncated[name]:g} (over all arm-seeds)" for name, label in TRUNCATED.items() if truncated[name]
    ]
    made = tiny or {}  # overrides that `--tiny` stands for
    own = {key: value for key, value in overrides.items() if key not in made or made[key] != value}
    options = "".join([" --tiny" if made else "", *(f" --set '{key}={json.dumps(value)}'" for key, value in own.items())])
    return {
        "name": experiment.name,
        "task": task.name,
        "provenance": task.provenance,
        "splits": splits,
        "splits_by_axis": by_axis,
        "notes": notes,
        "failures": [{"arm": one.arm, "seed": one.seed, "message": one.message} for one in failures],
        "seeds": list(experiment.seeds),
        "arms": {name: arm.use for name, arm in experiment.arms.items()},
        "command": f"apo-bench run experiments/{path.name}{options}",
        **origin(),
    }  # fmt: skip
