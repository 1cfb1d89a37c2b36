"""An experiment with what a run of it needs: the models' folders, the task, the run folder. Loaded once, and passed on from there."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from apo_bench.config import finished_arms
from apo_bench.config.controls import made_of
from apo_bench.config.load import ExperimentFile, read_experiment
from apo_bench.config.plugins import is_shipped, source_files
from apo_bench.config.prompt_sets import with_files
from apo_bench.config.schema import Arm, Evaluation, Experiment, PolicyModel
from apo_bench.data.task import Task, load_task
from apo_bench.errors import InputError
from apo_bench.models.pretrained_weights import each_model, reads_clock, resolve_model, with_paths
from apo_bench.package_data import find_beside
from apo_bench.run.jobs import Job

FIRST_DAY = "first_day.txt"
Sampled = TypeVar("Sampled", bound=PolicyModel | Evaluation)


class TaskCache:
    """Tasks, each loaded once for all settings of an experiment that leave it as it is."""

    def __init__(self) -> None:
        self._tasks: dict[tuple[str, str, Path], Task] = {}

    def load(self, experiment: Experiment, base: Path) -> Task:
        """The experiment's task; `base` is the folder that its files are relative to. Raises InputError as `load_task` does."""
        use, options, base = experiment.task.use, experiment.task.options, base.resolve()
        key = (use, json.dumps(options, sort_keys=True), base)
        if key not in self._tasks:
            self._tasks[key] = load_task(use, options, base=base)
        return self._tasks[key]


@dataclass(frozen=True)
class ResolvedExperiment:
    """An experiment file under its overrides, ready to run in `folder`. Model names are resolved to folders or hub ids."""

    file: ExperimentFile
    folder: Path
    experiment: Experiment
    task: Task
    _tasks: TaskCache = field(repr=False, compare=False)
    _variants: dict[str, "ResolvedExperiment"] = field(default_factory=dict, repr=False, compare=False)  # by overrides, as JSON

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def base(self) -> Path:
        """The folder that files named in the experiment are relative to."""
        return self.file.path.parent

    @property
    def overrides(self) -> str:
        """As JSON, so that a job can carry it."""
        return json.dumps(dict(self.file.overrides), sort_keys=True)

    def under(self, overrides: str) -> "ResolvedExperiment":
        """The same file in the same folder under these overrides (JSON) instead. Raises InputError where it is not valid under them."""
        if overrides == self.overrides:
            return self
        if overrides not in self._variants:
            variant = resolve(self.file.under(json.loads(overrides)), self.folder, self._tasks)
            self._variants[overrides] = replace(variant, _variants=self._variants)
        return self._variants[overrides]

    def with_overrides(self, more: Mapping[str, Any]) -> "ResolvedExperiment":
        """The same experiment with further overrides, which replace those of the same key."""
        return self.under(json.dumps({**self.file.overrides, **more}, sort_keys=True)) if more else self

    def job(self, arm: str, seed: int, trial: int | None = None) -> Job:
        """A job of this experiment under these overrides."""
        return Job(self.path, self.overrides, self.folder, arm, seed, trial, made_of(self.experiment, arm) in self._foreign_arms)

    @cached_property
    def _foreign_arms(self) -> frozenset[str]:
        """The arms whose method, or anything among its parameters, is code that apo-bench does not ship."""
        return frozenset(name for name, arm in self.experiment.arms.items() if _is_foreign(arm, self.base))


def _is_foreign(arm: Arm, base: Path) -> bool:
    try:
        return not all(map(is_shipped, source_files(arm.use, arm.parameters, base=base)))
    except InputError:  # the file is gone
        return True


def resolve_experiment(path: Path, overrides: Mapping[str, Any] | None = None, folder: Path | None = None) -> ResolvedExperiment:
    """Read an experiment file and load its task. `folder` is the run folder: `results/<name>` if not given.

    Raises InputError for a file, a task or data that are not valid, and NotHere for a model that is not on this machine.
    """
    file = read_experiment(path, overrides)
    return resolve(file, folder or Path("results") / file.experiment.name, TaskCache())


def resolve(file: ExperimentFile, folder: Path, tasks: TaskCache) -> ResolvedExperiment:
    """An experiment file that has been read, ready to run in `folder`. Raises InputError as `resolve_experiment` does."""
    file = replace(file, path=file.path.resolve())
    task = tasks.load(file.experiment, file.path.parent)
    experiment = with_template_dates(with_resolved_files(file.experiment, file.path.parent), first_day(folder))
    return ResolvedExperiment(file, folder.resolve(), experiment, task, tasks)


