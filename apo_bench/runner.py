"""An experiment file in, a run folder out: arms x seeds over processes, then tables, manifest and report.

Workers get the experiment file, an arm and a seed, never objects. What an arm-seed ends with is a record in the store; a record
whose key still holds is not run again, so a finished run replays without importing torch.
"""

import json
import logging
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from apo_bench.config import Experiment
from apo_bench.errors import BudgetExceeded, InputError
from apo_bench.experiment_file import dump_experiment, load_experiment
from apo_bench.methods import resolve, source_files
from apo_bench.models.imports import resolve_model
from apo_bench.store import code_hash, digest, digest_files, versions, write_json, write_text
from apo_bench.tables import TRUNCATED, Failure, Records, manifest, write_tables
from apo_bench.tasks import Task, load_task

GOLD, INITIAL = "_gold", "_initial_policy"  # bench jobs beside the arms
PRODUCTS = ("manifest.json", "tables/scores.parquet", "report/report.md", "report/summary.csv", "report/contrasts.csv", "report/budget.csv")
Report = Callable[[str], None]


@dataclass(frozen=True)
class RunResult:
    folder: Path
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class Job:
    """What a worker is told: where the question is, and which part of it to answer."""

    experiment: Path
    overrides: str  # JSON, so that a job is hashable
    folder: Path
    arm: str
    seed: int

    @property
    def label(self) -> str:
        return "initial policy" if self.arm == INITIAL else f"{self.arm.removeprefix('_')} seed {self.seed}"

    @property
    def record(self) -> Path:
        return self.folder / "store" / "arm_seeds" / f"{self.arm}.{self.seed}.json"


def run(
    experiment_path: Path, overrides: Mapping[str, Any] | None = None, out: Path | None = None, workers: int | None = None
) -> RunResult:
    """Run an experiment, or go on with it, and write its report. Raises InputError before anything is written."""
    experiment_path = experiment_path.resolve()
    as_json = json.dumps(dict(overrides or {}), sort_keys=True)
    experiment, task = _load(experiment_path, as_json)
    folder = (out or Path("results") / experiment.name).resolve()
    jobs = [Job(experiment_path, as_json, folder, arm, seed) for arm in experiment.arms for seed in experiment.seeds]
    missing = [job for job in jobs if _finished(job) is None]
    for job in missing:
        _method(job)  # whatever is wrong with a method is said before anything is written
    write_text(folder / "experiment.yaml", dump_experiment(load_experiment(experiment_path, overrides)))
    failures: list[Failure] = []
    if missing:
        sizes = (f"{split} {task.counts[f'{split}.prompts']}/{task.counts[f'{split}.clusters']}" for split in task.prompts)
        print(f"{task.name}: no cluster in two splits; prompts/clusters: {', '.join(sizes)}", file=sys.stderr)
        golds = [
            Job(experiment_path, as_json, folder, GOLD, seed) for seed in sorted({s for gold in experiment.models.gold for s in gold.seeds})
        ]
        first = Job(experiment_path, as_json, folder, INITIAL, 0)
        # seeds run fastest: jobs that run side by side then differ in seed, and seldom wait for a shared artifact
        failures = _run_all([first, *golds, *missing], workers or os.cpu_count() or 1)
    records = {(job.arm, job.seed): record for job in jobs if (record := _finished(job))}
    about = manifest(experiment, task, failures, records, overrides or {}, experiment_path)
    answer = _answer_key(folder, about, records)
    written = folder / "store" / "answer.json"
    if not _says(written, answer):  # a replay has nothing new to write
        from apo_bench.report import write_report

        write_tables(folder, experiment, records, gold_pairs=len(task.pairs["gold"]))
        write_json(folder / "manifest.json", about)
        write_report(folder)
        write_json(written, answer)
    return RunResult(folder, tuple(failures))


def _answer_key(folder: Path, about: Mapping[str, Any], records: Records) -> str:
    """Names everything that tables and report are made from."""
    here = Path(__file__).parent
    code = digest_files([here / f"{name}.py" for name in ("tables", "report", "results", "figures", "stats")])
    question = digest_files([folder / "experiment.yaml"])
    return digest([about, [record["key"] for record in records.values()], question, code])


def _says(path: Path, value: Any) -> bool:
    try:
        return json.loads(path.read_text()) == value and all((path.parents[1] / part).exists() for part in PRODUCTS)
    except (OSError, ValueError):
        return False


# --- one job, in a worker -----------------------------------------------------------------------------------------------------


def work(job: Job, report: Report) -> str | None:
    """Run one job; returns what went wrong, or None."""
    try:
        bench = _bench(job, report)
        if job.arm == INITIAL:
            report("initial policy")
            _ = bench.initial_policy
        elif job.arm == GOLD:
            for gold in bench.experiment.models.gold:
                if job.seed in gold.seeds:
                    report(f"gold {gold.name}")
                    bench.gold(gold, job.seed)
        else:
            _run_arm(bench, job, report)
    except BudgetExceeded as error:
        return str(error)
    except InputError as error:
        return f"{error}"
    except Exception as error:
        log = job.folder / "logs" / f"{job.arm}.{job.seed}.log"
        write_text(log, traceback.format_exc())
        return f"{type(error).__name__}: {error}".splitlines()[0] + f" (see {log})"
    return None


