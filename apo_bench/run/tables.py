"""Records of finished arm-seeds -> the run folder's tables and manifest. Only `timings` holds measured values."""

import json
import os
import platform
import shlex
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from apo_bench.config.controls import AA, made_of
from apo_bench.config.schema import Experiment, Unit
from apo_bench.data.task import Task
from apo_bench.lab.ledger import STOCKS, UNITS, marginals
from apo_bench.provenance import origin
from apo_bench.run.records import TRUNCATED
from apo_bench.shipped import shipped_root
from apo_bench.store import write_table
from apo_bench.types import Prompt

Records = Mapping[tuple[str, int], Mapping[str, Any]]  # (arm, seed) -> what the arm-seed ended with
Trials = Mapping[tuple[str, int, int], Mapping[str, Any]]  # (arm, trial, seed) -> what a trial of tuning ended with
EVALUATED = ("scores", "metrics", "reward_models", "reliability", "responses")  # the tables that an evaluation has a part of


@dataclass(frozen=True)
class Failure:
    """An arm-seed that did not finish; the others went on."""

    arm: str
    seed: int
    message: str
    trial: int | None = None  # of tuning

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}: {self.message}"


def rows_in(folder: Path, record: Mapping[str, Any]) -> list[Path]:
    """The artifacts that a record's rows are read from."""
    store = folder / "store"
    gold = [store / "gold_accuracy" / record["gold"]] if "gold" in record else []
    return [*(store / "evaluations" / one["evaluation"] for one in record.get("rounds", ())), *gold]


def write_tables(
    folder: Path,
    experiment: Experiment,
    records: Records,
    trials: Trials,
    pairs_used: int,
    prompts: Sequence[Prompt] = (),
    controls: Records | None = None,
    plan: Mapping[str, Mapping[str, float | None]] | None = None,
) -> None:
    """Rows of all finished arm-seeds, sorted by key, one parquet file a table. Only timings hold measured values.

    Scores of `controls` are a table of their own, so that no figure and no family of tests takes them for an arm's. `plan`: what each arm
    was to spend, arm -> unit -> mean over seeds; None: not known. `prompts`: the task's, of which those that were answered are kept.
    """
    import pandas as pd  # here, so that a replay, which has nothing to write, does without

    @cache
    def part(evaluation: str, name: str) -> Any:
        return pd.read_parquet(folder / "store" / "evaluations" / evaluation / f"{name}.parquet")

    found: dict[str, list[Any]] = {name: [] for name in (*EVALUATED, "control_scores")}
    ledger: list[dict[str, Any]] = []
    timings: list[dict[str, Any]] = []
    again = {key: record for key, record in (controls or {}).items() if key[0] == AA}
    marginal = _marginals_of({**records, **again})
    for (arm, seed), record in records.items():
        for number, one in enumerate(record["rounds"]):
            for name in EVALUATED:
                found[name].append(part(one["evaluation"], name).assign(arm=arm, seed=seed, round=number))
        ledger += _ledger_rows(experiment, arm, seed, record, marginal.get((arm, seed), {}))
        timings += [{"arm": arm, "seed": seed, "measure": name, "value": float(record[name])} for name in ("wall_s", "peak_memory_bytes")]
        found["reward_models"].append(pd.DataFrame(record["floor"]).assign(arm="_floor", seed=seed, round=0))
    for (arm, seed), record in (controls or {}).items():
        for number, one in enumerate(record["rounds"]):
            named = {"arm": arm, **part(one["evaluation"], "scores")}  # an oracle's rows say which of its answers they are of
            found["control_scores"].append(pd.DataFrame({**named, "seed": seed, "round": one.get("round", number)}))
        ledger += _ledger_rows(experiment, arm, seed, record, marginal.get((arm, seed), {})) if arm == AA else []
    ledger += _tuning_rows(trials)
    bench = {
        key: counts
        for record in (*records.values(), *trials.values(), *(controls or {}).values())
        for key, counts in record["bench"].items()
    }  # each artifact once
    spent = {unit: sum(counts.get(unit, 0.0) for counts in bench.values()) for unit in UNITS} | {"human_pairs": float(pairs_used)}
    whole = {"arm": "_bench", "seed": -1, "budget": float("nan")}
    ledger += [{**whole, "unit": unit, "used": spent[unit], "marginal": spent[unit]} for unit in UNITS if records]
    amounts = ((arm, unit, amount) for arm, units in (plan or {}).items() for unit, amount in units.items())
    planned = [{"arm": arm, "unit": unit, "planned": float("nan") if amount is None else amount} for arm, unit, amount in amounts]
    tables = {name: pd.concat(frames, ignore_index=True) for name, frames in found.items() if frames}
    tables |= {name: pd.DataFrame(rows) for name, rows in (("ledger", ledger), ("timings", timings), ("plan", planned)) if rows}
    if "responses" in tables:
        tables["prompts"] = _turns(prompts, set(tables["responses"]["prompt_id"]))
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
            for key in (
                "arm",
                "gold",
                "seed",
                "round",
                "prompt_id",
                "turn",
                "cluster_id",
                "axis",
                "scorer",
                "metric",
                "bin",
                "unit",
                "measure",
            )
            if key in table
        ]
        ordered = table[[*keys, *(column for column in table if column not in keys)]].sort_values(keys, ignore_index=True)
        write_table(folder / "tables" / f"{name}.parquet", ordered)


