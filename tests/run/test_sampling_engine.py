"""Whole runs whose samples come from a server: a small program in vLLM's place, in an environment of its own."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from command_line import write_experiment
from tiny_world import smallest_tree
from vllm_double import VERSION, environment

from apo_bench.run import pipeline
from apo_bench.run.experiment import resolve_experiment
from apo_bench.run.validate import check_experiment

pytestmark = pytest.mark.slow


def served_tree(python: Path) -> dict[str, Any]:
    """One seed; training and evaluation are sampled by the server."""
    tree = smallest_tree()
    tree["seeds"] = [0]
    for sampling in (tree["models"]["policy"]["sampling"], tree["evaluation"]["sampling"]):
        sampling["engine"] = {"use": "vllm", "python": str(python)}
    return tree


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    return write_experiment(folder, served_tree(environment(folder / "environment")))


@pytest.fixture(scope="module")
def done(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    result = pipeline.run(resolve_experiment(experiment, None, tmp_path_factory.mktemp("runs") / "served"), workers=1)
    assert result.failures == ()
    return result.folder


def test_the_mismatch_of_every_arm_is_measured_and_reported(done: Path) -> None:
    """Both sides compute with transformers: the same numbers but for rounding. Arms sampled by the same server can match."""
    rows = pd.read_parquet(done / "tables" / "samplers.parquet")
    assert {(row.arm, row.purpose, row.engine) for row in rows.itertuples()} == {  # best of n samples nothing before it is evaluated
        (arm, purpose, f"vllm {VERSION}") for arm, purpose in (("rjs", "arm"), ("rjs", "evaluation"), ("best", "evaluation"))
    }
    assert (rows["measured"] > 0).all()
    assert (rows["largest"] < 1e-4).all()
    ledger = pd.read_parquet(done / "tables" / "ledger.parquet").set_index(["arm", "unit"])["used"]
    by_arm = rows[rows["purpose"] == "arm"].set_index("arm")["responses"]
    assert by_arm["rjs"] == ledger["rjs", "sampled_responses"]
    report = (done / "report" / "report.md").read_text()
    assert "## Sampling by a server" in report
    assert "match in nothing" not in report


def test_a_finished_run_replays_without_a_server(done: Path, experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = set((done / "store").glob("*/*/manifest.json"))
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a process was started"))
    preview = pipeline.preview(resolve_experiment(experiment, None, done))
    assert all(is_finished for _, is_finished in preview)
    assert set((done / "store").glob("*/*/manifest.json")) == stored


def test_a_mismatch_over_its_limit_fails_the_arm(experiment: Path, tmp_path: Path) -> None:
    limit = {"models.policy.sampling.max_mismatch": 1e-12}
    result = pipeline.run(resolve_experiment(experiment, limit, tmp_path / "run"), workers=1)
    assert {failure.arm for failure in result.failures} == {"rjs", "best"}
    for failure in result.failures:
        assert failure.message.startswith("sampling.max_mismatch: vLLM's log-probabilities of ")
        assert "\n" not in failure.message


def test_an_environment_that_is_not_there_is_a_note_of_check_and_one_line_of_a_run(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, served_tree(Path("/nowhere/python")))
    notes = check_experiment(path)
    assert "models.policy.sampling.engine.python: /nowhere/python: No such file or directory; make vllm-env builds an environment" in notes
    result = pipeline.run(resolve_experiment(path, None, tmp_path / "run"), workers=1)
    assert {failure.message for failure in result.failures} == {
        "sampling.engine.python: /nowhere/python: No such file or directory; make vllm-env builds an environment"
    }
