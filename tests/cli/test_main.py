"""The command line: exit statuses, one-line errors, the printed table."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from run_folder import experiment, frame, scored, write_run
from typer.testing import CliRunner, Result

import apo_bench.run.validate
from apo_bench import __version__
from apo_bench.analysis.power import primary_power
from apo_bench.analysis.results import read_run
from apo_bench.cli.main import app
from apo_bench.cli.terminal import print_summary
from apo_bench.config.load import ExperimentFile
from apo_bench.config.plugins import resolve
from apo_bench.package_data import shipped_root
from apo_bench.run.experiment import ResolvedExperiment
from apo_bench.run.pipeline import RunResult
from apo_bench.run.scheduler import JobSubset

Tree = dict[str, Any]
SIMULATED = {"use": "apo_bench.judging.simulated_judge@SimulatedJudge"}
GPT = {
    "use": "apo_bench.judging.chat_judge@ChatJudge", "model": "m", "base_url": "http://127.0.0.1:9", "api_key_env": "NO_SUCH_KEY",
}  # fmt: skip


def call(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})


def refusal(*words: str) -> str:
    result = call(*words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = errors_of(result)
    return line.removeprefix("error: ")


def errors_of(result: Result) -> list[str]:
    """The lines of stderr that do not tell what a run does now."""
    return [line for line in result.stderr.splitlines() if not line.startswith(("reading ", "note: ", "variation "))]


def test_help_names_every_command() -> None:
    result = call("--help")
    assert result.exit_code == 0
    commands = (
        "run report compare power plan status gc check check-method new-method import-model judge audit-judge golden export "
        "import-judgments score"
    )
    for command in commands.split():
        assert f"  {command} " in result.stdout
    assert call("--version").stdout == f"{__version__}\n"


@pytest.mark.slow
def test_the_installed_command_reports_bad_input_with_status_2(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from apo_bench.cli.main import main; main()", "run", "absent.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: absent.yaml: no such file\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("seeds", "--set seeds: expected key=value, such as budget.flops=1e15"),
        ("=1", "--set =1: expected key=value, such as budget.flops=1e15"),
        ("a..b=1", "--set a..b=1: expected key=value, such as budget.flops=1e15"),
        ("seeds=[0", "--set seeds: not valid YAML (line 1): expected ',' or ']', but got '<stream end>'"),
        ("seeds={a: 1, a: 2}", "--set seeds: key 'a' occurs twice (line 1)"),
    ],
)
def test_bad_assignments(assignment: str, expected: str) -> None:
    assert refusal("run", "experiments/quickstart.yaml", "--set", assignment) == expected


def test_an_assignment_given_twice() -> None:
    assert refusal("run", "any.yaml", "--set", "seeds=[0]", "--set", "seeds=[1]") == "--set seeds: given twice"


@pytest.mark.slow
def test_assignments_are_yaml(tree: Tree, write_experiment: Callable[[Tree], Path]) -> None:
    path = write_experiment(tree)
    assert call("check", str(path), "--set", "seeds=[3]", "--set", "models.policy.training.learning_rate=1e-3").exit_code == 0
    assert refusal("check", str(path), "--set", "seeds=[3, 3]") == f"{path}: seeds: 3 occurs twice"
    assert f"{path}: models.policy.training.learning_rate: " in refusal(
        "check", str(path), "--set", "models.policy.training.learning_rate=x"
    )


@pytest.mark.slow
def test_shipped_experiments_are_valid_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = sorted((shipped_root() / "experiments").glob("*.yaml"))
    assert shipped
    result = call("check")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("ok  ") == len(shipped)
    assert call("check", "experiments/quickstart.yaml").exit_code == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"budget": {"human_pairs": 10**6, "flops": 0}}, ["budget.human_pairs: 1000000, but the task has ", "budget.flops: 0"]),
        ({"policy": {"path": "someone/some-model"}}, ["models.policy.path: someone/some-model is taken for a hub id and was not checked"]),
        ({"policy": {"path": "smollm2"}}, ["models.policy.path: smollm2 is not imported"]),
        ({"task": {"use": "hh"}, "policy": {"path": "a/b"}}, ["task hh: its data come from the hub", "a/b is taken for a hub id"]),
        ({"judges": {"gpt": GPT, "sim": SIMULATED}}, ["judges.gpt: api_key_env: the environment variable NO_SUCH_KEY is not set"]),
        (
            {"judges": {"own": {"use": "apo_bench.judging.local_judge@LocalJudge", "path": "smollm2"}}},
            ["judges.own: path: smollm2 is not imported"],
        ),
    ],
)
def test_notes(
    tree: Tree,
    write_experiment: Callable[[Tree], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: Tree,
    expected: list[str],
) -> None:
    monkeypatch.setenv("APO_BENCH_MODELS", str(tmp_path / "models"))
    if "policy" in changes:
        for key in ("architecture", "warmup"):
            del tree["models"]["policy"][key]
        tree["models"]["policy"].update(changes["policy"])
    tree.update({key: value for key, value in changes.items() if key != "policy"})
    notes = apo_bench.run.validate.check_experiment(write_experiment(tree))
    assert len(notes) == len(expected)
    for text in expected:
        assert any(text in note for note in notes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ({**SIMULATED, "noise": "much"}, "judges.j.noise"),
        ({**GPT, "base_url": "ftp://somewhere"}, "judges.j: ChatJudge: base_url: must be http://... or https://..."),
        ({**GPT, "max_usd": 1.0}, "judges.j: ChatJudge: max_usd: a cost limit needs the prices"),
        ({"use": "apo_bench.judging.reward_judge@RewardModelJudge", "gold": "silver"}, "no gold reward model 'silver'; there are: linear"),
        ({"use": "apo_bench.judging.local_judge@LocalJudge", "path": "./absent"}, "judges.j: path: './absent': no such model folder"),
    ],
)
def test_check_refuses_judges(tree: Tree, write_experiment: Callable[[Tree], Path], judge: Tree, message: str) -> None:
    tree["judges"] = {"j": judge}
    assert message in refusal("check", str(write_experiment(tree)))


def test_check_refuses(tree: Tree, write_experiment: Callable[[Tree], Path], tmp_path: Path) -> None:
    policy = tree["models"]["policy"]
    kept = {key: policy.pop(key) for key in ("architecture", "warmup")}
    (tmp_path / "beside" / "empty").mkdir(parents=True)
    policy["path"] = "empty"
    path = write_experiment(tree)
    assert (
        refusal("check", str(path))
        == f"{path}: models.policy.path: {tmp_path / 'beside' / 'empty'} is not a model folder (it has no config.json)"
    )
    policy["path"] = "./absent"
    write_experiment(tree)
    assert refusal("check", str(path)) == f"{path}: models.policy.path: './absent': no such model folder"
    del policy["path"]
    policy.update(kept)
    tree["task"] = {"use": "hh", "options": {"data_files": ["absent.jsonl"]}}
    write_experiment(tree)
    assert refusal("check", str(path)).startswith(f"{path}: ")
    tree["task"] = "sim_hh"
    tree["arms"]["player"] = {"use": "mine.py@Player"}
    (path.parent / "mine.py").write_text(PLAYER)
    write_experiment(tree)
    assert (
        refusal("check", str(path))
        == f"{path}: arms.player: use: mine.py@Player has no run(lab); it can only be the player of another method"
    )


@pytest.mark.slow
def test_check_refuses_more_prompts_than_a_split_has(tree: Tree, write_experiment: Callable[[Tree], Path]) -> None:
    """With 2 prompts a cluster, sim_hh has 134 clusters and so 268 policy prompts, and 20 clusters, 40 prompts, in dev."""
    tree["evaluation"]["dev_prompts"] = 41
    path = write_experiment(tree)
    assert refusal("check", str(path)) == f"{path}: evaluation.dev_prompts: 41 prompts, but the dev split has 40"
    tree["evaluation"]["dev_prompts"] = 40
    tree["arms"]["apo_rjs"]["player"]["prompts_per_round"] = 269
    write_experiment(tree)
    assert refusal("check", str(path)) == f"{path}: arms.apo_rjs.player.prompts_per_round: 269 prompts, but the policy split has 268"


def test_check_resolves_every_setting_that_tuning_tries(tree: Tree, write_experiment: Callable[[Tree], Path]) -> None:
    tree["evaluation"]["dev_prompts"] = 10
    tree["tune"] = {"trials": 2, "grids": {"rjs": {"rounds": [1, 2]}, "apo_rjs": {"player.rate": [1, 2]}}}
    message = refusal("check", str(write_experiment(tree)))
    assert "tune.grids.apo_rjs: {'player.rate': 1}: arms.apo_rjs.player: unknown parameter 'rate'" in message


def test_check_refuses_a_prompt_longer_than_the_context(tree: Tree, write_experiment: Callable[[Tree], Path]) -> None:
    """32 prompt tokens and 16 response tokens are 48: a context of 48 holds them, one of 47 does not."""
    tree["models"]["policy"]["architecture"]["max_position_embeddings"] = 48
    assert apo_bench.run.validate.check_experiment(write_experiment(tree)) == []
    tree["models"]["policy"]["architecture"]["max_position_embeddings"] = 47
    path = write_experiment(tree)
    assert refusal("check", str(path)) == (
        f"{path}: models.policy.max_prompt_tokens, with the longest response: 48 tokens, but the model's context has 47"
    )


def test_check_reads_a_model_folders_own_context(tree: Tree, write_experiment: Callable[[Tree], Path], tmp_path: Path) -> None:
    """A folder's config.json counts like an architecture: 48 tokens do not fit 40 positions. A broken one is one line."""
    policy = tree["models"]["policy"]
    for key in ("architecture", "warmup"):
        del policy[key]
    folder = tmp_path / "beside" / "model"
    folder.mkdir(parents=True)
    policy["path"] = "./model"
    path = write_experiment(tree)
    (folder / "config.json").write_text('{"max_position_embeddings": 40}')
    assert "models.policy.max_prompt_tokens, with the longest response: 48 tokens" in refusal("check", str(path))
    (folder / "config.json").write_text("{")
    assert refusal("check", str(path)) == f"{path}: models.policy.path: {folder / 'config.json'} is not JSON"


