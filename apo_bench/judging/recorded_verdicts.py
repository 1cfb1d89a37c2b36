"""Verdicts that a judge gave elsewhere, compared with people's labels: accuracy by both rules for ties, agreement beyond chance."""

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from apo_bench.data.strict_json import parse_json
from apo_bench.errors import InputError
from apo_bench.formatting import count, csv_text, number, plain, rows_of, table
from apo_bench.judging.audit import POOLED, Line, share_line
from apo_bench.judging.benchmark_rows import LabelledRow, benchmark_form, read_benchmark
from apo_bench.judging.human_preferences import read_labelled_votes
from apo_bench.judging.judge_protocol import Choice, value_of
from apo_bench.stats import agreement
from apo_bench.store import write_text
from apo_bench.types import identity

GPT_RESULTS: dict[str, Choice] = {"1": "first", "2": "second", "tie": "tie", "1.0": "first", "2.0": "second"}  # 1.0: a column of numbers
MEANINGS = {
    "accuracy, ties half": "share of the pairs that people decide on which the judge takes their side; an undecided verdict counts 1/2",
    "accuracy, ties wrong": "the same, with an undecided verdict as wrong",
    "same label": "share of all pairs, people's ties among them, with the very label that people give",
    "kappa": "Cohen's kappa of these labels",
    "consistency": "share of pairs judged in both orders whose orders agree",
    "ties": "share of undecided verdicts: a tie, or two orders that contradict each other",
    "missing": "share of pairs without a verdict that can be read; in no other line",
}


def read_recorded(path: Path, labels: Path | None = None) -> tuple[pd.DataFrame, dict[str, int]]:
    """Recorded verdicts with people's labels, and why others are left out, by reason.

    Columns: axis, cluster_id, label (a, b, tie), value_ab, value_ba, value (for a: 1, 1/2, 0; NaN missing). `path` holds rows of one of the
    forms of `benchmark_rows` with verdicts, or PandaLM's verdicts (idx, gpt_result), whose pairs with votes `labels` holds.
    Raises InputError that names file and key.
    """
    if labels is not None:
        rows: list[LabelledRow | str] = list(_pandalm(path, labels))
    elif form := benchmark_form(path):
        rows = list(read_benchmark(path, form))
    else:
        raise InputError(
            f"--verdicts {path}: none of JudgeBench's, LLMBar's, MT-Bench's and RewardBench's forms; PandaLM's verdicts need --data"
        )
    left_out: dict[str, int] = {}
    for reason in (row for row in rows if isinstance(row, str)):
        left_out[reason] = left_out.get(reason, 0) + 1
    kept = [row for row in rows if not isinstance(row, str)]
    if not any(row.verdict_ab or row.verdict_ba for row in kept):
        raise InputError(f"--verdicts {path}: no row has a verdict")
    return pd.DataFrame(map(_values, kept)), left_out


