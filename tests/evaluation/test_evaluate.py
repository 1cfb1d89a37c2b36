"""Evaluation: complete rows, numbers that agree with independent computations, and nothing of it within a method's reach."""

import dataclasses
import math
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_world import tiny_bench, tiny_lab, tiny_task

from apo_bench.config.schema import PolicyModel
from apo_bench.evaluation.context import EvaluationContext, balanced, score_margins
from apo_bench.evaluation.evaluate import RoundEvaluation, distinct, evaluate
from apo_bench.losses import APOLoss, RankingLoss, SFTLoss
from apo_bench.models.policy import load_policy
from apo_bench.models.tokenize import ChatFormat
from apo_bench.store import Artifact
from apo_bench.types import Demonstration, Message, Prompt, Response, Round

pytestmark = pytest.mark.slow

ALL_AXES = ("all", "helpful", "harmless")
BY_AXIS = {"distinct_1", "distinct_2", "unfinished"}
TOGETHER = {("all", "dev_score"), ("all", "inference_flops")}
DIAGNOSTICS = {
    "accuracy_human", "accuracy_golden", "ece", "gold_correlation", "gold_agreement", "fixed_mean", "fixed_sd", "fixed_correlation",
}  # fmt: skip
SCORERS = {"proxy", "linear", "linear.0", "linear.1", "ground_truth", "refusal", "length"}
Artifacts = tuple[Artifact, Artifact]  # of the initial policy, and of the first round
Rounds = tuple[Round, Round]


def asking_dev(folder: Path) -> EvaluationContext:
    """A context that asks 8 dev prompts."""
    plain = tiny_bench(folder)
    settings = plain.experiment.evaluation.model_copy(update={"dev_prompts": 8})
    return dataclasses.replace(plain, experiment=plain.experiment.model_copy(update={"evaluation": settings}))


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> EvaluationContext:
    return asking_dev(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="module")
def rounds(context: EvaluationContext) -> Rounds:
    """Before the first move, and after one."""
    lab = context.lab(0, arm="arm")
    model = lab.train_reward_model(lab.pairs(), loss=RankingLoss())
    policy = lab.train_policy(
        lab.initial_policy, [Demonstration(golden.prompt, golden.text) for golden in lab.golden()], SFTLoss(), epochs=8
    )
    return Round(context.initial_policy, model), Round(policy, model)


@pytest.fixture(scope="module")
def evaluated(context: EvaluationContext, rounds: Rounds) -> Artifacts:
    before, after = (evaluate(context, round_, 0, round_.reward_model) for round_ in rounds)
    return before, after


@pytest.fixture(scope="module")
def later(context: EvaluationContext, rounds: Rounds) -> Round:
    """A round with a reward model of its own."""
    lab = context.lab(0, arm="arm")
    return Round(rounds[1].policy, lab.train_reward_model(lab.pairs(), loss=APOLoss(0.1, 4), start=rounds[0].reward_model))


@pytest.fixture(scope="module")
def chosen_among(context: EvaluationContext, rounds: Rounds) -> Round:
    """Best of 3 by the first reward model."""
    model = rounds[0].reward_model
    assert model is not None
    return Round(tiny_lab(context).best_of_n(context.initial_policy, model, 3), model)


def table(artifact: Artifact, name: str) -> pd.DataFrame:
    return pd.read_parquet(artifact.folder / f"{name}.parquet")


# --- rows ---------------------------------------------------------------------------------------------------------------------


def test_every_prompt_has_one_value_of_every_scorer(context: EvaluationContext, evaluated: Artifacts) -> None:
    prompts = {prompt.id: prompt for prompt in context.test_prompts}
    assert len(prompts) == 14
    assert set(prompts.values()) <= set(tiny_task().prompts["test"])
    for artifact in evaluated:
        scores = table(artifact, "scores")
        assert sorted(zip(scores["prompt_id"], scores["scorer"], strict=True)) == sorted(
            (prompt, scorer) for prompt in prompts for scorer in SCORERS
        )
        assert scores["value"].notna().all()
        for row in scores.itertuples():
            assert (row.cluster_id, row.axis) == (prompts[row.prompt_id].cluster_id, prompts[row.prompt_id].axis)
        assert sorted(table(artifact, "responses")["prompt_id"]) == sorted(prompts)