def test_check_notes_that_lora_needs_peft(tree: Tree, write_experiment: Callable[[Tree], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None if name == "peft" else real(name, package))
    (note,) = apo_bench.run.validate.check_experiment(write_experiment(tree))
    assert note.startswith("models.reward: lora needs peft")


PLAYER = """
from dataclasses import dataclass


@dataclass(frozen=True)
class Player:
    def update(self, lab, policy, reward_model, draw):
        return policy
"""


def blocks(page: str, language: str) -> list[str]:
    """A page's code blocks in a language."""
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    return [part.split("```")[0] for part in text.split(f"```{language}\n")[1:]]


@pytest.mark.slow
def test_the_readmes_experiment_and_method_are_valid(tmp_path: Path) -> None:
    """Only the three model ids are not checked, each a note."""
    (experiment, _), (_, method) = blocks("docs/tour.md", "yaml"), blocks("docs/tour.md", "python")
    assert len(experiment.splitlines()) <= 20
    path = tmp_path / "mine.yaml"
    path.write_text(experiment)
    assert [note.split(" ")[1] for note in apo_bench.run.validate.check_experiment(path)] == [
        "my-org/my-model",
        "my-org/my-encoder",
        "my-org/another-encoder",
    ]
    (tmp_path / "best_once.py").write_text(method)
    assert resolve("best_once.py@BestOnce", {"samples_per_prompt": 4}, base=tmp_path).samples_per_prompt == 4


@pytest.mark.slow
def test_the_pages_judges_are_valid(
    tree: Tree, write_experiment: Callable[[Tree], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Those of docs/tour.md and docs/judging.md: of a machine with neither key nor imported model, what is lacking is a note."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("APO_BENCH_MODELS", str(tmp_path / "models"))
    tree["models"]["gold"][0]["name"] = "gpt2"
    for page, lacking in (
        (blocks("docs/tour.md", "yaml")[1], ["judges.gpt"]),
        (blocks("docs/judging.md", "yaml")[0], ["judges.gpt", "judges.local"]),
    ):
        shown = yaml.safe_load(page)
        tree["judges"], tree["judging"] = shown["judges"], shown["judging"]
        tree["compare"]["scorer"] = shown.get("compare", {}).get("scorer", "gold")
        assert [note.split(":")[0] for note in apo_bench.run.validate.check_experiment(write_experiment(tree))] == lacking


def test_the_pages_statistics_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of the arms that docs/tour.md and docs/statistics.md name, three seeds and eight prompts each."""
    names = ("ours", "theirs", "apo", "control", "plain")
    values = np.random.default_rng(0).normal(size=(len(names), 3, 8))
    rows = [(arm, seed, f"p{j}", values[i, seed, j]) for i, arm in enumerate(names) for seed in range(3) for j in range(8)]
    scores = pd.DataFrame(rows, columns=["arm", "seed", "prompt_id", "value"])
    scores.to_parquet(tmp_path / "scores.parquet")
    monkeypatch.chdir(tmp_path)
    for block in (blocks("docs/tour.md", "python")[0], *blocks("docs/statistics.md", "python")):
        exec(compile(block, "page", "exec"), {"scores": scores})


# --- run: the runner's part is tested with it; here, what the command makes of its answer -------------------------------------


SUMMARY = """arm,round,axis,scorer,mean,seed_sd,n_seeds,n_prompts
rjs,0,all,ground_truth,0.5,0.01,2,20
rjs,1,all,ground_truth,0.61234,0.0123,2,20
rjs,1,all,linear,1.5,,1,20
rjs,1,all,linear.0,1.4,0.1,2,20
rjs,1,all,distinct_1,0.25,0.1,2,20
apo_rjs,10,all,ground_truth,0.75,0.02,2,20
apo_rjs,2,all,ground_truth,0.25,0.02,2,20
"""
CONTRASTS = """arm_a,arm_b,axis,scorer,difference,ci_low,ci_high,p_value,p_adjusted,n_seeds,n_clusters,scope,family,test
apo_rjs,rjs,all,linear,0.125,-0.0625,0.3125,0.00025,0.0005,2,20,fresh seeds,primary,t
apo_rjs,rjs,helpful,linear,,,,,,0,0,uninformative gold on helpful,primary,none: chance
rjs,apo_rjs,all,proxy,9.5,8.5,10.5,0.25,,2,20,fresh seeds,descriptive,t
"""


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    folder = tmp_path / "finished"
    (folder / "report" / "tables").mkdir(parents=True)
    (folder / "report" / "tables" / "summary.csv").write_text(SUMMARY)
    (folder / "report" / "tables" / "contrasts.csv").write_text(CONTRASTS)
    return folder


@pytest.mark.slow
def test_run_prints_the_table_and_where_the_report_is(
    tree: Tree, write_experiment: Callable[[Tree], Path], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shown are each arm's last round (10 comes after 2) and the primary contrasts, not gold seeds or counters."""
    calls: list[tuple[Any, ...]] = []

    def run(resolved: ResolvedExperiment, workers: int, subset: JobSubset, **_: Any) -> RunResult:
        calls.append((resolved.path, resolved.overrides, resolved.folder, workers, subset))
        return RunResult(finished)

    monkeypatch.setattr("apo_bench.run.pipeline.run", run)
    path = write_experiment(tree)
    result = call("run", str(path), "--set", "seeds=[0]", "--workers", "3", "--out", str(finished))
    assert result.exit_code == 0, result.output
    assert calls == [(path, '{"seeds": [0]}', finished, 3, JobSubset())]
    lines = result.stdout.splitlines()
    assert lines[-1] == str(finished / "report" / "report.md")
    assert max(map(len, lines[:-1])) <= 100
    rows = [" ".join(line.split()) for line in lines]
    assert "rjs 1 all 0.612 ± 0.012 1.500" in rows
    assert "apo_rjs 10 all 0.750 ± 0.020 -" in rows
    assert "apo_rjs - rjs all linear 0.125 -0.062 to 0.312 0.0005" in rows
    assert "apo_rjs - rjs helpful linear - - none: chance" in rows
    assert rows.count("p: t; scope: fresh seeds") == 1
    assert sum(" all " in row or " helpful " in row for row in rows) == 4
    for hidden in ("linear.0", "distinct_1", "9.5", "0.250"):
        assert hidden not in result.stdout


@pytest.mark.slow
def test_a_part_is_run_and_has_no_table(
    tree: Tree, write_experiment: Callable[[Tree], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subsets: list[JobSubset] = []

    def run(resolved: ResolvedExperiment, workers: int, subset: JobSubset, **_: Any) -> RunResult:
        subsets.append(subset)
        return RunResult(tmp_path / "run", n_left=3)

    monkeypatch.setattr("apo_bench.run.pipeline.run", run)
    result = call("run", str(write_experiment(tree)), "--arms", "rjs, apo_rjs", "--seeds", "1", "--out", str(tmp_path / "run"))
    assert (result.exit_code, result.stdout) == (0, "3 arm-seeds are left; tables and report are made when none is\n")
    assert subsets == [JobSubset(("rjs", "apo_rjs"), (1,))]


@pytest.mark.slow
def test_a_dry_run_says_what_would_run_and_writes_nothing(tree: Tree, write_experiment: Callable[[Tree], Path], tmp_path: Path) -> None:
    result = call("run", str(write_experiment(tree)), "--dry-run", "--out", str(tmp_path / "run"))
    assert result.exit_code == 0, result.output
    assert "rjs seed 0, seed 1 -" in [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--arms", "dpo"), "--arms dpo: the experiment has no such arm; it has: rjs, apo_rjs"),
        (("--seeds", "9"), "--seeds 9: the experiment has no such seed; it has: 0, 1"),
        (("--seeds", "one"), "--seeds one: whole numbers, separated by commas"),
        (("--fresh",), "not a run folder (no experiment.yaml); it is left as it is"),
    ],
)
def test_parts_that_are_none(
    tree: Tree, write_experiment: Callable[[Tree], Path], tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    (tmp_path / "mine").mkdir()
    assert message in refusal("run", str(write_experiment(tree)), "--out", str(tmp_path / "mine"), *words)
    assert not list((tmp_path / "mine").iterdir())


@pytest.mark.slow
def test_failed_arm_seeds_are_named_and_exit_1(
    tree: Tree, write_experiment: Callable[[Tree], Path], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apo_bench.run.pipeline.run", lambda *_, **__: RunResult(finished, ("rjs, seed 1: budget exceeded",)))
    result = call("run", str(write_experiment(tree)))
    assert result.exit_code == 1
    assert errors_of(result) == ["failed: rjs, seed 1: budget exceeded"]
    assert str(finished / "report" / "report.md") in result.stdout


@pytest.mark.slow
def test_what_failed_is_one_line_in_which_nothing_is_hidden(
    tree: Tree, write_experiment: Callable[[Tree], Path], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rude = "rjs, seed 1: \x1b]0;pwn\x07\u202e\nfailed: nobody"
    monkeypatch.setattr("apo_bench.run.pipeline.run", lambda *_, **__: RunResult(finished, (rude,)))
    assert errors_of(call("run", str(write_experiment(tree)))) == ["failed: rjs, seed 1: ␛]0;pwn␇⟨U+202E⟩ failed: nobody"]


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on(
    tree: Tree, write_experiment: Callable[[Tree], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("apo_bench.run.pipeline.run", stop)
    result = call("run", str(write_experiment(tree)))
    assert result.exit_code == 130
    assert errors_of(result) == ["interrupted; run the same command to continue"]


@pytest.mark.slow
def test_a_bug_keeps_its_traceback(tree: Tree, write_experiment: Callable[[Tree], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: Any, **__: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("apo_bench.run.pipeline.run", stumble)
    assert isinstance(call("run", str(write_experiment(tree))).exception, KeyError)


@pytest.mark.slow
def test_an_experiment_that_was_accepted_is_not_checked_again(
    tree: Tree, write_experiment: Callable[[Tree], Path], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay has to be quick; one that asks something else is checked like a new one."""
    path = write_experiment(tree)
    from apo_bench.config.load import load_experiment

    (finished / "experiment.yaml").write_text(yaml.safe_dump(load_experiment(path).model_dump(mode="json")))
    checked: list[Any] = []
    monkeypatch.setattr("apo_bench.run.validate.check", lambda file, tasks, **_: checked.append(file.overrides) or [])
    monkeypatch.setattr("apo_bench.run.pipeline.run", lambda *_, **__: RunResult(finished, ()))
    assert call("run", str(path), "--out", str(finished)).exit_code == 0
    assert checked == []
    assert call("run", str(path), "--out", str(finished), "--set", "seeds=[5]").exit_code == 0
    assert checked == [{"seeds": [5]}]


@pytest.mark.slow
def test_report_needs_a_run_folder(tmp_path: Path) -> None:
    assert refusal("report", str(tmp_path)) == f"{tmp_path}: not a finished run folder (no manifest.json)"


# --- what varies ------------------------------------------------------------------------------------------------------------------

SPREAD = """arm_a,arm_b,axis,scorer,at,family,mean,sd,ci_low,ci_high,p_value,p_adjusted,test,scope,n_positive,n_negative
apo_rjs,rjs,all,linear,final,primary,0.125,0.0625,-0.0625,0.3125,0.00025,0.0005,t,new worlds,3,0
apo_rjs,rjs,helpful,linear,final,primary,0.125,,,,,,none: one level only,new worlds,0,1
apo_rjs,rjs,all,proxy,final,descriptive,9.5,0.5,8.5,10.5,0.25,,t,new worlds,3,0
"""


@pytest.fixture
def varied(finished: Path) -> Path:
    (finished / "report" / "tables" / "spread.csv").write_text(SPREAD)
    return finished


@pytest.mark.slow
def test_run_at_every_level_prints_the_spread(
    tree: Tree, write_experiment: Callable[[Tree], Path], varied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The primary rows, within 100 columns; what failed in a variation is named, with status 1."""
    calls: list[tuple[Any, ...]] = []

    def run(file: ExperimentFile, folder: Path, workers: int, **_: Any) -> RunResult:
        calls.append((file.path, file.overrides, folder, workers))
        return RunResult(varied, ("world=1: rjs, seed 1: budget exceeded",), varied=True)

    monkeypatch.setattr("apo_bench.run.variations.run_variations", run)
    path = write_experiment(tree)
    result = call("run", str(path), "--set", "vary={world: [0, 1]}", "--workers", "3", "--out", str(varied))
    assert result.exit_code == 1
    assert errors_of(result) == ["failed: world=1: rjs, seed 1: budget exceeded"]
    assert calls == [(path, {"vary": {"world": [0, 1]}}, varied, 3)]
    lines = result.stdout.splitlines()
    assert lines[-1] == str(varied / "report" / "report.md")
    assert max(map(len, lines[:-1])) <= 100
    rows = [" ".join(line.split()) for line in lines]
    assert "apo_rjs - rjs all linear 0.125 0.062 -0.062 to 0.312 0.0005 3/0" in rows
    assert rows.count("p: t; scope: new worlds") == 1
    assert "apo_rjs - rjs helpful linear 0.125 - - none: one level only 0/1" in rows
    assert "9.5" not in result.stdout


@pytest.mark.slow
def test_report_of_what_varies(tree: Tree, write_experiment: Callable[[Tree], Path], varied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rebuilt: list[Path] = []
    monkeypatch.setattr("apo_bench.run.variations.rebuild", lambda folder, **_: rebuilt.append(folder))
    (varied / "experiment.yaml").write_text(write_experiment(tree | {"vary": {"world": [0, 1]}}).read_text())
    result = call("report", str(varied))
    assert result.exit_code == 0, result.output
    assert rebuilt == [varied]
    assert "3/0" in result.stdout


@pytest.mark.slow
def test_check_and_run_refuse_a_variation_that_is_none(tree: Tree, write_experiment: Callable[[Tree], Path], tmp_path: Path) -> None:
    path = write_experiment(tree | {"vary": {"world": [0, {"world_sed": 1}]}})
    for words in (("check", str(path)), ("run", str(path), "--out", str(tmp_path / "out"))):
        message = refusal(*words)
        assert message.startswith(f"{path}: vary: world=1: ")
        assert "options.world_sed: no such option" in message
    assert not (tmp_path / "out").exists()


# --- planning ---------------------------------------------------------------------------------------------------------------------


def pilot(folder: Path, n_seeds: int) -> Path:
    """A finished run with one primary pair, judged by ground truth."""
    rng = np.random.default_rng(60)
    values = {(arm, seed, 0): rng.normal(size=12) for arm in ("apo_rjs", "golden_refresh") for seed in range(n_seeds)}
    settings = experiment()
    settings["compare"] |= {"scorer": "ground_truth", "axes": ["all"]}
    ledger = frame("ledger", [("apo_rjs", 0, "flops", 1.0, float("nan"))])
    return write_run(folder, {"scores": scored(values), "ledger": ledger}, settings)


@pytest.mark.slow
def test_power_of_a_run(tmp_path: Path) -> None:
    """The printed cell for the run's own sizes is what it detects itself, as `planned` says."""
    folder = pilot(tmp_path / "run", n_seeds=4)
    (plan,) = primary_power(read_run(folder), power=0.9)
    result = call("power", str(folder), "--power", "0.9", "--effect", "2")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert "Smallest ground_truth difference this run detects, power 0.9" in result.stdout
    rows = [" ".join(line.split()) for line in lines]
    assert plan.components
    assert any(row.startswith(f"apo_rjs - golden_refresh all 4 x 12 {plan.components.seed_sd:.3g} (") for row in rows)
    assert "seeds 3 clusters 6 clusters 12 clusters 24 clusters 48 clusters" in rows
    (own,) = (row.split() for row in rows if row.startswith("4 "))
    assert own[3] == f"{plan.detectable:.3g}"
    assert " ".join(rows).count("to detect 2, ") == 1
    assert not (folder / "report").exists()


@pytest.mark.slow
def test_power_of_a_run_with_one_seed(tmp_path: Path) -> None:
    result = call("power", str(pilot(tmp_path / "run", n_seeds=1)), "--effect", "0.5")
    assert result.exit_code == 0, result.output
    output = " ".join(result.stdout.split())
    assert "one seed says nothing about the variance between seeds" in output
    assert "Other sizes" not in output
    assert "to find" not in output


@pytest.mark.slow
def test_power_refuses_what_it_cannot_answer(tree: Tree, write_experiment: Callable[[Tree], Path], tmp_path: Path) -> None:
    assert refusal("power", str(tmp_path)) == f"{tmp_path}: not a finished run folder (no manifest.json)"
    assert refusal("power", str(tmp_path), "--power", "1") == "--power 1: a probability above 0.05, the level of the test, and below 1"
    for effect in ("0", "nan", "inf"):
        assert refusal("power", str(tmp_path), "--effect", effect) == f"--effect {effect}: a difference of means, not 0 and finite"
    (tmp_path / "experiment.yaml").write_text(write_experiment(tree | {"vary": {"world": [0, 1]}}).read_text())
    assert refusal("power", str(tmp_path)) == f"{tmp_path}: a run at several levels; name the folder of one of them"


def test_import_model_knows_its_names(tmp_path: Path) -> None:
    assert refusal("import-model", "gpt5", "--to", str(tmp_path / "x")) == "import-model: no model named 'gpt5'; models: smollm2, minilm"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("parameters", ["[1]", "3", "{a: 1, a: 2}", "{a"])
def test_check_method_takes_a_mapping(parameters: str) -> None:
    assert refusal("check-method", "baselines/sft.py@SFT", "--with", parameters).startswith("--with: ")


def test_what_is_wrong_with_several_arms_comes_together(tree: Tree, write_experiment: Callable[[Tree], Path]) -> None:
    tree["arms"]["rjs"]["rouns"] = 1
    tree["arms"]["apo_rjs"]["player"]["use"] = "baselines/rejection_samplng.py@RejectionSampling"
    path = write_experiment(tree)
    first, second = call("check", str(path)).stderr.splitlines()
    assert first.startswith(f"error: {path}: arms.rjs: unknown parameter 'rouns' of RejectionSampling; it has: rounds, ")
    assert first.endswith("; did you mean 'rounds'?")
    assert second.endswith("among the shipped methods; did you mean 'baselines/rejection_sampling.py'?")


# --- open --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("opened", "words"), [(True, ""), (False, "no browser here: open this file in one\n")])
def test_the_page_is_opened_or_its_path_is_what_there_is(finished: Path, monkeypatch: pytest.MonkeyPatch, opened: bool, words: str) -> None:
    addresses: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: addresses.append(address) or opened)
    page = finished / "report" / "report.html"
    assert refusal("open", str(finished)).startswith(f"{finished}: no report page (no report/report.html)")
    page.write_text("<p>")
    for folder in (finished, finished / "report"):
        result = call("open", str(folder))
        assert (result.exit_code, result.stdout, result.stderr) == (0, f"{page}\n", words)
    assert addresses == [page.as_uri()] * 2


def test_the_last_line_is_the_page_and_how_it_is_opened(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (finished / "report" / "report.html").write_text("<p>")
    print_summary(finished)
    page = finished / "report" / "report.html"
    assert capsys.readouterr().out.splitlines()[-2:] == [str(finished / "report" / "report.md"), f"{page}  (apo-bench open {finished})"]


@pytest.mark.slow
def test_an_experiment_is_preregistered_beside_its_file(tree: Tree, write_experiment: Callable[[Tree], Path]) -> None:
    path = write_experiment(tree)
    result = call("preregister", str(path), "--question", "Is apo_rjs better than rjs?")
    assert result.exit_code == 0, result.output
    file, after = result.stdout.splitlines()
    assert "Is apo_rjs better than rjs?" in Path(file).read_text()
    assert (Path(file).parent, after) == (path.parent, f"next: commit it, then apo-bench run {path}")


def test_verify_takes_a_share_and_a_published_result(tmp_path: Path) -> None:
    assert refusal("verify", str(tmp_path), "--sample", "some") == "--sample some: a share such as 0.05 or 5% is needed"
    assert str(tmp_path) in refusal("verify", str(tmp_path))
