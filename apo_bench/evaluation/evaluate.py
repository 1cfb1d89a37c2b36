"""Every round's policy and reward model, evaluated on held-out data that methods never see. All of it is charged to `_bench`."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from apo_bench.config.schema import Gold
from apo_bench.engines.protocol import Items, KLJob
from apo_bench.errors import InputError
from apo_bench.evaluation.context import EvaluationContext, by_axis, in_order, score_margins, write_charged
from apo_bench.hashing import code_hash, digest
from apo_bench.stats import clustered_mean, clustered_share, ece, reliability
from apo_bench.store import Artifact
from apo_bench.tables import empty_table
from apo_bench.types import BestOfNPolicy, FinishedPolicy, Prompt, Response, ResponseFile, RewardModel, Round

NAN = float("nan")
Rows = list[dict[str, Any]]
Scored = Sequence[Response] | Sequence[tuple[Prompt, str]]


def evaluate(context: EvaluationContext, round_: Round, seed: int, first: RewardModel | None = None) -> Artifact:
    """Scores, metrics and reward-model diagnostics of one round, as parquet files in an artifact.

    `first` is the arm's first-round reward model, from which scores drift.
    """
    golds = {f"{gold.name}.{number}": context.gold(gold, number).key for gold in context.experiment.models.gold for number in gold.seeds}
    inputs = {
        "policy": round_.policy.key,
        "reward_model": round_.reward_model.key if round_.reward_model else None,
        "first": first.key if first else None,
        "initial_policy": context.initial_policy.key,
        "golds": golds,
        "referee": context.referee(seed).key if context.dev_prompts else None,
        "seed": seed,
        "evaluation": context.experiment.evaluation.model_dump(exclude={"sampling": {"engine"}, "prompt_sets": True, "capabilities": True}),
        "task": context.task.fingerprint,
        "prompts": digest([prompt.id for prompt in context.test_prompts]),
        **context.key_parts(),
    }

    def build(folder: Path) -> Mapping[str, float]:
        within = replace(context, charged={})
        for name, rows in RoundEvaluation(within, round_, seed, first).tables().items():
            (pd.DataFrame(rows) if rows else empty_table(name)).to_parquet(folder / f"{name}.parquet", index=False)
        return write_charged(folder, within)

    return context.account(context.store.artifact("evaluations", inputs, build))


class RoundEvaluation:
    """One round's rows. A class only so that its parts can share what was sampled and scored."""

    def __init__(self, context: EvaluationContext, round_: Round, seed: int, first: RewardModel | None = None) -> None:
        self.context, self.round, self.seed, self.first = context, round_, seed, first
        self.lab = context.lab(seed)
        self.settings = context.experiment.evaluation

    @cached_property
    def responses(self) -> tuple[Response, ...]:
        policy, prompts = self.round.policy, self.context.test_prompts
        answers = self.lab.sample(policy, prompts, n=1, sampling=self.settings.sampling)
        if not answers and isinstance(policy, ResponseFile):
            raise InputError(f"{policy.path}: none of the {len(prompts)} test prompts is in it")
        return answers

    def tables(self) -> dict[str, Rows]:
        inference_flops = self._inference_flops()  # first, before anything else is charged
        scores = self.scores()
        rows = [
            {
                "prompt_id": response.prompt.id,
                "cluster_id": response.prompt.cluster_id,
                "axis": response.prompt.axis,
                "scorer": scorer,
                "value": float(value),
            }
            for scorer, values in scores.items()
            for response, value in zip(self.responses, values, strict=True)
        ]
        texts = [{"prompt_id": row.prompt.id, "text": row.text, "tokens": row.tokens, "finish": row.finish} for row in self.responses]
        return {
            "scores": rows,
            "metrics": [*self.divergence(), *self.diversity(), *self.unmatched(), inference_flops, *self.dev_score()],
            "reward_models": [] if self.round.reward_model is None else self.reward_model_rows(self.round.reward_model, scores),
            "reliability": [] if self.round.reward_model is None else self.reliability_rows(self.round.reward_model),
            "responses": texts,
        }

    def scores(self) -> dict[str, Sequence[float] | np.ndarray]:
        """Of every scorer, a value for each of the responses."""
        scores: dict[str, Sequence[float] | np.ndarray] = {}
        items = Items.of(self.responses)
        if self.round.reward_model:
            scores["proxy"] = self._scored(self.round.reward_model, items)
        for gold in self.context.experiment.models.gold:
            by_seed = self._gold_scores(gold, items)
            scores |= {f"{gold.name}.{number}": values for number, values in by_seed.items()}
            scores[gold.name] = np.mean(list(by_seed.values()), axis=0)
        if truth := self.context.task.ground_truth:
            scores["ground_truth"] = [truth(response.prompt, response.text) for response in self.responses]
        if refuses := self.context.task.is_refusal:
            scores["refusal"] = [float(refuses(response.text)) for response in self.responses]
        scores["length"] = [float(response.tokens) for response in self.responses]
        return scores

    def divergence(self, prompts: Sequence[Prompt] | None = None) -> Rows:
        """KL to the initial policy in nats per response; of a best-of-n policy, which has no density of its own, the bound.

        No rows where it is not known: of a policy with another vocabulary, and of responses out of a file.

        KL(best of n || policy) <= log n - (n - 1)/n (Beirami et al., arXiv:2401.01879); known here only if that policy is the initial one.
        """
        policy, prompts = self.round.policy, prompts or self.context.fewer_prompts
        if isinstance(policy, ResponseFile):
            return []
        if isinstance(policy, BestOfNPolicy):
            bound = math.log(policy.n) - (policy.n - 1) / policy.n
            known = policy.policy == self.context.initial_policy
            return [_metric(axis, "kl_bound", bound, 0.0, len(chosen)) for axis, chosen in by_axis(prompts) if known]
        nats = self._kl(prompts)
        if np.isnan(nats).all():
            return []
        return [
            _metric(
                axis, "kl", float(nats[chosen].mean()), _standard_error(nats[chosen], [prompts[place] for place in chosen]), len(chosen)
            )
            for axis, chosen in by_axis(prompts)
        ]

    def diversity(self) -> Rows:
        """Distinct n-grams, and the share of answers cut off by the token limit."""
        rows: Rows = []
        for axis, chosen in by_axis([response.prompt for response in self.responses]):
            words = [self.responses[place].text.split() for place in chosen]
            unfinished = [float(self.responses[place].finish == "length") for place in chosen]
            rows += [
                _metric(axis, "distinct_1", distinct(words, 1), NAN, len(chosen)),
                _metric(axis, "distinct_2", distinct(words, 2), NAN, len(chosen)),
                _metric(axis, "unfinished", float(np.mean(unfinished)), NAN, len(chosen)),
            ]
        return rows

    def unmatched(self) -> Rows:
        """How many test prompts a file of responses lacks."""
        lacking, n = len(self.context.test_prompts) - len(self.responses), len(self.context.test_prompts)
        return [_metric("all", "unmatched", float(lacking), NAN, n)] if isinstance(self.round.policy, ResponseFile) else []

    @cached_property
    def dev_answers(self) -> tuple[Response, ...]:
        """Of dev prompts; none where none are asked, or out of a file of responses to test prompts."""
        prompts = self.context.dev_prompts
        return self.lab.sample(self.round.policy, prompts, n=1, sampling=self.settings.sampling) if prompts else ()

    def dev_score(self) -> Rows:
        """The referee's mean score of the answers to dev prompts; no row where there are none."""
        answers = self.dev_answers
        if not answers:
            return []
        prompts = [answer.prompt for answer in answers]
        values = in_order(self.context.lab(self.seed, self.context.referee_spec).score(self.context.referee(self.seed), answers), answers)
        return [_metric("all", "dev_score", float(values.mean()), _standard_error(values, prompts), len(prompts))]

    def dev_truth(self) -> float | None:
        """The mean ground truth of the same answers; None where the task has none. Of trials alone: it may choose settings."""
        truth = self.context.task.ground_truth
        return float(np.mean([truth(answer.prompt, answer.text) for answer in self.dev_answers])) if truth and self.dev_answers else None

    def reward_model_rows(self, reward_model: RewardModel, scores: Mapping[str, Any]) -> Rows:
        """Accuracy and calibration on held-out human pairs, accuracy on golden over current samples, drift, agreement with gold."""
        margins = score_margins(self.sides)
        rows = [
            _diagnostic(row["axis"], "accuracy_human", row["n_pairs"], row["value"], row["ci_low"], row["ci_high"])
            for row in self.context.accuracy_rows(margins)
        ]
        before = self.sides if self.first == reward_model else self.context.sides(self.lab, self.first) if self.first else None
        for axis, chosen in by_axis([pair.prompt for pair in self.context.test_pairs]):
            confidence, right = _confidence(margins[chosen])
            here = self.sides[chosen].ravel()
            drift = NAN if before is None else _correlation(here, before[chosen].ravel())
            rows += [
                _diagnostic(axis, "ece", len(chosen), ece(confidence, right, self.settings.ece_bins)),
                _diagnostic(axis, "fixed_mean", len(here), float(here.mean())),
                _diagnostic(axis, "fixed_sd", len(here), float(here.std(ddof=1))),
                _diagnostic(axis, "fixed_correlation", len(here), drift),
            ]
        proxy, gold = (np.asarray(scores[name]) for name in ("proxy", self.context.experiment.models.gold[0].name))
        for axis, chosen in by_axis([response.prompt for response in self.responses]):
            rows.append(_diagnostic(axis, "gold_correlation", len(chosen), _correlation(proxy[chosen], gold[chosen])))
        return [*rows, *self._golden_accuracy(reward_model), *self._gold_agreement(reward_model)]

    def reliability_rows(self, reward_model: RewardModel) -> Rows:
        """The reliability curve on held-out human pairs; the reward model's confidence is sigmoid(|margin|)."""
        margins = score_margins(self.sides)
        rows: Rows = []
        for axis, chosen in by_axis([pair.prompt for pair in self.context.test_pairs]):
            confidence, right = _confidence(margins[chosen])
            for bin_ in reliability(confidence, right, self.settings.ece_bins):
                rows.append({"axis": axis, "bin": round(bin_.low * self.settings.ece_bins), **asdict(bin_)})
        return rows

    @cached_property
    def sides(self) -> np.ndarray:
        """The round's reward model on both sides of the held-out human pairs: the fixed responses that its scores drift on."""
        assert self.round.reward_model is not None
        return self.context.sides(self.lab, self.round.reward_model)

    def _golden_accuracy(self, reward_model: RewardModel) -> Rows:
        golden = self.context.held_out_golden
        if not golden:
            return []
        samples = self.lab.sample(self.round.policy, [response.prompt for response in golden], n=1, draw=-1)
        sides = [(best.prompt, text) for best, sample in zip(golden, samples, strict=True) for text in (best.text, sample.text)]
        values = self._scored(reward_model, sides)
        above = (values[0::2] > values[1::2]) + 0.5 * (values[0::2] == values[1::2])
        return _shares("accuracy_golden", above, [response.prompt for response in golden])

    def _gold_agreement(self, reward_model: RewardModel) -> Rows:
        """How often the reward model and gold order two of the policy's own answers to a prompt alike; equal answers are left out."""
        answers = self.lab.sample(self.round.policy, self.context.fewer_prompts, n=2, draw=-3, sampling=self.settings.sampling)
        answers = [answer for pair in zip(answers[0::2], answers[1::2], strict=True) if pair[0].text != pair[1].text for answer in pair]
        if not answers:
            return []
        items = Items.of(answers)
        gold = np.mean(list(self._gold_scores(self.context.experiment.models.gold[0], items).values()), axis=0)
        proxy = self._scored(reward_model, items)
        alike = (proxy[0::2] - proxy[1::2]) * (gold[0::2] - gold[1::2])
        return _shares("gold_agreement", (alike > 0) + 0.5 * (alike == 0), [answer.prompt for answer in answers[0::2]])

    def _inference_flops(self) -> dict[str, Any]:
        """What an answer costs once training is done; choosing among n pays for n."""
        before = self.lab.used["flops"]
        answers = self.responses
        spent = NAN if isinstance(self.round.policy, ResponseFile) else (self.lab.used["flops"] - before) / len(answers)
        return _metric("all", "inference_flops", spent, NAN, len(answers))

    def _scored(self, reward_model: RewardModel, items: Scored) -> np.ndarray:
        return in_order(self.lab.score(reward_model, items), items)

    def _gold_scores(self, gold: Gold, items: Scored) -> dict[int, np.ndarray]:
        """By training seed."""
        return {
            seed: in_order(self.context.lab(seed, gold.model).score(self.context.gold(gold, seed), items), items) for seed in gold.seeds
        }

    def _kl(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """Nats per response, on untruncated samples at temperature 1."""
        limit = self.settings.sampling
        untruncated = limit.model_copy(update={"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0})
        samples = self.lab.sample(self.round.policy, prompts, n=1, draw=-2, sampling=untruncated)
        context = self.context
        inputs = {
            "policy": self.round.policy.key,
            "reference": context.initial_policy.key,
            "samples": digest([(sample.prompt.id, sample.text, sample.finish, sample.token_ids) for sample in samples]),
            "precision": context.policy_model.model_dump(include={"dtype", "attention", "quantize"}),
            "code": code_hash(__name__),
            "engine": context.engine.identity,
        }
        batch_size = max(1, limit.batch_size // 4)
        own = self.round.policy.settings if isinstance(self.round.policy, FinishedPolicy) else None
        job = KLJob(self.round.policy, context.initial_policy, samples, context.policy_model, batch_size, own)
        return np.asarray(context.store.computed("kl", inputs, lambda folder: context.engine.kl(job), _save_nats, _load_nats)[1])


def _save_nats(folder: Path, nats: Sequence[float]) -> None:
    (folder / "nats.json").write_text(json.dumps(list(nats)))


def _load_nats(folder: Path) -> list[float]:
    return json.loads((folder / "nats.json").read_text())


def distinct(texts: Sequence[Sequence[str]], n: int) -> float:
    """Share of distinct n-grams among all n-grams of the texts; NaN if there is none."""
    grams = [tuple(words[place : place + n]) for words in texts for place in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else NAN


def _metric(axis: str, metric: str, value: float, standard_error: float, n: int) -> dict[str, Any]:
    return {"axis": axis, "metric": metric, "value": value, "standard_error": standard_error, "n": n}


def _diagnostic(axis: str, metric: str, n: int, value: float, ci_low: float = NAN, ci_high: float = NAN) -> dict[str, Any]:
    return {"axis": axis, "metric": metric, "value": value, "ci_low": ci_low, "ci_high": ci_high, "n": n}


def _shares(metric: str, hits: np.ndarray, prompts: Sequence[Prompt]) -> Rows:
    """A share by axis, with an interval over clusters."""
    rows = []
    for axis, chosen in by_axis(prompts):
        mean, low, high, _ = clustered_share(hits[chosen], [prompts[place].cluster_id for place in chosen])
        rows.append(_diagnostic(axis, metric, len(chosen), mean, low, high))
    return rows


def _standard_error(values: np.ndarray, prompts: Sequence[Prompt]) -> float:
    """What the 95 % interval over clusters came from; 0 where all values are equal, as before the first move."""
    if np.ptp(values) == 0:
        return 0.0
    _, low, high, clusters = clustered_mean(values, [prompt.cluster_id for prompt in prompts])
    return (high - low) / 2 / float(student.ppf(0.975, clusters - 1))


def _confidence(margins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the reward model in what it prefers, and whether it is right to."""
    return 1 / (1 + np.exp(-np.abs(margins))), margins > 0


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 0 and np.ptp(b) > 0 else NAN
