"""Checks of an experiment before anything is written, without a GPU, a network or a model."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import date
from pathlib import Path
from typing import Any

from apo_bench.analysis import published
from apo_bench.config import controls, finished_arms, tuning
from apo_bench.config import plugins as methods
from apo_bench.config.load import ExperimentFile, read_experiment
from apo_bench.config.schema import Arm, Experiment, FinishedReward, NetworkReward, PolicyModel, members
from apo_bench.config.variations import variations
from apo_bench.data import task_folder as task_files
from apo_bench.data.task import Task
from apo_bench.engines import engine_module
from apo_bench.engines import launch as launching
from apo_bench.engines.vllm_server import version_of
from apo_bench.errors import InputError, NotHere, lines_of, together
from apo_bench.finished import Finished
from apo_bench.judging.load_judges import judge_context, open_judge
from apo_bench.lab.response_files import read_responses, text_keys
from apo_bench.package_data import find_beside
from apo_bench.plan import match_spend
from apo_bench.plan.gold_accuracy import forecast, warnings
from apo_bench.run import trackers
from apo_bench.run.check_capabilities import check_capabilities
from apo_bench.run.check_models import check_models
from apo_bench.run.executors import check_executor
from apo_bench.run.experiment import TaskCache, with_python, with_resolved_files, with_set_files, with_task_folder, with_template_dates
from apo_bench.run.first_prompts import first_prompt, named_models
from apo_bench.run.prompt_sets import check_sets
from apo_bench.types import Split


def check_experiment(path: Path, overrides: Mapping[str, Any] | None = None, *, sizes: bool = True) -> list[str]:
    """Read an experiment file and check it. As `check`."""
    return check(read_experiment(path, overrides), TaskCache(), sizes=sizes)


def check(file: ExperimentFile, tasks: TaskCache, *, sizes: bool = True) -> list[str]:
    """Check the task and data, every arm's method, the models and the budget of an experiment; return notes.

    A note names what could not be checked here, or what is valid but probably not intended. `sizes`: also solve the size of arms with
    `fit`, and foretell an uninformative gold. Raises InputError, one line naming the file and the first key that is wrong.
    """
    experiment, path, base = file.experiment, file.path, file.path.parent
    try:
        if experiment.vary:
            return _check_variations(file, tasks, sizes)
        for pair in (*experiment.compare.primary, *experiment.compare.secondary):
            if pair.a == pair.b:
                raise InputError(f"compare: arm {pair.a!r} is compared with itself")
        _check_arms(file)
        _check_trials(file)
        places = check_executor(experiment.executor)
        if missing := trackers.lacking(experiment.trackers):
            raise InputError(missing)
        engine_module(experiment.engine)
        _check_launch(experiment, base)
        if experiment.report.beside:
            published.read_published(published.find_published(experiment.report.beside))
            published.matching_arms(experiment, experiment.report.arms)
        evaluation = with_task_folder(experiment.evaluation, base)
        notes = [*places, *_code(experiment, base), *_check_samplers(experiment, base)]
        notes += check_capabilities(experiment.model_copy(update={"evaluation": evaluation}), base)
        if _comes_from_the_hub(experiment, base):
            return [
                *notes,
                *check_models(experiment, base, None),
                f"task {experiment.task.use}: its data come from the hub and were not checked",
            ]
        task = tasks.load(experiment, base)
        notes += check_models(experiment, base, len(task.axes))
        notes += [f"task {task.name}: {task.recognised}"] if task.recognised else []
        _check_against_task(experiment, task)
        _check_system_prompts(experiment, task, base)
        fits = _check_fits(file, tasks) if sizes and any(arm.fit for arm in experiment.arms.values()) else ()
        notes += warnings(forecast(experiment, task)) if sizes else ()
        notes += _finished_notes(experiment, task, base)
        notes += check_sets(with_set_files(experiment, base), task, base)
        return [*notes, *_check_judges(experiment, task, base), *_budget_notes(experiment, task), *fits]
    except InputError as error:
        raise together([line if line.startswith(f"{path}: ") else f"{path}: {line}" for line in lines_of(error)]) from None


def missed_matches(file: ExperimentFile, tasks: TaskCache) -> list[str]:
    """The declared matches of compared arms that the plan misses, counted without a model."""
    from apo_bench.analysis import costs
    from apo_bench.plan.make_plan import plan

    base = file.path.parent.resolve()
    return costs.missed_matches(plan(with_resolved_files(file.experiment, base), tasks.load(file.experiment, base), base=base).matches)


def _check_variations(file: ExperimentFile, tasks: TaskCache, sizes: bool) -> list[str]:
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
            notes = check(file.under(variation.over(file.overrides)), tasks, sizes=sizes)
        except InputError as error:
            raise InputError(f"vary: {variation.label}: {str(error).removeprefix(f'{file.path}: ')}") from None
        for note in notes:
            labels.setdefault(note, []).append(variation.label)
    return [note if len(some) == len(parts) else f"{', '.join(some)}: {note}" for note, some in labels.items()]


def _check_arms(file: ExperimentFile) -> None:
    """Raise what is wrong with every arm's method, all of it."""
    wrong: list[str] = []
    for name, arm in file.experiment.arms.items():
        try:
            if arm.fit is None:
                _check_arm(name, arm, file)
        except InputError as error:
            wrong += lines_of(error)
    if wrong:
        raise together(wrong)


