"""`apo-bench new-experiment FILES --policy PATH`: write an experiment on a user's own preference files, with sizes from the data."""

import json
import os
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from apo_bench.data.task import Task, load_task
from apo_bench.errors import InputError
from apo_bench.models.model_folder import context_length, read_config
from apo_bench.models.pretrained_weights import resolve_model
from apo_bench.models.tokenize import load_tokenizer

LONGEST = {"prompt": 512, "response": 512}  # tokens, where the data would have more
MOST = {"human_pairs": 2000, "prompts": 200, "kl": 64, "diagnostic": 500, "turn": 256}


def write_experiment(path: Path, policy: str, options: Mapping[str, Any]) -> Path:
    """Write an experiment that compares SFT, DPO and rejection sampling, from the policy at `policy`, on the task `preferences`.

    Lengths are the data's 95 % quantiles in the policy's tokens, budgets what the splits have, all up to limits. Raises InputError for data
    or a model that cannot be read, and where the file exists.
    """
    if path.exists():
        raise InputError(f"new-experiment {path}: is there already; nothing was written")
    task = load_task("preferences", options, base=Path.cwd())
    folder = resolve_model(policy, Path.cwd())
    tokenizer, limit = load_tokenizer(folder), context_length(read_config(folder))
    here = path.parent.resolve()
    placed = {**options, "data_files": [_beside(name, here) for name in options.get("data_files") or ()]}
    golden = options.get("golden")
    if isinstance(golden, Mapping) and "file" in golden:
        placed["golden"] = {"file": _beside(golden["file"], here)}
    fields = {
        "NAME": re.sub(r"[^a-z0-9]+", "_", path.stem.lower()).strip("_") or "preferences",
        "OPTIONS": json.dumps({key: value for key, value in placed.items() if value not in (None, [])}, ensure_ascii=False),
        "POLICY": json.dumps(_beside(policy, here) if Path(policy).is_dir() else policy),
        **{name: str(value) for name, value in sizes(task, lambda text: len(tokenizer(text)["input_ids"]), limit).items()},
    }
    text = (resources.files("apo_bench.cli") / "templates" / "preferences.yaml.txt").read_text(encoding="utf-8")
    for name in sorted(fields, key=len, reverse=True):
        text = text.replace(f"<{name}>", fields[name])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise InputError(f"new-experiment {path}: {error.strerror}") from None
    return path


def sizes(task: Task, length: Any, limit: int | None) -> dict[str, int]:
    """The experiment's sizes by their names in the template. `length`: of a text in tokens; `limit`: the model's places."""
    pairs = task.pairs["rm"]
    room = limit // 2 if limit else None
    prompt = _cut_at([sum(length(turn.content) + 8 for turn in pair.prompt.messages) for pair in pairs], LONGEST["prompt"], room)
    response = _cut_at([length(text) + 1 for pair in pairs for text in (pair.chosen, pair.rejected)], LONGEST["response"], room)
    n = {split: len(task.prompts[split]) for split in task.prompts}
    return {
        "PROMPT_TOKENS": prompt,
        "RESPONSE_TOKENS": response,
        "BOTH_TOKENS": prompt + response,
        "HUMAN_PAIRS": min(MOST["human_pairs"], len(pairs)),
        "PROMPTS": min(MOST["prompts"], n["test"]),
        "KL": min(MOST["kl"], n["test"]),
        "DIAGNOSTIC": min(MOST["diagnostic"], len(task.pairs["test"])),
        "TURN": min(MOST["turn"], n["policy"]),
    }


def _beside(path: str, folder: Path) -> str:
    """A path that is relative to the working directory, as one that is relative to a folder."""
    return path if Path(path).is_absolute() else os.path.relpath(path, folder)


def _cut_at(lengths: list[int], most: int, room: int | None) -> int:
    """The 95 % quantile of the lengths, a multiple of 16, within the limits."""
    ranked = sorted(lengths)
    wanted = -(-ranked[-(-len(ranked) * 95 // 100) - 1] // 16) * 16
    return min(wanted, most, room if room is not None else most)