def compare_recorded(rows: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """The metrics of MEANINGS by axis and pooled: axis, metric, value, ci_low, ci_high, n, n_missing."""
    axes = sorted(rows["axis"].unique())
    parts = {axis: rows[rows["axis"] == axis] for axis in axes} | {POOLED: rows}
    lines = [(axis, *line) for axis, part in parts.items() for line in _lines(part, confidence)]
    return pd.DataFrame(lines, columns=["axis", "metric", "value", "ci_low", "ci_high", "n", "n_missing"])


def audit_recorded(path: Path, labels: Path | None, folder: Path) -> Path:
    """Write `folder`/report/recorded.md and recorded.csv; returns the former."""
    rows, left_out = read_recorded(path, labels)
    compared = compare_recorded(rows)
    cells = [
        [
            plain(row.axis),
            row.metric,
            number(row.value),
            f"{number(row.ci_low)} to {number(row.ci_high)}",
            count(row.n),
            count(row.n_missing),
        ]
        for row in rows_of(compared)
    ]
    dropped = "".join(f"; left out: {plain(reason)} {count(n)}" for reason, n in sorted(left_out.items()))
    lines = [
        f"# Recorded verdicts: {plain(path.name)}", "", *(f"- {name}: {meaning}." for name, meaning in MEANINGS.items()), "",
        *table(["axis", "metric", "value", "95 % interval", "n", "missing"], cells), "", f"{count(len(rows))} labelled pairs{dropped}.",
    ]  # fmt: skip
    write_text(folder / "report" / "recorded.csv", csv_text(compared))
    summary = folder / "report" / "recorded.md"
    write_text(summary, "\n".join(lines) + "\n")
    return summary


def _values(row: LabelledRow) -> dict[str, object]:
    ab, ba = value_of("ab", row.verdict_ab), value_of("ba", row.verdict_ba)
    known = [value for value in (ab, ba) if value == value]
    cluster = identity(*(message.content for message in row.messages[:1]))
    value = sum(known) / len(known) if known else float("nan")
    return {"axis": row.axis, "cluster_id": cluster, "label": row.label, "value_ab": ab, "value_ba": ba, "value": value}


def _lines(rows: pd.DataFrame, confidence: float) -> Iterator[Line]:
    decided = rows[rows["label"] != "tie"]
    right = decided["value"].where(decided["label"] == "a", 1 - decided["value"])
    half = right.map({0.0: 0.0, 0.25: 0.0, 0.5: 0.5, 0.75: 1.0, 1.0: 1.0})
    labels = [None if value != value else "a" if value > 0.5 else "b" if value < 0.5 else "tie" for value in rows["value"]]
    same = pd.Series(
        [float("nan") if mine is None else float(mine == label) for mine, label in zip(labels, rows["label"], strict=True)], rows.index
    )
    yield share_line("accuracy, ties half", decided, half, confidence)
    yield share_line("accuracy, ties wrong", decided, (half == 1).where(half.notna()), confidence)
    yield share_line("same label", rows, same, confidence)
    if any(labels):
        kappa = agreement(list(rows["label"]), labels, clusters=list(rows["cluster_id"]), confidence=confidence)
        yield "kappa", kappa.kappa, kappa.ci_low, kappa.ci_high, kappa.n, kappa.n_missing
    both = rows.dropna(subset=["value_ab", "value_ba"])
    if len(both):
        yield share_line("consistency", both, both["value_ab"] == both["value_ba"], confidence)
    yield share_line("ties", rows, (rows["value"] == 0.5).where(rows["value"].notna()), confidence)
    yield share_line("missing", rows, rows["value"].isna(), confidence)


def _pandalm(path: Path, labels: Path) -> Iterator[LabelledRow | str]:
    """Pairs with people's majority, and the verdict of the same idx."""
    try:
        records = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"--verdicts {path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--verdicts {path}: not readable as JSON: {error}") from None
    verdicts: dict[str, Choice | None] = {}
    if not isinstance(records, list):
        raise InputError(f"--verdicts {path}: a list of objects is needed, got {type(records).__name__}")
    for place, record in enumerate(records, 1):
        if not isinstance(record, dict) or not {"idx", "gpt_result"} <= record.keys():
            raise InputError(f"--verdicts {path}: item {place}: idx and gpt_result are needed")
        verdict, key = GPT_RESULTS.get(str(record["gpt_result"]).strip().casefold()), json.dumps(record["idx"])
        if verdicts.setdefault(key, verdict) != verdict:
            raise InputError(f"--verdicts {path}: item {place}: idx: a second, different verdict on {key:.80}")
    known: set[str] = set()
    for idx, pair in read_labelled_votes(labels):
        if (key := json.dumps(idx)) in known:
            raise InputError(f"--data {labels}: idx: {key:.80} occurs twice, so which of them a verdict is on is not known")
        known.add(key)
        if isinstance(pair, str):
            yield pair
        elif key not in verdicts:
            yield "pairs without a recorded verdict"
        else:
            yield LabelledRow(pair.prompt.axis, pair.prompt.messages, pair.a, pair.b, pair.label, verdicts[key])
    yield from ("recorded verdicts without a labelled pair" for key in verdicts if key not in known)
