"""One judge's verdicts on a run's response pairs and its audit against people's labels, as rows of the run's tables."""

import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from apo_bench.clients.journal import Journal, spent_usd
from apo_bench.clients.replies import counted_reasons
from apo_bench.config.schema import Judging
from apo_bench.data.task import Task
from apo_bench.hashing import digest
from apo_bench.judging.ask_judges import ask
from apo_bench.judging.attacks import ATTACKS
from apo_bench.judging.audit import COLUMNS as AUDIT_COLUMNS
from apo_bench.judging.audit import audit
from apo_bench.judging.human_preferences import labelled_pairs
from apo_bench.judging.judge_protocol import ORDERS, Judge, Order, Question, ResponsePair, Verdict, both_orders, value_of

QUOTED = 300  # characters


@dataclass(frozen=True)
class JudgeResult:
    """A judge's rows for the tables `judgments`, `judge_audit`, `timings` and `set_judgments`.

    `unanswered` counts the questions that nobody answered, by reason: asking again with the same journal asks only for them. `unread`:
    of the answers without a verdict, one for each reason, its first QUOTED characters.
    """

    judgments: pd.DataFrame
    audit: pd.DataFrame
    timings: pd.DataFrame
    identity: Mapping[str, Any]
    unanswered: Mapping[str, int]
    unread: Mapping[str, str]
    set_judgments: pd.DataFrame = field(default_factory=pd.DataFrame)


@dataclass(frozen=True)
class IncompleteJudge:
    """A judge that left questions unanswered; the verdicts it did give are kept."""

    judge: str
    message: str

    def __str__(self) -> str:
        return f"judge {self.judge}: {self.message}"


def ask_judge(
    name: str,
    judge: Judge,
    pairs: Sequence[ResponsePair],
    journal: Journal,
    settings: Judging,
    task: Task,
    beside: Sequence[ResponsePair] = (),
) -> JudgeResult:
    """Ask a judge about every pair in both orders and, where `settings` set labelled pairs aside for that, audit it.

    `beside`: pairs of answers to prompt sets, whose verdicts are rows of `set_judgments`. Answers already in the journal are not asked
    for again.
    """
    with journal.open():
        every = [*pairs, *beside]
        questions = [both_orders(pair.prompt, pair.a, pair.b) for pair in every]
        verdicts = ask(judge, (question for orders in questions for question in orders), journal, _progress(f"judge {name}"))
        if settings.audit_pairs:
            labelled = labelled_pairs(task, settings.audit_pairs)
            audited = audit(judge, labelled, journal, attacks=ATTACKS if settings.attacks else {})
        else:
            audited = None
        if journal.n_damaged:
            print(f"{journal.path}: left out {journal.n_damaged} damaged lines, whose questions are asked again", file=sys.stderr)
    rows = [
        _row(name, pair, order, question, verdicts[question.id])
        for pair, orders in zip(every, questions, strict=True)
        for order, question in zip(ORDERS, orders, strict=True)
    ]
    unanswered = Counter(verdict.failure for verdict in verdicts.values() if verdict.choice is None and not verdict.answered)
    if audited is not None:
        unanswered.update(audited.unanswered)
    audit_rows = (pd.DataFrame(columns=AUDIT_COLUMNS) if audited is None else audited.rows).assign(judge=name)
    n = len(ORDERS) * len(pairs)
    own, of_sets = pd.DataFrame(rows[:n]), pd.DataFrame(rows[n:])
    timings = _timings(name, journal, judge)
    return JudgeResult(own, audit_rows, timings, judge.identity, dict(unanswered), _unread(verdicts), of_sets)


def _unread(verdicts: Mapping[str, Verdict]) -> dict[str, str]:
    """An answer without a verdict for each reason: that of the first question, by its id."""
    answered = [verdict for _, verdict in sorted(verdicts.items(), reverse=True) if verdict.choice is None and verdict.answered]
    return {verdict.failure: verdict.text[:QUOTED] for verdict in answered if verdict.text.strip()}


def incomplete(results: Mapping[str, JudgeResult]) -> list[IncompleteJudge]:
    """The judges, by name, that left questions unanswered."""
    return [IncompleteJudge(name, _unanswered(result.unanswered)) for name, result in results.items() if result.unanswered]


def _unanswered(counts: Mapping[str, int]) -> str:
    return f"{sum(counts.values())} questions got no answer ({counted_reasons(counts)}); the same command asks again"


def _row(name: str, pair: ResponsePair, order: Order, question: Question, verdict: Verdict) -> dict[str, Any]:
    return {
        "arm_a": pair.arm_a, "arm_b": pair.arm_b, "seed_a": pair.seed_a, "seed_b": pair.seed_b, "round": pair.round,
        "prompt_id": pair.prompt.id, "cluster_id": pair.prompt.cluster_id, "axis": pair.prompt.axis, "judge": name, "order": order,
        "verdict": verdict.choice, "value": value_of(order, verdict.choice), "failure": verdict.failure,
        "length_a": pair.length_a, "length_b": pair.length_b, "question": question.id,
    }  # fmt: skip


def _timings(name: str, journal: Journal, judge: Judge) -> pd.DataFrame:
    """Calls, tokens and latency of this judge with these settings; `judge_usd`: all that its journal was charged, whatever the settings."""
    records = [record for key, record in journal.records.items() if key.startswith(f"{digest(dict(judge.identity))}.")]
    latencies = [record["latency_s"] for record in records if "latency_s" in record]
    measures = {measure: sum(record.get(measure, 0) for record in records) for measure in ("calls", "prompt_tokens", "completion_tokens")}
    measures |= {"judge_usd": spent_usd(journal), "latency_s": float(np.median(latencies)) if latencies else math.nan}
    rows = [{"arm": f"_judge.{name}", "seed": -1, "measure": measure, "value": float(value)} for measure, value in measures.items()]
    return pd.DataFrame(rows)


def _progress(label: str) -> Callable[[int, int], None]:
    """Prints a line to stderr for every tenth of the questions, at most one for every hundred."""

    def show(done: int, of: int) -> None:
        if done == of or done % max(100, of // 10) == 0:
            print(f"{label}: {done} of {of}", file=sys.stderr, flush=True)

    return show
