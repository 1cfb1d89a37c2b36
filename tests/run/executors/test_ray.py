"""Arm-seeds as Ray tasks on a real two-node cluster of this machine: a node killed in the middle, and what is refused."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_world import tiny_tree

ray = pytest.importorskip("ray", reason="ray is not installed (pip install ray)")

from apo_bench.config.schema import Executor  # noqa: E402
from apo_bench.errors import InputError  # noqa: E402
from apo_bench.run.executors.ray import _check_room, _probe  # noqa: E402
from apo_bench.run.status import lives  # noqa: E402

pytestmark = pytest.mark.slow

MAIN = "from apo_bench.cli.main import main; main()"
PATIENCE_S = 300


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes of one core each; the first holds the cluster together. Their processes end with the test."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    memory = {"object_store_memory": 100 * 2**20}
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **memory})
    started.second = started.add_node(num_cpus=1, **memory)
    yield started
    started.shutdown()


def run(experiment: Path, folder: Path, executor: dict[str, Any] | str) -> subprocess.Popen[str]:
    words = ["run", str(experiment), "--out", str(folder), "--set", f"executor={yaml.safe_dump(executor, default_flow_style=True).strip()}"]
    return subprocess.Popen([sys.executable, "-c", MAIN, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def tables(folder: Path) -> dict[str, bytes]:
    paths = [*(folder / "tables").glob("*.parquet"), *(folder / "report").glob("*.csv")]
    return {path.name: path.read_bytes() for path in paths if path.stem not in ("timings", "measured")}


def at_work(folder: Path) -> set[int]:
    """Processes that are in the middle of an arm-seed."""
    pids = set()
    for path in (folder / "store" / "progress").glob("*rjs.*.json"):
        try:
            progress = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if progress["stage"] not in ("waiting", "starting"):
            pids.add(progress["pid"])
    return pids


def test_a_node_that_is_killed_changes_no_table(cluster: Any, tmp_path: Path) -> None:
    """The second node is killed while an arm-seed is at work on each. Its task runs again on the first, and all tables are those of one
    local process."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_tree(), sort_keys=False))
    process = run(path, tmp_path / "ray", {"use": "ray", "address": cluster.address})
    _wait(lambda: process.poll() is not None or len(at_work(tmp_path / "ray")) == 2)
    assert process.poll() is None, process.communicate()
    both = at_work(tmp_path / "ray")  # one on each node
    cluster.remove_node(cluster.second, allow_graceful=False)
    _wait(lambda: sum(map(lives, both)) < 2)
    assert process.poll() is None  # in the middle of the run
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    local = run(path, tmp_path / "local", "local")
    _, errors = local.communicate(timeout=PATIENCE_S)
    assert local.returncode == 0, errors
    assert tables(tmp_path / "ray") == tables(tmp_path / "local")
    again = run(path, tmp_path / "ray", {"use": "ray", "address": "127.0.0.1:1"})  # nothing is left to run, so no cluster is needed
    _, errors = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0, errors
    assert "note: executor.address: 127.0.0.1:1: not reached: Connection refused" in errors


def test_no_cluster_at_that_address_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_tree(), sort_keys=False))
    process = run(path, tmp_path / "run", {"use": "ray", "address": "nowhere:x"})
    _, errors = process.communicate(timeout=PATIENCE_S)
    line = errors.splitlines()[-1]
    assert line.startswith(f"error: {path}: executor.address: nowhere:x: ")
    assert process.returncode == 2


def test_a_task_that_fits_on_no_node_is_refused() -> None:
    nodes = [{"Resources": {"CPU": 4.0}}, {"Resources": {"CPU": 1.0, "GPU": 2.0}}]
    _check_room(nodes, Executor(use="ray", num_cpus=1, num_gpus=2))
    with pytest.raises(InputError, match=r"^executor: no node has 2 CPUs and 1 GPUs; the most are 4 and 2$"):
        _check_room(nodes, Executor(use="ray", num_cpus=2, num_gpus=1))


def test_a_node_that_does_not_share_the_folder_says_so(tmp_path: Path) -> None:
    """Without the folder; with one whose locks do not hold (nobody holds this one); and as it should be."""
    from filelock import FileLock

    assert _probe(tmp_path / "elsewhere", "node") == "there is no such folder"
    assert _probe(tmp_path, "node") == "its file locks do not hold between machines"
    code = "import sys; from pathlib import Path\nfrom apo_bench.run.executors.ray import _probe\n"
    code += "print(repr(_probe(Path(sys.argv[1]), 'other')))"
    with FileLock(tmp_path / "lock"):
        there = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, env=dict(os.environ)
        )
    assert there.stdout.strip() == "''"
    assert {path.name for path in tmp_path.iterdir()} == {"node", "other", "lock"}


def _wait(until: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)
