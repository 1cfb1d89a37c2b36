"""The sections of report.md about judges: what they said of the arms, and how far they can be trusted. Frames in, lines out."""

import math
from collections.abc import Sequence

import pandas as pd

from apo_bench.analysis.results import POOLED
from apo_bench.analysis.win_rates import NOT_AUDITED, uninformative_judge
from apo_bench.formatting import Row, count, letter, number, plain, probability, rows_of, table

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
    "disagree is tie": "win rate if a response wins only where both orders say so, and all else is a tie",
}
QUALITIES = {  # of an audit: the column, its metric, and what it means
    "accuracy": ("accuracy", "share of pairs on which the judge prefers what people prefer, undecided 1/2; chance is 1/2"),
    "kappa": ("kappa", "Cohen's kappa with people's labels, their ties among them; chance is 0"),
    "consistent": ("consistency", "share of pairs whose two orders say the same; two coins do so in 1/2"),
    "first": ("first_position_rate", "share of verdicts for the response shown first, ties 1/2; 1/2 is no bias"),
    "better is shorter": ("accuracy_shorter", "accuracy where people prefer the response with fewer words"),
    "better is longer": ("accuracy_longer", "accuracy where they prefer the one with more"),
    "length bias": ("length_bias", "the latter less the former"),
    "missing": ("missing", "share of pairs without both verdicts"),
}
ATTACK, DOUBT = "attack_", "not to be relied on"


def judged(rates: pd.DataFrame) -> list[str]:
    """Win rates by pair, axis and judge (`win_rates.win_rates`), what the columns mean, and which verdicts are missing and why."""
    if rates.empty:
        return ["No verdict was recorded."]
    shown, notes, rows = _without_copies(rates), {}, []
    for one in rows_of(shown):
        mark = notes.setdefault(_note(one), letter(len(notes)))
        rate = _interval(one.win_rate, one.ci_low, one.ci_high)
        bounds = f" ({number(one.worst_low)} to {number(one.worst_high)})" if one.n_missing and not math.isnan(one.worst_low) else ""
        sizes = [count(one.n_comparisons), str(one.n_seeds), str(one.n_clusters), f"{count(one.n_missing)}{bounds}"]
        doubts = [number(one.inconsistency_rate), number(one.first_position_rate), number(one.tie_share), _tokens(one.length_difference)]
        other = [_interval(one.lc_win_rate, one.lc_low, one.lc_high), _interval(one.agreed_win_rate, one.agreed_low, one.agreed_high)]
        rows.append([*_question(one), plain(one.round), rate, probability(one.p_value), *sizes, *doubts, *other, mark])
    names = list(MEANINGS)
    headers = ["pair", "axis", "judge", "round", *names[:3], "seeds", "clusters", *names[3:], "note"]
    lines = [*table(headers, rows), "", *[f"- {name}: {meaning}." for name, meaning in MEANINGS.items()], ""]
    return [*lines, *[f"- ({mark}) {note}" for note, mark in notes.items()], *_missing(shown)]


def trust(audit: pd.DataFrame, judges: Sequence[str], between: pd.DataFrame, against: pd.DataFrame) -> list[str]:
    """How far the judges can be trusted, under a heading: their audit on people's labels and attacks, each other, and the scores.

    `audit`: judge, axis, metric, value, ci_low, ci_high, n, n_missing. `between`, `against`: `agreement_of_judges` and `against_scores`
    of `apo_bench.analysis.win_rates`, `marked`. Either may be empty.
    """
    lines = [f"### How far the {'judge' if len(judges) == 1 else 'judges'} can be trusted", "", *_audited(audit, judges)]
    lines += _attacks(audit[audit["judge"].isin(list(judges))])
    if len(between):
        rows = []
        for one in rows_of(_without_copies(between)):
            shares = [_interval(one.kappa, one.ci_low, one.ci_high), _interval(one.raw, one.raw_low, one.raw_high)]
            names = [f"{plain(one.judge)}, {plain(one.other)}", plain(one.axis)]
            rows.append([*names, *shares, count(one.n), count(one.n_missing), plain(one.note), plain(one.informative)])
        note = (
            "Comparisons that both judges were asked, each a win of the first arm, a tie or a loss; missing: without both orders' verdicts "
            "from both. Kappa: agreement beyond chance, which is 0. Intervals are robust to clusters of prompts."
        )
        lines += ["", *table(["judges", "axis", "kappa", "same label", "n", "missing", "", DOUBT], rows), "", note]
    if len(against):
        rows = []
        for one in rows_of(_without_copies(against)):
            sizes = [count(one.n), count(one.n_equal), count(one.n_missing)]
            names = [plain(one.judge), plain(one.scorer), plain(one.axis)]
            rows.append([*names, _interval(one.agree, one.ci_low, one.ci_high), *sizes, plain(one.informative)])
        note = (
            "Same winner: share of comparisons on which the judge prefers the response with the higher score, undecided 1/2; chance is "
            "1/2. Equal scores name no winner and are left out. Intervals are robust to clusters of prompts."
        )
        lines += ["", *table(["judge", "scorer", "axis", "same winner", "n", "equal scores", "missing", DOUBT], rows), "", note]
    return lines


