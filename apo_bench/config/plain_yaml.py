"""YAML texts and files, read safely and strictly. Errors are one line that names the source and the line."""

import math
import re
from pathlib import Path
from typing import Any

import yaml

from apo_bench.errors import InputError

MOST_CHARACTERS, MOST_LEVELS, MOST_VALUES = 2**20, 100, 200_000


class PlainLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice (PyYAML silently keeps the last), and reads a date as text.

    Numbers are those of YAML 1.2: 1e-3 and 5e-1 are numbers, 1:30 is text. What YAML 1.1 reads as another number, such as 010 or 1_000, is
    refused, and so is a number that no float can hold. A text of more than MOST_CHARACTERS, deeper than MOST_LEVELS, or of more than
    MOST_VALUES with every alias written out, is refused before anything is made of it.
    """

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        sizes: dict[int, int] = {}
        if node is not None and _size(node, sizes) > MOST_VALUES:
            raise InputError(f"more than {MOST_VALUES} values, with every alias written out")
        return node

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth = getattr(self, "depth", 0) + 1
        if self.depth > MOST_LEVELS:
            raise InputError(f"more than {MOST_LEVELS} levels (line {self.peek_event().start_mark.line + 1})")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag == _NUMBER[0] and _SEED.fullmatch(key_node.value):
                key_node.tag = "tag:yaml.org,2002:str"  # a seed, or a round, read in one way only
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise InputError(f"key {key!r} is not text (line {line}); put it in quotes")
            if key in keys:
                raise InputError(f"key {key!r} occurs twice (line {line})")
            keys.add(key)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> float:
        """An int or a float. Raises InputError for one that can be read in two ways."""
        text, line = node.value, node.start_mark.line + 1
        sign, digits = (-1 if text.startswith("-") else 1), text.lstrip("+-")
        if digits[:2] in ("0x", "0o"):
            return sign * int(digits, 0)
        if _AMBIGUOUS.fullmatch(text):
            raise InputError(
                f"{text} can be read as two numbers (line {line}); write it without leading zeros and underscores, or in quotes"
            )
        if _WHOLE.fullmatch(text):
            return int(text)
        if digits.casefold() in (".inf", ".nan"):
            return sign * float(digits[1:])
        if (value := float(text)) in (math.inf, -math.inf):
            raise InputError(f"{text} is too large a number (line {line})")
        return value


def _size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """The values in a node, those of aliases as often as they are named. Raises InputError for one that holds itself."""
    if id(node) not in sizes:
        sizes[id(node)] = -1  # under way
        inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        sizes[id(node)] = 1 + sum(_size(part, sizes) for part in inner) if isinstance(inner, list) else 1
    if sizes[id(node)] < 0:
        raise InputError(f"a value holds itself (line {node.start_mark.line + 1})")
    return sizes[id(node)]


_WHOLE, _SEED = re.compile(r"[-+]?[0-9]+"), re.compile(r"0|[1-9][0-9]*")
_AMBIGUOUS = re.compile(r"[-+]?(?:0[0-9]+|0b[01_]+|[0-9][0-9_]*_[0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?)")
_NUMBER = (
    "tag:apo-bench,2026:number",
    re.compile(
        rf"^(?:{_AMBIGUOUS.pattern}|[-+]?(?:0x[0-9a-fA-F]+|0o[0-7]+|(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))"
        r"|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)
_REPLACED = {f"tag:yaml.org,2002:{name}" for name in ("timestamp", "int", "float")}
PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
PlainLoader.add_implicit_resolver(*_NUMBER)
for _tag in (_NUMBER[0], "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
    PlainLoader.add_constructor(_tag, PlainLoader.construct_number)


class PlainDumper(yaml.SafeDumper):
    """Quotes text that PlainLoader, or YAML 1.1, would read as a number."""


PlainDumper.add_implicit_resolver("tag:yaml.org,2002:float", *_NUMBER[1:])


def parse_yaml(text: str, source: str, loader: type[yaml.SafeLoader] = PlainLoader) -> Any:
    """The value of a YAML text, by the rules of experiment files. Raises InputError, which starts with `source`."""
    if len(text) > MOST_CHARACTERS:
        raise InputError(f"{source}: {len(text)} characters, at most {MOST_CHARACTERS} are read as YAML")
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
        if path.stat().st_size > 4 * MOST_CHARACTERS:  # no more bytes a character in UTF-8
            raise InputError(f"{source}: {path.stat().st_size} bytes, at most {MOST_CHARACTERS} characters are read as YAML")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{source}: no such file") from None
    except OSError as error:
        raise InputError(f"{source}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not UTF-8 (byte {error.start})") from None
    return parse_yaml(text, source, loader)
