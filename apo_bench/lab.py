"""The Lab: everything a method may do, and nothing else.

Every verb is metered (it charges the arm's ledger), memoised by content (equal work is done once, over arms and crashes),
replayable (finished verbs return at once) and blind (no gold reward model, dev or test prompt is reachable). Repeating
`sample` with the same arguments returns the same samples; `draw` gives fresh ones.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from annotated_types import Ge, Gt

from apo_bench.budget import Ledger
from apo_bench.config import NeuralReward, NgramReward, PolicyModel, Recipe, RewardSpec, Sampling, Unit
from apo_bench.errors import InputError
from apo_bench.store import Artifact, RunStore, code_hash, digest, digest_folder, versions
from apo_bench.types import Demonstration, Golden, Group, Pair, Policy, Prompt, Response, RewardModel, identity

T = TypeVar("T")
Count = Annotated[int, Ge(1)]  # field types for methods: what an experiment file gives is checked against them
Positive = Annotated[float, Gt(0)]


@dataclass(frozen=True)
class TrainingData:
    """What methods may see of a task: the rm split's pairs, the rm and policy splits' prompts, golden responses."""

    pairs: tuple[Pair, ...]
    prompts: Mapping[Literal["rm", "policy"], tuple[Prompt, ...]]
    golden: tuple[Golden, ...]
    axes: tuple[str, ...]
    vocabulary: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Round:
    """A finished round: the policy that came out of it and the reward model it was trained to please."""

    policy: Policy
    reward_model: RewardModel | None


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
        progress: Callable[[str], None] = lambda stage: None,
        charged: dict[str, Mapping[str, float]] | None = None,
    ) -> None:
        self.initial_policy = initial_policy
        self.rounds: list[Round] = []
        self.wall_s = 0.0  # what the arm's artifacts took to make, whoever made them
        self.peak_memory_bytes = 0.0
        self.charged = {} if charged is None else charged  # every distinct artifact used, with its counts
        self._store, self._ledger, self._seed, self._data = store, ledger, seed, data
        self._policy_model, self._reward_model, self._hardware, self._progress = policy_model, reward_model, dict(hardware), progress
        self._reward_body = reward_body  # a language model in the store that reward models start from, if they do

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
        """n responses of a policy to each prompt, prompt by prompt; at the experiment's sampling settings unless given others."""
        sampling = sampling or self._policy_model.sampling
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
        self._before(f"scoring {len(items)}", scored_responses=len(items))
        texts = digest([(prompt.id, text) for prompt, text in items])
        inputs = {"reward_model": reward_model.key, "spec": self._spec(), "items": texts}

        def build(folder: Path) -> Mapping[str, float]:
            scores, counts = self._scores(self._store.open("reward_models", reward_model.key).folder, items)
            (folder / "scores.json").write_text(json.dumps(scores))
            return counts

        scores = json.loads((self._memo("scores", inputs, build).folder / "scores.json").read_text())
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
                return _train_ngram(pairs, loss, spec, seed, folder)
            from apo_bench.training import train_reward_model

            body = self._policy_folder(self._reward_body) if self._reward_body else spec.path
            origin = self._store.open("reward_models", start.key).folder if start else body
            return train_reward_model(origin, pairs, loss, self._data.axes, self._data.vocabulary, spec, seed, folder)

        return RewardModel(self._memo("reward_models", inputs, build).key)

    def train_policy(
        self,
        policy: Policy,
        data: Sequence[Demonstration] | Sequence[Pair],
        loss: Any,
        *,
        reference: Policy | None = None,
        learning_rate: float | None = None,
        epochs: float | None = None,
        recipe: Recipe | None = None,
    ) -> Policy:
        """A policy trained from `policy` on demonstrations or pairs, whichever the loss trains on; `reference` is for DPO.

        The experiment's recipe, with the learning rate or epochs given here in place of its own.
        """
        changes = {name: value for name, value in (("learning_rate", learning_rate), ("epochs", epochs)) if value is not None}
        recipe = (recipe or self._policy_model.training).model_copy(update=changes)
        if not data:
            raise InputError("lab.train_policy: no data to train on")
        self._before(f"policy on {len(data)} {loss.trains_on}", policy_updates=recipe.updates(len(data)))
        rows = [(one.prompt.id, one.id if isinstance(one, Pair) else one.response) for one in data]
        inputs = {
            "policy": policy.key,
            "reference": reference.key if reference else None,
            "data": digest(rows),
            "loss": _described(loss),
            "recipe": recipe.model_dump(),
            "format": self._format(),
        }

        def build(folder: Path) -> Mapping[str, float]:
            from apo_bench.training import train_policy

            start, other = self._policy_folder(policy), self._policy_folder(reference) if reference else None
            return train_policy(start, data, loss, other, self._policy_model, recipe, self._derived_seed("train_policy"), folder)

        return Policy(self._memo("policies", inputs, build).key)

    def finish_round(self, policy: Policy, reward_model: RewardModel | None = None) -> None:
        """Record a round's outcome; each is evaluated on held-out prompts, out of the method's sight."""
        self._ledger.settle()
        self.rounds.append(Round(policy, reward_model))
        self._progress(f"round {len(self.rounds)} done")

    # --- inside ---------------------------------------------------------------------------------------------------------

    def _before(self, stage: str, **amounts: float) -> None:
        self._ledger.settle()
        self._ledger.admit(**amounts)
        self._progress(stage)

    def _memo(self, kind: str, inputs: Mapping[str, Any], build: Callable[[Path], Mapping[str, float]]) -> Artifact:
        named = {**inputs, "seed": self._seed, "hardware": self._hardware, "code": code_hash(), "versions": versions()}
        artifact = self._store.artifact(kind, named, build)
        self._ledger.charge(artifact.counts)
        self.charged[artifact.key] = artifact.counts
        self.wall_s += artifact.wall_s
        self.peak_memory_bytes = max(self.peak_memory_bytes, artifact.peak_memory_bytes)
        return artifact

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

    def _scores(self, folder: Path, items: Sequence[tuple[Prompt, str]]) -> tuple[list[float], Mapping[str, float]]:
        if isinstance(self._reward_model, NeuralReward):
            from apo_bench.models.reward import score

            return score(folder, items, self._reward_model)
        from apo_bench.models.ngram import NgramRewardModel

        return NgramRewardModel.load(folder).score(items), {"scored_responses": len(items)}


