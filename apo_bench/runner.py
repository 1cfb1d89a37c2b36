"""An experiment file in, a run folder out: arms x seeds over processes, then tables, manifest and report.

Workers get the experiment file, an arm and a seed, never objects. What an arm-seed ends with is a record in the store; a record
whose key still holds is not run again, so a finished run replays without importing torch.
"""

import json
import math
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from apo_bench import looks, tune
from apo_bench.config import Experiment
from apo_bench.errors import BudgetExceeded, InputError
from apo_bench.experiment_file import dump_experiment, load_experiment
from apo_bench.jobs import GOLD, INITIAL, Job, Report, run_all
from apo_bench.methods import resolve, source_files
from apo_bench.models.imports import resolve_model
from apo_bench.store import code_hash, digest, digest_files, free_name, versions, write_json, write_text
from apo_bench.tables import TRUNCATED, Failure, Records, manifest, write_tables
from apo_bench.tasks import Task, load_task

SHARES = ("stats/checks", "stats/shares", "stats/calibration")  # the statistics that an examination makes
PRODUCTS = (
    "manifest.json", "tables/scores.parquet", "report/report.md",
    *(f"report/{name}.csv" for name in ("summary", "by_round", "contrasts", "budget")),
)  # fmt: skip


@dataclass(frozen=True)
class RunResult:
    folder: Path
    failures: tuple[Any, ...]  # what failed, each with its line: arm-seeds, then judges that were left without answers
    n_left: int = 0  # arm-seeds that were not asked for and have not been run: then there are no tables and no report yet


@dataclass(frozen=True)
class Part:
    """The arm-seeds of an experiment that are to run now; None: all."""

    arms: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None

    def has(self, job: Job) -> bool:
        return (self.arms is None or job.arm in self.arms) and (self.seeds is None or job.trial is not None or job.seed in self.seeds)

    def check(self, experiment: Experiment) -> None:
        """Raises InputError for an arm or seed that the experiment does not have."""
        for name, asked, there in (("arms", self.arms, list(experiment.arms)), ("seeds", self.seeds, list(experiment.seeds))):
            if odd := [one for one in asked or () if one not in there]:
                raise InputError(f"--{name} {odd[0]}: the experiment has no such {name[:-1]}; it has: {', '.join(map(str, there))}")


ALL = Part()


def run(
    experiment_path: Path,
    overrides: Mapping[str, Any] | None = None,
    out: Path | None = None,
    workers: int | None = None,
    variation: Mapping[str, Any] | None = None,
    tiny: Mapping[str, Any] | None = None,
    part: Part = ALL,
) -> RunResult:
    """Run an experiment, or go on with it, and write its report. Raises InputError before anything is written.

    `variation` says which level of a varied experiment this is, `tiny` which overrides are those of `--tiny`; both only name the run in
    its manifest. Of a `part` alone no table is made, lest somebody looks before the planned seeds are there: the run after which no
    arm-seed is missing makes them.
    """
    experiment_path = experiment_path.resolve()
    as_json = json.dumps(dict(overrides or {}), sort_keys=True)
    experiment, task = _load(experiment_path, as_json)
    part.check(experiment)
    folder = (out or Path("results") / experiment.name).resolve()
    question = Job(experiment_path, as_json, folder, arm="", seed=0)
    runner = _Runner(question, experiment, task, workers or os.cpu_count() or 1, part)
    missing = [job for job in runner.first_jobs() if _finished(job) is None]
    for job in missing:
        _method(job)  # whatever is wrong with a method or a setting is said before anything is written
    if missing or not (folder / "store" / "answer.json").exists():
        _open_judges(question, experiment, task)
    write_text(folder / "experiment.yaml", dump_experiment(load_experiment(experiment_path, overrides)))
    tuned = runner.tune()
    jobs = [
        replace(question, arm=arm, seed=seed, overrides=_with(as_json, tune.overrides(arm, tuned[arm]["chosen"]) if arm in tuned else {}))
        for arm in experiment.arms
        if arm not in runner.untuned
        for seed in experiment.seeds
    ]
    runner.work([job for job in jobs if part.has(job)])
    left = [job for job in jobs if not part.has(job) and (job.arm in runner.put_off or _finished(job) is None)]
    if left:
        return RunResult(folder, tuple(runner.failures), len(left))
    records = {(job.arm, job.seed): record for job in jobs if (record := _finished(job))}
    about = manifest(experiment, task, runner.failures, records, overrides or {}, experiment_path, tiny)
    about |= {"tuned": tuned} if tuned else {}
    about |= {"variation": dict(variation)} if variation else {}
    about |= {"changed_after_a_look": change} if (change := looks.changed(folder, experiment)) else {}
    judges = [path for one in experiment.judges.values() for path in source_files(one.use, one.parameters, base=experiment_path.parent)]
    answer = answer_key(folder, about, records, judges)
    written, unanswered = folder / "store" / "answer.json", []
    if not says(written, answer):  # a replay has nothing new to write
        from apo_bench.report import write_report

        _open_judges(question, experiment, task)  # before the tables of an earlier answer go
        write_tables(folder, experiment, records, runner.trials, pairs_used=_pairs_used(experiment, task))
        write_json(folder / "manifest.json", about)
        if records:
            looks.record(folder, experiment)
            unanswered = _ask_judges(question, experiment, task)
        write_report(folder)
        if not unanswered:
            write_json(written, answer)
    return RunResult(folder, (*runner.failures, *unanswered))


