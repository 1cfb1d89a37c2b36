"""The Lab: everything a method may do, and nothing else.

Every verb is metered (it charges the arm's ledger), memoised by content (equal work is done once, over arms and crashes),
replayable (finished verbs return at once) and blind (no gold reward model, dev or test prompt is reachable). Repeating
`sample` with the same arguments returns the same samples; `draw` gives fresh ones.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from annotated_types import Ge, Gt

from apo_bench.config.schema import Executor, NeuralReward, NgramReward, PolicyModel, Recipe, RewardSpec, Sampling, Unit
from apo_bench.errors import InputError
from apo_bench.hashing import digest, path_identity
from apo_bench.lab.ledger import Ledger
from apo_bench.provenance import code_hash, versions
from apo_bench.store import Artifact, RunStore, scratch_of
from apo_bench.training.checkpoints import Checkpoints
from apo_bench.training.launch import PolicyFit, RewardFit, carry_out
from apo_bench.types import (
    BestOfNPolicy,
    Demonstration,
    Golden,
    Group,
    Pair,
    Policy,
    Prompt,
    Response,
    RewardModel,
    Round,
    TrainingData,
    identity,
)  # fmt: skip

T = TypeVar("T")
Progress = Callable[[str, Mapping[Any, float]], None]  # a stage, and what the arm has used before it
Count = Annotated[int, Ge(1)]  # field types for methods: what an experiment file gives is checked against them
Positive = Annotated[float, Gt(0)]


@runtime_checkable
class PolicyUpdate(Protocol):
    """A player's move: a policy better liked by the reward model. `draw` makes its samples fresh."""

    def update(self, lab: "Lab", policy: Policy, reward_model: RewardModel, draw: int) -> Policy: ...


