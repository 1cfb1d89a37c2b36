"""Checks of an experiment before anything is written, without a GPU, a network or a model."""

import importlib.util
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from apo_bench.analysis import published
from apo_bench.config import controls, tuning
from apo_bench.config import plugins as methods
from apo_bench.config.load import ExperimentFile, read_experiment
from apo_bench.config.schema import Arm, Experiment, NeuralReward, NgramReward, PolicyModel, Recipe
from apo_bench.data import task_folder as task_files
from apo_bench.data.task import Task
from apo_bench.engines import engine_module
from apo_bench.engines import launch as launching
from apo_bench.errors import InputError, NotHere
from apo_bench.hashing import PACKAGE
from apo_bench.judging.load_judges import judge_context, open_judge
from apo_bench.models import precision
from apo_bench.models.pretrained_weights import IMPORT_NAMES, resolve_model
from apo_bench.package_data import find_beside, shipped_root
from apo_bench.plan import match_spend
from apo_bench.run.executors import executor
from apo_bench.run.experiment import TaskCache, first_day, with_resolved_files, with_template_dates
from apo_bench.run.first_prompts import first_prompt, named_models
from apo_bench.run.variations import variations
from apo_bench.types import Split


def check_experiment(path: Path, overrides: Mapping[str, Any] | None = None, *, sizes: bool = True) -> list[str]:
    """Read an experiment file and check it. As `check`."""
    return check(read_experiment(path, overrides), TaskCache(), sizes=sizes)


def check(file: ExperimentFile, tasks: TaskCache, *, sizes: bool = True) -> list[str]:
    """Check the task and data, every arm's method, the models and the budget of an experiment; return notes.

    A note names what could not be checked here, or what is valid but probably not intended. `sizes`: also solve the size of arms with
    `fit`. Raises InputError, one line naming the file and the first key that is wrong.
    """
    experiment, path, base = file.experiment, file.path, file.path.parent
    try:
        if experiment.vary:
            return _check_variations(file, tasks)
        for pair in (*experiment.compare.primary, *experiment.compare.secondary):
            if pair.a == pair.b:
                raise InputError(f"compare: arm {pair.a!r} is compared with itself")
        for name, arm in experiment.arms.items():
            if arm.fit is None:
                _check_arm(name, arm, base)
        _check_trials(file)
        executor(experiment.executor.use)
        engine_module(experiment.engine)
        _check_launch(experiment, base)
        if experiment.report.beside:
            published.read_published(published.find_published(experiment.report.beside))
            published.matching_arms(experiment, experiment.report.arms)
        notes = [*_code(experiment, base), *_check_models(experiment, base)]
        if _comes_from_the_hub(experiment, base):
            return [*notes, f"task {experiment.task.use}: its data come from the hub and were not checked"]
        task = tasks.load(experiment, base)
        _check_against_task(experiment, task)
        _check_first_prompts(experiment, task, base)
        fits = _check_fits(file, tasks) if sizes and any(arm.fit for arm in experiment.arms.values()) else ()
        return [*notes, *_check_judges(experiment, task, base), *_budget_notes(experiment, task), *fits]
    except InputError as error:
        raise InputError(error if str(error).startswith(f"{path}: ") else f"{path}: {error}") from None


def missed_matches(file: ExperimentFile, tasks: TaskCache) -> list[str]:
    """The declared matches of compared arms that the plan misses, counted without a model."""
    from apo_bench.analysis import costs
    from apo_bench.plan.make_plan import plan

    base = file.path.parent.resolve()
    return costs.missed_matches(plan(with_resolved_files(file.experiment, base), tasks.load(file.experiment, base), base=base).matches)


def _check_variations(file: ExperimentFile, tasks: TaskCache) -> list[str]:
    """Check every variation as an experiment of its own. A note that only some have starts with their labels."""
    experiment = file.experiment
    parts = variations(experiment)
    options = _options(experiment, file.path.parent)
    for index, level in enumerate(experiment.vary.get("world", ())):
        if isinstance(level, int) and "world_seed" not in options:
            available = ", ".join(options) or "none"
            raise InputError(f"vary.world.{index}: task {experiment.task.use} has no option world_seed; options: {available}")
    labels: dict[str, list[str]] = {}
    for variation in parts:
        try:
            notes = check(file.under(variation.over(file.overrides)), tasks)
        except InputError as error:
            raise InputError(f"vary: {variation.label}: {str(error).removeprefix(f'{file.path}: ')}") from None
        for note in notes:
            labels.setdefault(note, []).append(variation.label)
    return [note if len(some) == len(parts) else f"{', '.join(some)}: {note}" for note, some in labels.items()]


def _check_arm(name: str, arm: Arm, base: Path) -> None:
    method = methods.resolve(arm.use, arm.parameters, base=base, arm=f"arms.{name}")
    if not callable(getattr(method, "run", None)):
        raise InputError(f"arms.{name}: use: {arm.use} has no run(lab); it can only be the player of another method")


def _check_launch(experiment: Experiment, base: Path) -> None:
    launch = experiment.executor.launch
    if launch is not None:
        launching.configuration(str(find_beside(launch, base) or launch))


