"""The judges of a run folder: those of its experiment, those added later, and verdicts imported from outside."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from apo_bench.analysis.results import Run, read_responses, read_run
from apo_bench.analysis.seal import IMPORTED, break_seal, check_imported, seal
from apo_bench.clients.journal import Journal
from apo_bench.config.schema import Experiment, JudgeChoice
from apo_bench.data.task import Task
from apo_bench.errors import InputError, what_is_wrong
from apo_bench.judging.judge_protocol import Judge, ResponsePair
from apo_bench.judging.judge_result import IncompleteJudge, JudgeResult, ask_judge, incomplete
from apo_bench.judging.load_judges import judge_context, open_judge
from apo_bench.judging.response_pairs import response_pairs
from apo_bench.run.prompt_sets import set_pairs, with_set_axes
from apo_bench.run.tables import replace_judges, write_tables
from apo_bench.stats.argument_checks import Array
from apo_bench.store import updating, write_json
from apo_bench.tables import empty_table, read_table
from apo_bench.types import identity

ADDED = "judges.json"  # in the run folder: judges that its experiment does not name


@dataclass(frozen=True)
class JudgedRun:
    """What a run's judges add to its tables and to its manifest.

    `tables`: rows of `judgments`, `set_judgments`, `judge_audit` and `timings`. `manifest`: by judge, its identity and unanswered
    questions, or how many imported verdicts were left out. `incomplete`: the judges that left questions unanswered.
    """

    tables: Mapping[str, pd.DataFrame]
    manifest: Mapping[str, Mapping[str, Any]]
    incomplete: Sequence[IncompleteJudge]


def judge_run(folder: Path, run: Run, responses: pd.DataFrame, task: Task, base: Path | None) -> JudgedRun:
    """Ask all judges of a run, those added later too, and add the imported verdicts.

    `responses` are the rows of the run's table. Answers already in a judge's journal are not asked for again. Raises InputError where a
    judge cannot be opened.
    """
    check_imported(folder)
    judges = open_judges(folder, run.experiment, task, base)
    pairs = pairs_of(folder, run, responses, task) if judges else []
    beside = set_pairs(folder, run) if judges else []
    results = {name: _ask(name, judge, folder, run, task, pairs, beside) for name, judge in judges.items()}
    imported, left_out = [], {}
    for path in sorted((folder / IMPORTED).glob("*.parquet")):
        rows = read_table(path, "judgments")
        current = on_current_responses(responses, rows)
        imported.append(rows[current])
        if not current.all():
            left_out[path.stem] = f"{int((~current).sum())} of {len(rows)} imported verdicts are on responses that the run no longer has"
            print(f"judge {path.stem}: {left_out[path.stem]}; left out", file=sys.stderr)
    return _judged(folder, results, imported, left_out)


def judge_new_tables(
    folder: Path, experiment: Experiment, manifest: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], task: Task, base: Path | None
) -> Sequence[IncompleteJudge]:
    """Ask the judges about tables that were just gathered; write the judges' tables, the timings and the manifest."""
    run = Run(experiment, dict(manifest), {**tables, "metrics": tables.get("metrics", empty_table("metrics"))}, ())
    judged = judge_run(folder, run, tables["responses"], task, base)
    rows = {**judged.tables, "timings": _combined([tables["timings"], judged.tables["timings"]])}
    write_tables(folder, {name: frame for name, frame in rows.items() if len(frame)})
    write_json(folder / "manifest.json", {**manifest, "judges": judged.manifest})
    return judged.incomplete


def add_judge(folder: Path, name: str, choice: JudgeChoice, experiment: Experiment, task: Task) -> Sequence[IncompleteJudge]:
    """Ask one more judge about a finished run, and keep it with those of the experiment.

    Raises InputError for a name that the run's experiment gives to another judge.
    """
    run = read_run(folder, repairing=True)
    another = choice != experiment.judges.get(name) and run.experiment.judges.get(name, choice) != choice
    if another or (folder / IMPORTED / f"{name}.parquet").exists():
        raise InputError(f"judges.{name}: {folder} has another judge of this name")
    judge = open_judge(name, choice, judge_context(experiment, task, folder, Path.cwd()))
    list(_added(folder))  # raises what is wrong with it before anything is asked
    responses = read_responses(folder)
    pairs = pairs_of(folder, run, responses, task)
    judged = _judged(folder, {name: _ask(name, judge, folder, run, task, pairs, set_pairs(folder, run))})
    with updating(folder):
        if not read_responses(folder).equals(responses):
            raise InputError(f"{folder}: it was run again meanwhile; the same command asks about its new responses")
        if name not in run.experiment.judges:
            _write_added(folder, {**dict(_added(folder)), name: choice})
        record_judges(folder, judged)
    return judged.incomplete


