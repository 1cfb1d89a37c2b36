"""The variations of an experiment: every combination of the levels under its key `vary`, each an experiment of its own."""

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from typing import Any

from apo_bench.config.schema import DRAWN, Experiment, Level
from apo_bench.errors import InputError

NAME_LENGTH = 24  # of a mapping level in a label


@dataclass(frozen=True)
class Variation:
    """One level of every factor that varies. `label` names its folder; `overrides` turn the experiment into it."""

    label: str
    levels: Mapping[str, Level]
    overrides: Mapping[str, Any]

    def over(self, overrides: Mapping[str, Any] | None) -> dict[str, Any]:
        """The user's overrides followed by the variation's, which take precedence."""
        return deepcopy({key: value for key, value in (overrides or {}).items() if key not in self.overrides} | dict(self.overrides))


def variations(experiment: Experiment) -> tuple[Variation, ...]:
    """Every combination of levels, the last factor fastest; none where nothing varies.

    An int is a seed: of the world, of the initial policy's first weights and warm-up, or the one seed of every gold model. A mapping
    replaces fields: of task.options, of models.policy, or all gold models by the one it describes; dots in its keys lead deeper. A level
    of a dotted key of the experiment is its value; the key's last word stands in the label.
    Raises InputError, naming the key, for a seed of a policy without an architecture and for a level given twice.
    """
    if not experiment.vary:
        return ()
    factors = list(experiment.vary)
    combinations = []
    for combination in product(*(_levels(experiment, factor) for factor in factors)):
        label = ",".join(f"{name_of(factor)}={name}" for factor, (name, _, _) in zip(factors, combination, strict=True))
        levels = {name_of(factor): level for factor, (_, level, _) in zip(factors, combination, strict=True)}
        overrides = {key: value for _, _, changes in combination for key, value in changes.items()}
        combinations.append(Variation(label, levels, {**overrides, "vary": {}}))
    return tuple(combinations)


def name_of(factor: str) -> str:
    """A factor's name in labels and tables: of a dotted key, its last word."""
    return factor.rpartition(".")[2]


def _levels(experiment: Experiment, factor: str) -> Iterator[tuple[str, Level, dict[str, Any]]]:
    """(name, level, overrides) of each of a factor's levels."""
    levels: Sequence[Level] = experiment.vary[factor]
    seen: list[dict[str, Any]] = []
    for place, (name, level) in enumerate(zip(_names(levels), levels, strict=True)):
        if factor == "initial_policy" and isinstance(level, int) and experiment.models.policy.architecture is None:
            raise InputError(
                f"vary.{factor}.{place}: a seed needs a models.policy.architecture; give fields instead, such as {{path: ...}}"
            )
        changes = _overrides(experiment, factor, level)
        if changes in seen:
            raise InputError(f"vary.{factor}.{place}: the same as vary.{factor}.{seen.index(changes)}")
        seen.append(changes)
        yield name, level, changes


def _overrides(experiment: Experiment, factor: str, level: Level) -> dict[str, Any]:
    if factor == "gold":
        golds = [gold.model_dump(mode="json") for gold in experiment.models.gold]
        return {"models.gold": [{**gold, "seeds": [level]} for gold in golds] if isinstance(level, int) else [level]}
    if factor not in DRAWN:
        return {factor: level}
    section, seed = {"world": ("task.options", "world_seed"), "initial_policy": ("models.policy", "seed")}[factor]
    return {f"{section}.{key}": value for key, value in (level if isinstance(level, dict) else {seed: level}).items()}


def _names(levels: Sequence[Level]) -> list[str]:
    """A name for each level that is safe in a path: a seed's number, a value, a mapping's values. Distinct even where case is ignored."""
    taken = {str(level) for level in levels if isinstance(level, int)}
    names = []
    for level in levels:
        if isinstance(level, int):
            names.append(str(level))
            continue
        words = "-".join(str(value).rstrip("/").rpartition("/")[2] for value in _leaves(level))  # of a path, the last part
        stem = re.sub(r"[^A-Za-z0-9._]+", "-", words)[:NAME_LENGTH].strip("-.") or "as_is"
        name, number = stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.lower())
        names.append(name)
    return names


def _leaves(value: Any) -> Iterator[Any]:
    """The plain values inside mappings and lists, except null."""
    if isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(part)
    elif value is not None:
        yield value
