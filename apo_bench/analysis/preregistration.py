"""The peeking rule: seeds and prompts are planned in the experiment file, before any score is seen.

A p-value means what it says only if the number of seeds was not chosen by looking at p-values. A run folder therefore keeps what was
planned each time its results were written (a look), and a later plan that differs from the first is told in the report. Which pairs, axes
and round are compared is not kept: that a contrast was declared primary before it was seen, only its author knows.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apo_bench.config.schema import Experiment
from apo_bench.errors import InputError
from apo_bench.store import write_json

LOOKS = Path("store") / "looks.json"


def plan(experiment: Experiment) -> dict[str, Any]:
    """What has to be fixed before a look: the seeds, and how many prompts are asked (None: all there are)."""
    return {"seeds": sorted(experiment.seeds), "prompts": experiment.evaluation.prompts}


def changed(folder: Path, experiment: Experiment) -> dict[str, Any] | None:
    """How the plan differs from that of the folder's first look, or None: first, now, seeds_added, seeds_removed."""
    looks = _read(folder)
    now = plan(experiment)
    if not looks or looks[0] == now:
        return None
    first = looks[0]
    added, removed = (sorted(set(one["seeds"]) - set(other["seeds"])) for one, other in ((now, first), (first, now)))
    return {"first": first, "now": now, "seeds_added": added, "seeds_removed": removed}


def record(folder: Path, experiment: Experiment) -> None:
    """Keep that results of this plan are about to be seen; a plan that was looked at before is kept once."""
    looks = _read(folder)
    if plan(experiment) not in looks:
        write_json(folder / LOOKS, [*looks, plan(experiment)])


def sentence(found: Mapping[str, Any]) -> str:
    """The change in words."""
    first, now = found["first"], found["now"]
    parts = [f"results were first seen with seeds {_names(first['seeds'])}"]
    parts += [f"seeds {_names(found['seeds_added'])} were added after that look"] if found["seeds_added"] else []
    parts += [f"seeds {_names(found['seeds_removed'])} were taken out"] if found["seeds_removed"] else []
    if first["prompts"] != now["prompts"]:
        parts += [f"the number of prompts was changed from {first['prompts'] or 'all'} to {now['prompts'] or 'all'}"]
    return f"{'; '.join(parts)}. The p-values and intervals below take the sizes as planned in advance, which they were not."


def _names(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))


def _read(folder: Path) -> list[dict[str, Any]]:
    path = folder / LOOKS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, list):
            raise TypeError
        return [{"seeds": list(one["seeds"]), "prompts": one["prompts"]} for one in found]
    except FileNotFoundError:
        return []
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON: {error}") from None
    except (KeyError, TypeError):
        raise InputError(f"{path}: not a list of looks, each with seeds and prompts") from None
