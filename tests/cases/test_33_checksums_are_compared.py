"""One byte of what results are read from is changed, so that it is still readable: named, and nothing is computed from it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from judged_run import SIMULATED, judged, run_folder
from tiny_world import tiny_task
from typer.testing import CliRunner

from apo_bench.analysis.results import read_run
from apo_bench.analysis.seal import SEAL, break_seal, check_imported, seal
from apo_bench.cli.main import app
from apo_bench.config.load import load_experiment
from apo_bench.config.schema import JudgeChoice
from apo_bench.errors import InputError
from apo_bench.report.report import write_report
from apo_bench.run import judges

COMMANDS = (
    ("report", "DIR"),
    ("power", "DIR"),
    ("compare", "DIR", "DIR"),
    ("export", "DIR", "--format", "pairs", "--out", "OUT"),
    ("judge", "DIR", "--judge", f"{{name: late, use: {SIMULATED}}}"),
)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = run_folder(tmp_path_factory.mktemp("seal") / "run", {"audit_pairs": 0}, judges={"own": {"use": SIMULATED}})
    judged(folder)
    write_report(folder)
    return folder


@pytest.fixture
def folder(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def changed_score(folder: Path) -> str:
    path = folder / "tables" / "scores.parquet"
    scores = pd.read_parquet(path)
    scores.assign(value=scores["value"] + 0.25).to_parquet(path)
    return "scores.parquet: does not match its checksum"


def changed_manifest(folder: Path) -> str:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"synthetic"', '"synthetiC"'))
    return "manifest.json: does not match its checksum"


def absent_table(folder: Path) -> str:
    (folder / "tables" / "judgments.parquet").unlink()
    return "judgments.parquet: missing"


def interrupted(folder: Path) -> str:
    break_seal(folder)
    return "interrupted"


def damaged_seal(folder: Path) -> str:
    (folder / SEAL).write_text("{")
    return "seal.json: not readable"


CHANGES = (changed_score, changed_manifest, absent_table, interrupted, damaged_seal)


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_it_is_refused_by_name_whatever_reads_it(change: Callable[[Path], str], folder: Path, tmp_path: Path) -> None:
    read_run(folder)
    reason = change(folder)
    for command in COMMANDS:
        words = [word.replace("DIR", str(folder)).replace("OUT", str(tmp_path / "out")) for word in command]
        ended = CliRunner().invoke(app, words)
        assert (ended.exit_code, reason in ended.stderr) == (2, True), (words, ended.stderr, ended.stdout)


@pytest.mark.slow
def test_an_interrupted_judge_is_completed_by_the_same_command(folder: Path) -> None:
    """Not so an interrupted run, whose own judges have no rows yet: the run makes its tables anew."""
    break_seal(folder, "judges")
    with pytest.raises(InputError, match="interrupted"):
        read_run(folder)
    choice = JudgeChoice(use=SIMULATED)  # pyright: ignore[reportCallIssue]
    judges.add_judge(folder, "late", choice, load_experiment(folder / "experiment.yaml"), tiny_task())
    assert set(read_run(folder).tables["judgments"]["judge"]) == {"own", "late"}


@pytest.mark.slow
def test_imported_verdicts_keep_their_checksum_while_tables_are_made_anew(folder: Path) -> None:
    """Nothing in the store could make them again."""
    (folder / "imported").mkdir()
    rows = pd.read_parquet(folder / "tables" / "judgments.parquet")
    rows.assign(judge="human").to_parquet(folder / "imported" / "human.parquet")
    seal(folder)
    rows.assign(judge="human", value=0.0).to_parquet(folder / "imported" / "human.parquet")
    break_seal(folder)
    with pytest.raises(InputError, match=r"human\.parquet: does not match its checksum.*import the verdicts again"):
        check_imported(folder)


@pytest.mark.slow
def test_a_folder_without_a_seal_is_taken_as_it_is(folder: Path) -> None:
    """Folders of earlier versions, and tables that somebody brings."""
    (folder / SEAL).unlink()
    changed_score(folder)
    assert read_run(folder).experiment.name == json.loads((folder / "manifest.json").read_text())["name"]
