"""The judges of a run: which responses they compare, what they say, and how they do on human pairs. Reads and writes the run's tables."""

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import TypeAdapter, ValidationError

from apo_bench.analysis.results import COLUMNS, Run, comparisons, read_responses, read_run, read_table
from apo_bench.clients.journal import Journal, spent_usd
from apo_bench.config.plugins import JUDGE, resolve
from apo_bench.config.schema import Experiment, JudgeChoice
from apo_bench.data.task import Task
from apo_bench.engines import open_engine
from apo_bench.errors import InputError
from apo_bench.hashing import digest, digest_files
from apo_bench.judging.asking import ask
from apo_bench.judging.attacks import ATTACKS
from apo_bench.judging.audit import COLUMNS as AUDITED
from apo_bench.judging.audit import audit
from apo_bench.judging.labels import labelled_pairs
from apo_bench.judging.verdicts import ORDERS, Compared, Judge, Order, Question, Surroundings, Verdict, both_orders, value_of
from apo_bench.provenance import code_hash, versions
from apo_bench.stats.checks import Array
from apo_bench.store import RunStore, write_json, write_table
from apo_bench.types import Prompt, identity

ADDED = "judges.json"  # in the run folder: judges that its experiment does not name
IMPORTED = "imported"  # likewise: verdicts from outside, a table for each judge


@dataclass(frozen=True)
class Opinion:
    """What one judge came to: rows for `judgments`, `judge_audit` and `timings`, and how many questions nobody answered, by reason."""

    judgments: pd.DataFrame
    audit: pd.DataFrame
    timings: pd.DataFrame
    identity: Mapping[str, Any]
    n_questions: int
    unanswered: Mapping[str, int]


@dataclass(frozen=True)
class Unanswered:
    """A judge that did not come to an end; what it did say is in the tables."""

    judge: str
    message: str

    def __str__(self) -> str:
        return f"judge {self.judge}: {self.message}"


def open_judge(name: str, choice: JudgeChoice, at: Surroundings) -> Judge:
    """The judge that an experiment names, ready to be asked. Raises InputError, one line that starts with judges.NAME."""
    base = None if at.base is None else Path(at.base)
    try:
        return resolve(choice.use, choice.parameters, base=base, arm=f"judges.{name}", kind=JUDGE).open(at)
    except InputError as error:
        message = str(error)
        raise type(error)(message if message.startswith("judges.") else f"judges.{name}: {message}") from None


def surroundings(experiment: Experiment, task: Task, folder: Path, base: Path | None) -> Surroundings:
    """What judges find in a run: the task's ground truth, and its gold reward models, loaded when the first is asked for."""

    @cache
    def bench() -> Any:
        from apo_bench.evaluation.context import EvaluationContext
        from apo_bench.models.policy import in_one_thread

        in_one_thread()
        engine = open_engine(experiment.engine, experiment.executor, folder)
        return EvaluationContext(experiment, task, RunStore(folder), engine)

    golds = {gold.name: gold for gold in experiment.models.gold}
    data = {"task": task.fingerprint, "files": digest_files(task.source_files)}
    made = {
        name: digest({**data, "gold": one.model_dump(mode="json"), "code": code_hash("apo_bench.lab"), **versions()})
        for name, one in golds.items()
    }

    def score(gold: str, items: Sequence[tuple[Prompt, str]]) -> Sequence[float]:
        from apo_bench.evaluation.context import in_order

        spec = golds[gold]
        by_seed = [in_order(bench().lab(seed, spec.model).score(bench().gold(spec, seed), items), items) for seed in spec.seeds]
        return np.mean(by_seed, axis=0).tolist()

    return Surroundings(None if base is None else str(base), task.axes, task.ground_truth, digest(data), score, made)


