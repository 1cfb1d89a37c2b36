"""A method that ends the process it runs in, by whatever exception: its arm fails in one line, where it is planned as where it is run.

What no exception stops (os._exit, a crash, a loop without an end) ends `check` and `plan` in one line and never in exit status 0.
"""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import finished, start, write_experiment
from tiny_world import smallest_tree

from apo_bench.errors import InputError
from apo_bench.plan import arm_spend, match_spend
from apo_bench.run import worker
from apo_bench.run.jobs import Job

ENDS = {"SystemExit": SystemExit(0), "GeneratorExit": GeneratorExit("x"), "ValueError": ValueError("x")}


def method(error: BaseException) -> Any:
    def run(lab: Any) -> None:
        raise error

    return SimpleNamespace(run=run)


@pytest.mark.parametrize("name", ENDS)
def test_a_plan_says_so_and_goes_on(name: str) -> None:
    context: Any = SimpleNamespace(lab=lambda seed, arm: SimpleNamespace(), experiment=SimpleNamespace(seeds=[0]))
    _, message = arm_spend.play(context, "arm", method(ENDS[name]), 0)
    assert message.startswith(f"{name}:")
    with pytest.raises(InputError, match=name):
        match_spend._spending(context, "arm", "flops", method(ENDS[name]))


@pytest.mark.parametrize("name", ENDS)
def test_a_worker_returns_a_line_and_lives_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(job: Job) -> Any:
        raise ENDS[name]

    monkeypatch.setattr(worker, "_experiment", raising)
    job = Job(tmp_path / "experiment.yaml", "{}", tmp_path, "rjs", 0)
    message = worker.work(job, lambda stage, tokens=0.0, used=None: None)
    assert message is not None
    assert message.startswith(f"{name}:")
    assert job.log.is_file()


def contained(tmp_path: Path, body: str, limit_s: float = 60) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command whose code is `body`, in a file of its own."""
    code = tmp_path / "code.py"
    code.write_text(f"import os, signal, sys, time\n{body}\n")
    command = [
        "import runpy, typer", "from apo_bench.cli.contained import contained", "from apo_bench.cli.terminal import plain_errors",
        "app = typer.Typer()", "@app.command()", "@plain_errors()", "def command():",
        f"    with contained({limit_s}):", f"        runpy.run_path({str(code)!r})", "app()",
    ]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", "\n".join(command)], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "how"),
    [("os._exit(0)", "exit status 0"), ("os._exit(3)", "exit status 3"), ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL")],
)
def test_a_process_that_is_ended_is_no_success(tmp_path: Path, body: str, how: str) -> None:
    status, shown, errors = contained(tmp_path, f"print('before', flush=True)\n{body}")
    assert (status, shown) == (2, "before\n")
    assert errors.startswith(f"error: the process ended in the middle ({how})")
    assert errors.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("body", ["while True:\n    pass", "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True:\n    time.sleep(9)"])
def test_what_never_ends_is_stopped_and_named(tmp_path: Path, body: str) -> None:
    status, _, errors = contained(tmp_path, body, 1)
    assert status == 2
    assert errors.startswith(f"error: no end after 1 seconds (--time-limit); at work in {tmp_path / 'code.py'}, line ")


@pytest.mark.slow
def test_what_ends_as_it_should_keeps_its_output_and_status(tmp_path: Path) -> None:
    assert contained(tmp_path, "print('all of it')") == (0, "all of it\n", "")
    assert contained(tmp_path, "import typer; raise typer.Exit(7)")[0] == 7
    status, _, errors = contained(tmp_path, "raise ValueError('a bug')")
    assert status == 1
    assert "a bug" in errors


@pytest.mark.slow
def test_a_plan_whose_method_exits_is_no_plan(tmp_path: Path) -> None:
    """The method is executed by `plan`: without containment it would end with exit status 0, and nothing shown."""
    method = ["import os", "from dataclasses import dataclass", "@dataclass(frozen=True)", "class Ends:", "    def run(self, lab):"]
    (tmp_path / "ends.py").write_text("\n".join([*method, "        os._exit(0)", ""]))
    tree = smallest_tree()
    tree["arms"]["best"] = {"use": "ends.py@Ends"}
    status, errors = finished(start("plan", "--no-probe", write_experiment(tmp_path, tree)))
    assert status == 2
    assert "error: the process ended in the middle (exit status 0)" in errors