class Lab:
    """One arm-seed's workbench. Raises BudgetExceeded when the arm would overspend."""

    def __init__(
        self,
        *,
        store: RunStore,
        ledger: Ledger,
        seed: int,
        data: TrainingData,
        policy_model: PolicyModel,
        reward_model: RewardSpec,
        reward_body: Policy | None = None,
        initial_policy: Policy,
        hardware: Mapping[str, Any],
        progress: Progress = lambda stage, used: None,
        charged: dict[str, Mapping[str, float]] | None = None,
        executor: Executor | None = None,
    ) -> None:
        self.initial_policy = initial_policy
        self.rounds: list[Round] = []
        self.wall_s = 0.0  # what the arm's artifacts took to make, whoever made them
        self.peak_memory_bytes = 0.0
        self.charged = {} if charged is None else charged  # every distinct artifact used, with its counts
        self._store, self._ledger, self._seed, self._data = store, ledger, seed, data
        self._policy_model, self._reward_model, self._hardware, self._progress = policy_model, reward_model, dict(hardware), progress
        self._executor = executor or Executor()  # how often fits keep a checkpoint, and with what they are launched
        self._reward_body = reward_body  # a language model in the store that reward models start from, if they do

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
            tried = self.sample(policy.policy, prompts, n * policy.n, draw, sampling)
            scores = self._scores_of(policy.reward_model, [(one.prompt, one.text) for one in tried])
            groups = (range(start, start + policy.n) for start in range(0, len(tried), policy.n))
            return tuple(tried[max(group, key=scores.__getitem__)] for group in groups)  # among equals the first
        self._before(f"sampling {len(prompts)} x {n}", sampled_responses=len(prompts) * n)
        inputs = {
            "policy": policy.key,
            "prompts": [prompt.id for prompt in prompts],
            "n": n,
            "draw": draw,
            "sampling": sampling.model_dump(),
            "format": self._format(),
        }

        def build(folder: Path) -> Mapping[str, float]:
            from apo_bench.models.policy import sample

            seed = self._derived_seed("sample", str(draw))
            responses, counts = sample(self._policy_folder(policy), prompts, n, sampling, self._policy_model, seed)
            rows = [{"prompt_id": one.prompt.id, "text": one.text, "tokens": one.tokens, "finish": one.finish} for one in responses]
            _write_rows(folder / "responses.jsonl", rows)
            return counts

        artifact = self._memo("samples", inputs, build)
        rows = _read_rows(artifact.folder / "responses.jsonl")
        repeated = [prompt for prompt in prompts for _ in range(n)]
        return tuple(
            Response(prompt, row["text"], row["tokens"], row["finish"]) for prompt, row in zip(repeated, rows, strict=True)
        )  # fmt: skip

    def score(self, reward_model: RewardModel, responses: Sequence[Response] | Sequence[tuple[Prompt, str]]) -> tuple[Group, ...]:
        """The reward model's scores, grouped by prompt in order of first appearance."""
        items = [(one.prompt, one.text) if isinstance(one, Response) else one for one in responses]
        scores = self._scores_of(reward_model, items)
        grouped: dict[str, tuple[Prompt, list[str], list[float]]] = {}
        for (prompt, text), value in zip(items, scores, strict=True):
            _, texts_of, scores_of = grouped.setdefault(prompt.id, (prompt, [], []))
            texts_of.append(text)
            scores_of.append(value)
        return tuple(Group(prompt, tuple(texts), tuple(scores)) for prompt, texts, scores in grouped.values())

    def train_reward_model(self, *pair_sets: Sequence[Pair], loss: Any, start: RewardModel | None = None) -> RewardModel:
        """A reward model fitted to all pairs together, from the base model (the paper) or continuing from `start`."""
        pairs = [pair for pairs in pair_sets for pair in pairs]
        if not pairs:
            raise InputError("lab.train_reward_model: no pairs to train on")
        spec = self._reward_model
        updates = spec.training.updates(len(pairs)) if isinstance(spec, NeuralReward) else 1  # an n-gram model is one convex fit
        self._before(f"reward model on {len(pairs)} pairs", rm_updates=updates)
        inputs = {
            "pairs": digest([(pair.prompt.id, pair.id, pair.source) for pair in pairs]),
            "loss": _described(loss),
            "spec": self._spec(),
            "base": self._base(),
            "axes": list(self._data.axes),
            "vocabulary": list(self._data.vocabulary or ()) if getattr(spec, "architecture", None) else None,
            "start": start.key if start else None,
        }

        def build(folder: Path) -> Mapping[str, float]:
            seed = self._derived_seed("train_reward_model")
            if isinstance(spec, NgramReward):
                from apo_bench.models.ngram import train

                return train(pairs, loss, spec, seed, folder)
            body = self._policy_folder(self._reward_body) if self._reward_body else spec.path
            origin = self._store.open("reward_models", start.key).folder if start else body
            axes, vocabulary = self._data.axes, self._data.vocabulary
            fit = RewardFit(origin, tuple(pairs), loss, axes, vocabulary, spec, seed, folder, self._checkpoints(folder))
            return carry_out(fit, self._executor.launch)

        return RewardModel(self._memo("reward_models", inputs, build).key)

    def train_policy(
        self,
        policy: Policy,
        data: Sequence[Demonstration] | Sequence[Pair] | Sequence[Group],
        loss: Any,
        *,
        reference: Policy | None = None,
        learning_rate: float | None = None,
        epochs: float | None = None,
        recipe: Recipe | None = None,
    ) -> Policy:
        """A policy trained from `policy` on demonstrations, pairs or groups, whichever the loss trains on; `reference` is for DPO.

        The experiment's recipe, with the learning rate or epochs given here in place of its own.
        """
        changes = {name: value for name, value in (("learning_rate", learning_rate), ("epochs", epochs)) if value is not None}
        recipe = (recipe or self._policy_model.training).model_copy(update=changes)
        if not data:
            raise InputError("lab.train_policy: no data to train on")
        self._before(f"policy on {len(data)} {loss.trains_on}", policy_updates=recipe.updates(len(data)))
        inputs = {
            "policy": policy.key,
            "reference": reference.key if reference else None,
            "data": digest([_row(one) for one in data]),
            "loss": _described(loss),
            "recipe": recipe.model_dump(),
            "format": self._format(),
        }

        def build(folder: Path) -> Mapping[str, float]:
            start, other = self._policy_folder(policy), self._policy_folder(reference) if reference else None
            seed, kept = self._derived_seed("train_policy"), self._checkpoints(folder)
            fit = PolicyFit(start, tuple(data), loss, other, self._policy_model, recipe, seed, folder, kept)  # pyright: ignore
            return carry_out(fit, self._executor.launch)

        return Policy(self._memo("policies", inputs, build).key)

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

    def _memo(self, kind: str, inputs: Mapping[str, Any], build: Callable[[Path], Mapping[str, float]]) -> Artifact:
        named = {**inputs, "seed": self._seed, "hardware": self._hardware, "code": code_hash(__name__), "versions": versions()}
        artifact = self._store.artifact(kind, named, build)
        self._ledger.charge(artifact.counts)
        self.charged[artifact.key] = artifact.counts
        self.wall_s += artifact.wall_s
        self.peak_memory_bytes = max(self.peak_memory_bytes, artifact.peak_memory_bytes)
        return artifact

    def _checkpoints(self, folder: Path) -> Checkpoints:
        return Checkpoints(scratch_of(folder), self._executor.checkpoint_s)

    def _grant(self, unit: Any, items: Sequence[T], n: int | None, name: Callable[[T], str]) -> tuple[T, ...]:
        if n is None:
            n = int(min(len(items), self._ledger.budget.get(unit, float("inf"))))
        chosen = self._subset(items, n, unit, unit)
        self._ledger.settle()
        self._ledger.see(unit, map(name, chosen))
        return chosen

    def _subset(self, items: Sequence[T], n: int | None, purpose: str, what: str) -> tuple[T, ...]:
        if n is not None and not 0 < n <= len(items):
            raise InputError(f"{what}: {n} asked for, {len(items)} there")
        order = np.random.default_rng(self._derived_seed(purpose)).permutation(len(items))
        return tuple(items[place] for place in order[:n])

    def _derived_seed(self, *purpose: str) -> int:
        """Equal over arms, so that arms of one seed share their luck; different for every purpose."""
        return int(identity(str(self._seed), *purpose), 16) % 2**63

    def _policy_folder(self, policy: Policy) -> Path:
        if isinstance(policy, BestOfNPolicy):
            raise InputError("lab: a best-of-n policy has no weights to train, or to compare with")
        return self._store.open("policies", policy.key).folder

    def _format(self) -> dict[str, Any]:
        """The parts of the policy's settings that change what it reads and writes."""
        return self._policy_model.model_dump(include={"system_prompt", "max_prompt_tokens", "max_response_tokens"})

    def _spec(self) -> dict[str, Any]:
        return self._reward_model.model_dump(exclude={"path"})

    def _base(self) -> str | None:
        """What a reward model starts from, by content where it lies here, so that a moved folder keeps its keys."""
        if not isinstance(self._reward_model, NeuralReward):
            return None
        return self._reward_body.key if self._reward_body else path_identity(self._reward_model.path)

    def _scores_of(self, reward_model: RewardModel, items: Sequence[tuple[Prompt, str]]) -> list[float]:
        self._before(f"scoring {len(items)}", scored_responses=len(items))
        texts = digest([(prompt.id, text) for prompt, text in items])
        inputs = {"reward_model": reward_model.key, "spec": self._spec(), "items": texts}

        def build(folder: Path) -> Mapping[str, float]:
            scores, counts = self._scores(self._store.open("reward_models", reward_model.key).folder, items)
            (folder / "scores.json").write_text(json.dumps(scores))
            return counts

        return json.loads((self._memo("scores", inputs, build).folder / "scores.json").read_text())

    def _scores(self, folder: Path, items: Sequence[tuple[Prompt, str]]) -> tuple[list[float], Mapping[str, float]]:
        if isinstance(self._reward_model, NeuralReward):
            from apo_bench.models.reward import score

            return score(folder, items, self._reward_model)
        from apo_bench.models.ngram import NgramRewardModel

        return NgramRewardModel.load(folder).score(items), {"scored_responses": len(items)}


