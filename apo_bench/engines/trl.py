"""Training with a trainer of TRL: it reads our tokens, is metered from outside, and ends with a policy like any other."""

import contextlib
import dataclasses
import importlib
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import numpy as np
from datasets import Dataset
from transformers import GenerationConfig
from transformers.trainer_callback import PrinterCallback, TrainerCallback

from apo_bench.engines.protocol import ScoringJob
from apo_bench.engines.reward_scores import scorer
from apo_bench.engines.stored_models import StoredModels
from apo_bench.engines.trl_meter import Meter
from apo_bench.errors import BudgetExceeded, InputError
from apo_bench.models import precision
from apo_bench.models.adapter_folder import is_adapter
from apo_bench.models.generate import response_of
from apo_bench.models.token_text import UNREAD, TokenText, to_ids, to_text
from apo_bench.models.tokenize import ChatFormat
from apo_bench.store import Computed
from apo_bench.training.data import sides_of
from apo_bench.training.online import STEPS, Score, StepRow
from apo_bench.training.trainer import DIVERGED, argument_values, check_finite, in_one_process, prepare
from apo_bench.training.training_spec import TRLItem, TRLTraining
from apo_bench.training.trl_trainers import check_known, trl_trainer
from apo_bench.types import Demonstration, Pair, Prompt, Response

PROMPT_ID = "prompt_id"