def _marginals_of(records: Records) -> dict[tuple[str, int], dict[Unit, float]]:
    """In the records' order; nothing is known of any where one is from before records said what they were charged for."""
    if not all("charged" in record for record in records.values()):
        return {}
    return marginals((key, record["charged"], record["seen"]) for key, record in records.items())


def _spelled(path: Path) -> str:
    """An experiment's file as a user would name it: a shipped one, one below the working directory, or by its whole path."""
    for root in (shipped_root(), Path.cwd()):
        if path.is_relative_to(root):
            return str(path.relative_to(root))
    return str(path)


def _turns(prompts: Sequence[Prompt], answered: Collection[str]) -> Any:
    """A row for each turn of each prompt that was answered, so that responses can be shown without the task's data."""
    import pandas as pd

    turns = [
        (prompt.id, number, turn.role, turn.content)
        for prompt in prompts
        if prompt.id in answered
        for number, turn in enumerate(prompt.messages)
    ]
    return pd.DataFrame(turns, columns=["prompt_id", "turn", "role", "text"])


def _ledger_rows(
    experiment: Experiment, arm: str, seed: int, record: Mapping[str, Any], marginal: Mapping[Unit, float]
) -> list[dict[str, Any]]:
    budget, used = experiment.budget_of(made_of(experiment, arm)), record["used"]
    amounts = ((unit, used[unit], marginal.get(unit, float("nan")), budget.get(unit, float("nan"))) for unit in UNITS)
    return [{"arm": arm, "seed": seed, "unit": unit, "used": all_, "marginal": new, "budget": most} for unit, all_, new, most in amounts]


def _tuning_rows(trials: Trials) -> list[dict[str, Any]]:
    """What an arm's trials spent, by tuning seed: flows added up; a stock is the largest, since trials see the same items."""
    spent: dict[tuple[str, int, Any], list[float]] = {}
    for (arm, _, seed), record in trials.items():
        for unit in UNITS:
            spent.setdefault((arm, seed, unit), []).append(record["used"][unit])
    return [
        {
            "arm": f"_tune.{arm}",
            "seed": seed,
            "unit": unit,
            "used": max(used) if unit in STOCKS else sum(used),
            "marginal": float("nan"),
            "budget": float("nan"),
        }
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
    options = ["--tiny"] if made else []
    options += [word for key, value in own.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    machine = {"machine": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count()}
    devices = sorted({json.dumps(record["hardware"], sort_keys=True) for record in records.values() if record.get("hardware")})
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
        "command": shlex.join(["apo-bench", "run", _spelled(path), *options]),
        "hardware": {**machine, "workers": [json.loads(one) for one in devices]},
        **origin(),
    }  # fmt: skip
