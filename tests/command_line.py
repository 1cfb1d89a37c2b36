"""Experiment files, and the command line in processes of its own, for tests."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

MAIN = "from apo_bench.cli.main import main; main()"
PATIENCE_S = 300


def write_experiment(folder: Path, tree: dict[str, Any]) -> Path:
    """The experiment file `tiny.yaml` in a folder, which is created if absent."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return path


def start(*words: str | Path) -> subprocess.Popen[str]:
    """The command line in a process group of its own, so that it can be killed with its workers."""
    command = [sys.executable, "-c", MAIN, *map(str, words)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests started in the background would ignore it
    )  # fmt: skip


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and stderr of a process."""
    _, errors = process.communicate(timeout=PATIENCE_S)
    return process.returncode, errors
