"""What the report says first: claims, matches, failed controls, a changed plan, warnings."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from apo_bench.analysis import controls, preregistration
from apo_bench.analysis.contrasts import MATCHED_KL
from apo_bench.analysis.costs import amounts_of
from apo_bench.analysis.results import POOLED, Run, declared_pairs, uninformative_gold
from apo_bench.analysis.win_rates import NOT_AUDITED
from apo_bench.config.finished_arms import declared_cost
from apo_bench.config.schema import JUDGE, Comparison
from apo_bench.formatting import ALPHA, Row, count, number, p_equals, probability, rows_of, signed
from apo_bench.report.document import Bullets, Claim, Claims, Section
from apo_bench.report.text import Text, join, say

MOST_NAMED = 8  # comparisons that the first sentence names
PLACES = {"final": "at the final round", "dev_best": "at the round chosen on dev", MATCHED_KL: "at equal KL"}
MATCHES = (  # (declared, matched) and what a pair's units of that kind are called
    ("yes", "yes", "matched as declared"), ("yes", "no", "**declared but not matched**"),
    ("yes", "unknown", "**declared and not known to match**"), ("no", "yes", "equal without being required"),
    ("no", "no", "not required and different"), ("no", "unknown", "not required and not known"),
)  # fmt: skip


def notices(run: Run, frames: Mapping[str, pd.DataFrame]) -> list[Text]:
    """What a reader must know before the answer: failed controls, missed matches, a plan that changed after results were seen."""
    budget, failed = frames["budget"], controls.failed(frames["controls"])
    texts = [say("**The harness failed a control of its own:** {failure}", failure=failure) for failure in failed]
    for row in rows_of(budget[(budget["declared"] == "yes") & (budget["matched"] != "yes")]):
        title = "Not matched as declared" if row.matched == "no" else "Not known to match as declared"
        texts.append(say(f"**{title}:** `{{a}}` against `{{b}}`: {row.unit} {amounts_of(row)}.", a=row.arm_a, b=row.arm_b))
    if change := run.manifest.get("preregistration_change"):
        texts.append(say("**Not as preregistered:** {change}", change=preregistration.describe_change(change)))
    return texts


def sections(run: Run, frames: Mapping[str, pd.DataFrame], control_sentences: Sequence[str]) -> list[Section]:
    """Claims with their matches, what the controls show (on the page: report.md has it above), and warnings."""
    compared, planned = frames["contrasts"], len(run.experiment.seeds)
    primary = rows_of(compared[compared["family"] == "primary"])
    claims = Claims([claim(row, planned) for row in primary])
    pairs = [pair for family, pair in declared_pairs(run) if family == "primary"]
    matches = Bullets([*_matches(frames["budget"], pairs), *_declared_costs(run, pairs)])
    texts = [say("{warning}", warning=warning) for warning in warnings(run, frames)]
    return [
        Section("Answer", [summary(primary), claims, matches]),
        Section("What the controls show", [Bullets([say("{text}", text=text) for text in control_sentences])], is_on_page_only=True),
        Section("Warnings", [Bullets(texts)] if texts else []),
    ]


def summary(rows: Sequence[Row]) -> Text:
    """The answer to the primary question in a sentence or two, for somebody who reads no further."""
    if not rows:
        return ()
    if len(rows) > 1:
        return _summary_of_many(rows)
    (row,) = rows
    if math.isnan(row.difference) or math.isnan(row.ci_low):
        return say("**Nothing can be said yet** about `{a}` against `{b}`.", a=row.arm_a, b=row.arm_b)
    if math.isnan(row.p_adjusted) or row.p_adjusted >= ALPHA:
        text = f"**Which is better cannot be told**, `{{a}}` or `{{b}}`: {_ends(row)} fits what was measured."
        return say(text, a=row.arm_a, b=row.arm_b)
    better = say("**`{a}` is better than `{b}`**", **_winner_first(row))
    return say(f"{{better}}, by {_size(row)}. A difference this large is unlikely to be chance.", better=better)


def _size(row: Row) -> str:
    """A shown difference without its sign, with its interval; a judge's as the win rate of the better arm."""
    from_half = 0.5 if row.scorer.startswith(JUDGE) else 0.0
    low, high = sorted((abs(row.ci_low), abs(row.ci_high)))
    size = f"{number(from_half + abs(row.difference))} (95 % interval {number(from_half + low)} to {number(from_half + high)})"
    return f"a win rate of {size}" if from_half else size


