"""Whole runs of a tiny experiment, in processes as users start them: complete, repeatable, and safe to interrupt."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from command_line import MAIN, PATIENCE_S, finished, start, write_experiment
from tiny_world import RJS, SMALL_TURN, tiny_task, tiny_tree

from apo_bench.config.load import load_experiment
from apo_bench.config.plugins import resolve
from apo_bench.engines import open_engine
from apo_bench.errors import InputError
from apo_bench.evaluation.context import EvaluationContext
from apo_bench.lab.ledger import UNITS
from apo_bench.run import pipeline
from apo_bench.run.experiment import resolve_experiment
from apo_bench.run.jobs import Job
from apo_bench.run.records import record_key
from apo_bench.run.worker import work
from apo_bench.store import RunStore

pytestmark = pytest.mark.slow

KEYS = {"arm", "gold", "seed", "fit", "update", "round", "prompt_id", "axis", "scorer", "metric", "bin", "unit", "measure"}
COLUMNS = {
    "scores": ["arm", "seed", "round", "prompt_id", "cluster_id", "axis", "scorer", "value"],
    "metrics": ["arm", "seed", "round", "axis", "metric", "value", "standard_error", "n"],
    "reward_models": ["arm", "seed", "round", "axis", "metric", "value", "ci_low", "ci_high", "n"],
    "gold": ["gold", "seed", "axis", "metric", "value", "ci_low", "ci_high", "n_pairs", "n_clusters"],
    "reliability": ["arm", "seed", "round", "axis", "bin", "low", "high", "confidence", "accuracy", "n"],
    "ledger": ["arm", "seed", "unit", "used", "marginal", "budget"],
    "timings": ["arm", "seed", "measure", "value"],
    "training": ["arm", "trial", "seed", "round", "fit", "model", "artifact", "update", "loss"],
}


def go(*words: str | Path) -> tuple[int, str]:
    return finished(start("run", *words))


def tables(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "tables").glob("*.parquet")) if path.name != "timings.parquet"}


def artifacts(folder: Path) -> set[str]:
    """Finished artifacts, by kind and key."""
    return {str(path.parent.relative_to(folder / "store")) for path in (folder / "store").glob("*/*/manifest.json")}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_experiment(tmp_path_factory.mktemp("experiments"), tiny_tree())


@pytest.fixture(scope="module")
def done(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with two workers. Tests that change something take a copy."""
    folder = tmp_path_factory.mktemp("runs") / "two_workers"
    result = pipeline.run(resolve_experiment(experiment, None, folder), workers=2)
    assert (result.folder, result.failures) == (folder, ())
    return folder


def test_tables_have_their_columns_and_are_sorted_and_unique(done: Path) -> None:
    assert {path.stem for path in (done / "tables").iterdir()} >= set(COLUMNS)
    for name, columns in COLUMNS.items():
        table = pd.read_parquet(done / "tables" / f"{name}.parquet")
        assert sorted(table.columns) == sorted(columns), name
        keys = [column for column in table if column in KEYS]
        assert len(table) > 0, name
        assert not table.duplicated(keys).any(), name
        assert table.equals(table.sort_values(keys, ignore_index=True)), name


def test_every_arm_seed_and_round_is_there(done: Path) -> None:
    scores = pd.read_parquet(done / "tables" / "scores.parquet")
    rounds = {("rjs", 0), ("rjs", 1), ("apo_rjs", 0), ("apo_rjs", 1), ("apo_rjs", 2)}
    expected = {(arm, seed, round_) for arm, round_ in rounds for seed in (0, 1)}
    for name in ("scores", "metrics"):
        table = pd.read_parquet(done / "tables" / f"{name}.parquet")
        assert set(zip(table["arm"], table["seed"], table["round"], strict=True)) == expected
    assert (scores.groupby(["arm", "seed", "round"]).size() == 14 * 7).all()  # prompts x scorers
    models = pd.read_parquet(done / "tables" / "reward_models.parquet")
    assert set(zip(models["arm"], models["seed"], models["round"], strict=True)) == expected | {("_floor", 0, 0), ("_floor", 1, 0)}
    assert (models["metric"] != "").all()


def test_round_0_is_the_initial_policy_for_every_arm(done: Path) -> None:
    scores = pd.read_parquet(done / "tables" / "scores.parquet").query("round == 0 and scorer != 'proxy'")
    sides = [scores.query(f"arm == '{arm}'").drop(columns="arm").reset_index(drop=True) for arm in ("rjs", "apo_rjs")]
    assert sides[0].equals(sides[1])
    kl = pd.read_parquet(done / "tables" / "metrics.parquet").query("metric == 'kl'")
    assert (kl.query("round == 0")["value"] == 0).all()
    assert (kl.query("round > 0 and axis == 'all'")["value"] > 0).all()