@dataclass(frozen=True)
class Player:
    """What players have in common: they sample n answers to a round's prompts, have them scored, and train on what `learn` makes of them.

    Alone, a player's reward model is fitted once, to human pairs.
    """

    rounds: Count = 3
    prompts_per_round: Count | None = None  # None: all policy prompts, every round
    samples_per_prompt: Count = 4
    learning_rate: Positive | tuple[Positive, ...] | None = None  # None: the experiment's; several: one a round
    epochs: Positive | None = None

    def learn(self, lab: Lab, policy: Policy, groups: Sequence[Group], rate: float | None) -> Policy:
        """The policy trained on scored samples of it; each player has its own way."""
        raise NotImplementedError

    def update(self, lab: Lab, policy: Policy, reward_model: RewardModel, draw: int) -> Policy:
        prompts = lab.prompts("policy", n=self.prompts_per_round, draw=draw)
        samples = lab.sample(policy, prompts, n=self.samples_per_prompt, draw=draw)
        return self.learn(lab, policy, lab.score(reward_model, samples), of_round(self.learning_rate, draw, "learning_rate"))

    def run(self, lab: Lab) -> None:
        play_alone(lab, self, self.rounds)


def of_round(values: T | tuple[T, ...], round_: int, name: str) -> T:
    """The value for a round (0, 1, ...), where one is given for all rounds or one a round. Raises InputError if they run out."""
    if not isinstance(values, tuple):
        return values
    if round_ >= len(values):
        raise InputError(f"{name}: {len(values)} given, one a round, but round {round_ + 1} is played")
    return values[round_]