def _ends(row: Row) -> str:
    """The interval of a difference in words, from its lower to its higher end."""
    low, high = (f"{number(abs(end))} {'lower' if end < 0 else 'higher'}" for end in (row.ci_low, row.ci_high))
    return f"anything from {low} to {high} for the first"


def _summary_of_many(rows: Sequence[Row]) -> Text:
    shown = [row for row in rows if row.p_adjusted < ALPHA]
    n_untested = sum(math.isnan(row.p_adjusted) for row in rows)
    better = [say("`{a}` above `{b}`", **_winner_first(row)) for row in shown[:MOST_NAMED]]
    more = f", and {len(shown) - MOST_NAMED} more" if len(shown) > MOST_NAMED else ""
    verb = "shows" if len(shown) == 1 else "show"
    text = f"**{len(shown) or 'None'} of {len(rows)} declared comparisons {verb} a difference**, after correction for all of them"
    text += f": {{better}}{more}." if shown else "."
    n_alike = len(rows) - len(shown) - n_untested
    rest = f" In {n_alike} it cannot be told which arm is better." if n_alike else ""
    return say(text + rest + (f" {n_untested} could not be tested." if n_untested else ""), better=join(better, ", "))


def _winner_first(row: Row) -> dict[str, str]:
    return {"a": row.arm_a, "b": row.arm_b} if row.difference > 0 else {"a": row.arm_b, "b": row.arm_a}


def headline(row: Row, difference: float) -> Text:
    """What a difference of two arms permits to be said first."""
    if math.isnan(difference) or math.isnan(row.p_adjusted):
        template = f"No {'result for' if math.isnan(difference) else 'test of'} `{{a}}` against `{{b}}`"
    elif row.p_adjusted < ALPHA:
        template = f"`{{a}}` scored {'higher' if difference > 0 else 'lower'} than `{{b}}`"
    else:
        template = "No difference between `{a}` and `{b}` could be shown"
    return say(template, a=row.arm_a, b=row.arm_b)


def tested(row: Row) -> Text:
    """The p-values behind a claim, and the test that gave them."""
    return say(f"Holm-adjusted {p_equals(row.p_adjusted)} (unadjusted {probability(row.p_value)}; {{test}})", test=row.test)


def place_of(row: Row) -> Text:
    """The scorer, axis and round of a contrast."""
    at = "" if row.at == "final" else f", {PLACES.get(row.at, row.at)}"
    return say(f"{{scorer}}, {{axis}}{at}", scorer=row.scorer, axis="all axes pooled" if row.axis == POOLED else row.axis)


def claim(row: Row, planned: int) -> Claim:
    """A primary contrast; `planned` seeds were to be run."""
    first, where, reason = headline(row, row.difference), place_of(row), row.test.removeprefix("none: ")
    if math.isnan(row.difference):
        return Claim(first, where, say("{reason}.", reason=reason))
    is_rate = row.scorer.startswith(JUDGE)  # its difference is that of the win rate from 1/2
    size = f"win rate {number(0.5 + row.difference)}" if is_rate else f"difference {signed(row.difference)}"
    if not math.isnan(row.ci_low):
        low, high = (number(0.5 + end) if is_rate else signed(end) for end in (row.ci_low, row.ci_high))
        size += f", 95 % interval {low} to {high}"
    seeds = f"{row.n_seeds} of {planned} planned seeds" if row.n_seeds < planned else f"{planned} {'seed' if planned == 1 else 'seeds'}"
    test = say("; {reason}", reason=reason) if math.isnan(row.p_adjusted) else say(", {tested}", tested=tested(row))
    detail = f"{size}{{test}}. Scope: {{scope}}; {seeds}, {row.n_clusters} clusters of prompts."
    return Claim(first, where, say(detail, test=test, scope=row.scope))


def _declared_costs(run: Run, pairs: Sequence[Comparison]) -> Iterable[Text]:
    """A line for each compared arm whose cost is declared: a match in it rests on that."""
    for name in dict.fromkeys(name for pair in pairs for name in (pair.a, pair.b)):
        if declared := declared_cost(run.experiment.arms[name]):
            yield say(f"`{{arm}}`: {', '.join(declared)} as **declared**, not metered.", arm=name)


def _matches(budget: pd.DataFrame, pairs: Sequence[Comparison]) -> Iterable[Text]:
    """What compared arms spent alike, a line for those arms that are matched alike with the same other."""
    alike: dict[tuple[str, Text], list[str]] = {}
    for pair in pairs:
        alike.setdefault((pair.b, match(budget, pair.a, pair.b)), []).append(pair.a)
    for (b, parts), arms in alike.items():
        names = join([say("`{arm}`", arm=arm) for arm in arms], ", ")
        yield say("{names} against `{b}`: {parts}.", names=names, b=b, parts=parts)


