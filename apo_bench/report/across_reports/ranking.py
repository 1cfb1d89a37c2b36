"""Methods of committed reports ranked where they can be compared: one task and world, one policy, one scorer, one annotation budget.

Reports are combined where a method is in both with the same settings. A table is of seeds that all its methods have, so every seed is
compared with itself; a method that would cost the others more than half of theirs stands in a table of its own.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from apo_bench.formatting import count, number, rows_of
from apo_bench.report.across_reports.committed import CommittedReport
from apo_bench.report.across_reports.methods import FEWEST, Method, Place, Twice, linked, merged, methods_of
from apo_bench.stats import rank_sets

CLUSTERS = 3  # that a seed's mean stands for, alike in all: the two-way error is then the seeds' own
CLOSE = 0.05  # by so much of it budgets that count as one may differ
KEPT = 0.5  # share of the most seeds that a table keeps at least
UNITS = {"human_pairs": "human pairs", "golden_responses": "golden responses"}
NO_BUDGET = "annotation budget not in the report's tables"
COLUMNS = [
    "arm",
    "label",
    "report",
    "mean",
    "rank_low",
    "rank_high",
    "difference",
    "standard_error",
    "ci_low",
    "ci_high",
    "n_seeds",
    "flops",
]


@dataclass(frozen=True)
class Ranked:
    """Methods at one place and annotation budget, best first.

    `table`: COLUMNS; `difference` is that from the first; `label` is the arm, with its reports where another arm has its name. All
    intervals and ranks of the table hold together at 95 %, as each does by itself at 1 - `alpha`. `is_paired`: every seed is compared with
    itself. `twice`: what several reports measured.
    """

    place: Place
    budget: str
    reports: tuple[str, ...]
    is_paired: bool
    table: pd.DataFrame
    alpha: float
    twice: tuple[Twice, ...] = ()


@dataclass(frozen=True)
class LeftOut:
    """An arm that stands in no table, and why."""

    report: str
    arm: str
    reason: str


def rankings(reports: Iterable[CommittedReport]) -> tuple[tuple[Ranked, ...], tuple[LeftOut, ...]]:
    """All methods of all reports, ranked by place and annotation budget, and those that are in no table.

    Scores are each arm's last round's, all axes together, by the declared scorer and by the ground truth where there is one. A declared
    scorer by which a report tests nothing ranks nothing either.
    """
    arms = [arm for report in reports for arm in methods_of(report)]
    tables, left_out = [], [_left_out(arm, arm.untested) for arm in arms if arm.untested]
    for place in dict.fromkeys(arm.place for arm in arms):
        for group in linked([arm for arm in arms if arm.place == place and not arm.untested]):
            for budget, members in _by_budget(merged(group)).items():
                for cohort in _by_seeds(members):
                    if len(cohort) > 1:
                        tables.append(_ranked(place, budget, cohort))
                    else:
                        left_out += [_left_out(arm, f"alone with {budget} at {len(arm.values)} seeds") for arm in cohort]
    return tuple(tables), tuple(dict.fromkeys(left_out))


def _left_out(arm: Method, reason: str) -> LeftOut:
    return LeftOut(", ".join(arm.reports), arm.name, reason)


def _by_budget(arms: Sequence[Method]) -> dict[str, list[Method]]:
    """Arms by annotation budget, each with the first that is close to its own."""
    classes: list[tuple[list[float], list[Method]]] = []
    for arm in arms:
        budget = [arm.used.get(unit, np.nan) for unit in UNITS]
        near = (members for first, members in classes if np.allclose(budget, first, rtol=CLOSE, atol=0, equal_nan=True))
        members = next(near, None)
        if members is None:
            classes.append((budget, [arm]))
        else:
            members.append(arm)
    return {_words(budget): members for budget, members in classes}


def _words(budget: Sequence[float]) -> str:
    if np.isnan(budget).any():
        return NO_BUDGET
    return ", ".join(f"{count(float(f'{used:.3g}'))} {words}" for used, words in zip(budget, UNITS.values(), strict=True))


def _by_seeds(arms: Sequence[Method]) -> list[list[Method]]:
    """Arms in tables whose seeds all their arms share: at least KEPT of the most that any has. Without seeds' names all are together."""
    if not all(arm.has_seeds for arm in arms):
        return [list(arms)]
    cohorts, left = [], sorted(arms, key=lambda arm: -len(arm.values))
    while left:
        shared, most, cohort = set(left[0].values), len(left[0].values), []
        for arm in left:
            if len(shared & arm.values.keys()) >= max(FEWEST, KEPT * most):
                shared &= arm.values.keys()
                cohort.append(arm)
        left = [arm for arm in left if arm not in cohort]
        cohorts.append([arm for arm in arms if arm in cohort])
    return cohorts


