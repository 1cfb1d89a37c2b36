"""Completion in the shell: what the command line gives, and what bash makes of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import MAIN

SHELLS = {
    "bash": "complete -o default -F _apo_bench_completion apo-bench", "zsh": "#compdef apo-bench", "fish": "complete --command apo-bench",
}  # fmt: skip
pytestmark = pytest.mark.slow


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The command under its own name."""
    path = tmp_path / "bin" / "apo-bench"
    path.parent.mkdir()
    path.write_text(f"#!{sys.executable}\n{MAIN}\n")
    path.chmod(0o755)
    return path


def output(program: Path, *words: str, **more: str) -> str:
    home = program.parents[1]
    environment = {**os.environ, "HOME": str(home), "PATH": f"{program.parent}:{os.environ['PATH']}", **more}
    done = subprocess.run([program, *words], env=environment, cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_gets_its_script(program: Path, shell: str) -> None:
    """Typer asks the parent process for its shell, unless that is switched off."""
    assert SHELLS[shell] in output(program, "--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")


def test_words_are_completed(program: Path) -> None:
    bash = {"_APO_BENCH_COMPLETE": "complete_bash", "COMP_WORDS": "apo-bench che", "COMP_CWORD": "1"}
    assert output(program, **bash).split() == ["check", "check-method"]
    assert '"open":' in output(program, _APO_BENCH_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS="apo-bench op")
    options = {"_APO_BENCH_COMPLETE": "complete_bash", "COMP_WORDS": "apo-bench run --dry", "COMP_CWORD": "2"}
    assert output(program, **options).split() == ["--dry-run"]


def test_bash_completes_after_it_was_installed(program: Path) -> None:
    """In a home of its own: bash reads what was written there, and its completion function fills COMPREPLY."""
    output(program, "--install-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    home = program.parents[1]
    ask = "COMP_WORDS=(apo-bench compa); COMP_CWORD=1; _apo_bench_completion apo-bench; echo ${COMPREPLY[@]}"
    environment = {**os.environ, "HOME": str(home), "PATH": f"{program.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", f"source {home}/.bashrc; {ask}"], env=environment, cwd=home, capture_output=True, text=True)
    assert done.stdout.split() == ["compare"], done.stderr
