"""Training with a trainer of TRL: it reads our tokens, is metered from outside, and ends with a policy like any other."""

import contextlib
import dataclasses
import importlib
import json
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import torch
from datasets import Dataset
from transformers import GenerationConfig
from transformers.trainer_callback import PrinterCallback, TrainerCallback

from apo_bench.config.schema import EnsembleReward, Recipe
from apo_bench.engines.protocol import Items, ScoringJob
from apo_bench.engines.stored_models import StoredModels
from apo_bench.engines.trl_meter import Meter
from apo_bench.errors import BudgetExceeded, InputError
from apo_bench.models import precision
from apo_bench.models.device import own_device
from apo_bench.models.generate import response_of
from apo_bench.models.token_text import UNREAD, TokenText, to_ids, to_text
from apo_bench.models.tokenize import ChatFormat
from apo_bench.store import Computed
from apo_bench.training.data import sides_of
from apo_bench.training.trainer import DIVERGED
from apo_bench.training.training_spec import PolicyTraining, TRLItem, TRLTraining
from apo_bench.training.trl_trainers import check_known, trl_trainer
from apo_bench.types import Demonstration, EnsembleRewardModel, Pair, Prompt, Response

Score = Callable[[ScoringJob], Computed[list[float]]]
PROMPT_ID = "prompt_id"


def train(job: TRLTraining, models: StoredModels, score: Score, into: Path) -> Computed[None]:
    """The policy that the job's trainer makes, in the folder `into`, and the counts spent; `score` is the engine's verb.

    Counts that could not be taken are NaN. Raises InputError, one line, for arguments and data that the trainer refuses, and where the fit
    diverges, and BudgetExceeded within a step of overspending.
    """
    recipe = precision.resolved(job.recipe, models.device)
    job = dataclasses.replace(job, recipe=recipe)
    kind = _trainer_class(job.trainer)
    as_policy_job = PolicyTraining(job.policy, (), None, None, job.model, recipe, job.seed)
    model, tokenizer = models.policy_to_train(as_policy_job)
    _freeze(model, recipe)
    chat = ChatFormat.of(tokenizer, job.model)
    own = model.generation_config.eos_token_id
    ends = sorted({chat.end_id, tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None})
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    model.config._name_or_path = str(models.folder("policies", job.policy))  # where trainers read their reference
    meter = Meter(model, recipe, frozenset(ends), tokenizer.pad_token_id)
    with TemporaryDirectory() as scratch, _quiet():
        arguments = _arguments(kind, job, tokenizer, scratch)
        extra: dict[str, Any] = {}
        if job.reward_model is not None:
            extra["reward_funcs"] = [_reward(job, chat, frozenset(ends), score, meter)]
        try:
            trainer = kind(
                model=model,
                args=arguments,
                train_dataset=Dataset.from_list([*rows(job.data, chat, job)]),
                processing_class=TokenText(len(tokenizer), tokenizer.pad_token_id, chat.end_id),
                callbacks=[_Watch(job, meter)],
                **extra,
            )
            trainer.remove_callback(PrinterCallback)
            meter.watch(trainer.model, trained=True)
            if getattr(trainer, "ref_model", None) is not None:
                meter.watch(trainer.ref_model, trained=False)
            trainer.train()
        except InputError:
            raise
        except (ValueError, NotImplementedError) as error:  # of arguments that do not go together, which some trainers see late
            raise InputError(f"{job.trainer}: {error}") from error
    if trainer.state.global_step != job.updates:
        done = f"{trainer.state.global_step} of {job.updates} updates"
        raise InputError(f"{job.trainer}: it ended after {done}: {len(job.data)} rows are fewer than it reads at a time")
    trained, losses = trainer.model.state_dict(), [float(row["loss"]) for row in trainer.state.log_history if "loss" in row]
    del trainer
    clean, tokenizer = models.policy_to_train(as_policy_job)  # without whatever the trainer put on the model
    clean.load_state_dict({name: trained[name] for name in clean.state_dict()})
    if broken := next((name for name, weight in clean.named_parameters() if not weight.isfinite().all()), None):
        raise InputError(f"policy: after update {job.updates}, the last, {broken} is not finite; {DIVERGED}")
    models.keep_policy((clean, tokenizer), as_policy_job, into)
    (into / "training_losses.json").write_text(json.dumps(losses))
    return Computed(None, meter.counts(job.updates))


def rows(data: Sequence[TRLItem], chat: ChatFormat, job: TRLTraining) -> Iterator[dict[str, Any]]:
    """The data in TRL's standard form, every text a text of our tokens (`models.token_text`); one without an end gets none."""

    def text_of(prompt: Prompt, response: str) -> str:
        sampled = job.token_ids.get(prompt.id, {}).get(response)
        ids = chat.encode_response(prompt, response, job.model.max_response_tokens, sampled)
        return to_text(ids) + ("" if ids[-1:] == [chat.end_id] else UNREAD)

    for item in data:
        prompt = item if isinstance(item, Prompt) else item.prompt
        row: dict[str, Any] = {"prompt": to_text(chat.encode_prompt(prompt, job.model.max_prompt_tokens).ids)}
        if isinstance(item, Prompt):
            yield {**row, PROMPT_ID: prompt.id}
        elif isinstance(item, Pair):
            chosen, rejected = (text_of(prompt, text) for text in sides_of(item))
            yield {**row, "chosen": chosen, "rejected": rejected}
        else:
            label = {} if isinstance(item, Demonstration) else {"label": item.desirable}
            yield {**row, "completion": text_of(prompt, item.response), **label}


