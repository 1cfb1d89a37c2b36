"""What the report says first: the answer and how certain it is; then what limits it: failed controls, missed matches, warnings."""

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
from apo_bench.formatting import ALPHA, Row, count, minus, number, p_equals, probability, rows_of, signed
from apo_bench.report.document import Answer, Block, Bullets, Claim, Claims, Notices, Section
from apo_bench.report.sections.other_views import opposed, other_views
from apo_bench.report.text import Text, join, names, say

MOST_NAMED = 8  # comparisons that the first sentence names
PLACES = {"final": "at the final round", "dev_best": "at the round chosen on dev", MATCHED_KL: "at equal KL"}
MATCHES = (  # (declared, matched) and what a pair's units of that kind are called
    ("yes", "yes", "matched as declared"), ("yes", "no", "**declared but not matched**"),
    ("yes", "unknown", "**declared and not known to match**"), ("no", "yes", "equal without being required"),
    ("no", "no", "not required and different"), ("no", "unknown", "not required and not known"),
)  # fmt: skip


def sections(run: Run, frames: Mapping[str, pd.DataFrame], control_sentences: Sequence[str]) -> list[Section]:
    """The answer with what limits it, the claims behind it and their matches; what the controls show; warnings."""
    compared, planned = frames["contrasts"], len(run.experiment.seeds)
    primary = rows_of(compared[compared["family"] == "primary"])
    pairs = [pair for family, pair in declared_pairs(run) if family == "primary"]
    missed = _missed_matches(frames["budget"])
    limits = [
        say("**The harness failed a control of its own:** {failure}", failure=minus(failure))
        for failure in controls.failed(frames["controls"])
    ]
    limits += [text for a, b, text in missed if (a, b) in {(pair.a, pair.b) for pair in pairs}]
    limits += opposed(compared)
    if change := run.manifest.get("preregistration_change"):
        limits.append(say("**Not as preregistered:** {change}", change=preregistration.describe_change(change)))
    blocks: list[Block] = [summary(primary)] if primary else []
    blocks += [Notices(limits)] if limits else []
    blocks += [Claims([claim(row, planned) for row in primary])]
    blocks += [Bullets([*_matches(frames["budget"], pairs), *_declared_costs(run, pairs)]), other_views(compared)]
    cautions = [say("{warning}", warning=warning) for warning in warnings(run, frames)]
    cautions += [text for a, b, text in missed if (a, b) not in {(pair.a, pair.b) for pair in pairs}]
    return [
        Section("Answer", blocks),
        Section("The words", [Bullets(list(_words(run, compared)))], is_on_page_only=True, is_folded=True),
        Section("What the controls show", [Bullets([say("{text}", text=minus(text)) for text in control_sentences])]),
        Section("Warnings", [Bullets(cautions)] if cautions else []),
    ]


def _words(run: Run, compared: pd.DataFrame) -> Iterable[Text]:
    """What a reader has to know to read the answer, in a line each."""
    yield say("**Arm:** a method with its parameters, trained once for each seed. **Contrast:** the difference of two arms' mean scores.")
    scorers = set(compared["scorer"])
    if "ground_truth" in scorers:
        yield say("**{truth}:** the true score of an answer, which only a simulated world knows.", truth="ground_truth")
    for gold in (gold for gold in run.golds if gold in scorers):
        yield say("**{gold}:** a gold reward model: it learnt from pairs of its own, and no method ever saw it.", gold=gold)
    if len(run.axes) > 1:
        yield say("**All axes pooled:** prompts of {axes} together.", axes=names(run.axes))
    yield say("**Cluster:** prompts that depend on each other, such as those of one template; a claim is about new clusters.")
    yield say("**Matched:** both arms spent the same; counts are equal in every seed, FLOPs within 5 %.")


def _missed_matches(budget: pd.DataFrame) -> list[tuple[str, str, Text]]:
    """Pairs that spent other amounts than declared, or that are not known to have spent alike, with a sentence for each unit."""
    missed = []
    for row in rows_of(budget[(budget["declared"] == "yes") & (budget["matched"] != "yes")]):
        title = "Not matched as declared" if row.matched == "no" else "Not known to match as declared"
        sentence = f"**{title}:** `{{a}}` against `{{b}}`: {row.unit} {amounts_of(row)}."
        missed.append((row.arm_a, row.arm_b, say(sentence, a=row.arm_a, b=row.arm_b)))
    return missed


