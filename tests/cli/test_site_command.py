"""`apo-bench site`, and the living benchmark that is committed."""

import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from apo_bench.cli.main import app
from apo_bench.report.across_reports.committed import committed_reports

ROOT = Path(__file__).parents[2]


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_the_committed_page_is_what_the_command_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the committed reports alone: a run of one's own in results/ is none."""
    try:
        files, folder = git("ls-files", "-z", "results").split("\0")[:-1], git("rev-parse", "--absolute-git-dir").strip()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    for file in files:
        if (ROOT / file).suffix not in (".png", ".pdf", ".svg") and (ROOT / file).is_file():
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, tmp_path / file)
    monkeypatch.setenv("GIT_DIR", folder)
    if any(report.commit and not report.date for report in committed_reports(tmp_path / "results")):
        pytest.skip("a clone without the history that dates the reports")
    process = CliRunner().invoke(app, ["site", str(tmp_path / "results")])
    assert (process.exit_code, process.stdout.strip()) == (0, str(tmp_path / "results" / "index.html"))
    written, committed = ((folder / "results" / "index.html").read_bytes() for folder in (tmp_path, ROOT))
    assert written == committed, "results/index.html is stale: run `apo-bench site results`"


def test_a_folder_without_reports_is_refused(tmp_path: Path) -> None:
    process = CliRunner().invoke(app, ["site", str(tmp_path)])
    assert process.exit_code == 2
    assert f"{tmp_path}: no folder NAME/report with a report" in process.stderr