def _trainer_class(name: str) -> Any:
    """The trainer, which tells nobody that it is used."""
    trl_trainer(name)
    module, _, attribute = name.rpartition(".")
    with warnings.catch_warnings(action="ignore"):  # of the experimental tier
        kind = getattr(importlib.import_module(module), attribute)
    return type(attribute, (kind,), {"_send_telemetry": lambda self: None})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of data sets."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _config_class(kind: Any) -> Any:
    """The configuration that a trainer reads: by the name of its class, or of those that it derives from."""
    for ancestor in kind.__mro__:
        module = sys.modules[ancestor.__module__]
        if config := getattr(module, ancestor.__name__.replace("Trainer", "Config"), None):
            return config
    raise InputError(f"{kind.__name__}: no configuration of it was found")


def _arguments(kind: Any, job: TRLTraining, tokenizer: Any, scratch: str) -> Any:
    """The trainer's configuration: what the experiment decides, and the arm's own arguments."""
    config, recipe, sampling = _config_class(kind), job.recipe, job.model.sampling
    names = {field.name for field in dataclasses.fields(config) if field.init}
    check_known(job.args, names, config.__name__)
    micro = recipe.items_per_pass
    decided: dict[str, Any] = {
        "output_dir": scratch,
        "max_steps": job.updates,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": recipe.batch_size // micro,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": "constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule,
        "warmup_steps": recipe.warmup_steps,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "optim": recipe.optimizer,
        "bf16": recipe.precision == "bf16",
        "gradient_checkpointing": recipe.gradient_checkpointing is True,
        "seed": job.seed % 2**32,
        "data_seed": job.seed % 2**32,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": own_device().type == "cpu",
    }
    if job.reward_model is not None:
        decided |= {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k", "repetition_penalty")}
        decided |= dict.fromkeys(("max_completion_length", "max_new_tokens"), sampling.max_new_tokens)
    decided["max_prompt_length"] = job.model.max_prompt_tokens
    decided["max_length"] = job.model.max_prompt_tokens + max(job.model.max_response_tokens, sampling.max_new_tokens)
    own = dict(job.args)
    if "generation_kwargs" in names:  # as everywhere here: padding is never drawn
        own["generation_kwargs"] = {"suppress_tokens": [tokenizer.pad_token_id], **(own.get("generation_kwargs") or {})}
    try:
        with warnings.catch_warnings(action="ignore"):  # of fields that TRL itself renames
            arguments = config(**{name: value for name, value in decided.items() if name in names}, **own)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise InputError(f"{job.trainer}: args: {error}") from None
    arguments.mixed_precision = "bf16" if arguments.bf16 else "no"  # not what a launch configuration says
    arguments._n_gpu = min(1, arguments.n_gpu)  # never DataParallel: other GPUs are other workers'
    return arguments


def _freeze(model: Any, recipe: Recipe) -> None:
    for part, weight in model.named_parameters():
        if recipe.freeze and re.search(recipe.freeze, part):
            weight.requires_grad_(False)
        if weight.requires_grad:
            weight.data = weight.data.float()
    precision.check_optimizer(recipe.optimizer)
    if missing := precision.lacking(optimizer=recipe.optimizer):
        raise InputError(missing)


class _Watch(TrainerCallback):
    """Ends a fit at the first update that is not finite, and after the step in which more was spent than is left."""

    def __init__(self, job: TRLTraining, meter: Meter) -> None:
        self.job, self.meter = job, meter

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for unit, spent in self.meter.counts(state.global_step).items():
            if spent > self.job.left.get(unit, math.inf):
                raise BudgetExceeded(self.job.arm, unit, spent, self.job.left[unit])

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        if not math.isfinite(loss := float((logs or {}).get("loss", 0.0))):
            raise InputError(f"policy: the loss of update {state.global_step} of {state.max_steps} is {loss}; {DIVERGED}")


def _reward(job: TRLTraining, chat: ChatFormat, ends: frozenset[int], score: Score, meter: Meter) -> Callable[..., list[float]]:
    """The arm's reward model as TRL's reward function."""
    prompts = {prompt.id: prompt for prompt in job.data if isinstance(prompt, Prompt)}

    def reward_model(completions: Sequence[str], **columns: Any) -> list[float]:
        ids = columns[PROMPT_ID]
        responses = [_response(chat, prompts[name], to_ids(text), ends) for name, text in zip(ids, completions, strict=True)]
        return _scores(job, Items.of(responses), score, meter)

    return reward_model


def _response(chat: ChatFormat, prompt: Prompt, ids: list[int], ends: frozenset[int]) -> Response:
    """What was sampled up to its end, as `models.generate` gives it."""
    length = next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))
    return response_of(chat.tokenizer, prompt, ids[:length], ends) if ids else Response(prompt, "", 0, "length", ())


def _scores(job: TRLTraining, items: Items, score: Score, meter: Meter) -> list[float]:
    def single(model: Any, spec: Any) -> list[float]:
        computed = score(ScoringJob(model, items, spec, items.cut or {}))
        meter.add(computed.counts)
        return computed.value

    spec = job.reward
    if not isinstance(spec, EnsembleReward):
        return single(job.reward_model, spec)
    assert isinstance(job.reward_model, EnsembleRewardModel)
    parts = zip(job.reward_model.members, spec.of, job.scales, strict=True)
    scaled = torch.tensor([[(value - mean) / sd for value in single(*part)] for *part, (mean, sd) in parts], dtype=torch.float64)
    return (scaled.mean(dim=0) if spec.combine == "mean" else scaled.min(dim=0).values).tolist()
