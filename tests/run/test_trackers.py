"""Trackers: what they write is what the run folder holds, each arm-seed once, offline, and no result depends on one."""

import importlib.util
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_folder import experiment

from apo_bench.config.load import load_experiment
from apo_bench.errors import InputError
from apo_bench.run import trackers
from apo_bench.run.tracker_process import _curves, write_missing
from apo_bench.run.training_curves import LOSSES, STEPS, fits_of, keep_curves
from apo_bench.run.validate import check_experiment
from apo_bench.store import RunStore, write_json

ALL = ("tensorboard", "wandb", "trackio")
needs = {name: pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed (extra {name})") for name in ALL}


def fit(store: RunStore, name: str, losses: list[float], steps: list[dict[str, float | None]] | None = None) -> str:
    def build(folder: Path) -> dict[str, float]:
        (folder / LOSSES).write_text(json.dumps(losses))
        if steps:
            (folder / STEPS).write_text("\n".join(map(json.dumps, steps)))
        return {}

    return store.artifact("policies", {"name": name}, build).key


def run_of(folder: Path, names: tuple[str, ...], *fits: tuple[str, list[float], Any]) -> RunStore:
    """A run folder with the record of rjs, seed 0, which trained these policies."""
    store = RunStore(folder)
    folder.mkdir(exist_ok=True)
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment(trackers=list(names))))
    key = keep_curves(store, fits_of(store, [fit(store, *parts) for parts in fits]))
    write_json(store.root / "arm_seeds" / "rjs.0.json", {"curves": {"arm": key}})
    return store


TWO = (("first", [3.0, 2.0], None), ("second", [1.0], [{"step": 1, "reward": 0.5, "kl": None}, {"step": 2, "reward": 1.5, "kl": 0.25}]))


def test_curves_count_on_from_fit_to_fit(tmp_path: Path) -> None:
    store = run_of(tmp_path, (), *TWO)
    (artifact,) = (store.root / "curves").glob("[!.]*")
    losses, steps = _curves(artifact)
    assert (losses.name, losses.x) == ("policy", "update")
    assert losses.rows == [(1, {"loss": 3.0}), (2, {"loss": 2.0}), (3, {"loss": 1.0})]
    assert (steps.name, steps.x) == ("online", "step")
    assert steps.rows == [(1, {"reward": 0.5}), (2, {"reward": 1.5, "kl": 0.25})]


@needs["tensorboard"]
def test_tensorboard_reads_what_was_written_once(tmp_path: Path) -> None:
    """By its own reader. The second call writes nothing; a record with other curves is another run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # pyright: ignore[reportMissingImports]

    store = run_of(tmp_path, ("tensorboard",), *TWO)
    for _ in range(2):
        assert write_missing(tmp_path, [store.root / "arm_seeds" / f"rjs.{seed}.json" for seed in (0, 1)]) == []
    runs = tmp_path / "trackers" / "tensorboard"
    assert [len([*folder.iterdir()]) for folder in runs.glob("[!.]*")] == [1]
    events = EventAccumulator(str(runs / "rjs.0")).Reload()
    assert set(events.Tags()["scalars"]) == {"policy/loss", "online/reward", "online/kl"}
    assert [(event.step, event.value) for event in events.Scalars("policy/loss")] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert [(event.step, event.value) for event in events.Scalars("online/kl")] == [(2, 0.25)]
    run_of(tmp_path, ("tensorboard",), TWO[0])
    assert write_missing(tmp_path, [store.root / "arm_seeds" / "rjs.0.json"]) == []
    assert sorted(folder.name for folder in runs.glob("[!.]*")) == ["rjs.0", "rjs.0.2"]


@needs["tensorboard"]
def test_a_trial_and_a_control_are_runs_of_their_own(tmp_path: Path) -> None:
    """Named as in the table `training`; an arm's name may have a dot. An oracle has no curves."""
    store = run_of(tmp_path, ("tensorboard",), TWO[0])
    curves = (store.root / "arm_seeds" / "rjs.0.json").read_text()
    (store.root / "trials").mkdir()
    records = [store.root / place for place in ("trials/v1.5.0.1000.json", "arm_seeds/_aa.1000000.json", "arm_seeds/_oracle.0.json")]
    for record, text in zip(records, (curves, curves, "{}"), strict=True):
        record.write_text(text)
    assert write_missing(tmp_path, records) == []
    runs = tmp_path / "trackers" / "tensorboard"
    assert sorted(folder.name for folder in runs.glob("[!.]*")) == ["_aa.1000000", "_tune.v1.5.1.1000"]


@pytest.mark.slow
@needs["wandb"]
def test_wandb_writes_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """In its own process, whatever the user's environment says."""
    monkeypatch.setenv("WANDB_MODE", "online")
    run_of(tmp_path, ("wandb",), *TWO)
    trackers.write_curves(tmp_path, [tmp_path / "store" / "arm_seeds" / "rjs.0.json"])
    assert capfd.readouterr() == ("", "")
    (run,) = (tmp_path / "trackers" / "wandb" / "wandb").glob("offline-run-*/run-*.wandb")
    written = run.read_bytes()
    assert all(name in written for name in (b"policy/loss", b"online/reward", b"rjs.0", b"synthetic"))


@pytest.mark.slow
@needs["trackio"]
def test_trackio_writes_its_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://127.0.0.1:9")
    run_of(tmp_path, ("trackio",), *TWO)
    trackers.write_curves(tmp_path, [tmp_path / "store" / "arm_seeds" / "rjs.0.json"])
    assert capfd.readouterr() == ("", "")
    with sqlite3.connect(tmp_path / "trackers" / "trackio" / "synthetic.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    values = [(name, step, json.loads(metrics)) for name, step, metrics in rows]
    assert values[:3] == [("rjs.0", 1, {"policy/loss": 3.0}), ("rjs.0", 2, {"policy/loss": 2.0}), ("rjs.0", 3, {"policy/loss": 1.0})]


@pytest.mark.slow
def test_a_tracker_that_fails_is_a_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A file stands where its folder belongs. Nothing is marked as written."""
    run_of(tmp_path, ("tensorboard",), *TWO)
    (tmp_path / "trackers").mkdir()
    (tmp_path / "trackers" / "tensorboard").write_text("")
    trackers.write_curves(tmp_path, [tmp_path / "store" / "arm_seeds" / "rjs.0.json"])
    assert capfd.readouterr().err.startswith("trackers: tensorboard, rjs.0: ")


def test_a_missing_package_is_one_line_of_check(tree: dict[str, Any], write_experiment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in ALL else there(name, *more))
    path = write_experiment({**tree, "trackers": ["wandb", "trackio"]})
    with pytest.raises(InputError) as caught:
        check_experiment(path)
    assert str(caught.value) == f"{path}: trackers: wandb is not installed; run: pip install 'apo-bench[wandb]'"


def test_a_tracker_that_is_not_known_is_refused(tree: dict[str, Any], write_experiment: Any) -> None:
    with pytest.raises(InputError, match=r"trackers\.0: "):
        load_experiment(write_experiment({**tree, "trackers": ["mlflow"]}))