def test_the_ledger_counts_what_the_arms_did(done: Path) -> None:
    """rjs: 32 pairs in batches of 16 are 2 updates; 8 prompts x 2 samples, all scored; 8 best ones in 1 update.
    apo_rjs, 2 rounds: 6 golden x 2 + 8 x 2 = 28 samples a round, 16 scored; 32 + up to 12 pairs are 3 updates."""
    ledger = pd.read_parquet(done / "tables" / "ledger.parquet")
    for seed in (0, 1):
        rjs, apo = (ledger.query(f"arm == '{arm}' and seed == {seed}").set_index("unit")["used"] for arm in ("rjs", "apo_rjs"))
        assert set(rjs.index) == set(apo.index) == set(UNITS)
        names = ("human_pairs", "golden_responses", "sampled_responses", "scored_responses", "rm_updates", "policy_updates")
        assert [rjs[name] for name in names] == [32, 0, 16, 16, 2, 1]
        assert [apo[name] for name in names] == [32, 6, 56, 32, 6, 2]
    budget = ledger.query("arm == 'rjs' and seed == 0").set_index("unit")["budget"]
    assert (budget["human_pairs"], budget["golden_responses"]) == (32, 6)
    assert budget.drop(["human_pairs", "golden_responses"]).isna().all()
    # rjs comes first and makes all it needs; apo_rjs finds 16 of its 56 samples there, the initial policy's, and all pairs
    new = ledger.query("seed == 0").set_index(["arm", "unit"])["marginal"]
    assert [new["rjs", name] for name in names] == [32, 0, 16, 16, 2, 1]
    assert [new["apo_rjs", name] for name in names] == [0, 6, 40, 32, 6, 2]
    bench = ledger.query("arm == '_bench'")
    assert set(bench["unit"]) == set(UNITS)
    assert bench.set_index("unit")["used"]["human_pairs"] == 156  # the gold split's, which no arm may touch
    assert bench.set_index("unit")["used"]["flops"] > 0


def test_a_run_keeps_its_plan_and_says_how_it_came_out(done: Path) -> None:
    """Counts are as planned. What was measured is on a page of its own, to which the report leads."""
    plan = pd.read_parquet(done / "tables" / "plan.parquet")
    assert set(zip(plan["arm"], plan["unit"], strict=True)) == {(arm, unit) for arm in ("rjs", "apo_rjs") for unit in UNITS}
    result = pd.read_csv(done / "report" / "tables" / "plan.csv")
    sampled = result.query("arm == 'apo_rjs' and unit == 'sampled_responses'")
    assert sampled[["planned", "used", "ratio", "off"]].to_numpy().tolist() == [[56, 56, 1, "no"]]
    assert set(result.loc[result["unit"].isin(["rm_updates", "policy_updates", "scored_responses"]), "off"]) == {"no"}
    report = (done / "report" / "report.md").read_text()
    assert "### Plan and run" in report
    assert "measured.md" in report
    assert "| `apo_rjs` | seconds of work |" in (done / "report" / "measured.md").read_text()


def test_a_sized_arm_runs_at_its_size_and_its_replay_solves_nothing(tmp_path: Path) -> None:
    """56 samples of apo_rjs are 8 prompts x 7 of rjs's one round; see tests/test_plan_fitting.py."""
    tree = tiny_tree() | {"seeds": [0]}
    tree["arms"]["rjs"]["fit"] = {"to": "apo_rjs", "by": "samples_per_prompt", "unit": "sampled_responses"}
    experiment, folder = write_experiment(tmp_path / "experiments", tree), tmp_path / "run"
    assert not pipeline.run(resolve_experiment(experiment, None, folder), workers=2).failures
    used = pd.read_parquet(folder / "tables" / "ledger.parquet").query("unit == 'sampled_responses'")
    assert used.groupby("arm")["used"].sum().to_dict() | {"_bench": 0} == {"rjs": 56, "apo_rjs": 56, "_bench": 0}
    assert json.loads((folder / "manifest.json").read_text())["fits"]["rjs"]["value"] == 7
    report = (folder / "report" / "report.md").read_text()
    assert "given samples_per_prompt = 7, so as to spend as much sampled_responses as `apo_rjs`" in report
    before = tables(folder)
    replayed(experiment, folder)
    assert tables(folder) == before


