"""Methods of committed reports ranked where they can be compared: one task and world, one policy, one scorer, one annotation budget."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd

from apo_bench.config.schema import JUDGE
from apo_bench.formatting import count
from apo_bench.report.across_reports.committed import CommittedReport
from apo_bench.stats import rank_sets

TRUTH, ALL = "ground_truth", "all"
FEWEST = 3  # seeds of an arm; fewer make no test
CLUSTERS = 3  # that a seed's mean stands for, alike in all: the two-way error is then the seeds' own
CLOSE = 0.05  # by so much of it budgets that count as one may differ
UNITS = {"human_pairs": "human pairs", "golden_responses": "golden responses"}
NO_BUDGET = "annotation budget not in the report's tables"
COLUMNS = ["arm", "report", "mean", "rank_low", "rank_high", "difference", "ci_low", "ci_high", "n_seeds", "flops"]


@dataclass(frozen=True)
class Place:
    """What has to be equal for scores to be compared: the scorer, and `comparable`, JSON of what an experiment says of its task, policy,
    scorer and evaluation. Without that a report is a place of its own, `alone`.
    """

    task: str
    scorer: str
    comparable: str
    alone: str = ""


@dataclass(frozen=True)
class Ranked:
    """Arms at one place and annotation budget, best first. `table`: COLUMNS; `difference` is that from the first arm.

    All intervals and ranks of the table hold together at 95 %. `is_paired`: every seed is compared with itself.
    """

    place: Place
    budget: str
    reports: tuple[str, ...]
    is_paired: bool
    table: pd.DataFrame


@dataclass(frozen=True)
class LeftOut:
    """An arm that stands in no table, and why."""

    report: str
    arm: str
    reason: str


@dataclass(frozen=True)
class _Arm:
    place: Place
    report: str
    name: str
    values: Mapping[Any, float]  # by seed
    has_seeds: bool
    used: Mapping[str, float]
    untested: str


def rankings(reports: Iterable[CommittedReport]) -> tuple[tuple[Ranked, ...], tuple[LeftOut, ...]]:
    """All arms of all reports, ranked by place and annotation budget, and those that are in no table.

    Scores are each arm's last round's, all axes together, by the declared scorer and by the ground truth where there is one. A declared
    scorer by which a report tests nothing ranks nothing either.
    """
    arms = [arm for report in reports for arm in _arms(report)]
    tables, left_out = [], []
    for place in dict.fromkeys(arm.place for arm in arms):
        for budget, members in _by_budget([arm for arm in arms if arm.place == place]).items():
            ranked = [arm for arm in members if not arm.untested]
            left_out += [LeftOut(arm.report, arm.name, arm.untested) for arm in members if arm.untested]
            if len(ranked) > 1:
                tables.append(_ranked(place, budget, ranked))
            else:
                left_out += [LeftOut(arm.report, arm.name, f"alone with {budget}") for arm in ranked]
    return tuple(tables), tuple(dict.fromkeys(left_out))


def _by_budget(arms: Sequence[_Arm]) -> dict[str, list[_Arm]]:
    """Arms by annotation budget, each with the first that is close to its own."""
    classes: list[tuple[list[float], list[_Arm]]] = []
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


def _ranked(place: Place, budget: str, arms: Sequence[_Arm]) -> Ranked:
    shared = set.intersection(*(set(arm.values) for arm in arms)) if all(arm.has_seeds for arm in arms) else set()
    is_paired = len(shared) >= FEWEST
    rows = [
        (str(number), str(seed), cluster, value)
        for number, arm in enumerate(arms)
        for seed, value in arm.values.items()
        if not is_paired or seed in shared
        for cluster in range(CLUSTERS)
    ]
    ranks = rank_sets(pd.DataFrame(rows, columns=["arm", "seed", "prompt_id", "value"]), paired_seeds=is_paired)
    first = ranks.table["arm"].iloc[0]
    against: dict[str, tuple[float, ...]] = {first: (np.nan,) * 3}
    for row in ranks.contrasts.table.to_dict("records"):
        if row["b"] == first:
            against[row["a"]] = row["difference"], row["ci_low"], row["ci_high"]
        elif row["a"] == first:
            against[row["b"]] = -row["difference"], -row["ci_high"], -row["ci_low"]
    lines = []
    for row in ranks.table.to_dict("records"):
        arm = arms[int(row["arm"])]
        n_seeds = len(shared) if is_paired else len(arm.values)
        place_of_arm = arm.name, arm.report, row["mean"], row["rank_low"], row["rank_high"]
        lines.append((*place_of_arm, *against[row["arm"]], n_seeds, arm.used.get("flops", np.nan)))
    return Ranked(place, budget, tuple(dict.fromkeys(arm.report for arm in arms)), is_paired, pd.DataFrame(lines, columns=COLUMNS))


def _arms(report: CommittedReport) -> Iterator[_Arm]:
    contrasts, spent = report.tables["contrasts"], _spent(report.tables["budget"])
    primary = contrasts[contrasts["family"] == "primary"]
    for scorer in dict.fromkeys((*primary["scorer"], TRUTH)):
        if scorer.startswith(JUDGE):
            continue
        tests = primary[primary["scorer"] == scorer]
        untested = "" if scorer == TRUTH or tests["p_value"].notna().any() else tests["test"].iloc[0].removeprefix("none: ")
        values, has_seeds = _values(report, scorer)
        for arm, by_seed in values.items():
            why = "fewer than three seeds" if len(by_seed) < FEWEST else f"by {scorer}: {untested}" if untested else ""
            yield _Arm(place_of(report, scorer), report.name, arm, by_seed, has_seeds, spent.get(arm, {}), why)


def _values(report: CommittedReport, scorer: str) -> tuple[dict[str, Mapping[Any, float]], bool]:
    """Mean scores of arms by seed, every prompt alike; without such a table, numbers that have the arm's mean and SD over seeds.

    Of arms whose seeds are not paired, the difference and its error depend on nothing else.
    """
    rows = report.tables["arm_seeds"]
    if not rows.empty:
        rows = rows[(rows["scorer"] == scorer) & (rows["axis"] != ALL)].dropna(subset=["mean"])
        sums = rows.assign(total=rows["mean"] * rows["n_prompts"]).groupby(["arm", "seed"], sort=False)[["total", "n_prompts"]].sum()
        means = sums["total"] / sums["n_prompts"]
        return {arm: means[arm].to_dict() for arm in dict.fromkeys(rows["arm"])}, True
    rows = report.tables["summary"]
    rows = rows[(rows["scorer"] == scorer) & (rows["axis"] == ALL) & (rows["round"] > 0)].dropna(subset=["mean", "n_seeds"])
    last = rows.loc[rows.groupby("arm", sort=False)["round"].idxmax()] if len(rows) else rows
    return {row["arm"]: _like(row["mean"], row["seed_sd"], int(row["n_seeds"])) for row in last.to_dict("records")}, False


def _like(mean: float, sd: float, n: int) -> dict[Any, float]:
    """n numbers with this mean and sample SD."""
    steps = np.arange(n) - (n - 1) / 2
    return dict(enumerate((mean + sd * steps / steps.std(ddof=1)).tolist() if n > 1 else [mean]))


def _spent(budget: pd.DataFrame) -> dict[str, dict[str, float]]:
    """What each arm spent, by unit; of several contrasts the first."""
    spent: dict[str, dict[str, float]] = {}
    for row in budget.to_dict("records"):
        for side in "ab":
            spent.setdefault(row[f"arm_{side}"], {}).setdefault(row["unit"], row[f"used_{side}"])
    return spent


def place_of(report: CommittedReport, scorer: str) -> Place:
    """Where a report's scores belong. What only training depends on is the methods' own affair."""
    words = "ground truth" if scorer == TRUTH else scorer
    if report.experiment is None:
        return Place(report.task or "task not known", words, "{}", report.name)
    models, task, evaluation, compare = (report.experiment.get(key) or {} for key in ("models", "task", "evaluation", "compare"))
    task = task if isinstance(task, Mapping) else {"use": task}
    use = PurePath(str(task.get("use"))).name
    comparable = {
        "task": [use, {key: _without_folders(value) for key, value in (task.get("options") or {}).items()}],
        "policy": {key: value for key, value in (models.get("policy") or {}).items() if key not in ("training", "sampling")},
        "scorer": next((gold for gold in models.get("gold") or [] if gold.get("name") == scorer), scorer),
        "evaluation": [evaluation.get(key) for key in ("sampling", "prompts")],
        "round": compare.get("round"),
    }
    return Place(use, words, json.dumps(comparable, sort_keys=True))


def _without_folders(value: Any) -> Any:
    """A value without the folders of its paths, which are a machine's."""
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return PurePath(value).name if isinstance(value, str) and "/" in value else value


def not_combined(tables: Sequence[Ranked]) -> dict[str, list[str]]:
    """By task, why its reports are not all combined: a sentence for those that stand alone, and one for what the others differ in."""
    reasons: dict[str, list[str]] = {}
    for task in dict.fromkeys(table.place.task for table in tables):
        places = dict.fromkeys(table.place for table in tables if table.place.task == task)
        alone = dict.fromkeys(place.alone for place in places if place.alone)
        known = [(place.scorer, json.loads(place.comparable)) for place in places if not place.alone]
        pairs = [(a, b) for scorer, a in known for other, b in known if scorer == other]
        differing = dict.fromkeys(key for a, b in pairs for key in a if a[key] != b[key])
        reasons[task] = []
        if len(alone) + bool(known) > 1:
            reasons[task].append(
                f"Not combined: {', '.join(alone)}. Their reports lack the experiment as it was run (rerun.yaml), so whether they share "
                "world, policy, scorer and sampling is not known."
            )
        if differing:
            reasons[task].append(f"Experiments of another {', '.join(differing)} are not combined.")
    return reasons
