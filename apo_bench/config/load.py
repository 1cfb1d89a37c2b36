"""Experiment files: YAML -> Experiment, and back. Every error names file and key in one line; those of the schema come together."""

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from apo_bench.config.plain_yaml import PlainDumper, read_yaml
from apo_bench.config.schema import WHOLE, Experiment
from apo_bench.config.schema_errors import input_error
from apo_bench.errors import InputError


def dump_experiment(experiment: Experiment) -> str:
    """The experiment as YAML that `load_experiment` reads back as it is, every default written out."""
    return yaml.dump(experiment.model_dump(mode="json", context=WHOLE), Dumper=PlainDumper, sort_keys=False)


@dataclass(frozen=True)
class ExperimentFile:
    """An experiment file, parsed once. `experiment` is what it says under `overrides`; models have the names that the file gives them."""

    path: Path
    tree: Mapping[str, Any]  # the parsed file, without overrides
    overrides: Mapping[str, Any]
    experiment: Experiment

    def under(self, overrides: Mapping[str, Any]) -> "ExperimentFile":
        """The same file under these overrides instead; it is not read again. Raises InputError as `read_experiment` does."""
        return ExperimentFile(self.path, self.tree, overrides, _validated(self.path, self.tree, overrides))


def read_experiment(path: Path, overrides: Mapping[str, Any] | None = None) -> ExperimentFile:
    """Read and validate an experiment file. Nothing is guessed: the text "3" is no number, true is not 1.

    `overrides` maps dotted keys ("models.policy.path") to values and is applied before validation.
    Raises InputError, one line naming file and key.
    """
    tree = read_yaml(path, str(path))
    if not isinstance(tree, dict):
        raise InputError(f"{path}: an experiment is a mapping of keys, got {type(tree).__name__}")
    return ExperimentFile(path, tree, overrides or {}, _validated(path, tree, overrides or {}))


def load_experiment(path: Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """The experiment that a file describes. As `read_experiment`."""
    return read_experiment(path, overrides).experiment


def _validated(path: Path, tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> Experiment:
    try:
        changed = deepcopy(dict(tree))
    except RecursionError as error:
        raise InputError(f"{path}: not plain data: {error}") from None
    for key, value in overrides.items():
        _assign(changed, key, value)
    try:  # as JSON, where strictness takes a list for a tuple
        return Experiment.model_validate_json(json.dumps(changed), strict=True)
    except ValidationError as error:
        raise input_error(str(path), error, changed, Experiment) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not plain data: {error}") from None


def dotted(tree: Any, key: str = "") -> dict[str, Any]:
    """The values of nested mappings by dotted key; an empty mapping is a value."""
    if not isinstance(tree, dict) or not tree:
        return {key: tree}
    return {name: value for part, inner in tree.items() for name, value in dotted(inner, f"{key}.{part}" if key else str(part)).items()}


def _assign(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if isinstance(child, str) and parent == "task":
            child = tree[parent] = {"use": child}
        if not isinstance(child, dict):
            raise InputError(f"--set {dotted}: {parent!r} is not a mapping")
        tree = child
    tree[last] = deepcopy(value)  # a later override may change a part of it, and the mapping is the caller's