def test_a_gold_is_the_mean_of_its_seeds(evaluated: Artifacts) -> None:
    for artifact in evaluated:
        wide = table(artifact, "scores").pivot(index="prompt_id", columns="scorer", values="value")
        assert np.allclose(wide["linear"], (wide["linear.0"] + wide["linear.1"]) / 2, atol=1e-12)
        assert (wide["linear.0"] != wide["linear.1"]).any()  # two trainings, not one


def test_values_belong_to_their_responses(context: EvaluationContext, rounds: Rounds, evaluated: Artifacts) -> None:
    """Truth, refusals and length from the stored texts, one at a time; the proxy from a Lab asked about one prompt at a time."""
    task = tiny_task()
    prompts = {prompt.id: prompt for prompt in context.test_prompts}
    assert task.ground_truth is not None
    assert task.is_refusal is not None
    wide = table(evaluated[1], "scores").pivot(index="prompt_id", columns="scorer", values="value")
    lab = tiny_lab(context)
    assert rounds[1].reward_model is not None
    for number, row in enumerate(table(evaluated[1], "responses").itertuples()):
        prompt, values = prompts[row.prompt_id], wide.loc[row.prompt_id]
        assert values["ground_truth"] == task.ground_truth(prompt, row.text)
        assert values["refusal"] == float(task.is_refusal(row.text))
        assert values["length"] == row.tokens == len(row.text.split()) + (row.finish == "eos")  # one word a token
        if number < 3:
            response = Response(prompt, row.text, row.tokens, row.finish)  # one that was cut has no end
            alone = lab.score(rounds[1].reward_model, [response])[0].scores[0]
            assert values["proxy"] == pytest.approx(alone, abs=1e-5)


def test_metrics_are_complete_and_agree_with_the_responses(context: EvaluationContext, evaluated: Artifacts) -> None:
    for artifact in evaluated:
        metrics = table(artifact, "metrics")
        keys = list(zip(metrics["axis"], metrics["metric"], strict=True))
        assert len(keys) == len(set(keys))
        assert set(keys) == {(axis, metric) for axis in ALL_AXES for metric in {*BY_AXIS, "kl"}} | TOGETHER
        value = dict(zip(keys, metrics.itertuples(), strict=True))
        responses = table(artifact, "responses")
        assert value["all", "unfinished"].value == (responses["finish"] == "length").mean()
        words = [text.split() for text in responses["text"]]
        assert value["all", "distinct_1"].value == len({word for some in words for word in some}) / sum(map(len, words))
        pairs = [pair for some in words for pair in pairwise(some)]
        assert value["all", "distinct_2"].value == len(set(pairs)) / len(pairs)
        for axis in ("helpful", "harmless"):
            assert value[axis, "unfinished"].n == sum(prompt.axis == axis for prompt in context.test_prompts) == 7
        assert value["all", "kl"].n == 6


def test_kl_is_zero_before_the_first_move_and_grows(evaluated: Artifacts) -> None:
    before, after = (table(artifact, "metrics").query("metric == 'kl'") for artifact in evaluated)
    assert (before["value"] == 0).all()
    assert (before["standard_error"] == 0).all()
    assert (after["value"] > 0).all()
    assert (after["standard_error"] > 0).all()