def _run_arm(bench: Any, job: Job, report: Report) -> None:
    from apo_bench.lab import Round

    lab = bench.lab(job.seed, arm=job.arm)
    _method(job).run(lab)
    if not lab.rounds:
        raise InputError(f"{job.experiment}: arms.{job.arm}: it finished no round (lab.finish_round was not called)")
    rounds = [Round(bench.initial_policy, lab.rounds[0].reward_model), *lab.rounds]  # round 0: nobody has moved yet
    evaluations = []
    for number, round_ in enumerate(rounds):
        report(f"evaluating round {number}")
        evaluations.append(bench.evaluate(round_, job.seed).key)
    record = {
        "key": _record_key(job),
        "rounds": [
            {"policy": one.policy.key, "reward_model": one.reward_model.key if one.reward_model else None, "evaluation": evaluation}
            for one, evaluation in zip(rounds, evaluations, strict=True)
        ],
        "used": lab.used,
        "truncated": {name: sum(counts.get(name, 0) for counts in lab.charged.values()) for name in TRUNCATED},
        "wall_s": lab.wall_s,
        "peak_memory_bytes": lab.peak_memory_bytes,
        "floor": bench.floor_accuracy(job.seed),
        "gold": bench.gold_accuracy().key,
        "bench": bench.charged,
    }
    write_json(job.record, record)


def _method(job: Job) -> Any:
    choice = _load(job.experiment, job.overrides)[0].arms[job.arm]
    return resolve(choice.use, choice.parameters, base=job.experiment.parent, arm=f"{job.experiment}: arms.{job.arm}")


def _bench(job: Job, report: Report) -> Any:
    import torch

    from apo_bench.evaluate import Bench
    from apo_bench.store import RunStore

    experiment, task = _load(job.experiment, job.overrides)
    hardware = {"threads": torch.get_num_threads(), "device": "cuda" if torch.cuda.is_available() else "cpu"}
    return Bench(experiment, task, RunStore(job.folder), hardware, report)


@cache
def _load(path: Path, overrides: str) -> tuple[Experiment, Task]:
    """The experiment, with model names resolved to folders or hub ids, and its task."""
    experiment = load_experiment(path, json.loads(overrides))
    task = load_task(experiment.task.use, experiment.task.options, base=path.parent)
    models = experiment.models

    def resolved(spec: Any) -> Any:
        return spec.model_copy(update={"path": resolve_model(spec.path, path.parent)}) if getattr(spec, "path", None) else spec

    golds = tuple(gold.model_copy(update={"model": resolved(gold.model)}) for gold in models.gold)
    models = models.model_copy(update={"policy": resolved(models.policy), "reward": resolved(models.reward), "gold": golds})
    return experiment.model_copy(update={"models": models}), task


def _record_key(job: Job) -> str:
    """Names everything that can change an arm-seed's record."""
    experiment, task = _load(job.experiment, job.overrides)
    choice = experiment.arms[job.arm]
    here = Path(__file__).parent
    return digest({
        "models": experiment.models.model_dump(mode="json"),
        "evaluation": experiment.evaluation.model_dump(mode="json"),
        "budget": experiment.budget,
        "arm": choice.model_dump(mode="json"),
        "seed": job.seed,
        "task": [task.fingerprint, digest_files(task.source_files)],
        "code": [
            code_hash(),
            digest_files([here / "lab.py", here / "evaluate.py", here / "budget.py"]),
            digest_files(source_files(choice.use, choice.parameters, base=job.experiment.parent)),
        ],
        "versions": versions(),
    })  # fmt: skip


def _finished(job: Job) -> dict[str, Any] | None:
    """The record of a finished arm-seed, if it still answers this question."""
    try:
        record = json.loads(job.record.read_text())
    except (OSError, ValueError):
        return None
    return record if record.get("key") == _record_key(job) else None


# --- many jobs, in processes ----------------------------------------------------------------------------------------------------


def _run_all(jobs: Sequence[Job], workers: int) -> list[Failure]:
    context = multiprocessing.get_context("spawn")
    failures: list[Failure] = []
    with context.Manager() as manager, _progress(jobs) as show:
        stages = manager.Queue()
        pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context, initializer=_start_worker)
        futures: dict[Future[str | None], Job] = {pool.submit(_work_in_process, job, stages): job for job in jobs}
        try:
            waiting = set(futures)
            while waiting:
                done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                while not stages.empty():
                    show(*stages.get(), finished=False)
                for future in done:
                    job = futures[future]
                    error = future.exception()
                    message = f"{type(error).__name__}: {error}" if error else future.result()
                    show(job, "failed" if message else "done", finished=True)
                    if message:
                        failures.append(Failure(job.arm, job.seed, message))
        except KeyboardInterrupt:
            for process in list((pool._processes or {}).values()):  # they would otherwise finish their arm first
                process.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return sorted(failures, key=lambda failure: (failure.arm, failure.seed))


def _start_worker() -> None:
    """One torch thread a process: two on shared cores are many times slower, and other counts give other bits."""
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_PROGRESS_BARS="1")
    logging.disable(logging.WARNING)
    import torch

    torch.set_num_threads(1)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _work_in_process(job: Job, stages: Any) -> str | None:
    return work(job, lambda stage: stages.put((job, stage)))


@contextmanager
def _progress(jobs: Sequence[Job]) -> Iterator[Callable[..., None]]:
    """A bar with the time left on a terminal; a line per finished job elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    if not sys.stderr.isatty():
        done = 0

        def line(job: Job, stage: str, *, finished: bool) -> None:
            nonlocal done
            if finished:
                done += 1
                print(f"[{done}/{len(jobs)}] {job.label}: {stage}", file=sys.stderr, flush=True)

        yield line
        return

    from rich.console import Console

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        total = progress.add_task("arms x seeds", total=len(jobs))
        running: dict[str, Any] = {}

        def bar(job: Job, stage: str, *, finished: bool) -> None:
            if finished:
                progress.advance(total)
                if job.label in running:
                    progress.remove_task(running.pop(job.label))
            elif job.label not in running:
                running[job.label] = progress.add_task(f"{job.label}: {stage}", total=None)
            else:
                progress.update(running[job.label], description=f"{job.label}: {stage}")

        yield bar