def test_a_full_disk_is_said_before_anything_is_written(experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(InputError, match=r"run: the run still needs about \d+ MB of disk, and 0 MB are free there"):
        pipeline.run(resolve_experiment(experiment, None, tmp_path / "run"), workers=1)
    assert not (tmp_path / "run").exists()


def test_the_manifest_says_what_was_run(done: Path) -> None:
    manifest = json.loads((done / "manifest.json").read_text())
    assert {"commit", "dirty", "versions", "provenance", "splits", "notes", "seeds", "arms", "command"} <= set(manifest)
    assert manifest["failures"] == []
    assert (manifest["name"], manifest["task"], manifest["seeds"]) == ("tiny", "sim_hh", [0, 1])
    assert manifest["arms"] == {"rjs": RJS, "apo_rjs": "apo_bench.apo@APO"}
    assert manifest["splits"]["test"] == {"pairs": 132, "prompts": 132, "clusters": 132}
    assert (done / "report" / "report.md").is_file()


def replayed(experiment: Path, folder: Path) -> None:
    """Run it again in a process that may not import torch."""
    script = """
import sys
from pathlib import Path
from apo_bench.run import pipeline
from apo_bench.run.experiment import resolve_experiment
result = pipeline.run(resolve_experiment(Path(sys.argv[1]), None, Path(sys.argv[2])), workers=2)
assert result.failures == ()
heavy = [name for name in ("torch", "transformers") if name in sys.modules]
assert not heavy, f"imported {heavy}"
"""
    replay = subprocess.run([sys.executable, "-c", script, str(experiment), str(folder)], capture_output=True, text=True)
    assert replay.returncode == 0, replay.stderr


def test_a_replay_imports_no_torch_and_leaves_the_same_bytes(experiment: Path, done: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(done, tmp_path / "copy")
    replayed(experiment, folder)
    assert tables(folder) == tables(done)
    assert (folder / "tables" / "timings.parquet").read_bytes() == (done / "tables" / "timings.parquet").read_bytes()
    assert artifacts(folder) == artifacts(done)
    for path in (done / "report").iterdir():
        if path.suffix in (".md", ".csv"):
            assert (folder / "report" / path.name).read_bytes() == path.read_bytes()


def wait_for(process: subprocess.Popen[str], condition: Any) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, f"it ended before it could be stopped: {process.communicate()}"
        assert time.monotonic() < until
        time.sleep(0.01)


def test_interrupted_with_one_worker_it_goes_on_to_the_same_tables(experiment: Path, done: Path, tmp_path: Path) -> None:
    """Ctrl-C (SIGINT to the whole group, as a terminal sends it) ends with status 130 and one line; the same command continues."""
    folder = tmp_path / "one_worker"
    words = (experiment, "--out", folder, "--workers", "1")
    process = start("run", *words)
    wait_for(process, lambda: (folder / "store" / "scores").is_dir())  # the first arm is at work
    os.killpg(process.pid, signal.SIGINT)
    status, errors = finished(process)
    assert (status, errors.splitlines()[-1]) == (130, "interrupted; run the same command to continue")
    assert "Traceback" not in errors
    assert not (folder / "tables").exists()
    before = artifacts(folder)
    assert before
    assert not list((folder / "store").glob("arm_seeds/*.json"))
    status, errors = go(*words)
    assert status == 0, errors
    assert before <= artifacts(folder) == artifacts(done)
    assert tables(folder) == tables(done)


def test_killed_it_goes_on_to_the_same_tables(experiment: Path, done: Path, tmp_path: Path) -> None:
    """SIGKILL to the run and its workers, once an arm-seed is recorded and others are under way."""
    folder = tmp_path / "killed"
    words = (experiment, "--out", folder, "--workers", "2")
    process = start("run", *words)
    wait_for(process, lambda: list((folder / "store").glob("arm_seeds/*.json")))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "tables").exists()
    before = artifacts(folder)
    assert before < artifacts(done)
    status, errors = go(*words)
    assert status == 0, errors
    assert before <= artifacts(folder) == artifacts(done)
    assert not list((folder / "store").glob("*/.*.tmp*"))
    assert tables(folder) == tables(done)


def test_arms_that_fail_leave_the_others_alone(done: Path, tmp_path: Path) -> None:
    """apo_rjs wants 28 samples a round, rjs 16 in all: of 40, apo_rjs has none left when its second round's player asks for 16.
    `idle` finishes no round; `broken` has a bug, whose traceback is kept."""
    folder = shutil.copytree(done, tmp_path / "copy")
    tree = tiny_tree()
    tree["budget"]["sampled_responses"] = 40
    tree["arms"] |= {"broken": {"use": "methods.py@Broken"}, "idle": {"use": "methods.py@Idle"}}
    tree["seeds"] = [0]
    path = write_experiment(tmp_path / "failing", tree)
    method = "@dataclass(frozen=True)\nclass {}:\n    def run(self, lab):\n        {}\n"
    (path.parent / "methods.py").write_text(
        "from dataclasses import dataclass\n" + method.format("Broken", "1 / 0") + method.format("Idle", "lab.pairs()")
    )
    status, errors = go(path, "--out", folder, "--workers", "1")
    assert status == 1
    log = folder / "logs" / "broken.0.log"
    expected = {
        "apo_rjs": "budget exceeded: arm apo_rjs, unit sampled_responses: needs 16, has 0 left",
        "broken": f"ZeroDivisionError: division by zero (see {log})",
        "idle": f"{path}: arms.idle: it finished no round (lab.finish_round was not called)",
    }
    assert [line for line in errors.splitlines() if line.startswith("failed: ")] == [
        f"failed: {arm}, seed 0: {message}" for arm, message in expected.items()
    ]
    assert "Traceback" not in errors
    assert "1 / 0" in log.read_text()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {failure["arm"]: failure["message"] for failure in manifest["failures"]} == expected
    scores = pd.read_parquet(folder / "tables" / "scores.parquet")
    assert set(zip(scores["arm"], scores["seed"], strict=True)) == {("rjs", 0)}
    assert artifacts(folder) == artifacts(done)  # equal work: nothing was trained for another budget


def test_what_a_method_raises_steers_no_terminal_and_no_report(done: Path, tmp_path: Path) -> None:
    """An exception may quote a response: stderr, the report and the status, as a terminal gets it, show its characters by name."""
    folder = shutil.copytree(done, tmp_path / "copy")
    tree = tiny_tree()
    tree["seeds"] = [0]
    tree["arms"]["rude"] = {"use": "methods.py@Rude"}
    path = write_experiment(tmp_path / "rude", tree)
    raising = r"raise RuntimeError('\x1b[2J\x1b]0;pwn\x07 \u202eevil')"
    (path.parent / "methods.py").write_text(
        f"from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Rude:\n    def run(self, lab):\n        {raising}\n"
    )
    status, errors = go(path, "--out", folder, "--workers", "1")
    assert status == 1
    on_a_terminal = dict(os.environ, FORCE_COLOR="1", TERM="dumb")  # a terminal without colours of ours
    command = [sys.executable, "-c", MAIN, "status", str(folder)]
    process = subprocess.run(command, env=on_a_terminal, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    message = "RuntimeError: ␛[2J␛]0;pwn␇ ⟨U+202E⟩evil"
    for text in (errors, process.stdout, process.stderr, (folder / "report" / "report.md").read_text()):
        assert not {letter for letter in text if letter != "\n" and not letter.isprintable()}
    assert message in errors
    assert message in (folder / "report" / "report.md").read_text()
    assert f"failed: rude, seed 0: {message}" in process.stdout
    assert f"\n    {message}\n" in process.stdout  # the log's last line


def test_changing_an_arm_reruns_that_arm_only(done: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(done, tmp_path / "copy")
    tree = tiny_tree()
    tree["arms"]["rjs"]["learning_rate"] = 5e-3
    records = {record.name: record.stat().st_mtime_ns for record in (folder / "store" / "arm_seeds").iterdir()}
    assert pipeline.run(resolve_experiment(write_experiment(tmp_path / "changed", tree), None, folder), workers=1).failures == ()
    progress = {line.partition("] ")[2] for line in capfd.readouterr().err.splitlines() if line.startswith("[")}
    assert {line for line in progress if "rjs" in line} == {"rjs seed 0: done", "rjs seed 1: done"}
    changed = {record.name for record in (folder / "store" / "arm_seeds").iterdir() if record.stat().st_mtime_ns != records[record.name]}
    assert changed == {"rjs.0.json", "rjs.1.json"}
    before, after = (pd.read_parquet(run_folder / "tables" / "scores.parquet") for run_folder in (done, folder))
    same = [run_folder.query("arm == 'apo_rjs' or round == 0").reset_index(drop=True) for run_folder in (before, after)]
    assert same[0].equals(same[1])
    moved = [run_folder.query("arm == 'rjs' and round == 1").reset_index(drop=True) for run_folder in (before, after)]
    assert not moved[0].equals(moved[1])
    new = [name.partition("/")[0] for name in artifacts(folder) - artifacts(done)]
    assert new.count("policies") == 2  # one a seed; its samples and reward model were there
    assert "reward_models" not in new


def test_seeds_changed_after_results_were_seen_are_reported(done: Path, tmp_path: Path) -> None:
    """Seen with seeds 0 and 1. Without seed 1 it stands below the answer, in a replay too; as planned, nothing is said."""
    folder = shutil.copytree(done, tmp_path / "copy")
    assert json.loads((folder / "store" / "preregistration.json").read_text()) == [{"prompts": 14, "seeds": [0, 1], "stopping": "fixed"}]
    fewer = tiny_tree() | {"seeds": [0]}
    notice = "**Not as preregistered:** results were first seen with seeds 0, 1; seeds 1 were removed."
    for _ in range(2):
        pipeline.run(resolve_experiment(write_experiment(tmp_path / "fewer", fewer), None, folder), workers=1)
        assert json.loads((folder / "manifest.json").read_text())["preregistration_change"]["seeds_removed"] == [1]
        assert notice in (folder / "report" / "report.md").read_text().partition("## What the controls show")[0]
    pipeline.run(resolve_experiment(write_experiment(tmp_path / "again", tiny_tree()), None, folder), workers=1)
    assert "preregistration_change" not in json.loads((folder / "manifest.json").read_text())
    assert tables(folder) == tables(done)


# --- arms' own budgets --------------------------------------------------------------------------------------------------------


def key_of(path: Path, arm: str, overrides: dict[str, Any] | None = None, seed: int = 0, trial: int | None = None) -> str:
    resolved = resolve_experiment(path, overrides, path.parent / "run")
    return record_key(resolved.job(arm, seed, trial), resolved)


def test_an_arms_record_is_named_by_its_own_budget_and_not_by_anothers(experiment: Path) -> None:
    own = {"arms.rjs.budget": {"human_pairs": 20}}
    assert key_of(experiment, "rjs", own) != key_of(experiment, "rjs")
    assert key_of(experiment, "rjs", own) != key_of(experiment, "rjs", {"arms.rjs.budget": {"human_pairs": 21}})
    assert key_of(experiment, "apo_rjs", own) == key_of(experiment, "apo_rjs")
    assert key_of(experiment, "rjs", own) != key_of(experiment, "rjs", own, seed=1)
    assert key_of(experiment, "rjs", trial=0) == key_of(experiment, "rjs", trial=1) != key_of(experiment, "rjs")


def test_an_arm_with_its_own_budget_runs_on_it_and_no_other_arm_is_run_again(done: Path, tmp_path: Path) -> None:
    """The ledger holds the arm's own budget; the floor is still fitted to the experiment's 32 pairs."""
    folder = shutil.copytree(done, tmp_path / "copy")
    tree = tiny_tree()
    tree["arms"]["rjs"]["budget"] = {"human_pairs": 20}
    assert pipeline.run(resolve_experiment(write_experiment(tmp_path / "own", tree), None, folder), workers=1).failures == ()
    before, after = (pd.read_parquet(run_folder / "tables" / "ledger.parquet") for run_folder in (done, folder))
    pairs = after.query("unit == 'human_pairs' and arm != '_bench'").set_index(["arm", "seed"])
    expected = {("apo_rjs", 0): 32, ("apo_rjs", 1): 32, ("rjs", 0): 20, ("rjs", 1): 20}
    assert pairs["used"].to_dict() == pairs["budget"].to_dict() == expected
    assert after.query("arm == 'rjs' and unit == 'golden_responses'")["budget"].eq(6).all()
    # what it adds to the run may be other, now that rjs makes less
    same = [run_folder.query("arm == 'apo_rjs'").drop(columns="marginal").reset_index(drop=True) for run_folder in (before, after)]
    assert same[0].equals(same[1])
    floors = [pd.read_parquet(run_folder / "tables" / "reward_models.parquet").query("arm == '_floor'") for run_folder in (done, folder)]
    assert floors[0].reset_index(drop=True).equals(floors[1].reset_index(drop=True))


# --- judges -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged(done: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same run with two judges, one of which is the scorer: its experiment and its folder."""
    root = tmp_path_factory.mktemp("judged")
    tree = tiny_tree()
    tree["judges"] = {
        "sim": {"use": "apo_bench.judging.simulated_judge@SimulatedJudge", "noise": 0.2, "failure_rate": 0.1},
        "gold": {"use": "apo_bench.judging.reward_judge@RewardModelJudge", "gold": "linear"},
    }
    tree["judging"], tree["compare"]["scorer"] = {"audit_pairs": 30}, "judge/sim"
    shutil.copytree(done, root / "run")
    path = write_experiment(root, tree)
    assert pipeline.run(resolve_experiment(path, None, root / "run"), workers=1).failures == ()
    return path, root / "run"


def test_judges_are_asked_after_a_run_and_no_arm_is_run_again(judged: tuple[Path, Path], done: Path) -> None:
    _, folder = judged
    assert artifacts(folder) >= artifacts(done)
    for name in ("scores", "metrics", "ledger"):
        assert tables(folder)[f"{name}.parquet"] == tables(done)[f"{name}.parquet"]
    rows = pd.read_parquet(folder / "tables" / "judgments.parquet")
    assert rows.groupby("judge").size().to_dict() == {"sim": 14 * 2 * 2, "gold": 14 * 2 * 2}  # prompts x seeds x orders
    assert set(rows["round"]) == {"2/1"}
    assert "(judge/sim, all axes pooled)" in (folder / "report" / "report.md").read_text().split("## Scores")[0]
    contrasts = pd.read_csv(folder / "report" / "tables" / "contrasts.csv")
    assert set(contrasts.loc[contrasts["family"] == "primary", "scorer"]) == {"judge/sim"}


def test_the_gold_judge_prefers_what_gold_scores_higher(judged: tuple[Path, Path]) -> None:
    """Both orders of a comparison have the sign of the difference in the table's own gold scores; identical answers are ties."""
    _, folder = judged
    rows = pd.read_parquet(folder / "tables" / "judgments.parquet").query("judge == 'gold'")
    scores = pd.read_parquet(folder / "tables" / "scores.parquet").query("scorer == 'linear'")
    value = scores.set_index(["arm", "seed", "round", "prompt_id"])["value"]
    for row in rows.to_dict("records"):
        a, b = value[row["arm_a"], row["seed_a"], 2, row["prompt_id"]], value[row["arm_b"], row["seed_b"], 1, row["prompt_id"]]
        assert row["value"] == (0.5 if abs(a - b) < 1e-9 else float(a > b))


def test_a_judged_run_replays_without_torch_and_a_new_judge_asks_only_its_own(judged: tuple[Path, Path], tmp_path: Path) -> None:
    path, folder = judged
    copy = shutil.copytree(folder, tmp_path / "run")
    replayed(path, copy)
    assert tables(copy) == tables(folder)
    journal = copy / "store" / "judging" / "sim.jsonl"
    journal_before = journal.read_bytes()
    tree = yaml.safe_load(path.read_text())
    tree["judges"]["other"] = {"use": "apo_bench.judging.simulated_judge@SimulatedJudge", "noise": 1.0}
    assert pipeline.run(resolve_experiment(write_experiment(tmp_path, tree), None, copy), workers=1).failures == ()
    assert journal.read_bytes() == journal_before
    assert set(pd.read_parquet(copy / "tables" / "judgments.parquet")["judge"]) == {"sim", "gold", "other"}


def test_a_judge_that_cannot_be_opened_leaves_an_earlier_answer_as_it_is(judged: tuple[Path, Path], tmp_path: Path) -> None:
    """One that is new in the experiment, and one that was added and whose key is gone: an error, and every table is there."""
    path, folder = judged
    copy = shutil.copytree(folder, tmp_path / "run")
    tree = yaml.safe_load(path.read_text())
    chat = {
        "use": "apo_bench.judging.chat_judge@ChatJudge",
        "model": "m",
        "base_url": "http://127.0.0.1:9/v1",
        "api_key_env": "NO_SUCH_KEY",
    }
    with pytest.raises(InputError, match=r"judges.gpt: api_key_env: the environment variable NO_SUCH_KEY is not set"):
        pipeline.run(
            resolve_experiment(write_experiment(tmp_path, tree | {"judges": {**tree["judges"], "gpt": chat}}), None, copy),
            workers=1,
        )
    (copy / "judges.json").write_text(json.dumps({"gpt": chat}))
    with pytest.raises(InputError, match="NO_SUCH_KEY"):
        pipeline.run(resolve_experiment(write_experiment(tmp_path, tree | {"judging": {"audit_pairs": 10}}), None, copy), workers=1)
    assert tables(copy) == tables(folder)
    assert (copy / "report" / "report.md").read_bytes() == (folder / "report" / "report.md").read_bytes()


def test_a_judge_that_cannot_be_opened_is_said_before_anything_is_spent(tmp_path: Path) -> None:
    tree = tiny_tree()
    tree["judges"] = {"rm": {"use": "apo_bench.judging.reward_judge@RewardModelJudge", "gold": "absent"}}
    with pytest.raises(InputError, match=r"judges.rm: .*no gold reward model 'absent'"):
        pipeline.run(resolve_experiment(write_experiment(tmp_path, tree), None, tmp_path / "run"), workers=1)
    assert not (tmp_path / "run").exists()


# --- tuning -------------------------------------------------------------------------------------------------------------------


def tuned_tree() -> dict[str, Any]:
    """Two arms, two trials each on one seed, then one seed with what was chosen."""
    tree = tiny_tree()
    tree["seeds"] = [0]
    tree["evaluation"]["dev_prompts"] = 8
    tree["arms"]["apo_rjs"]["rounds"] = 1
    tree["tune"] = {
        "trials": 2,
        "grids": {"rjs": {"samples_per_prompt": [3, 4]}, "apo_rjs": {"player.learning_rate": [1e-4, 2e-2]}},
    }
    return tree


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The experiment and the folder of its run."""
    path, folder = write_experiment(tmp_path_factory.mktemp("tuned"), tuned_tree()), tmp_path_factory.mktemp("runs") / "tuned"
    assert pipeline.run(resolve_experiment(path, None, folder), workers=1).failures == ()
    return path, folder


def records(folder: Path, kind: str) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((folder / "store" / kind).glob("*.json"))}


def choices(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())["tuned"]


def test_each_arm_takes_the_setting_of_the_highest_dev_score(tuned: tuple[Path, Path]) -> None:
    trials = records(tuned[1], "trials")
    assert set(trials) == {f"{arm}.{number}.1000" for arm in ("rjs", "apo_rjs") for number in (0, 1)}
    grids = tuned_tree()["tune"]["grids"]
    assert set(choices(tuned[1])) == set(grids)
    for arm, choice in choices(tuned[1]).items():
        settings = [{name: value} for name, values in grids[arm].items() for value in values]
        by_round = [trials[f"{arm}.{number}.1000"]["dev_scores"] for number in (0, 1)]
        assert [len(scores) for scores in by_round] == [1, 1]
        first, second = (scores[0] for scores in by_round)
        assert first != second
        kl = [trials[f"{arm}.{number}.1000"]["kl"][-1] for number in (0, 1)]
        assert all(nats > 0 for nats in kl)
        truth = [trials[f"{arm}.{number}.1000"]["dev_truth"][-1] for number in (0, 1)]
        assert choice["trials"] == [
            {"setting": settings[place], "dev_score": (first, second)[place], "dev_truth": truth[place], "kl": kl[place]}
            for place in (0, 1)
        ]
        assert choice["chosen"] == settings[0 if first > second else 1]


def test_by_the_truth_the_setting_of_the_highest_dev_truth_is_taken_from_the_same_trials(tuned: tuple[Path, Path], tmp_path: Path) -> None:
    folder, tree = shutil.copytree(tuned[1], tmp_path / "run"), tuned_tree()
    tree["tune"]["by"] = "ground_truth"
    before = records(folder, "trials")
    assert pipeline.run(resolve_experiment(write_experiment(tmp_path / "truth", tree), None, folder), workers=1).failures == ()
    assert records(folder, "trials") == before
    for choice in choices(folder).values():
        assert choice["chosen"] == max(choice["trials"], key=lambda trial: trial["dev_truth"])["setting"]


def test_arms_run_with_what_was_chosen(tuned: tuple[Path, Path]) -> None:
    """The chosen setting played once more on the run's store: nothing is computed, and it ends in the recorded policies."""
    path, folder = tuned
    store = RunStore(folder)
    tuned_experiment = load_experiment(path)
    engine = open_engine(tuned_experiment.engine, tuned_experiment.executor, folder)
    context = EvaluationContext(tuned_experiment, tiny_task(), store, engine)
    played, chosen = tuned_tree()["arms"], choices(folder)
    played["rjs"] |= chosen["rjs"]["chosen"]
    played["apo_rjs"]["player"]["learning_rate"] = chosen["apo_rjs"]["chosen"]["player.learning_rate"]
    for name, parameters in played.items():
        record, lab = records(folder, "arm_seeds")[f"{name}.0"], context.lab(0, arm=name)
        resolve(parameters.pop("use"), parameters, base=None).run(lab)
        assert [round_.policy.key for round_ in lab.rounds] == [round_["policy"] for round_ in record["rounds"][1:]]
        assert lab.used == record["used"]
    assert store.built == []


def test_trials_are_charged_apart(tuned: tuple[Path, Path]) -> None:
    """rjs tried 8 x 3 and 8 x 4 samples, apo_rjs twice 6 x 2 + 8 x 2; human pairs are a stock, the same 32 in both trials."""
    ledger = pd.read_parquet(tuned[1] / "tables" / "ledger.parquet")
    assert set(ledger["arm"]) == {"rjs", "apo_rjs", "_tune.rjs", "_tune.apo_rjs", "_bench"}
    rows = ledger[ledger["arm"].str.startswith("_tune.")]
    assert set(rows["seed"]) == {1000}
    assert rows["budget"].isna().all()
    used = rows.pivot(index="unit", columns="arm", values="used")
    assert set(used.index) == set(UNITS)
    assert used.loc["sampled_responses"].to_dict() == {"_tune.rjs": 24 + 32, "_tune.apo_rjs": 2 * 28}
    assert used.loc["human_pairs"].to_dict() == {"_tune.rjs": 32, "_tune.apo_rjs": 32}
    assert used.loc["golden_responses"].to_dict() == {"_tune.rjs": 0, "_tune.apo_rjs": 6}
    assert used.loc["policy_updates"].to_dict() == {"_tune.rjs": 2, "_tune.apo_rjs": 2}
    task = tiny_task()
    learnt_from = ledger.query("arm == '_bench' and unit == 'human_pairs'")["used"].item()
    assert learnt_from == len(task.pairs["gold"]) + len(task.pairs["dev"])  # the gold models' pairs and the referee's
    scores = pd.read_parquet(tuned[1] / "tables" / "scores.parquet")
    assert set(zip(scores["arm"], scores["seed"], strict=True)) == {("rjs", 0), ("apo_rjs", 0)}


def test_losses_of_trials_are_kept_and_damaged_ones_made_again(tuned: tuple[Path, Path], tmp_path: Path) -> None:
    """Every trial has one round. A trial whose curves are gone is run again, trains nothing anew, and the tables are those of before."""
    path, first = tuned
    folder = shutil.copytree(first, tmp_path / "copy")
    losses = pd.read_parquet(folder / "tables" / "training.parquet")
    fits = losses[losses["model"] == "policy"].groupby(["arm", "trial", "seed"])["fit"].nunique()
    assert fits.to_dict() == {(f"_tune.{arm}", trial, 1000): 1 for arm in ("rjs", "apo_rjs") for trial in (1, 2)}
    curves = json.loads((folder / "store" / "trials" / "rjs.1.1000.json").read_text())["curves"]["arm"]
    shutil.rmtree(folder / "store" / "curves" / curves)
    (folder / "store" / "report_key.json").unlink()
    assert pipeline.run(resolve_experiment(path, None, folder), workers=1).failures == ()
    assert tables(folder) == tables(first)
    assert artifacts(folder) == artifacts(first)


def test_a_tuned_run_replays_without_computing_and_without_torch(tuned: tuple[Path, Path], tmp_path: Path) -> None:
    path, first = tuned
    folder = shutil.copytree(first, tmp_path / "copy")
    replayed(path, folder)
    assert tables(folder) == tables(first)
    assert artifacts(folder) == artifacts(first)
    assert (folder / "manifest.json").read_bytes() == (first / "manifest.json").read_bytes()


def test_trials_over_budget_are_not_taken_and_an_arm_without_any_left_fails_alone(tuned: tuple[Path, Path], tmp_path: Path) -> None:
    """A budget of 100 samples lets rjs try 8 x 4 but not 8 x 50, greedy neither 8 x 50 nor 8 x 40."""
    folder = shutil.copytree(tuned[1], tmp_path / "copy")
    tree = tuned_tree()
    tree["budget"]["sampled_responses"] = 100
    tree["arms"]["greedy"] = {"use": RJS, "rounds": 1, **SMALL_TURN}
    tree["tune"]["grids"] |= {"rjs": {"samples_per_prompt": [50, 4]}, "greedy": {"samples_per_prompt": [50, 40]}}
    result = pipeline.run(resolve_experiment(write_experiment(tmp_path / "greedy", tree), None, folder), workers=1)
    message = "tuning: every trial failed: budget exceeded: arm greedy, unit sampled_responses: needs 400, has 100 left"
    assert [str(failure) for failure in result.failures] == [f"greedy, seed 0: {message}"]
    assert json.loads((folder / "manifest.json").read_text())["failures"] == [{"arm": "greedy", "seed": 0, "message": message}]
    now, before = choices(folder), choices(tuned[1])
    assert set(now) == {"rjs", "apo_rjs"}
    assert now["rjs"]["chosen"] == {"samples_per_prompt": 4}
    error = "budget exceeded: arm rjs, unit sampled_responses: needs 400, has 100 left"
    failed = {"setting": {"samples_per_prompt": 50}, "dev_score": None, "dev_truth": None, "kl": None, "error": error}
    assert now["rjs"]["trials"] == [failed, before["rjs"]["trials"][1]]
    ledger = pd.read_parquet(folder / "tables" / "ledger.parquet").query("unit == 'sampled_responses'").set_index("arm")["used"]
    assert (ledger["rjs"], ledger["_tune.rjs"], "greedy" in ledger.index) == (32, 32, False)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"sample_per_prompt": [2, 3]}, "arms.rjs: unknown parameter 'sample_per_prompt' of RejectionSampling"),
        ({"samples_per_prompt": [2, 0]}, "arms.rjs.samples_per_prompt: 1 or more is needed (got 0)"),
        ({"learning_rate.first": [1e-3, 1e-4]}, "arms.rjs.learning_rate: "),
    ],
)
def test_a_setting_that_is_wrong_is_said_before_anything_is_written(tmp_path: Path, grid: dict[str, Any], message: str) -> None:
    tree = tuned_tree()
    tree["tune"]["grids"]["rjs"] = grid
    path, folder = write_experiment(tmp_path, tree), tmp_path / "run"
    with pytest.raises(InputError) as caught:
        pipeline.run(resolve_experiment(path, None, folder), workers=1)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert len(str(caught.value).splitlines()) == 1
    assert not folder.exists()


