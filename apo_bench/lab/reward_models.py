"""The reward model of an arm behind the Lab: trained, finished or an ensemble, and its scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from apo_bench.config.schema import (
    EnsembleReward,
    FinishedReward,
    JudgeReward,
    NetworkReward,
    RewardSpec,
    SingleReward,
    is_frozen,
    members,
)
from apo_bench.engines.ensembles import combined
from apo_bench.engines.protocol import Engine, Items, ScoringJob
from apo_bench.errors import InputError
from apo_bench.hashing import digest, digest_encoded, path_identity
from apo_bench.lab import key_parts
from apo_bench.lab.metered_store import MeteredStore
from apo_bench.lab.stored_results import load_scores, save_scores
from apo_bench.training.training_spec import RewardModelTraining
from apo_bench.types import CutTexts, EnsembleRewardModel, Pair, Policy, Prompt, RewardModel, TrainingData, identity


@dataclass(frozen=True)
class ArmRewardModel:
    """What an experiment's reward model is, and how it is trained and scored.

    `bodies`: language models in the store that it, or an ensemble's members, start from. `dev_pairs`: what members are standardised on,
    closed to methods. `cut_texts`: those of responses that were sampled and cut at the length limit.
    """

    spec: RewardSpec
    bodies: Sequence[Policy | None]
    dev_pairs: Sequence[Pair]
    data: TrainingData
    engine: Engine
    store: MeteredStore
    cut_texts: Callable[[Sequence[tuple[Prompt, str]]], CutTexts]
    _scales: dict[str, tuple[float, float]] = field(default_factory=dict)  # mean and sd of members' scores on dev_pairs

    @property
    def finished(self) -> RewardModel | None:
        """The model where it is a finished one; None: it is trained."""
        frozen = [self._finished(spec) for spec in members(self.spec) if isinstance(spec, FinishedReward)]
        return self._joined(frozen) if is_frozen(self.spec) else None

    def trained(self, pairs: tuple[Pair, ...], loss: Any, start: RewardModel | None) -> RewardModel:
        """The model fitted to pairs; of an ensemble each member."""
        specs = members(self.spec)
        starts = start.members if isinstance(start, EnsembleRewardModel) else (start,) * len(specs)
        parts = zip(specs, self.bodies, starts, strict=True)
        return self._joined([self._trained(spec, body, begin, pairs, loss) for spec, body, begin in parts])

    def scores(self, reward_model: RewardModel, items: Items) -> list[float]:
        """By the reward model; of an ensemble, its members' standardised scores as one."""
        if not isinstance(self.spec, EnsembleReward):
            return self._scores(reward_model, self.spec, items)
        if not isinstance(reward_model, EnsembleRewardModel):
            raise InputError("lab.score: the experiment's reward model is an ensemble, and this is none")
        scales = self.scales(reward_model)
        scores = [self._scores(member, own, items) for member, own in zip(reward_model.members, self.spec.of, strict=True)]
        return combined(scores, scales, self.spec.combine)

    def scales(self, reward_model: RewardModel | None) -> tuple[tuple[float, float], ...]:
        """Mean and sd of each of an ensemble's members on the dev split's human pairs, both sides; of any other model none."""
        if not isinstance(reward_model, EnsembleRewardModel):
            return ()
        return tuple(self._scale(*part) for part in zip(reward_model.members, members(self.spec), strict=True))

    # --- inside ----------------------------------------------------------------------------------------------------------

    def _joined(self, models: Sequence[RewardModel]) -> RewardModel:
        if not isinstance(self.spec, EnsembleReward):
            return models[0]
        return EnsembleRewardModel(identity("ensemble", self.spec.combine, *(model.key for model in models)), tuple(models))

    def _trained(
        self, model: SingleReward, body: Policy | None, start: RewardModel | None, pairs: tuple[Pair, ...], loss: Any
    ) -> RewardModel:
        """One reward model fitted to pairs."""
        vocabulary = self.data.vocabulary
        if isinstance(model, FinishedReward):
            finished = self._finished(model)
            if start in (None, finished) and all(pair.source == "human" for pair in pairs):
                return finished
            if model.training is None:
                name = model.model if isinstance(model, JudgeReward) else model.path
                mend = "take another kind" if isinstance(model, JudgeReward) else "give it `training`"
                raise InputError(f"lab.train_reward_model: {name} is a finished reward model without a recipe to train it by; {mend}")
        updates = model.training.updates(len(pairs)) if isinstance(model, NetworkReward) and model.training else 1  # or one convex fit
        self.store.admit(f"reward model on {len(pairs)} pairs", rm_updates=updates)
        cut = self.cut_texts([(pair.prompt, text) for pair in pairs for text in (pair.chosen, pair.rejected)])
        inputs = {
            "pairs": digest([(pair.prompt.id, pair.id, pair.source) for pair in pairs]),
            "loss": key_parts.of_loss(loss),
            "spec": key_parts.of_reward_spec(model),
            "base": key_parts.of_base(model, body),
            "axes": list(self.data.axes),
            "vocabulary": list(vocabulary or ()) if getattr(model, "architecture", None) else None,
            "start": start.key if start else None,
            **key_parts.of_cut(cut),
        }
        seed = self.store.derived_seed("train_reward_model")
        job = RewardModelTraining(start, body, pairs, loss, self.data.axes, vocabulary, model, seed, cut)
        artifact, _ = self.store.computed("reward_models", inputs, lambda folder: self.engine.train_reward_model(job, folder))
        return RewardModel(artifact.key)

    def _finished(self, model: FinishedReward) -> RewardModel:
        """A finished reward model: an artifact that stands for it, the same in every seed."""
        if isinstance(model, JudgeReward):
            inputs = {"judge": key_parts.of_reward_spec(model), "seed": None}
        else:
            spec = model.model_dump(mode="json", exclude={"path", "training", "stored_dtype"})
            inputs = {"pretrained": spec, "base": path_identity(model.path), "seed": None}
        job = RewardModelTraining(None, None, (), None, self.data.axes, None, model, 0)
        artifact, _ = self.store.computed("reward_models", inputs, lambda folder: self.engine.train_reward_model(job, folder))
        return RewardModel(artifact.key)

    def _scale(self, member: RewardModel, spec: SingleReward) -> tuple[float, float]:
        if member.key not in self._scales:
            sides = Items((pair.prompt, text) for pair in self.dev_pairs for text in (pair.chosen, pair.rejected))
            scores = np.asarray(self._scores(member, spec, sides)) if sides else np.zeros(1)
            if not scores.std() > 0:
                why = "it scores them all alike" if sides else "the task has none"
                raise InputError(f"kind: ensemble: its {spec.kind} model cannot be standardised on dev's human pairs: {why}")
            self._scales[member.key] = float(scores.mean()), float(scores.std())
        return self._scales[member.key]

    def _scores(self, reward_model: RewardModel, spec: SingleReward, items: Items) -> list[float]:
        self.store.admit(f"scoring {len(items)}", scored_responses=len(items))
        cut = self.cut_texts(items) if items.cut is None else items.cut
        inputs = {
            "reward_model": reward_model.key,
            "spec": key_parts.of_reward_spec(spec),
            "items": digest_encoded(items.encoded),
            **key_parts.of_cut(cut),
            **({"seed": None} if isinstance(spec, FinishedReward) else {}),  # no seed changes such a model
        }
        job = ScoringJob(reward_model, items, spec, cut)
        return self.store.computed("scores", inputs, lambda folder: self.engine.score(job), save_scores, load_scores)[1]
