"""`python -m apo_bench.cli.generate_docs`: the reference pages of docs/, written from the code.

docs/experiment.md from the pydantic models of `config.schema`, docs/cli.md from the typer app, docs/api.md from signatures and docstrings,
docs/methods.md from what `apo-bench methods` lists, and in docs/new-loss.md the table of shipped losses.
Works in a checkout only, which has the sources and docs/.
"""

import ast
import inspect
import json
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.models import ArgumentInfo, ParameterInfo

from apo_bench.cli.methods import HEADINGS, citation, listing
from apo_bench.config import schema as config
from apo_bench.formatting import table
from apo_bench.hashing import PACKAGE

DOCS = PACKAGE.parent / "docs"
LOSSES_BEGIN = "<!-- Written by `python -m apo_bench.cli.generate_docs` from apo_bench/losses/shipped.py: shipped losses. -->"
LOSSES_END = "<!-- End of shipped losses. -->"
JUDGES_BEGIN = "<!-- Written by `python -m apo_bench.cli.generate_docs` from apo_bench/judging/: parameters of judges. -->"
JUDGES_END = "<!-- End of parameters of judges. -->"
GENERATED = "<!-- Written by `python -m apo_bench.cli.generate_docs`; change the code, not this page. -->"
PLAIN = {
    int: "whole number", date: "date", float: "number", bool: "true or false", str: "text", Path: "path", Any: "anything",
    type(None): "`null`",
}  # fmt: skip
NAMED = {config.Unit: "[unit](#units)"}
API: Mapping[str, tuple[str, ...]] = {  # what users import: modules and their public names; none: all that a module or package exports
    "apo_bench.lab": (),
    "apo_bench.types": (),
    "apo_bench.losses": (),
    "apo_bench.apo": (),
    "apo_bench.evaluation.method_contract": ("CheckResult", "check_method", "find_forbidden_access"),
    "apo_bench.config.plugins": ("resolve",),
    "apo_bench.judging.judge_protocol": (),
    "apo_bench.errors": (),
    "apo_bench.config.load": ("load_experiment", "dump_experiment"),
    "apo_bench.run": (),
    "apo_bench.analysis.results": ("Run", "read_run", "read_responses", "summary"),
    "apo_bench.report.report": ("write_report",),
    "apo_bench.stats": (),
}


def pages() -> dict[Path, str]:
    """The text of every generated page, by its path."""
    written = {
        "experiment.md": experiment_page(), "cli.md": cli_page(), "api.md": api_page(), "methods.md": methods_page(),
        "new-loss.md": new_loss_page(), "judging.md": judging_page(),
    }  # fmt: skip
    return {DOCS / name: text for name, text in written.items()}


# --- the experiment file ------------------------------------------------------------------------------------------------------


def experiment_page() -> str:
    units = ", ".join(f"`{unit}`" for unit in get_args(config.Unit))
    parts = [
        "# The experiment file",
        GENERATED,
        "Every key an experiment file may have, section by section. Unknown keys are refused and nothing is converted: `3` is no text and "
        "`'3'` no number. `--set` takes dotted keys, such as `models.policy.training.learning_rate=1e-5`, and replaces a list as a whole. "
        "[Concepts](concepts.md) explains the terms.",
    ]
    for model, keys in places(config.Experiment).items():
        where = [f"At {', '.join(f'`{key}`' for key in keys)}."] if any(keys) else []
        about = [inspect.cleandoc(model.__doc__)] if model.__doc__ else []
        parts += [f"## {model.__name__}", *where, *about, _table(model)]
    return _joined([*parts, "## Units", f"What a ledger counts: {units}. [What each is](concepts.md#the-ledger)."])


def models(root: type[BaseModel]) -> list[type[BaseModel]]:
    """A model and all those its fields can hold, each once, in the order in which the fields name them."""
    return list(places(root))


def places(root: type[BaseModel]) -> dict[type[BaseModel], list[str]]:
    """A model and all those its fields can hold -> their dotted keys, with NAME for a mapping's key and N for a list's place."""
    keys: dict[type[BaseModel], list[str]] = {}

    def visit(annotation: Any, place: str) -> None:
        origin, inner = get_origin(annotation), get_args(annotation)
        if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
            keys.setdefault(annotation, []).append(place)
            for name, field in annotation.model_fields.items():
                visit(field.annotation, f"{place}.{name}".lstrip("."))
        elif origin is dict:
            visit(inner[1], f"{place}.NAME")
        else:
            for argument in inner:
                visit(argument, f"{place}.N" if origin is tuple else place)

    visit(root, "")
    return keys