def test_each_trial_that_breaks_keeps_its_own_log(tuned: tuple[Path, Path], tmp_path: Path) -> None:
    """Trials of one arm on one seed do not overwrite each other's traceback."""
    folder = shutil.copytree(tuned[1], tmp_path / "copy")
    tree = tuned_tree()
    tree["arms"]["rjs"] = {"use": "methods.py@Broken"}
    tree["tune"]["grids"]["rjs"] = {"by": [0, 1]}
    path = write_experiment(tmp_path / "broken", tree)
    (path.parent / "methods.py").write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Broken:\n    by: int = 0\n"
        "    def run(self, lab):\n        raise RuntimeError(f'by {self.by}')\n"
    )
    for number in (0, 1):
        job = Job(path, json.dumps({"arms.rjs.by": number}), folder, "rjs", 1000, number)
        log = folder / "logs" / f"rjs.{number}.1000.log"
        assert work(job, lambda stage, tokens=0.0, used=None: None) == f"RuntimeError: by {number} (see {log})"
        assert f"RuntimeError: by {number}" in log.read_text()
    assert len(list(log.parent.iterdir())) == 2


def test_settings_share_one_task(experiment: Path) -> None:
    """The simulated world takes a second to make; trials need not make it again."""
    resolved = resolve_experiment(experiment)
    assert all(resolved.with_overrides({"arms.rjs.learning_rate": rate}).task is resolved.task for rate in (0.1, 0.2))
    assert resolved.with_overrides({"task.options.world_seed": 5}).task is not resolved.task


