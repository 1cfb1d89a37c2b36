"""A run survives whatever ends it: 30 kills at random moments, a full disk, lack of memory, two runs at once, damaged artifacts."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from command_line import PATIENCE_S, start, write_experiment
from tiny_world import tiny_tree

from apo_bench.run import pipeline
from apo_bench.run.experiment import resolve_experiment
from apo_bench.run.status import read_status

pytestmark = pytest.mark.slow

KILLS = 30
OF_THIS_RUN = ("timings.parquet", "measured.csv", "measured.md", "report.json")  # files with measured times, or checksums of such files
MOMENTS_S = (0.0, 16.0)  # after a start; an undisturbed run of the experiment takes about as long as the later one


def tree() -> dict[str, Any]:
    """The tiny experiment with all that a run can have to survive: dev prompts, a judge, a checkpoint after every update."""
    changed = tiny_tree()
    changed["evaluation"]["dev_prompts"] = 6
    changed["judges"] = {"simulated": {"use": "apo_bench.judging.simulated_judge@SimulatedJudge", "noise": 0.3, "failure_rate": 0.1}}
    changed["judging"] = {"prompts": 10, "audit_pairs": 10}
    changed["executor"] = {"use": "local", "checkpoint_s": 0}
    return changed


def products(folder: Path) -> dict[str, bytes]:
    """All rows and the whole report; measured times apart, which the page shows in one place, with the hash of their table in another."""
    paths = [path for room in ("tables", "report") for path in sorted((folder / room).rglob("*")) if path.is_file()]
    contents = {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.name not in OF_THIS_RUN}
    page = contents["report/report.html"]
    for measured in (rb"<p>Begun on .*?</p>", rb"<tr>(?:(?!</tr>).)*timings\.parquet.*?</tr>"):
        page, times = re.subn(measured, b"", page, flags=re.DOTALL)
        assert times == 1
    return contents | {"report/report.html": page}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_experiment(tmp_path_factory.mktemp("experiments"), tree())


@pytest.fixture(scope="module")
def undisturbed(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert pipeline.run(resolve_experiment(experiment, None, folder), workers=1).failures == ()
    return folder


def test_30_kills_change_nothing(experiment: Path, undisturbed: Path, tmp_path: Path) -> None:
    """At a random moment after each start the whole run is killed, or its first process alone, or one of its workers; the next start has
    1, 2 or 4 workers. A run that came to its end before its kill is compared, and begun anew."""
    by_chance, folder, kills, finished = random.Random(0), tmp_path / "run", 0, 0
    expected = products(undisturbed)
    while kills < KILLS or not finished:
        process = start("run", experiment, "--out", folder, "--workers", str(by_chance.choice((1, 2, 4))))
        try:
            _, errors = process.communicate(timeout=by_chance.uniform(*MOMENTS_S) if kills < KILLS else PATIENCE_S)
        except subprocess.TimeoutExpired:
            kill(process, by_chance.choice(("all", "first", "worker")), by_chance)
            kills += 1
            continue
        assert process.returncode == 0, errors
        assert products(folder) == expected
        finished += 1
        shutil.rmtree(folder)


def kill(process: subprocess.Popen[str], what: str, by_chance: random.Random) -> None:
    """kill -9 of all the run's processes, of the one that was started, or of a child of it; then, of whatever is left, of all."""
    if what == "worker" and (children := _children(process.pid)):
        _kill(by_chance.choice(children))
        try:
            process.communicate(timeout=by_chance.uniform(0, 3))
        except subprocess.TimeoutExpired:
            what = "all"
    if what == "first":
        _kill(process.pid)
        time.sleep(by_chance.uniform(0, 1))  # its workers notice, or are still at it when the next run begins
    elif process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=PATIENCE_S)


