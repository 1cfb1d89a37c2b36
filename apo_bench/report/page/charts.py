"""The figures: contrasts, scores by round and by KL, budgets, reward models and judges. Frames in, html with inline svg out."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import pandas as pd

from apo_bench.analysis import results
from apo_bench.analysis.costs import MATCH_KINDS
from apo_bench.analysis.results import POOLED, Run
from apo_bench.config.schema import JUDGE, Unit
from apo_bench.formatting import Row, count, number, probability, rows_of, signed
from apo_bench.report.page import svg
from apo_bench.report.page.answer import PLACES, unit
from apo_bench.report.page.markup import MISSING, Markup, aside, code, details, el, join, minus, name, table
from apo_bench.report.sections_judging import ATTACK

REWARD_MODELS = {  # by round: column of by_round, title
    "rm_accuracy_human": "Right on held-out human pairs",
    "rm_accuracy_golden": "Golden responses scored above samples",
    "rm_ece": "Calibration error (ECE)",
    "rm_gold_agreement": "Agrees with gold on the policy's answers",
}
AUDITED = {  # of a judge's audit: metric, label, chance
    "accuracy": ("Prefers what people prefer", 0.5),
    "consistency": ("Both orders say the same", 0.5),
    "first_position_rate": ("Prefers what is shown first", 0.5),
    "kappa": ("Kappa with people", 0.0),
}


ATTACKS = (
    "Attacks on the worse response, all axes: share of the pairs that the judge had right and has right no more; where the attack replaces "
    "the response (empty), share of all pairs on which what it leaves is preferred. Control changes next to nothing: what it succeeds in "
    "is the judge's own unsteadiness."
)


@dataclass(frozen=True)
class Estimate:
    """A value with its interval (NaN: none), in numbers and in words, and what it is held against."""

    label: Markup
    value: float
    low: float
    high: float
    said: str
    remark: str
    reference: float
    look: str = "descriptive"  # or primary, secondary


def figures(run: Run, frames: Mapping[str, pd.DataFrame]) -> Markup:
    """All figures, each under its heading; what has no data has none."""
    made = (
        ("Contrasts", forest(run, frames["contrasts"])), ("Scores by round", by_round(run, frames["summary"])),
        ("Proxy, gold and truth against KL", by_kl(run, frames["summary"])), ("Budget", budget(run)),
        ("Reward models by round", reward_models(run, frames["by_round"])), ("Judges", judges(frames)),
    )  # fmt: skip
    return join(el("section", el("h3", title), inside, class_="figures") for title, inside in made if inside)


def forest(run: Run, contrasts: pd.DataFrame) -> Markup:
    """Differences with their intervals, a table for each scorer on a scale of its own; axes that were not declared are folded away."""
    rows = contrasts[(contrasts["scorer"] != "proxy") & contrasts["difference"].notna()]
    in_front = rows["axis"].isin([POOLED, *run.experiment.compare.axes]) & (rows["at"] == run.experiment.compare.round)
    tables = [
        [
            _differences(f"{_title(str(scorer))}, at {PLACES[str(at)]}", group)
            for (at, scorer), group in part.groupby(["at", "scorer"], sort=False)
        ]
        for part in (rows[in_front], rows[~in_front])
    ]
    scopes = "; or: ".join(dict.fromkeys(rows.loc[in_front, "scope"]))
    said = "Each row is one arm less another: right of the line favours the first. Bars are 95 % intervals, for "
    more = [details(f"Other axes and rounds, descriptive ({len(tables[1])})", *tables[1])] if tables[1] else []
    return join([el("p", said, name(scopes), ".", class_="small"), *tables[0], *more]) if len(rows) else Markup()


def _differences(caption: str, rows: pd.DataFrame) -> Markup:
    lines = []
    for row in sorted(rows_of(rows), key=lambda row: ("primary", "secondary", "descriptive").index(row.family)):
        axis = "all axes" if row.axis == POOLED else name(row.axis)
        pair = join([code(row.arm_a), " \u2212 ", code(row.arm_b)])
        label = join([pair, " ", el("span", axis, "" if row.family == "descriptive" else f", {row.family}", class_="sub")])
        p = row.p_value if math.isnan(row.p_adjusted) else row.p_adjusted
        if math.isnan(p):
            said = "no test"
        else:
            said = f"p {'' if p < 0.001 else '= '}{probability(p)}{'' if math.isnan(row.p_adjusted) else ' adjusted'}"
        size = minus(signed(row.difference))
        lines.append(Estimate(label, row.difference, row.ci_low, row.ci_high, size, said, 0.0, row.family))
    return intervals(caption, lines)


def intervals(caption: object, rows: Sequence[Estimate], limits: tuple[float, float] | None = None) -> Markup:
    """A table of estimates, drawn on one scale."""
    ends = [one for row in rows for one in (row.value, row.low, row.high, row.reference) if not math.isnan(one)]
    marks = svg.ticks(*(limits or (min(ends), max(ends))))
    scale = (marks[0], marks[-1])
    body = []
    for row in rows:
        between = "" if math.isnan(row.low) else minus(f"{number(row.low)} to {number(row.high)}")
        drawn = svg.interval(row.value, row.low, row.high, scale, row.reference, row.look)
        cells = [el("td", drawn, class_="plot"), el("td", el("b", row.said), el("span", between, class_="sub"), class_="value")]
        body.append(el("tr", el("th", row.label, scope="row"), *cells, el("td", row.remark, class_="remark")))
    heads = [el("th", aside("What"), scope="col"), el("th", svg.scale_of(scale, marks), aside("Drawn"), scope="col")]
    heads += [el("th", aside("Value and 95 % interval"), scope="col"), el("th", aside("Remark"), scope="col")]
    return el("table", el("caption", caption), el("tbody", *body), el("tfoot", el("tr", *heads)), class_="forest")


def by_round(run: Run, summary: pd.DataFrame) -> Markup:
    """Panels of every scorer's means by round, all axes first."""
    axes = [POOLED, *(run.axes if len(run.axes) > 1 else ())]
    groups = []
    for axis in axes:
        rows = summary[summary["axis"] == axis]
        panels = [
            svg.panel(_title(scorer), series, "round", whole=True, described=_described(scorer, axis, series))
            for scorer in run.scorers
            if (series := _by_arm(run, rows[rows["scorer"] == scorer], "round", "mean", "seed_sd"))
        ]
        if panels:
            groups.append((axis, el("div", *panels, class_="panels")))
    if not groups:
        return Markup()
    note = (
        "Mean over seeds, with one sample SD to each side. Round 0 is the initial policy. The proxy is each arm's own reward model of that "
        "round: its values are not comparable across arms, nor across rounds in which it was trained anew."
    )
    names = [scorer for scorer in run.scorers if scorer in set(summary["scorer"])]
    cells = {(one.axis, one.arm, one.round, one.scorer): _pm(one) for one in rows_of(summary)}
    keys = summary[["axis", "arm", "round"]].drop_duplicates().itertuples(index=False)
    lines = [
        [code(arm), "all" if axis == POOLED else name(axis), str(round_), *[cells.get((axis, arm, round_, one), MISSING) for one in names]]
        for axis, arm, round_ in keys
    ]
    numbers = details("The numbers", table("Scores by arm, axis and round", ["Arm", "Axis", "Round", *map(name, names)], lines))
    more = [details(join(["Axis ", name(axis)]), group) for axis, group in groups[1:]]
    return join([svg.legend(run.arms), groups[0][1], *more, numbers, el("p", note, class_="small")])


