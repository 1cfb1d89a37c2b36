"""`--set KEY=VALUE`: replacements of an experiment's keys."""

from typing import Any

from apo_bench.errors import InputError


def overrides_of(assignments: list[str] | None) -> dict[str, Any]:
    """What `--set` replaces. Raises InputError."""
    from apo_bench.config.plain_yaml import parse_yaml

    overrides: dict[str, Any] = {}
    for assignment in assignments or ():
        key, equals, value = assignment.partition("=")
        if not equals or not all(key.split(".")):
            raise InputError(f"--set {assignment}: expected key=value, such as budget.flops=1e15")
        if key in overrides:
            raise InputError(f"--set {key}: given twice")
        overrides[key] = parse_yaml(value, f"--set {key}")
    return overrides
