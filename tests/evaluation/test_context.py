"""The context: what arms may see and spend, what is held out from them, and who chooses for them."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_world import tiny_bench, tiny_lab, tiny_task, tiny_tree

from apo_bench.config.schema import Arm, NgramReward
from apo_bench.evaluation.context import EvaluationContext, balanced, in_order, score_margins
from apo_bench.losses import RankingLoss
from apo_bench.types import Group, Message, Prompt, Response

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> EvaluationContext:
    return tiny_bench(tmp_path_factory.mktemp("context"))


def with_arms(context: EvaluationContext, **budgets: dict[Any, float]) -> EvaluationContext:
    """The context of an experiment whose arms have budgets of their own."""
    arms = {name: Arm(use="a@B", budget=budget) for name, budget in budgets.items()}
    return replace(context, experiment=context.experiment.model_copy(update={"arms": arms}))


def asking_dev(context: EvaluationContext, n: int) -> EvaluationContext:
    experiment = context.experiment
    return replace(
        context, experiment=experiment.model_copy(update={"evaluation": experiment.evaluation.model_copy(update={"dev_prompts": n})})
    )


# --- gold, floor and referee --------------------------------------------------------------------------------------------------


def test_gold_and_floor_accuracy(context: EvaluationContext) -> None:
    gold = pd.read_parquet(context.gold_accuracy().folder / "gold.parquet")
    assert sorted(zip(gold["gold"], gold["seed"], gold["axis"], strict=True)) == sorted(
        (name, seed, axis) for name, seed in (("linear", 0), ("linear", 1), ("linear", -1), ("_floor", 0)) for axis in
        ("all", "helpful", "harmless")
    )  # fmt: skip
    models = [
        (context.lab(seed, context.experiment.models.gold[0].model), context.gold(context.experiment.models.gold[0], seed))
        for seed in (0, 1)
    ]
    margins = np.mean([score_margins(context.sides(lab, model)) for lab, model in models], axis=0)
    mean_row = gold.query("seed == -1 and axis == 'all'").iloc[0]
    assert mean_row["value"] == pytest.approx(np.mean((margins > 0) + 0.5 * (margins == 0)))
    assert (mean_row["n_pairs"], mean_row["metric"]) == (30, "accuracy")
    floor = pd.DataFrame(context.floor_accuracy(0))
    assert sorted(floor["axis"]) == ["all", "harmless", "helpful"]
    assert set(floor["metric"]) == {"accuracy_human"}


@pytest.mark.parametrize("n", [None, 9])
def test_dev_prompts_are_the_dev_splits(context: EvaluationContext, n: int | None) -> None:
    prompts = asking_dev(context, n).dev_prompts if n else context.dev_prompts
    assert len(prompts) == (n or 0)
    assert set(prompts) <= set(tiny_task().prompts["dev"])
    assert set(Counter(prompt.axis for prompt in prompts).values()) <= {4, 5}


def test_the_referee_is_fitted_to_the_dev_splits_human_pairs_one_a_seed(context: EvaluationContext) -> None:
    """The same model as a Lab of that seed would train on those pairs; no arm's budget or name changes it, nor does it cost an arm."""
    context = replace(context, charged={})
    referee = context.referee(0)
    assert tiny_lab(context).train_reward_model(tiny_task().pairs["dev"], loss=RankingLoss()) == referee != context.referee(1)
    assert referee.key in context.charged
    other = replace(with_arms(context, poor={"human_pairs": 1.0}), charged={})
    assert other.referee(0) == referee
    assert other.lab(0, arm="poor").used["rm_updates"] == 0


def test_the_referee_is_of_the_kind_the_arms_train(context: EvaluationContext) -> None:
    models = context.experiment.models.model_copy(update={"reward": NgramReward()})
    linear = replace(context, experiment=context.experiment.model_copy(update={"models": models}))
    folder = context.store.open("reward_models", linear.referee(0).key).folder
    assert (folder / "ngram.json").is_file()


# --- budgets ------------------------------------------------------------------------------------------------------------------


def test_an_arm_gets_its_budget_and_the_bench_none(context: EvaluationContext) -> None:
    assert len(context.lab(0, arm="arm").pairs()) == 32
    assert len(context.lab(0).pairs()) == len(tiny_task().pairs["rm"])


