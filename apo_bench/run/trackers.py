"""Trackers that an experiment names, apart from the process that writes for them, which they may patch, thread and configure."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from apo_bench.config.controls import ORACLE
from apo_bench.formatting import one_line
from apo_bench.run.jobs import SHARED, Job, Report
from apo_bench.run.worker import work

OFFLINE = {  # nothing leaves the machine, nothing is asked
    "WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CONSOLE": "off", "WANDB_ERROR_REPORTING": "false", "WANDB_DISABLE_GIT": "true",
    "WANDB_DISABLE_CODE": "true", "HF_HUB_OFFLINE": "1",
}  # fmt: skip
REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_WEBHOOK_URL", "TRACKIO_BUCKET_ID", "WANDB_BASE_URL", "WANDB_API_KEY")


def lacking(trackers: Sequence[str]) -> str | None:
    """What has to be installed for these trackers, in a line; None if nothing is missing."""
    missing = next((tracker for tracker in trackers if importlib.util.find_spec(tracker) is None), None)
    return missing and f"trackers: {missing} is not installed; run: pip install 'apo-bench[{missing}]'"


def work_and_track(job: Job, report: Report) -> str | None:
    """As `work`, and then, of an arm-seed, a trial or A/A that finished, write the curves. No record's key holds this code."""
    message = work(job, report)
    if message is None and job.arm not in (*SHARED, ORACLE):
        report("writing for trackers")
        write_curves(job.folder, [job.record])
    return message


def write_curves(folder: Path, records: Iterable[Path]) -> None:
    """Write the curves of finished jobs of a run folder, by their records, where they are not written yet, in a process of its own.

    What fails is a line on stderr and is tried again by the next run: no result depends on a tracker.
    """
    kept = {name: value for name, value in os.environ.items() if name not in REMOTE}
    place = {"TRACKIO_DIR": str((folder / "trackers" / "trackio").resolve())}
    command = [sys.executable, "-m", "apo_bench.run.tracker_process", str(folder), *map(str, records)]
    done = subprocess.run(command, env={**kept, **OFFLINE, **place}, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        print(f"trackers: {one_line((done.stderr.strip() or 'failed').splitlines()[-1])}", file=sys.stderr)
