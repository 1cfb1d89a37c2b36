"""Methods of committed reports: arms with where their scores belong, and which arms of several reports are one method."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd

from apo_bench.config.schema import JUDGE
from apo_bench.report.across_reports.committed import CommittedReport

TRUTH, ALL = "ground_truth", "all"
FEWEST = 3  # seeds of an arm; fewer make no test
ROUNDING = 1e-9  # of scores that were computed twice


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
class Twice:
    """A method that two reports measured: in how many seeds of both, and the largest difference of its scores there."""

    method: str
    kept: str
    other: str
    n_seeds: int
    apart: float


@dataclass(frozen=True)
class Method:
    """An arm, or arms of one name and settings in several reports, at one place.

    `settings`: JSON of all that its training depends on, "" where the report does not have it. `values`: scores by seed; without
    `has_seeds` numbers of the same mean and SD. `used`: what it spent, by unit. `untested`: why it is not ranked, or "".
    """

    place: Place
    reports: tuple[str, ...]
    name: str
    settings: str
    values: Mapping[Any, float]
    has_seeds: bool
    used: Mapping[str, float]
    untested: str
    twice: tuple[Twice, ...] = ()


def methods_of(report: CommittedReport) -> Iterator[Method]:
    """A report's arms, each at the place of every scorer that ranks: the declared ones, and the ground truth where there is one."""
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
            place, settings = place_of(report, scorer), settings_of(report, arm)
            yield Method(place, (report.name,), arm, settings, by_seed, has_seeds, spent.get(arm, {}), why)


def linked(arms: Sequence[Method]) -> list[list[Method]]:
    """Arms of one place, with those of other reports where a method is in both: its scores show whether the reports can be compared."""
    groups: list[list[Method]] = []
    for report in dict.fromkeys(arm.reports for arm in arms):
        own = [arm for arm in arms if arm.reports == report]
        keys = {_key(arm) for arm in own}
        near = [group for group in groups if keys & {_key(arm) for arm in group if arm.settings}]
        groups = [group for group in groups if group not in near] + [[*(arm for group in near for arm in group), *own]]
    return groups


def merged(arms: Iterable[Method]) -> list[Method]:
    """Arms of one name and settings as one method. Of a seed that several reports have, the score of the report with most seeds counts."""
    methods: dict[tuple[str, str, str], list[Method]] = {}
    for arm in arms:
        methods.setdefault((*_key(arm), "" if arm.settings and arm.has_seeds else arm.reports[0]), []).append(arm)
    return [_joined(sorted(same, key=lambda arm: -len(arm.values))) for same in methods.values()]


def _joined(same: Sequence[Method]) -> Method:
    first, *others = same
    twice = []
    for other in others:
        shared = first.values.keys() & other.values.keys()
        apart = max((abs(first.values[seed] - other.values[seed]) for seed in shared), default=0.0)
        apart = 0.0 if apart <= ROUNDING * max(map(abs, first.values.values())) else apart
        twice.append(Twice(first.name, first.reports[0], other.reports[0], len(shared), apart))
        first = replace(first, reports=(*first.reports, *other.reports), values={**other.values, **first.values})
    return replace(first, twice=tuple(twice))


def _key(arm: Method) -> tuple[str, str]:
    return arm.name, arm.settings


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
        "task": [use, _without_folders(task.get("options") or {})],
        "policy": {key: value for key, value in (models.get("policy") or {}).items() if key not in ("training", "sampling")},
        "scorer": next((gold for gold in models.get("gold") or [] if gold.get("name") == scorer), scorer),
        "evaluation": [evaluation.get(key) for key in ("sampling", "prompts")],
        "round": compare.get("round"),
    }
    return Place(use, words, json.dumps(comparable, sort_keys=True))


def settings_of(report: CommittedReport, arm: str) -> str:
    """What an arm's training depends on beside its seed and place: its method and options, the models that it trains, its budget."""
    tree = report.experiment or {}
    own, models = (tree.get("arms") or {}).get(arm), tree.get("models") or {}
    if not isinstance(own, Mapping):
        return ""
    policy = {key: value for key, value in (models.get("policy") or {}).items() if key in ("training", "sampling")}
    budget = {**(tree.get("budget") or {}), **(own.get("budget") or {})}
    return json.dumps(_without_folders([own, models.get("reward"), policy, budget]), sort_keys=True)


def _without_folders(value: Any) -> Any:
    """A value without the folders of its paths, which are a machine's."""
    match value:
        case Mapping():
            return {key: _without_folders(item) for key, item in value.items()}
        case list():
            return [_without_folders(item) for item in value]
        case str() if "/" in value:
            return PurePath(value).name
        case _:
            return value
