"""Which folder of a run's store is which model, what of them is kept, and one of them as an ordinary model folder."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from command_line import write_experiment
from tiny_world import tiny_tree
from typer.testing import CliRunner

from apo_bench.cli.main import app
from apo_bench.engines.transformers import TransformersEngine
from apo_bench.errors import InputError
from apo_bench.exchange.export_model import export_model
from apo_bench.models.adapter_folder import base_of, is_adapter
from apo_bench.models.policy import load_policy
from apo_bench.run import pipeline
from apo_bench.run.experiment import resolve_experiment
from apo_bench.run.gc import sweep
from apo_bench.run.inputs import experiment_of_run
from apo_bench.run.models_csv import read_models, unkept
from apo_bench.types import Policy

pytest.importorskip("peft")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny one, policy and reward model trained with adapters; the arms train on different prompts, so they share no policy."""
    tree = tiny_tree()
    tree["arms"]["apo_rjs"]["player"]["prompts_per_round"] = 24
    for model in ("policy", "reward"):
        tree["models"][model]["training"] = {**tree["models"][model]["training"], "lora": {"rank": 2}}
    return write_experiment(tmp_path_factory.mktemp("lora"), tree)


@pytest.fixture(scope="module")
def done(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    assert pipeline.run(resolve_experiment(experiment, None, folder), workers=1).failures == ()
    return folder


@pytest.fixture
def folder(done: Path, tmp_path: Path) -> Path:
    return shutil.copytree(done, tmp_path / "run")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def present(folder: Path) -> Counter[tuple[str, str]]:
    return Counter((row["kind"], row["round"]) for row in read_models(folder) if row["folder"])


def test_every_round_of_every_arm_seed_has_its_models(done: Path) -> None:
    """Two seeds: rjs has 1 round, apo_rjs 2. Round 0 is the initial policy and each arm's first reward model."""
    rows = read_models(done)
    assert present(done) == {
        ("policy", "0"): 4, ("policy", "1"): 4, ("policy", "2"): 2,
        ("reward model", "0"): 4, ("reward model", "1"): 4, ("reward model", "2"): 2,
    }  # fmt: skip
    assert {(row["arm"], row["seed"]) for row in rows} == {(arm, seed) for arm in ("rjs", "apo_rjs") for seed in ("0", "1")}
    [initial] = {row["folder"] for row in rows if row["kind"] == "policy" and row["round"] == "0"}
    trained = [row for row in rows if row["kind"] == "reward model" or row["round"] != "0"]
    assert not is_adapter(done / initial)
    assert all(is_adapter(done / row["folder"]) and row["base"] == initial for row in trained)


def test_a_replay_computes_nothing(experiment: Path, folder: Path) -> None:
    before = files(folder)
    assert pipeline.run(resolve_experiment(experiment, None, folder), workers=1).failures == ()
    assert files(folder) == before


def kept(rows: list[dict[str, str]], keep: str) -> set[str]:
    """Folders of the initial policy and of each arm's last round: rjs has one, apo_rjs two."""
    last = [row for row in rows if row["round"] == {"rjs": "1", "apo_rjs": "2"}[row["arm"]]]
    initial = {row["folder"] for row in rows if row["round"] == "0" and row["kind"] == "policy"}
    return initial | {row["folder"] for row in last if row["kind"] == "policy" or keep == "last_round"}


@pytest.mark.parametrize("keep", ["last_round", "final"])
def test_gc_keeps_what_it_is_told(experiment: Path, folder: Path, keep: str) -> None:
    """Nothing is computed again, and rows and report stay as they are."""
    before, rows = files(folder), read_models(folder)
    outcome = CliRunner().invoke(app, ["gc", str(folder), "--keep", keep])
    assert outcome.exit_code == 0, outcome.output
    assert {row["folder"] for row in read_models(folder)} - {""} == kept(rows, keep)
    after = files(folder)
    assert {name: value for name, value in after.items() if name != "models.csv"}.items() <= before.items()
    assert {name.split("/")[1] for name in before.keys() - after.keys()} == {"policies", "reward_models"}
    assert pipeline.run(resolve_experiment(experiment, None, folder), workers=1).failures == ()
    assert files(folder) == after


def test_a_run_keeps_what_its_file_says(experiment: Path, folder: Path) -> None:
    rows = read_models(folder)
    assert pipeline.run(resolve_experiment(experiment, {"store.keep": "final"}, folder), workers=1).failures == ()
    assert {row["folder"] for row in read_models(folder)} - {""} == kept(rows, "final")
    assert not sweep(folder, dry_run=True, keep="final").paths


def test_bases_of_kept_adapters_are_kept(tmp_path: Path) -> None:
    """last stands on first, first on start; other was charged too and stands on nothing that is kept."""
    folders = {name: tmp_path / "policies" / name for name in ("start", "first", "last", "other")}
    for name, folder in folders.items():
        folder.mkdir(parents=True)
        base = {"first": "start", "last": "first", "other": "start"}.get(name)
        if base:
            (folder / "base.json").write_text(json.dumps({"policy": base, "lora": {}}))
    record = {"charged": {name: {} for name in folders}, "rounds": [{"policy": "start"}, {"policy": "last", "reward_model": None}]}
    assert base_of(folders["last"]) == "first"
    assert unkept(folders, [record], "last_round") == {"other"}
    assert unkept(folders, [record], "all") == set()


def test_an_exported_policy_is_an_ordinary_one_that_computes_the_same(done: Path, tmp_path: Path) -> None:
    outcome = CliRunner().invoke(app, ["export", str(done), "apo_rjs", "1", "2", "--format", "model", "--out", str(tmp_path / "out")])
    assert outcome.exit_code == 0, outcome.output
    exported, _ = load_policy(tmp_path / "out")
    [row] = [row for row in read_models(done) if (row["arm"], row["seed"], row["round"], row["kind"]) == ("apo_rjs", "1", "2", "policy")]
    spec = experiment_of_run(done, Path.cwd())[0].models.policy
    stored, _ = TransformersEngine(done).models.policy(Policy(Path(row["folder"]).name), spec)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        assert (exported.eval()(ids).logits - stored.eval()(ids).logits).abs().max() < 1e-5
    assert not is_adapter(tmp_path / "out")


def test_what_cannot_be_exported_is_named(done: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no policy of arm 'dpo', seed 0"):
        export_model(done, "dpo", 0, None, tmp_path / "out")
    with pytest.raises(InputError, match="arm 'rjs', seed 0 has rounds 0 to 1, not 2"):
        export_model(done, "rjs", 0, 2, tmp_path / "out")
    sweep(folder, keep="final")
    with pytest.raises(InputError, match="the policy of arm 'apo_rjs', seed 0, round 1 has no weights in the store"):
        export_model(folder, "apo_rjs", 0, 1, tmp_path / "out")
    outcome = CliRunner().invoke(app, ["export", str(done), "--format", "model", "--out", str(tmp_path / "out")])
    assert outcome.exit_code == 2
