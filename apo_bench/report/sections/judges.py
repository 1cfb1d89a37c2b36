"""Win rates by judges, which verdicts are missing and why, and how far the judges can be trusted."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from apo_bench.analysis.results import POOLED, Run
from apo_bench.analysis.win_rates import NOT_AUDITED, uninformative_judge
from apo_bench.formatting import Row as NamedRow
from apo_bench.formatting import count, rows_of
from apo_bench.report.charts import Estimate, Forest, ForestPanel
from apo_bench.report.document import Block, Bullets, Section
from apo_bench.report.sections.across_judges import across_section, ranking_section
from apo_bench.report.sections.contrasts import span, without_copies
from apo_bench.report.tables import CI, Cell, Column, Paper, Row, Table, column, footnotes, interval, pair_column, text_column
from apo_bench.report.text import Text, names, say

MEANINGS = {  # of the main table's columns
    "win rate": "share of comparisons that the first arm wins, with its 95 % interval; each is asked in both orders and is the mean of "
    "both verdicts, 1 for a win, 1/2 for a tie, 0 for a loss; clusters of prompts weigh alike",
    "p": "two-sided, against 1/2, not adjusted",
    "n": "comparisons used: those of prompts that have one in every seed",
    "missing": "comparisons without both verdicts; in brackets the win rate had the first arm lost, or won, every missing verdict",
    "inconsistent": "share of comparisons whose two orders name different winners, a tie against a win among them",
    "first": "share of verdicts for the response that was shown first, ties 1/2; 1/2 is no bias for a position",
    "ties": "share of comparisons that come out at exactly 1/2: two ties, or two orders that contradict each other",
    "longer by": "mean length of the first arm's responses less that of the second's, in tokens",
    "equal length": "win rate had both responses been equally long, by a logistic model of the kind that AlpacaEval 2 uses, comparisons "
    "weighing alike: a sensitivity analysis, as length is part of what an arm does",
    "disagree is tie": "win rate if a response wins only where both orders name it, and all else is a tie",
}
QUALITIES = {  # of an audit: the column, its metric, and what it means
    "accuracy": ("accuracy", "share of pairs on which the judge prefers what people prefer, undecided 1/2; chance is 1/2"),
    "kappa": ("kappa", "Cohen's kappa with people's labels, their ties among them; chance is 0"),
    "consistent": ("consistency", "share of pairs whose two orders agree; two coins do so in 1/2"),
    "first": ("first_position_rate", "share of verdicts for the response shown first, ties 1/2; 1/2 is no bias"),
    "better is shorter": ("accuracy_shorter", "accuracy where people prefer the response with fewer words"),
    "better is longer": ("accuracy_longer", "accuracy where they prefer the one with more"),
    "length bias": ("length_bias", "the latter less the former"),
    "missing": ("missing", "share of pairs without both verdicts"),
}
DRAWN = {  # of an audit, on the page: metric, label, chance
    "accuracy": ("Prefers what people prefer", 0.5), "consistency": ("Both orders agree", 0.5),
    "first_position_rate": ("Prefers what is shown first", 0.5), "kappa": ("Kappa with people", 0.0),
}  # fmt: skip
ATTACK, DOUBT = "attack_", "not to be relied on"
ATTACKS = (
    "Attacks on the worse response, all axes. Succeeds: share of the pairs that the judge had right and no longer has; where the attack "
    "replaces the response (empty), share of all pairs on which what it leaves is preferred. Control changes next to nothing: its success "
    "is the judge's own unsteadiness."
)
PAPER_ROWS = 40  # rows beyond which a paper's table of win rates shows the pooled axes only


def section(run: Run, frames: Mapping[str, pd.DataFrame]) -> Section:
    """Everything about judges; empty where none was asked."""
    if "judged" not in frames:
        return Section("Judged", [])
    rates, audit = frames["judged"], frames["judge_audit"]
    trust = trust_section(audit, sorted(rates["judge"].unique()), frames["judges_agreement"], frames["judges_against_scores"])
    together = [across_section(frames["across_judges"]), ranking_section(frames["judge_ranking"])]
    shown = [part for part in together if part.blocks]
    return Section("Judged", [*forests(rates, audit), *win_rate_blocks(rates), *shown, *_unread(run), trust])


def win_rate_blocks(rates: pd.DataFrame) -> list[Block]:
    """Win rates by pair, axis and judge (`win_rates.win_rates`), what the columns mean, and which verdicts are missing and why."""
    if rates.empty:
        return [say("No verdict was recorded.")]
    shown = without_copies(rates)
    mark, legend = footnotes(shown, _note)
    columns = [
        pair_column("pair", "over", paper=True), text_column("axis"), text_column("judge"), text_column("round"),
        column("win rate", "win_rate", ends=CI, paper=True), column("p", "p_value", "probability", paper=True),
        column("n", "n_comparisons", "count", paper=True), text_column("seeds", "n_seeds"), text_column("clusters", "n_clusters"),
        Column("missing", _missing_cell), column("inconsistent", "inconsistency_rate"), column("first", "first_position_rate"),
        column("ties", "tie_share"), _tokens("longer by", "length_difference"),
        column("equal length", "lc_win_rate", ends=("lc_low", "lc_high"), paper=True),
        column("disagree is tie", "agreed_win_rate", ends=("agreed_low", "agreed_high")), mark,
    ]  # fmt: skip
    meanings = [say(f"{name}: {meaning}.") for name, meaning in MEANINGS.items()]
    pooled_only = len(rates) > PAPER_ROWS or rates["axis"].nunique() <= 2  # a single axis and its copy
    paper = Paper(
        lambda row: row["axis"] == POOLED or not pooled_only,
        lambda row: f"{row['judge']}, {'all axes pooled' if row['axis'] == POOLED else row['axis']}",
        _paper_note(rates[rates["axis"] == POOLED] if pooled_only else rates),
    )
    table = Table(shown, columns, "Win rates, by judge", legend=[*meanings, *legend], name="judged", paper=paper)
    return [table, *_missing_section(shown)]


def _paper_note(rates: pd.DataFrame) -> Text:
    doubted = sorted({str(row.judge) for row in rows_of(rates) if isinstance(row.informative, str) and row.informative})
    return say(
        f"{span(rates['n_seeds'])} seeds, {span(rates['n_clusters'])} clusters of prompts; n: comparisons, each in both orders, a tie one "
        "half. Interval and p: {tests}. Equal length: the win rate that is left where both answers are equally long.{doubt}",
        tests=names(dict.fromkeys(rates["test"]), "; "),
        doubt=say(" No better than chance, or not shown to be: {judges}.", judges=names(doubted)) if doubted else (),
    )


def _unread(run: Run) -> list[Section]:
    """An answer without a verdict of each judge and kind, so that a reader sees whether the judge or its reading is at fault."""
    quotes = [
        say("{judge}, {reason}: \u201c{text}\u201d", judge=judge, reason=reason, text=" ".join(str(text).split()))
        for judge, facts in sorted((run.manifest.get("judges") or {}).items())
        for reason, text in sorted((facts.get("unread") or {}).items())
    ]
    return [Section("Answers without a verdict", [say("Of each kind one, as the judge gave it:"), Bullets(quotes)])] if quotes else []


def _missing_cell(row: Row) -> Cell:
    bounds = interval(row["worst_low"], row["worst_high"], "number") if row["n_missing"] else None
    return say(f"{count(row['n_missing'])}{f' ({bounds.text})' if bounds else ''}")


def _tokens(head: str, key: str) -> Column:
    return Column(head, lambda row: None if math.isnan(row[key]) else say(f"{row[key]:+.1f}"))


def _note(row: Row) -> Text:
    """The test and scope of a row and whatever else limits it."""
    parts = [f"Test: {row['test']}", f"Scope: {row['scope']}", row["note"]]
    if math.isnan(row["lc_win_rate"]) and not math.isnan(row["win_rate"]):
        parts.append(f"No win rate at equal length: {row['lc_note']}")
    if row["informative"] == NOT_AUDITED:
        parts.append(f"The judge was {NOT_AUDITED}")
    return say("{text}.", text=". ".join(filter(None, parts)))


def _missing_section(rates: pd.DataFrame) -> list[Section]:
    missing = rates[rates["missing_why"] != ""]
    if missing.empty:
        return []
    columns = [
        pair_column("pair", "over"), text_column("axis"), text_column("judge"), column("first arm shown first", "missing_first_a", "count"),
        column("second arm shown first", "missing_first_b", "count"), text_column("why", "missing_why"),
        _tokens("longer by, where missing", "missing_length_difference"), _tokens("longer by", "length_difference"),
    ]  # fmt: skip
    note = (
        "Verdicts, two a comparison. A missing verdict belongs to both responses: the table shows which was shown first, why there is none "
        "(not asked: no such row, though another seed has one), and whether lengths differ more there."
    )
    return [Section("Missing verdicts", [Table(missing, columns, "Missing verdicts", say(note))])]


# --- trust --------------------------------------------------------------------------------------------------------------------


def trust_section(audit: pd.DataFrame, judges: Sequence[str], between: pd.DataFrame, against: pd.DataFrame) -> Section:
    """How far the judges can be trusted: their audit on people's labels and attacks, each other, and the scores.

    `audit`: judge, axis, metric, value, ci_low, ci_high, n, n_missing. `between`, `against`: frames of `win_rates.judge_agreement` and
    `judge_score_agreement` with a column `informative`. Either may be empty.
    """
    blocks: list[Block] = [*_audit_blocks(audit, judges), *_attack_blocks(audit[audit["judge"].isin(list(judges))])]
    intervals = "Intervals are robust to clusters of prompts."
    if len(between):
        columns = [
            Column("judges", lambda row: say("{judge}, {other}", judge=row["judge"], other=row["other"])), text_column("axis"),
            column("kappa", ends=CI), column("same label", "raw", ends=("raw_low", "raw_high")),
            column("n", form="count"), column("missing", "n_missing", "count"), text_column("note"), text_column(DOUBT, "informative"),
        ]  # fmt: skip
        note = (
            "Comparisons that both judges were asked, each a win of the first arm, a tie or a loss; missing: without both orders' verdicts "
            f"from both. Kappa: agreement beyond chance, which is 0. {intervals}"
        )
        blocks.append(Table(without_copies(between), columns, "Agreement of judges", say(note)))
    if len(against):
        columns = [
            text_column("judge"), text_column("scorer"), text_column("axis"), column("same winner", "agree", ends=CI),
            column("n", form="count"), column("equal scores", "n_equal", "count"), column("missing", "n_missing", "count"),
            text_column(DOUBT, "informative"),
        ]  # fmt: skip
        note = (
            "Same winner: share of comparisons on which the judge prefers the response with the higher score, undecided 1/2; chance is "
            f"1/2. Equal scores name no winner and are left out. {intervals}"
        )
        blocks.append(Table(without_copies(against), columns, "Judges against scores", say(note)))
    return Section(f"How far the {'judge' if len(judges) == 1 else 'judges'} can be trusted", blocks)


def _audit_blocks(audit: pd.DataFrame, judges: Sequence[str]) -> list[Block]:
    rows = []
    for judge in judges:
        own = audit[audit["judge"] == judge]
        axes = [axis for axis in dict.fromkeys(own["axis"]) if axis != POOLED]
        for axis in axes if len(axes) == 1 else (POOLED, *axes):
            row: dict[str, Any] = {"judge": judge, "axis": axis, "verdict": uninformative_judge(audit, judge, axis, axes) or "informative"}
            for audited in rows_of(own[own["axis"] == axis]):
                row |= {"n": audited.n} if audited.metric == "accuracy" else {}
                row |= {audited.metric: audited.value, f"{audited.metric}_low": audited.ci_low, f"{audited.metric}_high": audited.ci_high}
            rows.append(row)
    columns = [
        text_column("judge"), text_column("axis"), column("n", form="count"),
        *[column(name, metric, ends=(f"{metric}_low", f"{metric}_high")) for name, (metric, _) in QUALITIES.items()],
        text_column("verdict"),
    ]  # fmt: skip
    meanings = Bullets([say(f"{name}: {meaning}.") for name, (_, meaning) in QUALITIES.items()])
    return [Table(pd.DataFrame(rows), columns, "Audit of judges"), say("On pairs with people's labels, in both orders:"), meanings]


def _attack_blocks(audit: pd.DataFrame) -> list[Block]:
    attacks = audit[(audit["axis"] == POOLED) & audit["metric"].astype(str).str.startswith(ATTACK)]
    if attacks.empty:
        return []
    columns = [
        text_column("judge"), Column("attack", lambda row: row["metric"].removeprefix(ATTACK)),
        column("succeeds", "value", ends=CI), column("n", "n", "count"), column("missing", "n_missing", "count"),
    ]  # fmt: skip
    return [Table(attacks, columns, "Attacks on judges", say(ATTACKS))]


# --- on the page --------------------------------------------------------------------------------------------------------------


def forests(rates: pd.DataFrame, audit: pd.DataFrame) -> list[Forest]:
    """Win rates of each judge, and how it did on pairs that people labelled and under attack."""
    panels = []
    for judge, rows in without_copies(rates).groupby("judge", sort=False):
        known = sorted(rows_of(rows[rows["win_rate"].notna()]), key=lambda row: (row.arm_a, row.arm_b, row.axis != POOLED))
        won = [
            Estimate(f"{row.arm_a} over {row.arm_b}, {'all axes' if row.axis == POOLED else row.axis}", row.win_rate, row.ci_low,
                     row.ci_high, "number", f"{count(row.n_comparisons)} comparisons")
            for row in known
        ]  # fmt: skip
        own = {row.metric: row for row in rows_of(audit[(audit["judge"] == judge) & (audit["axis"] == POOLED)])}
        audited = [_audited(label, own[metric], chance) for metric, (label, chance) in DRAWN.items() if metric in own]
        attacked = [_audited(metric.removeprefix(ATTACK), row, 0.0) for metric, row in own.items() if metric.startswith(ATTACK)]
        audit_title = f"Audit of {judge} on pairs with people's labels, all axes; the line is chance"
        groups = (f"Win rates by {judge}", won, 0.5), (audit_title, audited, 0.5), (f"Attacks on {judge} that succeed", attacked, 0.0)
        panels += [ForestPanel(title, tuple(estimates), reference, (0, 1)) for title, estimates, reference in groups if estimates]
    doubts = list(dict.fromkeys(f"{row.judge}: {row.informative}" for row in rows_of(rates) if row.informative))
    doubt = say(" Not to be relied on: {doubts}.", doubts=names(doubts, "; ")) if doubts else ()
    caption = say("Win rates and audits with 95 % intervals.{doubt}", doubt=doubt)
    return [Forest("Judges", caption, tuple(panels))] if panels else []


def _audited(label: str, row: NamedRow, chance: float) -> Estimate:
    return Estimate(label, row.value, row.ci_low, row.ci_high, "number", f"{count(row.n)} pairs", reference=chance)