def by_kl(run: Run, summary: pd.DataFrame) -> Markup:
    """How each scorer moves as the policies move away: the proxy may rise where gold and truth do not."""
    from apo_bench.report.figures import kl_or_bound  # matplotlib takes a second to import

    rows = summary[summary["axis"] == POOLED]
    against = rows[rows["scorer"].isin(run.scorers)].merge(kl_or_bound(rows), on=["arm", "round", "axis"])
    bounded = set(against.loc[against["bound"], "arm"])
    panels = [
        svg.panel(_title(scorer), series, "KL to the initial policy, nats", described=_described(scorer, POOLED, series, "KL"))
        for scorer in run.scorers
        if (series := _by_arm(run, against[against["scorer"] == scorer].sort_values("round"), "kl", "mean", "seed_sd", bounded, last=True))
    ]
    if not panels:
        return Markup()
    note = "All axes. Points are rounds in their order, the last one numbered; strokes are one sample SD over seeds."
    note += " Hollow points stand at an upper bound on the KL." if bounded else ""
    return join([svg.legend(run.arms), el("div", *panels, class_="panels"), el("p", note, class_="small")])


def budget(run: Run) -> Markup:
    """What each arm used of each unit that a match can speak of, beside what it was granted."""
    ledger = run.tables["ledger"]
    used = ledger[ledger["arm"].isin(run.arms)].groupby(["arm", "unit"])["used"].mean().to_dict()
    groups = []
    for one in (one for one in get_args(Unit) if one in MATCH_KINDS):
        limits = {arm: run.experiment.budget_of(arm).get(one) for arm in run.arms}
        amounts = {arm: used.get((arm, one), 0.0) for arm in run.arms if any((arm, unit_) in used for unit_ in MATCH_KINDS)}
        most = max([*amounts.values(), *(limit for limit in limits.values() if limit)], default=0.0)
        if not amounts or not most:
            continue
        lines = []
        for arm, amount in amounts.items():
            limit = limits[arm]
            drawn = svg.bar(amount / most, run.arms.index(arm), None if limit is None else limit / most)
            said = "" if limit is None else el("span", f" of {count(limit)}", class_="sub")
            cells = [el("td", drawn, class_="plot"), el("td", count(amount), said, class_="value")]
            lines.append(el("tr", el("th", code(arm), scope="row"), *cells))
        groups.append(el("table", el("caption", _first_up(unit(one))), el("tbody", *lines), class_="spent"))
    note = "Mean over seeds of what each arm is charged; a stroke is its budget, where one is set."
    return join([el("div", *groups, class_="panels"), el("p", note, class_="small")]) if groups else Markup()


