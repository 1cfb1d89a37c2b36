"""What each committed report asks and answers, and which result of another run would speak against it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from scipy.special import nctdtrinc, stdtrit  # scipy.stats would take a second to import

from apo_bench.formatting import ALPHA, Row, count, number, rows_of, signed
from apo_bench.report import across_variations
from apo_bench.report.across_reports.committed import CommittedReport
from apo_bench.report.across_reports.ranking import Ranked
from apo_bench.report.document import Claim
from apo_bench.report.sections import answer
from apo_bench.report.text import Text, join, say

POWER = 0.8
MOST = 100_000  # seeds
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
    needed = seeds_needed(difference, error, row.n_variations if is_spread else row.n_seeds, ALPHA / n_primary)
    own = "" if math.isnan(needed) else f" One of its own size, {signed(difference)}, takes at least {count(needed)} {again[4:]}."
    if row.p_adjusted < ALPHA:
        near, side = (row.ci_low, "below") if difference > 0 else (row.ci_high, "above")
        return say(f"{again.capitalize()} with an interval wholly {side} {signed(near)}, the nearest to 0 that this one allows. {power}.")
    return say(f"{again.capitalize()} that show a difference. {power}; a smaller one this report cannot tell from none.{own}")


def detectable(standard_error: float, df: float, alpha: float = ALPHA) -> float:
    """The difference that a two-sided t test at `alpha` shows with probability POWER, if the standard error is as estimated.

    From the noncentral t distribution: P(T < critical value) = 1 - POWER; the other tail counts nothing. The power of a rough estimate
    is as rough. NaN without an error.
    """
    return standard_error * float(nctdtrinc(df, 1 - POWER, stdtrit(df, 1 - alpha / 2)))


def seeds_needed(difference: float, standard_error: float, n_seeds: float, alpha: float = ALPHA, *, arms: int = 1) -> float:
    """The fewest seeds, at least 3, with which such a difference is detectable if all of its error is the seeds'; NaN beyond MOST.

    `arms`: 1 where seeds are paired; of 2 each has seeds of its own. Error that is of prompts stays with more seeds, so this is a least
    number where the error holds some of it.
    """

    def short(n: int) -> bool:
        error = standard_error * math.sqrt(n_seeds / n)
        return not detectable(error, arms * (n - 1), alpha) <= abs(difference)

    if not standard_error > 0 or short(MOST):
        return math.nan
    below, enough = 2, MOST
    while enough - below > 1:
        middle = (below + enough) // 2
        below, enough = (middle, enough) if short(middle) else (below, middle)
    return enough


def mind_of(ranked: Ranked) -> Text:
    """Which result of new seeds would change a table's first place: of what is not told from the first, and of what nearly is not."""
    first, *others = rows_of(ranked.table)
    open_, shown = [], []
    for row in others:
        if row.standard_error > 0:
            (open_ if row.ci_low <= 0 <= row.ci_high else shown).append(row)
    parts = []
    if open_:
        row = max(open_, key=lambda row: abs(row.difference) / row.standard_error)
        needed = seeds_needed(row.difference, row.standard_error, row.n_seeds, ranked.alpha, arms=1 if ranked.is_paired else 2)
        takes = f"more than {count(MOST)}" if math.isnan(needed) else f"about {count(needed)}"
        single, several = "`{other}` is not told from `{first}`", f"Of {len(open_)} not told from `{{first}}`, `{{other}}` is the nearest"
        show = f": to show its difference, {signed(row.difference)}, in four of five experiments takes {takes} seeds."
        parts.append(say((several if len(open_) > 1 else single) + show, first=first.label, other=row.label))
    if shown:
        row = min(shown, key=lambda row: abs(row.difference) / (row.ci_high - row.ci_low))
        half, seeds = number((row.ci_high - row.ci_low) / 2), f"{row.n_seeds} new seeds"
        template = f"`{{first}}` over `{{other}}` is the least sure of what is shown: {seeds} in which they differ by less than {half}, "
        parts.append(say(f"{template}not by {number(abs(row.difference))}, would not show it.", first=first.label, other=row.label))
    return join(parts) or say("Any test: nothing in this table varies over seeds.")


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
