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
from apo_bench.plan.projection import plan
from apo_bench.plan.saved import KeptPlan, check_disk, keep, kept, make

Usage = namedtuple("Usage", "total used free")


def experiment(**changes: Any) -> Experiment:
    return Experiment.model_validate_json(json.dumps({**tiny_tree(), **changes}))


@pytest.fixture(scope="module")
def made() -> KeptPlan:
    return make(experiment(), tiny_task(), Path.cwd(), {})


def test_it_says_what_the_plan_says(made: KeptPlan) -> None:
    """Of the first seed. Disk is that of all: everything but gold models and warm-up as often as there are seeds."""
    first = plan(experiment(seeds=[0]), tiny_task())
    used = first.used()
    assert {arm: dict(units) for arm, units in made.arms.items()} == {arm: used[arm] for arm in ("rjs", "apo_rjs")}
    twice = sum((size for arm, size in first.disk.items() if arm != "_bench"), Disk()).all
    assert made.disk_bytes == pytest.approx(first.disk["_bench"].all + 2 * twice)
    assert not made.error


def test_it_holds_for_its_question_alone(made: KeptPlan, tmp_path: Path) -> None:
    keep(tmp_path, made)
    here = Path.cwd()
    assert kept(tmp_path, experiment(), tiny_task(), here) == made
    assert kept(tmp_path, experiment(name="other", executor="ray"), tiny_task(), here) == made
    assert kept(tmp_path, experiment(budget={"human_pairs": 31}), tiny_task(), here) is None
    assert kept(tmp_path, experiment(seeds=[0, 1, 2]), tiny_task(), here) is None
    path = tmp_path / "store" / "plan.json"
    path.write_text(path.read_text()[:-9])
    assert kept(tmp_path, experiment(), tiny_task(), here) is None


def test_it_is_read_without_torch(made: KeptPlan, tmp_path: Path) -> None:
    keep(tmp_path, made)
    (tmp_path / "asked.json").write_text(experiment().model_dump_json())
    code = """
import sys
from pathlib import Path
from apo_bench.config.schema import Experiment
from apo_bench.plan.saved import check_disk, kept
from apo_bench.data.task import load_task
folder = Path(sys.argv[1])
asked = Experiment.model_validate_json((folder / "asked.json").read_text())
found = kept(folder, asked, load_task(asked.task.use, asked.task.options, base=None), Path.cwd())
check_disk(folder, found)
print(sorted(found.arms), "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['apo_rjs', 'rjs'] False"


def test_what_fails_or_cannot_be_counted_is_no_reason_not_to_run() -> None:
    """An arm over its budget is not planned, the other is; of a model that is elsewhere neither FLOPs nor disk are known."""
    tree = tiny_tree()
    tree["arms"]["rjs"]["budget"] = {"sampled_responses": 3}
    found = make(Experiment.model_validate_json(json.dumps(tree)), tiny_task(), Path.cwd(), {})
    assert list(found.arms) == ["apo_rjs"]
    assert found.error.startswith("rjs, seed 0: budget exceeded: arm rjs, unit sampled_responses")
    tree = tiny_tree()
    tree["models"]["policy"] = {"path": "nobody/nothing", "training": {"learning_rate": 1e-3}, "sampling": {"max_new_tokens": 10}}
    found = make(Experiment.model_validate_json(json.dumps(tree)), tiny_task(), Path.cwd(), {})
    assert (found.arms["rjs"]["sampled_responses"], found.arms["rjs"]["flops"], found.disk_bytes) == (16, None, None)


def test_a_full_disk_is_said_with_both_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10 MB are planned and 1 MB of them is there: 9 MB are needed. 9.5 MB suffice, 8 do not."""
    folder = tmp_path / "not" / "there"
    asked = KeptPlan("", {}, 10e6)
    free = 9_500_000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free) if path == tmp_path else pytest.fail(str(path)))
    with pytest.raises(InputError, match=r"there: the run still needs about 10 MB of disk, and 10 MB are free there"):
        check_disk(folder, asked)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free))
    (folder / "store").mkdir(parents=True)
    (folder / "store" / "weights").write_bytes(b"\1" * 1_000_000)
    check_disk(folder, asked)
    free = 8_000_000
    with pytest.raises(InputError, match=r"there: the run still needs about 9 MB of disk, and 8 MB are free there"):
        check_disk(folder, asked)
    check_disk(folder, KeptPlan("", {}, None))


def test_sizes_add_up() -> None:
    total = Disk(2.0, 1.0) + Disk(3.0, 3.0).times(2)
    assert (total.all, total.weights) == (8, 7)
    assert math.isnan((total + Disk(math.nan)).all)
