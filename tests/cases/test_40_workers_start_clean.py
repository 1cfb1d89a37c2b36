"""A method that sets threads, environment or a default, or patches a library: the next arm-seed does not inherit it.

A job whose method is not apo-bench's own is the last of its process. (Within its own arm-seed a method may still do harm to itself.)
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tiny_world import smallest_tree

from apo_bench.config.schema import Executor
from apo_bench.run.executors.local import run_all
from apo_bench.run.experiment import resolve_experiment
from apo_bench.run.jobs import Job, Report

METHOD = "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Own:\n    def run(self, lab):\n        pass\n"


def play(job: Job, report: Report) -> str | None:
    """Says in which process it is and what it inherits; then leaves traces: in the environment, and a library patched."""
    facts = {"pid": os.getpid(), "inherits": [os.environ.get("TRACE"), json.dumps(1) != "1"]}
    (job.folder / f"{job.arm}.{job.seed}.json").write_text(json.dumps(facts))
    if job.is_foreign:
        os.environ["TRACE"], json.JSONEncoder.encode = "left", lambda self, o: "patched"
    return None


@pytest.mark.slow
def test_no_job_follows_foreign_code_in_its_process(tmp_path: Path) -> None:
    """One worker: two jobs of foreign code, then three of our own, which may share a process."""
    job = Job(tmp_path / "mine.yaml", "{}", tmp_path, "own", 0)
    jobs = [replace(job, arm="foreign", is_foreign=True, seed=seed) for seed in (0, 1)] + [replace(job, seed=seed) for seed in (0, 1, 2)]
    assert run_all(jobs, play, 1, Executor()) == []
    facts = [json.loads((tmp_path / f"{job.arm}.{job.seed}.json").read_text()) for job in jobs]
    assert [fact["inherits"] for fact in facts] == [[None, False]] * 5
    assert len({fact["pid"] for fact in facts[:3]}) == 3
    assert len({fact["pid"] for fact in facts[2:]}) == 1


@pytest.mark.slow
def test_a_job_knows_whose_code_it_runs(tmp_path: Path) -> None:
    """A shipped method is ours; a file of the user's is not, as an arm or as a player; shared models are nobody's."""
    (tmp_path / "own.py").write_text(METHOD)
    tree = smallest_tree()
    tree["arms"]["mine"] = {"use": "own.py@Own"}
    tree["arms"]["apo"] = {"use": "apo_bench.apo@APO", "rounds": 1, "player": {"use": "own.py@Own"}}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    resolved = resolve_experiment(path, folder=tmp_path / "run")
    foreign = {arm: resolved.job(arm, 0).is_foreign for arm in ("rjs", "best", "mine", "apo", "_gold", "_initial_policy")}
    assert foreign == {"rjs": False, "best": False, "mine": True, "apo": True, "_gold": False, "_initial_policy": False}
