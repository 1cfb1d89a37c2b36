"""Trackers that an experiment names, apart from the process that writes for them, which they may patch, thread and configure."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from apo_bench.formatting import one_line

OFFLINE = {  # nothing leaves the machine, nothing is asked
    "WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CONSOLE": "off", "WANDB_ERROR_REPORTING": "false", "WANDB_DISABLE_GIT": "true",
    "WANDB_DISABLE_CODE": "true", "HF_HUB_OFFLINE": "1",
}  # fmt: skip
REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_WEBHOOK_URL", "TRACKIO_BUCKET_ID", "WANDB_BASE_URL", "WANDB_API_KEY")


def lacking(trackers: Sequence[str]) -> str | None:
    """What has to be installed for these trackers, in a line; None if nothing is missing."""
    missing = next((tracker for tracker in trackers if importlib.util.find_spec(tracker) is None), None)
    return missing and f"trackers: {missing} is not installed; run: pip install 'apo-bench[{missing}]'"


def write_curves(folder: Path, arm_seeds: Iterable[tuple[str, int]]) -> None:
    """Write the curves of finished arm-seeds of a run folder, where they are not written yet, in a process of its own.

    What fails is a line on stderr and is tried again by the next run: no result depends on a tracker.
    """
    kept = {name: value for name, value in os.environ.items() if name not in REMOTE}
    place = {"TRACKIO_DIR": str((folder / "trackers" / "trackio").resolve())}
    command = [sys.executable, "-m", "apo_bench.run.tracker_process", str(folder), json.dumps([*arm_seeds])]
    done = subprocess.run(command, env={**kept, **OFFLINE, **place}, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        print(f"trackers: {one_line((done.stderr.strip() or 'failed').splitlines()[-1])}", file=sys.stderr)
