"""Records: what is in their key."""

import json
from pathlib import Path

from tiny_world import tiny_tree

from apo_bench.hashing import PACKAGE, code_files
from apo_bench.run.experiment import resolve_experiment
from apo_bench.run.records import record_key


def test_a_records_key_holds_the_code_that_computes_it_and_none_that_shows_or_checks_it() -> None:
    """All rows come from the worker. Of its own room it needs four more modules; whatever else is edited there invalidates no record."""
    files = {str(path.relative_to(PACKAGE)) for path in code_files("apo_bench.run.worker")}
    needed = ("worker", "records", "experiment", "jobs", "training_curves")
    assert {file for file in files if file.startswith("run/")} == {f"run/{name}.py" for name in needed}
    assert {"evaluation/evaluate.py", "evaluation/oracle.py", "lab/lab.py", "config/plugins.py", "data/task.py", "store.py"} <= files
    assert not {file.partition("/")[0] for file in files} & {"cli", "report", "analysis", "judging", "plan", "exchange"}
    assert "clients/response_scores.py" in files  # a judge's scores are rows too
    assert "clients/golden.py" not in files
    assert "formatting.py" not in files


def test_trackers_change_no_key(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(json.dumps(tiny_tree()))
    plain = resolve_experiment(tmp_path / "tiny.yaml", None, tmp_path / "run")
    tracked = plain.with_overrides({"trackers": ["tensorboard"]})
    assert record_key(tracked.job("rjs", 0), tracked) == record_key(plain.job("rjs", 0), plain)


def test_a_records_key_does_not_hold_how_many_workers_share_a_sampling_job(tmp_path: Path) -> None:
    """It holds the other settings of sampling, an evaluation's too."""
    (tmp_path / "tiny.yaml").write_text(json.dumps(tiny_tree()))
    plain = resolve_experiment(tmp_path / "tiny.yaml", None, tmp_path / "run")

    def key(name: str, value: int) -> str:
        resolved = plain.with_overrides({f"models.policy.sampling.{name}": value, f"evaluation.sampling.{name}": value})
        return record_key(resolved.job("rjs", 0), plain)

    assert key("data_parallel", 4) == record_key(plain.job("rjs", 0), plain)
    assert key("top_k", 4) != record_key(plain.job("rjs", 0), plain)
