"""What each committed report asks and answers, and which result of another run would speak against it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from scipy.special import nctdtrinc, stdtrit  # scipy.stats would take a second to import

from apo_bench.formatting import ALPHA, Row, number, rows_of, signed
from apo_bench.report import across_variations
from apo_bench.report.across_reports.committed import CommittedReport
from apo_bench.report.document import Claim
from apo_bench.report.sections import answer
from apo_bench.report.text import Text, say

POWER = 0.8
Z = 1.959964 + 0.841621  # normal quantiles of a two-sided 5 % and of POWER


@dataclass(frozen=True)
class Answered:
    """A question that a report declares, its answer, and what would change one's mind. `is_shown`: a difference was, or agreement."""

    question: Text
    claim: Claim
    mind: Text
    is_tested: bool
    is_shown: bool


def answers_of(report: CommittedReport) -> tuple[Answered, ...]:
    """An answer for each primary contrast, or of an audit for each source of labelled pairs."""
    return tuple(_audited(report) if report.is_audit else _compared(report))


def _compared(report: CommittedReport) -> Iterator[Answered]:
    rows = rows_of(report.primary)
    for row in rows:
        over = f", over {row.n_variations} variations" if report.is_spread else ""
        question = say(f"Does `{{a}}` score higher than `{{b}}`{over}?", a=row.arm_a, b=row.arm_b)
        claim = across_variations.claim(row) if report.is_spread else answer.claim(row, row.n_seeds)
        yield Answered(question, claim, _mind(row, len(rows), report.is_spread), not math.isnan(row.p_adjusted), row.p_adjusted < ALPHA)


def _mind(row: Row, n_primary: int, is_spread: bool) -> Text:
    difference = row.mean if is_spread else row.difference
    error, df = (row.sd / math.sqrt(row.n_variations), row.n_variations - 1) if is_spread else (row.standard_error, row.df)
    again = "new variations" if is_spread else "new seeds"
    if math.isnan(row.p_adjusted):
        return say(f"Any test: this report has none, and three {'variations' if is_spread else 'seeds'} are the fewest that make one.")
    size = detectable(error, df, ALPHA / n_primary)
    power = f"One of ±{number(size)} would have been shown in four of five such experiments"
    if row.p_adjusted < ALPHA:
        near, side = (row.ci_low, "below") if difference > 0 else (row.ci_high, "above")
        return say(f"{again.capitalize()} with an interval wholly {side} {signed(near)}, the nearest to 0 that this one allows. {power}.")
    return say(f"{again.capitalize()} that show a difference. {power}; a smaller one this report cannot tell from none.")


def detectable(standard_error: float, df: float, alpha: float = ALPHA) -> float:
    """The difference that a two-sided t test at `alpha` shows with probability POWER, if the standard error is as estimated.

    From the noncentral t distribution: P(T < critical value) = 1 - POWER; the other tail counts nothing. The power of a rough estimate
    is as rough. NaN without an error.
    """
    return standard_error * float(nctdtrinc(df, 1 - POWER, stdtrit(df, 1 - alpha / 2)))


def _audited(report: CommittedReport) -> Iterator[Answered]:
    table = report.tables["audit"]
    table = table[table["metric"] == "accuracy"]
    whole = table[table["axis"] == "all"]
    for row in rows_of(table if whole.empty else whole):
        is_shown = row.ci_low > 0.5
        template = "`{judge}` sides with people" if is_shown else "`{judge}` could not be shown to side with people"
        interval = "no interval" if math.isnan(row.ci_low) else f"95 % interval {number(row.ci_low)} to {number(row.ci_high)}"
        detail = f"accuracy {number(row.value)}, {interval}, {row.n} comparisons."
        least = 0.5 + Z * math.sqrt(0.25 / max(row.n, 1))
        mind = (
            f"An accuracy with an interval above 1/2. One of {number(least)} would have been shown in four of five such audits."
            if least <= 1
            else f"More comparisons: with {row.n} no accuracy can be told from 1/2."
        )
        question = say("Does the judge `{judge}` agree with people?", judge=row.judge)
        yield Answered(
            question,
            Claim(say(template, judge=row.judge), say("{data}", data=row.data), say(detail)),
            say(mind),
            not math.isnan(row.ci_low),
            is_shown,
        )