def _table(model: type[BaseModel]) -> str:
    rows = []
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else _value(field.get_default(call_default_factory=True))
        rows.append((f"`{name}`", kind(field.annotation, field.metadata), default, " ".join((field.description or "").split())))
    if model.model_config.get("extra") == "allow":
        rows.append(("*any other*", "anything", "the class's own", "a field of the class that `use` names, checked against its type"))
    return _rows(("key", "type", "default", "meaning"), rows)


def kind(annotation: Any, limits: Sequence[Any] = ()) -> str:
    """A type in words, with what limits its values."""
    if annotation in NAMED:
        return NAMED[annotation]
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        more = [limit for extra in inner[1:] for limit in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]
        return kind(inner[0], [*more, *limits])
    if origin in (Union, types.UnionType):
        words = " or ".join(kind(member) for member in inner)
    elif origin is Literal:
        words = " or ".join(_value(choice) for choice in inner)
    elif origin is tuple:
        words = f"list of {_many(kind(inner[0]))}" if Ellipsis in inner else f"list of {len(inner)}: {', '.join(map(kind, inner))}"
    elif origin is dict:
        words = "mapping" if inner[1] is Any else f"mapping of {kind(inner[0])} to {kind(inner[1])}"
    elif inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        words = f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    else:
        words = PLAIN[annotation]
    bounds = [text for limit in limits for text in _limits(limit)]
    return f"{words} ({', '.join(bounds)})" if bounds else words


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
    return f"`{json.dumps(value, default=lambda other: str(other) if isinstance(other, Path) else list(other))}`"


# --- the command line ---------------------------------------------------------------------------------------------------------


