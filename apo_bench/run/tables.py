"""The tables of a run folder: rows gathered from the records of finished arm-seeds, and the writing of them."""

import shutil
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apo_bench.analysis.seal import break_seal
from apo_bench.config.controls import AA, made_of
from apo_bench.config.schema import Experiment, Unit
from apo_bench.config.tuning import TUNING
from apo_bench.lab.ledger import STOCKS, UNITS, marginals
from apo_bench.run.jobs import Records, Trials
from apo_bench.run.training_curves import KIND
from apo_bench.tables import INITIAL_POLICY, TABLES, read_table, table_path, write_table
from apo_bench.types import Prompt

if TYPE_CHECKING:
    import pandas as pd

EVALUATED = ("scores", "metrics", "reward_models", "reliability", "responses")  # the tables that an evaluation has a part of
NAN = float("nan")


def rows_in(folder: Path, record: Mapping[str, Any]) -> list[Path]:
    """The artifacts that a record's rows are read from."""
    store = folder / "store"
    gold = [store / "gold_accuracy" / record["gold"]] if "gold" in record else []
    curves = [store / KIND / key for key in record.get("curves", {}).values()]
    sets = [store / "evaluations" / key for round_ in record.get("rounds", ()) for key in round_.get("prompt_sets", {}).values()]
    items = [store / "capabilities" / key for key in record.get("capabilities", {}).values() if key]
    return [*(store / "evaluations" / round_["evaluation"] for round_ in record.get("rounds", ())), *sets, *gold, *curves, *items]


def gather_tables(
    folder: Path,
    experiment: Experiment,
    records: Records,
    trials: Trials,
    pairs_used: int,
    prompts: Sequence[Prompt] = (),
    controls: Records | None = None,
    plan: Mapping[str, Mapping[str, float | None]] | None = None,
) -> dict[str, "pd.DataFrame"]:
    """The rows of all finished arm-seeds, by table; a table without rows is absent. Judges' tables are not among them.

    Scores of `controls` are a table of their own, so that no figure and no family of tests takes them for an arm's. `plan`: what each arm
    was to spend, arm -> unit -> mean over seeds; None: not known. `prompts`: the task's, of which those that were answered are kept.
    """
    import pandas as pd  # here, so that a replay, which has nothing to write, does without

    @cache
    def part(evaluation: str, name: str) -> pd.DataFrame:
        return pd.read_parquet(folder / "store" / "evaluations" / evaluation / f"{name}.parquet")

    controls = controls or {}
    frames: dict[str, list[pd.DataFrame]] = {name: [] for name in (*EVALUATED, "control_scores")}
    for (arm, seed), record in records.items():
        for number, round_ in enumerate(record["rounds"]):
            for name in EVALUATED:
                frames[name].append(part(round_["evaluation"], name).assign(arm=arm, seed=seed, round=number))
        frames["reward_models"].append(pd.DataFrame(record["floor"]).assign(arm="_floor", seed=seed, round=0))
    for (arm, seed), record in controls.items():
        for number, round_ in enumerate(record["rounds"]):
            rows = {"arm": arm, **part(round_["evaluation"], "scores")}  # an oracle's rows name their arm: which of its answers they are of
            frames["control_scores"].append(pd.DataFrame({**rows, "seed": seed, "round": round_.get("round", number)}))
    filled = {name: [part for part in parts if len(part)] for name, parts in frames.items()}  # without a reward model two tables are empty
    tables = {name: pd.concat(parts, ignore_index=True) for name, parts in filled.items() if parts}
    if records:
        tables["reward_models"] = tables["reward_models"].drop_duplicates(subset=["arm", "seed", "round", "axis", "metric"])
        tables["prompts"] = pd.DataFrame(_turns(prompts, set(tables["responses"]["prompt_id"])), columns=list(TABLES["prompts"].names))
        gold = next(iter({record["gold"] for record in records.values()}))  # all arm-seeds share their gold
        tables["gold"] = pd.read_parquet(folder / "store" / "gold_accuracy" / gold / "gold.parquet")
    tables |= {**_curves(folder, records, trials, controls), **_capabilities(folder, records)}
    flat = {
        "ledger": _ledger(experiment, records, trials, controls, pairs_used),
        "plan": [
            {"arm": arm, "unit": unit, "planned": NAN if amount is None else amount}
            for arm, units in (plan or {}).items()
            for unit, amount in units.items()
        ],
        "samplers": [{"arm": arm, "seed": seed, **row} for (arm, seed), record in records.items() for row in record.get("samplers", ())],
        "timings": [
            {"arm": arm, "seed": seed, "measure": name, "value": float(record[name])}
            for (arm, seed), record in records.items()
            for name in ("wall_s", "peak_memory_bytes", "peak_device_bytes")
            if name != "peak_device_bytes" or record.get(name)  # none on a CPU
        ],
    }
    return tables | {name: pd.DataFrame(rows) for name, rows in flat.items() if rows}


