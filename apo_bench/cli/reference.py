"""`python -m apo_bench.cli.reference`: the pages of docs/ that say what the code says, written from the code.

docs/experiment.md from the pydantic models of `config`, docs/cli.md from the typer app, docs/api.md from signatures and docstrings. Only
in a checkout, which has the sources and docs/.
"""

import ast
import inspect
import json
import re
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.models import ArgumentInfo, ParameterInfo

from apo_bench.cli.reference_words import API, MEANINGS
from apo_bench.config import schema as config
from apo_bench.provenance import PACKAGE

DOCS = PACKAGE.parent / "docs"
WRITTEN = "<!-- Written by `python -m apo_bench.cli.reference`; change the code, not this page. -->"
PLAIN = {int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path", Any: "anything", type(None): "`null`"}
NAMED = {config.Unit: "[unit](#units)"}


def pages() -> dict[Path, str]:
    """Every page that is written here, by its path."""
    return {DOCS / "experiment.md": experiment_page(), DOCS / "cli.md": cli_page(), DOCS / "api.md": api_page()}


# --- the experiment file ------------------------------------------------------------------------------------------------------


def experiment_page() -> str:
    comments = trailing_comments(PACKAGE / "config" / "schema.py")
    units = ", ".join(f"`{unit}`" for unit in get_args(config.Unit))
    parts = [
        "# The experiment file",
        WRITTEN,
        "Every key an experiment file may have, section by section. Unknown keys are refused and nothing is converted: `3` is no text and "
        "`'3'` no number. `--set` takes dotted keys, such as `models.policy.training.learning_rate=1e-5`; a list it replaces whole. "
        "[What the words mean](concepts.md) is told elsewhere.",
    ]
    for model, keys in places(config.Experiment).items():
        where = [f"At {', '.join(f'`{key}`' for key in keys)}."] if any(keys) else []
        about = [inspect.cleandoc(model.__doc__)] if model.__doc__ else []
        parts += [f"## {model.__name__}", *where, *about, _table(model, comments)]
    return _joined([*parts, "## Units", f"What a ledger counts: {units}. [What each is](concepts.md#the-ledger)."])


def models(root: type[BaseModel]) -> list[type[BaseModel]]:
    """A model and all those its fields can hold, each once, in the order in which the fields name them."""
    return list(places(root))


def places(root: type[BaseModel]) -> dict[type[BaseModel], list[str]]:
    """A model and all those its fields can hold -> the dotted keys under which it stands; NAME and N are a mapping's and a list's."""
    found: dict[type[BaseModel], list[str]] = {}

    def visit(annotation: Any, place: str) -> None:
        origin, inner = get_origin(annotation), get_args(annotation)
        if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
            found.setdefault(annotation, []).append(place)
            for name, field in annotation.model_fields.items():
                visit(field.annotation, f"{place}.{name}".lstrip("."))
        elif origin is dict:
            visit(inner[1], f"{place}.NAME")
        else:
            for one in inner:
                visit(one, f"{place}.N" if origin is tuple else place)

    visit(root, "")
    return found


def trailing_comments(path: Path) -> dict[str, str]:
    """What stands behind a field on its line, by Class.field."""
    source = path.read_text(encoding="utf-8")
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body:
        for field in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                comment = lines[(field.end_lineno or field.lineno) - 1][field.end_col_offset or 0 :].strip()
                if comment.startswith("# "):
                    found[f"{node.name}.{field.target.id}"] = comment.removeprefix("# ")  # pyright: ignore[reportAttributeAccessIssue]
    return found


def _table(model: type[BaseModel], comments: dict[str, str]) -> str:
    rows = []
    for name, field in model.model_fields.items():
        key = f"{model.__name__}.{name}"
        meaning = [text for text in (MEANINGS.get(key), comments.get(key)) if text]
        default = "required" if field.is_required() else _value(field.get_default(call_default_factory=True))
        rows.append((f"`{name}`", kind(field.annotation, field.metadata), default, "; ".join(meaning)))
    if model.model_config.get("extra") == "allow":
        rows.append(("*any other*", "anything", "the method's own", "a parameter of the class that `use` names, held to its field's type"))
    return _rows(("key", "type", "default", "meaning"), rows)


def kind(annotation: Any, limits: Sequence[Any] = ()) -> str:
    """A type in words, with what limits its values."""
    if annotation in NAMED:
        return NAMED[annotation]
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        more = [limit for one in inner[1:] for limit in (one.metadata if isinstance(one, FieldInfo) else [one])]
        return kind(inner[0], [*more, *limits])
    if origin in (Union, types.UnionType):
        words = " or ".join(kind(one) for one in inner)
    elif origin is Literal:
        words = " or ".join(_value(one) for one in inner)
    elif origin is tuple:
        words = f"list of {_many(kind(inner[0]))}" if Ellipsis in inner else f"list of {len(inner)}: {', '.join(map(kind, inner))}"
    elif origin is dict:
        words = "mapping" if inner[1] is Any else f"mapping of {kind(inner[0])} to {kind(inner[1])}"
    elif inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        words = f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    else:
        words = PLAIN[annotation]
    said = [text for one in limits for text in _limits(one)]
    return f"{words} ({', '.join(said)})" if said else words


def _limits(limit: Any) -> Iterator[str]:
    signs = {
        "ge": "{} or more",
        "min": "{} or more",
        "gt": "above {}",
        "le": "at most {}",
        "lt": "below {}",
        "min_length": "at least {} of them",
    }
    yield from (text.format(f"{value:.12g}") for name, text in signs.items() if (value := getattr(limit, name, None)) is not None)


def _many(words: str) -> str:
    return re.sub(r"^(whole number|number|text)\b", r"\1s", words)


def _value(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "all its defaults"
    return f"`{json.dumps(value, default=lambda one: str(one) if isinstance(one, Path) else list(one))}`"


# --- the command line ---------------------------------------------------------------------------------------------------------


def cli_page() -> str:
    from apo_bench.cli.main import app

    parts = [
        "# The command line",
        WRITTEN,
        f"`apo-bench COMMAND`: {app.info.help} Bad input is one line that names file and key, with exit status 2, and nothing is written. "
        "Status 1: something that was asked for failed. `apo-bench COMMAND --help` says what stands here.",
    ]
    for name, command in commands(app):
        words, rows = [name], []
        for parameter in parameters(command):
            default = "" if parameter.default is None or isinstance(parameter.default, bool) else f"(default {_value(parameter.default)})"
            meaning = " ".join(part for part in (_inert(parameter.help), "(required)" if parameter.required else default) if part)
            words += [parameter.name if parameter.required else f"[{parameter.name}]"] if not parameter.name.startswith("--") else []
            rows.append((f"`{parameter.name}`", parameter.kind, meaning))
        options = " [OPTION]..." if any(row[0].startswith("`--") for row in rows) else ""
        parts += [f"## {name}", f"    apo-bench {' '.join(words)}{options}", _inert(command.__doc__ or "")]
        parts += [_rows(("", "value", "meaning"), rows)] if rows else []
    return _joined(parts)


def commands(app: typer.Typer) -> Iterator[tuple[str, Callable[..., Any]]]:
    """(name, function) of every command, as `--help` orders them."""
    for one in app.registered_commands:
        assert one.callback is not None
        yield one.name or one.callback.__name__.replace("_", "-"), one.callback
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from commands(group.typer_instance)


@dataclass(frozen=True)
class Parameter:
    """An argument (its name in capitals) or an option of a command."""

    name: str
    kind: str
    help: str
    required: bool
    default: Any


def parameters(command: Callable[..., Any]) -> Iterator[Parameter]:
    """What a command takes, from its function's annotations."""
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        annotation, *more = get_args(hints[name]) if get_origin(hints[name]) is Annotated else (hints[name],)
        info = next((one for one in more if isinstance(one, ParameterInfo)), None)
        if get_origin(annotation) in (Union, types.UnionType):
            annotation = get_args(annotation)[0]  # X | None
        several = get_origin(annotation) is list
        value = kind(get_args(annotation)[0] if several else annotation, [info] if info else [])
        metavar, required = (info and info.metavar) or "", parameter.default is inspect.Parameter.empty
        default = None if required else parameter.default
        if isinstance(info, ArgumentInfo) or (info is None and required):
            shown = metavar.strip("[].") or name.upper()
            shown = f"{shown}..." if several else shown
        else:
            named = (info.default, *(info.param_decls or ())) if info else ()  # the first name stands where a default would
            shown = next((one for one in named if isinstance(one, str)), f"--{name.replace('_', '-')}")
            shown += f" / --no-{name}" if default is True else ""
            value = "" if annotation is bool else (metavar or value) + (", repeatable" if several else "")
        yield Parameter(shown, value, (info and info.help) or "", required, default)


# --- the Python API -----------------------------------------------------------------------------------------------------------


def api_page() -> str:
    parts = [
        "# The Python API",
        WRITTEN,
        "What methods, tasks, judges and notebooks may build on: signatures and docstrings, as the sources have them. Shapes are written "
        "`(B, T)`, and units are in names. What a user can get wrong raises `apo_bench.errors.InputError`, a `ValueError` of one line; "
        "statistics raise a plain `ValueError` that names arm and column. Whatever is not here may change without notice.",
    ]
    for module, names in API.items():
        path = PACKAGE / f"{module.replace('.', '/')}.py"
        source = path.read_text(encoding="utf-8")
        first = (ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0]
        parts += [
            f"## apo_bench.{module}",
            f"{first} Source: [apo_bench/{path.relative_to(PACKAGE)}](../apo_bench/{path.relative_to(PACKAGE)}).",
        ]
        for name, code in outlines(source, names):
            parts += [f"### {name}", f"```python\n{code}\n```"]
    return _joined(parts)


def outlines(source: str, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, signature with docstring; of a class also its fields and public methods). Raises KeyError for a name that is not there."""
    lines = source.splitlines()
    defined = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    for name in names or [name for name in defined if not name.startswith("_")]:
        yield name, "\n".join(_outline(defined[name], lines))


def _outline(node: ast.ClassDef | ast.FunctionDef, lines: Sequence[str]) -> list[str]:
    body = [one for one in node.body if not _is_docstring(one)]
    documented = len(body) < len(node.body)
    head = node.body[0].end_lineno if documented else max(node.lineno, min(map(_first_line, node.body)) - 1)
    shown = list(lines[_first_line(node) - 1 : head])
    if not isinstance(node, ast.ClassDef):
        return shown
    fields = [line for one in body if isinstance(one, ast.AnnAssign) for line in lines[one.lineno - 1 : one.end_lineno]]
    shown += ["", *fields] if fields else []
    for method in (one for one in body if isinstance(one, ast.FunctionDef) and not one.name.startswith("_")):
        shown += ["", *_outline(method, lines)]
    return shown


def _first_line(node: ast.stmt) -> int:
    decorators = node.decorator_list if isinstance(node, ast.ClassDef | ast.FunctionDef) else []
    return min([node.lineno, *(one.lineno for one in decorators)])


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


# --- Markdown -----------------------------------------------------------------------------------------------------------------


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _inert(text: str) -> str:
    """Words that may have `<` in them, which Markdown would take for an element."""
    return " ".join(text.replace("<", "&lt;").split())


def _joined(parts: Sequence[str]) -> str:
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path)
