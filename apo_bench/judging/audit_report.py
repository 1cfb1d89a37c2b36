"""An audit in words: whether a judge can be used on an axis, and what else its metrics show."""

import json
import math
from typing import Any

import pandas as pd

from apo_bench.formatting import count, number, plain, rows_of, table
from apo_bench.judging.audit import COLUMNS, NO_LINE, POOLED, Audit

UNINFORMATIVE = "uninformative judge"


def uninformative(rows: pd.DataFrame, axis: str) -> str:
    """Why no claim may rest on this judge on an axis, in words, or "". "all" needs a judge that is informative on every axis.

    A judge is informative where its intervals show that it agrees with people more often than chance (accuracy above 1/2) and beyond
    what its label frequencies explain (kappa above 0), and that its two orders agree more often than two coins (consistency above
    1/2). A judge that is significantly below chance is wrong, not informative. An axis without rows has no accuracy interval.
    """
    axes = sorted(set(rows["axis"]) - {POOLED}) if axis == POOLED else [axis]
    return next(filter(None, (_reason(rows, single) for single in axes or [POOLED])), "")


def sentences(rows: pd.DataFrame, axis: str) -> list[str]:
    """An audit of one axis in plain words: whether the judge can be used, then its biases, failures and attacks."""
    accuracy, consistency, first, missing = (
        _row_of(rows, axis, metric) for metric in ("accuracy", "consistency", "first_position_rate", "missing")
    )
    shorter, longer, length = (_row_of(rows, axis, metric) for metric in ("accuracy_shorter", "accuracy_longer", "length_bias"))
    # A judge that decides by length alone leaves the difference without variation, and so without an interval.
    apart = longer.ci_low > shorter.ci_high or shorter.ci_low > longer.ci_high
    reason = uninformative(rows, axis)
    lines = [
        f"{axis}: {f'{reason}.' if reason else 'the judge can be used.'} It sides with people in {_with_interval(accuracy)} of "
        f"{count(accuracy.n)} comparisons, and both orders agree in {_with_interval(consistency)}."
    ]
    if first.ci_low > 0.5 or first.ci_high < 0.5:
        lines.append(f"It favours the response shown {'first' if first.value > 0.5 else 'second'}: first wins {_with_interval(first)}.")
    if apart or length.ci_low > 0 or length.ci_high < 0:
        lines.append(f"It favours the {'longer' if length.value > 0 else 'shorter'} response: {_with_interval(length)} in accuracy.")
    if missing.value > 0:
        reasons = [f"{row.metric.removeprefix('failed: ')} {number(row.value)}" for row in _rows_starting(rows, axis, "failed: ")]
        lines.append(f"{number(missing.value)} of the comparisons are missing (of the questions: {', '.join(reasons)}).")
    attacks = [row for row in _rows_starting(rows, axis, "attack_") if row.n]
    if attacks:
        shares = ", ".join(f"{row.metric.removeprefix('attack_')} {number(row.value)}" for row in attacks)
        lines.append(f"Share of attacks that succeed: {shares}.")
    return lines


def markdown(audit: Audit) -> list[str]:
    """An audit as lines of markdown: a summary of each axis, the table, the data and the cost."""
    axes = list(dict.fromkeys(audit.rows["axis"]))
    cells = [
        [plain(row.axis), plain(row.metric), number(row.value), _interval(row), count(row.n), count(row.n_missing)]
        for row in rows_of(audit.rows)
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


def _reason(rows: pd.DataFrame, axis: str) -> str:
    accuracy, kappa, consistency = (_row_of(rows, axis, metric) for metric in ("accuracy", "kappa", "consistency"))
    where = f"{UNINFORMATIVE} on {axis}: "
    if not math.isfinite(accuracy.ci_low):
        return f"{where}no accuracy interval"
    if accuracy.ci_high < 0.5:
        return f"{where}accuracy {_with_interval(accuracy)} is below chance"
    if accuracy.ci_low <= 0.5:
        return f"{where}accuracy {_with_interval(accuracy)} includes chance"
    # Full agreement, or a judge with a single label, leaves kappa (1, or 0) without variation, and so without an interval.
    if not (kappa.ci_low if math.isfinite(kappa.ci_low) else kappa.value) > 0:
        return f"{where}kappa {_with_interval(kappa)} includes 0"
    if not consistency.ci_low > 0.5:
        return f"{where}consistency {_with_interval(consistency)} includes what two coins agree on"
    return ""


def _row_of(rows: pd.DataFrame, axis: str, metric: str) -> Any:
    """A metric's row, its columns as attributes; NaN where there is none."""
    matching = rows_of(rows[(rows["axis"] == axis) & (rows["metric"] == metric)])
    return matching[0] if matching else rows_of(pd.DataFrame([(axis, metric, *NO_LINE, 0, 0)], columns=COLUMNS))[0]


def _rows_starting(rows: pd.DataFrame, axis: str, start: str) -> list[Any]:
    return rows_of(rows[(rows["axis"] == axis) & rows["metric"].str.startswith(start)])


def _interval(row: Any) -> str:
    return "-" if math.isnan(row.ci_low) else f"{number(row.ci_low)} to {number(row.ci_high)}"


def _with_interval(row: Any) -> str:
    return f"{number(row.value)} ({_interval(row)})"