def with_resolved_files(experiment: Experiment, base: Path) -> Experiment:
    """The experiment with its models' folders, its launch file and its sampling engine's python found.

    Raises NotHere for a model not on this machine.
    """
    models = with_paths(experiment.models, lambda path: resolve_model(path, base))
    models = models.model_copy(update={"policy": with_python(models.policy, base)})
    executor = experiment.executor
    if executor.launch is not None:
        executor = executor.model_copy(update={"launch": str(find_beside(executor.launch, base) or executor.launch)})
    arms = {name: _with_paths(name, arm, base) for name, arm in experiment.arms.items()}
    evaluation = with_task_folder(with_files(with_python(experiment.evaluation, base), base), base)
    return experiment.model_copy(update={"models": models, "evaluation": evaluation, "executor": executor, "arms": arms})


def with_set_files(experiment: Experiment, base: Path) -> Experiment:
    """The experiment with the files of its prompt sets located."""
    return experiment.model_copy(update={"evaluation": with_files(experiment.evaluation, base)})


def _with_paths(name: str, arm: Arm, base: Path) -> Arm:
    """The arm with its finished policies and files of responses located."""
    try:
        return finished_arms.with_paths(arm, lambda path: resolve_model(path, base), lambda path: str(find_beside(path, base) or path))
    except InputError as error:
        raise type(error)(f"arms.{name}: {error}") from None


def with_task_folder(evaluation: Evaluation, base: Path) -> Evaluation:
    """The evaluation with the folder of lm-eval tasks located, beside the file, in the working directory or shipped."""
    settings = evaluation.capabilities
    if settings is None or settings.include_path is None:
        return evaluation
    path = Path(settings.include_path).expanduser()
    located = settings.model_copy(update={"include_path": str((find_beside(path, base) or path).absolute())})
    return evaluation.model_copy(update={"capabilities": located})


def with_python(section: Sampled, base: Path) -> Sampled:
    """The section with the python of its sampling engine found; a link of an environment stays the link that it is."""
    engine = section.sampling.engine
    if engine is None or engine.python is None:
        return section
    python = os.path.expanduser(engine.python)
    engine = engine.model_copy(update={"python": str(find_beside(python, base) or python)})
    return section.model_copy(update={"sampling": section.sampling.model_copy(update={"engine": engine})})


def first_day(folder: Path) -> date:
    """The day of a folder's first run, which its models' chat templates take for today; today before that."""
    path = folder / FIRST_DAY
    try:
        return date.fromisoformat(path.read_text(encoding="utf-8").strip()) if path.is_file() else date.today()
    except ValueError:
        raise InputError(f"{path}: not a date such as 2025-01-31; write the day of the folder's first run") from None


def with_template_dates(experiment: Experiment, day: date) -> Experiment:
    """The experiment with a day for each model whose chat template reads the clock and that names none."""
    models = experiment.models

    def dated(spec: Any) -> Any:
        path = models.policy.path if getattr(spec, "initial", None) else getattr(spec, "path", None)
        dateless = hasattr(spec, "template_date") and spec.template_date is None
        return spec.model_copy(update={"template_date": day}) if dateless and path and reads_clock(path) else spec

    arms = {name: _dated(arm, models.policy, day) for name, arm in experiment.arms.items()}
    return experiment.model_copy(update={"models": each_model(models, dated), "arms": arms})


def _dated(arm: Arm, policy: PolicyModel, day: date) -> Arm:
    """The arm with a day for its finished policies' chat templates, where one of them reads the clock and no setting names one."""
    settings = arm.parameters.get("model") or {}
    if arm.use != finished_arms.FINISHED or policy.template_date or settings.get("template_date"):
        return arm
    models = [path for key, path in finished_arms.paths(arm) if key.partition(".")[0] in finished_arms.MODELS]
    return arm.model_copy(update={"model": {**settings, "template_date": day.isoformat()}}) if any(map(reads_clock, models)) else arm


def find_experiment(path: Path) -> Path:
    """The file itself, or the shipped experiment with this path; the path as it is where neither exists."""
    return find_beside(path, None) or path
