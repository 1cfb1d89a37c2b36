"""`run_experiment`: what the command line does, from Python; and an experiment file that is read once."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import write_experiment
from tiny_world import smallest_tree

from apo_bench.config import plain_yaml
from apo_bench.errors import InputError
from apo_bench.run import RunResult, run_experiment
from apo_bench.run.experiment import resolve_experiment
from apo_bench.store import write_json


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources of the YAML texts that this process parses."""
    sources: list[str] = []
    parse = plain_yaml.parse_yaml
    monkeypatch.setattr(plain_yaml, "parse_yaml", lambda text, source, *more: (sources.append(source), parse(text, source, *more))[1])
    return sources


@pytest.mark.slow
def test_a_fresh_run_parses_its_file_once_and_its_parts_add_up(tmp_path: Path, parsed: list[str]) -> None:
    """In parts, the first of which leaves two arm-seeds to the second; then it is set aside and only shown."""
    path, folder = write_experiment(tmp_path / "experiments", smallest_tree()), tmp_path / "run"
    first = run_experiment(path, out=folder, workers=2, arms=["rjs"])
    assert first == RunResult(folder, n_left=2)
    assert parsed.count(str(path)) == 1
    assert not (folder / "tables").exists()
    last = run_experiment(path, out=folder, workers=2, seeds=[0, 1])
    assert (last.failures, last.n_left) == ((), 0)
    assert (folder / "report" / "report.md").is_file()
    shown = run_experiment(path, out=folder, dry_run=True)
    assert [(job.arm, job.seed, finished) for job, finished in shown.preview] == [
        ("rjs", 0, True), ("rjs", 1, True), ("best", 0, True), ("best", 1, True),
    ]  # fmt: skip
    write_json(folder / "store" / "progress" / "rjs.0.json", {"stage": "scoring", "pid": 1})
    with pytest.raises(InputError, match=r"a run is at work \(process 1\)"):
        run_experiment(path, out=folder, fresh=True)
    (folder / "store" / "progress" / "rjs.0.json").unlink()
    again = run_experiment(path, overrides={"seeds": [3]}, out=folder, workers=1, fresh=True, arms=["best"])
    assert (again.n_left, again.set_aside) == (1, tmp_path / "run.before")
    assert not (folder / "store" / "arm_seeds" / "rjs.0.json").exists()
    assert (tmp_path / "run.before" / "report" / "report.md").is_file()


def test_tuning_and_its_trials_parse_no_file_again(tmp_path: Path, parsed: list[str]) -> None:
    tree = smallest_tree()
    tree["evaluation"]["dev_prompts"] = 4
    tree["tune"] = {"trials": 2, "seeds": [9], "grids": {arm: {"n": [2, 3]} for arm in ("best",)}}
    tree["arms"] = {"best": tree["arms"]["best"], "more": {"use": "baselines/best_of_n.py@BestOfN", "n": 3}}
    tree["tune"]["grids"]["more"] = {"n": [3, 4]}
    tree["compare"] = {"primary": [{"a": "more", "b": "best"}]}
    path = write_experiment(tmp_path, tree)
    jobs = run_experiment(path, out=tmp_path / "run", dry_run=True).preview
    assert [(job.arm, job.trial, json.loads(job.overrides)) for job, _ in jobs] == [
        ("best", 0, {"arms.best.n": 2}), ("best", 1, {"arms.best.n": 3}), ("more", 0, {"arms.more.n": 3}), ("more", 1, {"arms.more.n": 4}),
    ]  # fmt: skip
    assert parsed.count(str(path)) == 1


@pytest.mark.slow
def test_tiny_runs_at_every_level_of_what_varies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is named after the experiment; each level has its own run with tiny sizes, whose command says so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APO_BENCH_MODELS", str(tmp_path / "models"))
    path = write_experiment(tmp_path / "experiments", smallest_tree() | {"seeds": [0, 1, 2], "vary": {"world": [0, 1, 2]}})
    result = run_experiment(path, overrides={"seeds": [5]}, workers=2, tiny=True)
    assert (result.folder, result.varied, result.failures) == (tmp_path / "results" / "tiny-tiny", True, ())
    assert sorted(part.name for part in result.folder.iterdir()) == ["experiment.yaml", "report", "world=0", "world=1"]
    manifest = json.loads((result.folder / "world=1" / "manifest.json").read_text())
    assert (
        manifest["command"]
        == "apo-bench run experiments/tiny.yaml --tiny --set 'seeds=[5]' --set task.options.world_seed=1 --set 'vary={}'"
    )
    with pytest.raises(InputError, match="name one level of what varies"):
        run_experiment(path, tiny=True, dry_run=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overrides": {"arms.best.n": 0}}, "arms.best"),
        ({"arms": ["dpo"]}, "--arms dpo: the experiment has no such arm; it has: rjs, best"),
        ({"seeds": [7]}, "--seeds 7: the experiment has no such seed; it has: 0, 1"),
        ({"overrides": {"compare.axes": ["kind"]}}, "has no axis 'kind'"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    path = write_experiment(tmp_path, smallest_tree())
    with pytest.raises(InputError) as refused:
        run_experiment(path, out=tmp_path / "run", **settings)
    assert message in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_an_experiment_that_is_edited_is_read_again(tmp_path: Path) -> None:
    """A Python session may outlive several states of a file."""
    seeds = [resolve_experiment(write_experiment(tmp_path, smallest_tree() | {"seeds": [seed]})).experiment.seeds for seed in (1, 2)]
    assert seeds == [(1,), (2,)]


def test_overrides_share_the_file_and_the_task(tmp_path: Path, parsed: list[str]) -> None:
    path = write_experiment(tmp_path, smallest_tree())
    resolved = resolve_experiment(path, {"seeds": [4]}, tmp_path / "run")
    changed = resolved.with_overrides({"arms.best.n": 3})
    assert (changed.experiment.seeds, changed.experiment.arms["best"].parameters["n"]) == ((4,), 3)
    assert changed.task is resolved.task
    assert resolved.under(changed.overrides) is changed
    assert changed.under(resolved.overrides).experiment == resolved.experiment
    assert changed.job("best", 4).overrides == '{"arms.best.n": 3, "seeds": [4]}'
    with pytest.raises(InputError, match=r"tiny\.yaml: seeds"):
        resolved.with_overrides({"seeds": ["x"]})
    assert parsed.count(str(path)) == 1
