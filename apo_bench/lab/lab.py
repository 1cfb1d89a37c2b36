"""The Lab: everything a method may do, and nothing else.

Every verb is metered (it charges the arm's ledger), memoised by content (equal work is done once, over arms and crashes),
replayable (finished verbs return at once) and blind (no gold reward model, dev or test prompt is reachable). `blind` protects against
mistakes, not malice: a method is code that runs as the user. Repeating `sample` with the same arguments returns the same samples;
`draw` gives fresh ones.

The Lab computes nothing itself: an engine does.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from apo_bench.clients.response_scores import ResponseScorer
from apo_bench.config.schema import (
    EnsembleReward,
    FinishedReward,
    JudgeReward,
    NetworkReward,
    PolicyModel,
    Recipe,
    RewardSpec,
    Sampling,
    SingleReward,
    Unit,
    is_frozen,
    members,
)  # fmt: skip
from apo_bench.engines.protocol import Engine, Items, SamplingJob, ScoringJob
from apo_bench.errors import InputError
from apo_bench.hashing import code_hash, digest, digest_encoded, path_identity
from apo_bench.lab.ledger import Ledger
from apo_bench.models.precision import resolved
from apo_bench.store import Artifact, Computed
from apo_bench.training import trl_trainers
from apo_bench.training.data import check_data, check_online, sides_of
from apo_bench.training.training_spec import OnlineTraining, PolicyTraining, RewardModelTraining, TRLItem, TRLTraining
from apo_bench.types import (
    BestOfNPolicy,
    CutTexts,
    Demonstration,
    EnsembleRewardModel,
    Golden,
    Group,
    Pair,
    Policy,
    Prompt,
    Response,
    RewardModel,
    Round,
    TrainingData,
    TrainingItem,
    UnpairedExample,
    cut_texts,
    identity,
)

T = TypeVar("T")
STORED = ("text", "tokens", "finish", "token_ids")  # of a response beside its prompt, in order
Progress = Callable[[str, Mapping[Any, float]], None]  # a stage, and what the arm has used before it


class ArtifactStore(Protocol):
    """Where the Lab's results are kept: a run's store, or, for plans, one that only counts."""

    def computed(
        self,
        kind: str,
        inputs: Mapping[str, Any],
        compute: Callable[[Path], Computed[T]],
        save: Callable[[Path, T], None] | None = None,
        load: Callable[[Path], T] | None = None,
    ) -> tuple[Artifact, Any]: ...


class Lab:
    """One arm-seed's workbench. Raises BudgetExceeded when the arm would overspend."""

    def __init__(
        self,
        *,
        store: ArtifactStore,
        engine: Engine,
        ledger: Ledger,
        seed: int,
        data: TrainingData,
        policy_model: PolicyModel,
        reward_model: RewardSpec,
        reward_bodies: Sequence[Policy | None] = (None,),
        dev_pairs: Sequence[Pair] = (),
        initial_policy: Policy,
        progress: Progress = lambda stage, used: None,
        charged: dict[str, Mapping[str, float]] | None = None,
    ) -> None:
        self.initial_policy = initial_policy
        self.rounds: list[Round] = []
        self.granted: dict[Unit, int] = {}  # the most items drawn at a time, of human pairs and golden responses
        self.wall_s = 0.0  # what the arm's artifacts took to compute, whoever computed them
        self.peak_memory_bytes = self.peak_device_bytes = 0.0
        self.charged = {} if charged is None else charged  # every distinct artifact used, with its counts
        self._store, self._engine, self._ledger, self._seed, self._data = store, engine, ledger, seed, data
        self._device = engine.hardware.get("device")  # of which keys hold what each `auto` means
        self._policy_model, self._reward_model = resolved(policy_model, self._device), resolved(reward_model, self._device)
        self._progress = progress
        self._sampled: dict[str, dict[str, Response]] = {}  # everything sampled, by prompt id and text
        self._reward_bodies = reward_bodies  # language models in the store that reward models, or an ensemble's members, start from
        self._dev_pairs = dev_pairs  # what an ensemble's members are standardised on; closed to methods
        self._scales: dict[str, tuple[float, float]] = {}  # mean and sd of members' scores there

    @property
    def seen(self) -> Mapping[Unit, set[str]]:
        """Human pairs and golden responses seen so far, by identity."""
        return self._ledger.seen

    @property
    def used(self) -> Mapping[Unit, float]:
        """What the arm has spent so far, by unit."""
        return self._ledger.used

    # --- data -----------------------------------------------------------------------------------------------------------

    def prompts(self, split: Literal["rm", "policy"] = "policy", n: int | None = None, draw: int = 0) -> tuple[Prompt, ...]:
        """n prompts of a split (all if None), drawn without replacement by the seed and `draw`."""
        if split not in ("rm", "policy"):
            raise InputError(f"lab.prompts: split {split!r} is closed to methods; open are rm and policy")
        return self._subset(self._data.prompts[split], n, f"prompts {split} {draw}", f"prompts of the {split} split")

    def pairs(self, n: int | None = None) -> tuple[Pair, ...]:
        """n human preference pairs of the rm split; None takes what the budget grants. The first n of one fixed order a seed."""
        return self._grant("human_pairs", self._data.pairs, n, lambda pair: pair.id)

    def golden(self, n: int | None = None) -> tuple[Golden, ...]:
        """n golden responses to rm prompts; None takes what the budget grants. The first n of one fixed order a seed."""
        return self._grant("golden_responses", self._data.golden, n, lambda golden: identity(golden.prompt.id, golden.text))

    # --- the game -------------------------------------------------------------------------------------------------------

    def sample(
        self, policy: Policy, prompts: Sequence[Prompt], n: int = 1, draw: int = 0, sampling: Sampling | None = None
    ) -> tuple[Response, ...]:
        """n responses of a policy to each prompt, prompt by prompt; at the experiment's sampling settings unless given others.

        A best-of-n policy pays for all it samples and scores.
        """
        sampling = sampling or self._policy_model.sampling
        if isinstance(policy, BestOfNPolicy):
            candidates = self.sample(policy.policy, prompts, n * policy.n, draw, sampling)
            scores = self._scores_of(policy.reward_model, Items.of(candidates))
            groups = (range(start, start + policy.n) for start in range(0, len(candidates), policy.n))
            return tuple(candidates[max(group, key=scores.__getitem__)] for group in groups)  # among equals the first
        self._before(f"sampling {len(prompts)} x {n}", sampled_responses=len(prompts) * n)
        inputs = {
            "policy": policy.key,
            "prompts": [prompt.id for prompt in prompts],
            "n": n,
            "draw": draw,
            "sampling": sampling.model_dump(exclude={"engine"}),
            "sampler": self._engine.sampler(sampling, self._policy_model),
            "format": self._format(),
        }
        job = SamplingJob(policy, tuple(prompts), n, sampling, self._policy_model, self._derived_seed("sample", str(draw)))
        load = partial(_load_responses, prompts=prompts, n=n)
        responses: Sequence[Response] = self._memo("samples", inputs, lambda folder: self._engine.generate(job), _save_responses, load)[1]
        for response in reversed(responses):  # where a text was sampled twice, the first counts, as it does in best_of
            known = self._sampled.setdefault(response.prompt.id, {})
            if response.token_ids is not None or response.text not in known:
                known[response.text] = response
        return tuple(responses)

    def score(self, reward_model: RewardModel, responses: Sequence[Response] | Sequence[tuple[Prompt, str]]) -> tuple[Group, ...]:
        """The reward model's scores, grouped by prompt in order of first appearance. A sample cut at the length limit has no end."""
        items = Items.of(responses)
        scores = self._scores_of(reward_model, items)
        grouped: dict[str, tuple[Prompt, list[str], list[float]]] = {}
        for (prompt, text), value in zip(items, scores, strict=True):
            if (group := grouped.get(prompt.id)) is None:
                group = grouped[prompt.id] = (prompt, [], [])
            group[1].append(text)
            group[2].append(value)
        return tuple(Group(prompt, tuple(texts), tuple(scores)) for prompt, texts, scores in grouped.values())

    def train_reward_model(self, *pair_sets: Sequence[Pair], loss: Any, start: RewardModel | None = None) -> RewardModel:
        """A reward model fitted to all pairs together, from the base model (the paper) or continuing from `start`.

        A finished reward model is what it is: human pairs give it as it is, and nothing is spent. Other pairs train it where its spec has
        a recipe; else they raise InputError. Of an ensemble each member is trained.
        """
        pairs = tuple(chain.from_iterable(pair_sets))
        if not pairs:
            raise InputError("lab.train_reward_model: no pairs to train on")
        specs = members(self._reward_model)
        starts = start.members if isinstance(start, EnsembleRewardModel) else (start,) * len(specs)
        parts = zip(specs, self._reward_bodies, starts, strict=True)
        models = [self._trained(spec, body, begin, pairs, loss) for spec, body, begin in parts]
        return self._as_one(models)

    @property
    def finished_reward_model(self) -> RewardModel | None:
        """The experiment's reward model where it is a finished one, which methods use as it is; None: they train it."""
        frozen = [self._finished(spec) for spec in members(self._reward_model) if isinstance(spec, FinishedReward)]
        return self._as_one(frozen) if is_frozen(self._reward_model) else None

    def _as_one(self, models: Sequence[RewardModel]) -> RewardModel:
        spec = self._reward_model
        if not isinstance(spec, EnsembleReward):
            return models[0]
        return EnsembleRewardModel(identity("ensemble", spec.combine, *(model.key for model in models)), tuple(models))

    def _trained(
        self, model: SingleReward, body: Policy | None, start: RewardModel | None, pairs: tuple[Pair, ...], loss: Any
    ) -> RewardModel:
        """One reward model fitted to pairs."""
        vocabulary = self._data.vocabulary
        if isinstance(model, FinishedReward):
            finished = self._finished(model)
            if start in (None, finished) and all(pair.source == "human" for pair in pairs):
                return finished
            if model.training is None:
                name = model.model if isinstance(model, JudgeReward) else model.path
                mend = "take another kind" if isinstance(model, JudgeReward) else "give it `training`"
                raise InputError(f"lab.train_reward_model: {name} is a finished reward model without a recipe to train it by; {mend}")
        updates = model.training.updates(len(pairs)) if isinstance(model, NetworkReward) and model.training else 1  # or one convex fit
        self._before(f"reward model on {len(pairs)} pairs", rm_updates=updates)
        inputs = {
            "pairs": digest([(pair.prompt.id, pair.id, pair.source) for pair in pairs]),
            "loss": _described(loss),
            "spec": _described_spec(model),
            "base": _base(model, body),
            "axes": list(self._data.axes),
            "vocabulary": list(vocabulary or ()) if getattr(model, "architecture", None) else None,
            "start": start.key if start else None,
        }
        cut = self._cut_texts([(pair.prompt, text) for pair in pairs for text in (pair.chosen, pair.rejected)])
        inputs |= {"cut": _listed(cut)} if cut else {}
        seed = self._derived_seed("train_reward_model")
        job = RewardModelTraining(start, body, pairs, loss, self._data.axes, vocabulary, model, seed, cut)
        artifact, _ = self._memo("reward_models", inputs, lambda folder: self._engine.train_reward_model(job, folder))
        return RewardModel(artifact.key)

    def _finished(self, model: FinishedReward) -> RewardModel:
        """A finished reward model: an artifact that stands for it, the same in every seed."""
        if isinstance(model, JudgeReward):
            inputs = {"judge": _described_spec(model), "seed": None}
        else:
            spec = model.model_dump(mode="json", exclude={"path", "training", "stored_dtype"})
            inputs = {"pretrained": spec, "base": path_identity(model.path), "seed": None}
        job = RewardModelTraining(None, None, (), None, self._data.axes, None, model, 0)
        artifact, _ = self._memo("reward_models", inputs, lambda folder: self._engine.train_reward_model(job, folder))
        return RewardModel(artifact.key)

    def train_policy(
        self,
        policy: Policy,
        data: Sequence[Demonstration] | Sequence[Pair] | Sequence[UnpairedExample] | Sequence[Group],
        loss: Any,
        *,
        reference: Policy | None = None,
        learning_rate: float | None = None,
        epochs: float | None = None,
        recipe: Recipe | None = None,
    ) -> Policy:
        """A policy trained from `policy` on the data that the loss reads; `reference` is for losses that need one.

        `loss` is a PolicyLoss, shipped or a method's own. The experiment's recipe applies, with the learning rate or epochs given here
        in place of its own. Responses that this lab sampled are trained on as the ids they were sampled as, a sample cut at the length
        limit without an end; all others are encoded. Raises InputError, before anything is spent, for data that the loss does not read
        and for a missing or unneeded reference.
        """
        changes = {name: value for name, value in (("learning_rate", learning_rate), ("epochs", epochs)) if value is not None}
        recipe = resolved((recipe or self._policy_model.training).model_copy(update=changes), self._device)
        if not data:
            raise InputError("lab.train_policy: no data to train on")
        check_data(loss, data, reference is not None, recipe)
        for part in (policy, reference):
            if isinstance(part, BestOfNPolicy):
                raise InputError("lab.train_policy: a best-of-n policy has no weights to train, or to compare with")
        self._before(f"policy on {len(data)} {loss.reads}", policy_updates=recipe.updates(len(data)))
        token_ids = self._sampled_ids(data)
        inputs = {
            "policy": policy.key,
            "reference": reference.key if reference else None,
            "data": digest([_row(item) for item in data]),
            "token_ids": digest(token_ids),
            "loss": _described(loss),
            "recipe": recipe.model_dump(),
            "format": self._format(),
        }
        seed = self._derived_seed("train_policy")
        job = PolicyTraining(policy, tuple(data), loss, reference, self._policy_model, recipe, seed, token_ids)  # pyright: ignore
        artifact, _ = self._memo("policies", inputs, lambda folder: self._engine.train_policy(job, folder))
        return Policy(artifact.key)

    def train_online(
        self,
        policy: Policy,
        reward_model: RewardModel,
        algorithm: Any,
        *,
        steps: int,
        prompts_per_step: int,
        n: int = 4,
        draw: int = 0,
        reference: Policy | None = None,
        learning_rate: float | None = None,
        recipe: Recipe | None = None,
        sampling: Sampling | None = None,
    ) -> Policy:
        """A policy trained from `policy` on samples of itself, scored by the reward model, in so many steps.

        A step takes the next prompts_per_step policy prompts of a shuffled pass, another for every `draw`, samples n responses to each
        from the current weights, and trains on these by the recipe: `batch_size` responses an update, `epochs` passes. `algorithm` is an
        OnlineAlgorithm; or a PolicyLoss of pairs, which gets each prompt's best sample over its worst, and `batch_size` pairs an update.
        `reference` stays as it is. Optimizer and schedule go on from step to step. Raises InputError, before anything is spent, for what
        does not go together.
        """
        changes = {} if learning_rate is None else {"learning_rate": learning_rate}
        recipe = resolved((recipe or self._policy_model.training).model_copy(update=changes), self._device)
        sampling, spec, split = sampling or self._policy_model.sampling, self._reward_model, self._data.prompts["policy"]
        check_online(algorithm, reference is not None, recipe, len(split), steps, prompts_per_step, n)
        for part in (policy, reference):
            if isinstance(part, BestOfNPolicy):
                raise InputError("lab.train_online: a best-of-n policy has no weights to train, or to compare with")
        if isinstance(spec, EnsembleReward) != isinstance(reward_model, EnsembleRewardModel):
            raise InputError("lab.train_online: of the experiment's reward model and this one, one is an ensemble and the other is not")
        if sampling.engine is not None:
            raise InputError("sampling.engine: online training samples from weights that change; give it sampling without an engine")
        parts = members(spec)
        passes = [
            self._subset(split, None, f"prompts online {draw} {number}", "") for number in range(-(-steps * prompts_per_step // len(split)))
        ]
        job = OnlineTraining(
            policy, reward_model, algorithm, reference, tuple(islice(chain(*passes), steps * prompts_per_step)), steps, n,
            self._policy_model, spec, recipe, sampling, self._derived_seed("train_online", str(draw)),
        )  # fmt: skip
        samples = len(job.prompts) * n
        self._before(
            f"online training: {steps} steps of {prompts_per_step} x {n}",
            sampled_responses=samples, scored_responses=samples * len(parts), policy_updates=steps * job.updates_per_step,
        )  # fmt: skip
        if isinstance(reward_model, EnsembleRewardModel):
            job = replace(job, scales=tuple(self._scale(*each) for each in zip(reward_model.members, parts, strict=True)))
        inputs = {
            "online": {"steps": steps, "n": n, "draw": draw, "prompts": digest([prompt.id for prompt in job.prompts])},
            "policy": policy.key,
            "reference": reference.key if reference else None,
            "reward_model": reward_model.key,
            "spec": [_described_spec(part) for part in parts],
            "scales": job.scales,
            "loss": _described(algorithm),
            "recipe": recipe.model_dump(),
            "sampling": sampling.model_dump(exclude={"engine"}),
            "format": self._format(),
        }
        artifact, _ = self._memo("policies", inputs, lambda folder: self._engine.train_online(job, folder, self._report))
        return Policy(artifact.key)

    def train_with_trl(
        self, policy: Policy, data: Sequence[TRLItem], trainer: str, *, args: Mapping[str, Any] | None = None,
        reward_model: RewardModel | None = None, learning_rate: float | None = None, epochs: float | None = None,
    ) -> Policy:  # fmt: skip
        """A policy trained from `policy`, which is its reference too, by a trainer of TRL, on the data that this reads; see docs/trl.md.

        `args` are those of its configuration that the experiment does not decide. A trainer that samples responses to prompts needs a
        `reward_model`. What it samples and scores is charged, and a fit that spends more than is left ends within a step. Raises
        InputError, before anything is spent, for a trainer, data or arguments that cannot be.
        """
        form, args = trl_trainers.trl_trainer(trainer, args), dict(args or {})
        trl_trainers.check_data(trainer, data)
        if isinstance(policy, BestOfNPolicy):
            raise InputError("lab.train_with_trl: a best-of-n policy has no weights to train")
        if (reward_model is None) == (form.reads == "prompts"):
            wrong = "needs a reward model; give reward_model=" if reward_model is None else "reads no reward model; leave reward_model out"
            raise InputError(f"lab.train_with_trl: {trainer} {wrong}")
        sampling = self._policy_model.sampling if reward_model else None
        if sampling and (sampling.engine or not sampling.temperature):
            key, why = ("engine", "in its own process") if sampling.engine else ("temperature: 0", "at random")
            raise InputError(f"models.policy.sampling.{key}: {trainer} samples {why}")
        changes = {name: value for name, value in (("learning_rate", learning_rate), ("epochs", epochs)) if value is not None}
        recipe = resolved(self._policy_model.training.model_copy(update=changes), self._device)
        updates = recipe.updates(form.items(len(data), args))
        samples = form.sampled(updates, recipe, args)
        spec, parts = self._reward_model, members(self._reward_model)
        self._before(
            f"{trainer} on {len(data)} {form.reads}",
            policy_updates=updates, sampled_responses=samples, scored_responses=samples * len(parts),
        )  # fmt: skip
        ensemble = reward_model.members if isinstance(reward_model, EnsembleRewardModel) else ()
        scales = tuple(self._scale(*each) for each in zip(ensemble, parts, strict=True)) if ensemble else ()
        token_ids = self._sampled_ids([item for item in data if not isinstance(item, Prompt)])
        inputs = {
            "policy": policy.key,
            "trainer": {"name": trainer, "args": args, "trl": trl_trainers.version()},
            "data": digest([item.id if isinstance(item, Prompt) else _row(item) for item in data]),
            "token_ids": digest(token_ids),
            "reward_model": reward_model.key if reward_model else None,
            "spec": [_described_spec(part) for part in parts] if reward_model else None,
            "scales": scales,
            "sampling": sampling.model_dump() if sampling else None,
            "recipe": recipe.model_dump(),
            "format": self._format(),
        }
        seed, left = self._derived_seed("train_policy"), {unit: self._ledger.left(unit) for unit in self._ledger.budget}
        job = TRLTraining(
            policy, tuple(data), trainer, args, reward_model, spec, self._policy_model, recipe, updates, seed, self._ledger.arm, left,
            scales, token_ids,
        )  # fmt: skip
        artifact, _ = self._memo("policies", inputs, lambda folder: self._engine.train_with_trl(job, folder))
        return Policy(artifact.key)

    def best_of_n(self, policy: Policy, reward_model: RewardModel, n: int) -> Policy:
        """A policy that answers with the best of n samples of `policy` by the reward model; nothing is spent until it is sampled."""
        if n < 1:
            raise InputError(f"lab.best_of_n: n is 1 or more, got {n}")
        return BestOfNPolicy(identity("best of n", policy.key, reward_model.key, str(n)), policy, reward_model, n)

    def finish_round(self, policy: Policy, reward_model: RewardModel | None = None) -> None:
        """Record a round's outcome; each is evaluated on held-out prompts, out of the method's sight."""
        self._ledger.settle()
        self.rounds.append(Round(policy, reward_model))
        self._progress(f"round {len(self.rounds)} done", self._ledger.used)

    # --- inside ---------------------------------------------------------------------------------------------------------

    def _before(self, stage: str, **amounts: float) -> None:
        self._ledger.settle()
        self._ledger.admit(**amounts)
        self._progress(stage, self._ledger.used)

    def _report(self, stage: str) -> None:
        """Of a verb that takes many steps."""
        self._progress(stage, self._ledger.used)

    def _memo(
        self,
        kind: str,
        inputs: Mapping[str, Any],
        compute: Callable[[Path], Computed[T]],
        save: Callable[[Path, T], None] | None = None,
        load: Callable[[Path], T] | None = None,
    ) -> tuple[Artifact, Any]:
        named = {"seed": self._seed, **inputs, "code": code_hash(__name__), "engine": self._engine.identity}
        artifact, value = self._store.computed(kind, named, compute, save, load)
        self._ledger.charge(artifact.counts)
        self.charged[artifact.key] = artifact.counts
        self.wall_s += artifact.wall_s
        self.peak_memory_bytes = max(self.peak_memory_bytes, artifact.peak_memory_bytes)
        self.peak_device_bytes = max(self.peak_device_bytes, artifact.peak_device_bytes)
        return artifact, value

    def _sampled_ids(self, data: Sequence[TrainingItem]) -> dict[str, dict[str, tuple[int, ...]]]:
        """The ids of those responses in the data that were sampled here."""
        token_ids: dict[str, dict[str, tuple[int, ...]]] = {}
        for item in data:
            sampled = self._sampled.get(item.prompt.id, {})
            known = {text: ids for text in sides_of(item) if text in sampled and (ids := sampled[text].token_ids) is not None}
            if known:
                token_ids.setdefault(item.prompt.id, {}).update(known)
        return token_ids

    def _cut_texts(self, items: Sequence[tuple[Prompt, str]]) -> CutTexts:
        """Those responses that were sampled and cut at the length limit, by prompt id."""
        sampled = (self._sampled.get(prompt.id, {}).get(text) for prompt, text in items)
        return cut_texts(response for response in sampled if response is not None)

    def _grant(self, unit: Any, items: Sequence[T], n: int | None, name: Callable[[T], str]) -> tuple[T, ...]:
        if n is None:
            n = int(min(len(items), self._ledger.budget.get(unit, float("inf"))))
        chosen = self._subset(items, n, unit, unit)
        self.granted[unit] = max(n, self.granted.get(unit, 0))
        self._ledger.settle()
        self._ledger.see(unit, map(name, chosen))
        return chosen

    def _subset(self, items: Sequence[T], n: int | None, purpose: str, what: str) -> tuple[T, ...]:
        if n is not None and not 0 < n <= len(items):
            raise InputError(f"{what}: {n} asked for, {len(items)} there")
        order = np.random.default_rng(self._derived_seed(purpose)).permutation(len(items))
        return tuple([items[place] for place in order[:n].tolist()])

    def _derived_seed(self, *purpose: str) -> int:
        """Equal over arms, so that arms of one seed share their luck; different for every purpose."""
        return int(identity(str(self._seed), *purpose), 16) % 2**63

    def _format(self) -> dict[str, Any]:
        """The parts of the policy's settings that change what it reads and writes, and in which precision."""
        precision = {"dtype", "stored_dtype", "attention", "quantize"}
        limits, chat = {"max_prompt_tokens", "max_response_tokens"}, {"system_prompt", "chat_template_kwargs", "template_date"}
        return self._policy_model.model_dump(mode="json", include={*limits, *chat, *precision})

    def _scores_of(self, reward_model: RewardModel, items: Items) -> list[float]:
        """By the reward model; of an ensemble, its members' standardised scores as one."""
        spec = self._reward_model
        if not isinstance(spec, EnsembleReward):
            return self._single_scores(reward_model, spec, items)
        if not isinstance(reward_model, EnsembleRewardModel):
            raise InputError("lab.score: the experiment's reward model is an ensemble, and this is none")
        scaled = []
        for member, own in zip(reward_model.members, spec.of, strict=True):
            mean, sd = self._scale(member, own)
            scaled.append((np.asarray(self._single_scores(member, own, items)) - mean) / sd)
        return (np.mean(scaled, axis=0) if spec.combine == "mean" else np.min(scaled, axis=0)).tolist()

    def _scale(self, member: RewardModel, spec: SingleReward) -> tuple[float, float]:
        """Mean and sd of an ensemble member's scores on the dev split's human pairs, both sides."""
        if member.key not in self._scales:
            sides = Items((pair.prompt, text) for pair in self._dev_pairs for text in (pair.chosen, pair.rejected))
            scores = np.asarray(self._single_scores(member, spec, sides)) if sides else np.zeros(1)
            if not scores.std() > 0:
                why = "it scores them all alike" if sides else "the task has none"
                raise InputError(f"kind: ensemble: its {spec.kind} model cannot be standardised on dev's human pairs: {why}")
            self._scales[member.key] = float(scores.mean()), float(scores.std())
        return self._scales[member.key]

    def _single_scores(self, reward_model: RewardModel, spec: SingleReward, items: Items) -> list[float]:
        self._before(f"scoring {len(items)}", scored_responses=len(items))
        cut = self._cut_texts(items) if items.cut is None else items.cut
        inputs = {"reward_model": reward_model.key, "spec": _described_spec(spec), "items": digest_encoded(items.encoded)}
        inputs |= {"cut": _listed(cut)} if cut else {}
        inputs |= {"seed": None} if isinstance(spec, FinishedReward) else {}  # no seed changes such a model
        job = ScoringJob(reward_model, items, spec, cut)
        return self._memo("scores", inputs, lambda folder: self._engine.score(job), save_scores, load_scores)[1]


def _described_spec(spec: SingleReward) -> dict[str, Any]:
    if isinstance(spec, JudgeReward):  # its prices and its pace change no score
        return dict(ResponseScorer.of(spec).identity)
    return spec.model_dump(mode="json", exclude={"path"})


def _base(spec: SingleReward, body: Policy | None) -> str | None:
    """What a reward model starts from, by content where it lies here, so that a moved folder keeps its keys."""
    return (body.key if body else path_identity(spec.path)) if isinstance(spec, NetworkReward) else None


def _listed(cut: CutTexts) -> list[tuple[str, list[str]]]:
    """Cut texts for a key."""
    return sorted((name, sorted(texts)) for name, texts in cut.items())


def save_scores(folder: Path, scores: Sequence[float]) -> None:
    (folder / "scores.json").write_text(json.dumps(list(scores)))


def load_scores(folder: Path) -> list[float]:
    return json.loads((folder / "scores.json").read_text())


def _save_responses(folder: Path, responses: Sequence[Response]) -> None:
    rows = ({"prompt_id": row.prompt.id, **{name: getattr(row, name) for name in STORED}} for row in responses)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "responses.jsonl").write_text(lines, encoding="utf-8")


def _load_responses(folder: Path, prompts: Sequence[Prompt], n: int) -> tuple[Response, ...]:
    rows = [json.loads(line) for line in (folder / "responses.jsonl").read_text(encoding="utf-8").split("\n") if line]
    parts: list[list[Any]] = [[tuple(row[name]) if isinstance(row[name], list) else row[name] for name in STORED] for row in rows]
    return tuple(Response(prompt, *part) for prompt, part in zip([prompt for prompt in prompts for _ in range(n)], parts, strict=True))


def _row(item: TrainingItem) -> tuple[Any, ...]:
    """What a training item is, for a memo key."""
    if isinstance(item, Group):
        return item.prompt.id, item.responses, item.scores
    if isinstance(item, UnpairedExample):
        return item.prompt.id, item.response, item.desirable, *(() if item.mismatched is None else (item.mismatched,))
    return item.prompt.id, item.id if isinstance(item, Pair) else item.response


def _described(loss: Any) -> dict[str, Any]:
    """A loss by class, code and fields: two closures may have equal source, two dataclasses may not."""
    if not is_dataclass(loss) or isinstance(loss, type):
        raise InputError(f"loss {loss!r}: a loss is a dataclass instance, so that its fields enter the memo key")
    own = {field.name: getattr(loss, field.name) for field in fields(loss)}
    described = {name: _described(value) if is_dataclass(value) else value for name, value in own.items()}  # a loss of a loss
    return {"class": type(loss).__qualname__, "code": code_hash(Path(inspect.getfile(type(loss)))), **described}