# --- bad input ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("arms.rjs.round", 2, "unknown parameter 'round'"),
        ("arms.rjs.use", "absent.py@RJS", "absent.py: no such file"),
        ("arms.rjs.rounds", "two", "a whole number is needed"),
        ("task.use", "absent", "absent"),
        ("task.options", {"prompt_per_cluster": 1}, "prompt_per_cluster"),
        ("seeds", [0, 0], "0 occurs twice"),
        ("models.policy.architecture", None, "give exactly one of path and architecture"),
        ("compare.primary", [{"a": "rjs", "b": "absent"}], "no arm named 'absent'"),
    ],
)
def test_bad_input_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: Any, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    path, folder = write_experiment(tmp_path / "experiments", tiny_tree()), tmp_path / "runs" / "bad"
    for out in (folder, None):
        with pytest.raises(InputError) as caught:
            pipeline.run(resolve_experiment(path, {key: value}, out), workers=1)
        assert message in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["experiments", "tiny.yaml"]


def test_a_model_folder_that_is_not_there_writes_nothing(tmp_path: Path) -> None:
    tree = tiny_tree()
    tree["models"]["policy"] |= {"path": "./no_such_model"}
    del tree["models"]["policy"]["architecture"], tree["models"]["policy"]["warmup"]
    with pytest.raises(InputError, match="no such model folder"):
        pipeline.run(resolve_experiment(write_experiment(tmp_path, tree), None, tmp_path / "run"), workers=1)
    assert not (tmp_path / "run").exists()


