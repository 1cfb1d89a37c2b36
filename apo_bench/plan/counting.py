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

from apo_bench.config.controls import ORACLE, chooser
from apo_bench.config.schema import Experiment, Gold, NeuralReward, PolicyModel, RewardSpec, Sampling
from apo_bench.data.task import Task
from apo_bench.errors import BudgetExceeded, InputError
from apo_bench.evaluation.context import FLOOR, Bench
from apo_bench.evaluation.evaluate import Examination
from apo_bench.evaluation.oracle import BestAndFirst
from apo_bench.hashing import digest
from apo_bench.lab import Lab
from apo_bench.lab.ledger import Ledger
from apo_bench.losses import RankingLoss, SFTLoss
from apo_bench.plan.sizes import PolicySize, RewardSize, policy_size, reward_size
from apo_bench.store import Artifact, RunStore
from apo_bench.types import BestOfNPolicy, Policy, Prompt, Response, RewardModel, Round

EXAMPLES = 2000  # responses of the task that lengths and words are taken from
BLOCK = 4096  # what a file takes of a disk comes in whole ones
ROW, SCORE, NAMED = 60, 21, 8  # bytes of a sample beside its text, of a number, of a name in a list beside it
ABOUT, NGRAM = 2000, 25_000  # of an artifact's manifest, of a small n-gram model


@dataclass(frozen=True)
class Made:
    """An artifact that a run would make. `work`: see `accounts.Work`; `weights`: those of its bytes that are a model's."""

    kind: str
    work: float
    bytes: float
    weights: float = 0.0


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
        warmed_up = [one.response for one in task.demonstrations] if models.policy.warmup else []
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
        self, prompts: Sequence[Prompt], sampling: Sampling, rng: np.random.Generator, *, initial: bool = False
    ) -> tuple[Response, ...]:
        """A placeholder for each prompt, no two of them equal: words of the task's own responses, in numbers of the expected length."""
        mean, seen, found = self.tokens(sampling, initial=initial), set[str](), []
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
    """One arm-seed's workbench without models. `charged` names what the arm pays for, `made` all that the bench's labs would make.

    Raises BudgetExceeded and InputError where the Lab would.
    """

    def __init__(self, expected: Expected, made: dict[str, Made], **fields: Any) -> None:
        super().__init__(**fields)
        self.policy_size = expected.policy
        self._expected, self._made = expected, made
        self._count: Callable[[], Mapping[str, float]] = dict  # what the training under way is expected to spend
        self._size: PolicySize | RewardSize | None = None  # and how large what it trains is; None: an n-gram model

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
        initial = policy == self.initial_policy
        answers = self._expected.answers([prompt for prompt in prompts for _ in range(n)], sampling, rng, initial=initial)
        size = files(
            sum(ROW + len(one.prompt.id) + len(one.text) for one in answers), ABOUT + sum(len(one) + NAMED for one in inputs["prompts"])
        )
        counts = self.policy_size.sampled(prompts, n, [one.tokens for one in answers])
        self._spend("samples", inputs, counts, size, work=len(answers) * sampling.max_new_tokens)
        return answers

    def train_reward_model(self, *pair_sets: Sequence[Any], loss: Any, start: RewardModel | None = None) -> RewardModel:
        pairs, spec = [pair for pairs in pair_sets for pair in pairs], self._reward_model
        # an n-gram model is one convex fit, and its few weights are not worth counting
        neural = self._expected.reward(spec) if isinstance(spec, NeuralReward) else None
        self._count = lambda: neural.trained(pairs) if neural else {"rm_updates": 1}
        self._size = neural
        return super().train_reward_model(*pair_sets, loss=loss, start=start)

    def train_policy(self, policy: Policy, data: Sequence[Any], loss: Any, **fields: Any) -> Policy:
        for one in (policy, fields.get("reference")):
            if isinstance(one, BestOfNPolicy):
                _ = self._policy_folder(one)  # it has none, and says so
        if loss.trains_on == "pairs" and fields.get("reference") is None:
            raise InputError(f"lab.train_policy: {type(loss).__name__} needs a reference policy")
        changes = {name: value for name in ("learning_rate", "epochs") if (value := fields.get(name)) is not None}
        recipe = (fields.get("recipe") or self._policy_model.training).model_copy(update=changes)
        self._count, self._size = lambda: self.policy_size.trained(data, loss, recipe), self.policy_size
        return super().train_policy(policy, data, loss, **fields)

    def _scores_of(self, reward_model: RewardModel, items: Sequence[tuple[Prompt, str]]) -> list[float]:
        self._before(f"scoring {len(items)}", scored_responses=len(items))
        spec = self._reward_model
        counts = self._expected.reward(spec).scored(items) if isinstance(spec, NeuralReward) else {"scored_responses": len(items)}
        texts = digest([(prompt.id, text) for prompt, text in items])
        key = self._spend("scores", {"reward_model": reward_model.key, "items": texts}, counts, files(SCORE * len(items), ABOUT)).key
        return np.random.default_rng(int(key, 16)).normal(size=len(items)).tolist()

    def _memo(self, kind: str, inputs: Mapping[str, Any], build: Callable[[Path], Mapping[str, float]]) -> Artifact:
        counts = self._count()
        updates = SCORE * (counts.get("rm_updates", 0) + counts.get("policy_updates", 0))  # the loss of each is kept
        weights = self._size.bytes if self._size else 0.0
        rest = files(updates, ABOUT, *(self._size.files if self._size else (NGRAM,)))
        return self._spend(kind, inputs, counts, weights + rest, weights)

    def _spend(
        self,
        kind: str,
        inputs: Mapping[str, Any],
        counts: Mapping[str, float],
        size: float,
        weights: float = 0.0,
        work: float | None = None,
    ) -> Artifact:
        """An artifact that is only a key, of the inputs that determine a real one. `work`: its FLOPs, if not given."""
        key = digest({"kind": kind, **inputs, "seed": self._seed})
        self._ledger.charge(counts)
        self.charged[key] = counts
        self._made.setdefault(key, Made(kind, counts.get("flops", 0.0) if work is None else work, size, weights))
        return Artifact(key, Path(os.devnull), counts, 0.0, 0.0)

    def _base(self) -> str | None:
        """By name, where a run goes by content."""
        return self._reward_body.key if self._reward_body else getattr(self._reward_model, "path", None)