def _check_arm(name: str, arm: Arm, file: ExperimentFile) -> None:
    method = methods.resolve(arm.use, arm.parameters, base=file.path.parent, arm=f"arms.{name}")
    if isinstance(method, Finished):
        _check_seeds(name, method, file.experiment)
    if not callable(getattr(method, "run", None)):
        raise InputError(f"arms.{name}: use: {arm.use} has no run(lab); it can only be the player of another method")
    finished = [member for member in members(file.experiment.models.reward) if isinstance(member, FinishedReward)]
    if getattr(method, "trains_reward_model", False) and any(member.training is None for member in finished):
        raise InputError(f"arms.{name}: {arm.use} trains the reward model, but models.reward is finished and has no training; give it one")


def _check_seeds(name: str, finished: Finished, experiment: Experiment) -> None:
    """Raise InputError for a seed that has no policy or file, or another number of rounds than the first."""
    first = experiment.seeds[0]
    for seed in experiment.seeds:
        try:
            rounds, before = (len(finished.rounds(each)) for each in (seed, first))
        except InputError as error:
            raise InputError(f"arms.{name}: {error}") from None
        if rounds != before or not rounds:
            raise InputError(f"arms.{name}: {rounds} rounds in seed {seed}, {before} in seed {first}")


def _finished_notes(experiment: Experiment, task: Task, base: Path) -> Iterator[str]:
    """What one checkpoint for several seeds means, and how many test prompts a file of responses lacks."""
    for name, arm in finished_arms.finished_arms(experiment).items():
        if len(experiment.seeds) > 1 and finished_arms.is_same_in_every_seed(arm):
            yield f"arms.{name}: one for all {len(experiment.seeds)} seeds, which then differ by sampling alone, if at all"
        for key, path in finished_arms.paths(arm):
            if key.partition(".")[0] in finished_arms.FILES:
                try:
                    responses = read_responses(find_beside(path, base) or Path(path))
                except InputError as error:
                    raise InputError(f"arms.{name}.{key}: {error}") from None
                prompts = task.prompts["test"]
                lacking = sum(not any(text in responses for text in text_keys(prompt)) for prompt in prompts)
                if lacking == len(prompts):
                    raise InputError(f"arms.{name}.{key}: {path}: none of the task's {lacking} test prompts is in it")
                if lacking:
                    yield f"arms.{name}.{key}: {path}: {lacking} of the task's {len(prompts)} test prompts are not in it"


def _check_launch(experiment: Experiment, base: Path) -> None:
    """Raise InputError for an unusable configuration, and for an arm that trains in one process, by itself or as a player."""
    launch = experiment.executor.launch
    if launch is None:
        return
    launching.configuration(str(find_beside(launch, base) or launch))
    for name, arm in experiment.arms.items():
        sized = arm if arm.fit is None else match_spend.with_value(arm, arm.fit.by, 1)
        for part in _with_players(methods.resolve(sized.use, sized.parameters, base=base, arm=f"arms.{name}")):
            if getattr(part, "in_one_process", False):
                raise InputError(f"executor.launch: {launch}: {type(part).__name__} of arms.{name} trains in one process; leave launch out")


def _with_players(method: Any) -> Iterator[Any]:
    """The method, and the methods and losses among its parameters."""
    yield method
    for field in fields(method):
        if is_dataclass(value := getattr(method, field.name)):
            yield from _with_players(value)


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
    own = [path for path in files if not methods.is_shipped(path)]
    yield from (f"code, not of apo-bench: {path} ({', '.join(files[path])})" for path in own)
    for key, model in named_models(experiment):
        if isinstance(model, PolicyModel | NetworkReward) and model.trust_remote_code:
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
                _check_arm(name, trial.experiment.arms[name], trial)
            except InputError as error:
                raise InputError(f"tune.grids.{name}: {setting}: {error}") from None


def _check_samplers(experiment: Experiment, base: Path) -> Iterator[str]:
    """A note for each environment of a sampling engine that is not here. A server at a url is not asked."""
    sections = {"models.policy": experiment.models.policy, "evaluation": experiment.evaluation}
    for key, section in sections.items():
        engine = with_python(section, base).sampling.engine
        if engine is not None and engine.python is not None:
            try:
                version_of(engine.python, None)
            except NotHere as error:
                yield f"{key}.{error}"


def _check_system_prompts(experiment: Experiment, task: Task, base: Path) -> None:
    """Raise InputError for a system prompt that a chat template has no place for, of models without a folder of their own.

    `check_models` has encoded a conversation for the others; a tokenizer on the hub is not asked for.
    """
    try:
        resolved = with_template_dates(with_resolved_files(experiment, base), date.today())
    except NotHere:  # which has its note
        return
    for key, model in named_models(resolved):
        if not isinstance(model, PolicyModel | NetworkReward) or model.path is not None or not model.system_prompt:
            continue
        if model.architecture is None and (body := resolved.models.policy.path) and not Path(body).is_dir():
            continue
        try:
            first_prompt(key, model, resolved, task)
        except InputError as error:
            raise InputError(f"{key}.{error}") from None


def _comes_from_the_hub(experiment: Experiment, base: Path) -> bool:
    """Whether the task downloads its data: it can read local files by the option `data_files`, which is null, and a hub is named."""
    options = _options(experiment, base)
    return options.get("data_files", "") is None and options.get("hub", "") is not None


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
    if experiment.tune and experiment.tune.by == "ground_truth" and task.ground_truth is None:
        raise InputError(f"tune.by: task {task.name} has no ground truth; referee is what chooses without")
    if experiment.compare.scorer == "ground_truth" and task.ground_truth is None:
        raise InputError(f"compare.scorer: task {task.name} has no ground truth")
    for key, model in named_models(experiment):
        if isinstance(model, PolicyModel | NetworkReward) and model.architecture is not None and task.vocabulary is None:
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
