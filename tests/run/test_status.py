"""What the files of a run folder tell of it: made by hand for every state there is, and left by real runs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from run_folder import experiment, write_run
from tiny_world import tiny_tree

from apo_bench.clients.journal import Journal
from apo_bench.errors import InputError
from apo_bench.run import pipeline
from apo_bench.run.experiment import resolve_experiment
from apo_bench.run.jobs import GOLD
from apo_bench.run.status import JobStatus, Status, lives, read_status, tables, time_left
from apo_bench.store import machine, write_json

PATIENCE_S = 300
SEEDS = (0, 1, 2)
FAILED = {"arm": "rjs", "seed": 0, "message": "budget exceeded"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder of rjs, golden_refresh and apo_rjs on seeds 0, 1, 2, in which nothing has happened yet."""
    write_run(tmp_path / "run", {})
    (tmp_path / "run" / "manifest.json").unlink()
    return tmp_path / "run"


def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def at(when: int, path: Path, value: Any) -> None:
    """Write a file as it was left `when` seconds after some moment."""
    write_json(path, value)
    os.utime(path, (1_000_000 + when, 1_000_000 + when))


def record(folder: Path, arm: str, seed: int, wall_s: float = 1.0, evaluations: tuple[float, ...] = (), when: int = 10) -> None:
    """The record of a finished arm-seed, whose rounds took so long to evaluate."""
    rounds = []
    for number, seconds in enumerate(evaluations):
        key = f"{arm}{seed}{number}".encode().hex().ljust(24, "0")[-24:]
        write_json(folder / "store" / "evaluations" / key / "timing.json", {"wall_s": seconds, "peak_memory_bytes": 0})
        rounds.append({"policy": "p", "reward_model": None, "evaluation": key})
    at(when, folder / "store" / "arm_seeds" / f"{arm}.{seed}.json", {"wall_s": wall_s, "rounds": rounds, "bench": {}})


def progress(folder: Path, name: str, stage: str, pid: int, when: int = 20, **more: Any) -> None:
    at(when, folder / "store" / "progress" / f"{name}.json", {"stage": stage, "pid": pid, **more})


def states(status: Status) -> Mapping[tuple[str, int], str]:
    return {(part.arm, part.seed): part.state for part in status.jobs if part.trial is None}


def part(status: Status, arm: str, seed: int, trial: int | None = None) -> JobStatus:
    return next(job for job in status.jobs if (job.arm, job.seed, job.trial) == (arm, seed, trial))


def printed(status: Status) -> str:
    """As a terminal of 100 columns shows it."""
    console = Console(width=100, markup=False, highlight=False, file=open(os.devnull, "w"), record=True)  # noqa: SIM115
    for table in tables(status):
        console.print(table)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100
    return text


def test_a_folder_without_an_experiment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run folder"):
        read_status(tmp_path)


def test_before_anything_has_happened(folder: Path) -> None:
    status = read_status(folder)
    assert set(states(status)) == {(arm, seed) for arm in ("rjs", "golden_refresh", "apo_rjs") for seed in SEEDS}
    assert set(states(status).values()) == {"not started"}
    assert (status.report, status.judges, status.building, status.workers) == ("none yet", (), (), 0)
    assert "time left: not known yet (9 to do, and none of the same arm has finished)" in printed(status)


@pytest.mark.slow
def test_a_worker_that_lives_runs_and_one_that_does_not_has_stopped(folder: Path) -> None:
    progress(folder, "rjs.0", "sampling 8 x 2", os.getpid(), steps=7, rounds=1)
    progress(folder, "rjs.1", "sampling 8 x 2", dead())
    progress(folder, "rjs.2", "waiting", os.getpid())
    progress(folder, "apo_rjs.0", "waiting", dead())
    progress(folder, "apo_rjs.1", "failed", os.getpid(), error="ValueError: no")
    progress(folder, f"{GOLD}.1", "gold linear", os.getpid())
    status = read_status(folder)
    assert [part(status, "rjs", seed).state for seed in SEEDS] == ["running", "stopped", "waiting"]
    assert [part(status, "apo_rjs", seed).state for seed in SEEDS] == ["not started", "failed", "not started"]
    running = part(status, "rjs", 0)
    assert (running.stage, running.pid, running.rounds, running.steps) == ("sampling 8 x 2", os.getpid(), 1, 7)
    assert (part(status, "rjs", 1).rounds, part(status, "rjs", 1).steps) == (None, None)  # not known, not 0
    assert part(status, GOLD, 1).state == "running"
    assert status.workers == 1  # one process
    text = printed(status)
    for message in [
        "running: sampling 8 x 2 (step 7)",
        "stopped: sampling 8 x 2",
        "gold models",
        "failed: apo_rjs, seed 1: ValueError: no",
    ]:
        assert message in text