def judge_run(folder: Path, experiment: Experiment, task: Task, base: Path | None) -> list[Unanswered]:
    """Ask all judges of a run whose tables are written, those added later too, and write what they say beside them.

    Answers already in a judge's journal are not asked for again. Raises InputError where a judge cannot be opened.
    """
    judges, run = open_judges(folder, experiment, task, base), read_run(folder)
    asked = list(compared(run, folder, task)) if judges else []
    opinions = {name: _opinion(name, judge, folder, run, task, asked) for name, judge in judges.items()}
    imported, left_out = [], {}
    for path in sorted((folder / IMPORTED).glob("*.parquet")):
        rows = read_table(path, (*COLUMNS["judgments"], "question"))
        shown = still_shown(folder, rows)
        imported.append(rows[shown])
        if not shown.all():
            left_out[path.stem] = f"{int((~shown).sum())} of {len(rows)} imported verdicts are on responses that the run no longer has"
            print(f"judge {path.stem}: {left_out[path.stem]}; left out", file=sys.stderr)
    return _record(folder, opinions, imported, left_out)


def open_judges(folder: Path, experiment: Experiment, task: Task, base: Path | None) -> dict[str, Judge]:
    """The experiment's judges and those added to the run folder later, by name. Raises InputError for one that cannot be opened."""
    chosen = {**{name: (one, base) for name, one in experiment.judges.items()}, **{n: (one, Path.cwd()) for n, one in _added(folder)}}
    return {name: open_judge(name, one, surroundings(experiment, task, folder, where)) for name, (one, where) in chosen.items()}


def still_shown(folder: Path, rows: pd.DataFrame) -> Array:
    """Which verdicts are on responses that the run holds, after whatever round."""
    texts = {one: part.tolist() for one, part in read_responses(folder).groupby(["arm", "seed", "prompt_id"])["text"]}
    known = []
    for row in rows.to_dict("records"):
        a, b = (texts.get((row[f"arm_{side}"], row[f"seed_{side}"], row["prompt_id"]), []) for side in ("a", "b"))
        shown = ((x, y) if row["order"] == "ab" else (y, x) for x in a for y in b)
        known.append(row["question"] in {identity(row["prompt_id"], *pair) for pair in shown})  # Question.id
    return np.array(known, dtype=bool)


def add_judge(folder: Path, name: str, choice: JudgeChoice, experiment: Experiment, task: Task) -> list[Unanswered]:
    """Ask one more judge about a finished run, and keep it beside those of the experiment.

    Raises InputError for a name that the run's experiment gives to another judge.
    """
    run = read_run(folder)
    if run.experiment.judges.get(name, choice) != choice or (folder / IMPORTED / f"{name}.parquet").exists():
        raise InputError(f"judges.{name}: {folder} has another judge of this name")
    judge = open_judge(name, choice, surroundings(experiment, task, folder, Path.cwd()))
    added = {n: one.model_dump(mode="json") for n, one in _added(folder)}  # what is wrong with it is said before anything is asked
    opinion = _opinion(name, judge, folder, run, task, list(compared(run, folder, task)))
    if name not in run.experiment.judges:
        write_json(folder / ADDED, {**added, name: choice.model_dump(mode="json")})
    return _record(folder, {name: opinion})


def _added(folder: Path) -> Iterator[tuple[str, JudgeChoice]]:
    path = folder / ADDED
    if path.exists():
        try:
            found = TypeAdapter(dict[str, JudgeChoice]).validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(f"{path}: {'.'.join(map(str, first['loc'])) or 'judges'}: {first['msg']}") from None
        yield from found.items()


def arm_pairs(run: Run) -> list[tuple[str, str]]:
    """The arms whose responses judges compare. Where a judge is the scorer, the declared comparisons come first."""
    judging, declared = run.experiment.judging, [(pair.a, pair.b) for _, pair in comparisons(run)]
    chosen = {
        "declared": declared,
        "round_robin": list(combinations(run.arms, 2)),
        "reference": [(arm, str(judging.reference)) for arm in run.arms if arm != judging.reference],
    }[judging.pairs]
    if run.judge is not None:
        chosen = [*declared, *(pair for pair in chosen if pair not in declared and pair[::-1] not in declared)]
    return list(dict.fromkeys(chosen))


