"""Python files that a user names: methods, losses, tasks. Run as modules, without leaving anything beside them."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from apo_bench.hashing import code_files, digest_files
from apo_bench.types import identity


def load_python_file(path: Path) -> ModuleType:
    """The module in a file, which may import files of its own folder by their names. Raises whatever the file raises.

    A module's name is its file's place and content: two files called dpo.py do not meet, and one that has changed, or whose neighbour
    has, is read again.
    """
    path = path.resolve()
    files = neighbours(path)
    name = f"apo_bench_file_{path.stem}_{identity(str(path), digest_files(files))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        with _importable([file for file in files if file != path]):
            exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)  # not through the loader, which leaves a __pycache__
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _importable(files: list[Path]) -> Iterator[None]:
    """Let files be imported by their names, for as long as another file is being run."""
    before = {file.stem: sys.modules.get(file.stem) for file in files}
    try:
        for file in files:
            sys.modules[file.stem] = load_python_file(file)
        yield
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


def neighbours(path: Path) -> list[Path]:
    """A python file and those of its own folder that it imports, at any depth."""
    path = path.resolve()
    return [file for file in code_files(path) if file.parent == path.parent]
