"""The plan a run keeps: what it says, how long it holds, and whether there is room on the disk."""

import json
import math
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from tiny_world import tiny_task, tiny_tree

from apo_bench.config.schema import Experiment
from apo_bench.errors import InputError
from apo_bench.plan.accounts import Disk
from apo_bench.plan.make_plan import plan
from apo_bench.plan.saved import SavedPlan, check_disk, make, read, save

Usage = namedtuple("Usage", "total used free")


def experiment(**changes: Any) -> Experiment:
    return Experiment.model_validate_json(json.dumps({**tiny_tree(), **changes}))


@pytest.fixture(scope="module")
def saved_plan() -> SavedPlan:
    return make(experiment(), tiny_task(), Path.cwd(), {})


@pytest.mark.slow
def test_it_says_what_the_plan_says(saved_plan: SavedPlan) -> None:
    """Of the first seed. Disk is that of all: everything but gold models and warm-up as often as there are seeds."""
    first = plan(experiment(seeds=[0]), tiny_task())
    used = first.used()
    assert {arm: dict(units) for arm, units in saved_plan.arms.items()} == {arm: used[arm] for arm in ("rjs", "apo_rjs")}
    twice = sum((size for arm, size in first.disk.items() if arm != "_bench"), Disk()).all
    assert saved_plan.disk_bytes == pytest.approx(first.disk["_bench"].all + 2 * twice)
    assert not saved_plan.error


@pytest.mark.slow
def test_it_holds_for_its_question_alone(saved_plan: SavedPlan, tmp_path: Path) -> None:
    save(tmp_path, saved_plan)
    here = Path.cwd()
    assert read(tmp_path, experiment(), tiny_task(), here) == saved_plan
    assert read(tmp_path, experiment(name="other", executor="ray"), tiny_task(), here) == saved_plan
    assert read(tmp_path, experiment(budget={"human_pairs": 31}), tiny_task(), here) is None
    assert read(tmp_path, experiment(seeds=[0, 1, 2]), tiny_task(), here) is None
    path = tmp_path / "store" / "plan.json"
    path.write_text(path.read_text()[:-9])
    assert read(tmp_path, experiment(), tiny_task(), here) is None


@pytest.mark.slow
def test_it_is_read_without_torch(saved_plan: SavedPlan, tmp_path: Path) -> None:
    save(tmp_path, saved_plan)
    (tmp_path / "needed.json").write_text(experiment().model_dump_json())
    code = """
import sys
from pathlib import Path
from apo_bench.config.schema import Experiment
from apo_bench.plan.saved import check_disk, read
from apo_bench.data.task import load_task
folder = Path(sys.argv[1])
needed = Experiment.model_validate_json((folder / "needed.json").read_text())
plan_read = read(folder, needed, load_task(needed.task.use, needed.task.options, base=None), Path.cwd())
check_disk(folder, plan_read)
print(sorted(plan_read.arms), "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['apo_rjs', 'rjs'] False"


@pytest.mark.slow
def test_what_fails_or_cannot_be_counted_is_no_reason_not_to_run() -> None:
    """An arm over its budget is not planned, the other is; of a model that is elsewhere neither FLOPs nor disk are known."""
    tree = tiny_tree()
    tree["arms"]["rjs"]["budget"] = {"sampled_responses": 3}
    plan_read = make(Experiment.model_validate_json(json.dumps(tree)), tiny_task(), Path.cwd(), {})
    assert list(plan_read.arms) == ["apo_rjs"]
    assert plan_read.error.startswith("rjs, seed 0: budget exceeded: arm rjs, unit sampled_responses")
    tree = tiny_tree()
    tree["models"]["policy"] = {"path": "nobody/nothing", "training": {"learning_rate": 1e-3}, "sampling": {"max_new_tokens": 10}}
    plan_read = make(Experiment.model_validate_json(json.dumps(tree)), tiny_task(), Path.cwd(), {})
    assert (plan_read.arms["rjs"]["sampled_responses"], plan_read.arms["rjs"]["flops"], plan_read.disk_bytes) == (16, None, None)


def test_a_full_disk_is_said_with_both_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10 MB are planned and 1 MB of them is there: 9 MB are needed. 9.5 MB suffice, 8 do not."""
    folder = tmp_path / "not" / "there"
    needed = SavedPlan("", {}, 10e6)
    free = 9_500_000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free) if path == tmp_path else pytest.fail(str(path)))
    with pytest.raises(InputError, match=r"there: the run still needs about 10 MB of disk, and 10 MB are free there"):
        check_disk(folder, needed)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free))
    (folder / "store").mkdir(parents=True)
    (folder / "store" / "weights").write_bytes(b"\1" * 1_000_000)
    check_disk(folder, needed)
    free = 8_000_000
    with pytest.raises(InputError, match=r"there: the run still needs about 9 MB of disk, and 8 MB are free there"):
        check_disk(folder, needed)
    check_disk(folder, SavedPlan("", {}, None))


def test_sizes_add_up() -> None:
    total = Disk(2.0, 1.0) + Disk(3.0, 3.0).times(2)
    assert (total.all, total.weights) == (8, 7)
    assert math.isnan((total + Disk(math.nan)).all)
