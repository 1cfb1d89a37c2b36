"""The answer in plain words: each primary contrast, what was matched and what was missed, what controls and warnings say."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from apo_bench.analysis import preregistration, results
from apo_bench.analysis.results import POOLED, Run
from apo_bench.config.schema import JUDGE
from apo_bench.formatting import ALPHA, Row, count, number, probability, rows_of, signed
from apo_bench.report.page.markup import Markup, code, el, join, minus, name

PLACES = {"final": "the final round", "dev_best": "the round chosen on dev", "matched_kl": "equal KL"}


def answer(
    run: Run, frames: Mapping[str, pd.DataFrame], controls: Sequence[str], failed_controls: Sequence[str], warnings: Sequence[str]
) -> Markup:
    """The first section: what failed or was missed, then one sentence for each primary contrast, then what may be said against it."""
    compared, budget = frames["contrasts"], frames["budget"]
    parts = [el("p", el("strong", "The harness failed a control of its own: "), name(one), class_="note") for one in failed_controls]
    parts += [el("p", el("strong", "Not matched as declared: "), one, class_="note missed") for one in missed(budget)]
    if changed := run.manifest.get("preregistration_change"):
        parts.append(el("p", el("strong", "Not as preregistered: "), name(preregistration.describe_change(changed)), class_="note missed"))
    parts += [_claim(row, len(run.experiment.seeds)) for row in rows_of(compared[compared["family"] == "primary"])]
    pairs = [pair for family, pair in results.declared_pairs(run) if family == "primary"]
    parts += [el("h3", "What was matched"), *[_matches(budget, pair.a, pair.b) for pair in pairs]]
    if controls:
        parts += [el("h3", "What the controls say"), el("ul", *[el("li", name(one)) for one in controls])]
    if warnings:
        parts += [el("h3", "Warnings"), el("ul", *[el("li", name(one)) for one in warnings], class_="warnings")]
    return join(parts)


def missed(budget: pd.DataFrame) -> list[Markup]:
    """Every match that the experiment declares and that did not come about."""
    rows = budget[(budget["declared"] == "yes") & (budget["matched"] == "no")]
    return [join([code(row.arm_a), " against ", code(row.arm_b), f": {unit(row.unit)} {_spent(row)}."]) for row in rows_of(rows)]


def unit(name: str) -> str:
    """A ledger's unit as words."""
    return "FLOPs" if name == "flops" else name.replace("rm_", "reward-model ").replace("_", " ")


def where(row: Row) -> Markup:
    """On what, on which axes and at which round a contrast was made."""
    axes = "all axes together" if row.axis == POOLED else join(["the axis ", name(row.axis)])
    return join(["on ", scorer(row.scorer), ", ", axes, f", at {PLACES[row.at]}"])


def scorer(named: str) -> Markup:
    """A scorer as words."""
    if named == "ground_truth":
        return Markup("the ground truth")
    if named.startswith(JUDGE):
        return join(["the judge ", name(named.removeprefix(JUDGE))])
    return join(["the gold model ", name(named)])


def _claim(row: Row, planned: int) -> Markup:
    a, b = code(row.arm_a), code(row.arm_b)
    reason = row.test.removeprefix("none: ")
    if math.isnan(row.difference):
        return _stated(["There is no result for ", a, " against ", b, "."], [join([where(row), ": ", name(reason), "."])])
    tested = not math.isnan(row.p_adjusted)
    if not tested:
        said = ["No test could be made of ", a, " against ", b, "."]
    elif row.p_adjusted < ALPHA:
        said = [a, " scored ", "higher" if row.difference > 0 else "lower", " than ", b, "."]
    else:
        said = ["No difference could be shown between ", a, " and ", b, "."]
    numbers = join([_first_up(where(row)), ", ", _size(row), "."])
    seeds = f"{row.n_seeds} of {planned} planned seeds" if row.n_seeds < planned else f"{planned} {'seed' if planned == 1 else 'seeds'}"
    test = name(f"{row.test[:1].upper()}{row.test[1:]}") if tested else join(["No test: ", name(reason)])
    scope = join([test, f"; {seeds}, {row.n_clusters} clusters of prompts. It speaks of ", name(row.scope), "."])
    return _stated(said, [numbers, scope])


def _size(row: Row) -> Markup:
    """The difference, its interval and p-values in words."""
    if row.scorer.startswith(JUDGE):  # whose difference is that of the win rate from 1/2
        parts = [code(row.arm_a), " won ", el("strong", number(0.5 + row.difference)), " of the comparisons"]
        ends = [number(0.5 + end) for end in (row.ci_low, row.ci_high)]
    else:
        direction = "higher" if row.difference >= 0 else "lower"
        parts = [code(row.arm_a), " scored ", el("strong", f"{number(abs(row.difference))} {direction}")]
        ends = [_signed(end) for end in (row.ci_low, row.ci_high)]
    if not math.isnan(row.ci_low):
        parts.append(f" (95 % interval {ends[0]} to {ends[1]})")
    if not math.isnan(row.p_adjusted):
        alone = "" if row.p_value == row.p_adjusted else f", {_p(row.p_value)} before adjustment"
        parts.append(f"; Holm-adjusted {_p(row.p_adjusted)}{alone}")
    return join(parts)


def _p(value: float) -> str:
    said = probability(value)
    return f"p {said}" if said.startswith("<") else f"p = {said}"


def _stated(said: Sequence[object], small: Sequence[object]) -> Markup:
    return el("div", el("p", *said, class_="claim"), *[el("p", one, class_="small") for one in small], class_="answer")


def _matches(budget: pd.DataFrame, a: str, b: str) -> Markup:
    rows = rows_of(budget[(budget["arm_a"] == a) & (budget["arm_b"] == b) & (budget["kind"] != "")])
    kinds = (
        ("Declared, but not matched", "yes", "no"), ("Matched as declared", "yes", "yes"),
        ("Equal without being required", "no", "yes"), ("Not required, and different", "no", "no"),
    )  # fmt: skip
    lines = []
    for title, declared, matched in kinds:
        these = [row for row in rows if (row.declared, row.matched) == (declared, matched)]
        if these:
            said = [unit(row.unit) + ("" if matched == "yes" else f" ({_spent(row)})") for row in these]
            lines.append(el("li", el("strong" if declared == "yes" else "span", title), ": ", ", ".join(said), "."))
    return join([el("p", code(a), " against ", code(b), ":"), el("ul", *lines)])


def _spent(row: Row) -> str:
    times = "" if math.isnan(row.ratio) else f", {row.ratio:.3g} times as many"
    return f"{count(row.used_a)} against {count(row.used_b)}{times}"


def _signed(value: float) -> str:
    return minus(signed(value))


def _first_up(said: Markup) -> Markup:
    return Markup(said[:1].upper() + said[1:])