def preview(
    experiment_path: Path, overrides: Mapping[str, Any] | None = None, out: Path | None = None, part: Part = ALL
) -> list[tuple[Job, bool]]:
    """The jobs that `run` would begin with (tuning's trials, where there is tuning), and whether each is finished. Writes nothing."""
    path, as_json = experiment_path.resolve(), json.dumps(dict(overrides or {}), sort_keys=True)
    experiment, task = _load(path, as_json)
    part.check(experiment)
    question = Job(path, as_json, (out or Path("results") / experiment.name).resolve(), arm="", seed=0)
    return [(job, _finished(job) is not None) for job in _Runner(question, experiment, task, 1, part).first_jobs()]


def set_aside(folder: Path) -> Path | None:
    """Give a run folder another name, so that the next run starts afresh; its new name, or None where there is none.

    Raises InputError for a folder that is no run's.
    """
    if not folder.exists():
        return None
    if not (folder / "experiment.yaml").is_file():
        raise InputError(f"{folder}: not a run folder (no experiment.yaml); it is left as it is")
    aside = free_name(folder.with_name(f"{folder.name}.before"))
    folder.rename(aside)
    return aside


def _open_judges(question: Job, experiment: Experiment, task: Task) -> None:
    """What a judge lacks (a key in the environment, a model, a ground truth) is said before anything is spent or lost."""
    from apo_bench.judging import panel

    panel.open_judges(question.folder, experiment, task, question.experiment.parent)


def _ask_judges(question: Job, experiment: Experiment, task: Task) -> list[Any]:
    from apo_bench.judging import panel

    return panel.judge_run(question.folder, experiment, task, question.experiment.parent)


