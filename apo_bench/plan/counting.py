"""A Lab that only counts: methods play as in a run, and nothing is sampled, scored, trained or written.

Data, budget and ledger are the real ones. A sample is a placeholder of the expected length, a score is drawn by chance, a model is a key.
Counts that a run knows beforehand come out as there; tokens and FLOPs are expectations.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from apo_bench.bench import FLOOR, Bench
from apo_bench.budget import Ledger
from apo_bench.config import Experiment, NeuralReward, PolicyModel, RewardSpec, Sampling
from apo_bench.errors import InputError
from apo_bench.evaluate import Examination
from apo_bench.lab import Lab
from apo_bench.losses import RankingLoss, SFTLoss
from apo_bench.plan.sizes import PolicySize, RewardSize, policy_size, reward_size
from apo_bench.store import Artifact, RunStore, digest
from apo_bench.tasks import Task
from apo_bench.types import BestOfNPolicy, Policy, Prompt, Response, RewardModel, Round

EXAMPLES = 2000  # responses of the task that lengths and words are taken from


class Expected:
    """What the policy is expected to answer, and how large the models are.

    `response_tokens` is an answer's mean length, its end included; None: that of the task's own responses (what an architecture is warmed
    up on, or the chosen sides of the rm split). No answer is longer than the sampling settings allow.
    """

    def __init__(self, experiment: Experiment, task: Task, response_tokens: float | None = None) -> None:
        models = experiment.models
        self.policy: PolicySize = policy_size(models.policy, task.vocabulary)
        self._task, self._policy_model, self._rewards = task, models.policy, dict[str, RewardSize]()
        warmed_up = [one.response for one in task.demonstrations] if models.policy.warmup else []
        texts = [" ".join(text.split()) for text in (warmed_up or [pair.chosen for pair in task.pairs["rm"]])[:EXAMPLES]]
        self._lengths = np.array([self.policy.response(text, limit=2**30) for text in texts], dtype=float)
        self._words = [word for text in texts for word in text.split()]
        if not self._words:
            raise InputError("plan: the task has no response whose length could be expected; give response_tokens")
        self._words_per_token = len(self._words) / max(1.0, float((self._lengths - 1).sum()))
        self._given = response_tokens

    def tokens(self, sampling: Sampling) -> float:
        """The mean length of an answer at these settings."""
        lengths = self._lengths if self._given is None else np.array([self._given])
        return float(np.minimum(lengths, sampling.max_new_tokens).mean())

    def answers(self, prompts: Sequence[Prompt], sampling: Sampling, rng: np.random.Generator) -> tuple[Response, ...]:
        """A placeholder for each prompt, no two of them equal: words of the task's own responses, in numbers of the expected length."""
        mean, seen, found = self.tokens(sampling), set[str](), []
        for place, prompt in enumerate(prompts):
            tokens = max(1, math.floor(mean + rng.random()))  # at random up or down, so that the mean stays
            finish = "length" if tokens >= sampling.max_new_tokens else "eos"
            count = round((tokens if finish == "length" else tokens - 1) * self._words_per_token)
            text = " ".join(self._words[one] for one in rng.integers(len(self._words), size=count))
            text = f"{text} {place}".strip() if text in seen or not text else text
            seen.add(text)
            found.append(Response(prompt, text, tokens, finish))
        return tuple(found)

    def reward(self, spec: NeuralReward) -> RewardSize:
        """One for all labs with such a reward model."""
        key = spec.model_dump_json()
        if key not in self._rewards:
            self._rewards[key] = reward_size(spec, self._policy_model, self._task.axes, self._task.vocabulary)
        return self._rewards[key]


