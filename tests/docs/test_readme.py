"""Every command of README and pages runs as it stands, on a run of seconds; what needs a hub or make is only checked."""

import json
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pandas as pd
import pytest
import yaml
from pages import DOCS, ROOT, blocks, environment, follow
from tiny_world import RJS, SMALL_TURN, tiny_tree
from typer.testing import CliRunner

from apo_bench.cli.main import app
from apo_bench.config.plain_yaml import parse_yaml
from apo_bench.config.schema import Experiment

pytestmark = pytest.mark.slow

README, TOUR, JUDGING = ROOT / "README.md", DOCS / "tour.md", DOCS / "judging.md"
OTHERS = [JUDGING, *(DOCS / f"{name}.md" for name in ("scaling", "reproducing-the-paper", "capabilities", "vllm"))]
APO = {"use": "apo_bench.apo@APO", "rounds": 1, "samples_per_prompt": 2, "player": {"use": RJS, **SMALL_TURN}}
JUDGE = '''
"""A judge that likes the longer response."""

from dataclasses import dataclass

from apo_bench.judging.judge_protocol import Judge, Verdict


@dataclass(frozen=True)
class Longer:
    def open(self, at):
        return Opened()


class Opened(Judge):
    identity = {"kind": "longer"}

    def verdicts(self, questions, attempt=0, spent_usd=0.0):
        for one in questions:
            yield one, Verdict("first" if len(one.first) > len(one.second) else "second", text="longer")
'''


def commands(page: Path) -> Iterator[list[str]]:
    """A page's indented commands, word by word, those joined by && apart."""
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("    ") and line.split()[0] in ("make", "pip", "apo-bench", "lm_eval", "python", "mkdocs"):
            for part in line.split("&&"):
                yield ["results/mine" if word == "DIR" else word for word in shlex.split(part, comments=True)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the commands name, as small as they may be; models come to lie in here too."""
    tree = tiny_tree() | {"name": "mine", "seeds": [0, 1]}
    tree["arms"] = {"rjs": tree["arms"]["rjs"], "golden_refresh": {**APO, "opponent": "initial"}, "apo_rjs": APO}
    tree["compare"] = {"primary": [{"a": "apo_rjs", "b": "golden_refresh"}], "secondary": [{"a": "apo_rjs", "b": "rjs"}]}
    (tmp_path / "mine.yaml").write_text("# Does the adversary help?\n" + yaml.safe_dump(tree))
    (method,) = [block.text for block in blocks(TOUR) if "class BestOnce" in block.text]
    (tmp_path / "best_once.py").write_text(method)
    (tmp_path / "longer.py").write_text(JUDGE)
    (tmp_path / "gpt.yaml").write_text("{name: gpt, use: longer.py@Longer}")
    votes = {f"annotator{number}": 1 for number in (1, 2, 3)}
    items = [{"instruction": f"Is it {i}?", "input": "", "response1": f"Yes, {i}.", "response2": "No.", **votes} for i in range(8)]
    (tmp_path / "pandalm.json").write_text(json.dumps(items))
    compared = {"output_1": "Yes, so.", "output_2": "No.", "generator_1": "base", "generator_2": "mine", "annotator": "gpt"}
    rows = [{"instruction": f"Is it {i}?", **compared, "preference": 1 + i % 2} for i in range(40)]
    (tmp_path / "annotations.json").write_text(json.dumps(rows))
    for axis in ("helpful", "harmless"):
        prompt = "\n\nHuman: May I ask about thing {i}?\n\nAssistant:"
        rows = [{"prompt": prompt.format(i=i), "chosen": f" In room {i}.", "rejected": f" Find {i}.", "subset": axis} for i in range(600)]
        (tmp_path / f"{axis}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APO_BENCH_MODELS", str(tmp_path / "models"))
    return tmp_path


@pytest.mark.parametrize("pages", [[README], [TOUR], OTHERS], ids=["README", "tour", "others"])
def test_every_command_runs_as_it_stands(place: Path, pages: list[Path]) -> None:
    """In the page's order. `run` of shipped experiments of real data is `check` here, and new-method's own run is test_wheel's."""
    call("run", "mine.yaml")
    for name in ("again", "a", "b", "c"):
        shutil.copytree("results/mine", f"results/{name}")
    if JUDGING in pages:
        call("judge", "results/mine", "--judge", "gpt.yaml")
    seen = set()
    for words in chain.from_iterable(map(commands, pages)):
        match words:
            case ["apo-bench", "run", file, *rest] if file.startswith("experiments/"):
                call("check", file, *(rest[: rest.index("--workers")] if "--workers" in rest else rest))
            case ["apo-bench", "run", "my_method.yaml"]:
                call("check", "my_method.yaml")
            case ["apo-bench", "import-model", name]:
                assert f"import-model {name}" in call("import-model", name, "--to", "best_once.py", status=2)  # test_imports does it
            case ["apo-bench", "score", *_]:
                continue  # needs models: test_score's part
            case ["apo-bench", *rest]:
                call(*rest)
                if rest[-1] == "sheet.csv":
                    fill(Path("sheet.csv"))
            case ["make", *rest]:
                assert subprocess.run(["make", "-n", *rest], cwd=ROOT, capture_output=True).returncode == 0
            case ["pip", "install", *_]:
                continue
            case _:
                pytest.fail(f"nobody knows how to test {words}")
        seen.add(tuple(words[:2]))
    assert seen
    if README in pages:
        assert {("apo-bench", "run"), ("apo-bench", "new-method"), ("make", "quickstart")} <= seen
    if TOUR in pages:
        assert (place / "results" / "audit_gpt" / "report" / "audit.md").is_file()
    if JUDGING in pages:
        assert "| human |" in (place / "results/mine/report/report.md").read_text()
        assert len(json.loads(next(Path("outputs").rglob("*.json")).read_text())) > 0


def fill(sheet: Path) -> None:
    """A person's part: every pair of responses gets a preference."""
    rows = pd.read_csv(sheet, dtype=str, keep_default_na=False)
    rows["preference"] = [("1", "2", "tie")[place % 3] for place in range(len(rows))]
    rows.to_csv(sheet, index=False)


def test_the_page_on_preregistration_runs_as_it_stands(place: Path) -> None:
    """In a repository of its own: the report names the commit, and a sample made anew has the published rows."""
    git = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in (("NAME", "A"), ("EMAIL", "a@example.org"))}
    subprocess.run(["git", "init", "-q"], check=True)
    output = follow(DOCS / "preregistration.md", place, environment(APO_BENCH_MODELS=str(place / "models"), **git))
    assert "As preregistered" in (place / "results/mine/report/report.md").read_text()
    assert "same rows" in output


def call(*words: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == status, (words, result.output, result.exception)
    return result.output


def test_extras_that_the_readme_names_are_there() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"peft", "lm-eval", "trl", "ray", "judge", "dev"} <= set(extras)


def test_the_experiment_has_twenty_lines_at_most() -> None:
    first = next(block for block in blocks(README) if block.language == "yaml")
    assert len(first.text.splitlines()) <= 20
    assert set(Experiment.model_validate(parse_yaml(first.text, "README.md")).arms) == {"golden_refresh", "apo_rjs"}
