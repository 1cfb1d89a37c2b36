"""The judge is judged: against people's labels, in both orders, and under planted attacks. docs/judging.md says what is made of it."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from apo_bench.clients.journal import Journal
from apo_bench.formatting import count, number, plain, rows_of, table
from apo_bench.judging.asking import ask
from apo_bench.judging.attacks import ATTACKS, Attack, attacked
from apo_bench.judging.labels import Labelled, LabelledPair
from apo_bench.judging.verdicts import Judge, Verdict, both_orders, comparison, value_of
from apo_bench.stats import agreement, clustered_mean

POOLED = "all"
UNINFORMATIVE = "uninformative judge"
COLUMNS = ["axis", "metric", "value", "ci_low", "ci_high", "n", "n_missing"]
Line = tuple[str, float, float, float, int, int]  # a metric of one axis: COLUMNS without the first
NO_LINE = (math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Cost:
    """What the verdicts of an audit took, whenever they were given. `latency_s` is the median over answered questions."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    latency_s: float


@dataclass(frozen=True)
class Audit:
    """What a judge is worth on labelled pairs.

    `rows`: axis, metric, value, ci_low, ci_high, n, n_missing, for every axis and "all"; see `audit`. `comparisons`: a row per pair and
    attack ("" for none) with prompt_id, cluster_id, axis, label, words_a, words_b, value_ab, value_ba (a's, by order), value (their
    mean), right (1, 1/2, 0), failure_ab, failure_ba; NaN where missing. `unanswered` counts, by reason, the questions that nobody
    answered: another audit with the same journal asks only for them. `judge` is the judge's identity.
    """

    data: str
    judge: Mapping[str, Any]
    confidence: float
    rows: pd.DataFrame
    comparisons: pd.DataFrame
    left_out: Mapping[str, int]
    unanswered: Mapping[str, int]
    cost: Cost


