"""What else lies in a run folder: the prompts' texts, what judges said in words, measured times."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from apo_bench.analysis.results import Run
from apo_bench.clients.journal import Journal
from apo_bench.data.task import load_task
from apo_bench.errors import InputError
from apo_bench.formatting import rows_of
from apo_bench.hashing import digest
from apo_bench.tables import empty_table, read_table, table_path

Turns = Mapping[str, Sequence[tuple[str, str]]]  # prompt id -> (role, text) of each turn


def read_prompts(folder: Path, run: Run) -> tuple[Turns, str]:
    """The turns of the test prompts, from tables/prompts.parquet or else from the run's task; why there are none, or "".

    The table has prompt_id, turn, role and text. Prompts' ids are made of their texts, so another task's cannot stand for the run's.
    """
    path, turns = table_path(folder, "prompts"), {}
    if path.exists():
        for row in rows_of(read_table(path, "prompts").sort_values(["prompt_id", "turn"])):
            turns.setdefault(str(row.prompt_id), []).append((str(row.role), str(row.text)))
        return turns, ""
    choice = run.experiment.task
    try:
        task = load_task(choice.use, choice.options, base=Path.cwd())
    except InputError as error:
        return {}, str(error)
    return {one.id: [(turn.role, turn.content) for turn in one.messages] for one in task.prompts["test"]}, ""


def read_judge_texts(folder: Path, run: Run) -> dict[tuple[str, str], str]:
    """What each judge of the run answered in words, by (judge, question), as its journal has it."""
    found = {}
    for judge, about in (run.manifest.get("judges") or {}).items():
        if isinstance(made := about.get("identity"), dict):
            try:
                own = f"{digest(made)}."
            except ValueError:  # NaN, by damage: no judge has such an identity
                continue
            for key, record in Journal(folder / "store" / "judging" / f"{judge}.jsonl").records.items():
                if key.startswith(own) and isinstance(record.get("text"), str):
                    found[judge, key.removeprefix(own)] = record["text"]
    return found


def read_timings(folder: Path) -> pd.DataFrame:
    """The table `timings`, without rows where nothing was measured."""
    path = table_path(folder, "timings")
    return read_table(path, "timings").dropna(subset=["value"]) if path.exists() else empty_table("timings")
