"""YAML texts and files, read safely and strictly. Errors are one line that names the source and the line."""

import re
from pathlib import Path
from typing import Any

import yaml

from apo_bench.errors import InputError


class PlainLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice (PyYAML silently keeps the last), and reads 1e-3 as a number and a date as text."""

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


PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# PyYAML follows YAML 1.1, where 1e-3 is text; experiment files write learning rates that way.
_EXPONENT = ("tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789."))
PlainLoader.add_implicit_resolver(*_EXPONENT)


class PlainDumper(yaml.SafeDumper):
    """Quotes text that PlainLoader would read as a number."""


PlainDumper.add_implicit_resolver(*_EXPONENT)


def parse_yaml(text: str, source: str, loader: type[yaml.SafeLoader] = PlainLoader) -> Any:
    """The value of a YAML text, by the rules of experiment files. Raises InputError, which starts with `source`."""
    try:
        return yaml.load(text, Loader=loader)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    except (yaml.YAMLError, TypeError, ValueError, OverflowError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise InputError(f"{source}: not valid YAML{where}: {getattr(error, 'problem', None) or error}") from None


def read_yaml(path: Path, source: str, loader: type[yaml.SafeLoader] = PlainLoader) -> Any:
    """The value of a YAML file. As `parse_yaml`."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{source}: no such file") from None
    except OSError as error:
        raise InputError(f"{source}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not UTF-8 (byte {error.start})") from None
    return parse_yaml(text, source, loader)