def _code(experiment: Experiment, base: Path) -> Iterator[str]:
    """A note for each python file, and each model's own code, that a run would execute with the user's rights."""
    choices = [
        *((f"arms.{name}", arm) for name, arm in experiment.arms.items()),
        *((f"judges.{name}", judge) for name, judge in experiment.judges.items()),
    ]
    files: dict[Path, list[str]] = {}
    for key, choice in choices:
        for path in methods.source_files(choice.use, choice.parameters, base=base):
            files.setdefault(path, []).append(key)
    for path in task_files.code_of(task_files.find_task(experiment.task.use, base)):
        files.setdefault(path, []).append("task")
    ours = (PACKAGE, shipped_root() / "baselines", shipped_root() / "tasks")
    own = [path for path in files if not any(path.resolve().is_relative_to(room) for room in ours)]
    yield from (f"code, not of apo-bench: {path} ({', '.join(files[path])})" for path in own)
    for key, model in named_models(experiment):
        if not isinstance(model, NgramReward) and model.trust_remote_code:
            yield f"code, not of apo-bench: what {model.path} brings ({key}.trust_remote_code)"


def _check_judges(experiment: Experiment, task: Task, base: Path) -> Iterator[str]:
    context = judge_context(experiment, task, base, base)
    for name, choice in experiment.judges.items():
        try:
            open_judge(name, choice, context)
        except NotHere as error:
            yield str(error)


def _check_fits(file: ExperimentFile, tasks: TaskCache) -> Iterator[str]:
    """A note with the size of each arm that has `fit`."""
    base = file.path.parent.resolve()
    try:
        fits = match_spend.size_arms(with_resolved_files(file.experiment, base), tasks.load(file.experiment, file.path.parent), base)
    except NotHere as error:
        yield str(error)
        return
    for name, fit in fits.items():
        yield f"arms.{name}: {fit.by} = {fit.value:g}, which spends {fit.ratio:.3f} of the {fit.unit} of {fit.to}"


def _check_trials(file: ExperimentFile) -> None:
    """Raise InputError for a setting of tuning that its arm's method does not take."""
    tune = file.experiment.tune
    if tune is None:
        return
    for name, grid in tune.grids.items():
        for setting in tuning.trials(name, grid, tune.trials):
            trial = file.under({**file.overrides, **tuning.overrides(name, setting)})
            try:
                _check_arm(name, trial.experiment.arms[name], file.path.parent)
            except InputError as error:
                raise InputError(f"tune.grids.{name}: {setting}: {error}") from None


def _check_models(experiment: Experiment, base: Path) -> Iterator[str]:
    for key, model in named_models(experiment):
        if isinstance(model, NgramReward):
            continue
        if model.architecture is not None:
            _check_architecture(f"{key}.architecture", model.architecture)
            _check_context(key, model, model.architecture, experiment)
        if model.path is not None:
            yield from _check_model_path(key, model, model.path, base, experiment)
        recipes = [recipe for recipe in (model.training, model.warmup) if recipe is not None]
        yield from _check_precision(key, model, recipes)
        if any(recipe.lora is not None for recipe in recipes) and importlib.util.find_spec("peft") is None:
            yield f"{key}: lora needs peft, which is not installed; run: pip install peft"


def _check_precision(key: str, model: PolicyModel | NeuralReward, recipes: Sequence[Recipe]) -> Iterator[str]:
    """A note for each package that these settings need and this machine lacks. Raises InputError for an optimizer that is none."""
    quantize = model.quantize if isinstance(model, PolicyModel) else None
    missing = {precision.lacking(attention=model.attention, quantize=quantize)}
    for recipe in recipes:
        try:
            precision.check_optimizer(recipe.optimizer)
        except InputError as error:
            raise InputError(f"{key}.training.{error}") from None
        missing.add(precision.lacking(optimizer=recipe.optimizer))
    yield from (f"{key}.{line}" for line in sorted(missing - {None}))  # pyright: ignore


