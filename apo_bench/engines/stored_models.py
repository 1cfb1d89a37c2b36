"""The models in a run's store, loaded once and kept: to be read, or as copies to be trained; and how trained ones are stored.

A model is read in the precision that its settings give, and trained in fp32. One that was trained with LoRA is stored as its adapters and
read with them beside the weights of its base, which stays loaded once for all of them.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

from apo_bench.config.schema import NetworkReward, PolicyModel, PretrainedReward
from apo_bench.engines.model_cache import Loaded, ResidentModels, stored_bytes, trainable
from apo_bench.errors import InputError
from apo_bench.models import adapters, finished_reward
from apo_bench.models import policy as policies
from apo_bench.models import reward as rewards
from apo_bench.models.adapter_folder import base_of, is_adapter, settings_of
from apo_bench.models.precision import resolved
from apo_bench.store import key_of
from apo_bench.training.training_spec import OnlineTraining, PolicyTraining, RewardModelTraining, TRLTraining
from apo_bench.types import BestOfNPolicy, FinishedPolicy, Policy, RewardModel


class StoredModels:
    """Models of one run folder by their keys; within `limit_bytes` they stay loaded. `device`: what each `auto` in settings is about."""

    def __init__(self, run_folder: Path, limit_bytes: float, device: str = "cpu") -> None:
        self.run_folder, self.device, self.resident = run_folder, device, ResidentModels(limit_bytes)

    # --- policies --------------------------------------------------------------------------------------------------------

    def policy(self, policy: Policy, spec: PolicyModel) -> Loaded:
        """A policy to be read."""
        model, tokenizer = self.policy_with_adapters(policy, spec)
        return adapters.readable(model), tokenizer

    def policy_with_adapters(self, policy: Policy, spec: PolicyModel, *, in_fp32: bool = False) -> Loaded:
        """A policy to be read, as a peft model where it has adapters; `in_fp32`: whatever its settings say."""
        if isinstance(policy, FinishedPolicy) and policy.base is not None:
            return self._finished_adapters(policy, policy.base, spec, in_fp32=in_fp32)
        folder = self.folder("policies", policy)
        if isinstance(policy, FinishedPolicy) or (base := base_of(folder)) is None:
            return self.resident.get(*self._whole_policy(policy, spec, in_fp32=in_fp32))

        def load() -> Loaded:
            model, tokenizer = self.policy_with_adapters(Policy(base), spec, in_fp32=in_fp32)
            return adapters.load(model, folder), tokenizer

        dtype = "float32" if in_fp32 else resolved(spec, self.device).dtype
        return self.resident.get(_key("policy", policy.key, dtype), load, stored_bytes(folder))

    def _finished_adapters(self, policy: FinishedPolicy, base: FinishedPolicy, spec: PolicyModel, *, in_fp32: bool) -> Loaded:
        """Adapters that were trained elsewhere; their folder's tokenizer and template, where it has some, in place of the base's."""
        folder = Path(policy.path)

        def load() -> Loaded:
            model, tokenizer = self.policy_with_adapters(base, spec, in_fp32=in_fp32)
            return adapters.load_foreign(model, tokenizer, folder, spec.trust_remote_code)

        dtype = "float32" if in_fp32 else resolved(spec, self.device).dtype
        return self.resident.get(_key("policy", policy.key, dtype), load, stored_bytes(folder))

    def policy_to_train(self, job: PolicyTraining | OnlineTraining | TRLTraining) -> Loaded:
        """A policy of the caller's own. With LoRA, training goes on with the policy's adapters where they have the same settings."""
        lora, folder = job.recipe.lora, self.folder("policies", job.policy)
        if lora is None and is_adapter(folder):
            model, tokenizer = self.policy_with_adapters(job.policy, job.model, in_fp32=True)
            return trainable(adapters.plain(model)), tokenizer
        if lora is None:
            return self.resident.copy(*self._whole_policy(job.policy, job.model, in_fp32=True))
        base, tokenizer = self.policy_with_adapters(self.base(job), job.model)
        goes_on = base_of(folder) == self.base(job).key
        return adapters.load(base, folder, trainable=True) if goes_on else adapters.add(base, lora, job.seed), tokenizer

    def reference(self, job: PolicyTraining) -> Loaded:
        """The policy that a job's loss compares with. Where whole weights are trained it is resident no longer: the caller can free it."""
        assert job.reference is not None
        if job.recipe.lora is None and not is_adapter(self.folder("policies", job.reference)):
            return self.resident.take(*self._whole_policy(job.reference, job.model))
        return self.policy(job.reference, job.model)  # its weights are those that the trained adapters stand on

    def base(self, job: PolicyTraining | OnlineTraining | TRLTraining) -> Policy:
        """What the adapters that the job trains belong on: the policy itself, or what it has adapters on with the same settings."""
        folder = self.folder("policies", job.policy)
        base = base_of(folder)
        return Policy(base) if base is not None and settings_of(folder) == job.recipe.lora else job.policy

    def keep_policy(self, loaded: Loaded, job: PolicyTraining | OnlineTraining | TRLTraining, into: Path) -> None:
        """Store a trained policy: its adapters, or the whole of it."""
        if (lora := job.recipe.lora) is not None:
            adapters.save(loaded[0], lora, self.base(job).key, into)
        else:
            self.keep_whole("policy", loaded, job.model, into)

    def _whole_policy(self, policy: Policy, spec: PolicyModel, *, in_fp32: bool = False) -> tuple[Any, Any, float]:
        """Key, loader and size: as the policy is read, or in fp32, to be trained or merged."""
        folder, settings = self.folder("policies", policy), resolved(spec, self.device)
        if isinstance(policy, FinishedPolicy) and not folder.is_dir():
            folder = policy.path  # a hub id
        options = _read_as(settings, "float32") if in_fp32 else {**_read_as(settings), "quantize": settings.quantize}
        load = partial(policies.load_policy, folder, spec.trust_remote_code, shards=in_fp32, **options)
        return _key("policy", policy.key, options["dtype"]), load, stored_bytes(folder, options["dtype"])

    # --- reward models ---------------------------------------------------------------------------------------------------

    def reward_model(self, reward_model: RewardModel, spec: NetworkReward) -> Loaded:
        """A reward model to be read."""
        folder, settings = self.folder("reward_models", reward_model), resolved(spec, self.device)
        if isinstance(settings, PretrainedReward):
            return self._finished_reward_model(folder, settings)
        key, size = _key("reward model", reward_model.key, settings.dtype), stored_bytes(folder, settings.dtype)
        if not is_adapter(folder):
            load = partial(rewards.load_reward_model, folder, spec.trust_remote_code, **_read_as(settings))
            return self.resident.get(key, load, size)

        def load_with_adapters() -> Loaded:
            base = base_of(folder)
            body = self.folder("policies", Policy(base)) if base else Path(str(spec.path))
            labels = (folder / "config.json").read_text(encoding="utf-8")
            load = partial(rewards.load_reward_model, body, spec.trust_remote_code, labels_of=folder, **_read_as(settings))
            name = _key("reward model's body", f"{body} {labels}", settings.dtype)
            model, tokenizer = self.resident.get(name, load, stored_bytes(body, settings.dtype))
            return adapters.load(model, folder), tokenizer

        model, tokenizer = self.resident.get(key, load_with_adapters, size)
        return adapters.readable(model), tokenizer

    def reward_model_to_train(self, job: RewardModelTraining, spec: NetworkReward) -> Loaded:
        """A reward model of the caller's own: a trained one, a finished one, or a body with a new head that the seed draws."""
        if isinstance(spec, PretrainedReward):
            return self._finished_to_train(job, spec)
        lora = spec.training.lora
        start = self.folder("reward_models", job.start) if job.start else None
        if start and not is_adapter(start):
            origin: str | Path | None = start
        else:
            origin = self.folder("policies", job.body) if job.body else spec.path
        name = str(origin or json.dumps(spec.architecture, sort_keys=True))
        key = ("untrained reward model", name, job.axes if spec.axis_heads else (), job.seed)
        load = partial(rewards.new_reward_model, spec, origin, job.axes, job.vocabulary, job.seed, shards=lora is None)
        size = stored_bytes(origin) if origin else 0.0
        if lora is None:
            return self.resident.copy(key, load, size)
        model, tokenizer = self.resident.get(key, load, size)
        goes_on = start is not None and start != origin
        return adapters.load(model, start, trainable=True) if goes_on else adapters.add(model, lora, job.seed), tokenizer  # pyright: ignore

    def keep_reward_model(self, loaded: Loaded, job: RewardModelTraining, spec: NetworkReward, into: Path) -> None:
        """Store a trained reward model: its adapters where its base is in the store or has a path, else the whole of it."""
        assert spec.training is not None
        (model, tokenizer), lora = loaded, spec.training.lora
        start = self.folder("reward_models", job.start) if job.start else None
        whole_start = start is not None and not is_adapter(start) and not _is_finished(start)
        if lora is None:
            self.keep_whole("reward model", loaded, spec, into)
        elif whole_start or (job.body is None and spec.path is None):
            self.keep_whole("reward model", (adapters.plain(model), tokenizer), spec, into)
        else:
            adapters.save(model, lora, job.body.key if job.body else None, into)
            model.config.save_pretrained(into)  # its labels

    def finished_reward_model(self, spec: PretrainedReward) -> Loaded:
        """A finished reward model, to be read."""
        settings = resolved(spec, self.device)
        return self.resident.get(*self._finished(None, settings, settings.dtype))

    def _finished_reward_model(self, folder: Path, spec: PretrainedReward) -> Loaded:
        """A finished reward model to be read, or what training made of it."""
        model, tokenizer = self.resident.get(*self._finished(folder, spec, spec.dtype))
        if not is_adapter(folder):
            return model, tokenizer
        key = _key("reward model", folder.name, spec.dtype)
        model, tokenizer = self.resident.get(key, lambda: (adapters.load(model, folder), tokenizer), stored_bytes(folder, spec.dtype))
        return adapters.readable(model), tokenizer

    def _finished_to_train(self, job: RewardModelTraining, spec: PretrainedReward) -> Loaded:
        """A finished reward model of the caller's own, or what training made of it, to go on from."""
        assert spec.training is not None
        start = self.folder("reward_models", job.start) if job.start else None
        source = self._finished(start, spec, "float32", shards=spec.training.lora is None)
        if (lora := spec.training.lora) is None:
            return self.resident.copy(*source)
        model, tokenizer = self.resident.get(*source)
        if start is not None and is_adapter(start):
            return adapters.load(model, start, trainable=True), tokenizer
        return adapters.add(model, lora, job.seed), tokenizer

    def _finished(self, folder: Path | None, spec: PretrainedReward, dtype: str, shards: bool = False) -> tuple[Any, Any, float]:
        """Key, loader and size of the finished model at the spec's path, or of the whole model that training made of it."""
        trained = folder is not None and not is_adapter(folder) and not _is_finished(folder)
        source = folder if trained and folder is not None else Path(spec.path) if Path(spec.path).is_dir() else spec.path
        key = ("finished reward model", str(source), spec.model_dump_json(include={"template", "output", "attention"}), dtype)
        return key, partial(finished_reward.load_finished, source, spec, shards, **_read_as(spec, dtype)), stored_bytes(source, dtype)

    # --- inside ----------------------------------------------------------------------------------------------------------

    def keep_whole(self, kind: str, loaded: Loaded, spec: PolicyModel | NetworkReward, into: Path) -> None:
        """Store a whole model. It stays loaded where it is read as it is in memory; one that is rounded on the way is loaded again."""
        settings = resolved(spec, self.device)
        policies.save_model(*loaded, into, settings.stored_dtype)
        if settings.stored_dtype == settings.dtype == "float32" and settings.attention == "sdpa":
            self.resident.put(_key(kind, key_of(into), settings.dtype), *loaded)

    def folder(self, kind: str, model: Policy | RewardModel) -> Path:
        """Where a model of the store lies, or a finished policy outside it. Raises InputError for a best-of-n policy, which is none."""
        if isinstance(model, BestOfNPolicy):
            raise InputError("lab: a best-of-n policy has no weights to train, or to compare with")
        if isinstance(model, FinishedPolicy):
            return Path(model.path)
        return self.run_folder / "store" / kind / model.key


def _is_finished(folder: Path) -> bool:
    """Whether an artifact stands for a finished reward model."""
    return (folder / finished_reward.MARKER).is_file()


def _key(kind: str, key: str, dtype: str) -> tuple[str, ...]:
    """What names a model in memory: one can be there in fp32, to be trained, and in fewer bits, to be read."""
    return (kind, key) if dtype == "float32" else (kind, key, dtype)


def _read_as(settings: PolicyModel | NetworkReward, dtype: str | None = None) -> dict[str, str]:
    """What a loader is given, by resolved settings."""
    return {"dtype": dtype or settings.dtype, "attention": settings.attention}
