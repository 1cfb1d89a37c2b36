"""Where a result comes from: the versions of the libraries that made it, and the commit."""

from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from apo_bench import __version__

VERSIONED = ("torch", "transformers", "accelerate", "tokenizers", "peft", "scikit-learn", "numpy")


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

    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():
        return {"versions": versions(), "commit": None, "dirty": None}

    def git(*words: str) -> str | None:
        try:
            return subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    status = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results")  # a run writes its own report there
    return {"versions": versions(), "commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}
