"""An experiment's YAML text -> Experiment, and back. Every error names file and key in one line."""

import json
import re
import reprlib
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from apo_bench.config.schema import Experiment
from apo_bench.errors import InputError


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice (PyYAML keeps the last, silently) and reads 1e-3 as a number, a date as text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise InputError(f"key {key!r} is not text (line {line}); put it in quotes")
            if key in keys:
                raise InputError(f"key {key!r} occurs twice (line {line})")
            keys.add(key)
        return super().construct_mapping(node, deep)


_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# PyYAML follows YAML 1.1, where 1e-3 is text; experiment files write learning rates that way.
_EXPONENT = ("tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789."))
_PlainLoader.add_implicit_resolver(*_EXPONENT)


class _PlainDumper(yaml.SafeDumper):
    """Quotes text that _PlainLoader would read as a number."""


_PlainDumper.add_implicit_resolver(*_EXPONENT)


def dump_experiment(experiment: Experiment) -> str:
    """The experiment as YAML that `load_experiment` reads back as it is, every default written out."""
    return yaml.dump(experiment.model_dump(mode="json"), Dumper=_PlainDumper, sort_keys=False)


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
        first = error.errors()[0]
        key = _key(first, changed)
        message = first["msg"].removeprefix("Value error, ")
        shown = (
            "" if isinstance(first["input"], dict | list) or first["type"] == "json_invalid" else f" (got {reprlib.repr(first['input'])})"
        )
        more = f"; and {error.error_count() - 1} more" if error.error_count() > 1 else ""
        raise InputError(f"{path}: {key + ': ' if key else ''}{message}{shown}{more}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not plain data: {error}") from None


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML text, by the rules of experiment files. Raises InputError, one line that starts with `source`."""
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    except (yaml.YAMLError, TypeError, ValueError, OverflowError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise InputError(f"{source}: not valid YAML{where}: {getattr(error, 'problem', None) or error}") from None


def read_yaml(path: Path, source: str) -> Any:
    """The value of a YAML file, by the rules of experiment files. Raises InputError, one line that starts with `source`."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{source}: no such file") from None
    except OSError as error:
        raise InputError(f"{source}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not UTF-8 (byte {error.start})") from None
    return parse_yaml(text, source)


def _key(error: ErrorDetails, tree: Any) -> str:
    """The dotted key of an error as the file spells it, without pydantic's own marks such as a union's member."""
    parts: list[str] = []
    for part in error["loc"]:
        try:
            tree = tree[part]
        except (TypeError, KeyError, IndexError):
            if error["type"] != "missing" or part != error["loc"][-1]:
                continue
        parts.append(str(part))
    return ".".join(parts)


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
