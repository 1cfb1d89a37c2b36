"""What a sweep frees and what it keeps: in stores made by hand, and in real runs that then go on."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from command_line import write_experiment
from filelock import FileLock
from tiny_world import tiny_tree

from apo_bench.errors import InputError
from apo_bench.hashing import digest
from apo_bench.run import pipeline
from apo_bench.run.experiment import resolve_experiment
from apo_bench.run.gc import RUN_LOCK, needed, sweep
from apo_bench.run.status import artifacts, read_status
from apo_bench.store import RunStore, write_json

pytestmark = pytest.mark.slow

Files = dict[str, bytes]


def files(folder: Path) -> Files:
    """All of a folder's files but locks, by path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".lock" not in path.name
    }


def changed() -> dict[str, Any]:
    """The tiny experiment with another learning rate for rjs."""
    tree = tiny_tree()
    tree["arms"]["rjs"]["learning_rate"] = 5e-3
    return tree


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run. Tests that change something take a copy."""
    root = tmp_path_factory.mktemp("done")
    assert pipeline.run(resolve_experiment(write_experiment(root, tiny_tree()), None, root / "run"), workers=2).failures == ()
    return root / "run"


@pytest.fixture
def folder(done: Path, tmp_path: Path) -> Path:
    return shutil.copytree(done, tmp_path / "run")


# --- by hand --------------------------------------------------------------------------------------------------------------------


def test_needed_is_what_records_name_what_that_was_made_from_and_what_is_of_models_that_stay(tmp_path: Path) -> None:
    """start -> first -> last, and the record names last's evaluation; start -> other is of an earlier setting. What is of other goes,
    also a divergence of it from start; a reward model that nobody names goes with its scores."""
    store = RunStore(tmp_path)

    def created(kind: str, **inputs: Any) -> str:
        return store.artifact(kind, inputs, lambda folder: {}).key

    start = created("policies", path="x")
    first = created("policies", policy=start)
    last = created("policies", policy=first, reference=None)
    other = created("policies", policy=start, learning_rate=2)
    gold, proxy, unnamed = (created("reward_models", pairs=name) for name in ("gold", "proxy", "unnamed"))
    evaluation = created("evaluations", policy=last, golds={"encoder": [gold]})
    accuracy = created("gold_accuracy", golds={"encoder": [gold]})
    of_models = {created("samples", policy=start), created("scores", reward_model=proxy), created("kl", policy=last, reference=start)}
    gone = {created("samples", policy=other), created("scores", reward_model=unnamed), created("kl", policy=other, reference=start)}
    earlier = created("evaluations", policy=other, golds={"encoder": [gold]})
    record = {"key": digest("question"), "rounds": [{"evaluation": evaluation, "policy": last}], "gold": accuracy, "bench": {proxy: {}}}
    write_json(tmp_path / "store" / "arm_seeds" / "a.0.json", record)
    stays = {start, first, last, gold, proxy, evaluation, accuracy, *of_models}
    assert needed(tmp_path) == stays
    assert set(artifacts(tmp_path)) == stays | {other, unnamed, earlier, *gone}
    write_json(tmp_path / "store" / "trials" / "a.0.1000.json", {"bench": {}, "artifacts": [unnamed]})
    assert needed(tmp_path) == stays | {unnamed, next(key for key in gone if _inputs(tmp_path, key).get("reward_model") == unnamed)}


def _inputs(folder: Path, key: str) -> Mapping[str, Any]:
    return json.loads((artifacts(folder)[key] / "manifest.json").read_text())["inputs"]


# --- real runs ------------------------------------------------------------------------------------------------------------------


def replayed(experiment: Path, folder: Path) -> None:
    """Run it again in a process that may not import torch: nothing is computed, and not a byte is another."""
    before = files(folder)
    script = """
import sys
from pathlib import Path
from apo_bench.run import pipeline
from apo_bench.run.experiment import resolve_experiment
assert pipeline.run(resolve_experiment(Path(sys.argv[1]), None, Path(sys.argv[2])), workers=2).failures == ()
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script, str(experiment), str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert files(folder) == before


def tables(folder: Path) -> Files:
    return {name: content for name, content in files(folder / "tables").items() if name != "timings.parquet"}


def test_an_earlier_setting_goes_and_an_unchanged_run_computes_nothing(done: Path, folder: Path, tmp_path: Path) -> None:
    """rjs at another learning rate: of each of two seeds its policy goes, with the evaluation, divergence and samples of it.
    Back at the old rate they are made again, to the same tables."""
    of_rjs = [json.loads((done / "store" / "arm_seeds" / f"rjs.{seed}.json").read_text())["rounds"][1] for seed in (0, 1)]
    earlier = {round_[what] for round_ in of_rjs for what in ("policy", "evaluation")}
    path = write_experiment(tmp_path / "changed", changed())
    assert pipeline.run(resolve_experiment(path, None, folder), workers=2).failures == ()
    before, present, content = tables(folder), artifacts(folder), files(folder)

    planned = sweep(folder, dry_run=True)
    assert files(folder) == content
    swept = sweep(folder)
    assert swept == planned
    assert swept.bytes == sum(len(content[name]) for name in content.keys() - files(folder).keys()) > 0
    gone = {path.name: path.parent.name for path in swept.paths}
    assert earlier <= set(gone)
    assert {kind: list(gone.values()).count(kind) for kind in ("policies", "evaluations", "kl")} == {
        "policies": 2,
        "evaluations": 2,
        "kl": 2,
    }
    assert set(artifacts(folder)) == set(present) - set(gone)
    assert swept.kept == len(artifacts(folder))
    assert tables(folder) == before
    lost = {name.split("/")[1] for name in content.keys() - files(folder).keys() if name.startswith("store/")}
    assert lost == set(gone.values()) >= {"policies", "evaluations", "kl", "samples"}
    assert read_status(folder).report == "up to date"
    assert sweep(folder).paths == ()

    replayed(path, folder)
    assert pipeline.run(resolve_experiment(write_experiment(tmp_path / "back", tiny_tree()), None, folder), workers=2).failures == ()
    assert earlier <= set(artifacts(folder))
    assert tables(folder) == tables(done)