def summary(rows: Sequence[Row], over: str = "") -> Answer:
    """The answer to the primary question for somebody who reads no further. `over`: what differences are means over."""
    if len(rows) > 1:
        return _summary_of_many(rows)
    (row,) = rows
    if math.isnan(row.difference) or math.isnan(row.ci_low):
        return Answer(say("**Nothing can be said yet** about `{a}` against `{b}`.", a=row.arm_a, b=row.arm_b))
    by = say(f"By {{scorer}}{over}", scorer=row.scorer)
    if math.isnan(row.p_adjusted) or row.p_adjusted >= ALPHA:
        first = say("**Which is better cannot be told**, `{a}` or `{b}`.", a=row.arm_a, b=row.arm_b)
        return Answer(first, say(f"{{by}}, {_ends(row)} fits what was measured.", by=by))
    chance = "fewer than 1" if row.p_adjusted < 0.001 else f"about {1000 * row.p_adjusted:.0f}"
    certainty = say(
        f"{{by}}, {_size(row)}. Were the two alike, a difference this large would come up in {chance} of 1,000 such experiments.", by=by
    )
    return Answer(say("**`{a}` is better than `{b}`.**", **_winner_first(row)), certainty)


def _size(row: Row) -> str:
    """A shown difference without its sign, with its interval; a judge's as the win rate of the better arm."""
    from_half = 0.5 if row.scorer.startswith(JUDGE) else 0.0
    low, high = sorted((abs(row.ci_low), abs(row.ci_high)))
    size = f"{number(from_half + abs(row.difference))} (95 % interval {number(from_half + low)} to {number(from_half + high)})"
    return f"it wins {size} of the comparisons" if from_half else f"it scores higher by {size}"


def _ends(row: Row) -> str:
    """The interval of a difference in words, from its lower to its higher end."""
    low, high = (f"{number(abs(end))} {'lower' if end < 0 else 'higher'}" for end in (row.ci_low, row.ci_high))
    return f"anything from {low} to {high} for the first"


def _summary_of_many(rows: Sequence[Row]) -> Answer:
    """Where all are against the same arm, which are better and which are worse; else which of each pair is better."""
    shown = [row for row in rows if row.p_adjusted < ALPHA]
    n_untested = sum(math.isnan(row.p_adjusted) for row in rows)
    n_alike = len(rows) - len(shown) - n_untested
    if not shown:
        first = say(f"**None of {len(rows)} declared comparisons shows a difference.**")
    elif len({row.arm_b for row in rows}) == 1 and len({row.arm_a for row in rows}) == len(rows):
        better, worse = (_listed([say("`{arm}`", arm=row.arm_a) for row in shown if (row.difference > 0) is up]) for up in (True, False))
        texts = [say("**Better than `{b}`: {arms}.**", b=rows[0].arm_b, arms=better)] if better else []
        texts += [say(f"**Worse{'' if better else ' than `{b}`'}: {{arms}}.**", b=rows[0].arm_b, arms=worse)] if worse else []
        first = join(texts)
    else:
        pairs = _listed([say("`{a}` is better than `{b}`", **_winner_first(row)) for row in shown], "; ")
        first = say("**{pairs}.**", pairs=pairs)
    rest = [f"In {n_alike} of {len(rows)} comparisons it cannot be told which arm is better."] if n_alike and shown else []
    rest += [f"{n_untested} could not be tested."] if n_untested else []
    if shown:
        rest.append(f"All {len(rows)} are tested together: were no two arms different, one experiment in 20 would show any difference.")
    else:
        rest.append("That says neither that there is none, nor that there is one: the intervals below say what fits.")
    return Answer(first, say(" ".join(rest)))


def _listed(texts: Sequence[Text], between: str = ", ") -> Text:
    return join([*texts[:MOST_NAMED], *([say(f"and {len(texts) - MOST_NAMED} more")] if len(texts) > MOST_NAMED else [])], between)


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
        listed = join([say("`{arm}`", arm=arm) for arm in arms], ", ")
        yield say("{names} against `{b}`: {parts}.", names=listed, b=b, parts=parts)


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
