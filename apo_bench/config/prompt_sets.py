"""The prompt sets of an experiment file: their files found, and what of them stands in keys."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apo_bench.config.schema import Evaluation, PromptSet
from apo_bench.errors import InputError
from apo_bench.hashing import checksum
from apo_bench.package_data import find_beside

KEY = "prompt_sets"


def with_files(evaluation: Evaluation, base: Path) -> Evaluation:
    """The section with its sets' files located beside the experiment file; a file that is nowhere keeps its name."""
    if not evaluation.prompt_sets:
        return evaluation

    def at(name: str) -> str:
        path = Path(name).expanduser()
        return str((find_beside(path, base) or path).absolute() if find_beside(path, base) else path)

    sets = [
        part.model_copy(
            update={
                "data_files": tuple(map(at, part.data_files)),
                "refusal_labels": part.refusal_labels and at(part.refusal_labels),
            }
        )
        for part in evaluation.prompt_sets
    ]
    return evaluation.model_copy(update={KEY: tuple(sets)})


def by_content(evaluation: Evaluation) -> dict[str, Any]:
    """What of the sets can change the answers to them and their scores, for keys: files by content. Nothing where there are none.

    Which judge is asked, and what tells refusals, changes no answer.
    """
    included = {"name", "columns", "round", "turns", "axis", "prompts"}
    sets = [
        {
            **part.model_dump(mode="json", include=included),
            "files": [_checksum(part, path) for path in part.data_files],
            "gold": "gold" in part.scorers,
        }
        for part in evaluation.prompt_sets
    ]
    return {KEY: sets} if sets else {}


def files_of(part: PromptSet) -> Iterator[Path]:
    """The set's files. Raises InputError for one that is not there."""
    for name in part.data_files:
        if not Path(name).is_file():
            raise InputError(f"evaluation.{KEY}: {part.name}: data_files: {name}: no such file")
        yield Path(name)


def rounds_of(part: PromptSet, last: int) -> tuple[int, ...]:
    """The rounds that a set is asked in, of rounds 0 to `last`: the initial policy and the last, or all."""
    return tuple(range(last + 1)) if part.round == "all" else tuple(sorted({0, last}))


def _checksum(part: PromptSet, name: str) -> str:
    try:
        return checksum(Path(name))
    except OSError as error:
        raise InputError(f"evaluation.{KEY}: {part.name}: data_files: {name}: {error.strerror}") from None
