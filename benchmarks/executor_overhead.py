"""Overhead of the local executor over a plain loop.

    python benchmarks/executor_overhead.py [--experiment experiments/quickstart.yaml] [--arm rjs] [--seed 0] [--repeats 3]

Runs the same jobs (initial policy, gold models, one arm-seed) from scratch, each time in a fresh interpreter and folder: once with the
local executor and one worker, once in a plain loop without processes, pipes or progress files. Both import torch once. Prints the
ratio of the two wall times for each repeat, whose order alternates, and the median.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from apo_bench.run.executors.local import run_all
from apo_bench.run.experiment import resolve_experiment
from apo_bench.run.jobs import GOLD, INITIAL, Job, prepare_worker
from apo_bench.run.worker import work


def jobs(experiment: Path, arm: str, seed: int, folder: Path) -> list[Job]:
    resolved = resolve_experiment(experiment, folder=folder)
    gold = sorted({seed for gold in resolved.experiment.models.gold for seed in gold.seeds})
    return [resolved.job(INITIAL, 0), *(resolved.job(GOLD, seed) for seed in gold), resolved.job(arm, seed)]


def by_executor(jobs_: list[Job]) -> None:
    settings = resolve_experiment(jobs_[0].experiment).experiment.executor
    failures = run_all(jobs_, work, 1, settings)
    assert not failures, failures


def by_loop(jobs_: list[Job]) -> None:
    prepare_worker()
    for job in jobs_:
        message = work(job, lambda stage, tokens=0.0, used=None: None)
        assert not message, message


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, default=Path(__file__).parents[1] / "experiments" / "quickstart.yaml")
    parser.add_argument("--arm", default="rjs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--turn", choices=["executor", "loop"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.turn:
        with tempfile.TemporaryDirectory() as folder:
            jobs_ = jobs(given.experiment, given.arm, given.seed, Path(folder) / "run")
            started = time.monotonic()
            (by_executor if given.turn == "executor" else by_loop)(jobs_)
            print(json.dumps(time.monotonic() - started))
        return
    ratios = []
    for repeat in range(given.repeats):
        seconds = {}
        for turn in ("executor", "loop") if repeat % 2 else ("loop", "executor"):
            command = [
                sys.executable,
                __file__,
                "--experiment",
                given.experiment,
                "--arm",
                given.arm,
                "--seed",
                str(given.seed),
                "--turn",
                turn,
            ]
            seconds[turn] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        ratios.append(seconds["executor"] / seconds["loop"])
        print(f"executor / loop: {ratios[-1]:.3f}", flush=True)
    print(f"median {statistics.median(ratios):.3f}, {given.repeats} pairs of turns")


if __name__ == "__main__":
    main()