class CountingLab(Lab):
    """One arm-seed's workbench without models. `charged` names what a run would make, `disk_bytes` what of it would be kept as weights.

    Raises BudgetExceeded and InputError where the Lab would.
    """

    def __init__(self, expected: Expected, **fields: Any) -> None:
        super().__init__(**fields)
        self.annotation: dict[str, set[str]] = {"human_pairs": set(), "golden_responses": set()}
        self.disk_bytes: dict[str, float] = {}
        self.policy_size = expected.policy
        self._expected = expected
        self._count: Callable[[], Mapping[str, float]] = dict  # what the training under way is expected to spend

    def sample(
        self, policy: Policy, prompts: Sequence[Prompt], n: int = 1, draw: int = 0, sampling: Sampling | None = None
    ) -> tuple[Response, ...]:
        if isinstance(policy, BestOfNPolicy):
            return super().sample(policy, prompts, n, draw, sampling)
        sampling = sampling or self._policy_model.sampling
        self._before(f"sampling {len(prompts)} x {n}", sampled_responses=len(prompts) * n)
        asked = [prompt.id for prompt in prompts]
        inputs = {"policy": policy.key, "prompts": asked, "n": n, "draw": draw, "sampling": sampling.model_dump()}
        rng = np.random.default_rng(int(digest([inputs, self._seed]), 16))
        answers = self._expected.answers([prompt for prompt in prompts for _ in range(n)], sampling, rng)
        self._spend("samples", inputs, self.policy_size.sampled(prompts, n, [one.tokens for one in answers]))
        return answers

    def train_reward_model(self, *pair_sets: Sequence[Any], loss: Any, start: RewardModel | None = None) -> RewardModel:
        pairs, spec = [pair for pairs in pair_sets for pair in pairs], self._reward_model
        # an n-gram model is one convex fit, and its few weights are not worth counting
        neural = self._expected.reward(spec) if isinstance(spec, NeuralReward) else None
        self._count = lambda: neural.trained(pairs) if neural else {"rm_updates": 1}
        made = super().train_reward_model(*pair_sets, loss=loss, start=start)
        self.disk_bytes[made.key] = neural.bytes if neural else 0.0
        return made

    def train_policy(self, policy: Policy, data: Sequence[Any], loss: Any, **fields: Any) -> Policy:
        for one in (policy, fields.get("reference")):
            if isinstance(one, BestOfNPolicy):
                _ = self._policy_folder(one)  # it has none, and says so
        if loss.trains_on == "pairs" and fields.get("reference") is None:
            raise InputError(f"lab.train_policy: {type(loss).__name__} needs a reference policy")
        changes = {name: value for name in ("learning_rate", "epochs") if (value := fields.get(name)) is not None}
        recipe = (fields.get("recipe") or self._policy_model.training).model_copy(update=changes)
        self._count = lambda: self.policy_size.trained(data, loss, recipe)
        made = super().train_policy(policy, data, loss, **fields)
        self.disk_bytes[made.key] = self.policy_size.bytes
        return made

    def _scores_of(self, reward_model: RewardModel, items: Sequence[tuple[Prompt, str]]) -> list[float]:
        self._before(f"scoring {len(items)}", scored_responses=len(items))
        spec = self._reward_model
        counts = self._expected.reward(spec).scored(items) if isinstance(spec, NeuralReward) else {"scored_responses": len(items)}
        texts = digest([(prompt.id, text) for prompt, text in items])
        key = self._spend("scores", {"reward_model": reward_model.key, "items": texts}, counts).key
        return np.random.default_rng(int(key, 16)).normal(size=len(items)).tolist()

    def _memo(self, kind: str, inputs: Mapping[str, Any], build: Callable[[Path], Mapping[str, float]]) -> Artifact:
        return self._spend(kind, inputs, self._count())

    def _spend(self, kind: str, inputs: Mapping[str, Any], counts: Mapping[str, float]) -> Artifact:
        """An artifact that is only a key, of the inputs that determine a real one."""
        key = digest({"kind": kind, **inputs, "seed": self._seed})
        self._ledger.charge(counts)
        self.charged[key] = counts
        return Artifact(key, Path(os.devnull), counts, 0.0, 0.0)

    def _grant(self, unit: Any, items: Sequence[Any], n: int | None, name: Callable[[Any], str]) -> tuple[Any, ...]:
        chosen = super()._grant(unit, items, n, name)
        self.annotation[unit] |= set(map(name, chosen))
        return chosen

    def _base(self) -> str | None:
        """By name, where a run goes by content."""
        return self._reward_body.key if self._reward_body else getattr(self._reward_model, "path", None)


@dataclass(frozen=True)
class CountingBench(Bench):
    """The bench of an experiment whose labs only count."""

    expected: Expected = field(kw_only=True)
    disk_bytes: dict[str, float] = field(default_factory=dict, kw_only=True)
    bodies: dict[str, Policy] = field(default_factory=dict, kw_only=True)  # a lab asks for its reward model's each time

    def _lab(self, seed: int, initial_policy: Policy, reward_model: RewardSpec, ledger: Ledger) -> CountingLab:
        lab = CountingLab(self.expected, **self._lab_fields(seed, initial_policy, reward_model, ledger))
        if ledger.arm == "_bench":
            lab.disk_bytes = self.disk_bytes
        return lab

    def _language_model(self, spec: PolicyModel) -> Policy:
        known = digest(spec.model_dump())
        if known not in self.bodies:
            self.bodies[known] = self._warmed_up(spec)
        return self.bodies[known]

    def _warmed_up(self, spec: PolicyModel) -> Policy:
        base = Policy(digest(spec.model_dump(include={"architecture", "path", "seed"})))
        lab = self._lab(spec.seed, base, FLOOR, Ledger("_bench", {}))
        own = spec is self.experiment.models.policy
        lab.policy_size = self.expected.policy if own else policy_size(spec, self.task.vocabulary)  # or the body of a reward model
        self.disk_bytes[base.key] = lab.policy_size.bytes
        return lab.train_policy(base, self.task.demonstrations, SFTLoss(), recipe=spec.warmup) if spec.warmup else base

    def examine(self, round_: Round, seed: int, first: RewardModel | None) -> None:
        """Charge what examining a round takes."""
        _Counted(self, round_, seed, first).tables()

    def examine_golds(self) -> None:
        """Charge the gold models, and what examining them takes."""
        for gold in self.experiment.models.gold:
            for seed in gold.seeds:
                self.sides(self.lab(seed, gold.model), self.gold(gold, seed))
        lab = self.lab(0, FLOOR)
        self.sides(lab, lab.train_reward_model(self.task.pairs["gold"], loss=RankingLoss()))


class _Counted(Examination):
    """An examination whose KL is nobody's; its samples are charged all the same."""

    def _kl(self, prompts: Sequence[Prompt]) -> np.ndarray:
        limit = self.settings.sampling
        untruncated = Sampling(max_new_tokens=limit.max_new_tokens, batch_size=limit.batch_size)
        return np.zeros(len(self.lab.sample(self.round.policy, prompts, n=1, draw=-2, sampling=untruncated)))


def counting_bench(experiment: Experiment, task: Task, response_tokens: float | None = None) -> CountingBench:
    """A bench that counts; its store is a place where nothing can be written."""
    expected = Expected(experiment, task, response_tokens)
    return CountingBench(experiment, task, RunStore(Path(os.devnull)), {}, expected=expected)