def _check_model_path(key: str, model: PolicyModel | NeuralReward, path: str, base: Path, experiment: Experiment) -> Iterator[str]:
    try:
        resolved = resolve_model(path, base)
    except InputError as error:
        if path not in IMPORT_NAMES:
            raise InputError(f"{key}.{error}") from None
        yield f"{key}.{error}"
        return
    if not os.path.isabs(resolved):
        yield f"{key}.path: {path} is taken for a hub id and was not checked"
        return
    config = Path(resolved) / "config.json"
    if not config.is_file():
        raise InputError(f"{key}.path: {resolved} is not a model folder (it has no config.json)")
    try:
        fields = json.loads(config.read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(f"{key}.path: {config} is not JSON") from None
    _check_context(key, model, fields, experiment)


def _check_first_prompts(experiment: Experiment, task: Task, base: Path) -> None:
    """Raise InputError where a chat template leaves out a part of what a model here is to read, or ends no turn."""
    try:
        resolved = with_template_dates(with_resolved_files(experiment, base), first_day(base))
    except NotHere:  # which has its note
        return
    for key, model in named_models(resolved):
        if isinstance(model, NgramReward) or not (model.system_prompt or (model.path and Path(model.path).is_dir())):
            continue
        try:
            first_prompt(key, model, resolved, task)
        except InputError as error:
            raise InputError(f"{key}.{error}") from None


def _check_context(key: str, model: PolicyModel | NeuralReward, config: Mapping[str, Any], experiment: Experiment) -> None:
    """Raise InputError where prompt and longest response need more positions than the model's configuration gives it."""
    context = config.get("max_position_embeddings", config.get("n_positions"))
    if context is None:
        return
    if isinstance(model, PolicyModel):
        longest = max(model.max_response_tokens, model.sampling.max_new_tokens, experiment.evaluation.sampling.max_new_tokens)
        field, needed = "max_prompt_tokens", model.max_prompt_tokens + longest
    else:
        field, needed = "max_tokens", model.max_tokens
    if needed > context:
        raise InputError(f"{key}.{field}: {needed} tokens with the longest response, but the model's context has {context}")


def _check_architecture(key: str, fields: Mapping[str, Any]) -> None:
    """Raise InputError for a field that the model type does not have: transformers ignores it, and the model has another size."""
    from transformers import CONFIG_MAPPING

    own = dict(fields)
    kind = own.pop("model_type", None)
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise InputError(f"{key}.model_type: transformers has no model type {kind!r}")
    known = CONFIG_MAPPING[kind]()
    for field in own:
        if field in ("vocab_size", "pad_token_id", "eos_token_id", "bos_token_id", "num_labels"):
            raise InputError(f"{key}.{field}: follows from the task and may not be given")
        if not hasattr(known, field):
            raise InputError(f"{key}.{field}: {kind} has no such field")
    try:
        CONFIG_MAPPING[kind](**own)
    except Exception as error:
        raise InputError(f"{key}: {error}") from None


def _comes_from_the_hub(experiment: Experiment, base: Path) -> bool:
    """Whether the task downloads its data: it can read local files by the option `data_files`, which is null."""
    return _options(experiment, base).get("data_files", "") is None


def _options(experiment: Experiment, base: Path) -> dict[str, Any]:
    """The task's options with those of the experiment; no data are read."""
    folder = task_files.find_task(experiment.task.use, base)
    description = folder / f"{folder.name}.yaml"
    return task_files.merge_options(description, task_files.read_description(description).options, experiment.task.options)


def _check_against_task(experiment: Experiment, task: Task) -> None:
    for axis in experiment.compare.axes:
        if axis not in (*task.axes, "all"):
            raise InputError(f"compare.axes: task {task.name} has no axis {axis!r}; it has: {', '.join(task.axes)}, all")
    if experiment.controls.oracle:
        controls.chooser(experiment, task.ground_truth is not None)
    if experiment.compare.scorer == "ground_truth" and task.ground_truth is None:
        raise InputError(f"compare.scorer: task {task.name} has no ground truth")
    for key, model in named_models(experiment):
        if not isinstance(model, NgramReward) and model.architecture is not None and task.vocabulary is None:
            raise InputError(f"{key}.architecture: task {task.name} has no vocabulary for a tokenizer; give a path")
    if experiment.models.policy.warmup is not None and not task.demonstrations:
        raise InputError(f"models.policy.warmup: task {task.name} has no demonstrations to warm a policy up on")
    evaluation = experiment.evaluation
    counts: tuple[tuple[str, int | None, Split], ...] = (
        ("prompts", evaluation.prompts, "test"),
        ("dev_prompts", evaluation.dev_prompts, "dev"),
    )
    for key, count, split in counts:
        if count is not None and count > len(task.prompts[split]):
            raise InputError(f"evaluation.{key}: {count} prompts, but the {split} split has {len(task.prompts[split])}")
    for name, arm in experiment.arms.items():
        for key, count in _prompts_per_round(arm.parameters):
            if count > len(task.prompts["policy"]):
                raise InputError(f"arms.{name}.{key}: {count} prompts, but the policy split has {len(task.prompts['policy'])}")


def _prompts_per_round(parameters: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """(dotted key, value) of `prompts_per_round` in a method's parameters and in those of methods among them."""
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{key}", count) for key, count in _prompts_per_round(value))
        elif name == "prompts_per_round" and isinstance(value, int):
            yield name, value


def _budget_notes(experiment: Experiment, task: Task) -> Iterator[str]:
    available = {"human_pairs": len(task.pairs["rm"]), "golden_responses": len(task.golden)}
    for unit, budget in experiment.budget.items():
        if budget == 0:
            yield f"budget.{unit}: 0, so an arm that needs any fails"
    sources = {"budget": experiment.budget} | {f"arms.{name}.budget": arm.budget for name, arm in experiment.arms.items()}
    for key, budgets in sources.items():
        for unit, budget in budgets.items():
            if budget > available.get(unit, float("inf")):
                yield f"{key}.{unit}: {budget:.12g}, but the task has {available[unit]}"