@pytest.mark.slow
def test_a_process_that_has_ended_does_not_live_though_its_number_is_taken() -> None:
    """Until its parent asks how it ended, it is a zombie; workers of a killed run may stay one."""
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read()  # to its end: the process closes it as it ends
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # has ended, and is left a zombie
    os.kill(process.pid, 0)
    assert not lives(process.pid)
    process.communicate()
    assert not lives(process.pid)
    assert lives(os.getpid())
    assert not any(map(lives, (None, 0, -1)))


@pytest.mark.slow
def test_of_what_the_files_say_the_newest_holds(folder: Path) -> None:
    """A progress names the record that was there when it began: of another question then. With another record it is older than that.
    Times say nothing: every file is given the same."""
    at(30, folder / "manifest.json", {"failures": [FAILED, {**FAILED, "seed": 1}]})
    record(folder, "rjs", 0, when=30)
    progress(folder, "rjs.0", "failed", os.getpid(), when=30, error="budget exceeded", before=None)
    record(folder, "rjs", 1, when=30)
    record(folder, "apo_rjs", 0, when=30)
    progress(folder, "apo_rjs.0", "scoring 4", os.getpid(), when=30, before=None)
    record(folder, "apo_rjs", 1, when=30)
    progress(folder, "apo_rjs.1", "evaluating round 2", dead(), when=30, before="another")  # killed between its record and the end
    status = read_status(folder)
    assert [part(status, "rjs", seed).state for seed in SEEDS] == ["failed", "finished", "not started"]
    assert [part(status, "apo_rjs", seed).state for seed in SEEDS] == ["running", "finished", "not started"]
    assert part(status, "rjs", 0).stage == "budget exceeded"


def test_a_failure_shows_the_end_of_its_log(folder: Path) -> None:
    (folder / "logs").mkdir()
    (folder / "logs" / "rjs.0.log").write_text("".join(f"line {number}\n" for number in range(9)) + "ZeroDivisionError: by zero\n")
    failed = part(read_status(folder), "rjs", 0)
    assert (failed.state, failed.stage) == ("failed", "ZeroDivisionError: by zero")
    assert failed.log == ("line 6", "line 7", "line 8", "ZeroDivisionError: by zero")
    assert "    line 8\n" in printed(read_status(folder))


def test_what_a_failure_says_is_shown_by_name_and_adds_no_line(folder: Path) -> None:
    progress(folder, "rjs.0", "\x1b[2J\u202e\nrjs 1 finished", os.getpid())
    progress(folder, "rjs.1", "failed", os.getpid(), error="ValueError: \x1b]0;pwn\x07\u202e\ntime left: none")
    (folder / "logs").mkdir()
    (folder / "logs" / "rjs.2.log").write_text("Traceback\n  \x1b[2J\n\u202eValueError\n")
    text = printed(read_status(folder))
    assert not {"\x1b", "\x07", "\u202e"} & set(text)
    assert "failed: rjs, seed 1: ValueError: ␛]0;pwn␇⟨U+202E⟩ time left: none\n" in text
    assert "failed: rjs, seed 2: ⟨U+202E⟩ValueError\n    Traceback\n      ␛[2J\n    ⟨U+202E⟩ValueError\n" in text
    assert "running: ␛[2J⟨U+202E⟩ rjs 1" in text