def compared(run: Run, folder: Path, task: Task) -> Iterator[Compared]:
    """Every comparison: pairs of arms x seeds x prompts that both answered."""
    from apo_bench.evaluation.context import balanced  # here, since the bench knows torch, and a replay does without

    judging, by_id = run.experiment.judging, {prompt.id: prompt for prompt in task.prompts["test"]}
    responses: dict[tuple[str, int, int], dict[str, tuple[str, float]]] = {}  # (arm, seed, round) -> prompt id -> text, tokens
    table = read_responses(folder)
    columns = (table[name].tolist() for name in ("arm", "seed", "round", "prompt_id", "text", "tokens"))
    for arm, seed, round_, id_, text, tokens in zip(*columns, strict=True):
        if id_ not in by_id:
            raise InputError(f"{folder}: prompt {id_} is no test prompt of task {task.name}; have its data or options changed?")
        responses.setdefault((arm, seed, round_), {})[id_] = text, float(tokens)
    for a, b in arm_pairs(run):
        seeds = [seed for seed in run.experiment.seeds if all(seed in run.arm_seeds.get(arm, []) for arm in (a, b))]
        others = seeds if judging.seeds == "same" else [*seeds[1:], *seeds[:1]]
        if judging.seeds == "next" and len(seeds) == 1:
            raise InputError("judging.seeds: next needs at least two seeds that both arms finished")
        for seed_a, seed_b in zip(seeds, others, strict=True):
            rounds = _round(run, a, seed_a), _round(run, b, seed_b)
            label = "/".join(dict.fromkeys(map(str, rounds)))
            answered = [(a, seed_a, rounds[0]), (b, seed_b, rounds[1])]
            for arm, seed, round_ in (one for one in answered if one not in responses):
                raise InputError(f"{folder / 'tables' / 'responses.parquet'}: no row of {arm}, seed {seed}, round {round_}")
            first, second = (responses[one] for one in answered)
            for prompt in balanced([by_id[id_] for id_ in first if id_ in second], judging.prompts):
                (text_a, length_a), (text_b, length_b) = first[prompt.id], second[prompt.id]
                yield Compared(a, b, seed_a, seed_b, label, prompt, text_a, text_b, length_a, length_b)


def _round(run: Run, arm: str, seed: int) -> int:
    if run.experiment.compare.round == "dev_best" and (arm, seed) in run.dev_round:
        return run.dev_round[arm, seed]
    return run.final_round[arm]


def _opinion(name: str, judge: Judge, folder: Path, run: Run, task: Task, asked: Sequence[Compared]) -> Opinion:
    """Ask a judge about all comparisons and, where pairs are set aside for that, audit it."""
    settings, journal = run.experiment.judging, Journal(folder / "store" / "judging" / f"{name}.jsonl")
    with journal.open():
        questions = [both_orders(one.prompt, one.a, one.b) for one in asked]
        verdicts = ask(judge, (one for both in questions for one in both), journal, _progress(f"judge {name}"))
        if settings.audit_pairs:
            labelled = labelled_pairs(task, settings.audit_pairs)
            audited = audit(judge, labelled, journal, attacks=ATTACKS if settings.attacks else {})
        else:
            audited = None
        if journal.n_damaged:
            print(f"{journal.path}: {journal.n_damaged} damaged lines were left out and asked again", file=sys.stderr)
    rows = [
        _row(name, one, order, question, verdicts[question.id])
        for one, both in zip(asked, questions, strict=True)
        for order, question in zip(ORDERS, both, strict=True)
    ]
    missing = Counter(one.failure for one in verdicts.values() if one.choice is None and not one.answered)
    if audited is not None:
        missing.update(audited.unanswered)
    timings = _timings(name, journal, judge)
    about = (pd.DataFrame(columns=AUDITED) if audited is None else audited.rows).assign(judge=name)
    return Opinion(pd.DataFrame(rows), about, timings, judge.identity, len(verdicts), dict(missing))


