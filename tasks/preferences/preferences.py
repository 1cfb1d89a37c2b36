"""Preference pairs from a user's own files, or from the hub, in any of the forms of apo_bench.data.preference_forms."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apo_bench.data import preference_rows
from apo_bench.data.lm_eval import as_lm_eval_dataset
from apo_bench.types import Message


def rows(*, base: Path | None, splits: Any, **options: Any) -> Iterator[dict[str, Any]]:
    """Rows as apo_bench.data.task wants them."""
    yield from preference_rows.task_rows(preference_rows.read_preferences(preference_rows.options_of(options), base))


def recognised(*, base: Path | None, splits: Any, **options: Any) -> str:
    """What each file was taken for."""
    return preference_rows.recognised(preference_rows.options_of(options), base)


def provenance(*, base: Path | None, data_files: Any, hub: str | None, split: str, **options: Any) -> str:
    """One sentence for the report."""
    if hub is not None:
        return f"Preference data from the hub ({hub}, {split}), split by conversation."
    names = [data_files] if isinstance(data_files, str) else data_files
    return f"Preference data from local files ({', '.join(Path(name).name for name in names)}), split by conversation."


def lm_eval_dataset(axis: str | None = None, **metadata: Any) -> dict[str, Any]:
    """lm-eval's `custom_dataset`: our test split, of one axis or of all."""
    return as_lm_eval_dataset(Path(__file__).parent, metadata, render=_text, axis=axis)


def _text(messages: tuple[Message, ...]) -> str:
    return "\n\n".join(message.content for message in messages)
