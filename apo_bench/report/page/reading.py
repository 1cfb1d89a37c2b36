"""Texts of a run folder that its report does not need otherwise: the prompts, and what judges answered in words."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from apo_bench.analysis.results import Run, read_table
from apo_bench.clients.journal import Journal
from apo_bench.data.task import load_task
from apo_bench.errors import InputError
from apo_bench.formatting import rows_of
from apo_bench.hashing import digest

Turns = Mapping[str, Sequence[tuple[str, str]]]  # prompt id -> (role, text) of each turn


def read_prompts(folder: Path, run: Run) -> tuple[Turns, str]:
    """The turns of the test prompts, from tables/prompts.parquet or else from the run's task; why there are none, or "".

    The table has prompt_id, turn, role and text. Prompts' ids are made of their texts, so another task's cannot stand for the run's.
    """
    path, turns = folder / "tables" / "prompts.parquet", {}
    if path.exists():
        for row in rows_of(read_table(path, ("prompt_id", "turn", "role", "text")).sort_values(["prompt_id", "turn"])):
            turns.setdefault(str(row.prompt_id), []).append((str(row.role), str(row.text)))
        return turns, ""
    choice = run.experiment.task
    try:
        task = load_task(choice.use, choice.options, base=Path.cwd())
    except InputError as error:
        return {}, str(error)
    return {prompt.id: [(turn.role, turn.content) for turn in prompt.messages] for prompt in task.prompts["test"]}, ""


def read_judge_texts(folder: Path, run: Run) -> dict[tuple[str, str], str]:
    """What each judge of the run answered in words, by (judge, question), as its journal has it."""
    texts = {}
    for judge, facts in (run.manifest.get("judges") or {}).items():
        if isinstance(identity := facts.get("identity"), dict):
            try:
                prefix = f"{digest(identity)}."
            except ValueError:  # NaN, by damage: no judge has such an identity
                continue
            for key, record in Journal(folder / "store" / "judging" / f"{judge}.jsonl").records.items():
                if key.startswith(prefix) and isinstance(record.get("text"), str):
                    texts[judge, key.removeprefix(prefix)] = record["text"]
    return texts