def _row(name: str, one: Compared, order: Order, question: Question, verdict: Verdict) -> dict[str, Any]:
    return {
        "arm_a": one.arm_a, "arm_b": one.arm_b, "seed_a": one.seed_a, "seed_b": one.seed_b, "round": one.round,
        "prompt_id": one.prompt.id, "cluster_id": one.prompt.cluster_id, "axis": one.prompt.axis, "judge": name, "order": order,
        "verdict": verdict.choice, "value": value_of(order, verdict.choice), "failure": verdict.failure,
        "length_a": one.length_a, "length_b": one.length_b, "question": question.id,
    }  # fmt: skip


def _timings(name: str, journal: Journal, judge: Judge) -> pd.DataFrame:
    """What this judge took in this run folder, its audit included; `judge_usd`: all that the journal was charged, whatever the settings."""
    own = [one for key, one in journal.records.items() if key.startswith(f"{digest(dict(judge.identity))}.")]
    latencies = [one["latency_s"] for one in own if "latency_s" in one]
    measured = {name: sum(one.get(name, 0) for one in own) for name in ("calls", "prompt_tokens", "completion_tokens")}
    measured |= {"judge_usd": spent_usd(journal), "latency_s": float(np.median(latencies)) if latencies else math.nan}
    return pd.DataFrame([{"arm": f"_judge.{name}", "seed": -1, "measure": key, "value": float(value)} for key, value in measured.items()])


def _record(
    folder: Path, opinions: Mapping[str, Opinion], imported: Sequence[pd.DataFrame] = (), left_out: Mapping[str, str] | None = None
) -> list[Unanswered]:
    """Write the opinions' rows in place of what these judges said before; say which judges were left without answers."""
    keys = {
        "judgments": ["judge", "arm_a", "arm_b", "axis", "seed_a", "seed_b", "prompt_id", "order"],
        "judge_audit": ["judge", "axis", "metric"],
        "timings": ["arm", "seed", "measure"],
    }
    fresh = {
        "judgments": [*(one.judgments for one in opinions.values()), *imported],
        "judge_audit": [one.audit for one in opinions.values()],
        "timings": [one.timings for one in opinions.values()],
    }
    for name, frames in fresh.items():
        path = folder / "tables" / f"{name}.parquet"
        before = pd.read_parquet(path) if path.exists() else pd.DataFrame()
        if len(before):
            who = before["judge"] if "judge" in before else before["arm"].str.removeprefix("_judge.")
            before = before[~who.isin([*opinions, *(name for rows in imported for name in set(rows["judge"]))])]
        whole = [one for one in (before, *frames) if len(one)]
        if whole:
            write_table(path, pd.concat(whole, ignore_index=True).sort_values(keys[name], ignore_index=True))
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    about = {name: {"identity": dict(one.identity), "unanswered": dict(one.unanswered)} for name, one in opinions.items()}
    about |= {name: {"left_out": message} for name, message in (left_out or {}).items()}
    write_json(path, manifest | {"judges": {**manifest.get("judges", {}), **about}})
    return [Unanswered(name, _said(one)) for name, one in opinions.items() if one.unanswered]


def _said(one: Opinion) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(one.unanswered.items()))
    return f"{sum(one.unanswered.values())} questions got no answer ({reasons}); the same command asks again"


def _progress(label: str) -> Any:
    """A line for every tenth of the work, or every hundred questions, on stderr."""

    def say(done: int, of: int) -> None:
        if done == of or done % max(100, of // 10) == 0:
            print(f"{label}: {done} of {of}", file=sys.stderr, flush=True)

    return say
