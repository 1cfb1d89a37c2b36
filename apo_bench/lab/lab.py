"""The Lab: everything a method may do, and nothing else.

Every verb is metered (it charges the arm's ledger), memoised by content (equal work is done once, over arms and crashes),
replayable (finished verbs return at once) and blind (no gold reward model, dev or test prompt is reachable, and an arm's prompts that the
Lab did not hand out are refused). `blind` protects against mistakes, not malice: a method is code that runs as the user. Repeating
`sample` with the same arguments returns the same samples; `draw` gives fresh ones.

The Lab computes nothing itself: an engine does.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain, islice
from typing import Any, Literal, TypeVar

import numpy as np

from apo_bench.config.schema import EnsembleReward, FinishedModel, PolicyModel, Recipe, RewardSpec, Sampling, Unit, members
from apo_bench.engines.mismatch import ELSEWHERE
from apo_bench.engines.protocol import Engine, Items, SamplingJob
from apo_bench.errors import InputError
from apo_bench.hashing import code_hash, digest
from apo_bench.lab import finished_policies, key_parts
from apo_bench.lab.ledger import UNITS, Ledger
from apo_bench.lab.metered_store import ArtifactStore, MeteredStore, Progress
from apo_bench.lab.reward_models import ArmRewardModel
from apo_bench.lab.stored_results import load_responses, save_responses
from apo_bench.models.precision import resolved
from apo_bench.store import Computed
from apo_bench.training import trl_trainers
from apo_bench.training.data import check_data, check_online, sides_of
from apo_bench.training.training_spec import OnlineTraining, PolicyTraining, TRLItem, TRLTraining
from apo_bench.types import (
    BestOfNPolicy,
    CutTexts,
    Demonstration,
    EnsembleRewardModel,
    FinishedPolicy,
    Golden,
    Group,
    Pair,
    Policy,
    Prompt,
    Response,
    ResponseFile,
    RewardModel,
    Round,
    TrainingData,
    TrainingItem,
    UnpairedExample,
    cut_texts,
    identity,
)

T = TypeVar("T")


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
        is_arms: bool = False,
    ) -> None:
        self.initial_policy = initial_policy
        self.rounds: list[Round] = []
        self.granted: dict[Unit, int] = {}  # the most items drawn at a time, of human pairs and golden responses
        self._engine, self._ledger, self._data, self._is_arms = engine, ledger, data, is_arms
        self._store = MeteredStore(store, engine, ledger, seed, code_hash(__name__), progress, charged)
        self._device = engine.hardware.get("device")  # of which keys hold what each `auto` means
        self._policy_model, spec = resolved(policy_model, self._device), resolved(reward_model, self._device)
        self._charged_elsewhere = False
        self._sampled: dict[str, dict[str, Response]] = {}  # everything sampled, by prompt id and text
        self._reward_model = ArmRewardModel(spec, reward_bodies, dev_pairs, data, engine, self._store, self._cut_texts)

    @property
    def seed(self) -> int:
        """The run seed, which names what was made elsewhere for it; what is random here is drawn by the Lab."""
        return self._store.seed

    @property
    def seen(self) -> Mapping[Unit, set[str]]:
        """Human pairs and golden responses seen so far, by identity."""
        return self._ledger.seen

    @property
    def used(self) -> Mapping[Unit, float]:
        """What the arm has spent so far, by unit."""
        return self._ledger.used

    @property
    def charged(self) -> Mapping[str, Mapping[str, float]]:
        """Every distinct artifact used, with its counts."""
        return self._store.charged

    @property
    def wall_s(self) -> float:
        """Seconds that the arm's artifacts took to compute, whoever computed them."""
        return self._store.wall_s

    @property
    def peak_memory_bytes(self) -> float:
        """The most that one of them took."""
        return self._store.peak_memory_bytes

    @property
    def peak_device_bytes(self) -> float:
        """The same of a device's memory."""
        return self._store.peak_device_bytes

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
        self._refuse_foreign("lab.sample", prompts)
        sampling = sampling or self._policy_model.sampling
        if isinstance(policy, ResponseFile):
            return finished_policies.responses_of(policy, prompts, n)
        if isinstance(policy, BestOfNPolicy):
            candidates = self.sample(policy.policy, prompts, n * policy.n, draw, sampling)
            scores = self._reward_model.scores(policy.reward_model, Items.of(candidates))
            groups = (range(start, start + policy.n) for start in range(0, len(candidates), policy.n))
            return tuple(candidates[max(group, key=scores.__getitem__)] for group in groups)  # among equals the first
        model = policy.settings if isinstance(policy, FinishedPolicy) else self._policy_model
        self._store.admit(f"sampling {len(prompts)} x {n}", sampled_responses=len(prompts) * n)
        inputs = {
            "policy": policy.key,
            "prompts": [prompt.id for prompt in prompts],
            "n": n,
            "draw": draw,
            "sampling": sampling.model_dump(exclude={"engine"}),
            "sampler": self._engine.sampler(sampling, model),
            "format": key_parts.of_format(model),
        }
        job = SamplingJob(policy, tuple(prompts), n, sampling, model, self._store.derived_seed("sample", str(draw)))
        load = partial(load_responses, prompts=prompts, n=n)
        _, responses = self._store.computed("samples", inputs, lambda folder: self._engine.generate(job), save_responses, load)
        for response in reversed(responses):  # where a text was sampled twice, the first counts, as it does in best_of
            response = replace(response, token_ids=None) if isinstance(policy, FinishedPolicy) else response  # of its own vocabulary
            known = self._sampled.setdefault(response.prompt.id, {})
            if response.token_ids is not None or response.text not in known:
                known[response.text] = response
        return tuple(responses)

    def score(self, reward_model: RewardModel, responses: Sequence[Response] | Sequence[tuple[Prompt, str]]) -> tuple[Group, ...]:
        """The reward model's scores, grouped by prompt in order of first appearance. A sample cut at the length limit has no end."""
        items = Items.of(responses)
        self._refuse_foreign("lab.score", (prompt for prompt, _ in items))
        scores = self._reward_model.scores(reward_model, items)
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
        self._refuse_foreign("lab.train_reward_model", (pair.prompt for pair in pairs))
        return self._reward_model.trained(pairs, loss, start)

    @property
    def finished_reward_model(self) -> RewardModel | None:
        """The experiment's reward model where it is a finished one, which methods use as it is; None: they train it."""
        return self._reward_model.finished

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
        recipe = self._recipe(recipe, learning_rate, epochs)
        if not data:
            raise InputError("lab.train_policy: no data to train on")
        self._refuse_foreign("lab.train_policy", (item.prompt for item in data))
        check_data(loss, data, reference is not None, recipe)
        _check_weights("lab.train_policy", policy, reference)
        self._store.admit(f"policy on {len(data)} {loss.reads}", policy_updates=recipe.updates(len(data)))
        token_ids = self._sampled_ids(data)
        inputs = {
            "policy": policy.key,
            "reference": reference.key if reference else None,
            "data": digest([key_parts.of_item(item) for item in data]),
            "token_ids": digest(token_ids),
            "loss": key_parts.of_loss(loss),
            "recipe": recipe.model_dump(),
            "format": key_parts.of_format(self._policy_model),
        }
        seed = self._store.derived_seed("train_policy")
        job = PolicyTraining(policy, tuple(data), loss, reference, self._policy_model, recipe, seed, token_ids)  # pyright: ignore
        artifact, _ = self._store.computed("policies", inputs, lambda folder: self._engine.train_policy(job, folder))
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
        epochs: float | None = None,
        recipe: Recipe | None = None,
        sampling: Sampling | None = None,
    ) -> Policy:
        """A policy trained from `policy` on samples of itself, scored by the reward model, in so many steps.

        A step takes the next prompts_per_step policy prompts of a shuffled pass, another for every `draw`, samples n responses to each
        from the current weights, and trains on these by the recipe: `batch_size` responses an update, `epochs` passes over the step's.
        `algorithm` is an OnlineAlgorithm; or a PolicyLoss of pairs, which gets each prompt's best sample over its worst, and `batch_size`
        pairs an update. `reference` stays as it is. Optimizer and schedule go on from step to step. The learning rate or epochs given here
        take the place of the recipe's. Raises InputError, before anything is spent, for what does not go together.
        """
        recipe = self._recipe(recipe, learning_rate, epochs)
        sampling, spec, split = sampling or self._policy_model.sampling, self._reward_model.spec, self._data.prompts["policy"]
        check_online(algorithm, reference is not None, recipe, len(split), steps, prompts_per_step, n)
        _check_weights("lab.train_online", policy, reference)
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
            self._policy_model, spec, recipe, sampling, self._store.derived_seed("train_online", str(draw)),
        )  # fmt: skip
        samples = len(job.prompts) * n
        self._store.admit(
            f"online training: {steps} steps of {prompts_per_step} x {n}",
            sampled_responses=samples, scored_responses=samples * len(parts), policy_updates=steps * job.updates_per_step,
        )  # fmt: skip
        job = replace(job, scales=self._reward_model.scales(reward_model))
        inputs = {
            "online": {"steps": steps, "n": n, "draw": draw, "prompts": digest([prompt.id for prompt in job.prompts])},
            "policy": policy.key,
            "reference": reference.key if reference else None,
            "reward_model": reward_model.key,
            "spec": [key_parts.of_reward_spec(part) for part in parts],
            "scales": job.scales,
            "loss": key_parts.of_loss(algorithm),
            "recipe": recipe.model_dump(),
            "sampling": sampling.model_dump(exclude={"engine"}),
            "format": key_parts.of_format(self._policy_model),
        }
        artifact, _ = self._store.computed("policies", inputs, lambda folder: self._engine.train_online(job, folder, self._store.report))
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
        form, args, recipe = trl_trainers.trl_trainer(trainer, args), dict(args or {}), self._recipe(None, learning_rate, epochs)
        trl_trainers.check_data(trainer, data, recipe, args)
        _check_weights("lab.train_with_trl", policy)
        if (reward_model is None) == (form.reads == "prompts"):
            wrong = "needs a reward model; give reward_model=" if reward_model is None else "reads no reward model; leave reward_model out"
            raise InputError(f"lab.train_with_trl: {trainer} {wrong}")
        sampling = self._policy_model.sampling if reward_model else None
        if sampling and (sampling.engine or not sampling.temperature):
            key, why = ("engine", "in its own process") if sampling.engine else ("temperature: 0", "at random")
            raise InputError(f"models.policy.sampling.{key}: {trainer} samples {why}")
        updates = recipe.updates(form.items(len(data), args))
        samples = form.sampled(updates, recipe, args)
        spec, parts = self._reward_model.spec, members(self._reward_model.spec)
        self._store.admit(
            f"{trainer} on {len(data)} {form.reads}",
            policy_updates=updates, sampled_responses=samples, scored_responses=samples * len(parts),
        )  # fmt: skip
        self._refuse_foreign("lab.train_with_trl", (item if isinstance(item, Prompt) else item.prompt for item in data))
        scales = self._reward_model.scales(reward_model)
        token_ids = self._sampled_ids([item for item in data if not isinstance(item, Prompt)])
        inputs = {
            "policy": policy.key,
            "trainer": {"name": trainer, "args": args, "trl": trl_trainers.version()},
            "data": digest([item.id if isinstance(item, Prompt) else key_parts.of_item(item) for item in data]),
            "token_ids": digest(token_ids),
            "reward_model": reward_model.key if reward_model else None,
            "spec": [key_parts.of_reward_spec(part) for part in parts] if reward_model else None,
            "scales": scales,
            "sampling": sampling.model_dump() if sampling else None,
            "recipe": recipe.model_dump(),
            "format": key_parts.of_format(self._policy_model),
        }
        seed, left = self._store.derived_seed("train_policy"), {unit: self._ledger.left(unit) for unit in self._ledger.budget}
        job = TRLTraining(
            policy, tuple(data), trainer, args, reward_model, spec, self._policy_model, recipe, updates, seed, self._ledger.arm, left,
            scales, token_ids,
        )  # fmt: skip
        artifact, _ = self._store.computed("policies", inputs, lambda folder: self._engine.train_with_trl(job, folder))
        return Policy(artifact.key)

    def best_of_n(self, policy: Policy, reward_model: RewardModel, n: int) -> Policy:
        """A policy that answers with the best of n samples of `policy` by the reward model; nothing is spent until it is sampled."""
        if n < 1:
            raise InputError(f"lab.best_of_n: n is 1 or more, got {n}")
        return BestOfNPolicy(identity("best of n", policy.key, reward_model.key, str(n)), policy, reward_model, n)

    def finished_policy(
        self, path: str, *, base: str | None = None, model: FinishedModel | None = None, cost: Mapping[Unit, float] | None = None
    ) -> Policy:
        """A policy that was trained elsewhere, to be sampled and evaluated: a model folder, a hub id, or a folder of adapters on `base`.

        It stays where it is, and the same in every seed. `model`: settings in place of the experiment's. `cost`: what all finished
        policies of the arm cost together, as declared; of other units, and without it of all, the cost is not known, and matches nothing.
        Raises InputError for a folder that is none.
        """
        policy = finished_policies.finished_policy(path, base, model or FinishedModel(), self._policy_model, self._engine, self._store)
        self._spent_elsewhere(policy.key, cost)
        return policy

    def finished_responses(self, path: str, *, cost: Mapping[Unit, float] | None = None) -> Policy:
        """Responses out of a file in place of a policy: rows of a prompt, matched by its text, and a response to it.

        Prompts that the file lacks have none. Lengths are counted in the initial policy's tokens. `cost`: as of `finished_policy`.
        """
        file = finished_policies.response_file(path, self.initial_policy, self._policy_model, self._engine, self._store)
        self._spent_elsewhere(file.key, cost)
        return file

    def finish_round(self, policy: Policy, reward_model: RewardModel | None = None) -> None:
        """Record a round's outcome; each is evaluated on held-out prompts, out of the method's sight."""
        self._ledger.settle()
        self.rounds.append(Round(policy, reward_model))
        self._store.report(f"round {len(self.rounds)} done")

    # --- inside ---------------------------------------------------------------------------------------------------------

    def _refuse_foreign(self, verb: str, prompts: Iterable[Prompt]) -> None:
        """Raise InputError for a prompt that an arm did not get from its lab: by mistake it may be one that the arm is tested on."""
        if self._is_arms and (foreign := next((prompt for prompt in prompts if prompt not in self._handed_out), None)):
            start = foreign.messages[-1].content[:40] if foreign.messages else ""
            raise InputError(f"{verb}: a prompt that is none of this lab's ({foreign.id}: {start!r}); prompts, pairs and golden have them")

    @cached_property
    def _handed_out(self) -> frozenset[Prompt]:
        data = self._data
        parts = (*data.prompts.values(), (pair.prompt for pair in data.pairs), (golden.prompt for golden in data.golden))
        return frozenset(chain.from_iterable(parts))

    def _recipe(self, recipe: Recipe | None, learning_rate: float | None, epochs: float | None) -> Recipe:
        """A recipe, or the experiment's, with a learning rate and epochs in place of its own where they are given."""
        changes = {name: value for name, value in (("learning_rate", learning_rate), ("epochs", epochs)) if value is not None}
        return resolved((recipe or self._policy_model.training).model_copy(update=changes), self._device)

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
        order = np.random.default_rng(self._store.derived_seed(purpose)).permutation(len(items))
        return tuple([items[place] for place in order[:n].tolist()])

    def _spent_elsewhere(self, key: str, cost: Mapping[Unit, float] | None) -> None:
        """Charge once what all finished policies cost: as declared, else NaN, which no match equals."""
        if not self._charged_elsewhere:
            amounts = {ELSEWHERE: 1.0, **{str(unit): (cost or {}).get(unit, math.nan) for unit in UNITS}}
            inputs = {"of": key, "cost": dict(cost or {})}
            self._store.computed("costs", inputs, lambda folder: Computed(None, amounts))
            self._charged_elsewhere = True
        self._ledger.settle()


def _check_weights(verb: str, *policies: Policy | None) -> None:
    """Raise InputError for a policy that cannot be trained, or compared with."""
    for policy in policies:
        if isinstance(policy, BestOfNPolicy):
            raise InputError(f"{verb}: a best-of-n policy has no weights to train, or to compare with")
        if isinstance(policy, FinishedPolicy | ResponseFile):
            raise InputError(f"{verb}: {policy.path} is finished, to be sampled and evaluated; to train it, give it as models.policy.path")
