"""The models that a run's arms trained: `models.csv` tells which folder of the store is which, and which of them are kept.

Nothing here imports torch.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, Literal

from apo_bench.errors import InputError
from apo_bench.models.adapter_folder import base_of
from apo_bench.run.jobs import Records
from apo_bench.store import write_text

MODELS, COLUMNS = "models.csv", ("arm", "seed", "round", "kind", "folder", "base")
KINDS = {"policies": "policy", "reward_models": "reward model"}  # kinds of artifact that are models
Keep = Literal["all", "last_round", "final"]


def write_models(folder: Path, records: Records) -> None:
    """Write `models.csv`: a row for every arm-seed's policy and reward model after each round; round 0 is before any training.

    `folder` is empty where the store has no such model: a best-of-n policy has none of its own, and gc removes some. `base` is the policy
    that a folder's adapters belong on.
    """
    _write(folder, _rows(folder, records))


def update_models(folder: Path) -> None:
    """Leave the folders of removed models out of `models.csv`, where a run has written one."""
    rows = read_models(folder) if (folder / MODELS).is_file() else []
    if rows:
        _write(folder, (row if (folder / row["folder"]).is_dir() else {**row, "folder": "", "base": ""} for row in rows))


def read_models(folder: Path) -> list[dict[str, str]]:
    """The rows of `models.csv`. Raises InputError where a run folder has none."""
    try:
        return list(csv.DictReader((folder / MODELS).read_text(encoding="utf-8").splitlines()))
    except OSError:
        raise InputError(f"{folder / MODELS}: not there; run the experiment again, which computes nothing anew") from None


def _write(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(folder / MODELS, text.getvalue())


def _rows(folder: Path, records: Records) -> Iterator[dict[str, Any]]:
    for (arm, seed), record in records.items():
        for number, round_ in enumerate(record["rounds"]):
            for kind, key in (("policies", round_["policy"]), ("reward_models", round_.get("reward_model"))):
                place = Path("store") / kind / str(key)
                if key is not None:
                    present, base = (folder / place).is_dir(), base_of(folder / place)
                    row = {"arm": arm, "seed": seed, "round": number, "kind": KINDS[kind], "folder": place if present else ""}
                    yield row | {"base": f"store/policies/{base}" if base else ""}


def unkept(present: Mapping[str, Path], records: list[Mapping[str, Any]], keep: Keep) -> Set[str]:
    """Keys of the models that are removed: those that arms were charged for, but for what is kept and the bases of its adapters.

    `present`: artifacts by key; `records`: of arm-seeds and trials. `last_round` keeps each arm-seed's last policy and reward model,
    `final` its last policy alone.
    """
    if keep == "all":
        return set()
    kept = {key for record in records if record.get("rounds") for key in _last(record["rounds"][-1], keep)}
    waiting = list(kept)
    while waiting:
        base = base_of(present[key]) if (key := waiting.pop()) in present else None
        if base is not None and base not in kept:
            kept.add(base)
            waiting.append(base)
    charged = {key for record in records for key in record.get("charged", ())}
    return {key for key in charged - kept if key in present and present[key].parent.name in KINDS}


def _last(round_: Mapping[str, Any], keep: Keep) -> Iterator[str]:
    yield round_["policy"]
    if keep == "last_round" and round_.get("reward_model") is not None:
        yield round_["reward_model"]
