"""The engine of plans: it counts what every verb would spend, and nothing is sampled, scored, trained or written.

A response is a placeholder of the expected length, a score is drawn at random, a model is a key. Counts that a run knows beforehand come
out as in a run; tokens and FLOPs are expectations.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from apo_bench.config.schema import (
    EnsembleReward,
    Experiment,
    FinishedReward,
    JudgeReward,
    Lora,
    NetworkReward,
    NgramReward,
    PolicyModel,
    Sampling,
    members,
)
from apo_bench.data.task import Task
from apo_bench.engines.model_sizes import Placeholder, PolicySize, RewardSize, Stored, policy_size, reward_size
from apo_bench.engines.passes import Passes
from apo_bench.engines.protocol import CapabilityJob, Items, KLJob, SamplingJob, ScoringJob
from apo_bench.errors import InputError
from apo_bench.hashing import digest, digest_encoded
from apo_bench.store import Artifact, Computed, key_of
from apo_bench.training.training_spec import OnlineTraining, PolicyTraining, RewardModelTraining, TRLTraining
from apo_bench.training.trl_trainers import own_training, trl_trainer
from apo_bench.types import Demonstration, FinishedPolicy, Pair, Policy, Prompt, Response

EXAMPLES = 2000  # responses of the task that lengths and words are taken from
KEPT = 1_000_000  # samples and scores that a plan keeps for arms that ask for the same
BLOCK = 4096  # files take whole blocks of a disk
ROW, TOKEN, SCORE, NAME = 75, 7, 21, 8  # bytes of a sample beside its text and ids, of an id, of a number, of a name in a list beside it
STEP = 420  # bytes of a row of an online training
MANIFEST, NGRAM = 2000, 25_000  # bytes of an artifact's manifest, of a small n-gram model
T = TypeVar("T")


@dataclass(frozen=True)
class PlannedArtifact:
    """An artifact that a run would compute. `work`: see `plan.accounts.Work`; `weights`: those of its bytes that are a model's; `within`:
    work of other kinds that computing it takes.
    """

    kind: str
    work: float
    bytes: float
    weights: float = 0.0
    within: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimated(Computed[T]):
    """A value, its counts, and what computing and storing it would take."""

    work: float
    bytes: float
    weights: float = 0.0
    within: Mapping[str, float] = field(default_factory=dict)


@dataclass
class CountingStore:
    """Keeps no file: every artifact that a run would compute, once, in the order in which it would."""

    planned: dict[str, PlannedArtifact] = field(default_factory=dict)
    _estimates: dict[str, Estimated[Any]] = field(default_factory=dict)  # by key, those used last at the end: arms share them
    _sizes: dict[str, int] = field(default_factory=dict)  # of their values

    def computed(
        self,
        kind: str,
        inputs: Mapping[str, Any],
        compute: Callable[[Path], Computed[T]],
        save: Callable[[Path, T], None] | None = None,
        load: Callable[[Path], T] | None = None,
    ) -> tuple[Artifact, Any]:
        """The value as the counting engine gives it, under the key of its inputs."""
        key = digest({"kind": kind, **_without_code(inputs)})
        estimate = self._estimates.pop(key, None) or compute(Path(os.devnull) / key)
        if not isinstance(estimate, Estimated):  # what no engine computes
            estimate = Estimated(estimate.value, estimate.counts, 0.0, disk_bytes(MANIFEST))
        self._keep(key, estimate)
        self.planned.setdefault(key, PlannedArtifact(kind, estimate.work, estimate.bytes, estimate.weights, estimate.within))
        value: Any = estimate.value
        return Artifact(key, Path(os.devnull), estimate.counts, 0.0, 0.0), value

    def forget(self) -> None:
        """Let the values go; what is planned stays."""
        self._estimates.clear()
        self._sizes.clear()

    def _keep(self, key: str, estimate: Estimated[Any]) -> None:
        """Keep an estimate; those with the oldest values go where all values have more than KEPT entries."""
        self._estimates[key] = estimate
        if estimate.value is not None:
            self._sizes.pop(key, None)
            self._sizes[key] = len(estimate.value)
        while len(self._sizes) > 1 and sum(self._sizes.values()) > KEPT:
            oldest = next(iter(self._sizes))
            del self._sizes[oldest], self._estimates[oldest]


def _without_code(inputs: Any) -> Any:
    """Inputs of a key without hashes of code: what is drawn by the key, and so the plan, does not change with a comment somewhere."""
    if not isinstance(inputs, Mapping):
        return inputs
    return {name: _without_code(value) for name, value in inputs.items() if name != "code"}


class Expected:
    """What the policy is expected to answer, and how large the models are.

    `response_tokens` is an answer's mean length, its end included; None: that of the task's own responses (what an architecture is warmed
    up on, or the chosen sides of the rm split). `initial_tokens`: that of the initial policy's, where it was trained elsewhere, on other
    texts; whatever is trained here is taken to answer as the task does. No answer is longer than the sampling settings allow.
    """

    def __init__(
        self, experiment: Experiment, task: Task, response_tokens: float | None = None, initial_tokens: float | None = None
    ) -> None:
        models = experiment.models
        self.policy: PolicySize = policy_size(models.policy, task.vocabulary)
        self._task, self._policy_model, self._rewards = task, models.policy, dict[str, RewardSize]()
        warmed_up = [demonstration.response for demonstration in task.demonstrations] if models.policy.warmup else []
        texts = [" ".join(text.split()) for text in (warmed_up or [pair.chosen for pair in task.pairs["rm"]])[:EXAMPLES]]
        self._lengths = np.array([self.policy.response(text, limit=2**30) for text in texts], dtype=float)
        self._words = [word for text in texts for word in text.split()]
        if not self._words:
            raise InputError("plan: the task has no response whose length could be expected; give response_tokens")
        self._words_per_token = len(self._words) / max(1.0, float((self._lengths - 1).sum()))
        self._given = {False: response_tokens, True: initial_tokens if response_tokens is None else response_tokens}

    def tokens(self, sampling: Sampling, *, initial: bool = False) -> float:
        """The mean length of an answer at these settings; of the initial policy's, or of one's that is trained here."""
        given = self._given[initial]
        return float(np.minimum(self._lengths if given is None else given, sampling.max_new_tokens).mean())

    def answers(
        self, prompts: Sequence[Prompt], sampling: Sampling, rng: np.random.Generator, name: str, *, initial: bool = False
    ) -> tuple[Response, ...]:
        """A placeholder for each prompt, no two of them equal, in other calls by another name neither.

        Its text has as many words of the task's own responses as an answer of the expected length, the last of them its name.
        """
        mean = self.tokens(sampling, initial=initial)
        numbers = np.maximum(1, np.floor(mean + rng.random(len(prompts)))).astype(int).tolist()  # up or down, so that the mean stays
        finishes: dict[int, Literal["eos", "length"]] = {n: "length" if n >= sampling.max_new_tokens else "eos" for n in set(numbers)}
        bodies = {tokens: self._body(tokens, cut=finish == "length") for tokens, finish in finishes.items()}
        heads = {tokens: body + name for tokens, body in bodies.items()}
        answers: list[Response] = []
        for place, (prompt, tokens) in enumerate(zip(prompts, numbers, strict=True)):  # a million times in a plan
            text = Placeholder(f"{heads[tokens]}{place}")
            text.body, text.tokens = bodies[tokens], tokens
            answers.append(Response(prompt, text, tokens, finishes[tokens]))
        return tuple(answers)

    def _body(self, tokens: int, *, cut: bool) -> str:
        """All words but the last of a placeholder for so many tokens, with a space behind each."""
        count = max(0, round((tokens if cut else tokens - 1) * self._words_per_token) - 1)
        return "".join(f"{self._words[place % len(self._words)]} " for place in range(count))

    def reward(self, spec: NetworkReward) -> RewardSize:
        """One for all labs with such a reward model."""
        key = spec.model_dump_json()
        if key not in self._rewards:
            self._rewards[key] = reward_size(spec, self._policy_model, self._task.axes, self._task.vocabulary)
        return self._rewards[key]


class CountingEngine:
    """The Engine of a plan. Sizes of models are those of their configurations; no weight is loaded."""

    identity: Mapping[str, Any] = {"name": "counting"}

    def __init__(self, expected: Expected, task: Task, device: str) -> None:
        self.expected, self.task = expected, task
        self.hardware: Mapping[str, Any] = {"device": device}
        self.passes = Passes()
        self._policies: dict[str, PolicySize] = {}  # by key
        self.bases: dict[str, tuple[str, Lora | None]] = {}  # of policies with adapters: what they stand on, by key, and their settings
        self.trainers: set[str] = set()  # of TRL, whose passes are taken to be those of our own fits
        self.initial_key: str | None = None  # of the initial policy, whose answers may have another length than those of trained ones

    def create_policy(self, model: PolicyModel, vocabulary: Sequence[str] | None, into: Path) -> Computed[None]:
        size = self.expected.policy if model == self.expected.policy.spec else policy_size(model, vocabulary)
        self._policies[key_of(into)] = size
        stored = size.whole(model)
        return Estimated(None, {}, 0.0, stored.weights + disk_bytes(MANIFEST, *stored.files), stored.weights)

    def keep_in_place(self, policy: FinishedPolicy, into: Path) -> Computed[None]:
        """Of adapters the size of their base."""
        size = self._policies[policy.base.key] if policy.base else policy_size(policy.settings, None)
        self._policies[key_of(into)] = size
        return Estimated(None, {}, 0.0, disk_bytes(SCORE, MANIFEST))

    def count_tokens(self, policy: Policy, texts: Sequence[str], model: PolicyModel) -> Computed[list[float]]:
        lengths = [float(n + 1) for n in self._policies[policy.key].tokens(texts)]
        return Estimated(lengths, {}, 0.0, disk_bytes(SCORE * len(texts), MANIFEST))

    def copy_policy(self, key: str, to: str, named: Callable[[str], str]) -> None:
        """Know a planned policy by another key, too; `named` gives that of the policy that its adapters stand on. Other models: nothing."""
        if key in self._policies:
            self._policies[to] = self._policies[key]
        if key in self.bases:
            base, lora = self.bases[key]
            self.bases[to] = (named(base), lora)

    def generate(self, job: SamplingJob) -> Computed[tuple[Response, ...]]:
        self.passes.sampled(job)
        prompts = [prompt for prompt in job.prompts for _ in range(job.n)]
        ids = [prompt.id for prompt in job.prompts]
        name = digest([job.policy.key, ids, job.n, job.sampling.model_dump(), job.seed])
        rng = np.random.default_rng(int(name, 16))
        answers = self.expected.answers(prompts, job.sampling, rng, f"{name}-", initial=job.policy.key == self.initial_key)
        tokens = [answer.tokens for answer in answers]
        texts = ROW * len(answers) + job.n * sum(map(len, ids)) + sum([len(answer.text) for answer in answers]) + TOKEN * sum(tokens)
        size = disk_bytes(texts, MANIFEST + sum(len(name) + NAME for name in ids))
        counts = self._policies[job.policy.key].sampled(job.prompts, job.n, tokens)
        return Estimated(answers, counts, len(answers) * job.sampling.max_new_tokens, size)

    def sampler(self, sampling: Sampling, model: PolicyModel) -> None:
        """Samples count alike, whoever draws them."""

    def score(self, job: ScoringJob) -> Computed[list[float]]:
        self.passes.scored(job)
        n, model = len(job.items), job.model
        counts = self.expected.reward(model).scored(job.items) if isinstance(model, NetworkReward) else {"scored_responses": n}
        # the hash of [key, items], whose items are encoded once
        name = digest_encoded(f'["{job.reward_model.key}",{Items.of(job.items).encoded}]')
        rng = np.random.default_rng(int(name, 16))
        return Estimated(rng.normal(size=n).tolist(), counts, counts.get("flops", 0.0), disk_bytes(SCORE * n, MANIFEST))

    def kl(self, job: KLJob) -> Computed[list[float]]:
        """Nobody's KL: zeros. Both policies read every response."""
        self.passes.compared(job)
        read = 2 * self.expected.policy.read_flops([(response.prompt, response.text) for response in job.responses])
        n = len(job.responses)
        return Estimated([0.0] * n, {}, read, disk_bytes(SCORE * n, MANIFEST / 2))

    def run_capabilities(self, job: CapabilityJob) -> Computed[list[dict[str, Any]]]:
        """Nothing is known of a task's items here; the plan says so."""
        return Computed([], {})

    def train_policy(self, job: PolicyTraining, into: Path) -> Estimated[None]:
        """Adapters go on where the policy has some with the same settings, else stand on it."""
        self.passes.trained_policy(job)
        counts = self._policies[job.policy.key].trained(job.data, job.loss, job.recipe)
        return _trained(self._trained_policy(job, into), counts)

    def _trained_policy(self, job: PolicyTraining | OnlineTraining, into: Path) -> Stored:
        """What a trained policy takes on disk, which is known by its key from here on."""
        size = self._policies[key_of(into)] = self._policies[job.policy.key]
        if (lora := job.recipe.lora) is None:
            return size.whole(job.model)
        base, before = self.bases.get(job.policy.key, ("", None))
        self.bases[key_of(into)] = (base if before == lora else job.policy.key, lora)
        return size.adapters(lora)

    def train_online(self, job: OnlineTraining, into: Path, report: Callable[[str], None]) -> Estimated[None]:
        """Every sample is trained on: none is left out, and no prompt's samples tie."""
        self.passes.trained_online(job)
        size, spent, work = self._policies[job.policy.key], Counter[str](), Counter[str]()
        for step in range(job.steps):
            name = digest([key_of(into), step])
            prompts = job.prompts_of(step)
            rng, initial = np.random.default_rng(int(name, 16)), step == 0 and job.policy.key == self.initial_key
            each = [prompt for prompt in prompts for _ in range(job.n)]
            answers = self.expected.answers(each, job.sampling, rng, f"{name}-", initial=initial)
            items = [(answer.prompt, answer.text) for answer in answers]
            spent.update(size.sampled(prompts, job.n, [answer.tokens for answer in answers]))
            for model in members(job.reward):
                scored = self.expected.reward(model).scored(items) if isinstance(model, NetworkReward) else {"scored_responses": len(items)}
                spent.update(scored)
                work.update({"scores": scored.get("flops", 0.0)})
            firsts, seconds = items[:: job.n], items[1 :: job.n]
            pairs = [Pair(prompt, text, other) for (prompt, text), (_, other) in zip(firsts, seconds, strict=True)] if job.is_paired else []
            trained = size.trained(pairs or [Demonstration(*item) for item in items], job.algorithm, job.recipe)
            first = size.read_flops(items) if job.reads_samples_first else 0.0
            spent.update({**trained, "flops": trained["flops"] + first})
            work.update({"policies": trained["flops"] + first, "samples": len(items) * job.sampling.max_new_tokens})
        stored = self._trained_policy(job, into)
        total = stored.weights + disk_bytes(STEP * job.steps, MANIFEST, *stored.files)
        return Estimated(None, spent, work.pop("policies"), total, stored.weights, work)

    def train_reward_model(self, job: RewardModelTraining, into: Path) -> Computed[None]:
        if isinstance(job.model, NgramReward):  # one convex fit, whose few weights are not worth counting
            return Estimated(None, {"rm_updates": 1}, 0.0, disk_bytes(SCORE, MANIFEST, NGRAM))
        if isinstance(job.model, FinishedReward) and not job.pairs:
            return Estimated(None, {}, 0.0, disk_bytes(SCORE, MANIFEST))
        assert not isinstance(job.model, EnsembleReward | JudgeReward)
        assert job.model.training is not None
        self.passes.trained_reward_model(job)
        size, lora = self.expected.reward(job.model), job.model.training.lora
        has_base = job.body is not None or job.model.path is not None
        return _trained(size.adapters(lora, 1000.0) if lora and has_base else size.whole(job.model), size.trained(job.pairs))

    def train_with_trl(self, job: TRLTraining, into: Path) -> Computed[None]:
        """Updates, samples and scores are known, and of tokens and FLOPs nothing: work and memory are those of our own fit of the data."""
        self.trainers.add(job.trainer)
        counts: dict[str, float] = {"policy_updates": job.updates, "policy_train_tokens": math.nan, "flops": math.nan}
        if samples := trl_trainer(job.trainer).sampled(job.updates, job.recipe, job.args):
            tokens = samples * self.expected.tokens(job.model.sampling)
            counts |= {"sampled_responses": samples, "sampled_tokens": tokens, "scored_responses": samples * len(members(job.reward))}
        own = own_training(job)
        fit = self.train_policy(own, into) if isinstance(own, PolicyTraining) else self.train_online(own, into, lambda stage: None)
        return replace(fit, counts=counts)


def _trained(stored: Stored, counts: Mapping[str, float]) -> Estimated[None]:
    updates = SCORE * (counts.get("rm_updates", 0) + counts.get("policy_updates", 0))  # the loss of each is kept
    total = stored.weights + disk_bytes(updates, MANIFEST, *stored.files)
    return Estimated(None, counts, counts.get("flops", 0.0), total, stored.weights)


def disk_bytes(*sizes: float) -> float:
    """Bytes of a disk that files of these sizes take, with the measured time and the folder that an artifact has beside them."""
    return BLOCK * (2 + sum(math.ceil(size / BLOCK) for size in sizes))