def train(job: TRLTraining, models: StoredModels, score: Callable[[ScoringJob], Computed[list[float]]], into: Path) -> Computed[None]:
    """The policy that the job's trainer makes, in the folder `into`, and the counts spent; `score` is the engine's verb.

    Counts that could not be taken are NaN. Raises InputError, one line, for arguments and data that the trainer refuses, and where the fit
    diverges, and BudgetExceeded within a step of overspending.
    """
    recipe = precision.resolved(job.recipe, models.device)
    if (quantize := precision.resolved(job.model, models.device).quantize) and not recipe.lora:
        raise InputError(f"models.policy.quantize: {quantize} goes with adapters, and a recipe has no lora")
    job = dataclasses.replace(job, recipe=recipe)
    kind = _trainer_class(job.trainer)
    model, tokenizer = models.policy_to_train(job)
    prepare(model, recipe)
    chat = ChatFormat.of(tokenizer, job.model)
    own = model.generation_config.eos_token_id
    ends = sorted({chat.end_id, tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None})
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    folder = models.folder("policies", job.policy)
    model.config._name_or_path = str(folder)  # where trainers read their reference
    meter = Meter(model, recipe, frozenset(ends), tokenizer.pad_token_id)
    watch = _Watch(job, meter)
    with TemporaryDirectory() as scratch, _quiet():
        if recipe.lora is None and is_adapter(folder):  # merged weights, which lie nowhere else
            model.config._name_or_path = scratch
            model.save_pretrained(scratch)
        arguments = _arguments(kind, job, tokenizer, Path(scratch))
        extra: dict[str, Any] = {}
        if job.reward_model is not None:
            scores = scorer(job.reward_model, job.reward, job.scales, score)
            extra["reward_funcs"] = [_reward(job, chat, frozenset(ends), scores, meter)]
        try:
            trainer = kind(
                model=model,
                args=arguments,
                train_dataset=Dataset.from_list([*rows(job.data, chat, job)]),
                processing_class=TokenText(len(tokenizer), tokenizer.pad_token_id, chat.end_id),
                callbacks=[watch],
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
    trained, history = trainer.model.state_dict(), [row for row in trainer.state.log_history if "loss" in row]
    del trainer
    clean, tokenizer = models.policy_to_train(job)  # without whatever the trainer put on the model
    clean.load_state_dict({name: trained[name] for name in clean.state_dict()})
    check_finite(clean, f"policy: after update {job.updates}, the last")
    models.keep_policy((clean, tokenizer), job, into)
    (into / "training_losses.json").write_text(json.dumps([float(row["loss"]) for row in history]))
    if job.reward_model is not None:
        (into / STEPS).write_text("".join(json.dumps(row) + "\n" for row in watch.steps(history)), encoding="utf-8")
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


def _arguments(kind: Any, job: TRLTraining, tokenizer: Any, scratch: Path) -> Any:
    """The trainer's configuration: what the experiment decides, and the arm's own arguments."""
    config, recipe, sampling = _config_class(kind), job.recipe, job.model.sampling
    names = {field.name for field in dataclasses.fields(config) if field.init}
    check_known(job.args, names, config.__name__)
    micro = recipe.items_per_pass
    decided = argument_values(recipe, job.updates, job.seed, scratch)
    decided |= {"per_device_train_batch_size": micro, "gradient_accumulation_steps": recipe.batch_size // micro}
    decided |= {"gradient_checkpointing": recipe.gradient_checkpointing is True, "trust_remote_code": job.model.trust_remote_code}
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
    return in_one_process(arguments)


class _Watch(TrainerCallback):
    """Ends a fit at the first update that is not finite, and after the step in which more was spent than is left."""

    def __init__(self, job: TRLTraining, meter: Meter) -> None:
        self.job, self.meter = job, meter
        self.spent: list[tuple[Mapping[str, float], list[float]]] = []  # after each update, with the scores so far

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        counts = self.meter.counts(state.global_step)
        self.spent.append((counts, [*self.meter.scores]))
        for unit, spent in counts.items():
            if spent > self.job.left.get(unit, math.inf):
                raise BudgetExceeded(self.job.arm, unit, spent, self.job.left[unit])

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        if not math.isfinite(loss := float((logs or {}).get("loss", 0.0))):
            raise InputError(f"policy: the loss of update {state.global_step} of {state.max_steps} is {loss}; {DIVERGED}")

    def steps(self, history: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Rows as `online.StepRow` has them, an update each; None: the trainer does not tell, or means something else by the name."""
        before: Mapping[str, float] = {}
        scored = 0
        for number, (row, (after, scores)) in enumerate(zip(history, self.spent, strict=True), start=1):
            new = {name: after[name] - before.get(name, 0) for name in after}
            samples, own = int(new.get("sampled_responses", 0)), scores[scored:]
            known = {
                "step": number,
                "updates": 1,
                "samples": samples,
                "reward": float(np.mean(own)) if own else None,
                "reward_sd": float(np.std(own)) if own else None,
                "kl": row.get("objective/kl"),
                "entropy": row.get("entropy"),
                "length": new["sampled_tokens"] / samples if samples else None,
                "cut_share": new["cut_responses"] / samples if samples else None,
                "clip_share": row.get("clip_ratio/region_mean"),
                "gradient_norm": row.get("grad_norm"),
                "loss": row["loss"],
                "learning_rate": row.get("learning_rate"),
                "sampled_tokens": int(new.get("sampled_tokens", 0)),
                "train_tokens": new["policy_train_tokens"],
            }
            yield {field.name: known.get(field.name) for field in dataclasses.fields(StepRow)}
            before, scored = after, len(scores)


def _reward(job: TRLTraining, chat: ChatFormat, ends: frozenset[int], score: Score, meter: Meter) -> Callable[..., list[float]]:
    """The arm's reward model as TRL's reward function."""
    prompts = {prompt.id: prompt for prompt in job.data if isinstance(prompt, Prompt)}

    def reward_model(completions: Sequence[str], **columns: Any) -> list[float]:
        ids = columns[PROMPT_ID]
        responses = [_response(chat, prompts[name], to_ids(text), ends) for name, text in zip(ids, completions, strict=True)]
        scores, counts = score(responses)
        meter.add(counts)
        meter.scores += scores
        return list(scores)

    return reward_model


def _response(chat: ChatFormat, prompt: Prompt, ids: list[int], ends: frozenset[int]) -> Response:
    """What was sampled up to its end, as `models.generate` gives it."""
    length = next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))
    return response_of(chat.tokenizer, prompt, ids[:length], ends) if ids else Response(prompt, "", 0, "length", ())