# --- in parts --------------------------------------------------------------------------------------------------------------------


def test_a_run_in_parts_ends_with_the_tables_of_a_whole_one(experiment: Path, done: Path, tmp_path: Path) -> None:
    """One arm, then one seed of the other: no table yet, so that nobody looks; the last part makes them, the same byte for byte."""
    folder = tmp_path / "run"
    first = pipeline.run(resolve_experiment(experiment, None, folder), workers=2, subset=pipeline.JobSubset(arms=("rjs",)))
    assert (first.failures, first.n_left) == ((), 2)
    assert [(job.arm, job.seed, finished) for job, finished in pipeline.preview(resolve_experiment(experiment, None, folder))] == [
        ("rjs", 0, True), ("rjs", 1, True), ("apo_rjs", 0, False), ("apo_rjs", 1, False),
    ]  # fmt: skip
    second = pipeline.run(resolve_experiment(experiment, None, folder), workers=2, subset=pipeline.JobSubset(seeds=(1,)))
    assert (second.failures, second.n_left) == ((), 1)
    assert not (folder / "tables").exists()
    assert not (folder / "manifest.json").exists()
    last = pipeline.run(resolve_experiment(experiment, None, folder), workers=2, subset=pipeline.JobSubset(arms=("apo_rjs",), seeds=(0,)))
    assert (last.failures, last.n_left) == ((), 0)
    assert tables(folder) == tables(done)