def base_policy(store: RunStore, spec: PolicyModel, vocabulary: Sequence[str] | None) -> Policy:
    """The policy before any warm-up, as an ordinary model folder in the store: a copy of `path`, or a new `architecture`."""
    inputs = {
        "architecture": spec.architecture,
        "path": path_identity(spec.path),
        "vocabulary": list(vocabulary or ()) if spec.architecture else None,
        "code": code_hash(),
        "versions": versions(),
    }

    def build(folder: Path) -> Mapping[str, float]:
        from apo_bench.models.policy import load_policy, new_policy, save_model

        if spec.path is not None:
            save_model(*load_policy(spec.path, spec.trust_remote_code), folder)
        else:
            if vocabulary is None:
                raise InputError("models.policy.architecture: the task has no vocabulary to build a tokenizer from; give a path")
            save_model(*new_policy(spec.architecture or {}, vocabulary, seed=0), folder)
        return {}

    return Policy(store.artifact("policies", inputs, build).key)


@cache
def path_identity(path: str | None) -> str | None:
    """A model folder by its content; a hub id by its name."""
    return digest_folder(Path(path)) if path and Path(path).is_dir() else path


def play_alone(lab: Lab, player: PolicyUpdate, rounds: int) -> None:
    """A player without an adversary: the reward model is fitted once, to human pairs, and the policy moves each round."""
    from apo_bench.losses import RankingLoss  # here, since losses bring torch, and a replay does without

    reward_model = lab.train_reward_model(lab.pairs(), loss=RankingLoss())
    policy = lab.initial_policy
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


def _train_ngram(pairs: Sequence[Pair], loss: Any, spec: NgramReward, seed: int, folder: Path) -> Mapping[str, float]:
    """The linear model knows ranking losses only: each pair's weight is the loss's slope in softplus(-margin)."""
    import torch

    from apo_bench.losses import APOLoss, RankingLoss
    from apo_bench.models.ngram import NgramRewardModel

    if not isinstance(loss, APOLoss | RankingLoss):
        raise InputError(f"models.reward.kind: an n-gram model cannot be trained with {type(loss).__name__}")
    golden = torch.tensor([pair.source == "golden_over_sample" for pair in pairs])
    weights = loss(torch.zeros(len(pairs)), golden) / math.log(2)  # softplus(0) = log 2
    NgramRewardModel.fit(pairs, weights.tolist(), spec, seed if spec.bootstrap else None).save(folder)
    return {"rm_updates": 1}


def _described(loss: Any) -> dict[str, Any]:
    """A loss by class and fields: two closures may have equal source, two dataclasses may not."""
    if not is_dataclass(loss) or isinstance(loss, type):
        raise InputError(f"loss {loss!r}: a loss is a dataclass instance, so that its fields enter the memo key")
    return {"class": f"{type(loss).__module__}.{type(loss).__qualname__}", **asdict(loss)}


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