def test_files_that_cannot_be_read_are_named_and_count_as_absent(folder: Path) -> None:
    record(folder, "rjs", 0)
    path = folder / "store" / "arm_seeds" / "rjs.0.json"
    path.write_text(path.read_text()[:20])
    status = read_status(folder)
    assert (part(status, "rjs", 0).state, status.unreadable) == ("not started", (str(path),))
    assert "unreadable: " in printed(status)


def test_work_is_the_arms_own_and_that_of_its_evaluations(folder: Path) -> None:
    """4 s + 1 s + 2 s. Where a round's evaluation is gone it is not known."""
    record(folder, "rjs", 0, wall_s=4, evaluations=(1, 2))
    record(folder, "rjs", 1, wall_s=4, evaluations=(1, 2))
    next((folder / "store" / "evaluations").glob(f"*{b'rjs11'.hex()}*/timing.json")).unlink()
    status = read_status(folder)
    assert (part(status, "rjs", 0).work_s, part(status, "rjs", 0).rounds, part(status, "rjs", 0).artifacts) == (7, 1, 2)
    assert part(status, "rjs", 1).work_s is None


def test_time_left_is_by_the_same_arms_median() -> None:
    """a took 1, 2, 9 s: its two open seeds take 2 s each, the running one in full. b has finished none; failures are not waited for.
    A trial of a is not judged by a's arm-seeds."""
    done = [JobStatus("a", seed, None, "finished", work_s=seconds) for seed, seconds in enumerate((1.0, 2.0, 9.0))]
    open_ = [
        JobStatus("a", 3, None, "running"),
        JobStatus("a", 4, None, "stopped"),
        JobStatus("b", 0, None, "not started"),
        JobStatus("a", 5, None, "failed"),
    ]
    assert time_left([*done, *open_]) == (4.0, 1)
    assert time_left([*done, JobStatus("a", 9, 0, "waiting")]) == (0.0, 1)
    assert time_left(done) == (0.0, 0)
    assert time_left([JobStatus(GOLD, 0, None, "running")]) == (0.0, 0)


def test_time_left_in_words(folder: Path) -> None:
    """rjs: 2 seeds of 60 s, shared by two workers; 6 arm-seeds of arms that have finished none."""
    record(folder, "rjs", 0, wall_s=60)
    assert "time left: about 2.0 min of work for one process; and 6 more, of arms that have finished none" in printed(read_status(folder))
    progress(folder, "rjs.1", "scoring 4", os.getpid())
    progress(folder, "rjs.2", "scoring 4", os.getppid())
    assert "about 2.0 min of work for one process, about 60 s with the 2 at work; and 6 more" in printed(read_status(folder))


def test_trials_are_parts_and_their_errors_failures(folder: Path) -> None:
    grids = {arm: {"learning_rate": [0.1, 0.2]} for arm in experiment()["arms"]}
    tree = experiment(tune={"trials": 2, "seeds": [1000], "grids": grids})
    tree["evaluation"]["dev_prompts"] = 8
    (folder / "experiment.yaml").write_text(yaml.safe_dump(tree))
    at(30, folder / "manifest.json", {"tuned": {"rjs": {"trials": [{"dev_score": 1.0}, {"dev_score": None, "error": "diverged"}]}}})
    at(20, folder / "store" / "trials" / "rjs.0.1000.json", {"dev_scores": [0.5, 0.7], "kl": [1, 2], "bench": {}})
    progress(folder, "apo_rjs.0.1000", "scoring 4", os.getpid())
    status = read_status(folder)
    assert [(job.state, job.stage, job.rounds) for job in (part(status, "rjs", 1000, trial) for trial in (0, 1))] == [
        ("finished", "", 2), ("failed", "diverged", None),
    ]  # fmt: skip
    assert [part(status, "apo_rjs", 1000, trial).state for trial in (0, 1)] == ["running", "not started"]
    assert len(status.jobs) == 3 * 2 + 3 * 3
    assert "rjs, trial 2" in printed(status)


