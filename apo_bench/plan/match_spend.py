"""`fit:` sizes an arm to spend what another arm does: a parameter of its method is solved on the planner, before anything is spent.

The solved value replaces the one in the experiment file. Nothing here imports torch until something is to be solved.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from apo_bench.config.plugins import resolve, source_files
from apo_bench.config.schema import Arm, Experiment, MatchSpend, Unit
from apo_bench.data.task import Task
from apo_bench.errors import BudgetExceeded, InputError, NotHere
from apo_bench.hashing import code_hash, digest
from apo_bench.models.pretrained_weights import by_content
from apo_bench.provenance import versions
from apo_bench.store import write_json

SEEDS = 2  # of the experiment's, that spending is averaged over: seeds differ little, except in which pairs are drawn
CLOSE = 0.01  # a parameter that is no whole number is solved to this share of the target
TOLERANCE = 0.05  # and within this one the least or the most that an arm can spend is good enough
MOST = 2**20  # no parameter is tried beyond
SAVED = "fits.json"  # in a run folder's store


@dataclass(frozen=True)
class MatchedArm:
    """How an arm was sized: `value` of its parameter `by` makes it spend `ratio` times as much of `unit` as arm `to`, by plan.

    `beside` holds the whole numbers next to the value with their ratios; none where the parameter is no whole number.
    """

    arm: str
    to: str
    unit: Unit
    by: str
    value: float
    ratio: float
    beside: tuple[tuple[int, float], ...] = ()


def size_arms(experiment: Experiment, task: Task, base: Path | None) -> dict[str, MatchedArm]:
    """Arm -> how it is sized, for every arm that has `fit`. `base` is the folder that method files are relative to.

    Spending is what the counting engine counts, a mean over the first seeds. Raises InputError, in one line that
    starts with `arms.<name>.fit`, where there is no such value; NotHere where a model that must be counted is not on this machine.
    """
    if not _requests(experiment):
        return {}
    from apo_bench.plan.arm_spend import counting_context

    context = counting_context(experiment, task)

    @cache
    def target(name: str, unit: Unit) -> float:
        arm = experiment.arms[name]
        try:
            return _spending(context, name, unit, resolve(arm.use, arm.parameters, base=base, arm=f"arms.{name}"))
        except InputError as error:
            raise InputError(f"arms.{name}: {str(error).removeprefix(f'arms.{name}: ')}") from None

    return {name: _solved(context, name, fit, target(fit.to, fit.unit), base) for name, fit in _requests(experiment).items()}


def read_or_size(folder: Path, experiment: Experiment, task: Task, base: Path) -> dict[str, MatchedArm]:
    """As `size_arms`, but read from the run folder where they were saved and still hold; nothing is written."""
    if not _requests(experiment):
        return {}
    try:
        saved = json.loads((folder / "store" / SAVED).read_text(encoding="utf-8"))
        if saved["key"] == _key(experiment, task, base):
            return {name: MatchedArm(**{**row, "beside": tuple(map(tuple, row["beside"]))}) for name, row in saved["fits"].items()}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass  # absent, or damaged: they are solved again
    return size_arms(experiment, task, base)


def save(folder: Path, experiment: Experiment, task: Task, base: Path, fits: Mapping[str, MatchedArm]) -> None:
    """Save the solved sizes for `read_or_size`."""
    if fits:
        rows = {name: asdict(size) for name, size in fits.items()}
        write_json(folder / "store" / SAVED, {"key": _key(experiment, task, base), "fits": rows})


def overrides(fits: Mapping[str, MatchedArm]) -> dict[str, Any]:
    """The solved values as replacements of an experiment's keys."""
    return {f"arms.{name}.{size.by}": size.value for name, size in fits.items()}


def with_sizes(experiment: Experiment, fits: Mapping[str, MatchedArm]) -> Experiment:
    """The experiment with its arms as they were sized."""
    arms = {name: with_value(arm, fits[name].by, fits[name].value) if name in fits else arm for name, arm in experiment.arms.items()}
    return experiment.model_copy(update={"arms": arms})


def solve(spent: Callable[[float], float], target: float, *, whole: bool, start: float = 1) -> tuple[float, str]:
    """The value at which `spent`, which grows with it, is nearest to `target`, and why it is no nearer ("": it lies between others).

    Whole numbers are searched from `start` on upwards. A value that `spent` raises InputError for cannot be had, nor can larger ones.
    Raises InputError where spending does not grow, and what `spent` raises at the first value.
    """
    low = start
    while not whole and spent(low) > target and low > start / 2**10:
        low /= 2
    if spent(low) >= target:
        return low, f"{low:g} is the least that is tried"
    first, before, high, refused, reason = low, math.nan, math.nan, math.nan, ""
    while math.isnan(high):  # low spends too little
        if refused - low <= (1 if whole else CLOSE * low):
            return low, reason
        if not math.isnan(refused):
            tried = (low + refused) // 2 if whole else (low + refused) / 2
        else:
            tried = 2 * low if math.isnan(before) else _met(spent, target, before, low, (2 * low, 8 * low), whole)
        try:
            if tried > MOST:
                raise InputError(f"more than {MOST:,} is not tried")
            spending = spent(tried)
        except InputError as error:
            refused, reason = tried, f"{tried:g}: {error}"
            continue
        if tried >= 64 * first and spending <= (1 + CLOSE) * spent(first):
            raise InputError(f"the spending does not grow with it: {spent(first):.4g} at {first:g}, {spending:.4g} at {tried:g}")
        if spending >= target:
            high = tried
        else:
            before, low = low, tried

    def done() -> bool:
        return (
            high - low <= 1 if whole else high / low <= 1 + CLOSE / 10 or min(abs(spent(end) / target - 1) for end in (low, high)) <= CLOSE
        )

    step = 0
    while not done():
        margin = 1 if whole else (high - low) / 20
        tried = _met(spent, target, low, high, (low + margin, high - margin), whole)
        if step % 3 == 2:  # a line through a curve's ends may creep
            tried = (low + high) // 2 if whole else (low + high) / 2
        low, high = (tried, high) if spent(tried) < target else (low, tried)
        step += 1
    return min(low, high, key=lambda value: abs(spent(value) - target)), ""


