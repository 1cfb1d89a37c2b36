"""Questions to a judge, each once: what the journal knows is not asked again, what was not answered is."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from apo_bench.clients.journal import Journal, add_lost, spent_usd
from apo_bench.hashing import digest
from apo_bench.judging.verdicts import IDENTICAL, Judge, Question, Verdict

NOT_ASKED = Verdict("tie", text=IDENTICAL, calls=0)


def ask(
    judge: Judge, questions: Iterable[Question], journal: Journal, progress: Callable[[int, int], None] = lambda done, of: None
) -> dict[str, Verdict]:
    """A verdict on every question, by its id. Equal questions are asked once, and two identical responses are a tie without a call.

    Every answer is in the journal before the next is waited for, under a key of the judge's identity and the question; the identity
    itself is written once. An answer without a verdict is asked for once more (`attempt` 1); the second is final. What nobody answered
    is missing now and asked again by the next call. The journal must be open.
    """
    distinct = {question.id: question for question in questions}
    identity = digest(dict(judge.identity))
    if identity not in journal.records:
        journal.add(identity, {"identity": dict(judge.identity)})
    keys = {id_: f"{identity}.{id_}" for id_ in distinct}
    found = {id_: NOT_ASKED for id_, one in distinct.items() if one.first == one.second}
    known = {id_: read for id_ in distinct if id_ not in found and (read := _read(journal.records.get(keys[id_])))}
    found |= {id_: verdict for id_, (verdict, final) in known.items() if final}
    again = {id_: verdict for id_, (verdict, final) in known.items() if not final}  # asked once, before a crash
    first = [one for id_, one in distinct.items() if id_ not in found and id_ not in again]
    n_asked = len(first) + len(again)
    n_done = 0

    for attempt in (0, 1):
        asked = first if attempt == 0 else [distinct[id_] for id_ in again]
        if not asked:
            continue
        for question, verdict in judge.verdicts(asked, attempt, spent_usd(journal)):
            earlier = again.get(question.id)
            total = verdict if earlier is None else _together(earlier, verdict)
            readable = total.choice is not None
            if not verdict.answered:
                add_lost(journal, keys[question.id], verdict.lost_usd)
            if verdict.answered:
                final = readable or attempt == 1
                journal.add(keys[question.id], {**_written(total), "final": final})
                if not final:
                    again[question.id] = total
                    continue
            found[question.id] = total
            n_done += 1
            progress(n_done, n_asked)
    return found


def _together(earlier: Verdict, verdict: Verdict) -> Verdict:
    """The later verdict with the cost of both."""
    if not verdict.answered:
        return replace(earlier, failure=verdict.failure, answered=False)
    return replace(
        verdict,
        calls=earlier.calls + verdict.calls,
        prompt_tokens=earlier.prompt_tokens + verdict.prompt_tokens,
        completion_tokens=earlier.completion_tokens + verdict.completion_tokens,
        cost_usd=earlier.cost_usd + verdict.cost_usd,
        lost_usd=earlier.lost_usd + verdict.lost_usd,
    )


def _written(verdict: Verdict) -> Mapping[str, Any]:
    """JSON has no NaN: what is not available is left out."""
    return {name: value for name, value in asdict(verdict).items() if not (isinstance(value, float) and math.isnan(value))}


def _read(record: Mapping[str, Any] | None) -> tuple[Verdict, bool] | None:
    """The verdict of a record, and whether it is final; None for one that another version wrote: it is asked again."""
    try:
        return Verdict(**{name: value for name, value in (record or {}).items() if name not in ("key", "final")}), bool(
            (record or {})["final"]
        )
    except (KeyError, TypeError, ValueError):
        return None
