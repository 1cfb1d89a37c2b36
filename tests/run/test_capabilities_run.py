"""`evaluation.capabilities` from an experiment's file to its tables, on the world of sim_hh; and what it leaves as it was."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml
from lm_eval_tasks import hugging_face_model, lm_eval_results
from tiny_world import smallest_tree, tiny_task

from apo_bench.config.load import load_experiment
from apo_bench.errors import InputError
from apo_bench.run import records
from apo_bench.run.experiment import find_experiment, resolve_experiment
from apo_bench.run.tiny import ITEMS, tiny_overrides

CAPABILITIES = {"tasks": ["sim_hh_answers"], "include_path": "tasks/sim_hh", "limit": 12, "apply_chat_template": True, "margin": 0.5}


def tree_with(**own: Any) -> dict[str, Any]:
    tree = smallest_tree()
    tree["evaluation"]["capabilities"] = {**CAPABILITIES, **own}
    return tree


def test_no_key_of_an_experiment_without_capabilities_knows_of_them(
    write_experiment: Callable[[dict[str, Any]], Path], monkeypatch: pytest.MonkeyPatch
):
    hashed: list[Any] = []
    monkeypatch.setattr(records, "digest", lambda value: hashed.append(value) or "key")
    without, given = (resolve_experiment(write_experiment(tree)) for tree in (smallest_tree(), tree_with()))
    for resolved in (without, given):
        records.record_key(resolved.job("rjs", 0), resolved)
    first, second = hashed
    assert "capabilities" not in json.dumps(first)
    assert second.pop("capabilities")["settings"]["limit"] == 12
    assert first == second
    records.record_key(given.job("_aa", 5), given)  # a control is run on no task
    assert "capabilities" not in hashed[-1]


def test_a_tiny_run_takes_few_items(write_experiment: Callable[[dict[str, Any]], Path], tmp_path: Path):
    path = write_experiment(tree_with(limit=None))
    evaluation = tiny_overrides(load_experiment(path), path, tmp_path)["evaluation"]
    assert evaluation["capabilities"]["limit"] == 4
    path = write_experiment(smallest_tree())
    assert "capabilities" not in tiny_overrides(load_experiment(path), path, tmp_path)["evaluation"]


@pytest.mark.slow
def test_tasks_that_are_not_there_are_a_line_of_check(write_experiment: Callable[[dict[str, Any]], Path], monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("lm_eval")
    from apo_bench.data import capability_tasks
    from apo_bench.run.validate import check_experiment

    monkeypatch.setattr(capability_tasks, "_all_tasks", lambda *_: SimpleNamespace(task_index={}))  # in place of thousands of files
    with pytest.raises(InputError, match=r"experiment.yaml: evaluation\.capabilities\.tasks: no task 'sums'"):
        check_experiment(write_experiment(tree_with(tasks=["sums"])))
    note = next(note for note in check_experiment(write_experiment(tree_with())) if "capabilities" in note)
    assert note.startswith("evaluation.capabilities: sim_hh_answers: 12 items, about ")
    monkeypatch.setattr(capability_tasks, "lacking", lambda: "evaluation.capabilities: lm-eval is not installed")
    with pytest.raises(InputError, match=r"evaluation\.capabilities: lm-eval is not installed"):
        check_experiment(write_experiment(tree_with()))


@pytest.mark.slow
def test_policies_of_a_simulated_world_are_run_on_its_own_task(tmp_path: Path):
    """Evaluations keep their keys, the initial policy's items are lm-eval's own samples, and a second run computes nothing."""
    pytest.importorskip("lm_eval")
    from apo_bench.run import run_experiment

    path, run = tmp_path / "experiment.yaml", tmp_path / "run"

    def folders(kind: str) -> set[str]:
        return {folder.name for folder in (run / "store" / kind).glob("[0-9a-f]*")}

    path.write_text(yaml.safe_dump(smallest_tree() | {"seeds": [0]}), encoding="utf-8")
    assert not run_experiment(path, out=run, workers=1).failures
    evaluated, before = folders("evaluations"), (run / "experiment.yaml").read_text(encoding="utf-8")
    assert "capabilities" not in before
    path.write_text(yaml.safe_dump(tree_with() | {"seeds": [0]}), encoding="utf-8")
    assert not run_experiment(path, out=run, workers=1).failures
    assert folders("evaluations") == evaluated
    rows = pd.read_parquet(run / "tables" / "capabilities.parquet")
    assert set(rows["arm"]) == {"rjs", "_initial"}  # best of n has no weights
    assert rows.groupby("arm")["doc_id"].nunique().to_dict() == {"_initial": 12, "rjs": 12}
    assert set(rows["cluster_id"]) <= {prompt.cluster_id for prompt in tiny_task().prompts["test"]}
    start = rows[rows["arm"] == "_initial"].set_index("doc_id")["value"]
    assert start.to_dict() == _samples(run)
    losses = pd.read_csv(run / "report" / "tables" / "capabilities.csv").set_index("arm")
    assert losses.loc["rjs", "difference"] == pytest.approx(rows.loc[rows["arm"] == "rjs", "value"].mean() - start.mean(), abs=0.2)
    capabilities = folders("capabilities")
    assert len(capabilities) == 2
    report = (run / "report" / "report.md").read_bytes()
    assert not run_experiment(path, out=run, workers=1).failures
    assert (folders("capabilities"), (run / "report" / "report.md").read_bytes()) == (capabilities, report)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "player"), [("sim_rjs", "rjs"), ("sim_dpo", "dpo"), ("sim_rrhf", "rrhf")])
def test_policies_of_the_simulated_experiments_are_run_on_the_world_s_task(name: str, player: str, tmp_path: Path):
    """Each shipped experiment with its player and APO alone, in one round at `--tiny` sizes: an item is the same for all three policies.

    The report asks of both arms whether they are worse than the initial policy, and gives the mean differences of the table's rows.
    """
    pytest.importorskip("lm_eval")
    from apo_bench.run import run_experiment

    tree = yaml.safe_load((find_experiment(Path(f"experiments/{name}.yaml"))).read_text(encoding="utf-8"))
    tree["arms"] = {arm: {**tree["arms"][arm], "rounds": 1} for arm in (player, f"apo_{player}")}
    tree["models"]["gold"][0]["seeds"] = [0]
    tree |= {"task": smallest_tree()["task"], "seeds": [0], "controls": {}, "compare": {"primary": [{"a": f"apo_{player}", "b": player}]}}
    tree["evaluation"]["capabilities"] = CAPABILITIES
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    assert not run_experiment(tmp_path / "experiment.yaml", out=tmp_path / "run", workers=1, tiny=True).failures
    rows = pd.read_parquet(tmp_path / "run" / "tables" / "capabilities.parquet")
    by_arm = rows.pivot(index="doc_id", columns="arm", values="value")
    assert by_arm.shape == (ITEMS, 3)
    assert by_arm.isin([0.0, 1.0]).to_numpy().all()
    losses = pd.read_csv(tmp_path / "run" / "report" / "tables" / "capabilities.csv").set_index("arm")
    assert set(losses.index) == {player, f"apo_{player}"}
    clusters = rows.drop_duplicates("doc_id").set_index("doc_id")["cluster_id"]
    means = by_arm.groupby(clusters).mean().mean()  # clusters weigh alike
    for arm in losses.index:
        assert losses.loc[arm, "difference"] == pytest.approx(means[arm] - means["_initial"], abs=1e-9)


def _samples(run: Path) -> dict[int, float]:
    """Scores of the run's initial policy by lm-eval itself, from its folder in the store."""
    from lm_eval.tasks import TaskManager

    record = json.loads((run / "store" / "arm_seeds" / "rjs.0.json").read_text(encoding="utf-8"))
    model = hugging_face_model(
        pretrained=str(run / "store" / "policies" / record["rounds"][0]["policy"]), device="cpu", dtype="float32", batch_size=16
    )
    options = {"sim_hh": smallest_tree()["task"]["options"]}
    manager = TaskManager(include_path="tasks/sim_hh", include_defaults=False, metadata=options)  # pyright: ignore[reportArgumentType]
    results = lm_eval_results(model, tasks=["sim_hh_answers"], task_manager=manager, limit=12, bootstrap_iters=0, apply_chat_template=True)
    return {sample["doc_id"]: float(sample["acc"]) for sample in results["samples"]["sim_hh_answers"]}