class _Runner:
    """What has been run of one question, and what failed."""

    def __init__(self, question: Job, experiment: Experiment, task: Task, workers: int, part: Part = ALL) -> None:
        self.question, self.experiment, self.task, self.workers, self.part = question, experiment, task, workers, part
        self.failures: list[Failure] = []
        self.trials: dict[tuple[str, int, int], Mapping[str, Any]] = {}  # (arm, trial, seed) -> record
        self.untuned: set[str] = set()
        self.put_off: set[str] = set()  # arms whose tuning is another run's part
        asked = experiment.tune
        self.settings = {arm: tune.trials(arm, grid, asked.trials) for arm, grid in asked.grids.items()} if asked else {}
        self._prepared = False

    def work(self, jobs: Sequence[Job]) -> list[Failure]:
        """Run what is missing; a failed trial is not a failure of the run."""
        missing = [job for job in jobs if _finished(job) is None]
        if not missing:
            return []
        first = []
        if not self._prepared:
            sizes = (
                f"{split} {self.task.counts[f'{split}.prompts']}/{self.task.counts[f'{split}.clusters']}" for split in self.task.prompts
            )
            print(f"{self.task.name}: no cluster in two splits; prompts/clusters: {', '.join(sizes)}", file=sys.stderr)
            seeds = sorted({seed for gold in self.experiment.models.gold for seed in gold.seeds})
            first = [replace(self.question, arm=INITIAL), *(replace(self.question, arm=GOLD, seed=seed) for seed in seeds)]
            self._prepared = True
        # seeds run fastest: jobs that run side by side then differ in seed, and seldom wait for a shared artifact
        failures = run_all([*first, *missing], work, self.workers)
        self.failures += [one for one in failures if one.trial is None]
        return failures

    def first_jobs(self) -> list[Job]:
        """What is run first: trials, or where nothing is tuned all arm-seeds; of the part that was asked for."""
        arms = [replace(self.question, arm=arm, seed=seed) for arm in self.experiment.arms for seed in self.experiment.seeds]
        return [job for job in self.trial_jobs() or arms if self.part.has(job)]

    def trial_jobs(self) -> list[Job]:
        """What tuning runs; empty where nothing is tuned."""
        return [
            replace(self.question, arm=arm, seed=seed, trial=number, overrides=_with(self.question.overrides, tune.overrides(arm, setting)))
            for arm, tried in self.settings.items()
            for number, setting in enumerate(tried)
            for seed in (self.experiment.tune.seeds if self.experiment.tune else ())
        ]

    def tune(self) -> dict[str, Any]:
        """Each arm's trials and the setting chosen by their dev scores; an arm whose trials all failed is a failure."""
        jobs = self.trial_jobs()
        errors = {(one.arm, one.trial): one.message for one in self.work([job for job in jobs if self.part.has(job)])}
        self.put_off = {job.arm for job in jobs if not self.part.has(job) and _finished(job) is None}
        self.trials = {(job.arm, job.trial or 0, job.seed): record for job in jobs if (record := _finished(job))}
        tuned: dict[str, Any] = {}
        for arm, tried in self.settings.items():
            if arm in self.put_off:
                continue
            outcomes = [self._outcome(arm, number) for number in range(len(tried))]
            scores, kl = zip(*outcomes, strict=True)
            try:
                chosen = tried[tune.best(scores, kl, self.experiment.tune.max_kl if self.experiment.tune else None)]
            except ValueError as error:
                why = f": {errors[arm, 0]}" if (arm, 0) in errors else ""
                self.untuned.add(arm)
                self.failures += [Failure(arm, seed, f"tuning: {error}{why}") for seed in self.experiment.seeds]
                continue
            tuned[arm] = {"chosen": chosen, "trials": []}
            for number, (setting, (score, nats)) in enumerate(zip(tried, outcomes, strict=True)):
                about = {"dev_score": None, "error": errors[arm, number]} if math.isnan(score) else {"dev_score": score}
                tuned[arm]["trials"].append({"setting": setting, **about, "kl": None if math.isnan(nats) else nats})
        return tuned

    def _outcome(self, arm: str, number: int) -> tuple[float, float]:
        """Dev score and KL in nats at the round that counts, means over the tuning seeds; NaN if one of them failed, or is not known."""
        assert self.experiment.tune is not None
        found = []
        for seed in self.experiment.tune.seeds:
            if record := self.trials.get((arm, number, seed)):
                place = tune.taken_round(record["dev_scores"], self.experiment.compare.round)
                found.append((record["dev_scores"][place], math.nan if record["kl"][place] is None else record["kl"][place]))
            else:
                found.append((math.nan, math.nan))
        scores, kl = zip(*found, strict=True)
        return sum(scores) / len(scores), sum(kl) / len(kl)


def _pairs_used(experiment: Experiment, task: Task) -> int:
    """Human pairs that the bench itself learns from: the gold models', and the referee's where there is one."""
    return len(task.pairs["gold"]) + (len(task.pairs["dev"]) if experiment.evaluation.dev_prompts else 0)


def _with(overrides: str, more: Mapping[str, Any]) -> str:
    return json.dumps({**json.loads(overrides), **more}, sort_keys=True)


def answer_key(folder: Path, about: Mapping[str, Any], records: Records, judges: Sequence[Path]) -> str:
    """Names everything that tables and report are made from."""
    here = Path(__file__).parent
    made_by = "tables report sections sections_judging judged markdown contrasts costs results figures looks".split()
    rooms = [*(here / "stats").glob("*.py"), *(here / "judging").glob("*.py"), *(here / "judging" / "prompts").glob("*.txt")]
    code = digest_files([*(here / f"{name}.py" for name in made_by), *rooms, *judges])
    question = digest_files([folder / "experiment.yaml"])
    return digest([about, [record["key"] for record in records.values()], question, code])


def says(path: Path, value: Any) -> bool:
    try:
        return json.loads(path.read_text()) == value and all((path.parents[1] / part).exists() for part in PRODUCTS)
    except (OSError, ValueError, RecursionError):
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
        log = job.folder / "logs" / f"{job.record.stem}.log"
        write_text(log, traceback.format_exc())
        return f"{type(error).__name__}: {error}".splitlines()[0] + f" (see {log})"
    return None