def _children(pid: int) -> list[int]:
    try:
        return sorted(int(part) for part in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    except OSError:
        return []


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_four_workers_give_the_bytes_of_one(experiment: Path, undisturbed: Path, tmp_path: Path) -> None:
    assert pipeline.run(resolve_experiment(experiment, None, tmp_path / "run"), workers=4).failures == ()
    assert products(tmp_path / "run") == products(undisturbed)


def test_two_runs_on_one_folder_cooperate(experiment: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Both come to their end, nothing is damaged or left over, and the tables are those of one undisturbed run."""
    both = [start("run", experiment, "--out", tmp_path / "run", "--workers", "1") for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, errors
    assert products(tmp_path / "run") == products(undisturbed)
    assert not [path for path in (tmp_path / "run" / "store").rglob("*") if ".tmp" in path.name or ".damaged" in path.name]


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(experiment: Path, undisturbed: Path, tmp_path: Path) -> None:
    """A file system that something else fills once the run has begun; then it is given room again."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(disk)], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"no file system of its own can be mounted here: {mount.stderr.strip()}")
    try:
        process = start("run", experiment, "--out", disk / "run", "--workers", "1")
        until = time.monotonic() + PATIENCE_S
        while not any((disk / "run" / "store" / "policies").glob("*/manifest.json")):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(4096))
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode in (1, 2), errors
        assert "Traceback" not in errors
        assert "No space left on device" in errors
        (disk / "filler").unlink()
        assert pipeline.run(resolve_experiment(experiment, None, disk / "run"), workers=1).failures == ()
        assert products(disk / "run") == products(undisturbed)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


GREEDY = """
from dataclasses import dataclass
from pathlib import Path

@dataclass(frozen=True)
class Greedy:
    marker: str
    def run(self, lab):
        policy = lab.train_policy(lab.initial_policy, demonstrations(lab), loss())
        if not Path(self.marker).exists():
            bytearray(1 << 60)
        lab.finish_round(policy)

def demonstrations(lab):
    from apo_bench.types import Demonstration
    return [Demonstration(one.prompt, one.text) for one in lab.golden()]

def loss():
    from apo_bench.losses import SFTLoss
    return SFTLoss()
"""


def test_an_arm_that_lacks_memory_fails_alone_and_goes_on_when_there_is_some(tmp_path: Path) -> None:
    """The failure names the error, exits 1, and the other arm's rows are there; the next run computes only what is missing."""
    (tmp_path / "greedy.py").write_text(GREEDY)
    changed = tiny_tree()
    changed["arms"]["greedy"] = {"use": "greedy.py@Greedy", "marker": str(tmp_path / "room")}
    path, folder = write_experiment(tmp_path, changed), tmp_path / "run"
    process = start("run", path, "--out", folder)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, errors
    assert "failed: greedy, seed 0: MemoryError" in errors
    before = {file: file.stat().st_mtime_ns for file in (folder / "store").glob("*/*/manifest.json")}
    (tmp_path / "room").touch()
    assert pipeline.run(resolve_experiment(path, None, folder), workers=1).failures == ()
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert {item["arm"] for item in map(json.loads, _lines(folder / "report" / "tables" / "summary.csv"))} >= {"rjs", "apo_rjs", "greedy"}


def _lines(path: Path) -> list[str]:
    import pandas as pd

    return [json.dumps({"arm": arm}) for arm in pd.read_csv(path)["arm"].unique()]


@pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
def test_a_damaged_artifact_is_found_moved_aside_and_computed_again(
    experiment: Path, undisturbed: Path, tmp_path: Path, how: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever is read is looked at first: evaluations when tables are made anew, all the rest where those are gone too."""
    folder, store = shutil.copytree(undisturbed, tmp_path / "run"), tmp_path / "run" / "store"
    read_for_tables = ["curves", "evaluations", "gold_accuracy"]
    rest = [path.name for path in store.iterdir() if any(path.glob("*/manifest.json")) and path.name not in read_for_tables]
    assert set(rest) >= {"policies", "reward_models", "samples", "scores", "kl"}
    by_chance = random.Random(how)
    for kinds in (read_for_tables, rest):
        hit = [damage(store / kind, how, by_chance) for kind in sorted(kinds)]
        (store / "report_key.json").unlink()
        if kinds is rest:
            for gone in (*read_for_tables, "arm_seeds"):
                shutil.rmtree(store / gone)
        assert pipeline.run(resolve_experiment(experiment, None, folder), workers=1).failures == ()
        assert products(folder) == products(undisturbed)
        output = capfd.readouterr().out
        for artifact in hit:
            assert f"{artifact}: " in output
            assert artifact.with_name(f"{artifact.name}.damaged").is_dir()
            assert artifact.is_dir()


def test_a_report_that_was_killed_or_damaged_is_made_again(experiment: Path, undisturbed: Path, tmp_path: Path) -> None:
    """`report` is killed at its fourth file: the earlier one stands. Its manifest is lost, a table edited: `run` makes it again."""
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    files = sorted(path for path in (folder / "report").rglob("*") if path.is_file())
    before = {path: path.read_bytes() for path in files}
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom apo_bench.report import report, write\n"
        "real, written = write.write_bytes, []\n"
        "def write_bytes(path, data):\n"
        "    written.append(path)\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if len(written) == 4 else real(path, data)\n"
        "write.write_bytes = write_bytes\nreport.write_report(Path(sys.argv[1]))\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(folder)])
    assert killed.returncode == -signal.SIGKILL
    assert read_status(folder).report_damage is None
    assert all(path.read_bytes() == before[path] for path in files)
    report = folder / "report"
    harms = {
        "report/report.json is missing: the report was interrupted, or never written": (report / "report.json").unlink,
        "report/tables/contrasts.csv does not match its checksum": lambda: (report / "tables" / "contrasts.csv").write_text("arm_a\n"),
    }
    for damage_of_report, harm_report in harms.items():
        harm_report()
        assert read_status(folder).report_damage == damage_of_report
        assert read_status(folder).report == "out of date"
        assert pipeline.run(resolve_experiment(experiment, None, folder), workers=1).failures == ()
        assert (read_status(folder).report, read_status(folder).report_damage) == ("up to date", None)
        assert {path: path.read_bytes() for path in sorted((folder / "report").rglob("*")) if path.is_file()} == before


def test_a_damaged_record_is_not_believed(experiment: Path, undisturbed: Path, tmp_path: Path) -> None:
    """One digit of what an arm-seed used is another: it is run again, from artifacts that are all there, and computes nothing."""
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    record = folder / "store" / "arm_seeds" / "rjs.0.json"
    text = record.read_text()
    used = json.loads(text)["used"]
    record.write_text(text.replace('"human_pairs": 32.0', '"human_pairs": 31.0'))
    assert record.read_text() != text
    (folder / "store" / "report_key.json").unlink()
    before = {file: file.stat().st_mtime_ns for file in (folder / "store").glob("*/*/manifest.json")}
    assert pipeline.run(resolve_experiment(experiment, None, folder), workers=1).failures == ()
    assert json.loads(record.read_text())["used"] == used
    assert {file: file.stat().st_mtime_ns for file in (folder / "store").glob("*/*/manifest.json")} == before
    assert products(folder) == products(undisturbed)


def damage(kind: Path, how: str, by_chance: random.Random) -> Path:
    """Harm one file of one artifact of this kind, and return the artifact. Its times are measured: no row is made from them."""
    artifact = by_chance.choice(sorted(path.parent for path in kind.glob("*/manifest.json")))
    harm(by_chance.choice(sorted(path for path in artifact.rglob("*") if path.is_file() and path.name != "timing.json")), how, by_chance)
    return artifact


def harm(path: Path, how: str, by_chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
        return
    if how == "truncated":
        path.write_bytes(content[: by_chance.randrange(len(content))])
        return
    content[by_chance.randrange(len(content))] ^= 1 << by_chance.randrange(8)
    path.write_bytes(content)
