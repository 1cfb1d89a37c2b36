"""A finished run folder opens from any directory, without the files that its experiment named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from foreign_experiment import foreign_tree
from foreign_models import policy_folder
from typer.testing import CliRunner, Result

from apo_bench.cli.main import app
from apo_bench.config.load import load_experiment
from apo_bench.errors import InputError
from apo_bench.run.inputs import INDEX, with_inputs

pytestmark = pytest.mark.slow
METHOD = """
from dataclasses import dataclass

from scale import double


@dataclass(frozen=True)
class Twice:
    n: int = 1

    def run(self, lab):
        lab.sample(lab.initial_policy, lab.prompts("policy")[: double(self.n)], 1, 0)
        lab.finish_round(lab.initial_policy)
"""


JUDGE = """
from dataclasses import dataclass

from apo_bench.judging.judge_protocol import Judge, Verdict


@dataclass(frozen=True)
class Longer:
    def open(self, context):
        return Opened()


class Opened(Judge):
    identity = {"kind": "longer"}

    def verdicts(self, questions, attempt=0, spent_usd=0.0):
        for question in questions:
            yield question, Verdict("first" if len(question.first) > len(question.second) else "second")
"""


def data(path: Path) -> None:
    """Pairs on 160 subjects, of which a few words differ."""
    words = "red blue green small large old new round square soft".split()
    subjects = [f"{a} {b} {noun}" for noun in ("lamp", "chair") for a in words for b in words if a < b][:160]
    rows = [{"prompt": f"tell me of the {name}", "chosen": f"the {name} is good", "rejected": f"no {name[::-1]}"} for name in subjects]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A run with a method, a neighbour of it, data and a policy of a user's own; the user's folder is gone, the run elsewhere."""
    root = tmp_path_factory.mktemp("moved")
    mine = root / "mine"
    mine.mkdir()
    data(mine / "pairs.jsonl")
    (mine / "twice.py").write_text(METHOD)
    (mine / "scale.py").write_text("def double(n):\n    return 2 * n\n")
    tree: dict[str, Any] = foreign_tree(policy_folder(mine / "policy"))
    tree["models"]["policy"] |= {"path": "./policy", "training": {"learning_rate": 0.05}}
    tree["task"] = {"use": "preferences", "options": {"data_files": ["pairs.jsonl"]}}
    (mine / "longer.py").write_text(JUDGE)
    tree["judges"], tree["judging"] = {"longer": {"use": "longer.py@Longer"}}, {"audit_pairs": 0}
    tree["arms"]["best"] = {"use": "twice.py@Twice"}
    tree["seeds"], tree["budget"] = [0], {}
    (mine / "mine.yaml").write_text(yaml.safe_dump(tree))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        done = call("run", mine / "mine.yaml", "--out", root / "out", "--workers", "1")
    assert done.exit_code == 0, (done.output, done.exception)
    elsewhere = root / "elsewhere"
    elsewhere.mkdir()
    shutil.move(root / "out", elsewhere / "run")
    shutil.rmtree(mine)
    return elsewhere / "run", done


def test_a_run_tells_what_it_does_in_order(moved: tuple[Path, Result]) -> None:
    lines = moved[1].stderr.splitlines()
    starts = ("reading ", "note: ", "planning: ", "running ", "[", "tables: ", "judges: longer", "report: ")
    places = [next(place for place, line in enumerate(lines) if line.startswith(start)) for start in starts]
    assert places == sorted(places)
    assert moved[1].stdout.splitlines()[-1].endswith(f"report.html  (apo-bench open {moved[0].parents[1] / 'out'})")


def test_what_it_named_is_kept_by_content(moved: tuple[Path, Result]) -> None:
    kept = {tuple(row["at"]): row for row in json.loads((moved[0] / INDEX).read_text())}
    assert set(kept) == {("task", "options", "data_files", 0), ("arms", "best", "use"), ("judges", "longer", "use")}
    method = moved[0] / "inputs" / kept["arms", "best", "use"]["file"]
    assert (method.read_text(), method.with_name("scale.py").is_file()) == (METHOD, True)
    experiment = with_inputs(moved[0], load_experiment(moved[0] / "experiment.yaml"))
    assert experiment.arms["best"].use == f"{method}@Twice"
    assert experiment.models.policy.path == "./policy"


COMMANDS = {
    "report": ("report", "{run}"),
    "status": ("status", "{run}"),
    "compare": ("compare", "{run}", "{run}"),
    "power": ("power", "{run}"),
    "gc": ("gc", "{run}", "--dry-run"),
    "alpaca": ("export", "{run}", "--format", "alpaca-eval", "--out", "{out}/alpaca"),
    "annotate": ("export", "{run}", "--format", "annotate", "--out", "{out}/sheet.csv"),
    "model": ("export", "{run}", "best", "0", "--format", "model", "--out", "{out}/model"),
    "pairs": ("export", "{run}", "--format", "pairs", "--out", "{out}/pairs"),
    "judge": ("judge", "{run}", "--judge", "longer"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_open_it(moved: tuple[Path, Result], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a directory that has nothing to do with it."""
    monkeypatch.chdir(tmp_path)
    words = [word.format(run=moved[0], out=tmp_path) for word in COMMANDS[name]]
    result = call(*words)
    assert result.exit_code == 0, (result.output, result.exception)


def test_the_status_knows_that_its_report_is_current(moved: tuple[Path, Result], tmp_path: Path) -> None:
    run = shutil.copytree(moved[0], tmp_path / "run")
    assert "up to date" in call("status", run).stdout


def test_gold_scores_need_the_policy_that_stayed_behind(moved: tuple[Path, Result], tmp_path: Path) -> None:
    run = shutil.copytree(moved[0], tmp_path / "run")
    judge = "{name: again, use: apo_bench.judging.reward_judge@RewardModelJudge, gold: linear}"
    result = call("judge", run, "--judge", judge)
    assert result.exit_code == 2
    assert "'./policy': no such model folder" in result.stderr


def test_a_kept_file_that_was_changed_is_refused(moved: tuple[Path, Result], tmp_path: Path) -> None:
    run = shutil.copytree(moved[0], tmp_path / "run")
    (path,) = run.glob("inputs/files/*/pairs.jsonl")
    path.write_text("{}\n")
    with pytest.raises(InputError, match=r"pairs\.jsonl: does not match its checksum in "):
        with_inputs(run, load_experiment(run / "experiment.yaml"))