def reward_models(run: Run, frame: pd.DataFrame) -> Markup:
    """Accuracy and calibration of each arm's reward model by round, and its reliability in the first and the last one."""
    rows, panels = frame[frame["axis"] == POOLED], []
    floors = run.tables["reward_models"]
    floor = floors[(floors["arm"] == "_floor") & (floors["metric"] == "accuracy_human") & (floors["axis"] == POOLED)]["value"].mean()
    for column, title in REWARD_MODELS.items():
        if column in rows and (series := _by_arm(run, rows, "round", column, f"{column}_sd")):
            line = None if column != "rm_accuracy_human" or math.isnan(floor) else float(floor)
            said = _described(title, POOLED, series)
            panels.append(svg.panel(title, series, "round", whole=True, described=said, reference=line))
    reliability, curves = results.reliability_curve(run), []
    for arm in run.arms:
        own = reliability[(reliability["arm"] == arm) & (reliability["round"] >= 1)]
        if len(own):
            curves.append(_reliability(arm, run.arms.index(arm), own))
    if not panels and not curves:
        return Markup()
    notes = ["Mean over seeds, with one sample SD to each side; all axes."]
    notes += [] if math.isnan(floor) else ["Dashes: a linear n-gram model fitted to what the experiment's own budget grants."]
    parts = [svg.legend(run.arms), el("div", *panels, class_="panels"), el("p", " ".join(notes), class_="small")] if panels else []
    if curves:
        said = "Accuracy on held-out human pairs against the reward model's confidence; larger marks hold more pairs. "
        said += "Hollow: the first round, filled: the last."
        parts += [el("h4", "Calibration"), el("div", *curves, class_="panels")]
        parts.append(el("p", said, class_="small"))
    return join(parts)


