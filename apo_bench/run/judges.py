"""The judges of a run folder: those of its experiment, those added later, and verdicts imported from outside."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from apo_bench.analysis.results import COLUMNS, Run, read_responses, read_run, read_table
from apo_bench.clients.journal import Journal
from apo_bench.config.schema import Experiment, JudgeChoice
from apo_bench.data.task import Task
from apo_bench.errors import InputError
from apo_bench.judging.judge_result import IncompleteJudge, JudgeResult, ask_judge, incomplete
from apo_bench.judging.opening import judge_context, open_judge
from apo_bench.judging.response_pairs import response_pairs
from apo_bench.judging.verdicts import Judge, ResponsePair
from apo_bench.stats.argument_checks import Array
from apo_bench.store import write_json, write_table
from apo_bench.types import identity

ADDED = "judges.json"  # in the run folder: judges that its experiment does not name
IMPORTED = "imported"  # likewise: verdicts from outside, a table for each judge


def judge_run(folder: Path, experiment: Experiment, task: Task, base: Path | None) -> list[IncompleteJudge]:
    """Ask all judges of a run whose tables are written, those added later too, and write their rows.

    Answers already in a judge's journal are not asked for again. Raises InputError where a judge cannot be opened.
    """
    judges, run = open_judges(folder, experiment, task, base), read_run(folder)
    pairs = pairs_of(run, folder, task) if judges else []
    results = {name: _ask(name, judge, folder, run, task, pairs) for name, judge in judges.items()}
    imported, left_out = [], {}
    for path in sorted((folder / IMPORTED).glob("*.parquet")):
        rows = read_table(path, (*COLUMNS["judgments"], "question"))
        current = on_current_responses(folder, rows)
        imported.append(rows[current])
        if not current.all():
            left_out[path.stem] = f"{int((~current).sum())} of {len(rows)} imported verdicts are on responses that the run no longer has"
            print(f"judge {path.stem}: {left_out[path.stem]}; left out", file=sys.stderr)
    _write(folder, results, imported, left_out)
    return incomplete(results)


def add_judge(folder: Path, name: str, choice: JudgeChoice, experiment: Experiment, task: Task) -> list[IncompleteJudge]:
    """Ask one more judge about a finished run, and keep it with those of the experiment.

    Raises InputError for a name that the run's experiment gives to another judge.
    """
    run = read_run(folder)
    if run.experiment.judges.get(name, choice) != choice or (folder / IMPORTED / f"{name}.parquet").exists():
        raise InputError(f"judges.{name}: {folder} has another judge of this name")
    judge = open_judge(name, choice, judge_context(experiment, task, folder, Path.cwd()))
    added = {other: spec.model_dump(mode="json") for other, spec in _added(folder)}  # checked before anything is asked
    results = {name: _ask(name, judge, folder, run, task, pairs_of(run, folder, task))}
    if name not in run.experiment.judges:
        write_json(folder / ADDED, {**added, name: choice.model_dump(mode="json")})
    _write(folder, results)
    return incomplete(results)


def open_judges(folder: Path, experiment: Experiment, task: Task, base: Path | None) -> dict[str, Judge]:
    """The experiment's judges and those added to the run folder later, by name. Raises InputError for one that cannot be opened."""
    chosen = {name: (choice, base) for name, choice in experiment.judges.items()}
    chosen |= {name: (choice, Path.cwd()) for name, choice in _added(folder)}
    return {name: open_judge(name, choice, judge_context(experiment, task, folder, at)) for name, (choice, at) in chosen.items()}


def pairs_of(run: Run, folder: Path, task: Task) -> list[ResponsePair]:
    """The response pairs that the judges of a run compare. Raises InputError as `response_pairs` does."""
    return list(response_pairs(run.experiment, run.compared_rounds, read_responses(folder), task.prompts["test"]))


def on_current_responses(folder: Path, rows: pd.DataFrame) -> Array:
    """Which verdicts are on responses that the run has, after whatever round."""
    texts = {key: part.tolist() for key, part in read_responses(folder).groupby(["arm", "seed", "prompt_id"])["text"]}
    current = []
    for row in rows.to_dict("records"):
        a, b = (texts.get((row[f"arm_{side}"], row[f"seed_{side}"], row["prompt_id"]), []) for side in ("a", "b"))
        shown = ((x, y) if row["order"] == "ab" else (y, x) for x in a for y in b)
        current.append(row["question"] in {identity(row["prompt_id"], *pair) for pair in shown})  # Question.id
    return pd.Series(current, dtype=bool).to_numpy()


def _added(folder: Path) -> Iterator[tuple[str, JudgeChoice]]:
    path = folder / ADDED
    if path.exists():
        try:
            choices = TypeAdapter(dict[str, JudgeChoice]).validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(f"{path}: {'.'.join(map(str, first['loc'])) or 'judges'}: {first['msg']}") from None
        yield from choices.items()


def _ask(name: str, judge: Judge, folder: Path, run: Run, task: Task, pairs: Sequence[ResponsePair]) -> JudgeResult:
    journal = Journal(folder / "store" / "judging" / f"{name}.jsonl")
    return ask_judge(name, judge, pairs, journal, run.experiment.judging, task)


def _write(
    folder: Path,
    results: Mapping[str, JudgeResult],
    imported: Sequence[pd.DataFrame] = (),
    left_out: Mapping[str, str] | None = None,
) -> None:
    """Write the judges' rows in place of their earlier ones, and their identities to the manifest."""
    keys = {
        "judgments": ["judge", "arm_a", "arm_b", "axis", "seed_a", "seed_b", "prompt_id", "order"],
        "judge_audit": ["judge", "axis", "metric"],
        "timings": ["arm", "seed", "measure"],
    }
    new = {
        "judgments": [*(result.judgments for result in results.values()), *imported],
        "judge_audit": [result.audit for result in results.values()],
        "timings": [result.timings for result in results.values()],
    }
    for name, frames in new.items():
        path = folder / "tables" / f"{name}.parquet"
        before = pd.read_parquet(path) if path.exists() else pd.DataFrame()
        if len(before):
            judge = before["judge"] if "judge" in before else before["arm"].str.removeprefix("_judge.")
            before = before[~judge.isin([*results, *(other for rows in imported for other in set(rows["judge"]))])]
        filled = [frame for frame in (before, *frames) if len(frame)]
        if filled:
            write_table(path, pd.concat(filled, ignore_index=True).sort_values(keys[name], ignore_index=True))
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    judges = {name: {"identity": dict(result.identity), "unanswered": dict(result.unanswered)} for name, result in results.items()}
    judges |= {name: {"left_out": message} for name, message in (left_out or {}).items()}
    write_json(path, manifest | {"judges": {**manifest.get("judges", {}), **judges}})