def test_accuracy_against_an_independent_count(context: EvaluationContext, rounds: Rounds, evaluated: Artifacts) -> None:
    """Each side scored by a call of its own; right is 1, a tie a half."""
    lab, model = tiny_lab(context), rounds[0].reward_model
    assert model is not None
    pairs = context.test_pairs
    assert len(pairs) == 30
    assert set(pairs) <= set(tiny_task().pairs["test"])
    one_each = {pair.prompt.id: pair for pair in pairs}
    assert len(one_each) == 30  # one pair a prompt in this world, so groups are single answers
    chosen = {group.prompt.id: group.scores[0] for group in lab.score(model, [(pair.prompt, pair.chosen) for pair in pairs])}
    rejected = {group.prompt.id: group.scores[0] for group in lab.score(model, [(pair.prompt, pair.rejected) for pair in pairs])}
    accuracies = table(evaluated[0], "reward_models").query("metric == 'accuracy_human'").set_index("axis")
    assert set(accuracies.index) == {"all", "helpful", "harmless"}
    for axis, row in accuracies.iterrows():
        some = [name for name, pair in one_each.items() if axis in ("all", pair.prompt.axis)]
        right = [1.0 if chosen[name] > rejected[name] else 0.5 if chosen[name] == rejected[name] else 0.0 for name in some]
        assert row["n"] == len(some)
        assert row["value"] == pytest.approx(sum(right) / len(right))
        assert row["ci_low"] <= row["value"] <= row["ci_high"]


def test_ece_and_correlation_against_independent_computations(context: EvaluationContext, rounds: Rounds, evaluated: Artifacts) -> None:
    rows = table(evaluated[1], "reward_models").set_index(["metric", "axis"])
    assert set(rows.index.get_level_values("metric")) == DIAGNOSTICS
    assert rows.index.is_unique
    wide = table(evaluated[1], "scores").pivot(index="prompt_id", columns="scorer", values="value")
    assert rows.loc[("gold_correlation", "all"), "value"] == pytest.approx(wide["proxy"].corr(wide["linear"]))
    assert rounds[1].reward_model is not None
    margins = score_margins(context.sides(tiny_lab(context), rounds[1].reward_model))
    confidence, right = 1 / (1 + np.exp(-np.abs(margins))), (margins > 0).astype(float)
    bins = np.clip(np.floor(confidence * 10), 0, 9)  # equal bins over [0, 1]
    expected = sum((bins == bin_).mean() * abs(confidence[bins == bin_].mean() - right[bins == bin_].mean()) for bin_ in set(bins))
    assert rows.loc[("ece", "all"), "value"] == pytest.approx(expected)


def test_the_reliability_curve_is_the_eces_own(evaluated: Artifacts) -> None:
    """ECE = sum over bins of (share of pairs) * |accuracy - confidence|, to the last bit; empty bins have no row; 30 pairs in all.

    Confidence is sigmoid(|margin|), never below a half: of 10 bins the lower five stay empty.
    """
    for artifact in evaluated:
        curve, rows = table(artifact, "reliability"), table(artifact, "reward_models").query("metric == 'ece'").set_index("axis")
        assert list(curve.columns) == ["axis", "bin", "low", "high", "confidence", "accuracy", "n"]
        assert set(curve["axis"]) == set(ALL_AXES)
        assert not curve.duplicated(["axis", "bin"]).any()
        assert curve["bin"].between(5, 9).all()
        assert (curve["low"] == curve["bin"] / 10).all()
        assert (curve["high"] == (curve["bin"] + 1) / 10).all()
        assert ((curve["low"] <= curve["confidence"]) & (curve["confidence"] <= curve["high"])).all()
        for axis, some in curve.groupby("axis"):
            assert some["n"].min() > 0
            assert some["n"].sum() == rows.loc[axis, "n"]
            bins = some.sort_values("bin").itertuples()
            assert sum(row.n * abs(row.accuracy - row.confidence) for row in bins) / some["n"].sum() == rows.loc[axis, "value"]
        assert rows.loc["all", "n"] == 30