def test_a_sweep_leaves_all_that_the_methods_did(done: Path, folder: Path, tmp_path: Path) -> None:
    """Even without its records the run makes nothing anew but what was swept, which is no method's: n-gram floors at most."""
    swept = {path.name for path in sweep(folder).paths}
    kept = {key: (path / "timing.json").stat().st_mtime_ns for key, path in artifacts(folder).items()}
    shutil.rmtree(folder / "store" / "arm_seeds")
    assert pipeline.run(resolve_experiment(write_experiment(tmp_path, tiny_tree()), None, folder), workers=2).failures == ()
    now = {key: (path / "timing.json").stat().st_mtime_ns for key, path in artifacts(folder).items()}
    assert kept.items() <= now.items()
    assert set(now) - set(kept) == swept
    assert {_inputs(folder, key)["spec"]["kind"] for key in swept} <= {"ngram"}
    assert tables(folder) == tables(done)


def test_a_seed_that_was_taken_out_can_come_back(done: Path, folder: Path, tmp_path: Path) -> None:
    """Its record would be taken as it is, so what it names stays."""
    assert (
        pipeline.run(
            resolve_experiment(write_experiment(tmp_path / "fewer", tiny_tree() | {"seeds": [0]}), None, folder), workers=1
        ).failures
        == ()
    )
    sweep(folder)
    assert pipeline.run(resolve_experiment(write_experiment(tmp_path / "again", tiny_tree()), None, folder), workers=1).failures == ()
    assert tables(folder) == tables(done)


def test_damaged_artifacts_and_leftovers_go(folder: Path) -> None:
    """Left by a process that was killed, also by a sweep, or moved aside; a needed artifact, and what is no artifact's, stays."""
    sweep(folder)
    before, store = files(folder), folder / "store"
    kind = store / "evaluations"
    key = sorted(path.name for path in artifacts(folder).values() if path.parent == kind)[0]
    orphan = shutil.copytree(artifacts(folder)[key], kind / ("0" * 24))
    size = sum(len(content) for content in files(orphan).values())
    for name in (f"{key}.damaged", f"{key}.damaged2", f".{key}.tmp123", f".{orphan.name}.tmp_swept"):
        (kind / name / "deep").mkdir(parents=True)
        (kind / name / "deep" / "file").write_text("x" * 10)
    (store / "arm_seeds" / ".rjs.0.json.tmp123").write_text("y")
    (store / "judging").mkdir()
    (store / "judging" / "gpt.jsonl").write_text("answers\n")
    swept = sweep(folder)
    assert (len(swept.paths), swept.bytes) == (6, size + 41)
    assert files(folder) == before | {"store/judging/gpt.jsonl": b"answers\n"}


# --- refusals -------------------------------------------------------------------------------------------------------------------


def refused(folder: Path, message: str) -> None:
    """By one line, dry or not, and nothing is touched."""
    before = files(folder)
    for dry_run in (True, False):
        with pytest.raises(InputError) as caught:
            sweep(folder, dry_run=dry_run)
        assert message in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    assert files(folder) == before


def test_a_lock_that_is_held_is_a_run_at_work(folder: Path) -> None:
    kept = artifacts(folder)[sorted(needed(folder))[0]]
    for lock in (kept.with_name(f".{kept.name}.lock"), folder / "store" / RUN_LOCK):
        with FileLock(lock):
            refused(folder, f"{lock}: held by another process")
    sweep(folder)  # a lock that can be taken is free


def test_a_worker_that_lives_is_a_run_at_work(folder: Path) -> None:
    path = folder / "store" / "progress" / "rjs.1.json"
    write_json(path, {"stage": "scoring 8", "pid": os.getpid()})
    refused(folder, f"a run is at work (rjs, seed 1, process {os.getpid()})")


def test_what_an_unfinished_arm_seed_made_goes_only_when_asked(folder: Path) -> None:
    record = folder / "store" / "arm_seeds" / "apo_rjs.1.json"
    last = json.loads(record.read_text())["rounds"][-1]["evaluation"]
    record.unlink()
    refused(folder, "1 without a result, such as apo_rjs, seed 1; their artifacts would be removed too (--unfinished does so)")
    assert last in {path.name for path in sweep(folder, unfinished=True).paths}


def test_a_record_that_cannot_be_read_is_refused(folder: Path) -> None:
    path = folder / "store" / "arm_seeds" / "old.7.json"  # of an arm that is no more
    path.write_text("{")
    refused(folder, f"{path}: unreadable record")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "not a run folder")
    assert not list(tmp_path.iterdir())
