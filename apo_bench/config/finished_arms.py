"""Arms that are already trained, as an experiment file describes them: their paths and settings, and what they declare to have cost."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from apo_bench.config.schema import Arm, Experiment, FinishedModel, PolicyModel, Unit

FINISHED = "apo_bench.finished@Finished"
MODELS, FILES = ("policies", "adapters", "base"), ("responses",)


def finished_arms(experiment: Experiment) -> dict[str, Arm]:
    """The arms that are already trained, by name."""
    return {name: arm for name, arm in experiment.arms.items() if arm.use == FINISHED}


def with_paths(arm: Arm, model: Callable[[str], Any], file: Callable[[str], Any]) -> Arm:
    """The arm with the paths of its models and its files changed; any other arm as it is."""
    if arm.use != FINISHED:
        return arm
    changes = [(name, change) for names, change in ((MODELS, model), (FILES, file)) for name in names]
    return arm.model_copy(update={name: _each(arm.parameters[name], change) for name, change in changes if arm.parameters.get(name)})


def paths(arm: Arm) -> Iterator[tuple[str, str]]:
    """Each path with its dotted key in the arm."""
    for name in (*MODELS, *FILES):
        yield from _named(name, arm.parameters.get(name))


def is_same_in_every_seed(arm: Arm) -> bool:
    """Whether one checkpoint, or one file, stands for all seeds."""
    return arm.use == FINISHED and not any(isinstance(arm.parameters.get(name), Mapping) for name in (*MODELS, *FILES))


def declared_cost(arm: Arm) -> dict[Unit, float] | None:
    """What an arm that is already trained declares to have cost; None of any other arm."""
    return (arm.parameters.get("cost") or {}) if arm.use == FINISHED else None


def finished_models(experiment: Experiment) -> Iterator[tuple[str, PolicyModel]]:
    """The settings of each finished policy that is a whole model, with its key in the experiment."""
    for name, arm in finished_arms(experiment).items():
        own = FinishedModel.model_validate_json(json.dumps(arm.parameters.get("model") or {}))
        for key, path in paths(arm):
            if key.partition(".")[0] in ("policies", "base"):
                yield f"arms.{name}.{key}", own.on(experiment.models.policy, path)


def _each(value: Any, change: Callable[[str], Any]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _each(part, change) for key, part in value.items()}
    return [_each(part, change) for part in value] if isinstance(value, list | tuple) else value


def _named(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for part, inner in parts:
        yield from _named(f"{key}.{part}", inner)
