"""What the arms of one experiment are evaluated with: held-out data, gold reward models, the referee, the initial policy.

All of it is charged to `_bench`. Gold reward models are trained once per experiment on the gold split, and select nothing. Rounds and
settings are chosen by the referee: a reward model of the experiment's own kind, fitted to the dev split's human pairs; where that kind is a
finished model, which would choose by what the arms were trained to please, an n-gram model.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from apo_bench.config.schema import (
    Experiment,
    FinishedReward,
    Gold,
    NeuralReward,
    NgramReward,
    PolicyModel,
    RewardSpec,
    SingleReward,
    Unit,
    members,
)  # fmt: skip
from apo_bench.data.prompt_sets import QuestionSet, read_set
from apo_bench.data.splits import balanced
from apo_bench.data.task import Task
from apo_bench.engines.protocol import Engine, Items
from apo_bench.hashing import code_hash, digest, path_identity
from apo_bench.lab import Lab, Progress
from apo_bench.lab.ledger import Ledger
from apo_bench.losses import RankingLoss, SFTLoss
from apo_bench.models.precision import resolved
from apo_bench.stats import clustered_share
from apo_bench.store import Artifact, RunStore
from apo_bench.types import Golden, Group, Pair, Policy, Prompt, Response, RewardModel, TrainingData, identity

CHARGED = "charged.json"
FLOOR = NgramReward(bootstrap=False)  # every neural reward model is reported beside a linear one on the same pairs


@dataclass(frozen=True)
class EvaluationContext:
    """What evaluates the arms of one experiment: held-out data, gold reward models, and the initial policy's warm-up."""

    experiment: Experiment
    task: Task
    store: RunStore
    engine: Engine
    progress: Progress = lambda stage, used: None  # of arms; the labs of `_bench` report their stage and nothing spent
    charged: dict[str, Mapping[str, float]] = field(default_factory=dict)  # each artifact charged to `_bench`, with its counts

    def lab(self, seed: int, reward_model: RewardSpec | None = None, *, arm: str = "_bench") -> Lab:
        """A Lab for one arm-seed; arms get their budget and only the data that methods may see."""
        ledger = Ledger(arm, {} if arm == "_bench" else self.experiment.budget_of(arm))
        return self._lab(seed, self.initial_policy, reward_model or self.experiment.models.reward, ledger)

    @cached_property
    def policy_model(self) -> PolicyModel:
        """The policy's settings, with what each `auto` means on the engine's device."""
        return resolved(self.experiment.models.policy, self.engine.hardware.get("device"))

    @cached_property
    def initial_policy(self) -> Policy:
        """The base policy, warmed up on the task's demonstrations if it is an architecture; one for the whole experiment."""
        return self._language_model(self.policy_model)

    def gold(self, gold: Gold, seed: int) -> RewardModel:
        """A gold reward model for one training seed, on all pairs of the gold split; or a finished one."""
        return self.lab(seed, gold.model).train_reward_model(self.task.pairs["gold"], loss=RankingLoss())

    def referee(self, seed: int) -> RewardModel:
        """Chooses rounds and settings: a reward model of `referee_spec`, fitted to the dev split's human pairs, one a seed."""
        return self.lab(seed, self.referee_spec).train_reward_model(self.task.pairs["dev"], loss=RankingLoss())

    @cached_property
    def referee_spec(self) -> RewardSpec:
        """Of the arms' kind, unless that is or holds a finished model."""
        own = self.experiment.models.reward
        return FLOOR if any(isinstance(member, FinishedReward) for member in members(own)) else own

    @cached_property
    def training_data(self) -> TrainingData:
        """What methods may see; some golden responses are kept back for diagnostics."""
        kept_back = {golden.prompt.id for golden in self.held_out_golden}
        return TrainingData(
            pairs=self.task.pairs["rm"],
            prompts={"rm": self.task.prompts["rm"], "policy": self.task.prompts["policy"]},
            golden=tuple(golden for golden in self._golden if golden.prompt.id not in kept_back),
            axes=self.task.axes,
            vocabulary=self.task.vocabulary,
        )

    @cached_property
    def held_out_golden(self) -> tuple[Golden, ...]:
        in_random_order = sorted(self._golden, key=lambda golden: identity("held out", golden.prompt.id))
        return tuple(in_random_order[: min(self.experiment.evaluation.held_out_golden, len(in_random_order) // 4)])

    @cached_property
    def test_prompts(self) -> tuple[Prompt, ...]:
        """The test prompts: equally many of each axis where the experiment limits them."""
        return balanced(self.task.prompts["test"], self.experiment.evaluation.prompts)

    @cached_property
    def fewer_prompts(self) -> tuple[Prompt, ...]:
        """Test prompts for what is measured on fewer of them, such as KL."""
        return balanced(self.test_prompts, self.experiment.evaluation.kl_prompts)

    @cached_property
    def dev_prompts(self) -> tuple[Prompt, ...]:
        wanted = self.experiment.evaluation.dev_prompts
        return balanced(self.task.prompts["dev"], wanted) if wanted else ()

    @cached_property
    def prompt_sets(self) -> dict[str, QuestionSet]:
        """The sets of prompts that are only asked, by name."""
        return {part.name: read_set(part) for part in self.experiment.evaluation.prompt_sets}

    @cached_property
    def test_pairs(self) -> tuple[Pair, ...]:
        pairs = self.task.pairs["test"]
        limit = self.experiment.evaluation.diagnostic_pairs
        return pairs if limit is None else tuple(sorted(pairs, key=lambda pair: identity("diagnostic", pair.id))[:limit])

    def gold_accuracy(self) -> Artifact:
        """How well each gold reward model tells held-out human pairs apart, beside an n-gram floor on the same gold pairs."""
        trained = [(gold, [self.gold(gold, seed) for seed in gold.seeds]) for gold in self.experiment.models.gold]

        def build(folder: Path) -> Mapping[str, float]:
            within = replace(self, charged={})
            rows: list[dict[str, Any]] = []
            for gold, models in trained:
                scored = [self.sides(within.lab(seed, gold.model), model) for seed, model in zip(gold.seeds, models, strict=True)]
                margins = [score_margins(sides) for sides in scored]
                for seed, values in [*zip(gold.seeds, margins, strict=True), (-1, np.mean(margins, axis=0))]:
                    rows += [{"gold": gold.name, "seed": seed, **row} for row in self.accuracy_rows(values)]
            lab = within.lab(0, FLOOR)
            floor = lab.train_reward_model(self.task.pairs["gold"], loss=RankingLoss())
            rows += [{"gold": "_floor", "seed": 0, **row} for row in self.accuracy_rows(score_margins(self.sides(lab, floor)))]
            pd.DataFrame(rows).to_parquet(folder / "gold.parquet", index=False)
            return write_charged(folder, within)

        inputs = {
            "golds": {gold.name: [model.key for model in models] for gold, models in trained},
            "pairs": digest([pair.id for pair in (*self.test_pairs, *self.task.pairs["gold"])]),
            **self.key_parts(),
        }
        return self.account(self.store.artifact("gold_accuracy", inputs, build))

    def floor_accuracy(self, seed: int) -> list[dict[str, Any]]:
        """The n-gram floor for proxies: the human pairs that the experiment's budget grants in this seed."""
        granted: dict[Unit, float] = {unit: amount for unit, amount in self.experiment.budget.items() if unit == "human_pairs"}
        lab = self._lab(seed, self.initial_policy, FLOOR, Ledger("_floor", granted))
        floor = lab.train_reward_model(lab.pairs(), loss=RankingLoss())
        rows = self.accuracy_rows(score_margins(self.sides(lab, floor)))
        return [{"metric": "accuracy_human", "n": row.pop("n_pairs"), **without(row, "metric", "n_clusters")} for row in rows]

    def sides(self, lab: Lab, reward_model: RewardModel) -> np.ndarray:
        """Scores of the held-out human pairs, the chosen and the rejected side of each, (pairs, 2)."""
        return in_order(lab.score(reward_model, self._sides), self._sides).reshape(-1, 2)

    def accuracy_rows(self, margins: np.ndarray) -> list[dict[str, Any]]:
        """Accuracy by axis with an interval over clusters; a tied score is half right."""
        rows = []
        right = (margins > 0) + 0.5 * (margins == 0)
        for axis, chosen in by_axis([pair.prompt for pair in self.test_pairs]):
            mean, low, high, clusters = clustered_share(right[chosen], [self.test_pairs[place].prompt.cluster_id for place in chosen])
            rows.append({
                "axis": axis, "metric": "accuracy", "value": mean, "ci_low": low, "ci_high": high,
                "n_pairs": len(chosen), "n_clusters": clusters,
            })  # fmt: skip
        return rows

    def account(self, artifact: Artifact) -> Artifact:
        """Charge what an evaluation used: a replayed one must leave the same account as one just computed."""
        self.charged.update(json.loads((artifact.folder / CHARGED).read_text()))
        return artifact

    def key_parts(self) -> dict[str, Any]:
        """What an evaluation's key holds beside its inputs."""
        code = code_hash("apo_bench.evaluation.evaluate", *self.task.source_files)
        included = {"max_prompt_tokens", "max_response_tokens", "sampling", "dtype", "attention", "quantize"}
        included |= {"system_prompt", "chat_template_kwargs", "template_date"}
        sampling_format = self.policy_model.model_dump(mode="json", include=included, exclude={"sampling": {"engine"}})
        both = self.policy_model.sampling, self.experiment.evaluation.sampling
        samplers = [self.engine.sampler(sampling, self.policy_model) for sampling in both]
        return {"code": code, "engine": self.engine.identity, "samplers": samplers, "sampling_format": sampling_format}

    def _lab(self, seed: int, initial_policy: Policy, reward_model: RewardSpec, ledger: Ledger) -> Lab:
        own = ledger.arm == "_bench"
        return Lab(
            store=self.store,
            engine=self.engine,
            ledger=ledger,
            seed=seed,
            data=self.training_data,
            policy_model=self.policy_model,
            reward_model=reward_model,
            reward_bodies=[self._reward_body(member) for member in members(reward_model)],
            dev_pairs=self.task.pairs["dev"],
            initial_policy=initial_policy,
            progress=(lambda stage, used: self.progress(stage, {})) if own else self.progress,
            charged=self.charged if own else None,
            is_arms=ledger.arm not in ("_bench", "_floor"),
        )

    def _reward_body(self, spec: SingleReward) -> Policy | None:
        """The language model that a reward model starts from, where it is one of the run's own."""
        if not isinstance(spec, NeuralReward):
            return None
        if spec.initial:
            return self.initial_policy
        if spec.warmup:
            own = {"architecture": spec.architecture, "path": None, "seed": 0, "warmup": spec.warmup}
            return self._language_model(self.policy_model.model_copy(update=own))
        return None

    def _language_model(self, model: PolicyModel) -> Policy:
        base = self._base_policy(model)
        if model.warmup is None:
            return base
        lab = self._lab(model.seed, base, FLOOR, Ledger("_bench", {}))
        return lab.train_policy(base, self.task.demonstrations, SFTLoss(), recipe=model.warmup)

    def _base_policy(self, model: PolicyModel) -> Policy:
        """The policy before any warm-up, as an ordinary model folder in the store: a copy of `path`, or a new `architecture`."""
        vocabulary = self.task.vocabulary
        inputs = {
            "architecture": model.architecture,
            "path": path_identity(model.path),
            "vocabulary": list(vocabulary or ()) if model.architecture else None,
            "seed": model.seed if model.architecture else None,
            "stored_dtype": model.stored_dtype,
            "engine": self.engine.identity,
        }
        artifact, _ = self.store.computed("policies", inputs, lambda folder: self.engine.create_policy(model, vocabulary, folder))
        return Policy(artifact.key)

    @cached_property
    def _sides(self) -> Items:
        return Items([side for pair in self.test_pairs for side in ((pair.prompt, pair.chosen), (pair.prompt, pair.rejected))])

    @cached_property
    def _golden(self) -> tuple[Golden, ...]:
        return tuple(Golden(prompt, self.task.golden[prompt.id]) for prompt in self.task.prompts["rm"] if prompt.id in self.task.golden)


def score_margins(sides: np.ndarray) -> np.ndarray:
    """Score of chosen minus rejected, (pairs,)."""
    return sides[:, 0] - sides[:, 1]


def write_charged(folder: Path, context: EvaluationContext) -> Mapping[str, float]:
    (folder / CHARGED).write_text(json.dumps({key: dict(counts) for key, counts in context.charged.items()}, sort_keys=True))
    return {}


def by_axis(prompts: Sequence[Prompt]) -> Iterable[tuple[str, list[int]]]:
    """Places of each axis's prompts, and of all."""
    axes = dict.fromkeys(prompt.axis for prompt in prompts)
    for axis in axes:
        yield axis, [place for place, prompt in enumerate(prompts) if prompt.axis == axis]
    yield "all", list(range(len(prompts)))


def in_order(groups: Sequence[Group], items: Sequence[tuple[Prompt, str]] | Sequence[Response]) -> np.ndarray:
    """Scores of grouped items, back in the items' order."""
    queues = {group.prompt.id: iter(group.scores) for group in groups}
    return np.asarray([next(queues[item[0].id if isinstance(item, tuple) else item.prompt.id]) for item in items])


def without(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}