def _met(spent: Callable[[float], float], target: float, a: float, b: float, within: tuple[float, float], whole: bool) -> float:
    """Where the line through two values meets the target, saved within bounds."""
    slope = (spent(b) - spent(a)) / (b - a)
    met = min(max(a + (target - spent(a)) / slope if slope > 0 else math.inf, within[0]), within[1])
    return round(met) if whole else met


def _requests(experiment: Experiment) -> dict[str, MatchSpend]:
    for name, arm in experiment.arms.items():
        if arm.fit and "." in name:  # its parameters are dotted keys
            raise InputError(f"arms.{name}.fit: an arm with a dot in its name cannot be sized")
        if arm.fit and arm.fit.by.partition(".")[0] in Arm.model_fields:
            raise InputError(f"arms.{name}.fit.by: {arm.fit.by}: no parameter of a method")
    return {name: arm.fit for name, arm in experiment.arms.items() if arm.fit}


def _solved(context: Any, name: str, fit: MatchSpend, target: float, base: Path | None) -> MatchedArm:
    arm: Arm = context.experiment.arms[name]
    where = f"arms.{name}.fit.by: {fit.by}"
    start = _first_value(arm, name, fit.by, base)
    whole = isinstance(start, int)

    @cache
    def spent(value: float) -> float:
        sized = with_value(arm, fit.by, value)
        return _spending(context, name, fit.unit, resolve(sized.use, sized.parameters, base=base, arm=f"arms.{name}"))

    if math.isnan(target) or math.isnan(spent(start)):
        raise NotHere(f"arms.{name}.fit: {fit.unit} cannot be counted: a model of the experiment is not on this machine")
    if not target:
        raise InputError(f"arms.{name}.fit.to: {fit.to} spends no {fit.unit}")
    try:
        value, limit = solve(spent, target, whole=whole, start=start)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if limit and abs(spent(value) / target - 1) > TOLERANCE:
        what = f"{fit.to} spends {target:.4g} {fit.unit}, {name} with {value:g} spends {spent(value):.4g}"
        raise InputError(f"{where}: cannot be reached: {what}; {limit}")
    value = value if whole else float(f"{value:.4g}")
    beside = []
    for near in (value - 1, value + 1) if whole else ():
        try:
            beside.append((near, spent(near) / target))
        except InputError:
            continue  # one that cannot be had
    return MatchedArm(name, fit.to, fit.unit, fit.by, value, spent(value) / target, tuple(beside))


def _first_value(arm: Arm, name: str, by: str, base: Path | None) -> float:
    """What its type allows: 1.5 or 0.5, or, where the parameter is a whole number, 1 or 2. Raises InputError where it is no number."""
    refusal = None
    for value in (1.5, 0.5, 1, 2):
        try:
            sized = with_value(arm, by, value)
            resolve(sized.use, sized.parameters, base=base, arm=f"arms.{name}")
            return value
        except InputError as error:
            refusal = error
    raise InputError(f"arms.{name}.fit.by: {by} is no number that can be changed: {refusal}")


def with_value(arm: Arm, by: str, value: float) -> Arm:
    """The arm with a dotted parameter of its method set. Raises InputError where the way to it is not in the arm."""
    fields = json.loads(arm.model_dump_json())
    *parents, last = by.split(".")
    inner = fields
    for parent in parents:
        if not isinstance(inner.get(parent), dict):
            raise InputError(f"{by}: the arm gives no {parent} with parameters")
        inner = inner[parent]
    inner[last] = value
    return Arm.model_validate(fields)


def _spending(context: Any, arm: str, unit: Unit, method: Any) -> float:
    """What the method spends as this arm, a mean over the first seeds."""
    seeds = context.experiment.seeds[:SEEDS]
    total = 0.0
    for seed in seeds:
        lab = context.lab(seed, arm=arm)
        try:
            method.run(lab)
        except BudgetExceeded as error:
            raise InputError(f"the arm's own budget forbids it: {error}") from None
        except InputError:
            raise
        except (Exception, SystemExit, GeneratorExit) as error:  # a user's method may raise anything
            raise InputError(f"{type(error).__name__}: {error}") from None
        total += lab.used[unit]
    return total / len(seeds)


def _key(experiment: Experiment, task: Task, base: Path) -> str:
    """Names everything that sizes depend on."""
    fits = _requests(experiment)
    arms = {name: with_value(arm, fits[name].by, 0) if name in fits else arm for name, arm in experiment.arms.items()}
    methods = [source_files(arm.use, arm.parameters, base=base) for arm in experiment.arms.values()]
    return digest({
        "experiment": {
            **experiment.model_dump(mode="json", include={"seeds", "budget"}),
            "evaluation": experiment.evaluation.model_dump(mode="json", exclude={"prompt_sets", "capabilities"}),
        },
        "models": by_content(experiment.models).model_dump(mode="json"),
        "arms": {name: arm.model_dump(mode="json") for name, arm in arms.items()},
        "task": task.fingerprint,
        "code": [code_hash(__name__, *task.source_files), *(code_hash(*files) for files in methods)],
        "versions": versions(),
    })  # fmt: skip
