"""TRL's trainers as the Lab knows them: what each reads and samples, and which arguments the experiment decides. No torch, no TRL."""

import difflib
import importlib.util
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from itertools import cycle, islice
from typing import Any, Literal

from apo_bench.config.schema import Recipe
from apo_bench.errors import InputError, NotHere
from apo_bench.training.data import KINDS
from apo_bench.training.training_spec import OnlineTraining, PolicyTraining, TRLItem, TRLTraining
from apo_bench.types import Prompt

TRLData = Literal["demonstrations", "pairs", "unpaired", "prompts"]
MISSING = "trl is not installed: pip install 'apo-bench[trl]'"


@dataclass(frozen=True)
class TRLTrainer:
    """A trainer. `group`: name and TRL's default of the responses it samples to a prompt, where an update's items are responses.

    samples: responses that it samples for an item of an update, 0: none. reuse: the argument that says in how many updates a response
    is used. beta: TRL's default of that argument, at 0 of which no reference is read; None: it never reads one.
    """

    reads: TRLData
    beta: float | None
    group: tuple[str, int] | None = None
    samples: int = 0
    reuse: str | None = None

    def items(self, data: int, args: Mapping[str, Any]) -> int:
        """Items of an epoch over so many rows of data."""
        per_row = args.get(*self.group) if self.group else 1
        return data * int(per_row or 1) * self.reuses(args)

    def sampled(self, updates: int, recipe: Recipe, args: Mapping[str, Any]) -> int:
        """Responses that so many updates sample."""
        return self.steps(updates, recipe, args) * self.at_a_time(recipe, args) * self.samples

    def steps(self, updates: int, recipe: Recipe, args: Mapping[str, Any]) -> int:
        """How many times it samples in so many updates."""
        return -(-updates * recipe.batch_size // (self.at_a_time(recipe, args) * self.reuses(args)))

    def at_a_time(self, recipe: Recipe, args: Mapping[str, Any]) -> int:
        """Items that it samples for at a time: an update's, or as many as the arguments say."""
        if not self.group:
            return recipe.batch_size
        passes = args.get("steps_per_generation") or recipe.batch_size // recipe.items_per_pass
        return int(args.get("generation_batch_size") or passes * recipe.items_per_pass)

    def prompts_at_a_time(self, recipe: Recipe, args: Mapping[str, Any]) -> int:
        """Prompts that it samples for at a time, where it samples."""
        items = self.at_a_time(recipe, args)
        return max(1, items // int(args.get(*self.group) or 1)) if self.group else items

    def reuses(self, args: Mapping[str, Any]) -> int:
        """Updates in which a response is used."""
        return int(args.get(self.reuse, 1) or 1) if self.reuse else 1


_DPO, _NO_REFERENCE = TRLTrainer("pairs", 0.1), TRLTrainer("pairs", None)
_GRPO = TRLTrainer("prompts", 0.0, ("num_generations", 8), 1, "num_iterations")
TRAINERS: Mapping[str, TRLTrainer] = {
    "trl.SFTTrainer": TRLTrainer("demonstrations", None),
    "trl.DPOTrainer": _DPO,
    "trl.KTOTrainer": TRLTrainer("unpaired", 0.1),
    "trl.GRPOTrainer": _GRPO,
    "trl.RLOOTrainer": TRLTrainer("prompts", 0.05, ("num_generations", 2), 1, "num_iterations"),
    "trl.experimental.bema_for_ref_model.DPOTrainer": _DPO,
    "trl.experimental.cpo.CPOTrainer": _NO_REFERENCE,
    "trl.experimental.gmpo.GMPOTrainer": _GRPO,
    "trl.experimental.online_dpo.OnlineDPOTrainer": TRLTrainer("prompts", 0.1, samples=2),
    "trl.experimental.orpo.ORPOTrainer": _NO_REFERENCE,
}
_TEACHER = "it needs a teacher, a model that no budget pays for"
_SERVER = "it samples from a vLLM server, where nothing is metered"
_CONTEXT = "it reads privileged context beside a prompt, which no split has"
REFUSED: Mapping[str, str] = {
    "trl.RewardTrainer": "it trains a reward model, and lab.train_reward_model does that",
    "trl.DistillationTrainer": _TEACHER,
    "trl.experimental.a2po.A2POTrainer": "it needs rewards of 0 and 1, and a reward model's are any number",
    "trl.experimental.async_distillation.AsyncDistillationTrainer": _TEACHER,
    "trl.experimental.async_grpo.AsyncGRPOTrainer": _SERVER,
    "trl.experimental.gkd.GKDTrainer": _TEACHER,
    "trl.experimental.gold.GOLDTrainer": _TEACHER,
    "trl.experimental.iw_opd.IWOPDTrainer": _TEACHER,
    "trl.experimental.sdft.SDFTTrainer": _CONTEXT,
    "trl.experimental.sdpo.SDPOTrainer": _CONTEXT,
    "trl.experimental.server_distillation.ServerDistillationTrainer": _TEACHER,
    "trl.experimental.tpo.TPOTrainer": "it reads triples of a golden, a chosen and a rejected response, which no split has",
}
_RECIPE, _SAMPLING = "models.policy.training", "models.policy.sampling"
_DECIDERS = {  # what decides, and the arguments that are its to decide
    "seeds": "seed data_seed full_determinism",
    f"{_RECIPE}.learning_rate, or learning_rate of the method": "learning_rate",
    f"{_RECIPE}.epochs, or epochs of the method": "num_train_epochs max_steps",
    f"{_RECIPE}.batch_size and micro_batch_size": "per_device_train_batch_size auto_find_batch_size gradient_accumulation_steps",
    f"{_RECIPE}.schedule": "lr_scheduler_type",
    f"{_RECIPE}.warmup_steps": "warmup_steps warmup_ratio",
    f"{_RECIPE}.weight_decay": "weight_decay",
    f"{_RECIPE}.max_grad_norm": "max_grad_norm",
    f"{_RECIPE}.optimizer": "optim optim_args",
    f"{_RECIPE}.precision": "bf16 fp16 tf32 bf16_full_eval fp16_full_eval",
    f"{_RECIPE}.gradient_checkpointing": "gradient_checkpointing activation_checkpointing",
    _SAMPLING: "temperature top_p top_k repetition_penalty",
    f"{_SAMPLING}.max_new_tokens": "max_completion_length max_new_tokens",
    "models.policy.max_prompt_tokens and max_response_tokens": "max_length max_prompt_length truncation_mode",
    "models.policy.chat_template_kwargs": "chat_template_kwargs chat_template_path",
    "models.policy.trust_remote_code": "trust_remote_code",
    "it trains on the tokens that the policy reads": "eos_token pad_token packing padding_free dataset_kwargs dataset_text_field",
    "nothing but the trained policy is kept": (
        "output_dir save_strategy save_steps save_total_limit push_to_hub hub_model_id load_best_model_at_end resume_from_checkpoint "
        "log_completions log_completions_hub_repo"
    ),
    "the engine logs every update": "report_to run_name logging_steps logging_strategy logging_dir disable_tqdm",
    "evaluation, out of a method's sight": "do_eval eval_strategy eval_steps eval_on_start num_generations_eval",
    "the policy is loaded, placed and trained in this process": "deepspeed fsdp fsdp_config use_cpu model_init_kwargs accelerator_config",
    "responses are sampled in this process, where they are metered": "use_vllm use_transformers_continuous_batching",
    "rewards and references are read where they are metered": "precompute_ref_log_probs reward_weights reward_model_path judge",
}
DECIDED: Mapping[str, str] = {name: decider for decider, names in _DECIDERS.items() for name in names.split()}


def trl_trainer(name: str, args: Mapping[str, Any] | None = None) -> TRLTrainer:
    """The trainer of a name such as `trl.GRPOTrainer`.

    Raises InputError, one line, for any that cannot be an arm, and for those of the arguments that the experiment decides.
    """
    if decided := next((name for name in args or {} if name in DECIDED), None):
        raise InputError(f"args.{decided}: not an arm's to decide: {DECIDED[decided]}")
    if name in TRAINERS:
        return TRAINERS[name]
    if name in REFUSED:
        raise InputError(f"trainer: {name}: {REFUSED[name]}")
    near = difflib.get_close_matches(name, TRAINERS, 1, 0.0)[0]
    raise InputError(f"trainer: no trainer {name!r}, did you mean {near}? There are {', '.join(TRAINERS)}")


@dataclass(frozen=True)
class OwnLoss:
    """What a plan reads of a loss or an online algorithm."""

    reads: str
    needs_reference: bool


def own_training(job: TRLTraining) -> PolicyTraining | OnlineTraining:
    """Our own fit of the same data, to estimate by; as many responses are sampled at a time, and each is used as often."""
    form, args, recipe, data = trl_trainer(job.trainer), job.args, job.recipe, job.data
    loss = OwnLoss(form.reads, form.beta is not None and bool(args.get("beta", form.beta)))
    reference = job.policy if loss.needs_reference else None
    if job.reward_model is None:
        return PolicyTraining(job.policy, data, loss, reference, job.model, recipe, job.seed, job.token_ids)  # pyright: ignore
    n, steps = int(args.get(*form.group)) if form.group else form.samples, form.steps(job.updates, recipe, args)
    loss = replace(loss, reads="rollouts" if form.group else "pairs")
    prompts: Any = tuple(islice(cycle(data), steps * form.prompts_at_a_time(recipe, args)))
    recipe = recipe.model_copy(update={"epochs": float(form.reuses(args))})
    return OnlineTraining(
        job.policy, job.reward_model, loss, reference, prompts, steps, n, job.model, job.reward, recipe, job.model.sampling, job.seed,
    )  # fmt: skip


def version() -> str:
    """TRL's version, for keys. Raises NotHere where it is not installed."""
    if importlib.util.find_spec("trl") is None:
        raise NotHere(MISSING)
    return metadata.version("trl")


def check_known(args: Mapping[str, Any], names: Collection[str], config: str) -> None:
    """Raises InputError for an argument that the trainer's configuration does not have."""
    if unknown := next((name for name in args if name not in names), None):
        near = difflib.get_close_matches(unknown, set(names) - set(DECIDED), 1, 0.0)[0]
        raise InputError(f"args.{unknown}: {config} has no such argument; did you mean {near}?")


def check_data(trainer: str, data: Sequence[TRLItem], recipe: Recipe, args: Mapping[str, Any]) -> None:
    """Raises InputError where there are no data, others than the trainer reads, or fewer prompts than it samples for at a time."""
    form = trl_trainer(trainer)
    reads = form.reads
    if not data:
        raise InputError(f"lab.train_with_trl: {trainer} got no {reads} to train on")
    kinds = ("prompts" if isinstance(item, Prompt) else KINDS[type(item)] for item in data)
    if unlike := next((kind for kind in kinds if kind != reads), None):
        raise InputError(f"lab.train_with_trl: {trainer} reads {reads}, got {unlike}")
    if form.group and len(data) < (needed := form.prompts_at_a_time(recipe, args)):
        raise InputError(f"lab.train_with_trl: {trainer} samples for {needed} prompts at a time, got {len(data)}")