def test_judges_by_their_journals(folder: Path) -> None:
    """gpt: two answers, one of them no verdict; what was lost and the judge's identity are no answers. old: a journal of a judge that the
    experiment has no more, with a torn line."""
    tree = experiment(judges={"gpt": {"use": "m@C"}, "new": {"use": "m@C"}})
    (folder / "experiment.yaml").write_text(yaml.safe_dump(tree))
    write_json(folder / "manifest.json", {"judges": {"gpt": {"identity": {}, "unanswered": {"timeout": 2, "refused": 1}}}})
    for name in ("gpt", "old"):
        with Journal(folder / "store" / "judging" / f"{name}.jsonl").open() as journal:
            journal.add("i", {"identity": {}})
            journal.add("i.1", {"choice": "first", "final": True})
            journal.add("i.2", {"choice": None, "final": False})
            journal.add("lost.i.3", {"lost_usd": 0.1})
    with (folder / "store" / "judging" / "old.jsonl").open("a") as file:
        file.write("torn")
    judges = {judge.name: judge for judge in read_status(folder).judges}
    assert list(judges) == ["gpt", "new", "old"]
    assert [(judge.answers, judge.undecided, judge.damaged_lines, judge.unanswered) for judge in judges.values()] == [
        (2, 1, 0, 3), (0, 0, 0, None), (2, 1, 1, None),
    ]  # fmt: skip
    assert "2 (and 1 damaged lines)" in printed(read_status(folder))


@pytest.mark.slow
def test_what_is_being_built_is_told_by_its_process(folder: Path) -> None:
    for pid in (os.getpid(), dead()):
        (folder / "store" / "policies" / f".{'0' * 24}.tmp-{machine()}-{pid}-{'a' * 8}").mkdir(parents=True)
    status = read_status(folder)
    assert status.building == (f"process {os.getpid()} makes policies",)
    assert "for which arm is not on disk" in printed(status)
    progress(folder, "rjs.0", "policy on 8", os.getpid())
    assert "for which arm is not on disk" not in printed(read_status(folder))


# --- real runs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_run_killed_finished_and_changed(tmp_path: Path) -> None:
    """Killed once an arm-seed is recorded; gone on with, one arm failing (it asks 16 samples of 10); then a record is another's."""
    tree = tiny_tree()
    tree["arms"]["greedy"] = {**tree["arms"]["rjs"], "budget": {"sampled_responses": 10}}
    tree["seeds"] = [0]
    path, run = tmp_path / "tiny.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    command = [sys.executable, "-c", "from apo_bench.cli.main import main; main()", "run", str(path), "--out", str(run), "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + PATIENCE_S
    while not list((run / "store").glob("arm_seeds/[!.]*.json")):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while (killed := read_status(run)).workers or killed.building:  # a killed worker takes a moment to die
        assert time.monotonic() < until
        time.sleep(0.01)
    recorded = {tuple(path_.stem.rsplit(".", 1)) for path_ in (run / "store" / "arm_seeds").glob("[!.]*.json")}
    assert {(arm, str(seed)) for (arm, seed), state in states(killed).items() if state == "finished"} == recorded
    assert set(states(killed).values()) <= {"finished", "not started", "stopped", "failed"}
    assert killed.report == "none yet"

    assert [str(failure) for failure in pipeline.run(resolve_experiment(path, None, run), workers=1).failures] == [
        "greedy, seed 0: budget exceeded: arm greedy, unit sampled_responses: needs 16, has 10 left"
    ]
    ended = read_status(run)
    assert [part(ended, arm, 0).rounds for arm in ("rjs", "apo_rjs")] == [1, 2]
    assert all((part(ended, arm, 0).work_s or 0) > 0 and (part(ended, arm, 0).artifacts or 0) > 10 for arm in ("rjs", "apo_rjs"))
    assert states(ended) == {("rjs", 0): "finished", ("apo_rjs", 0): "finished", ("greedy", 0): "failed"}
    assert "budget exceeded" in part(ended, "greedy", 0).stage
    assert (ended.report, ended.building, ended.unreadable) == ("up to date", (), ())
    assert "time left: none" in printed(ended)

    changed = run / "store" / "arm_seeds" / "rjs.0.json"
    before = changed.read_text()
    write_json(changed, json.loads(before) | {"key": "another"})
    assert read_status(run).report == "out of date"
    changed.write_text(before)
    assert read_status(run).report == "up to date"
    (run / "report" / "report.md").unlink()
    assert read_status(run).report == "out of date"