def test_an_arms_own_budget_takes_more_or_less_of_the_same(context: EvaluationContext) -> None:
    """Pairs and golden responses come in one order a seed: 40 begin with the others' 32, and 10 are the first of those."""
    own = with_arms(context, more={"human_pairs": 40}, fewer={"human_pairs": 10, "golden_responses": 2}, plain={})
    pairs = {name: own.lab(0, arm=name).pairs() for name in own.experiment.arms}
    assert {name: len(some) for name, some in pairs.items()} == {"more": 40, "fewer": 10, "plain": 32}
    assert pairs["more"][:32] == pairs["plain"]
    assert pairs["plain"][:10] == pairs["fewer"]
    golden = {name: own.lab(0, arm=name).golden() for name in own.experiment.arms}
    assert (golden["more"], golden["fewer"]) == (golden["plain"], golden["plain"][:2])
    assert len(golden["plain"]) == 6


def test_the_floor_has_the_experiments_budget_whatever_an_arms(context: EvaluationContext) -> None:
    own = with_arms(context, fewer={"human_pairs": 10})
    assert own.floor_accuracy(0) == context.floor_accuracy(0)


def test_the_initial_policys_seed_gives_another_one(tmp_path: Path) -> None:
    """Fresh weights and another warm-up; the task is as it was."""
    files = []
    for seed in (0, 3):
        tree = tiny_tree()["models"]["policy"] | {"seed": seed}
        base = tiny_bench(tmp_path)
        models = base.experiment.models.model_copy(update={"policy": type(base.experiment.models.policy).model_validate(tree)})
        changed = replace(base, experiment=base.experiment.model_copy(update={"models": models}))
        files.append((changed.store.open("policies", changed.initial_policy.key).folder / "model.safetensors").read_bytes())
        if seed == 0:
            assert changed.initial_policy == base.initial_policy
    assert files[0] != files[1]


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
    for item in inner:
        yield from reachable(item, seen)


def test_an_arms_data_lead_to_no_held_out_prompt(context: EvaluationContext) -> None:
    lab, task = context.lab(0, arm="arm"), tiny_task()
    hidden = {prompt for split in ("gold", "dev", "test") for prompt in task.prompts[split]}
    held_out = {golden.prompt.id: golden.text for golden in context.held_out_golden}
    objects = list(reachable(lab._data, set()))
    prompts = [item for item in objects if isinstance(item, Prompt)]
    assert set(prompts) == {*task.prompts["rm"], *task.prompts["policy"]}
    assert not hidden & set(prompts)
    assert not {prompt.cluster_id for prompt in hidden} & {prompt.cluster_id for prompt in prompts}
    assert not [golden for golden in lab._data.golden if golden.prompt.id in held_out]
    assert not [item for item in reachable(lab, set()) if isinstance(item, EvaluationContext) or item is task]


def test_held_out_golden_responses_are_no_arms(context: EvaluationContext) -> None:
    """A quarter of 134, and at most 64; with the arms' they make up all."""
    kept, open_ = context.held_out_golden, context.training_data.golden
    assert len(kept) == min(64, 134 // 4) == 33
    assert not {golden.prompt.id for golden in kept} & {golden.prompt.id for golden in open_}
    assert {(golden.prompt.id, golden.text) for golden in (*kept, *open_)} == set(tiny_task().golden.items())
    assert len(context.lab(0, arm="arm").golden()) == 6  # the budget


# --- parts --------------------------------------------------------------------------------------------------------------------


def test_margins_are_chosen_minus_rejected() -> None:
    assert score_margins(np.array([[1.0, 3.0], [2.0, -0.5]])).tolist() == [-2.0, 2.5]


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
def test_in_order_undoes_the_grouping(numbered: list[tuple[int, int]]) -> None:
    prompts = prompts_of(["a"] * 4)
    items = [(prompts[place], f"text {number}") for place, number in numbered]
    groups = [
        Group(
            prompt,
            tuple(text for other, text in items if other == prompt),
            tuple(float(n) for place, n in numbered if prompts[place] == prompt),
        )
        for prompt in dict.fromkeys(prompt for prompt, _ in items)
    ]
    assert list(in_order(groups, items)) == [float(number) for _, number in numbered]
    responses = [Response(prompt, text, 1, "eos") for prompt, text in items]
    assert list(in_order(groups, responses)) == [float(number) for _, number in numbered]
