"""Evaluation: complete rows, numbers that agree with independent computations, and nothing of it within a method's reach."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_world import tiny_bench, tiny_lab, tiny_task

from apo_bench.bench import Bench, balanced, in_order
from apo_bench.evaluate import distinct, evaluate
from apo_bench.lab import Round
from apo_bench.losses import RankingLoss, SFTLoss
from apo_bench.store import Artifact
from apo_bench.types import Demonstration, Group, Message, Prompt, Response

METRICS = {"kl", "distinct_1", "distinct_2", "unfinished"}
SCORERS = {"proxy", "linear", "linear.0", "linear.1", "ground_truth", "refusal", "length"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return tiny_bench(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="module")
def rounds(bench: Bench) -> tuple[Round, Round]:
    """Before the first move, and after one."""
    lab = bench.lab(0, arm="arm")
    model = lab.train_reward_model(lab.pairs(), loss=RankingLoss())
    policy = lab.train_policy(lab.initial_policy, [Demonstration(one.prompt, one.text) for one in lab.golden()], SFTLoss(), epochs=8)
    return Round(bench.initial_policy, model), Round(policy, model)


@pytest.fixture(scope="module")
def examined(bench: Bench, rounds: tuple[Round, Round]) -> tuple[Artifact, Artifact]:
    before, after = (bench.evaluate(round_, 0) for round_ in rounds)
    return before, after


def table(artifact: Artifact, name: str) -> pd.DataFrame:
    return pd.read_parquet(artifact.folder / f"{name}.parquet")


# --- rows ---------------------------------------------------------------------------------------------------------------------


def test_every_prompt_has_one_value_of_every_scorer(bench: Bench, examined: tuple[Artifact, Artifact]) -> None:
    asked = {prompt.id: prompt for prompt in bench.test_prompts}
    assert len(asked) == 14
    assert set(asked.values()) <= set(tiny_task().prompts["test"])
    for artifact in examined:
        scores = table(artifact, "scores")
        assert sorted(zip(scores["prompt_id"], scores["scorer"], strict=True)) == sorted(
            (prompt, scorer) for prompt in asked for scorer in SCORERS
        )
        assert scores["value"].notna().all()
        for row in scores.itertuples():
            assert (row.cluster_id, row.axis) == (asked[row.prompt_id].cluster_id, asked[row.prompt_id].axis)
        assert sorted(table(artifact, "responses")["prompt_id"]) == sorted(asked)


def test_a_gold_is_the_mean_of_its_seeds(examined: tuple[Artifact, Artifact]) -> None:
    for artifact in examined:
        wide = table(artifact, "scores").pivot(index="prompt_id", columns="scorer", values="value")
        assert np.allclose(wide["linear"], (wide["linear.0"] + wide["linear.1"]) / 2, atol=1e-12)
        assert (wide["linear.0"] != wide["linear.1"]).any()  # two trainings, not one


def test_values_belong_to_their_responses(bench: Bench, rounds: tuple[Round, Round], examined: tuple[Artifact, Artifact]) -> None:
    """Truth, refusals and length from the stored texts, one at a time; the proxy from a Lab asked about one prompt at a time."""
    task = tiny_task()
    prompts = {prompt.id: prompt for prompt in bench.test_prompts}
    assert task.ground_truth is not None
    assert task.is_refusal is not None
    wide = table(examined[1], "scores").pivot(index="prompt_id", columns="scorer", values="value")
    lab = tiny_lab(bench)
    assert rounds[1].reward_model is not None
    for number, row in enumerate(table(examined[1], "responses").itertuples()):
        prompt, values = prompts[row.prompt_id], wide.loc[row.prompt_id]
        assert values["ground_truth"] == task.ground_truth(prompt, row.text)
        assert values["refusal"] == float(task.is_refusal(row.text))
        assert values["length"] == row.tokens == len(row.text.split()) + (row.finish == "eos")  # one word a token
        if number < 3:
            alone = lab.score(rounds[1].reward_model, [(prompt, row.text)])[0].scores[0]
            assert values["proxy"] == pytest.approx(alone, abs=1e-5)


def test_metrics_are_complete_and_agree_with_the_responses(bench: Bench, examined: tuple[Artifact, Artifact]) -> None:
    for artifact in examined:
        metrics = table(artifact, "metrics")
        keys = list(zip(metrics["axis"], metrics["metric"], strict=True))
        assert sorted(keys) == sorted((axis, metric) for axis in ("all", "helpful", "harmless") for metric in METRICS)
        value = dict(zip(keys, metrics.itertuples(), strict=True))
        responses = table(artifact, "responses")
        assert value["all", "unfinished"].value == (responses["finish"] == "length").mean()
        words = [text.split() for text in responses["text"]]
        assert value["all", "distinct_1"].value == len({word for some in words for word in some}) / sum(map(len, words))
        pairs = [pair for some in words for pair in pairwise(some)]
        assert value["all", "distinct_2"].value == len(set(pairs)) / len(pairs)
        for axis in ("helpful", "harmless"):
            assert value[axis, "unfinished"].n == sum(prompt.axis == axis for prompt in bench.test_prompts) == 7
        assert value["all", "kl"].n == 6


def test_kl_is_zero_before_the_first_move_and_grows(examined: tuple[Artifact, Artifact]) -> None:
    before, after = (table(one, "metrics").query("metric == 'kl'") for one in examined)
    assert (before["value"] == 0).all()
    assert (before["standard_error"] == 0).all()
    assert (after["value"] > 0).all()
    assert (after["standard_error"] > 0).all()


def test_accuracy_against_an_independent_count(bench: Bench, rounds: tuple[Round, Round], examined: tuple[Artifact, Artifact]) -> None:
    """Each side scored by a call of its own; right is 1, a tie a half."""
    lab, model = tiny_lab(bench), rounds[0].reward_model
    assert model is not None
    pairs = bench.test_pairs
    assert len(pairs) == 30
    assert set(pairs) <= set(tiny_task().pairs["test"])
    one_each = {pair.prompt.id: pair for pair in pairs}
    assert len(one_each) == 30  # one pair a prompt in this world, so groups are single answers
    chosen = {group.prompt.id: group.scores[0] for group in lab.score(model, [(pair.prompt, pair.chosen) for pair in pairs])}
    rejected = {group.prompt.id: group.scores[0] for group in lab.score(model, [(pair.prompt, pair.rejected) for pair in pairs])}
    found = table(examined[0], "reward_models").query("metric == 'accuracy_human'").set_index("axis")
    assert set(found.index) == {"all", "helpful", "harmless"}
    for axis, row in found.iterrows():
        some = [name for name, pair in one_each.items() if axis in ("all", pair.prompt.axis)]
        right = [1.0 if chosen[name] > rejected[name] else 0.5 if chosen[name] == rejected[name] else 0.0 for name in some]
        assert row["n"] == len(some)
        assert row["value"] == pytest.approx(sum(right) / len(right))
        assert row["ci_low"] <= row["value"] <= row["ci_high"]


def test_ece_and_correlation_against_independent_computations(
    bench: Bench, rounds: tuple[Round, Round], examined: tuple[Artifact, Artifact]
) -> None:
    rows = table(examined[1], "reward_models").set_index(["metric", "axis"])
    assert set(rows.index.get_level_values("metric")) == {"accuracy_human", "accuracy_golden", "ece", "gold_correlation"}
    assert rows.index.is_unique
    wide = table(examined[1], "scores").pivot(index="prompt_id", columns="scorer", values="value")
    assert rows.loc[("gold_correlation", "all"), "value"] == pytest.approx(wide["proxy"].corr(wide["linear"]))
    assert rounds[1].reward_model is not None
    margins = bench.margins(tiny_lab(bench), rounds[1].reward_model)
    confidence, right = 1 / (1 + np.exp(-np.abs(margins))), (margins > 0).astype(float)
    bins = np.clip(np.floor(confidence * 10), 0, 9)  # equal bins over [0, 1]
    expected = sum((bins == one).mean() * abs(confidence[bins == one].mean() - right[bins == one].mean()) for one in set(bins))
    assert rows.loc[("ece", "all"), "value"] == pytest.approx(expected)


def test_golden_accuracy_is_over_the_policys_own_samples(
    bench: Bench, rounds: tuple[Round, Round], examined: tuple[Artifact, Artifact]
) -> None:
    lab, (_, after) = tiny_lab(bench), rounds
    assert after.reward_model is not None
    golden = bench.held_out_golden
    samples = lab.sample(after.policy, [one.prompt for one in golden], draw=-1)
    above = []
    for one, sample in zip(golden, samples, strict=True):
        (group,) = lab.score(after.reward_model, [(one.prompt, one.text), (one.prompt, sample.text)])
        above.append(1.0 if group.scores[0] > group.scores[1] else 0.5 if group.scores[0] == group.scores[1] else 0.0)
    row = table(examined[1], "reward_models").set_index(["metric", "axis"]).loc[("accuracy_golden", "all")]
    assert (row["value"], row["n"]) == (pytest.approx(np.mean(above)), len(golden))


def test_a_round_without_a_reward_model(bench: Bench, rounds: tuple[Round, Round]) -> None:
    artifact = bench.evaluate(Round(rounds[1].policy, None), 0)
    assert set(table(artifact, "scores")["scorer"]) == SCORERS - {"proxy"}
    assert list(table(artifact, "reward_models")["metric"]) == [""]  # a placeholder that the runner drops


def test_gold_and_floor_accuracy(bench: Bench) -> None:
    gold = pd.read_parquet(bench.gold_accuracy().folder / "gold.parquet")
    assert sorted(zip(gold["gold"], gold["seed"], gold["axis"], strict=True)) == sorted(
        (name, seed, axis) for name, seed in (("linear", 0), ("linear", 1), ("linear", -1), ("_floor", 0)) for axis in
        ("all", "helpful", "harmless")
    )  # fmt: skip
    models = [
        (bench.lab(seed, bench.experiment.models.gold[0].model), bench.gold(bench.experiment.models.gold[0], seed)) for seed in (0, 1)
    ]
    margins = np.mean([bench.margins(*one) for one in models], axis=0)
    mean_row = gold.query("seed == -1 and axis == 'all'").iloc[0]
    assert mean_row["value"] == pytest.approx(np.mean((margins > 0) + 0.5 * (margins == 0)))
    assert (mean_row["n_pairs"], mean_row["metric"]) == (30, "accuracy")
    floor = pd.DataFrame(bench.floor_accuracy(0))
    assert sorted(floor["axis"]) == ["all", "harmless", "helpful"]
    assert set(floor["metric"]) == {"accuracy_human"}


def test_an_evaluation_is_made_once_and_leaves_the_same_account(bench: Bench, rounds: tuple[Round, Round]) -> None:
    again = tiny_bench(bench.store.run_folder)
    first = dataclasses.replace(bench, charged={})
    assert first.evaluate(rounds[1], 0).key == again.evaluate(rounds[1], 0).key
    assert again.store.built == []
    assert first.charged == again.charged
    assert sum(counts.get("sampled_responses", 0) for counts in again.charged.values()) > 14


# --- held out -----------------------------------------------------------------------------------------------------------------


def reachable(value: Any, seen: set[int]) -> Iterator[Any]:
    """Everything that attributes, items and elements lead to."""
    if id(value) in seen or isinstance(value, str | bytes | int | float | type(None)):
        return
    seen.add(id(value))
    yield value
    inner: list[Any] = list(vars(value).values()) if hasattr(value, "__dict__") and not isinstance(value, type) else []
    if isinstance(value, dict):
        inner += [*value, *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        inner += list(value)
    for one in inner:
        yield from reachable(one, seen)


def test_an_arms_data_lead_to_no_held_out_prompt(bench: Bench) -> None:
    lab, task = bench.lab(0, arm="arm"), tiny_task()
    hidden = {prompt for split in ("gold", "dev", "test") for prompt in task.prompts[split]}
    held_out = {golden.prompt.id: golden.text for golden in bench.held_out_golden}
    found = list(reachable(lab._data, set()))
    prompts = [one for one in found if isinstance(one, Prompt)]
    assert set(prompts) == {*task.prompts["rm"], *task.prompts["policy"]}
    assert not hidden & set(prompts)
    assert not {prompt.cluster_id for prompt in hidden} & {prompt.cluster_id for prompt in prompts}
    assert not [one for one in lab._data.golden if one.prompt.id in held_out]
    assert not [one for one in reachable(lab, set()) if isinstance(one, Bench) or one is task]


def test_held_out_golden_responses_are_no_arms(bench: Bench) -> None:
    """A quarter of 134, and at most 64; with the arms' they make up all."""
    kept, open_ = bench.held_out_golden, bench.training_data.golden
    assert len(kept) == min(64, 134 // 4) == 33
    assert not {one.prompt.id for one in kept} & {one.prompt.id for one in open_}
    assert {(one.prompt.id, one.text) for one in (*kept, *open_)} == set(tiny_task().golden.items())
    assert len(bench.lab(0, arm="arm").golden()) == 6  # the budget


def test_an_arm_gets_the_budget_and_the_bench_none(bench: Bench) -> None:
    assert len(bench.lab(0, arm="arm").pairs()) == 32
    assert len(bench.lab(0).pairs()) == len(tiny_task().pairs["rm"])


# --- parts --------------------------------------------------------------------------------------------------------------------


def test_distinct_by_hand() -> None:
    """a b a b: unigrams a, b of 4; bigrams ab, ba, ab: 2 of 3. N-grams do not cross texts: a b | b a has ab, ba."""
    assert distinct([["a", "b", "a", "b"]], 1) == 2 / 4
    assert distinct([["a", "b", "a", "b"]], 2) == 2 / 3
    assert distinct([["a", "b"], ["b", "a"]], 2) == 1.0
    assert distinct([["a", "b"], ["a", "b"]], 2) == 1 / 2
    assert math.isnan(distinct([["a"], []], 2))
    assert math.isnan(distinct([], 1))


def prompts_of(axes: list[str]) -> list[Prompt]:
    return [Prompt(f"{number}", (Message("user", f"{number}"),), axis, f"{number}") for number, axis in enumerate(axes)]


@given(st.lists(st.sampled_from("abc"), max_size=30).map(prompts_of), st.integers(0, 40), st.randoms(use_true_random=False))
def test_balanced_is_even_and_depends_on_ids_alone(prompts: list[Prompt], n: int, random: Any) -> None:
    chosen = balanced(prompts, n)
    assert len(chosen) == len(set(chosen)) == min(n, len(prompts))
    assert set(chosen) <= set(prompts)
    shuffled = list(prompts)
    random.shuffle(shuffled)
    assert balanced(shuffled, n) == chosen
    assert set(balanced(prompts, None)) == set(prompts)
    there, taken = (Counter(prompt.axis for prompt in some) for some in (prompts, chosen))
    for axis in there:  # an axis gets fewer than another by more than one only if it has no more
        assert taken[axis] == there[axis] or taken[axis] >= max(taken.values(), default=0) - 1
    assert set(balanced(prompts, n)) <= set(balanced(prompts, n + 1)) or n >= len(prompts)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 10_000)), max_size=20))
def test_in_order_undoes_the_grouping(asked: list[tuple[int, int]]) -> None:
    prompts = prompts_of(["a"] * 4)
    items = [(prompts[place], f"text {number}") for place, number in asked]
    groups = [
        Group(
            prompt, tuple(text for one, text in items if one == prompt), tuple(float(n) for place, n in asked if prompts[place] == prompt)
        )
        for prompt in dict.fromkeys(prompt for prompt, _ in items)
    ]
    assert list(_in_order(groups, items)) == [float(number) for _, number in asked]
    responses = [Response(prompt, text, 1, "eos") for prompt, text in items]
    assert list(_in_order(groups, responses)) == [float(number) for _, number in asked]
