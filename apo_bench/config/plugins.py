"""`use: file.py@Class` or `use: module@Class` with its parameters, resolved to a method, a loss or a judge.

A method is a frozen dataclass with `run(lab)`, `update(lab, policy, reward_model, draw)`, or both; its fields are its parameters. A
parameter that is a mapping with `use` is itself a method or a loss.
"""

import dataclasses
import importlib
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, get_type_hints

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from apo_bench.config.python_files import load_python_file, neighbours
from apo_bench.config.schema_errors import input_error
from apo_bench.errors import InputError, did_you_mean
from apo_bench.hashing import PACKAGE
from apo_bench.package_data import find_beside, shipped_root


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
    """What a frozen dataclass must have to be a method, a loss or a judge. `verbs`: at least one of these, with its signature."""

    name: str
    verbs: Mapping[str, str]


METHOD = Kind("method", {"run": "run(lab)", "update": "update(lab, policy, reward_model, draw)"})
LOSS = Kind("loss", {"__call__": "__call__(view)"})
JUDGE = Kind("judge", {"open": "open(context)"})


def resolve(use: str, parameters: Mapping[str, Any], *, base: Path | None, arm: str | None = None, kind: Kind = METHOD) -> Any:
    """The method (or judge) that `use` names, with these parameters. A parameter that is a mapping with `use` is resolved likewise:
    to a method or a loss, or to another of a judge's kind.

    `base` is the experiment file's folder. Values are checked against the fields' types as strictly as the experiment file's
    own. Raises InputError, one line that starts with `arm` (or `use`) and names the parameter.
    """
    return _resolve(use, parameters, base, arm or use, (kind,))


def _resolve(use: str, parameters: Mapping[str, Any], base: Path | None, where: str, kinds: Sequence[Kind]) -> Any:
    cls = _class(use, base, where, kinds)
    parts = (METHOD, LOSS) if METHOD in kinds else kinds  # what its parameters may be
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for name in parameters:
        if name not in fields:
            _refuse(
                where, f"unknown parameter {name!r} of {cls.__name__}; it has: {', '.join(fields) or 'none'}{did_you_mean(name, fields)}"
            )
    for name, field in fields.items():
        if name not in parameters and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            _refuse(where, f"{cls.__name__} needs the parameter {name!r}")
    try:
        hints = get_type_hints(cls, include_extras=True)
        values = {name: _value(hints[name], value, base, f"{where}.{name}", parts) for name, value in parameters.items()}
        return cls(**values)
    except InputError:
        raise
    except Exception as error:  # a method's own checks, or annotations that name nothing
        _refuse(where, f"{cls.__name__}: {type(error).__name__}: {error}")


def source_files(use: str, parameters: Mapping[str, Any], *, base: Path | None) -> tuple[Path, ...]:
    """The python files of a method, of the methods and losses among its parameters, and the neighbours they import; each once.

    Nothing is imported but the packages above a module: a replay hashes these files and does without torch.
    """
    nested = [source_files(*part, base=base) for value in parameters.values() if (part := _nested(value))]
    place, _ = _split(use, use)
    path = _file(place, base, use)
    own = neighbours(path) if place.endswith(".py") else (path,)
    return tuple(dict.fromkeys((*own, *(path for paths in nested for path in paths))))


def is_shipped(path: Path) -> bool:
    """Whether a file or folder of code is apo-bench's own."""
    return any(path.resolve().is_relative_to(room) for room in (PACKAGE, shipped_root() / "baselines", shipped_root() / "tasks"))


def _split(use: Any, where: str) -> tuple[str, str]:
    place, _, name = use.rpartition("@") if isinstance(use, str) else ("", "", "")
    if not place or not name:
        _refuse(where, f"use: a method is module@Class or file.py@Class, got {use!r}")
    return place, name


def _file(place: str, base: Path | None, where: str) -> Path:
    if place.endswith(".py"):
        path = find_beside(place, base)
        if path is None or not path.is_file():
            where_else = "beside the experiment, in the working directory or among the shipped methods"
            _refuse(where, f"use: {place}: no such file {where_else}{did_you_mean(place, _files(place, base))}")
        return path.resolve()
    try:
        spec = importlib.util.find_spec(place)
    except Exception as error:
        _refuse(where, f"use: {place}: cannot be imported: {type(error).__name__}: {error}")
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        _refuse(where, f"use: {place}: no such module")
    return Path(spec.origin).resolve()


def _files(place: str, base: Path | None) -> Iterator[str]:
    """The python files that a misspelt place may mean: in its folder and in `baselines/`, in each of the places where it is sought."""
    for folder in dict.fromkeys((str(Path(place).parent), "baselines")):
        for root in (base, Path.cwd(), shipped_root()):
            yield from (str(Path(folder, path.name)) for path in sorted((root or Path.cwd()).joinpath(folder).glob("[!_]*.py")))


def _class(use: Any, base: Path | None, where: str, kinds: Sequence[Kind]) -> type:
    kind = kinds[0]
    place, name = _split(use, where)
    path = _file(place, base, where)
    module = _load_file(path, where) if place.endswith(".py") else _import(place, where)
    cls = getattr(module, name, None)
    if not isinstance(cls, type):
        _refuse(where, f"use: {place} has no class {name!r}; it has: {', '.join(_dataclasses_in(module)) or f'no {kind.name}'}")
    if not dataclasses.is_dataclass(cls) or not getattr(cls, "__dataclass_params__").frozen:  # noqa: B009 (pyright knows no such attribute)
        _refuse(where, f"use: {use}: a {kind.name} is a frozen dataclass")
    if not any(verb in vars(ancestor) for kind in kinds for verb in kind.verbs for ancestor in cls.__mro__):
        wanted = "; ".join(f"a {kind.name} has {' or '.join(kind.verbs.values())}" for kind in kinds)
        _refuse(where, f"use: {use}: {wanted}")
    return cls


def _load_file(path: Path, where: str) -> ModuleType:
    try:
        return load_python_file(path)
    except (Exception, SystemExit) as error:
        _refuse(where, f"use: {path}: cannot be imported: {type(error).__name__}: {error}")


def _import(place: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:
        _refuse(where, f"use: {place}: cannot be imported: {type(error).__name__}: {error}")


def _value(hint: Any, value: Any, base: Path | None, where: str, kinds: Sequence[Kind]) -> Any:
    adapter = _adapter(hint)
    try:
        if nested := _nested(value):
            return adapter.validate_python(_resolve(*nested, base, where, kinds))
        return adapter.validate_json(json.dumps(value), strict=True)  # as JSON, where a list is good for a tuple
    except ValidationError as error:
        if error.errors()[0]["type"] == "needs_python_object":
            _refuse(where, f"expected a {' or a '.join(kind.name for kind in kinds)}, as a mapping with `use` (got {value!r})")
        raise input_error(where, error, value, hint, joint=".") from None


def _adapter(hint: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False))
    except PydanticUserError:  # a pydantic model brings its own configuration
        return TypeAdapter(hint)


def _nested(value: Any) -> tuple[Any, dict[str, Any]] | None:
    if not isinstance(value, Mapping) or "use" not in value:
        return None
    return value["use"], {name: inner for name, inner in value.items() if name != "use"}


def _dataclasses_in(module: ModuleType) -> Iterator[str]:
    for name, value in vars(module).items():
        if isinstance(value, type) and value.__module__ == module.__name__ and dataclasses.is_dataclass(value):
            yield name


def _refuse(where: str, message: str) -> NoReturn:
    raise InputError(f"{where}: {message}") from None
