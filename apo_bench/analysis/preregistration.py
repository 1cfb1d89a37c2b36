"""Preregistration: a run folder keeps the seeds and prompts that were planned when its results were first seen.

A p-value means what it says only if the number of seeds was not chosen by looking at p-values (peeking), unless it was declared from the
start that seeds may be added (compare.stopping: anytime). Each time results are written the run folder therefore records the plan, and the
report opens with any difference from the first one. Pairs, axes and rounds are not recorded: whether a contrast was declared primary
before it was seen is known to its author alone.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apo_bench.config.schema import Experiment
from apo_bench.errors import InputError
from apo_bench.store import write_json

RECORD = Path("store") / "preregistration.json"


def registered_plan(experiment: Experiment) -> dict[str, Any]:
    """What has to be fixed before results are seen: the seeds, the number of test prompts (None: all), and whether seeds may be added."""
    return {"seeds": sorted(experiment.seeds), "prompts": experiment.evaluation.prompts, "stopping": experiment.compare.stopping}


def plan_change(folder: str | Path, experiment: Experiment) -> dict[str, Any] | None:
    """How the plan differs from the folder's first recorded one: first, now, seeds_added, seeds_removed. None: it does not, or only by
    seeds that were added as declared.

    Raises InputError for a record that cannot be read.
    """
    plans, now = _recorded_plans(Path(folder)), registered_plan(experiment)
    if not plans or plans[0] == now:
        return None
    first = plans[0]
    added, removed = (sorted(set(plan["seeds"]) - set(other["seeds"])) for plan, other in ((now, first), (first, now)))
    if first["stopping"] == now["stopping"] == "anytime" and not removed and first["prompts"] == now["prompts"]:
        return None
    return {"first": first, "now": now, "seeds_added": added, "seeds_removed": removed}


def register_plan(folder: str | Path, experiment: Experiment) -> None:
    """Record that results of this plan are about to be seen; a plan is recorded once. Raises InputError as `plan_change` does."""
    plans, now = _recorded_plans(Path(folder)), registered_plan(experiment)
    if now not in plans:
        write_json(Path(folder) / RECORD, [*plans, now])


def describe_change(change: Mapping[str, Any]) -> str:
    """A change that `plan_change` returned, in words."""
    first, now = change["first"], change["now"]
    parts = [f"results were first seen with seeds {_names(first['seeds'])}"]
    parts += [f"seeds {_names(change['seeds_added'])} were added after results were seen"] if change["seeds_added"] else []
    parts += [f"seeds {_names(change['seeds_removed'])} were removed"] if change["seeds_removed"] else []
    if first["prompts"] != now["prompts"]:
        parts += [f"the number of prompts was changed from {first['prompts'] or 'all'} to {now['prompts'] or 'all'}"]
    rules = [plan.get("stopping", "fixed") for plan in (first, now)]
    parts += [f"compare.stopping was changed from {rules[0]} to {rules[1]}"] if rules[0] != rules[1] else []
    return f"{'; '.join(parts)}. The p-values and intervals below assume that seeds and prompts were fixed in advance."


def _names(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))


def _recorded_plans(folder: Path) -> list[dict[str, Any]]:
    """The plans of all results seen so far, the first one first."""
    path = folder / RECORD
    try:
        plans = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(plans, list):
            raise TypeError
        return [{"seeds": list(plan["seeds"]), "prompts": plan["prompts"], "stopping": plan.get("stopping", "fixed")} for plan in plans]
    except FileNotFoundError:
        return []
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON: {error}") from None
    except (AttributeError, KeyError, TypeError):
        raise InputError(f"{path}: not a list of plans, each with seeds and prompts") from None