def warnings(rates: pd.DataFrame) -> list[str]:
    """What to know before reading win rates: judges that are uninformative or not audited."""
    found = []
    for one in rows_of(rates.drop_duplicates(["judge", "informative"])):
        if one.informative == NOT_AUDITED:
            found.append(f"Judge {one.judge}: {NOT_AUDITED}, so whether it agrees with people is not known.")
        elif one.informative:
            found.append(f"Judge {one.judge}: {one.informative}. No test is made on it, nor on the pooled axes.")
    return found


def _without_copies(frame: pd.DataFrame) -> pd.DataFrame:
    """Without the pooled rows where there is one axis, of which they would be copies."""
    single = frame[frame["axis"] != POOLED]
    return single if single["axis"].nunique() == 1 else frame


def _note(one: Row) -> str:
    """The test and scope of a row and whatever else must be said of it, in one line."""
    parts = [f"Test: {one.test}", f"Scope: {one.scope}", one.note]
    if math.isnan(one.lc_win_rate) and not math.isnan(one.win_rate):
        parts.append(f"No win rate at equal length: {one.lc_note}")
    if one.informative == NOT_AUDITED:
        parts.append(f"The judge was {NOT_AUDITED}")
    return plain(". ".join(filter(None, parts)) + ".")


def _missing(rates: pd.DataFrame) -> list[str]:
    lost = rates[rates["missing_why"] != ""]
    if lost.empty:
        return []
    rows = [
        [
            *_question(one),
            *(count(one.missing_first_a), count(one.missing_first_b), plain(one.missing_why)),
            *(_tokens(one.missing_length_difference), _tokens(one.length_difference)),
        ]
        for one in rows_of(lost)
    ]
    headers = ["pair", "axis", "judge", "first arm shown first", "second arm shown first", "why", "longer by, where missing", "longer by"]
    note = (
        "Verdicts, two a comparison. A missing verdict belongs to both responses; what can be told is which was shown first, why there is "
        "none (not asked: no such row, though another seed has one), and whether lengths differ more there."
    )
    return ["", "### Missing verdicts", "", *table(headers, rows), "", note]


def _audited(audit: pd.DataFrame, judges: Sequence[str]) -> list[str]:
    rows = []
    for judge in judges:
        own = audit[audit["judge"] == judge]
        axes = [axis for axis in dict.fromkeys(own["axis"]) if axis != POOLED]
        for axis in axes if len(axes) == 1 else (POOLED, *axes):
            found = {one.metric: one for one in rows_of(own[own["axis"] == axis])}
            qualities = [found.get(metric) for metric, _ in QUALITIES.values()]
            cells = ["-" if one is None else _interval(one.value, one.ci_low, one.ci_high) for one in qualities]
            n = count(found["accuracy"].n) if "accuracy" in found else "-"
            rows.append([plain(judge), plain(axis), n, *cells, plain(uninformative_judge(audit, judge, axis, axes) or "informative")])
    meanings = [f"- {name}: {meaning}." for name, (_, meaning) in QUALITIES.items()]
    return [
        *table(["judge", "axis", "n", *QUALITIES, "verdict"], rows),
        "",
        "On pairs with people's labels, in both orders:",
        "",
        *meanings,
    ]


def _attacks(audit: pd.DataFrame) -> list[str]:
    attacks = audit[(audit["axis"] == POOLED) & audit["metric"].astype(str).str.startswith(ATTACK)]
    if attacks.empty:
        return []
    rows = []
    for one in rows_of(attacks):
        names = [plain(one.judge), plain(str(one.metric).removeprefix(ATTACK))]
        rows.append([*names, _interval(one.value, one.ci_low, one.ci_high), count(one.n), count(one.n_missing)])
    note = (
        "Attacks on the worse response, all axes. Succeeds: share of the pairs that the judge had right and has right no more; where the "
        "attack replaces the response (empty), share of all pairs on which what it leaves is preferred. Control changes next to nothing: "
        "what it succeeds in is the judge's own unsteadiness."
    )
    return ["", *table(["judge", "attack", "succeeds", "n", "missing"], rows), "", note]


def _question(one: Row) -> list[str]:
    return [f"`{plain(one.arm_a)}` over `{plain(one.arm_b)}`", plain(one.axis), plain(one.judge)]


def _interval(value: float, low: float, high: float) -> str:
    return number(value) if math.isnan(low) else f"{number(value)} ({number(low)} to {number(high)})"


def _tokens(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.1f}"
