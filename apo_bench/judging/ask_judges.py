"""Asking a judge: each question once, with every answer in a journal before the next is waited for."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from apo_bench.clients.journal import Journal, add_lost, spent_usd
from apo_bench.clients.replies import with_words
from apo_bench.hashing import digest
from apo_bench.judging.judge_protocol import IDENTICAL, Judge, Question, Verdict

TIE_WITHOUT_A_CALL = Verdict("tie", text=IDENTICAL, calls=0)


def ask(
    judge: Judge, questions: Iterable[Question], journal: Journal, progress: Callable[[int, int], None] = lambda done, of: None
) -> dict[str, Verdict]:
    """A verdict on every question, by its id. Equal questions are asked once, and two identical responses are a tie without a call.

    Every answer is in the journal before the next is waited for, under a key of the judge's identity and the question; the identity
    itself is written once. An answer without a verdict is asked for once more (`attempt` 1); the second is final. A question that
    nobody answered has a missing verdict, and is asked again by the next call; so is one that the judge's server rejected, unless this
    judge has ever answered another: then it is the question's fault, and final. The journal must be open.
    """
    distinct = {question.id: question for question in questions}
    identity = digest(dict(judge.identity))
    if identity not in journal.records:
        journal.add(identity, {"identity": dict(judge.identity)})
    keys = {id_: f"{identity}.{id_}" for id_ in distinct}
    verdicts = {id_: TIE_WITHOUT_A_CALL for id_, question in distinct.items() if question.first == question.second}
    recorded = {id_: entry for id_ in distinct if id_ not in verdicts and (entry := _read(journal.records.get(keys[id_])))}
    verdicts |= {id_: verdict for id_, (verdict, final) in recorded.items() if final}
    retries = {id_: verdict for id_, (verdict, final) in recorded.items() if not final}  # answered once, before a crash
    unanswered = [question for id_, question in distinct.items() if id_ not in verdicts and id_ not in retries]
    n_open, n_done = len(unanswered) + len(retries), 0
    rejected: dict[str, Verdict] = {}
    has_answered = any(record.get("calls") for key, record in journal.records.items() if key.startswith(f"{identity}."))

    for attempt in (0, 1):
        pending = unanswered if attempt == 0 else [distinct[id_] for id_ in retries]
        if not pending:
            continue
        for question, verdict in judge.verdicts(pending, attempt, spent_usd(journal)):
            earlier = retries.get(question.id)
            total = verdict if earlier is None else _add(earlier, verdict)
            if not verdict.answered:
                add_lost(journal, keys[question.id], verdict.lost_usd)
                if verdict.rejected:
                    rejected[question.id] = total if earlier else replace(total, lost_usd=0.0)  # which is in the journal
                    continue
            else:
                has_answered = True
                final = total.choice is not None or attempt == 1
                journal.add(keys[question.id], {**_record(total), "final": final})
                if not final:
                    retries[question.id] = total
                    continue
            verdicts[question.id] = total
            n_done += 1
            progress(n_done, n_open)
    for id_, verdict in rejected.items():
        if has_answered:
            verdicts[id_] = replace(verdict, answered=True, rejected=False)
            journal.add(keys[id_], {**_record(verdicts[id_]), "final": True})
        else:
            verdicts[id_] = replace(verdict, failure=with_words(verdict.failure, verdict.text))
        n_done += 1
        progress(n_done, n_open)
    return verdicts


def _add(earlier: Verdict, verdict: Verdict) -> Verdict:
    """The later verdict with the cost of both."""
    if not verdict.answered:
        return replace(earlier, failure=verdict.failure, text=verdict.text, answered=False, rejected=verdict.rejected)
    return replace(
        verdict,
        calls=earlier.calls + verdict.calls,
        prompt_tokens=earlier.prompt_tokens + verdict.prompt_tokens,
        completion_tokens=earlier.completion_tokens + verdict.completion_tokens,
        cost_usd=earlier.cost_usd + verdict.cost_usd,
        lost_usd=earlier.lost_usd + verdict.lost_usd,
    )


def _record(verdict: Verdict) -> Mapping[str, Any]:
    """The journal's record of a verdict, without NaN, which JSON does not have."""
    return {name: value for name, value in asdict(verdict).items() if not (isinstance(value, float) and math.isnan(value))}


def _read(record: Mapping[str, Any] | None) -> tuple[Verdict, bool] | None:
    """A record's verdict, and whether it is final; None for a record of another version, whose question is asked again."""
    try:
        values = dict(record or {})
        final = bool(values.pop("final"))
        values.pop("key", None)
        return Verdict(**values), final
    except (KeyError, TypeError, ValueError):
        return None
