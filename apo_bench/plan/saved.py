"""The plan saved in a run folder: what its arms were to spend, and the disk the run was to take. Reading it imports no torch."""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from apo_bench.config.plugins import source_files
from apo_bench.config.prompt_sets import by_content as by_content_of_sets
from apo_bench.config.schema import Experiment
from apo_bench.data.task import Task
from apo_bench.errors import InputError
from apo_bench.hashing import code_hash, digest
from apo_bench.models.pretrained_weights import by_content
from apo_bench.plan.match_spend import MatchedArm
from apo_bench.provenance import versions
from apo_bench.store import write_json

SEEDS = 1  # of the experiment, counted: more would change little, and the run waits for it
SAVED = "plan.json"  # in a run folder's store


@dataclass(frozen=True)
class SavedPlan:
    """arms: arm -> unit -> mean over seeds, alone. disk_bytes: of the whole run. None: not known. error: why nothing is planned, or ""."""

    key: str
    arms: Mapping[str, Mapping[str, float | None]]
    disk_bytes: float | None
    error: str = ""


def plan_key(experiment: Experiment, task: Task, base: Path) -> str:
    """Names everything that a saved plan depends on. `experiment` has its sized arms as they were sized."""
    inputs = ("seeds", "evaluation", "budget", "arms", "tune", "controls")
    methods = [source_files(arm.use, arm.parameters, base=base) for arm in experiment.arms.values()]
    return digest({
        "experiment": experiment.model_dump(mode="json", include=set(inputs)),
        "models": by_content(experiment.models).model_dump(mode="json"),
        "reference": experiment.reference,
        "task": task.fingerprint,
        "code": [code_hash(__name__, *task.source_files), *(code_hash(*files) for files in methods)],
        "versions": versions(),
        **by_content_of_sets(experiment.evaluation),
    })  # fmt: skip


def read(folder: Path, experiment: Experiment, task: Task, base: Path) -> SavedPlan | None:
    """The plan in a run folder, if it belongs to this question."""
    try:
        plan = SavedPlan(**json.loads((folder / "store" / SAVED).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None  # absent or damaged: it is computed again
    return plan if plan.key == plan_key(experiment, task, base) else None


def make(experiment: Experiment, task: Task, base: Path, fits: Mapping[str, MatchedArm]) -> SavedPlan:
    """Count what a run would spend; what prevents a method from being counted stands in the plan, and does not stop the run."""
    from apo_bench.config.tuning import TUNING
    from apo_bench.plan.accounts import BENCH, Accounts, Disk
    from apo_bench.plan.arm_spend import counting_context
    from apo_bench.plan.match_spend import with_sizes
    from apo_bench.plan.probe import answer_tokens

    key, sized = plan_key(experiment, task, base), with_sizes(experiment, fits)
    few = sized.model_copy(update={"seeds": sized.seeds[:SEEDS]})
    try:
        accounts = Accounts(counting_context(few, task, initial_tokens=answer_tokens(sized, task)), base)
        accounts.fill()
    except InputError as error:
        return SavedPlan(key, {}, None, str(error))
    rows = accounts.ledger()
    means = rows[rows["arm"].isin(sized.arms)].groupby(["arm", "unit"])["used"].mean()
    failed = {account for account, _, _ in accounts.failures}
    arms = {arm: {str(unit): _known(amount) for unit, amount in means[arm].items()} for arm in sized.arms if arm not in failed}
    more = len(sized.seeds) / len(few.seeds)
    fixed = (BENCH, *(name for name in accounts.disk if name.startswith(TUNING)))
    disk = sum((size if name in fixed else size.times(more) for name, size in accounts.disk.items()), Disk())
    return SavedPlan(key, arms, _known(disk.all), "; ".join(f"{arm}, seed {seed}: {message}" for arm, seed, message in accounts.failures))


def save(folder: Path, plan: SavedPlan) -> None:
    """Save a plan in a run folder, for `read`."""
    write_json(folder / "store" / SAVED, asdict(plan))


def check_disk(folder: Path, plan: SavedPlan) -> None:
    """Raises InputError where the run still needs more than its file system has free. An unknown need is not checked."""
    if plan.disk_bytes is None:
        return
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    taken = sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0
    if (needed := plan.disk_bytes - taken) > free:
        raise InputError(f"{folder}: the run still needs about {needed / 1e6:,.0f} MB of disk, and {free / 1e6:,.0f} MB are free there")


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