def cli_page() -> str:
    from apo_bench.cli.main import app

    parts = [
        "# The command line",
        GENERATED,
        f"`apo-bench COMMAND`: {app.info.help} Bad input is refused in one line that names file and key, with exit status 2, and nothing "
        "is written. Status 1: a part of the work failed. `apo-bench COMMAND --help` prints the same.",
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
    for command in app.registered_commands:
        assert command.callback is not None
        yield command.name or command.callback.__name__.replace("_", "-"), command.callback
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
        info = next((extra for extra in more if isinstance(extra, ParameterInfo)), None)
        if get_origin(annotation) in (Union, types.UnionType):
            annotation = get_args(annotation)[0]  # X | None
        several = get_origin(annotation) is list
        value = kind(get_args(annotation)[0] if several else annotation, [info] if info else [])
        metavar, required = (info and info.metavar) or "", parameter.default is inspect.Parameter.empty
        default = None if required else parameter.default
        if isinstance(info, ArgumentInfo) or (info is None and required):
            label = metavar.strip("[].") or name.upper()
            label = f"{label}..." if several else label
        else:
            labels = (info.default, *(info.param_decls or ())) if info else ()  # typer takes the first name in place of a default
            label = next((text for text in labels if isinstance(text, str)), f"--{name.replace('_', '-')}")
            label += f" / --no-{name}" if default is True else ""
            value = "" if annotation is bool else (metavar or value) + (", repeatable" if several else "")
        yield Parameter(label, value, (info and info.help) or "", required, default)


# --- the Python API -----------------------------------------------------------------------------------------------------------


def api_page() -> str:
    parts = [
        "# The Python API",
        GENERATED,
        "What methods, tasks, judges and notebooks may build on: signatures and docstrings, as the sources have them. Shapes are written "
        "`(B, T)`, and units are in names. What a user can get wrong raises `apo_bench.errors.InputError`, a `ValueError` of one line; "
        "statistics raise a plain `ValueError` that names arm and column. Everything else may change without notice.",
    ]
    for module, names in API.items():
        source = _source(module)
        purpose = (ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
        shown = source.parent if source.name == "__init__.py" else source
        link = shown.relative_to(PACKAGE.parent)
        parts += [f"## {module}", f"{purpose} Source: [{link}](../{link})."]
        for name, code in public(module, names):
            parts += [f"### {name}", f"```python\n{code}\n```"]
    return _joined(parts)


def public(module: str, names: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """(name, outline) of what a module exports; what a package re-exports, from where it is defined, in the order of the imports."""
    source = _source(module).read_text(encoding="utf-8")
    tree = ast.parse(source)
    exports = [node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
    wanted = list(names or (ast.literal_eval(exports[0]) if exports else ()))
    for node in ast.walk(tree) if exports else ():  # some are imported for type checkers only, and at run time when they are used
        if isinstance(node, ast.ImportFrom):
            reexported = [alias.name for alias in node.names if alias.name in wanted]
            yield from public(node.module or "", reexported) if reexported else ()
            wanted = [name for name in wanted if name not in reexported]
    if wanted or not exports:
        yield from outlines(source, wanted)


def _source(module: str) -> Path:
    place = PACKAGE.parent.joinpath(*module.split("."))
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def outlines(source: str, names: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """(name, outline) of classes and functions: signature with docstring, of a class also its fields and public methods.

    With `names` only these, in their order; one may also be an alias. Raises KeyError for a name that is not there.
    """
    lines, defined = source.splitlines(), {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            defined[node.name] = _outline(node, lines)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in names:
            defined[node.targets[0].id] = lines[node.lineno - 1 : node.end_lineno]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id in names:
            defined[node.target.id] = lines[node.lineno - 1 : node.end_lineno]
    for name in names or [name for name in defined if not name.startswith("_")]:
        yield name, "\n".join(defined[name])


def _outline(node: ast.ClassDef | ast.FunctionDef, lines: Sequence[str]) -> list[str]:
    documented = _is_docstring(node.body[0])
    head = node.body[0].end_lineno if documented else max(node.lineno, min(map(_first_line, node.body)) - 1)
    outline = list(lines[_first_line(node) - 1 : head])
    if not isinstance(node, ast.ClassDef):
        return outline
    body = node.body[documented:]
    fields = [
        line for part in body if isinstance(part, ast.AnnAssign) or _is_docstring(part) for line in lines[part.lineno - 1 : part.end_lineno]
    ]
    outline += ["", *fields] if fields else []
    for method in (part for part in body if isinstance(part, ast.FunctionDef) and not part.name.startswith("_")):
        outline += ["", *_outline(method, lines)]
    return outline


def _first_line(node: ast.stmt) -> int:
    decorators = node.decorator_list if isinstance(node, ast.ClassDef | ast.FunctionDef) else []
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


# --- methods ------------------------------------------------------------------------------------------------------------------


def methods_page() -> str:
    """What can be named, a table for each kind."""
    parts = [
        "# Methods and losses",
        GENERATED,
        "What ships and can be named in an experiment or in a method; `apo-bench methods` prints the same. What each does stands in its "
        "docstring ([API](api.md#apo_benchlosses)). To bring your own: [a method](new-method.md), [a loss](new-loss.md).",
    ]
    listed = listing()
    for kind, heading in HEADINGS.items():
        rows = [
            (f"`{item.name}`", _inert(item.purpose), _linked(item.paper), item.reads, item.needs, "yes" if item.player else "")
            for item in listed
            if item.kind == kind
        ]
        heads = ("name", "what it is", "paper", "reads", "needs", "player")
        width = len(heads) if kind == "method" else len(heads) - 1
        parts += [f"## {heading}", _rows(heads[:width], [row[:width] for row in rows])]
    return _joined(parts)


def _linked(paper: str) -> str:
    return re.sub(r"arXiv:([\d.]+\d)", r"[arXiv:\1](https://arxiv.org/abs/\1)", paper)


# --- shipped losses -----------------------------------------------------------------------------------------------------------


def new_loss_page() -> str:
    """The page as it stands, its table of shipped losses written anew."""
    before, mark, rest = (DOCS / "new-loss.md").read_text(encoding="utf-8").partition(LOSSES_BEGIN)
    return f"{before}{mark}\n\n{losses_table()}\n\n{LOSSES_END}{rest.partition(LOSSES_END)[2]}"


def judging_page() -> str:
    """The page as it stands, its list of judges' parameters written anew."""
    from apo_bench.judging.judge_parameters import judge_parameters

    before, mark, rest = (DOCS / "judging.md").read_text(encoding="utf-8").partition(JUDGES_BEGIN)
    parts = []
    for judge in judge_parameters():
        rows = [(f"`{name}`", "" if default is None else f"`{default}`") for name, default in judge.parameters.items()]
        parts += [
            f"### {judge.use.rpartition('@')[2]}",
            f"`use: {judge.use}`",
            judge.about,
            "\n".join(table(["parameter", "default"], rows)),
        ]
    listed = "\n\n".join(parts)
    return f"{before}{mark}\n\n{listed}\n\n{JUDGES_END}{rest.partition(JUDGES_END)[2]}"


def losses_table() -> str:
    """Name, class, paper with equation, and what it reads, of every policy loss; the paper from the first parentheses of its docstring."""
    from apo_bench.losses import SHIPPED
    from apo_bench.training.data import couples_items

    rows = []
    for name, cls in SHIPPED.items():
        loss, paper = cls(), _linked(citation(inspect.getdoc(cls) or ""))
        parameters = ", ".join(f"`{field.name}`" for field in fields(cls))  # pyright: ignore
        reference, whole = ("yes" if flag else "" for flag in (loss.needs_reference, couples_items(loss)))
        rows.append((f"`{name}`", f"`{cls.__name__}`", paper, parameters, loss.reads, reference, whole))
    return _rows(("name", "class", "paper", "parameters", "reads", "reference", "whole updates"), rows)


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
