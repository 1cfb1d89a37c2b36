"""`apo-bench new-method NAME`: write a working method and an experiment that compares it, as a start."""

import keyword
import re
from importlib import resources
from pathlib import Path

from apo_bench.errors import InputError

TEMPLATES = {".py": "method.py.txt", ".yaml": "experiment.yaml.txt"}
RIVAL = "rejection_sampling"  # the arm that the experiment compares with


def write_method(name: str, folder: Path) -> tuple[Path, Path]:
    """Write NAME.py and NAME.yaml into `folder`, which is created if absent; returns their paths. No file is overwritten.

    Raises InputError for a name that is not a module's, for one that is taken, and where a file cannot be written.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise InputError(f"new-method {name!r}: a name has small letters, digits and single underscores, such as my_method")
    if name == RIVAL:
        raise InputError(f"new-method {name}: that is the method it is compared with; take another name")
    paths = [folder / f"{name}{ending}" for ending in TEMPLATES]
    if taken := [path for path in paths if path.exists()]:
        raise InputError(f"new-method {name}: {taken[0]} is there already; nothing was written")
    class_name = "".join(part.capitalize() for part in name.split("_"))
    templates = resources.files("apo_bench.cli") / "templates"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, template in zip(paths, TEMPLATES.values(), strict=True):
            text = (templates / template).read_text(encoding="utf-8")
            with path.open("x", encoding="utf-8") as file:
                file.write(text.replace("NAME", name).replace("CLASS", class_name))
    except OSError as error:
        raise InputError(f"new-method {name}: {error.filename}: {error.strerror}") from None
    return paths[0], paths[1]