def match(budget: pd.DataFrame, a: str, b: str) -> Text:
    """What two arms spent alike, and what not, in units that a match can be declared in."""
    rows = rows_of(budget[(budget["arm_a"] == a) & (budget["arm_b"] == b) & (budget["kind"] != "")])
    parts = []
    for declared, matched, title in MATCHES:
        alike = [row for row in rows if (row.declared, row.matched) == (declared, matched)]
        units = (row.unit if matched == "yes" else f"{row.unit} ({amounts_of(row)})" for row in alike)
        parts += [say(f"{title}: {', '.join(units)}")] if alike else []
    return join(parts, "; ")


# --- warnings -----------------------------------------------------------------------------------------------------------------


def warnings(run: Run, frames: Mapping[str, pd.DataFrame]) -> list[str]:
    """What limits the answer, a sentence each: failures, missing seeds, uninformative scorers, few seeds, absent tables, mixed hardware."""
    golds = ((gold, uninformative_gold(run, gold, axis)) for gold in run.golds for axis in run.axes)
    lines = [*_failures(run), *_missing_seeds(run)]
    lines += [f"Gold model {gold}: {reason}. No test is made on it, nor on the pooled axes." for gold, reason in golds if reason]
    compared = frames["contrasts"]
    primary = compared[compared["family"] == "primary"]
    for row in rows_of(primary[primary["n_seeds"].between(1, 2)].drop_duplicates(["arm_a", "arm_b"])):
        lines.append(f"{row.arm_a} against {row.arm_b}: only {row.n_seeds} seed(s); three or more are needed for a claim about new seeds.")
    for row in rows_of(compared[compared["n_dropped"] > 0]):
        where = f"{row.arm_a} against {row.arm_b}, {row.axis}, {row.scorer}{'' if row.at == 'final' else f', {PLACES[row.at]}'}"
        lines.append(f"{where}: {row.n_dropped} rows left out (prompt not scored in every seed of both).")
    if len(workers := (run.manifest.get("hardware") or {}).get("workers") or ()) > 1:
        lines.append(f"Arm-seeds ran on different hardware: {'; '.join(json.dumps(worker, sort_keys=True) for worker in workers)}.")
    lines += [f"Table {name} is absent; what it would show is missing." for name in run.absent]
    if run.manifest.get("dirty"):
        lines.append("The code had uncommitted changes.")
    return [*lines, *judge_warnings(frames.get("judged")), *_unanswered(run)]


def judge_warnings(rates: pd.DataFrame | None) -> list[str]:
    """Judges that are uninformative or not audited, from a frame of win rates."""
    lines = []
    for row in [] if rates is None else rows_of(rates.drop_duplicates(["judge", "informative"])):
        if row.informative == NOT_AUDITED:
            lines.append(f"Judge {row.judge}: {NOT_AUDITED}, so whether it agrees with people is not known.")
        elif row.informative:
            lines.append(f"Judge {row.judge}: {row.informative}. No test is made on it, nor on the pooled axes.")
    return lines


def _failures(run: Run) -> Iterable[str]:
    for failure in run.manifest.get("failures", []):
        seed = "" if failure.get("seed") is None else f", seed {failure['seed']}"
        yield f"Failed: {failure['arm']}{seed}: {failure['message']}"


def _missing_seeds(run: Run) -> Iterable[str]:
    for arm in run.arms:
        seeds = run.arm_seeds.get(arm, [])
        if missing := sorted(set(run.experiment.seeds) - set(seeds)):
            yield f"{arm}: no final scores for seed {', '.join(map(str, missing))}; contrasts use the seeds that both arms have."
        if missing := [seed for seed in seeds if run.dev_round and (arm, seed) not in run.dev_round]:
            yield f"{arm}: no dev_score for seed {', '.join(map(str, missing))}, so no round chosen on dev."


def _unanswered(run: Run) -> Iterable[str]:
    """Judges that were left out or left without answers."""
    for name, facts in (run.manifest.get("judges") or {}).items():
        if message := facts.get("left_out"):
            yield f"Judge {name}: {message}; left out."
        if unanswered := facts.get("unanswered"):
            reasons = ", ".join(f"{count(times)} {reason}" for reason, times in sorted(unanswered.items()))
            yield f"Judge {name}: questions without an answer: {reasons}; the same command asks again."