def test_drift_on_fixed_responses(context: EvaluationContext, rounds: Rounds, later: Round, evaluated: Artifacts) -> None:
    """Both sides of the 30 held-out human pairs, each scored by a call of its own; in rounds 0 and 1 the first model is the present one."""
    first = rounds[0].reward_model
    assert first is not None
    assert later.reward_model is not None
    drifted = evaluate(context, later, 0, first)
    lab = tiny_lab(context)
    sides = [(pair.prompt, text) for pair in context.test_pairs for text in (pair.chosen, pair.rejected)]
    before, now = ([lab.score(model, [side])[0].scores[0] for side in sides] for model in (first, later.reward_model))
    for artifact, values, correlation in (
        (evaluated[0], before, 1.0), (evaluated[1], before, 1.0), (drifted, now, float(np.corrcoef(before, now)[0, 1])),
    ):  # fmt: skip
        rows = table(artifact, "reward_models").set_index(["metric", "axis"])
        assert rows.loc[("fixed_mean", "all"), "value"] == pytest.approx(np.mean(values), abs=1e-5)
        assert rows.loc[("fixed_sd", "all"), "value"] == pytest.approx(statistics.stdev(values), abs=1e-5)
        assert rows.loc[("fixed_correlation", "all"), "value"] == pytest.approx(correlation, abs=1e-4)
        assert rows.loc[("fixed_mean", "all"), "n"] == 60
        assert rows.loc[("fixed_mean", "helpful"), "n"] + rows.loc[("fixed_mean", "harmless"), "n"] == 60
    assert np.corrcoef(before, now)[0, 1] < 0.9
    unknown = table(evaluate(context, later, 0, None), "reward_models")  # of an arm whose first round had no reward model
    assert unknown.loc[unknown["metric"] == "fixed_correlation", "value"].isna().all()


def test_agreement_with_gold_on_own_answers(context: EvaluationContext, rounds: Rounds, evaluated: Artifacts) -> None:
    """Two answers to each of 6 prompts, scored one at a time: alike if proxy and the mean of golds put the same one first."""
    lab, (_, after) = tiny_lab(context), rounds
    assert after.reward_model is not None
    prompts = balanced(context.test_prompts, 6)
    answers = lab.sample(after.policy, prompts, n=2, draw=-3, sampling=context.experiment.evaluation.sampling)
    gold, alike = context.experiment.models.gold[0], []

    def margin(model: Any, of: Any, place: int) -> float:
        first, second = (of.score(model, [answers[place + side]])[0].scores[0] for side in (0, 1))
        return first - second

    for place in range(0, 12, 2):
        if answers[place].text != answers[place + 1].text:
            proxy = margin(after.reward_model, lab, place)
            golds = sum(margin(context.gold(gold, seed), context.lab(seed, gold.model), place) for seed in gold.seeds)
            alike.append(1.0 if proxy * golds > 0 else 0.5 if proxy * golds == 0 else 0.0)
    row = table(evaluated[1], "reward_models").set_index(["metric", "axis"]).loc[("gold_agreement", "all")]
    assert (row["value"], row["n"]) == (pytest.approx(np.mean(alike)), len(alike))


