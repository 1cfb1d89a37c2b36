"""The models in a run's store, loaded once and kept: to be read, or as copies to be trained; and how trained ones are stored.

A model that was trained with LoRA is stored as its adapters and read with them beside the weights of its base, which stays loaded once
for all of them.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

from apo_bench.config.schema import NeuralReward, PolicyModel
from apo_bench.engines.model_cache import Loaded, ResidentModels, stored_bytes, trainable
from apo_bench.errors import InputError
from apo_bench.models import adapters
from apo_bench.models import policy as policies
from apo_bench.models import reward as rewards
from apo_bench.models.adapter_folder import base_of, is_adapter, settings_of
from apo_bench.store import key_of
from apo_bench.training.training_spec import PolicyTraining, RewardModelTraining
from apo_bench.types import BestOfNPolicy, Policy, RewardModel


class StoredModels:
    """Models of one run folder by their keys; within `limit_bytes` they stay loaded."""

    def __init__(self, run_folder: Path, limit_bytes: float) -> None:
        self.run_folder, self.resident = run_folder, ResidentModels(limit_bytes)

    # --- policies --------------------------------------------------------------------------------------------------------

    def policy(self, policy: Policy, spec: PolicyModel) -> Loaded:
        """A policy to be read."""
        model, tokenizer = self.policy_with_adapters(policy, spec)
        return adapters.readable(model), tokenizer

    def policy_to_train(self, job: PolicyTraining) -> Loaded:
        """A policy of the caller's own. With LoRA, training goes on with the policy's adapters where they have the same settings."""
        lora, folder = job.recipe.lora, self.folder("policies", job.policy)
        if lora is None and is_adapter(folder):
            model, tokenizer = self.policy_with_adapters(job.policy, job.model)
            return trainable(adapters.plain(model)), tokenizer
        if lora is None:
            return self.resident.copy(*self._whole_policy(job.policy, job.model))
        base, tokenizer = self.policy_with_adapters(self.base(job), job.model)
        continued = base_of(folder) == self.base(job).key
        return adapters.load(base, folder, trainable=True) if continued else adapters.add(base, lora, job.seed), tokenizer

    def reference(self, job: PolicyTraining) -> Loaded:
        """The policy that a job's loss compares with. Where whole weights are trained it is resident no longer: the caller can free it."""
        assert job.reference is not None
        if job.recipe.lora is None and not is_adapter(self.folder("policies", job.reference)):
            return self.resident.take(*self._whole_policy(job.reference, job.model))
        return self.policy(job.reference, job.model)  # its weights are those that the trained adapters stand on

    def base(self, job: PolicyTraining) -> Policy:
        """What the adapters that the job trains belong on: the policy itself, or what it has adapters on with the same settings."""
        folder = self.folder("policies", job.policy)
        base = base_of(folder)
        return Policy(base) if base is not None and settings_of(folder) == job.recipe.lora else job.policy

    def keep_policy(self, loaded: Loaded, job: PolicyTraining, into: Path) -> None:
        """Store a trained policy: its adapters, or the whole of it, which then stays loaded."""
        if (lora := job.recipe.lora) is not None:
            adapters.save(loaded[0], lora, self.base(job).key, into)
        else:
            self.keep_whole("policy", loaded, into)

    def policy_with_adapters(self, policy: Policy, spec: PolicyModel) -> Loaded:
        """A policy as a model with its adapters, or a whole one."""
        folder = self.folder("policies", policy)
        if (base := base_of(folder)) is None:
            return self.resident.get(*self._whole_policy(policy, spec))

        def load() -> Loaded:
            model, tokenizer = self.policy_with_adapters(Policy(base), spec)
            return adapters.load(model, folder), tokenizer

        return self.resident.get(("policy", policy.key), load, stored_bytes(folder))

    def _whole_policy(self, policy: Policy, spec: PolicyModel) -> tuple[Any, Any, float]:
        """Key, loader and size."""
        folder = self.folder("policies", policy)
        return ("policy", policy.key), partial(policies.load_policy, folder, spec.trust_remote_code), stored_bytes(folder)

    # --- reward models ---------------------------------------------------------------------------------------------------

    def reward_model(self, reward_model: RewardModel, spec: NeuralReward) -> Loaded:
        """A reward model to be read."""
        folder = self.folder("reward_models", reward_model)
        if not is_adapter(folder):
            load = partial(rewards.load_reward_model, folder, spec.trust_remote_code)
            return self.resident.get(("reward model", reward_model.key), load, stored_bytes(folder))

        def load_with_adapters() -> Loaded:
            key = base_of(folder)
            body = self.folder("policies", Policy(key)) if key else Path(str(spec.path))
            labels = (folder / "config.json").read_text(encoding="utf-8")
            load = partial(rewards.load_reward_model, body, spec.trust_remote_code, config=folder)
            model, tokenizer = self.resident.get(("reward model's body", str(body), labels), load, stored_bytes(body))
            return adapters.load(model, folder), tokenizer

        model, tokenizer = self.resident.get(("reward model", reward_model.key), load_with_adapters, stored_bytes(folder))
        return adapters.readable(model), tokenizer

    def reward_model_to_train(self, job: RewardModelTraining, spec: NeuralReward) -> Loaded:
        """A reward model of the caller's own: a trained one, or a body with a new head that the seed draws."""
        lora = spec.training.lora
        start = self.folder("reward_models", job.start) if job.start else None
        if start and not is_adapter(start):
            origin: str | Path | None = start
        else:
            origin = self.folder("policies", job.body) if job.body else spec.path
        name = str(origin or json.dumps(spec.architecture, sort_keys=True))
        key = ("untrained reward model", name, job.axes if spec.axis_heads else (), job.seed)
        load = partial(rewards.new_reward_model, spec, origin, job.axes, job.vocabulary, job.seed)
        size = stored_bytes(origin) if origin else 0.0
        if lora is None:
            return self.resident.copy(key, load, size)
        model, tokenizer = self.resident.get(key, load, size)
        with_adapters = adapters.load(model, start, trainable=True) if start and start != origin else adapters.add(model, lora, job.seed)
        return with_adapters, tokenizer

    def keep_reward_model(self, loaded: Loaded, job: RewardModelTraining, spec: NeuralReward, into: Path) -> None:
        """Store a trained reward model: its adapters where its base is in the store or has a path, else the whole of it."""
        (model, tokenizer), lora = loaded, spec.training.lora
        whole_start = job.start is not None and not is_adapter(self.folder("reward_models", job.start))
        if lora is None:
            self.keep_whole("reward model", loaded, into)
        elif whole_start or (job.body is None and spec.path is None):
            self.keep_whole("reward model", (adapters.plain(model), tokenizer), into)
        else:
            adapters.save(model, lora, job.body.key if job.body else None, into)
            model.config.save_pretrained(into)  # its labels

    # --- inside ----------------------------------------------------------------------------------------------------------

    def keep_whole(self, kind: str, loaded: Loaded, into: Path) -> None:
        """Store a whole model, which stays loaded: what is stored is bit for bit what is in memory."""
        policies.save_model(*loaded, into)
        self.resident.put((kind, key_of(into)), *loaded)

    def folder(self, kind: str, model: Policy | RewardModel) -> Path:
        """Where a model of the store lies. Raises InputError for a best-of-n policy, which is none."""
        if isinstance(model, BestOfNPolicy):
            raise InputError("lab: a best-of-n policy has no weights to train, or to compare with")
        return self.run_folder / "store" / kind / model.key
