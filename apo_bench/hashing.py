"""Hashes of values, files, folders and code: what artifacts are named by and checked against.

No list of source files is kept by hand. What can change an artifact is the closure of the imports of the module that makes it: edit any
of those files and the artifact has another key, edit any other and it keeps its own.
"""

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from apo_bench.package_data import PACKED

PACKAGE = Path(__file__).resolve().parent


def digest(value: Any) -> str:
    """A short hash of a JSON-ready value; the order of keys does not matter."""
    return digest_encoded(encoded(value))


def encoded(value: Any) -> str:
    """What `digest` hashes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_encoded(text: str) -> str:
    """The hash of a value that is `encoded` already."""
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def digest_files(paths: Iterable[Path]) -> str:
    """A short hash of files' contents, by name and in order of name."""
    return digest([(path.name, checksum(path)) for path in sorted(paths, key=lambda path: (path.name, str(path)))])


def digest_folder(folder: Path) -> str:
    """A short hash of a model folder's files."""
    return digest([(str(path.relative_to(folder)), checksum(path)) for path in sorted(folder.rglob("*")) if path.is_file()])


@cache
def path_identity(path: str | None) -> str | None:
    """A model folder by its content; a hub id by its name."""
    return digest_folder(Path(path)) if path and Path(path).is_dir() else path


def checksum(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_hash(*sources: str | Path) -> str:
    """Hash of all files that `code_files` reaches from the sources: modules of apo-bench by name, and files of users by path."""
    if all(isinstance(source, str) for source in sources):
        return _module_hash(*map(str, sources))
    return digest([(_place(path), checksum(path)) for path in code_files(*sources)])


def code_files(*sources: str | Path, package: Path = PACKAGE) -> tuple[Path, ...]:
    """The sources, the modules of the package that they import at any depth, and the data files in those modules' folders; sorted.

    A source is a module's full name, such as `apo_bench.lab.lab`, or the path of a file outside the package, such as a method's: of such
    a file the python files of its own folder that it imports are followed too. Imports inside functions count, those for type checkers
    do not. From a package's `__init__` only the names that are imported are followed: it holds re-exports. Raises ModuleNotFoundError.
    """
    waiting = [path for source in sources for path in (_module(source, package) if isinstance(source, str) else [source.resolve()])]
    reached: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in reached:
            continue
        reached.add(path)
        for import_ in _imports(path.read_bytes()) if path.suffix == ".py" else ():
            waiting += _files_of(import_.module, import_.attribute, package)
            waiting += [] if _is_module(path, package) else _files_beside(path, import_.module)
    folders = {path.parent for path in reached if _is_module(path, package)} - {package}
    return tuple(sorted({*reached, *(file for folder in folders for file in _data_files(folder))}))


@cache
def _module_hash(*modules: str) -> str:
    """As `code_hash`, once a process: the package's own files do not change while it runs."""
    return digest([(_place(path), checksum(path)) for path in code_files(*modules)])


def _place(path: Path) -> str:
    """A file's name in a hash, which holds no machine's folders."""
    return str(path.relative_to(PACKAGE)) if _is_module(path, PACKAGE) else path.name


def _is_module(path: Path, package: Path) -> bool:
    """Whether a file belongs to the package's own code; a method or task that a wheel carries does not, wherever it lies."""
    return path.is_relative_to(package) and not path.is_relative_to(package / PACKED)


def _module(name: str, package: Path) -> list[Path]:
    files = list(_files_of(name, None, package))
    if not files:  # such as `__main__`: a hash of nothing would never change
        raise ModuleNotFoundError(f"{name}: no module of {package.name}", name=name)
    return files


def _files_of(module: str, attribute: str | None, package: Path) -> Iterator[Path]:
    """The files that `import module`, or `from module import attribute`, brings in; none where the module is not the package's."""
    if module.partition(".")[0] != package.name:
        return
    place = package.parent.joinpath(*module.split("."))
    init = place / "__init__.py"
    if place.with_suffix(".py").is_file():
        yield place.with_suffix(".py")
    elif attribute is not None and ((place / f"{attribute}.py").is_file() or (place / attribute).is_dir()):
        yield from _files_of(f"{module}.{attribute}", None, package)
    elif init.is_file():
        reexports = [] if attribute is None else [import_ for import_ in _imports(init.read_bytes()) if import_.name == attribute]
        for import_ in reexports:
            yield from _files_of(import_.module, import_.attribute, package)
        if not reexports:  # defined there, or all of it is imported
            yield init


class _Import(NamedTuple):
    """`from module import attribute as name`; the attribute is None for `import module`."""

    module: str
    attribute: str | None
    name: str


@cache
def _imports(source: bytes) -> tuple[_Import, ...]:
    """The import statements of a python source at any depth, but for those that only type checkers read."""
    imports: list[_Import] = []
    try:
        waiting: list[ast.AST] = [ast.parse(source)]
    except (SyntaxError, ValueError):  # of a user: it is refused where it is run
        return ()
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            imports += [_Import(alias.name, None, alias.asname or alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports += [_Import(node.module or "", alias.name, alias.asname or alias.name) for alias in node.names]
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)
    return tuple(imports)


def _files_beside(path: Path, module: str) -> Iterator[Path]:
    """The python file in the same folder that `module` names, if there is one."""
    file = path.with_name(f"{module.partition('.')[0]}.py")
    if module and file.is_file():
        yield file


def _data_files(folder: Path) -> Iterable[Path]:
    """Prompts, styles, scripts and templates that stand beside modules, or in folders without python below them."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            yield path
        elif path.is_dir() and path.name != "__pycache__" and not any(path.rglob("*.py")):
            yield from (file for file in sorted(path.rglob("*")) if file.is_file())
