"""Every round's policy and reward model, examined on held-out data that methods never see.

All of it is charged to `_bench`. Gold reward models are trained once per experiment on the gold split, and select nothing.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from apo_bench.budget import Ledger
from apo_bench.config import Experiment, Gold, NeuralReward, NgramReward, PolicyModel, RewardSpec, Sampling, Unit
from apo_bench.lab import Lab, Round, TrainingData, base_policy
from apo_bench.losses import RankingLoss, SFTLoss
from apo_bench.stats import clustered_mean, ece
from apo_bench.store import Artifact, RunStore, code_hash, digest, digest_files, versions
from apo_bench.tasks import Task
from apo_bench.types import Golden, Group, Pair, Policy, Prompt, Response, RewardModel, identity

CHARGED = "charged.json"
FLOOR = NgramReward(bootstrap=False)  # every neural reward model is reported beside a linear one on the same pairs


@dataclass(frozen=True)
class Bench:
    """What examines the arms of one experiment: held-out data, gold reward models, and the initial policy's warm-up."""

    experiment: Experiment
    task: Task
    store: RunStore
    hardware: Mapping[str, Any]
    progress: Callable[[str], None] = lambda stage: None
    charged: dict[str, Mapping[str, float]] = field(default_factory=dict)  # each artifact of the bench's own, with its counts

    def lab(self, seed: int, reward_model: RewardSpec | None = None, *, arm: str = "_bench") -> Lab:
        """A Lab for one arm-seed; arms get the experiment's budget and only the data that methods may see."""
        ledger = Ledger(arm, {} if arm == "_bench" else self.experiment.budget)
        return self._lab(seed, self.initial_policy, reward_model or self.experiment.models.reward, ledger)

    @cached_property
    def initial_policy(self) -> Policy:
        """The base policy, warmed up on the task's demonstrations if it is an architecture; one for the whole experiment."""
        return self._language_model(self.experiment.models.policy)

    def gold(self, gold: Gold, seed: int) -> RewardModel:
        """A gold reward model for one training seed, on all pairs of the gold split."""
        return self.lab(seed, gold.model).train_reward_model(self.task.pairs["gold"], loss=RankingLoss())

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
        in_chance_order = sorted(self._golden, key=lambda golden: identity("held out", golden.prompt.id))
        return tuple(in_chance_order[: min(self.experiment.evaluation.held_out_golden, len(in_chance_order) // 4)])

    @cached_property
    def test_prompts(self) -> tuple[Prompt, ...]:
        """The test prompts asked: equally many of each axis where the experiment limits them."""
        return balanced(self.task.prompts["test"], self.experiment.evaluation.prompts)

    @cached_property
    def test_pairs(self) -> tuple[Pair, ...]:
        pairs = self.task.pairs["test"]
        limit = self.experiment.evaluation.diagnostic_pairs
        return pairs if limit is None else tuple(sorted(pairs, key=lambda pair: identity("diagnostic", pair.id))[:limit])

    def evaluate(self, round_: Round, seed: int) -> Artifact:
        """Scores, metrics and reward-model diagnostics of one round, as parquet files in an artifact."""
        golds = {f"{gold.name}.{number}": self.gold(gold, number).key for gold in self.experiment.models.gold for number in gold.seeds}
        inputs = {
            "policy": round_.policy.key,
            "reward_model": round_.reward_model.key if round_.reward_model else None,
            "initial_policy": self.initial_policy.key,
            "golds": golds,
            "seed": seed,
            "evaluation": self.experiment.evaluation.model_dump(),
            "task": self.task.fingerprint,
            "prompts": digest([prompt.id for prompt in self.test_prompts]),
            **self._made_by(),
        }

        def build(folder: Path) -> Mapping[str, float]:
            within = replace(self, charged={})
            for name, rows in _Examination(within, round_, seed).tables().items():
                pd.DataFrame(rows).to_parquet(folder / f"{name}.parquet", index=False)
            return _write_charged(folder, within)

        return self._charged(self.store.artifact("evaluations", inputs, build))

    def gold_accuracy(self) -> Artifact:
        """How well each gold reward model tells held-out human pairs apart, beside an n-gram floor on the same gold pairs."""
        trained = [(gold, [self.gold(gold, seed) for seed in gold.seeds]) for gold in self.experiment.models.gold]

        def build(folder: Path) -> Mapping[str, float]:
            within = replace(self, charged={})
            rows: list[dict[str, Any]] = []
            for gold, models in trained:
                margins = [self.margins(within.lab(seed, gold.model), model) for seed, model in zip(gold.seeds, models, strict=True)]
                for seed, values in [*zip(gold.seeds, margins, strict=True), (-1, np.mean(margins, axis=0))]:
                    rows += [{"gold": gold.name, "seed": seed, **row} for row in self.accuracy_rows(values)]
            lab = within.lab(0, FLOOR)
            floor = lab.train_reward_model(self.task.pairs["gold"], loss=RankingLoss())
            rows += [{"gold": "_floor", "seed": 0, **row} for row in self.accuracy_rows(self.margins(lab, floor))]
            pd.DataFrame(rows).to_parquet(folder / "gold.parquet", index=False)
            return _write_charged(folder, within)

        inputs = {
            "golds": {gold.name: [model.key for model in models] for gold, models in trained},
            "pairs": digest([pair.id for pair in (*self.test_pairs, *self.task.pairs["gold"])]),
            **self._made_by(),
        }
        return self._charged(self.store.artifact("gold_accuracy", inputs, build))

    def floor_accuracy(self, seed: int) -> list[dict[str, Any]]:
        """The n-gram floor for proxies: the same human pairs that an arm of this seed gets."""
        granted: dict[Unit, float] = {unit: amount for unit, amount in self.experiment.budget.items() if unit == "human_pairs"}
        lab = self._lab(seed, self.initial_policy, FLOOR, Ledger("_floor", granted))
        floor = lab.train_reward_model(lab.pairs(), loss=RankingLoss())
        rows = self.accuracy_rows(self.margins(lab, floor))
        return [{"metric": "accuracy_human", "n": row.pop("n_pairs"), **_without(row, "metric", "n_clusters")} for row in rows]

    def margins(self, lab: Lab, reward_model: RewardModel) -> np.ndarray:
        """Score of chosen minus rejected on the held-out human pairs, (pairs,)."""
        sides = [side for pair in self.test_pairs for side in ((pair.prompt, pair.chosen), (pair.prompt, pair.rejected))]
        scores = _in_order(lab.score(reward_model, sides), sides)
        return scores[0::2] - scores[1::2]

    def accuracy_rows(self, margins: np.ndarray) -> list[dict[str, Any]]:
        """Accuracy by axis with an interval over clusters; a tied score is half right."""
        rows = []
        right = (margins > 0) + 0.5 * (margins == 0)
        for axis, chosen in _by_axis([pair.prompt for pair in self.test_pairs]):
            mean, low, high, clusters = clustered_mean(right[chosen], [self.test_pairs[place].prompt.cluster_id for place in chosen])
            rows.append({
                "axis": axis, "metric": "accuracy", "value": mean, "ci_low": low, "ci_high": high,
                "n_pairs": len(chosen), "n_clusters": clusters,
            })  # fmt: skip
        return rows

    def _charged(self, artifact: Artifact) -> Artifact:
        """Take over what an examination used: a replayed one must leave the same account as one just made."""
        self.charged.update(json.loads((artifact.folder / CHARGED).read_text()))
        return artifact

    def _made_by(self) -> dict[str, Any]:
        code = [code_hash(), digest_files([Path(__file__), *self.task.source_files])]
        return {"code": code, "versions": versions(), "hardware": dict(self.hardware)}

    def _lab(self, seed: int, initial_policy: Policy, reward_model: RewardSpec, ledger: Ledger) -> Lab:
        return Lab(
            store=self.store,
            ledger=ledger,
            seed=seed,
            data=self.training_data,
            policy_model=self.experiment.models.policy,
            reward_model=reward_model,
            reward_body=self._reward_body(reward_model),
            initial_policy=initial_policy,
            hardware=self.hardware,
            progress=self.progress,
            charged=self.charged if ledger.arm == "_bench" else None,
        )

    def _reward_body(self, spec: RewardSpec) -> Policy | None:
        """The language model that a reward model starts from, where it is one of the run's own."""
        if not isinstance(spec, NeuralReward):
            return None
        if spec.initial:
            return self.initial_policy
        if spec.warmup:
            own = {"architecture": spec.architecture, "path": None, "warmup": spec.warmup}
            return self._language_model(self.experiment.models.policy.model_copy(update=own))
        return None

    def _language_model(self, spec: PolicyModel) -> Policy:
        base = base_policy(self.store, spec, self.task.vocabulary)
        if spec.warmup is None:
            return base
        lab = self._lab(0, base, FLOOR, Ledger("_bench", {}))
        return lab.train_policy(base, self.task.demonstrations, SFTLoss(), recipe=spec.warmup)

    @cached_property
    def _golden(self) -> tuple[Golden, ...]:
        return tuple(Golden(prompt, self.task.golden[prompt.id]) for prompt in self.task.prompts["rm"] if prompt.id in self.task.golden)


def _write_charged(folder: Path, bench: Bench) -> Mapping[str, float]:
    (folder / CHARGED).write_text(json.dumps({key: dict(counts) for key, counts in bench.charged.items()}, sort_keys=True))
    return {}


class _Examination:
    """One round's rows. A class only so that its parts can share the sampled responses."""

    def __init__(self, bench: Bench, round_: Round, seed: int) -> None:
        self.bench, self.round, self.seed = bench, round_, seed
        self.lab = bench.lab(seed)
        self.settings = bench.experiment.evaluation
        self.responses = self.lab.sample(round_.policy, bench.test_prompts, n=1, sampling=self.settings.sampling)

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        scores = self.scores()
        rows = [
            {
                "prompt_id": one.prompt.id,
                "cluster_id": one.prompt.cluster_id,
                "axis": one.prompt.axis,
                "scorer": scorer,
                "value": float(value),
            }
            for scorer, values in scores.items()
            for one, value in zip(self.responses, values, strict=True)
        ]
        texts = [{"prompt_id": one.prompt.id, "text": one.text, "tokens": one.tokens, "finish": one.finish} for one in self.responses]
        return {
            "scores": rows,
            "metrics": self.metrics(),
            "reward_models": self.reward_model_rows(scores) or [_NO_DIAGNOSTIC],
            "responses": texts,
        }

    def scores(self) -> dict[str, Sequence[float] | np.ndarray]:
        found: dict[str, Sequence[float] | np.ndarray] = {}
        if self.round.reward_model:
            found["proxy"] = self._scored(self.lab, self.round.reward_model)
        for gold in self.bench.experiment.models.gold:
            by_seed = {number: self._scored(self.bench.lab(number, gold.model), self.bench.gold(gold, number)) for number in gold.seeds}
            found |= {f"{gold.name}.{number}": values for number, values in by_seed.items()}
            found[gold.name] = np.mean(list(by_seed.values()), axis=0)
        if truth := self.bench.task.ground_truth:
            found["ground_truth"] = [truth(one.prompt, one.text) for one in self.responses]
        if refuses := self.bench.task.is_refusal:
            found["refusal"] = [float(refuses(one.text)) for one in self.responses]
        found["length"] = [float(one.tokens) for one in self.responses]
        return found

    def metrics(self) -> list[dict[str, Any]]:
        kl_prompts = balanced(self.bench.test_prompts, self.settings.kl_prompts)
        nats = self._kl(kl_prompts)
        rows = []
        for axis, chosen in _by_axis(kl_prompts):
            mean, error = float(nats[chosen].mean()), 0.0
            if np.ptp(nats[chosen]) > 0:  # before the first move every response has 0 nats, and no error
                _, low, high, clusters = clustered_mean(nats[chosen], [kl_prompts[place].cluster_id for place in chosen])
                error = (high - low) / 2 / float(student.ppf(0.975, clusters - 1))  # the standard error its 95 % interval came from
            rows.append({"axis": axis, "metric": "kl", "value": mean, "standard_error": error, "n": len(chosen)})
        for axis, chosen in _by_axis([one.prompt for one in self.responses]):
            words = [self.responses[place].text.split() for place in chosen]
            unfinished = [float(self.responses[place].finish == "length") for place in chosen]
            for metric, value in (
                ("distinct_1", distinct(words, 1)),
                ("distinct_2", distinct(words, 2)),
                ("unfinished", np.mean(unfinished)),
            ):
                rows.append({"axis": axis, "metric": metric, "value": float(value), "standard_error": float("nan"), "n": len(chosen)})
        return rows

    def reward_model_rows(self, scores: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Accuracy and calibration on held-out human pairs, accuracy on golden over current samples, correlation with gold."""
        if not self.round.reward_model:
            return []
        bench, nan = self.bench, float("nan")
        margins = bench.margins(self.lab, self.round.reward_model)
        rows = [
            {
                "axis": row["axis"],
                "metric": "accuracy_human",
                **_without(row, "axis", "metric", "n_pairs", "n_clusters"),
                "n": row["n_pairs"],
            }
            for row in bench.accuracy_rows(margins)
        ]
        for axis, chosen in _by_axis([pair.prompt for pair in bench.test_pairs]):
            confidence, right = 1 / (1 + np.exp(-np.abs(margins[chosen]))), margins[chosen] > 0
            value = ece(confidence, right, self.settings.ece_bins)
            rows.append({"axis": axis, "metric": "ece", "value": value, "ci_low": nan, "ci_high": nan, "n": len(chosen)})
        if golden := bench.held_out_golden:
            samples = self.lab.sample(self.round.policy, [one.prompt for one in golden], n=1, draw=-1)
            sides = [(one.prompt, text) for one, sample in zip(golden, samples, strict=True) for text in (one.text, sample.text)]
            values = _in_order(self.lab.score(self.round.reward_model, sides), sides)
            above = (values[0::2] > values[1::2]) + 0.5 * (values[0::2] == values[1::2])
            for axis, chosen in _by_axis([one.prompt for one in golden]):
                mean, low, high, _ = clustered_mean(above[chosen], [golden[place].prompt.cluster_id for place in chosen])
                rows.append({"axis": axis, "metric": "accuracy_golden", "value": mean, "ci_low": low, "ci_high": high, "n": len(chosen)})
        first_gold = np.asarray(scores[bench.experiment.models.gold[0].name])
        proxy = np.asarray(scores["proxy"])
        for axis, chosen in _by_axis([one.prompt for one in self.responses]):
            varied = np.ptp(proxy[chosen]) > 0 and np.ptp(first_gold[chosen]) > 0
            value = float(np.corrcoef(proxy[chosen], first_gold[chosen])[0, 1]) if varied else nan
            rows.append({"axis": axis, "metric": "gold_correlation", "value": value, "ci_low": nan, "ci_high": nan, "n": len(chosen)})
        return rows

    def _scored(self, lab: Lab, reward_model: RewardModel) -> np.ndarray:
        items = [(one.prompt, one.text) for one in self.responses]
        return _in_order(lab.score(reward_model, items), items)

    def _kl(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """Nats per response, on untruncated samples at temperature 1."""
        limit = self.settings.sampling
        untruncated = Sampling(max_new_tokens=limit.max_new_tokens, batch_size=limit.batch_size)
        samples = self.lab.sample(self.round.policy, prompts, n=1, draw=-2, sampling=untruncated)
        bench = self.bench
        inputs = {
            "policy": self.round.policy.key,
            "reference": bench.initial_policy.key,
            "samples": digest([(one.prompt.id, one.text) for one in samples]),
            "code": code_hash(),
            "versions": versions(),
            "hardware": dict(bench.hardware),
        }

        def build(folder: Path) -> Mapping[str, float]:
            from apo_bench.models.policy import kl

            policy, reference = (bench.store.open("policies", one.key).folder for one in (self.round.policy, bench.initial_policy))
            values = kl(policy, reference, samples, bench.experiment.models.policy, max(1, limit.batch_size // 4))
            (folder / "nats.json").write_text(json.dumps(values))
            return {}

        return np.asarray(json.loads((bench.store.artifact("kl", inputs, build).folder / "nats.json").read_text()))


_NO_DIAGNOSTIC: dict[str, Any] = {"axis": "", "metric": "", "value": float("nan"), "ci_low": float("nan"), "ci_high": float("nan"), "n": 0}


def balanced(prompts: Sequence[Prompt], n: int | None) -> tuple[Prompt, ...]:
    """At most n prompts, as evenly over the axes as they allow, in an order that depends on their ids alone."""
    order = sorted(prompts, key=lambda prompt: identity("balanced", prompt.id))
    if n is None or n >= len(order):
        return tuple(order)
    rank: dict[str, int] = {}
    ranked = []
    for prompt in order:
        rank[prompt.axis] = rank.get(prompt.axis, 0) + 1
        ranked.append((rank[prompt.axis], prompt))
    return tuple(prompt for _, prompt in sorted(ranked, key=lambda pair: pair[0])[:n])


def distinct(texts: Sequence[Sequence[str]], n: int) -> float:
    """Share of distinct n-grams among all n-grams of the texts; NaN if there is none."""
    grams = [tuple(words[place : place + n]) for words in texts for place in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def _by_axis(prompts: Sequence[Prompt]) -> Iterable[tuple[str, list[int]]]:
    """Places of each axis's prompts, and of all."""
    axes = dict.fromkeys(prompt.axis for prompt in prompts)
    for axis in axes:
        yield axis, [place for place, prompt in enumerate(prompts) if prompt.axis == axis]
    yield "all", list(range(len(prompts)))


def _in_order(groups: Sequence[Group], items: Sequence[tuple[Prompt, str]] | Sequence[Response]) -> np.ndarray:
    """Scores of grouped items, back in the items' order."""
    queues = {group.prompt.id: iter(group.scores) for group in groups}
    return np.asarray([next(queues[item[0].id if isinstance(item, tuple) else item.prompt.id]) for item in items])


def _without(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}
