"""A task's test pairs as lm-eval reads them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from apo_bench.data.task import load_task
from apo_bench.errors import InputError
from apo_bench.types import Message, Pair


def as_lm_eval_dataset(
    folder: Path, metadata: Mapping[str, Any], *, render: Callable[[tuple[Message, ...]], str], axis: str | None = None
) -> dict[str, Any]:
    """What a task's `custom_dataset` returns to lm-eval: {"test": datasets.Dataset}, exactly our test pairs (of one axis).

    lm-eval passes its own metadata and the model's arguments as keywords; a task's options stand among them under the task's name, as in
    `--metadata '{"hh": {"data_files": ["a.jsonl"]}}'`, so that no argument of a model is mistaken for one. Columns: id, prompt (rendered),
    choices (both sides), gold (index of the chosen one), axis, cluster_id. The chosen side's place alternates by the pair's hash: a
    log-likelihood does not see it, but ties go to the first place and must not all count as right.
    """
    import datasets

    task = load_task(str(folder), metadata.get(folder.name, {}), base=None)
    documents = [
        {"prompt": render(pair.prompt.messages), **_choices(pair)} for pair in task.pairs["test"] if axis in (None, pair.prompt.axis)
    ]
    if not documents:
        raise InputError(f"{folder}: splits.test: no {axis or ''} pairs")
    return {"test": datasets.Dataset.from_list(documents)}


def _choices(pair: Pair) -> dict[str, Any]:
    gold = int(pair.id, 16) % 2
    choices = [pair.rejected, pair.chosen] if gold else [pair.chosen, pair.rejected]
    return {"id": pair.id, "choices": choices, "gold": gold, "axis": pair.prompt.axis, "cluster_id": pair.prompt.cluster_id}