def remove_judge(folder: Path, name: str) -> None:
    """Take a judge that was added or imported out of a finished run: its verdicts, its audit, its costs. Its journal stays.

    Raises InputError for a judge of the run's experiment, and for one that the run does not have.
    """
    with updating(folder):
        run = read_run(folder, repairing=True)
        added, imported = dict(_added(folder)), {path.stem: path for path in (folder / IMPORTED).glob("*.parquet")}
        if name in run.experiment.judges:
            raise InputError(f"judges.{name}: it is in {folder}'s experiment; take it out there and run it again")
        if name not in {*added, *imported}:  # so that no path is a name
            others = sorted({*added, *imported})
            raise InputError(f"judges.{name}: {folder} has no such judge; added or imported: {', '.join(others) or 'none'}")
        break_seal(folder, "judges")
        _write_added(folder, {other: choice for other, choice in added.items() if other != name})
        if name in imported:
            imported[name].unlink()
        replace_judges(folder, {table: pd.DataFrame() for table in ("judgments", "set_judgments", "judge_audit", "timings")}, {name})
        judges = {other: facts for other, facts in (run.manifest.get("judges") or {}).items() if other != name}
        write_json(folder / "manifest.json", {**run.manifest, "judges": judges})
        seal(folder)


def record_judges(folder: Path, judged: JudgedRun) -> None:
    """Put the judges' rows in place of their earlier ones in a finished run, and add them to its manifest."""
    names = {*judged.manifest, *(judged.tables["judgments"]["judge"] if len(judged.tables["judgments"]) else ())}
    with updating(folder):
        manifest = read_run(folder, repairing=True).manifest
        break_seal(folder, "judges")
        replace_judges(folder, judged.tables, names)
        write_json(folder / "manifest.json", {**manifest, "judges": {**(manifest.get("judges") or {}), **judged.manifest}})
        seal(folder)


def _write_added(folder: Path, judges: Mapping[str, JudgeChoice]) -> None:
    if judges or (folder / ADDED).exists():
        write_json(folder / ADDED, {name: choice.model_dump(mode="json") for name, choice in judges.items()})


def open_judges(folder: Path, experiment: Experiment, task: Task, base: Path | None) -> dict[str, Judge]:
    """The experiment's judges and those added to the run folder later, by name. Raises InputError for one that cannot be opened."""
    chosen = {name: (choice, base) for name, choice in experiment.judges.items()}
    chosen |= {name: (choice, Path.cwd()) for name, choice in _added(folder)}
    return {name: open_judge(name, choice, judge_context(experiment, task, folder, at)) for name, (choice, at) in chosen.items()}


def pairs_of(folder: Path, run: Run, responses: pd.DataFrame, task: Task) -> list[ResponsePair]:
    """The response pairs that the judges of a run compare. Raises InputError as `response_pairs` does."""
    table = folder / "tables" / "responses.parquet"
    return list(response_pairs(run.experiment, run.compared_rounds, responses, task.prompts["test"], table))


def on_current_responses(responses: pd.DataFrame, judgments: pd.DataFrame) -> Array:
    """Which verdicts are on responses that the run has, after whatever round."""
    texts = {key: part.tolist() for key, part in responses.groupby(["arm", "seed", "prompt_id"])["text"]}
    current = []
    for row in judgments.to_dict("records"):
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
            raise InputError(f"{path}: {'.'.join(map(str, first['loc'])) or 'judges'}: {what_is_wrong(first)}") from None
        yield from choices.items()


def _ask(
    name: str, judge: Judge, folder: Path, run: Run, task: Task, pairs: Sequence[ResponsePair], beside: Sequence[ResponsePair]
) -> JudgeResult:
    journal = Journal(folder / "store" / "judging" / f"{name}.jsonl")
    return ask_judge(name, judge, pairs, journal, run.experiment.judging, task, beside)


def _judged(
    folder: Path, results: Mapping[str, JudgeResult], imported: Sequence[pd.DataFrame] = (), left_out: Mapping[str, str] | None = None
) -> JudgedRun:
    frames = {
        "judgments": [*(result.judgments for result in results.values()), *imported],
        "set_judgments": [with_set_axes(folder, result.set_judgments) for result in results.values()],
        "judge_audit": [result.audit for result in results.values()],
        "timings": [result.timings for result in results.values()],
    }
    judges: dict[str, dict[str, Any]] = {
        name: {"identity": dict(result.identity), "unanswered": dict(result.unanswered), "unread": dict(result.unread)}
        for name, result in results.items()
    }
    judges |= {name: {"left_out": message} for name, message in (left_out or {}).items()}
    return JudgedRun({name: _combined(parts) for name, parts in frames.items()}, judges, incomplete(results))


def _combined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The rows of all frames; a frame without rows adds no columns."""
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame()
