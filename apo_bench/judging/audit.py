"""The audit of a judge: its verdicts on pairs labelled by people, in both orders and under planted attacks, and their metrics."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from apo_bench.clients.journal import Journal
from apo_bench.judging.ask_judges import ask
from apo_bench.judging.attacks import ATTACKS, Attack, attacked
from apo_bench.judging.human_preferences import Labelled, LabelledPair
from apo_bench.judging.judge_protocol import Judge, Verdict, both_orders, mean_of_orders, value_of
from apo_bench.stats import agreement, clustered_mean, clustered_share
from apo_bench.tables import TABLES

POOLED = "all"
COLUMNS = list(TABLES["judge_audit"].names[1:])  # of one judge's audit
Line = tuple[str, float, float, float, int, int]  # a metric of one axis: COLUMNS without the first
NO_LINE = (math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Cost:
    """What the verdicts of an audit cost, in this run or an earlier one. `latency_s` is the median over answered questions."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    latency_s: float


@dataclass(frozen=True)
class Audit:
    """A judge's verdicts on labelled pairs, and their metrics.

    `rows`: axis, metric, value, ci_low, ci_high, n, n_missing, for every axis and "all"; see `audit`. `comparisons`: a row per pair and
    attack ("" for none) with prompt_id, cluster_id, axis, label, words_a, words_b, value_ab, value_ba (for a, by order), value (their
    mean), right (1, 1/2, 0), failure_ab, failure_ba; NaN where missing. `unanswered` counts, by reason, the questions that nobody
    answered: another audit with the same journal asks only for these. `judge` is the judge's identity.
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
    """Ask a judge about labelled pairs in both orders, then about those it got right, with the worse response attacked.

    A comparison is missing unless both orders have a verdict; n counts the comparisons with a value, n_missing the others. Intervals
    are robust to clusters of prompts (`clustered_share`, `agreement`). The metrics:

    - accuracy: a comparison above 1/2 for the side that people prefer is right, exactly 1/2 half right, as for gold models. Pairs that
      people call a tie count in `human_ties` (their share) only. `accuracy_shorter` and `accuracy_longer`: accuracy where the better
      response has fewer, or more, words. `length_bias`: accuracy_longer - accuracy_shorter, over the pairs of both.
    - kappa: Cohen's kappa of people's labels and the judge's: a above 1/2, b below, tie at 1/2. `ties`: the share of the latter.
    - first_position_rate: share of verdicts for the response shown first, a tie counting half; 1/2 without position bias.
    - consistency: share of comparisons in which both orders name the same winner, or both a tie.
    - missing: share of comparisons without both verdicts; "failed: <reason>": share of questions (two a comparison) with that failure.
    - attack_<name>: of the pairs that the judge got right, the share it no longer gets right; for an attack that replaces the response,
      of all pairs with a worse response, the share in which the replacement is preferred. An unsure judge changes some verdicts after
      any change of a response: compare with attack_control.

    The journal must be open. Equal questions are asked once, and answers in the journal are not asked for again.
    """
    rows, verdicts = _ask_about(judge, [("", pair) for pair in labelled.pairs], journal, progress)
    planted = [
        (name, changed)
        for pair, right in zip(labelled.pairs, rows["right"], strict=True)
        for name, attack in attacks.items()
        if (attack.replaces or right == 1) and (changed := attacked(pair, attack)) is not None
    ]
    attack_rows, attack_verdicts = _ask_about(judge, planted, journal, progress)
    verdicts |= attack_verdicts
    compared = pd.concat([rows, attack_rows], ignore_index=True) if planted else rows
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
        unanswered=dict(Counter(verdict.failure for verdict in verdicts.values() if verdict.choice is None and not verdict.answered)),
        cost=_cost(verdicts.values()),
    )


# Asking


def _ask_about(
    judge: Judge, pairs: list[tuple[str, LabelledPair]], journal: Journal, progress: Callable[[int, int], None]
) -> tuple[pd.DataFrame, dict[str, Verdict]]:
    """A row per (attack, pair), and the verdicts behind them by question."""
    questions = [both_orders(pair.prompt, pair.a, pair.b) for _, pair in pairs]
    verdicts = ask(judge, (question for orders in questions for question in orders), journal, progress)
    answers = [(verdicts[ab.id], verdicts[ba.id]) for ab, ba in questions]
    return pd.DataFrame([_row(attack, pair, ab, ba) for (attack, pair), (ab, ba) in zip(pairs, answers, strict=True)]), verdicts


def _row(attack: str, pair: LabelledPair, ab: Verdict, ba: Verdict) -> dict[str, Any]:
    value = mean_of_orders(ab.choice, ba.choice)
    label_value = {"a": value, "b": 1 - value, "tie": math.nan}[pair.label]
    return {
        "prompt_id": pair.prompt.id, "cluster_id": pair.prompt.cluster_id, "axis": pair.prompt.axis, "attack": attack, "label": pair.label,
        "words_a": len(pair.a.split()), "words_b": len(pair.b.split()),
        "value_ab": value_of("ab", ab.choice), "value_ba": value_of("ba", ba.choice), "value": value,
        "right": (1 + float(np.sign(label_value - 0.5))) / 2, "failure_ab": ab.failure, "failure_ba": ba.failure,
    }  # fmt: skip


def _cost(verdicts: Iterable[Verdict]) -> Cost:
    called = [verdict for verdict in verdicts if verdict.calls]
    latencies = [verdict.latency_s for verdict in called if not math.isnan(verdict.latency_s)]
    return Cost(
        calls=sum(verdict.calls for verdict in called),
        prompt_tokens=sum(verdict.prompt_tokens for verdict in called),
        completion_tokens=sum(verdict.completion_tokens for verdict in called),
        cost_usd=math.fsum(verdict.cost_usd for verdict in called),
        latency_s=float(np.median(latencies)) if latencies else math.nan,
    )


# Metrics


def _metrics(compared: pd.DataFrame, attacks: Mapping[str, Attack], confidence: float) -> Iterator[Line]:
    rows = compared[compared["attack"] == ""]
    decided = rows[rows["label"] != "tie"]
    longer = np.sign(decided["words_a"] - decided["words_b"]) * np.where(decided["label"] == "a", 1, -1)  # the better response

    def share(metric: str, of: pd.DataFrame, values: Any) -> Line:
        return share_line(metric, of, values, confidence)

    yield share("accuracy", decided, decided["right"])
    yield _kappa(rows, confidence)
    yield share("consistency", rows, (rows["value_ab"] == rows["value_ba"]).where(rows["value"].notna()))
    yield share("first_position_rate", rows, (rows["value_ab"] + 1 - rows["value_ba"]) / 2)
    yield share("accuracy_shorter", decided[longer < 0], decided.loc[longer < 0, "right"])
    yield share("accuracy_longer", decided[longer > 0], decided.loc[longer > 0, "right"])
    yield length_bias_line(decided.assign(longer=longer > 0)[longer != 0], confidence)
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


def share_line(metric: str, rows: pd.DataFrame, values: Any, confidence: float) -> Line:
    """The mean of the values of `rows`, shares in [0, 1], NaN where missing."""
    return _line(metric, rows, values, confidence, clustered_share)


def mean_line(metric: str, rows: pd.DataFrame, values: Any, confidence: float) -> Line:
    """The mean of any values of `rows`, NaN where missing."""
    return _line(metric, rows, values, confidence, clustered_mean)


def _line(metric: str, rows: pd.DataFrame, values: Any, confidence: float, mean_of: Callable[..., tuple[float, float, float, int]]) -> Line:
    known = values.notna()
    n, n_missing = int(known.sum()), int((~known).sum())
    if n == 0:
        return metric, *NO_LINE, 0, n_missing
    mean, low, high, _ = mean_of(values[known].astype(float), rows.loc[known, "cluster_id"], confidence)
    return metric, mean, low, high, n, n_missing


def _kappa(rows: pd.DataFrame, confidence: float) -> Line:
    labels = [None if math.isnan(value) else "a" if value > 0.5 else "b" if value < 0.5 else "tie" for value in rows["value"]]
    if not any(labels):
        return "kappa", *NO_LINE, 0, len(labels)
    kappa = agreement(rows["label"], labels, clusters=rows["cluster_id"], confidence=confidence)
    return "kappa", kappa.kappa, kappa.ci_low, kappa.ci_high, kappa.n, kappa.n_missing


def length_bias_line(rows: pd.DataFrame, confidence: float) -> Line:
    """The difference of two means over the same clusters; its interval is that of the mean of its linearised values.

    A row with the longer response better contributes n / n_longer (right - accuracy_longer), one with the shorter the negative
    equivalent. Without any deviation there is no error to estimate, and no interval.
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