@pytest.mark.parametrize(
    ("subset", "message"),
    [
        (pipeline.JobSubset(arms=("rjs", "dpo")), "--arms dpo: the experiment has no such arm; it has: rjs, apo_rjs"),
        (pipeline.JobSubset(seeds=(7,)), "--seeds 7: the experiment has no such seed; it has: 0, 1"),
    ],
)
def test_an_unknown_subset_writes_nothing(experiment: Path, tmp_path: Path, subset: pipeline.JobSubset, message: str) -> None:
    for call in (pipeline.preview, pipeline.run):
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            call(resolve_experiment(experiment, None, tmp_path / "run"), subset=subset)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["[]", "[" * 100_000, "{", "{}"])
def test_a_record_that_is_none_is_not_finished(experiment: Path, done: Path, tmp_path: Path, text: str) -> None:
    folder = shutil.copytree(done, tmp_path / "run")
    (folder / "store" / "arm_seeds" / "rjs.0.json").write_text(text)
    assert [(job.arm, job.seed) for job, finished in pipeline.preview(resolve_experiment(experiment, None, folder)) if not finished] == [
        ("rjs", 0)
    ]


def test_a_preview_writes_nothing_and_knows_what_is_finished(experiment: Path, done: Path, tmp_path: Path) -> None:
    assert all(finished for _, finished in pipeline.preview(resolve_experiment(experiment, None, done)))
    assert not any(
        finished
        for _, finished in pipeline.preview(
            resolve_experiment(experiment, None, tmp_path / "run"), subset=pipeline.JobSubset(arms=("rjs",))
        )
    )
    assert not (tmp_path / "run").exists()


def test_a_run_folder_is_set_aside_and_nothing_else_is(done: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(done, tmp_path / "run")
    assert pipeline.set_aside(folder) == tmp_path / "run.before"
    assert tables(tmp_path / "run.before") == tables(done)
    assert not folder.exists()
    assert pipeline.set_aside(folder) is None
    folder.mkdir()
    with pytest.raises(InputError, match=r"run: not a run folder"):
        pipeline.set_aside(folder)


def test_arms_are_tuned_in_parts(tuned: tuple[Path, Path], tmp_path: Path) -> None:
    """Of a part only its arms are tuned and run; the other's are left, and come to what they come to in one run."""
    path, whole = tuned
    first_arm, other = load_experiment(path).arms
    n_seeds = len(load_experiment(path).seeds)
    first = pipeline.run(resolve_experiment(path, None, tmp_path / "run"), workers=2, subset=pipeline.JobSubset(arms=(first_arm,)))
    assert (first.failures, first.n_left) == ((), n_seeds)
    assert not list((tmp_path / "run" / "store" / "trials").glob(f"{other}.*"))
    assert pipeline.run(resolve_experiment(path, None, tmp_path / "run"), workers=2).n_left == 0
    assert tables(tmp_path / "run") == tables(whole)