def test_agreement_with_gold_by_hand(context: EvaluationContext, rounds: Rounds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxy (1, 0), (0, 1), (2, 2) and gold, the mean of two trainings, (2, 1), (3, 1), (0, 1): alike 1, 0 and a half. The fourth
    prompt's two answers are equal and left out: a half over 3."""
    texts = [("a", "b"), ("c", "d"), ("e", "f"), ("g", "g")]
    prompts = [Prompt(f"p{number}", (Message("user", f"{number}"),), "helpful", f"c{number}") for number in range(4)]
    answers = tuple(Response(prompt, text, 1, "eos") for prompt, pair in zip(prompts, texts, strict=True) for text in pair)
    evaluation = RoundEvaluation(context, rounds[0], 0)
    monkeypatch.setattr(evaluation.lab, "sample", lambda *words, **names: answers)
    monkeypatch.setattr(evaluation, "_scored", lambda model, items: np.array([1.0, 0, 0, 1, 2, 2]))
    golds = {0: np.array([4.0, 1, 3, 0, 0, 1]), 1: np.array([0.0, 1, 3, 2, 0, 1])}
    monkeypatch.setattr(evaluation, "_gold_scores", lambda gold, items: golds)
    assert rounds[0].reward_model is not None
    rows = {row["axis"]: row for row in evaluation._gold_agreement(rounds[0].reward_model)}
    assert set(rows) == {"helpful", "all"}
    assert (rows["all"]["value"], rows["all"]["n"]) == (0.5, 3)
    monkeypatch.setattr(evaluation.lab, "sample", lambda *words, **names: answers[6:])
    assert evaluation._gold_agreement(rounds[0].reward_model) == []


def test_dev_scores_are_the_referees_of_answers_to_dev_prompts(context: EvaluationContext, rounds: Rounds, evaluated: Artifacts) -> None:
    """Answers sampled and scored by another Lab, one at a time; each prompt is a cluster of its own here: the standard error of a mean."""
    lab, prompts = tiny_lab(context), context.dev_prompts
    assert len({prompt.cluster_id for prompt in prompts}) == len(prompts) == 8
    for round_, artifact in zip(rounds, evaluated, strict=True):
        answers = lab.sample(round_.policy, prompts, sampling=context.experiment.evaluation.sampling)
        values = [lab.score(context.referee(0), [answer])[0].scores[0] for answer in answers]
        row = table(artifact, "metrics").set_index("metric").loc["dev_score"]
        assert (row["value"], row["n"]) == (pytest.approx(np.mean(values), abs=1e-5), 8)
        assert row["standard_error"] == pytest.approx(statistics.stdev(values) / math.sqrt(8), abs=1e-5)


def test_without_dev_prompts_there_is_no_dev_score_and_no_referee(context: EvaluationContext, rounds: Rounds) -> None:
    plain = dataclasses.replace(tiny_bench(context.store.run_folder), charged={})
    assert "dev_score" not in set(table(evaluate(plain, rounds[0], 0, rounds[0].reward_model), "metrics")["metric"])
    assert context.referee(0).key not in plain.charged


# --- best of n ----------------------------------------------------------------------------------------------------------------


def test_best_of_ns_kl_is_a_bound(context: EvaluationContext, rounds: Rounds, chosen_among: Round) -> None:
    """log 3 - 2/3 on every axis, of what it chooses among; unknown where that is not the initial policy."""
    metrics = table(evaluate(context, chosen_among, 0, chosen_among.reward_model), "metrics")
    assert "kl" not in set(metrics["metric"])
    bound = metrics.query("metric == 'kl_bound'").set_index("axis")
    assert set(bound.index) == set(ALL_AXES)
    assert bound["value"].to_numpy() == pytest.approx(math.log(3) - 2 / 3)
    assert (bound["standard_error"] == 0).all()
    assert (bound.loc["all", "n"], bound.loc["helpful", "n"]) == (6, 3)
    assert chosen_among.reward_model is not None
    of_a_trained_one = tiny_lab(context).best_of_n(rounds[1].policy, chosen_among.reward_model, 3)
    assert RoundEvaluation(context, Round(of_a_trained_one, chosen_among.reward_model), 0).divergence() == []


def test_best_of_1s_bound_is_zero(context: EvaluationContext, chosen_among: Round) -> None:
    assert chosen_among.reward_model is not None
    policy = tiny_lab(context).best_of_n(context.initial_policy, chosen_among.reward_model, 1)
    assert {row["value"] for row in RoundEvaluation(context, Round(policy, chosen_among.reward_model), 0).divergence()} == {0.0}


def test_an_answer_of_best_of_n_costs_n_samples_and_n_scores(context: EvaluationContext, chosen_among: Round, evaluated: Artifacts) -> None:
    """By hand for the initial policy over 14 answers: 2,560 weights of one layer times the tokens of prompts and answers, but for the
    last of each answer, which is not read; the output layer's times those of answers; attention 16 wide.

    Best of 3: what a Lab is charged for the same 3 answers a prompt and their scores.
    """
    sampling, spec = context.experiment.evaluation.sampling, context.experiment.models.policy
    assert isinstance(spec, PolicyModel)
    _, tokenizer = load_policy(context.store.open("policies", context.initial_policy.key).folder)
    chat = ChatFormat.of(tokenizer, spec)
    read = [len(chat.encode_prompt(prompt, spec.max_prompt_tokens).ids) for prompt in context.test_prompts]
    written = table(evaluated[0], "responses").set_index("prompt_id")["tokens"][[prompt.id for prompt in context.test_prompts]].tolist()
    seen = sum(before**2 + (new - 1) * before + new * (new - 1) / 2 for before, new in zip(read, written, strict=True))
    plain = table(evaluated[0], "metrics").set_index("metric").loc["inference_flops"]
    body, output = 4 * 16 * 16 + 3 * 16 * 32, 16 * len(tokenizer)
    flops = 2 * body * (sum(read) + sum(written) - 14) + 2 * output * sum(written) + 4 * 16 * seen
    assert (plain["value"], plain["n"]) == (pytest.approx(flops / 14), 14)
    lab = tiny_lab(context)
    assert chosen_among.reward_model is not None
    tries = lab.sample(context.initial_policy, context.test_prompts, n=3, sampling=sampling)
    sampled = lab.used["flops"]
    lab.score(chosen_among.reward_model, tries)
    best = table(evaluate(context, chosen_among, 0, chosen_among.reward_model), "metrics").set_index("metric").loc["inference_flops"]
    assert best["value"] == pytest.approx(lab.used["flops"] / 14)
    assert lab.used["flops"] > sampled > 14 * plain["value"]


def test_best_of_n_is_examined_by_its_answers(context: EvaluationContext, chosen_among: Round) -> None:
    """Its responses are among the initial policy's tries, and its proxy score is the highest of each three."""
    artifact = evaluate(context, chosen_among, 0, chosen_among.reward_model)
    lab = tiny_lab(context)
    tries = lab.sample(context.initial_policy, context.test_prompts, n=3, sampling=context.experiment.evaluation.sampling)
    assert chosen_among.reward_model is not None
    groups = {group.prompt.id: group for group in lab.score(chosen_among.reward_model, tries)}
    proxy = table(artifact, "scores").query("scorer == 'proxy'").set_index("prompt_id")["value"]
    for row in table(artifact, "responses").itertuples():
        group = groups[row.prompt_id]
        assert row.text in group.responses
        assert proxy[row.prompt_id] == pytest.approx(max(group.scores), abs=1e-5)


def test_golden_accuracy_is_over_the_policys_own_samples(context: EvaluationContext, rounds: Rounds, evaluated: Artifacts) -> None:
    lab, (_, after) = tiny_lab(context), rounds
    assert after.reward_model is not None
    held_out = context.held_out_golden
    samples = lab.sample(after.policy, [golden.prompt for golden in held_out], draw=-1)
    above = []
    for golden, sample in zip(held_out, samples, strict=True):
        (group,) = lab.score(after.reward_model, [(golden.prompt, golden.text), (golden.prompt, sample.text)])
        above.append(1.0 if group.scores[0] > group.scores[1] else 0.5 if group.scores[0] == group.scores[1] else 0.0)
    row = table(evaluated[1], "reward_models").set_index(["metric", "axis"]).loc[("accuracy_golden", "all")]
    assert (row["value"], row["n"]) == (pytest.approx(np.mean(above)), len(held_out))


def test_a_round_without_a_reward_model(context: EvaluationContext, rounds: Rounds) -> None:
    artifact = evaluate(context, Round(rounds[1].policy, None), 0)
    assert set(table(artifact, "scores")["scorer"]) == SCORERS - {"proxy"}
    assert [len(table(artifact, name)) for name in ("reward_models", "reliability")] == [0, 0]


def test_an_evaluation_is_made_once_and_leaves_the_same_account(context: EvaluationContext, rounds: Rounds) -> None:
    again = asking_dev(context.store.run_folder)
    first = dataclasses.replace(context, charged={})
    assert evaluate(first, rounds[1], 0).key == evaluate(again, rounds[1], 0).key
    assert again.store.built == []
    assert first.charged == again.charged
    assert sum(counts.get("sampled_responses", 0) for counts in again.charged.values()) > 14


# --- parts --------------------------------------------------------------------------------------------------------------------


def test_distinct_by_hand() -> None:
    """a b a b: unigrams a, b of 4; bigrams ab, ba, ab: 2 of 3. N-grams do not cross texts: a b | b a has ab, ba."""
    assert distinct([["a", "b", "a", "b"]], 1) == 2 / 4
    assert distinct([["a", "b", "a", "b"]], 2) == 2 / 3
    assert distinct([["a", "b"], ["b", "a"]], 2) == 1.0
    assert distinct([["a", "b"], ["a", "b"]], 2) == 1 / 2
    assert math.isnan(distinct([["a"], []], 2))
    assert math.isnan(distinct([], 1))
