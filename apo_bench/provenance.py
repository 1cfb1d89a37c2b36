"""Where a result comes from: the code that made it, derived from imports; library versions; the commit.

No list of files is kept by hand. What can change an artifact is the closure of the imports of the module that makes it: edit any of
those files and the artifact has another key, edit any other and it keeps its own.
"""

import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from apo_bench import __version__
from apo_bench.hashing import digest_files

PACKAGE = Path(__file__).parent
VERSIONED = ("torch", "transformers", "accelerate", "tokenizers", "peft", "scikit-learn", "numpy")


@cache
def code_hash(*modules: str) -> str:
    """Hash of the modules, of all apo-bench modules they import at any depth, and of the data files in those modules' folders."""
    return hashlib.sha256(
        "\n".join(f"{path.relative_to(PACKAGE)} {digest_files([path])}" for path in code_files(*modules)).encode()
    ).hexdigest()[:24]


@cache
def code_files(*modules: str) -> tuple[Path, ...]:
    """The files behind `code_hash`, sorted. `modules` are full names, such as `apo_bench.lab`.

    Imports inside functions count. From a package's `__init__` only the names that are imported are followed: it holds re-exports.
    """
    reached: set[Path] = set()
    waiting = [path for name in modules for path in _files_of(name, None)]
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            waiting += [file for name, attribute in _imports(path) for file in _files_of(name, attribute)]
    data = [file for folder in {path.parent for path in reached} - {PACKAGE} for file in _data_files(folder)]
    return tuple(sorted({*reached, *data}))


def neighbours(path: Path) -> tuple[Path, ...]:
    """A python file and, at any depth, the files of its own folder that it imports; sorted."""
    reached: set[Path] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file not in reached:
            reached.add(file)
            names = {name.partition(".")[0] for name, _ in _imports(file)} - sys.stdlib_module_names
            waiting += [beside for name in names if name and (beside := file.with_name(f"{name}.py")).is_file()]
    return tuple(sorted(reached))


@cache
def versions() -> dict[str, str]:
    """Versions of the libraries that can change an artifact, without importing them."""
    installed = {"apo-bench": __version__}
    for name in VERSIONED:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


@cache
def origin() -> dict[str, Any]:
    """Library versions and the commit, if the code lies in a git checkout."""
    import subprocess

    here = PACKAGE.resolve().parent
    if not (here / ".git").exists():
        return {"versions": versions(), "commit": None, "dirty": None}

    def git(*words: str) -> str | None:
        try:
            return subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    status = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results")  # a run writes its own report there
    return {"versions": versions(), "commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def _files_of(name: str, attribute: str | None) -> Iterator[Path]:
    """The files that `import name`, or `from name import attribute`, brings in; nothing where the module is not ours."""
    if name.partition(".")[0] != PACKAGE.name:
        return
    place = PACKAGE.parent.joinpath(*name.split("."))
    if place.with_suffix(".py").is_file():
        yield place.with_suffix(".py")
    elif place.is_dir() and attribute is not None:
        if (place / f"{attribute}.py").is_file() or (place / attribute).is_dir():
            yield from _files_of(f"{name}.{attribute}", None)
        else:
            sources = [source for source, reexported in _imports(place / "__init__.py") if reexported == attribute]
            yield from (file for source in sources for file in _files_of(source, attribute))
            if not sources:  # defined there
                yield place / "__init__.py"
    elif (place / "__init__.py").is_file():
        yield place / "__init__.py"


@cache
def _imports(path: Path) -> tuple[tuple[str, str | None], ...]:
    """(module, name taken from it, or None) of every import statement in a file."""
    statements = [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = [(alias.name, None) for node in statements if isinstance(node, ast.Import) for alias in node.names]
    names = [(node.module or "", alias.name) for node in statements if isinstance(node, ast.ImportFrom) for alias in node.names]
    return (*modules, *names)


def _data_files(folder: Path) -> Iterable[Path]:
    """Prompts, styles, scripts and templates that stand beside modules, or in folders without python below them."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            yield path
        elif path.is_dir() and path.name != "__pycache__" and not any(path.rglob("*.py")):
            yield from (file for file in sorted(path.rglob("*")) if file.is_file())
