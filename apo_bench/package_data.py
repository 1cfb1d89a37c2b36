"""Find shipped data: methods, tasks, experiments and other people's published numbers."""

from pathlib import Path

PACKED = "_shipped"  # the folder in the package that a wheel puts them in


def shipped_root() -> Path:
    """The folder that holds `baselines/`, `tasks/`, `experiments/` and `results/published`.

    In a wheel that is `apo_bench/_shipped`; an editable checkout has no such folder and falls back to the repository's root.
    """
    package = Path(__file__).resolve().parent
    packed = package / PACKED
    return packed if packed.is_dir() else package.parent


def find_beside(relative: str | Path, base: Path | None) -> Path | None:
    """The first existing path among: beside the experiment file (`base` is its folder), the working directory, shipped data.

    An absolute path is only itself. None if nothing is there.
    """
    places = [Path.cwd(), shipped_root()]
    if base is not None:
        places.insert(0, base)
    return next((place / relative for place in places if (place / relative).exists()), None)