def _run_arm(bench: Any, job: Job, report: Report) -> None:
    from apo_bench.evaluate import Examination, evaluate
    from apo_bench.types import Round

    lab = bench.lab(job.seed, arm=job.arm)
    _method(job).run(lab)
    if not lab.rounds:
        raise InputError(f"{job.experiment}: arms.{job.arm}: it finished no round (lab.finish_round was not called)")
    record: dict[str, Any] = {"key": _record_key(job), "used": lab.used}
    if job.trial is not None:  # tuning sees dev prompts, and nothing else
        report("scoring on dev prompts")
        examined = [Examination(bench, one, job.seed) for one in lab.rounds]
        record["dev_scores"] = [one.dev_score()[0]["value"] for one in examined]
        kl = ([row["value"] for row in one.divergence(bench.dev_prompts) if row["axis"] == "all"] for one in examined)
        record["kl"] = [values[0] if values else None for values in kl]
    else:
        first = lab.rounds[0].reward_model
        rounds = [Round(bench.initial_policy, first), *lab.rounds]  # round 0: nobody has moved yet
        record["rounds"] = []
        for number, one in enumerate(rounds):
            report(f"evaluating round {number}")
            evaluation = evaluate(bench, one, job.seed, first).key
            reward_model = one.reward_model.key if one.reward_model else None
            record["rounds"].append({"policy": one.policy.key, "reward_model": reward_model, "evaluation": evaluation})
        record |= {
            "truncated": {name: sum(counts.get(name, 0) for counts in lab.charged.values()) for name in TRUNCATED},
            "wall_s": lab.wall_s,
            "peak_memory_bytes": lab.peak_memory_bytes,
            "floor": bench.floor_accuracy(job.seed),
            "gold": bench.gold_accuracy().key,
        }
    write_json(job.record, {**record, "bench": bench.charged, "artifacts": bench.store.used})


def _method(job: Job) -> Any:
    choice = _load(job.experiment, job.overrides)[0].arms[job.arm]
    return resolve(choice.use, choice.parameters, base=job.experiment.parent, arm=f"{job.experiment}: arms.{job.arm}")


def _bench(job: Job, report: Report) -> Any:
    import torch

    from apo_bench.bench import Bench
    from apo_bench.store import RunStore

    experiment, task = _load(job.experiment, job.overrides)
    hardware = {"threads": torch.get_num_threads(), "device": "cuda" if torch.cuda.is_available() else "cpu"}
    return Bench(experiment, task, RunStore(job.folder), hardware, report)


@cache
def _load(path: Path, overrides: str) -> tuple[Experiment, Task]:
    """The experiment, with model names resolved to folders or hub ids, and its task."""
    return _resolved(load_experiment(path, json.loads(overrides)), path.parent)


def opened(path: Path, overrides: Mapping[str, Any] | None = None) -> tuple[Experiment, Task]:
    """The experiment of a file, with model names resolved to folders or hub ids, and its task."""
    return _load(path.resolve(), json.dumps(dict(overrides or {}), sort_keys=True))


def reopen(folder: Path, base: Path) -> tuple[Experiment, Task]:
    """The experiment of a run folder and its task; `base` is the folder that their files are relative to."""
    return _resolved(load_experiment(folder / "experiment.yaml"), base)


def _resolved(experiment: Experiment, base: Path) -> tuple[Experiment, Task]:
    task = _task(experiment.task.use, json.dumps(experiment.task.options, sort_keys=True), base)
    models = experiment.models

    def resolved(spec: Any) -> Any:
        return spec.model_copy(update={"path": resolve_model(spec.path, base)}) if getattr(spec, "path", None) else spec

    golds = tuple(gold.model_copy(update={"model": resolved(gold.model)}) for gold in models.gold)
    models = models.model_copy(update={"policy": resolved(models.policy), "reward": resolved(models.reward), "gold": golds})
    return experiment.model_copy(update={"models": models}), task


@cache
def _task(use: str, options: str, base: Path) -> Task:
    """One for all settings of an experiment; options as JSON, since a cache needs them hashable."""
    return load_task(use, json.loads(options), base=base)


def _record_key(job: Job) -> str:
    """Names everything that can change an arm-seed's record."""
    experiment, task = _load(job.experiment, job.overrides)
    choice = experiment.arms[job.arm]
    here = Path(__file__).parent
    return digest({
        "models": experiment.models.model_dump(mode="json"),
        "evaluation": experiment.evaluation.model_dump(mode="json"),
        "budget": experiment.budget_of(job.arm),
        "tuning": job.trial is not None,
        "arm": choice.model_dump(mode="json"),
        "seed": job.seed,
        "task": [task.fingerprint, digest_files(task.source_files)],
        "code": [
            code_hash(),
            digest_files([here / f"{name}.py" for name in ("lab", "bench", "evaluate", *SHARES, "budget")]),
            digest_files(source_files(choice.use, choice.parameters, base=job.experiment.parent)),
        ],
        "versions": versions(),
    })  # fmt: skip


def _finished(job: Job) -> dict[str, Any] | None:
    """The record of a finished arm-seed, if it still answers this question."""
    try:
        record = json.loads(job.record.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and record.get("key") == _record_key(job) else None
