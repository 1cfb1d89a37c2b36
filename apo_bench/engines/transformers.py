"""The default engine: transformers models in this process, which stay loaded from one verb to the next."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from apo_bench.clients.response_scores import ResponseScorer, score_responses
from apo_bench.config.schema import (
    EnsembleReward,
    FinishedReward,
    JudgeReward,
    NgramReward,
    PolicyModel,
    Recipe,
    Sampling,
    SamplingEngine,
)
from apo_bench.engines import data_parallel, launch, online, vllm_sampler
from apo_bench.engines.lm_eval_items import item_scores
from apo_bench.engines.model_cache import default_limit_bytes
from apo_bench.engines.protocol import CapabilityJob, KLJob, SamplingJob, ScoringJob
from apo_bench.engines.stored_models import StoredModels
from apo_bench.errors import InputError
from apo_bench.hashing import code_hash
from apo_bench.models import device, flops, kl_divergence, ngram
from apo_bench.models import policy as policies
from apo_bench.models import reward as rewards
from apo_bench.models.finished_reward import MARKER
from apo_bench.models.generate import Generation
from apo_bench.models.model_folder import check_context
from apo_bench.models.output_layer import is_recognised
from apo_bench.models.precision import resolved
from apo_bench.provenance import versions
from apo_bench.store import Computed, key_of, scratch_of, write_json
from apo_bench.training import encoding
from apo_bench.training.batches import processes_share
from apo_bench.training.checkpoints import Checkpoints
from apo_bench.training.data import couples_items
from apo_bench.training.trainer import TrainResult, fit
from apo_bench.training.training_spec import OnlineTraining, PolicyTraining, RewardModelTraining, TRLTraining
from apo_bench.types import FinishedPolicy, Policy, Response

GIB = 2**30
REPLIES = "replies"  # folder of a run: what judges that score answered
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
        limit = default_limit_bytes() if memory_gb is None else memory_gb * GIB
        self.models = StoredModels(run_folder, limit, device.own_device().type)
        self._samplers: dict[SamplingEngine, vllm_sampler.VllmSampler] = {}

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
            longest = model.max_prompt_tokens + max(model.max_response_tokens, model.sampling.max_new_tokens)
            check_context(loaded[0].config, f"{model.path}: max_prompt_tokens, with the longest response", longest)
        elif vocabulary is None:
            raise InputError("models.policy.architecture: the task has no vocabulary to build a tokenizer from; give a path")
        else:
            loaded = policies.new_policy(model.architecture or {}, vocabulary, model.seed)
        self.models.keep_whole("policy", loaded, model, into)
        return Computed(None, {})

    @_with_peak
    def keep_in_place(self, policy: FinishedPolicy, into: Path) -> Computed[None]:
        settings: PolicyModel = policy.settings
        model, _ = self.models.policy(replace(policy, key=key_of(into)), settings)  # one that cannot be read stops the run here
        longest = settings.max_prompt_tokens + max(settings.max_response_tokens, settings.sampling.max_new_tokens)
        check_context(model.config, f"{policy.path}: max_prompt_tokens, with the longest response", longest)
        write_json(into / MARKER, {"path": policy.path, "base": policy.base.path if policy.base else None})
        return Computed(None, {})

    @_with_peak
    def count_tokens(self, policy: Policy, texts: Sequence[str], model: PolicyModel) -> Computed[list[float]]:
        _, tokenizer = self.models.policy(policy, model)
        return Computed([float(len(ids) + 1) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]], {})

    @_with_peak
    def generate(self, job: SamplingJob) -> Computed[tuple[Response, ...]]:
        generation = self.generation(job)
        if job.sampling.engine is not None:
            return Computed(*self._sampler(job.sampling.engine).generate(job, generation))
        sampled, peak = data_parallel.sample(generation, job, self.run_folder, self.hardware, self.launch_config)
        responses, counts = generation.joined(sampled)
        return Computed(tuple(responses), counts, peak_device_bytes=peak)

    def generation(self, job: SamplingJob) -> Generation:
        """The job in batches, with its policy loaded."""
        return Generation.of(*self.models.policy(job.policy, job.model), job.prompts, job.n, job.sampling, job.model, job.seed)

    def sampler(self, sampling: Sampling, model: PolicyModel) -> Mapping[str, Any] | None:
        return None if sampling.engine is None else vllm_sampler.identity(sampling.engine, resolved(model, self.device))

    @_with_peak
    def kl(self, job: KLJob) -> Computed[list[float]]:
        own = job.policy_model or job.model
        (policy, tokenizer), (reference, other) = self.models.policy(job.policy, own), self.models.policy(job.reference, job.model)
        if not kl_divergence.is_known(policy, reference, tokenizer, other):
            return Computed([math.nan] * len(job.responses), {})
        beside = None if job.policy_model is None else (other, job.model)
        return Computed(kl_divergence.kl(policy, reference, tokenizer, job.responses, own, job.batch_size, beside), {})

    @_with_peak
    def run_capabilities(self, job: CapabilityJob) -> Computed[list[dict[str, Any]]]:
        return item_scores(*self.models.policy(job.policy, job.model), job)

    @_with_peak
    def train_policy(self, job: PolicyTraining, into: Path) -> Computed[None]:
        if self.launch_config is not None:
            return launch.launch(job, self, into)
        if couples_items(job.loss) and (processes := PartialState().num_processes) > 1:
            raise InputError(f"executor.launch: {type(job.loss).__name__} reads an update whole, and {processes} processes would split it")
        recipe = self._recipe(job)
        model, tokenizer, items, spent = self._policy_to_train(job)
        cost, sides = flops.training(model, recipe), [side for item in items for side in item["sides"]]
        lengths, outputs = [len(ids) for ids, _ in sides], [sum(mask) for _, mask in sides]
        recognised = is_recognised(model)
        collate = partial(encoding.collate, pad_id=tokenizer.pad_token_id)
        terms = partial(encoding.loss_terms, loss=job.loss, recognised=recognised)
        model, result = fit(model, items, collate, terms, recipe, job.seed, self._checkpoints(into), "policy")
        if PartialState().is_main_process:
            self.models.keep_policy((model, tokenizer), job, into)
            _keep_losses(result, into)
        sequences = min(len(items), recipe.items_per_pass) * len(sides) // len(items)
        spent += cost.flops(result.tokens, lengths, outputs if recognised else None, sequences)
        return Computed(None, {"policy_updates": result.updates, "policy_train_tokens": result.tokens, "flops": spent})

    @_with_peak
    def train_online(self, job: OnlineTraining, into: Path, report: Callable[[str], None]) -> Computed[None]:
        if self.launch_config is not None:
            raise InputError(f"executor.launch: {self.launch_config}: online training runs in one process; leave launch out")
        if job.sampling.engine is not None:
            raise InputError("sampling.engine: online training samples from weights that change; give it sampling without an engine")
        resident = replace(job, model=resolved(job.model, self.device), recipe=self._recipe(job))
        return online.train_online(resident, self.models, self._scored, self._checkpoints(into), into, report)

    def _recipe(self, job: PolicyTraining | OnlineTraining) -> Recipe:
        """Resolved. Raises InputError where it would train weights that are quantized."""
        settings, recipe = resolved(job.model, self.device), resolved(job.recipe, self.device)
        if settings.quantize and not recipe.lora:
            raise InputError(f"models.policy.quantize: {settings.quantize} goes with adapters, and a recipe has no lora")
        return recipe

    def _policy_to_train(self, job: PolicyTraining) -> tuple[Any, Any, list[dict[str, Any]], float]:
        """(model, tokenizer, encoded items, FLOPs). A reference's log-probabilities are read first, beside each item, and it is freed.

        Of several processes each reads its share of the batches, which are those that one process would form, and all gather the rest.
        """
        if not job.loss.needs_reference:
            model, tokenizer = self.models.policy_to_train(job)
            return model, tokenizer, encoding.encode_items(tokenizer, job.data, job.loss, job.model, job.token_ids), 0.0
        model, tokenizer = self.models.reference(job)
        items = encoding.encode_items(tokenizer, job.data, job.loss, job.model, job.token_ids)
        batch_size, processes = job.recipe.items_per_pass, PartialState()
        places = processes_share(items, batch_size, processes.process_index, processes.num_processes)
        all_logps = encoding.response_logps(model, [items[place] for place in places], tokenizer.pad_token_id, batch_size)
        for place, logps in gather_object([*zip(places, all_logps, strict=True)]):
            items[place]["reference_logps"] = logps
        sides = [side for item in items for side in item["sides"]]
        spent = flops.size(model).forward([len(ids) for ids, _ in sides], [sum(mask) for _, mask in sides])
        if job.recipe.lora is not None or job.reference != job.policy or model.dtype != torch.float32:
            del model  # before the policy is loaded
            model, tokenizer = self.models.policy_to_train(job)
        return model, tokenizer, items, spent

    # --- reward models ---------------------------------------------------------------------------------------------------

    @_with_peak
    def score(self, job: ScoringJob) -> Computed[list[float]]:
        return self._scored(job)

    def _scored(self, job: ScoringJob) -> Computed[list[float]]:
        if isinstance(job.model, NgramReward):
            model = ngram.NgramRewardModel.load(self.models.folder("reward_models", job.reward_model))
            return Computed(model.score(job.items), {"scored_responses": len(job.items)})
        if isinstance(job.model, JudgeReward):
            return Computed(*score_responses(ResponseScorer.of(job.model), job.items, self.run_folder / REPLIES))
        assert not isinstance(job.model, EnsembleReward)  # whose members score one by one
        return Computed(*rewards.score(*self.models.reward_model(job.reward_model, job.model), job.items, job.model, job.cut))

    @_with_peak
    def train_reward_model(self, job: RewardModelTraining, into: Path) -> Computed[None]:
        if isinstance(job.model, NgramReward):
            return Computed(None, ngram.train(job.pairs, job.loss, job.model, job.seed, into))
        assert not isinstance(job.model, EnsembleReward)  # whose members are trained one by one
        if isinstance(job.model, FinishedReward) and not job.pairs:  # it stays as it is, and where it is
            if isinstance(job.model, JudgeReward):
                write_json(into / MARKER, dict(ResponseScorer.of(job.model).identity))
            else:
                self.models.finished_reward_model(job.model)  # a model that cannot be read stops the run here
                write_json(into / MARKER, {"path": job.model.path})
            return Computed(None, {})
        assert not isinstance(job.model, JudgeReward)  # which the Lab does not train
        if self.launch_config is not None:
            return launch.launch(job, self, into)
        settings = resolved(job.model, self.device)
        assert settings.training is not None
        model, tokenizer = self.models.reward_model_to_train(job, settings)
        items = rewards.pair_items(model, tokenizer, job.pairs, job.model, job.cut)
        cost, lengths = flops.training(model, settings.training), [len(ids) for item in items for ids in item["sides"]]
        collate = partial(rewards.collate, pad_id=tokenizer.pad_token_id)
        terms = partial(rewards.loss_terms, loss=job.loss)
        model, result = fit(model, items, collate, terms, settings.training, job.seed, self._checkpoints(into), "reward model")
        if PartialState().is_main_process:
            self.models.keep_reward_model((model, tokenizer), job, settings, into)
            _keep_losses(result, into)
        counts = {"rm_updates": result.updates, "rm_train_tokens": result.tokens, "flops": cost.flops(result.tokens, lengths)}
        return Computed(None, counts)

    # --- trainers from elsewhere -----------------------------------------------------------------------------------------

    @_with_peak
    def train_with_trl(self, job: TRLTraining, into: Path) -> Computed[None]:
        if self.launch_config is not None:
            raise InputError(f"executor.launch: {job.trainer} trains in one process; run it without")
        from apo_bench.engines import trl

        return trl.train(job, self.models, self._scored, into)

    # --- inside ----------------------------------------------------------------------------------------------------------

    def _sampler(self, choice: SamplingEngine) -> vllm_sampler.VllmSampler:
        """One for all jobs, so that a server stays from one job to the next."""
        if choice not in self._samplers:
            self._samplers[choice] = vllm_sampler.VllmSampler(choice, self.models)
        return self._samplers[choice]

    def _checkpoints(self, into: Path) -> Checkpoints:
        return Checkpoints(scratch_of(into), self.checkpoint_s)


def _keep_losses(result: TrainResult, into: Path) -> None:
    """The losses of a training's updates, beside its model."""
    (into / "training_losses.json").write_text(json.dumps(result.losses))