def _curves(folder: Path, records: Records, trials: Trials, controls: Records) -> dict[str, "pd.DataFrame"]:
    """Losses and steps of the fits of arm-seeds, trials and controls, and once the losses of fits for all arms, numbered anew."""
    import pandas as pd

    def parts(key: str, name: str) -> list[pd.DataFrame]:
        path = folder / "store" / KIND / key / f"{name}.parquet"
        return [pd.read_parquet(path)] if path.is_file() else []

    own = [((arm, NAN, seed), record) for (arm, seed), record in {**records, **controls}.items()]
    own += [((f"{TUNING}{arm}", trial + 1, seed), record) for (arm, trial, seed), record in trials.items()]
    kept = [(place, record["curves"]) for place, record in own if "curves" in record]  # an oracle trains nothing
    frames = {
        name: [part.assign(arm=arm, trial=trial, seed=seed) for (arm, trial, seed), keys in kept for part in parts(keys["arm"], name)]
        for name in ("training", "steps")
    }
    if shared := [part for key in sorted({keys["shared"] for _, keys in kept}) for part in parts(key, "training")]:
        once = pd.concat(shared, ignore_index=True).drop_duplicates(["artifact", "update"])
        numbers = {artifact: place for place, artifact in enumerate(sorted(once["artifact"].unique()), 1)}
        frames["training"].append(once.assign(arm="_bench", trial=NAN, seed=-1, fit=once["artifact"].map(numbers)))
    return {name: pd.concat(parts, ignore_index=True) for name, parts in frames.items() if parts}


def _capabilities(folder: Path, records: Records) -> dict[str, "pd.DataFrame"]:
    """Item scores of the arm-seeds' final policies, and once of the initial one; no table where no task was run."""
    import pandas as pd

    run = {place: record for place, record in records.items() if record.get("capabilities")}
    keys = {(arm, seed, len(record["rounds"]) - 1): record["capabilities"]["final"] for (arm, seed), record in run.items()}
    for record in run.values():  # the same of all
        keys[INITIAL_POLICY, -1, 0] = record["capabilities"]["initial"]
    parts = [
        pd.read_parquet(folder / "store" / "capabilities" / key / "items.parquet").assign(arm=arm, seed=seed, round=round_)
        for (arm, seed, round_), key in keys.items()
        if key
    ]
    return {"capabilities": pd.concat(parts, ignore_index=True)} if parts else {}


def remove_tables(folder: Path) -> None:
    """Remove all tables, such as those of an earlier question; what they were made from is in the store. They are no longer sealed."""
    break_seal(folder)
    shutil.rmtree(folder / "tables", ignore_errors=True)


def write_tables(folder: Path, tables: Mapping[str, "pd.DataFrame"]) -> None:
    """Write these tables, one parquet file each. Raises InputError for rows that do not fit the table's schema."""
    for name, rows in tables.items():
        write_table(table_path(folder, name), name, rows)


def replace_judges(folder: Path, tables: Mapping[str, "pd.DataFrame"], judges: Collection[str]) -> None:
    """Put rows of judges' tables in place of those that the named judges have in a finished run."""
    import pandas as pd

    for name, rows in tables.items():
        path = table_path(folder, name)
        if path.exists():
            present = read_table(path, name)
            judge = present["judge"] if "judge" in present else present["arm"].str.removeprefix("_judge.")
            present = present[~judge.isin(list(judges))]
            rows = pd.concat([part for part in (present, rows) if len(part)] or [present], ignore_index=True)
        if path.exists() or len(rows):
            write_table(path, name, rows)


def _ledger(experiment: Experiment, records: Records, trials: Trials, controls: Records, pairs_used: int) -> list[dict[str, Any]]:
    """What arm-seeds, the A/A control, tuning and evaluation spent."""
    again = {key: record for key, record in controls.items() if key[0] == AA}
    marginal = _marginals_of({**records, **again})
    rows = []
    for (arm, seed), record in {**records, **again}.items():
        budget, new = experiment.budget_of(made_of(experiment, arm)), marginal.get((arm, seed), {})
        rows += [
            {
                "arm": arm,
                "seed": seed,
                "unit": unit,
                "used": record["used"][unit],
                "marginal": new.get(unit, NAN),
                "budget": budget.get(unit, NAN),
            }
            for unit in UNITS
        ]
    rows += _tuning_rows(trials)
    shared = {
        key: counts for record in (*records.values(), *trials.values(), *controls.values()) for key, counts in record["bench"].items()
    }  # each artifact once
    spent = {unit: sum(counts.get(unit, 0.0) for counts in shared.values()) for unit in UNITS} | {"human_pairs": float(pairs_used)}
    for unit in UNITS if records else ():
        rows.append({"arm": "_bench", "seed": -1, "unit": unit, "used": spent[unit], "marginal": spent[unit], "budget": NAN})
    return rows


def _marginals_of(records: Records) -> dict[tuple[str, int], dict[Unit, float]]:
    """In the records' order; nothing is known of any where one is from before records said what they were charged for."""
    if not all("charged" in record for record in records.values()):
        return {}
    return marginals((key, record["charged"], record["seen"]) for key, record in records.items())


def _tuning_rows(trials: Trials) -> list[dict[str, Any]]:
    """What an arm's trials spent, by tuning seed: flows added up; a stock is the largest, since trials see the same items."""
    spent: dict[tuple[str, int, Unit], list[float]] = {}
    for (arm, _, seed), record in trials.items():
        for unit in UNITS:
            spent.setdefault((arm, seed, unit), []).append(record["used"][unit])
    return [
        {
            "arm": f"{TUNING}{arm}",
            "seed": seed,
            "unit": unit,
            "used": max(used) if unit in STOCKS else sum(used),
            "marginal": NAN,
            "budget": NAN,
        }
        for (arm, seed, unit), used in spent.items()
    ]


def _turns(prompts: Sequence[Prompt], answered: Collection[str]) -> list[dict[str, Any]]:
    """A row for each turn of each prompt that was answered, so that responses can be shown without the task's data."""
    return [
        {"prompt_id": prompt.id, "turn": number, "role": turn.role, "text": turn.content}
        for prompt in prompts
        if prompt.id in answered
        for number, turn in enumerate(prompt.messages)
    ]