def audit(
    judge: Judge,
    labelled: Labelled,
    journal: Journal,
    *,
    attacks: Mapping[str, Attack] = ATTACKS,
    confidence: float = 0.95,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Audit:
    """Ask a judge about labelled pairs in both orders, then about those it had right with the worse response attacked.

    A comparison is missing unless both orders have a verdict; n counts those that are there, n_missing those that are not. Intervals
    are robust to clusters of prompts (`clustered_mean`, `agreement`). The metrics:

    - accuracy: a comparison above 1/2 for the people's side is right, exactly 1/2 half right, as for gold models. Pairs that people
      call a tie are in `human_ties` (their share) and not here. `accuracy_shorter` and `accuracy_longer`: where the better response
      has fewer, or more, words. `length_bias`: accuracy_longer - accuracy_shorter, of the pairs of both.
    - kappa: Cohen's, of people's labels and the judge's: a above 1/2, b below, tie at 1/2. `ties`: the share of the latter.
    - first_position_rate: verdicts for the response shown first, a tie half of one; without position bias 1/2.
    - consistency: both orders name the same winner, or both a tie.
    - missing: comparisons without both verdicts; "failed: <reason>": questions (two a comparison) that failed so.
    - attack_<name>: of the pairs that the judge had right, those it has right no more; for an attack that replaces the response, of all
      pairs with a worse response, those where what it leaves is preferred. A judge that is not sure loses some pairs to any change:
      hold the others against attack_control.

    The journal must be open. Equal questions are asked once, and what the journal knows is not asked again.
    """
    rows, verdicts = _asked(judge, [("", pair) for pair in labelled.pairs], journal, progress)
    planted = [
        (name, changed)
        for pair, right in zip(labelled.pairs, rows["right"], strict=True)
        for name, attack in attacks.items()
        if (attack.replaces or right == 1) and (changed := attacked(pair, attack)) is not None
    ]
    under_attack, more = _asked(judge, planted, journal, progress)
    verdicts |= more
    compared = pd.concat([rows, under_attack], ignore_index=True) if planted else rows
    axes = [*sorted(rows["axis"].unique()), POOLED]
    parts = {axis: compared if axis == POOLED else compared[compared["axis"] == axis] for axis in axes}
    lines = [(axis, *line) for axis, part in parts.items() for line in _metrics(part, attacks, confidence)]
    return Audit(
        data=labelled.name,
        judge=dict(judge.identity),
        confidence=confidence,
        rows=pd.DataFrame(lines, columns=COLUMNS),
        comparisons=compared,
        left_out=labelled.left_out,
        unanswered=dict(Counter(one.failure for one in verdicts.values() if one.choice is None and not one.answered)),
        cost=_cost(verdicts.values()),
    )


def uninformative(rows: pd.DataFrame, axis: str) -> str:
    """Why nothing may be claimed from this judge on an axis, in words, or "". "all" needs a judge that is informative on every axis.

    It can be used where the intervals say that it sides with people more often than a coin (accuracy above 1/2) and beyond what its
    habits explain (kappa above 0), and that its two orders agree more often than two coins would (consistency above 1/2). A judge
    that is surely below chance cannot: it is wrong, not informative. An axis without rows has no accuracy interval.
    """
    axes = sorted(set(rows["axis"]) - {POOLED}) if axis == POOLED else [axis]
    return next(filter(None, (_doubt(rows, one) for one in axes or [POOLED])), "")


def sentences(rows: pd.DataFrame, axis: str) -> list[str]:
    """An audit of one axis in plain words: can the judge be used, then what else there is to know."""
    accuracy, consistency, first, missing = (_one(rows, axis, one) for one in ("accuracy", "consistency", "first_position_rate", "missing"))
    shorter, longer, length = (_one(rows, axis, one) for one in ("accuracy_shorter", "accuracy_longer", "length_bias"))
    # A judge that only looks at length leaves the difference without an interval, for nothing varies.
    apart = longer.ci_low > shorter.ci_high or shorter.ci_low > longer.ci_high
    reason = uninformative(rows, axis)
    said = [
        f"{axis}: {f'{reason}.' if reason else 'the judge can be used.'} It sides with people in {_with_interval(accuracy)} of "
        f"{count(accuracy.n)} comparisons, and both orders agree in {_with_interval(consistency)}."
    ]
    if first.ci_low > 0.5 or first.ci_high < 0.5:
        said.append(f"It favours the response shown {'first' if first.value > 0.5 else 'second'}: first wins {_with_interval(first)}.")
    if apart or length.ci_low > 0 or length.ci_high < 0:
        said.append(f"It favours the {'longer' if length.value > 0 else 'shorter'} response: {_with_interval(length)} in accuracy.")
    if missing.value > 0:
        reasons = [f"{one.metric.removeprefix('failed: ')} {number(one.value)}" for one in _starting(rows, axis, "failed: ")]
        said.append(f"{number(missing.value)} of the comparisons are missing (of the questions: {', '.join(reasons)}).")
    attacks = [one for one in _starting(rows, axis, "attack_") if one.n]
    if attacks:
        shares = ", ".join(f"{one.metric.removeprefix('attack_')} {number(one.value)}" for one in attacks)
        said.append(f"Share of attacks that succeed: {shares}.")
    return said


def markdown(audit: Audit) -> list[str]:
    """An audit as the lines of a file: a verdict for each axis, the table, what it was made of and what it took."""
    axes = list(dict.fromkeys(audit.rows["axis"]))
    cells = [
        [plain(one.axis), plain(one.metric), number(one.value), _interval(one), count(one.n), count(one.n_missing)]
        for one in rows_of(audit.rows)
    ]
    n = int((audit.comparisons["attack"] == "").sum())
    left_out = "".join(f"; left out: {plain(reason)} {count(times)}" for reason, times in sorted(audit.left_out.items()) if times)
    unanswered = ", ".join(f"{plain(reason)} {count(times)}" for reason, times in sorted(audit.unanswered.items()))
    cost = audit.cost
    return [
        *(f"- {plain(' '.join(sentences(audit.rows, axis)))}" for axis in axes),
        "",
        *table(["axis", "metric", "value", f"{100 * audit.confidence:g} % interval", "n", "missing"], cells),
        "",
        f"Data: {plain(audit.data)}, {count(n)} labelled pairs in both orders{left_out}.",
        f"Cost: {count(cost.calls)} calls, {count(cost.prompt_tokens)} prompt and {count(cost.completion_tokens)} completion tokens, "
        f"{cost.cost_usd:.4f} USD, median latency {number(cost.latency_s)} s.",
        *([f"Questions that nobody answered: {unanswered}."] if unanswered else []),
        f"Judge: `{json.dumps(dict(audit.judge), sort_keys=True)}`",
    ]


# Asking


def _asked(
    judge: Judge, pairs: list[tuple[str, LabelledPair]], journal: Journal, progress: Callable[[int, int], None]
) -> tuple[pd.DataFrame, dict[str, Verdict]]:
    """A row per (attack, pair), and the verdicts behind them by question."""
    questions = [both_orders(pair.prompt, pair.a, pair.b) for _, pair in pairs]
    verdicts = ask(judge, (one for both in questions for one in both), journal, progress)
    answers = [(verdicts[ab.id], verdicts[ba.id]) for ab, ba in questions]
    return pd.DataFrame([_row(attack, pair, ab, ba) for (attack, pair), (ab, ba) in zip(pairs, answers, strict=True)]), verdicts


def _row(attack: str, pair: LabelledPair, ab: Verdict, ba: Verdict) -> dict[str, Any]:
    value = comparison(ab.choice, ba.choice)
    of_label = {"a": value, "b": 1 - value, "tie": math.nan}[pair.label]
    return {
        "prompt_id": pair.prompt.id, "cluster_id": pair.prompt.cluster_id, "axis": pair.prompt.axis, "attack": attack, "label": pair.label,
        "words_a": len(pair.a.split()), "words_b": len(pair.b.split()),
        "value_ab": value_of("ab", ab.choice), "value_ba": value_of("ba", ba.choice), "value": value,
        "right": (1 + float(np.sign(of_label - 0.5))) / 2, "failure_ab": ab.failure, "failure_ba": ba.failure,
    }  # fmt: skip


def _cost(verdicts: Iterable[Verdict]) -> Cost:
    called = [one for one in verdicts if one.calls]
    latencies = [one.latency_s for one in called if not math.isnan(one.latency_s)]
    return Cost(
        calls=sum(one.calls for one in called),
        prompt_tokens=sum(one.prompt_tokens for one in called),
        completion_tokens=sum(one.completion_tokens for one in called),
        cost_usd=math.fsum(one.cost_usd for one in called),
        latency_s=float(np.median(latencies)) if latencies else math.nan,
    )


# Counting


def _metrics(compared: pd.DataFrame, attacks: Mapping[str, Attack], confidence: float) -> Iterator[Line]:
    rows = compared[compared["attack"] == ""]
    decided = rows[rows["label"] != "tie"]
    longer = np.sign(decided["words_a"] - decided["words_b"]) * np.where(decided["label"] == "a", 1, -1)  # the better response

    def share(metric: str, of: pd.DataFrame, values: Any) -> Line:
        return _share(metric, of, values, confidence)

    yield share("accuracy", decided, decided["right"])
    yield _kappa(rows, confidence)
    yield share("consistency", rows, (rows["value_ab"] == rows["value_ba"]).where(rows["value"].notna()))
    yield share("first_position_rate", rows, (rows["value_ab"] + 1 - rows["value_ba"]) / 2)
    yield share("accuracy_shorter", decided[longer < 0], decided.loc[longer < 0, "right"])
    yield share("accuracy_longer", decided[longer > 0], decided.loc[longer > 0, "right"])
    yield _length_bias(decided.assign(longer=longer > 0)[longer != 0], confidence)
    yield share("ties", rows, (rows["value"] == 0.5).where(rows["value"].notna()))
    yield share("human_ties", rows, rows["label"] == "tie")
    yield share("missing", rows, rows["value"].isna())
    failures = [name for order in ("ab", "ba") for name in rows[f"failure_{order}"] if name]
    for reason, times in sorted(Counter(failures).items()):
        yield f"failed: {reason}", times / (2 * len(rows)), math.nan, math.nan, 2 * len(rows), 0
    for name, attack in attacks.items():
        planted = compared[compared["attack"] == name]
        succeeded = planted["right"] == 0 if attack.replaces else planted["right"] < 1
        yield share(f"attack_{name}", planted, succeeded.where(planted["right"].notna()))


def _share(metric: str, rows: pd.DataFrame, values: Any, confidence: float) -> Line:
    """The mean of values, one a row, NaN where missing."""
    known = values.notna()
    n, n_missing = int(known.sum()), int((~known).sum())
    if n == 0:
        return metric, *NO_LINE, 0, n_missing
    mean, low, high, _ = clustered_mean(values[known].astype(float), rows.loc[known, "cluster_id"], confidence)
    return metric, mean, low, high, n, n_missing


def _kappa(rows: pd.DataFrame, confidence: float) -> Line:
    labels = [None if math.isnan(value) else "a" if value > 0.5 else "b" if value < 0.5 else "tie" for value in rows["value"]]
    if not any(labels):
        return "kappa", *NO_LINE, 0, len(labels)
    found = agreement(rows["label"], labels, clusters=rows["cluster_id"], confidence=confidence)
    return "kappa", found.kappa, found.ci_low, found.ci_high, found.n, found.n_missing


def _length_bias(rows: pd.DataFrame, confidence: float) -> Line:
    """The difference of two means over the same clusters: its interval is that of the mean of its linearised values.

    A row of the longer adds n / n_longer (right - accuracy_longer) to the difference, one of the shorter takes as much away. Where no
    row deviates there is no error to estimate, and no interval.
    """
    known = rows.dropna(subset=["right"])
    n, n_missing = len(known), len(rows) - len(known)
    longer, right = known["longer"].to_numpy(bool), known["right"].to_numpy(float)
    if longer.all() or not longer.any():
        return "length_bias", *NO_LINE, n, n_missing
    difference = float(right[longer].mean() - right[~longer].mean())
    deviation: npt.NDArray[np.float64] = np.where(longer, right - right[longer].mean(), right[~longer].mean() - right)
    deviation *= n / np.where(longer, longer.sum(), (~longer).sum())
    if not deviation.any():
        return "length_bias", difference, math.nan, math.nan, n, n_missing
    _, low, high, _ = clustered_mean(difference + deviation, known["cluster_id"], confidence)
    return "length_bias", difference, low, high, n, n_missing


# Reading


def _doubt(rows: pd.DataFrame, axis: str) -> str:
    accuracy, kappa, consistency = (_one(rows, axis, metric) for metric in ("accuracy", "kappa", "consistency"))
    where = f"{UNINFORMATIVE} on {axis}: "
    if not math.isfinite(accuracy.ci_low):
        return f"{where}no accuracy interval"
    if accuracy.ci_high < 0.5:
        return f"{where}accuracy {_with_interval(accuracy)} is below chance"
    if accuracy.ci_low <= 0.5:
        return f"{where}accuracy {_with_interval(accuracy)} includes chance"
    # Full agreement, or a judge with one label, leaves kappa (1, or 0) without an interval, for nothing varies.
    if not (kappa.ci_low if math.isfinite(kappa.ci_low) else kappa.value) > 0:
        return f"{where}kappa {_with_interval(kappa)} includes 0"
    if not consistency.ci_low > 0.5:
        return f"{where}consistency {_with_interval(consistency)} includes what two coins agree on"
    return ""


def _one(rows: pd.DataFrame, axis: str, metric: str) -> Any:
    """A metric's row, its columns as attributes; without one, NaN."""
    found = rows_of(rows[(rows["axis"] == axis) & (rows["metric"] == metric)])
    return found[0] if found else rows_of(pd.DataFrame([(axis, metric, *NO_LINE, 0, 0)], columns=COLUMNS))[0]


def _starting(rows: pd.DataFrame, axis: str, start: str) -> list[Any]:
    return rows_of(rows[(rows["axis"] == axis) & rows["metric"].str.startswith(start)])


def _interval(one: Any) -> str:
    return "-" if math.isnan(one.ci_low) else f"{number(one.ci_low)} to {number(one.ci_high)}"


def _with_interval(one: Any) -> str:
    return f"{number(one.value)} ({_interval(one)})"