@dataclass(frozen=True)
class CountingBench(Bench):
    """The bench of an experiment whose labs only count."""

    expected: Expected = field(kw_only=True)
    made: dict[str, Made] = field(default_factory=dict, kw_only=True)  # each artifact once, in the order of their making
    bodies: dict[str, Policy] = field(default_factory=dict, kw_only=True)  # a lab asks for its reward model's each time
    golds: dict[tuple[str, int], RewardModel] = field(default_factory=dict, kw_only=True)

    def _lab(self, seed: int, initial_policy: Policy, reward_model: RewardSpec, ledger: Ledger) -> CountingLab:
        return CountingLab(self.expected, self.made, **self._lab_fields(seed, initial_policy, reward_model, ledger))

    def gold(self, gold: Gold, seed: int) -> RewardModel:
        """Counted once, however often it is asked for."""
        if (gold.name, seed) not in self.golds:
            self.golds[gold.name, seed] = super().gold(gold, seed)
        return self.golds[gold.name, seed]

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
        self.made[base.key] = Made("policies", 0.0, lab.policy_size.bytes + files(ABOUT, *lab.policy_size.files), lab.policy_size.bytes)
        return lab.train_policy(base, self.task.demonstrations, SFTLoss(), recipe=spec.warmup) if spec.warmup else base

    def examine(self, round_: Round, seed: int, first: RewardModel | None) -> None:
        """Charge what examining a round takes."""
        key = digest(["examined", round_.policy.key, *(one.key if one else None for one in (round_.reward_model, first)), seed])
        if key not in self.made:
            tables = Counted(self, round_, seed, first).tables()
            rows, text = len(tables["scores"]), sum(len(one["text"]) for one in tables["responses"])
            self.made[key] = Made("evaluations", 0.0, files(10 * rows, BLOCK + 0.6 * text, 5000, 5000, 5000, ABOUT, 1.3 * ABOUT))

    def examine_oracle(self, final: Round, seed: int) -> None:
        """Charge what the best of several answers of an arm's final policy takes, and their scores."""
        chooser(self.experiment, self.task.ground_truth is not None)  # refuses as a run would
        examined = BestAndFirst(self, final, seed)
        rows = sum(len(values) for values in examined.scores().values())
        self.made[digest([ORACLE, final.policy.key, seed])] = Made("evaluations", 0.0, files(10 * rows, ABOUT, 1.3 * ABOUT))

    def examine_golds(self) -> None:
        """Charge the gold models, and what examining them takes."""
        for gold in self.experiment.models.gold:
            for seed in gold.seeds:
                self.sides(self.lab(seed, gold.model), self.gold(gold, seed))
        lab = self.lab(0, FLOOR)
        self.sides(lab, lab.train_reward_model(self.task.pairs["gold"], loss=RankingLoss()))


class Counted(Examination):
    """An examination whose KL is nobody's; its samples are charged all the same."""

    def _kl(self, prompts: Sequence[Prompt]) -> np.ndarray:
        limit = self.settings.sampling
        untruncated = Sampling(max_new_tokens=limit.max_new_tokens, batch_size=limit.batch_size)
        answers = self.lab.sample(self.round.policy, prompts, n=1, draw=-2, sampling=untruncated)
        key = digest(["kl", self.round.policy.key, self.seed, [one.id for one in prompts]])
        assert isinstance(self.bench, CountingBench)
        read = 2 * self.bench.expected.policy.read_flops(
            [(one.prompt, one.text) for one in answers]
        )  # by the policy and by the initial one
        self.bench.made[key] = Made("kl", read, files(SCORE * len(answers), ABOUT / 2))
        return np.zeros(len(answers))


def files(*sizes: float) -> float:
    """Bytes of a disk that files of these sizes take, with the measured time and the folder that an artifact has beside them."""
    return BLOCK * (2 + sum(math.ceil(size / BLOCK) for size in sizes))


def played(bench: CountingBench, arm: str, method: Any, seed: int) -> tuple[CountingLab, str]:
    """One arm-seed's Lab after the method has run, and what it would fail of."""
    lab = bench.lab(seed, arm=arm)
    assert isinstance(lab, CountingLab)
    try:
        method.run(lab)
    except (BudgetExceeded, InputError) as error:
        return lab, str(error)
    except Exception as error:  # a user's method may raise anything
        return lab, f"{type(error).__name__}: {error}"
    return lab, "" if lab.rounds else "it finished no round (lab.finish_round was not called)"


def counting_bench(
    experiment: Experiment, task: Task, response_tokens: float | None = None, initial_tokens: float | None = None
) -> CountingBench:
    """A bench that counts, see `Expected`; its store is a place where nothing can be written."""
    expected = Expected(experiment, task, response_tokens, initial_tokens)
    return CountingBench(experiment, task, RunStore(Path(os.devnull)), {}, expected=expected)