def _ranked(place: Place, budget: str, arms: Sequence[Method]) -> Ranked:
    is_paired = all(arm.has_seeds for arm in arms)
    shared = set.intersection(*(set(arm.values) for arm in arms))
    rows = [
        (str(number), str(seed), cluster, value)
        for number, arm in enumerate(arms)
        for seed, value in arm.values.items()
        if not is_paired or seed in shared
        for cluster in range(CLUSTERS)
    ]
    ranks = rank_sets(pd.DataFrame(rows, columns=["arm", "seed", "prompt_id", "value"]), paired_seeds=is_paired)
    first, pairs = ranks.table["arm"].iloc[0], ranks.contrasts.table
    against: dict[str, tuple[float, ...]] = {first: (math.nan,) * 4}
    for row in rows_of(pairs[(pairs["a"] == first) | (pairs["b"] == first)]):
        if row.b == first:
            against[row.a] = row.difference, row.standard_error, row.ci_low, row.ci_high
        else:
            against[row.b] = -row.difference, row.standard_error, -row.ci_high, -row.ci_low
    names, lines = Counter(arm.name for arm in arms), []
    for row in rows_of(ranks.table):
        arm = arms[int(row.arm)]
        n_seeds = len(shared) if is_paired else len(arm.values)
        sources = ", ".join(arm.reports)
        where = arm.name, f"{arm.name} ({sources})" if names[arm.name] > 1 else arm.name, sources, row.mean, row.rank_low, row.rank_high
        lines.append((*where, *against[row.arm], n_seeds, arm.used.get("flops", math.nan)))
    reports = tuple(dict.fromkeys(report for arm in arms for report in arm.reports))
    twice = tuple(pair for arm in arms for pair in arm.twice)
    table = pd.DataFrame(lines, columns=COLUMNS)
    return Ranked(place, budget, reports, is_paired, table, ranks.contrasts.pointwise_alpha, twice)


def not_combined(tables: Sequence[Ranked]) -> dict[str, list[str]]:
    """By task, why its reports are not all combined: a sentence for each reason."""
    reasons: dict[str, list[str]] = {}
    for task in dict.fromkeys(table.place.task for table in tables):
        own = [table for table in tables if table.place.task == task]
        places = dict.fromkeys(table.place for table in own)
        alone = dict.fromkeys(place.alone for place in places if place.alone)
        known = [(place.scorer, json.loads(place.comparable)) for place in places if not place.alone]
        pairs = [(a, b) for scorer, a in known for other, b in known if scorer == other]
        differing = dict.fromkeys(key for a, b in pairs for key in a if a[key] != b[key])
        apart = [_apart([table.reports for table in own if table.place == place]) for place in places]
        reasons[task] = []
        if len(alone) + bool(known) > 1:
            reasons[task].append(
                f"Not combined: {', '.join(alone)}. Their reports lack the experiment as it was run (rerun.yaml), so whether they share "
                "world, policy, scorer and sampling is not known."
            )
        if differing:
            reasons[task].append(f"Experiments of another {', '.join(differing)} are not combined.")
        reasons[task] += [
            f"Not combined with one another: {'; '.join(groups)}. No method is in two of these with the same settings."
            for groups in dict.fromkeys(apart)
            if len(groups) > 1
        ]
    return reasons


def _apart(tables: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The reports of one place in the groups that share tables."""
    groups: list[dict[str, None]] = []
    for reports in tables:
        near = [group for group in groups if group.keys() & set(reports)]
        joined = {report: None for group in near for report in group} | dict.fromkeys(reports)
        groups = [group for group in groups if group not in near] + [joined]
    return tuple(", ".join(group) for group in groups)


def agreement(ranked: Ranked) -> list[str]:
    """Whether methods that several reports measured have the same scores in each: a sentence for those that do, and one for each other."""
    same = [pair for pair in ranked.twice if not pair.apart]
    sources = ", ".join(dict.fromkeys(report for pair in same for report in (pair.kept, pair.other)))
    methods = ", ".join(dict.fromkeys(pair.method for pair in same))
    sentences = [f"With the same scores in each of {sources} that has them: {methods}."] if same else []
    return sentences + [
        f"{pair.method} scores otherwise in {pair.other} than in {pair.kept}, by up to {number(pair.apart)} in their {pair.n_seeds} shared "
        f"seeds, at the same settings: another version of the code, or another machine. The scores of {pair.kept} count."
        for pair in ranked.twice
        if pair.apart
    ]