def judges(frames: Mapping[str, pd.DataFrame]) -> Markup:
    """Win rates, and how each judge did on pairs that people labelled and under attack."""
    if "judged" not in frames:
        return Markup()
    parts, audit = [], frames["judge_audit"]
    for judge, rows in frames["judged"].groupby("judge", sort=False):
        lines = []
        for row in sorted(rows_of(rows[rows["win_rate"].notna()]), key=lambda row: (row.arm_a, row.arm_b, row.axis != POOLED)):
            axis = "all axes" if row.axis == POOLED else name(row.axis)
            label = join([code(row.arm_a), " over ", code(row.arm_b), " ", el("span", axis, class_="sub")])
            numbers = (row.win_rate, row.ci_low, row.ci_high, number(row.win_rate))
            lines.append(Estimate(label, *numbers, f"{count(row.n_comparisons)} comparisons", 0.5))
        parts += [intervals(join(["Win rates by ", name(judge)]), lines, (0, 1))] if lines else []
        doubts = list(dict.fromkeys(one for one in rows["informative"] if one))
        parts += [el("p", "Not to be relied on: ", name("; ".join(doubts)), ".", class_="note")] if doubts else []
        own = rows_of(audit[(audit["judge"] == judge) & (audit["axis"] == POOLED)])
        found = {row.metric: row for row in own}
        lines = [_audited(label, found[metric], chance) for metric, (label, chance) in AUDITED.items() if metric in found]
        planted = [_audited(row.metric.removeprefix(ATTACK), row, 0.0) for row in own if row.metric.startswith(ATTACK)]
        caption = join(["Audit of ", name(judge), " on pairs with people's labels, all axes; the line is chance"])
        parts += [intervals(caption, lines, (0, 1))] if lines else []
        if planted:
            parts += [intervals(join(["Attacks on ", name(judge)]), planted, (0, 1)), el("p", ATTACKS, class_="small")]
    return join(parts)


def _audited(label: str, row: Row, chance: float) -> Estimate:
    return Estimate(name(label), row.value, row.ci_low, row.ci_high, minus(number(row.value)), f"{count(row.n)} pairs", chance)


def _reliability(arm: str, place: int, own: pd.DataFrame) -> Markup:
    series = []
    rounds = sorted({own["round"].min(), own["round"].max()})
    for round_ in rounds:
        one = own[own["round"] == round_].sort_values("bin")
        share = one["n"] / one["n"].sum()
        points = tuple(svg.Point(x, y, size=0.5 + 1.6 * w**0.5) for x, y, w in zip(one["confidence"], one["accuracy"], share, strict=True))
        series.append(svg.Series(f"round {round_}", place, points, hollow=round_ != rounds[-1]))
    low = min(0.5, *(point.y for one in series for point in one.points))
    said = f"{arm}: " + "; ".join(f"{one.name}: {_values(one)}" for one in series)
    return svg.panel(code(arm), series, "confidence", described=said, diagonal=True, limits=(low, 1.0))


def _by_arm(
    run: Run, rows: pd.DataFrame, x: str, y: str, spread: str, hollow: Iterable[str] = (), *, last: bool = False
) -> list[svg.Series]:
    found = []
    for place, arm in enumerate(run.arms):
        own = rows[rows["arm"] == arm].dropna(subset=[x, y]).fillna({spread: 0.0})
        labels = [""] * (len(own) - 1) + [str(one) for one in own["round"].tail(1)] if last else [""] * len(own)
        values = zip(own[x].tolist(), own[y].tolist(), own[spread].tolist(), labels, strict=True)
        points = tuple(svg.Point(float(a), float(b), float(s), label) for a, b, s, label in values)
        if points:
            found.append(svg.Series(arm, place, points, arm in hollow))
    return found


def _described(title: str, axis: str, series: Sequence[svg.Series], x: str = "round") -> str:
    where = "all axes" if axis == POOLED else axis
    return f"{_title(title)}, {where}, by {x}. " + ". ".join(f"{one.name}: {_values(one)}" for one in series)


def _values(one: svg.Series) -> str:
    return ", ".join(f"{point.x:.3g}: {point.y:.3f}" for point in one.points)


def _title(scorer: str) -> str:
    return {"proxy": "Proxy: each arm's own", "ground_truth": "Ground truth"}.get(scorer, scorer.removeprefix(JUDGE))


def _pm(one: Row) -> str:
    return minus(number(one.mean) if math.isnan(one.seed_sd) else f"{number(one.mean)} ± {number(one.seed_sd)}")


def _first_up(text: str) -> str:
    return text[:1].upper() + text[1:]