def play_alone(lab: Lab, player: PolicyUpdate, rounds: int, start: Policy | None = None) -> None:
    """A player without an adversary: the reward model is fitted once, to human pairs, and the policy moves each round.

    It moves from `start`, or the initial policy.
    """
    from apo_bench.losses import RankingLoss  # here, since losses bring torch, and a replay does without

    reward_model = lab.train_reward_model(lab.pairs(), loss=RankingLoss())
    policy = start or lab.initial_policy
    for round_ in range(rounds):
        policy = player.update(lab, policy, reward_model, draw=round_)
        lab.finish_round(policy, reward_model)


def golden_over_samples(golden: Sequence[Golden], samples: Sequence[Response]) -> tuple[Pair, ...]:
    """Golden above each of the samples on its prompt (the APO paper's duels).

    A sample equal to the golden response stays in: its margin is 0 whatever the weights, so it has no gradient, and the number
    of updates does not depend on how well the opponent plays. Arms stay matched.
    """
    texts = {one.prompt.id: one.text for one in golden}
    return tuple(Pair(sample.prompt, texts[sample.prompt.id], sample.text, "golden_over_sample") for sample in samples)


def best_of(groups: Sequence[Group]) -> tuple[Demonstration, ...]:
    """The best-scored response to each prompt; among equals the first."""
    return tuple(Demonstration(group.prompt, group.responses[int(np.argmax(group.scores))]) for group in groups)


def best_worst(groups: Sequence[Group]) -> tuple[Pair, ...]:
    """The best-scored response over the worst to each prompt; a tie, or equal texts, gives no pair."""
    pairs = []
    for group in groups:
        best, worst = int(np.argmax(group.scores)), int(np.argmin(group.scores))
        if group.scores[best] > group.scores[worst] and group.responses[best] != group.responses[worst]:
            pairs.append(Pair(group.prompt, group.responses[best], group.responses[worst], "best_over_worst"))
    return tuple(pairs)


def _row(one: Demonstration | Pair | Group) -> tuple[Any, ...]:
    """What an item is, for a memo key."""
    if isinstance(one, Group):
        return one.prompt.id, one.responses, one.scores
    return one.prompt.id, one.id if isinstance(one, Pair) else one.response


def _described(loss: Any) -> dict[str, Any]:
    """A loss by class and fields: two closures may have equal source, two dataclasses may not."""
    if not is_dataclass(loss) or isinstance(loss, type):
        raise InputError(f"loss {loss!r}: a loss is a dataclass instance, so that its fields enter the memo key")
    return {"class": f"{type(loss).__module__}.{type(loss).__qualname__}", **asdict(loss)}


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
