"""The default engine: transformers models in this process, which stay loaded from one verb to the next."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from apo_bench.config.schema import NeuralReward, NgramReward, PolicyModel
from apo_bench.engines import launch
from apo_bench.engines.model_cache import Loaded, ResidentModels, default_limit_bytes, stored_bytes
from apo_bench.engines.protocol import KLJob, SamplingJob, ScoringJob
from apo_bench.errors import InputError
from apo_bench.hashing import code_hash
from apo_bench.models import device, flops, generate, kl_divergence, ngram
from apo_bench.models import policy as policies
from apo_bench.models import reward as rewards
from apo_bench.models.precision import resolved
from apo_bench.provenance import versions
from apo_bench.store import Computed, key_of, scratch_of
from apo_bench.training import encoding
from apo_bench.training.batches import processes_share
from apo_bench.training.checkpoints import Checkpoints
from apo_bench.training.trainer import TrainResult, fit
from apo_bench.training.training_spec import PolicyTraining, RewardModelTraining
from apo_bench.types import BestOfNPolicy, Policy, Response

GIB = 2**30
P = ParamSpec("P")
T = TypeVar("T")


def _with_peak(verb: Callable[P, Computed[T]]) -> Callable[P, Computed[T]]:
    """The verb, with the largest device memory that it took, in this process or in the main one of those that it launched."""

    @wraps(verb)
    def measured(*arguments: P.args, **named: P.kwargs) -> Computed[T]:
        device.reset_peak()
        computed = verb(*arguments, **named)
        return replace(computed, peak_device_bytes=max(computed.peak_device_bytes, device.peak_bytes()))

    return measured


class TransformersEngine:
    """Models of one run folder. `memory_gb` limits what stays loaded (GiB); `launch` is an accelerate configuration file."""

    def __init__(
        self, run_folder: Path, memory_gb: float | None = None, launch_config: str | None = None, checkpoint_s: float = 600.0
    ) -> None:
        self.run_folder, self.launch_config, self.checkpoint_s = run_folder, launch_config, checkpoint_s
        device.use_full_fp32()
        self.models = ResidentModels(default_limit_bytes() if memory_gb is None else memory_gb * GIB)

    @cached_property
    def hardware(self) -> dict[str, Any]:
        return {"threads": torch.get_num_threads(), **device.hardware(), **launch.configuration(self.launch_config)}

    @cached_property
    def identity(self) -> dict[str, Any]:
        return {"name": "transformers", "code": code_hash(__name__), "versions": versions(), "hardware": self.hardware}

    @property
    def device(self) -> str:
        return self.hardware["device"]

    # --- policies --------------------------------------------------------------------------------------------------------

    @_with_peak
    def create_policy(self, model: PolicyModel, vocabulary: Sequence[str] | None, into: Path) -> Computed[None]:
        if model.path is not None:
            loaded = policies.load_policy(model.path, model.trust_remote_code)
        elif vocabulary is None:
            raise InputError("models.policy.architecture: the task has no vocabulary to build a tokenizer from; give a path")
        else:
            loaded = policies.new_policy(model.architecture or {}, vocabulary, model.seed)
        self._save("policy", resolved(model, self.device), *loaded, into)
        return Computed(None, {})

    @_with_peak
    def generate(self, job: SamplingJob) -> Computed[tuple[Response, ...]]:
        responses, counts = generate.generate(*self._policy(job.policy, job.model), job.prompts, job.n, job.sampling, job.model, job.seed)
        return Computed(tuple(responses), counts)

    @_with_peak
    def kl(self, job: KLJob) -> Computed[list[float]]:
        (policy, tokenizer), (reference, _) = self._policy(job.policy, job.model), self._policy(job.reference, job.model)
        return Computed(kl_divergence.kl(policy, reference, tokenizer, job.responses, job.model, job.batch_size), {})

    @_with_peak
    def train_policy(self, job: PolicyTraining, into: Path) -> Computed[None]:
        if self.launch_config is not None:
            return launch.launch(job, self, into)
        settings, recipe = resolved(job.model, self.device), resolved(job.recipe, self.device)
        if settings.quantize and not recipe.lora:
            raise InputError(f"models.policy.quantize: {settings.quantize} goes with adapters, and a recipe has no lora")
        model, tokenizer = self.models.copy(*self._stored("policy", job.policy, settings, trains=not recipe.lora))
        items = encoding.encode_items(tokenizer, job.data, job.loss, job.model)
        cost, lengths = flops.training(model, job.recipe), [len(ids) for item in items for ids, _ in item["sides"]]
        spent = 0.0
        if job.loss.needs_reference:
            spent += cost.size.forward(lengths)
            self._add_reference(job, tokenizer, items)
        collate = partial(encoding.collate, pad_id=tokenizer.pad_token_id)
        terms = partial(encoding.loss_terms, loss=job.loss)
        model, result = fit(model, items, collate, terms, recipe, job.seed, self._checkpoints(into))
        self._keep("policy", settings, model, tokenizer, result, into)
        spent += cost.flops(result.tokens, lengths)
        return Computed(None, {"policy_updates": result.updates, "policy_train_tokens": result.tokens, "flops": spent})

    def _add_reference(self, job: PolicyTraining, tokenizer: Any, items: list[dict[str, Any]]) -> None:
        """The reference's log-probabilities, read once before training, beside each item.

        Of several processes each reads its share of the batches, which are those that one process would form, and all gather the rest.
        """
        assert job.reference is not None
        reference, _ = self._policy(job.reference, job.model)
        batch_size, processes = job.recipe.micro_batch_size or job.recipe.batch_size, PartialState()
        places = processes_share(items, batch_size, processes.process_index, processes.num_processes)
        all_logps = encoding.response_logps(reference, [items[place] for place in places], tokenizer.pad_token_id, batch_size)
        for place, logps in gather_object([*zip(places, all_logps, strict=True)]):
            items[place]["reference_logps"] = logps

    # --- reward models ---------------------------------------------------------------------------------------------------

    @_with_peak
    def score(self, job: ScoringJob) -> Computed[list[float]]:
        folder = self._folder("reward_models", job.reward_model.key)
        if isinstance(job.model, NgramReward):
            return Computed(ngram.NgramRewardModel.load(folder).score(job.items), {"scored_responses": len(job.items)})
        settings = resolved(job.model, self.device)
        load = partial(rewards.load_reward_model, folder, settings.trust_remote_code, **_read_as(settings))
        key = _key("reward model", job.reward_model.key, settings.dtype)
        scores, counts = rewards.score(*self.models.get(key, load, stored_bytes(folder, settings.dtype)), job.items, settings)
        return Computed(scores, counts)

    @_with_peak
    def train_reward_model(self, job: RewardModelTraining, into: Path) -> Computed[None]:
        if isinstance(job.model, NgramReward):
            return Computed(None, ngram.train(job.pairs, job.loss, job.model, job.seed, into))
        if self.launch_config is not None:
            return launch.launch(job, self, into)
        settings = resolved(job.model, self.device)
        model, tokenizer = self._untrained_reward_model(job, settings)
        items = rewards.pair_items(model, tokenizer, job.pairs, job.model)
        cost, lengths = flops.training(model, job.model.training), [len(ids) for item in items for ids in item["sides"]]
        collate = partial(rewards.collate, pad_id=tokenizer.pad_token_id)
        terms = partial(rewards.loss_terms, loss=job.loss)
        model, result = fit(model, items, collate, terms, settings.training, job.seed, self._checkpoints(into))
        self._keep("reward model", settings, model, tokenizer, result, into)
        counts = {"rm_updates": result.updates, "rm_train_tokens": result.tokens, "flops": cost.flops(result.tokens, lengths)}
        return Computed(None, counts)

    # --- inside ----------------------------------------------------------------------------------------------------------

    def _untrained_reward_model(self, job: RewardModelTraining, model: NeuralReward) -> Loaded:
        """A copy to train: of a trained reward model, or of a body with a new head that the seed draws."""
        if job.start is not None:
            folder: str | Path | None = self._folder("reward_models", job.start.key)
        else:
            folder = self._folder("policies", job.body.key) if job.body else model.path
        origin = str(folder or json.dumps(model.architecture, sort_keys=True))
        key = ("untrained reward model", origin, job.axes if model.axis_heads else (), job.seed)
        load = partial(rewards.new_reward_model, model, folder, job.axes, job.vocabulary, job.seed)
        return self.models.copy(key, load, stored_bytes(folder) if folder else 0.0)

    def _policy(self, policy: Policy, model: PolicyModel) -> Loaded:
        return self.models.get(*self._stored("policy", policy, model))

    def _stored(self, kind: str, policy: Policy, model: PolicyModel, trains: bool = False) -> tuple[Any, Any, float]:
        """Key, loader and size of a policy in the run's store: as it is read, or, where all of it is trained, in fp32."""
        if isinstance(policy, BestOfNPolicy):
            raise InputError("lab: a best-of-n policy has no weights to train, or to compare with")
        folder, settings = self._folder("policies", policy.key), resolved(model, self.device)
        options = {**_read_as(settings), "quantize": settings.quantize} if not trains else _read_as(settings, "float32")
        load = partial(policies.load_policy, folder, model.trust_remote_code, shards=trains, **options)
        return _key(kind, policy.key, options["dtype"]), load, stored_bytes(folder, options["dtype"])

    def _folder(self, kind: str, key: str) -> Path:
        return self.run_folder / "store" / kind / key

    def _checkpoints(self, into: Path) -> Checkpoints:
        return Checkpoints(scratch_of(into), self.checkpoint_s)

    def _keep(self, kind: str, settings: PolicyModel | NeuralReward, model: Any, tokenizer: Any, result: TrainResult, into: Path) -> None:
        """Save the trained model with the losses of its updates; of several processes the main one does."""
        if PartialState().is_main_process:
            self._save(kind, settings, model, tokenizer, into)
            (into / "training_losses.json").write_text(json.dumps(result.losses))

    def _save(self, kind: str, settings: PolicyModel | NeuralReward, model: Any, tokenizer: Any, into: Path) -> None:
        """Save a model, and keep it where it is read as it is in memory: one that is rounded on the way is loaded when it is read."""
        policies.save_model(model, tokenizer, into, settings.stored_dtype)
        if settings.stored_dtype == settings.dtype == "float32" and settings.attention == "sdpa":
            self.models.put(_key(kind, key_of(into), settings.dtype), model, tokenizer)


def _key(kind: str, key: str, dtype: str) -> tuple[str, ...]:
    """What names a model in memory: one can be there in fp32, to be trained, and in fewer bits, to be read."""
    return (kind, key) if dtype == "float32" else (kind, key, dtype)


def _read_as(settings: PolicyModel | NeuralReward, dtype: str | None = None) -> dict[str, str]:
    """What a loader is given, by resolved settings."""
    return {"dtype": dtype or settings.dtype, "attention": settings.attention}
