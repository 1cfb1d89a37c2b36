"""Answers to prompt sets and gold scores of them, against independent computations."""

import json
from pathlib import Path

import pytest
from tiny_world import tiny_bench

from apo_bench.config.prompt_sets import rounds_of
from apo_bench.config.schema import NeuralReward, NgramReward, PromptSet, Recipe
from apo_bench.evaluation.context import EvaluationContext, in_order
from apo_bench.evaluation.prompt_sets import SetEvaluation, scores_by_axis
from apo_bench.types import Prompt, ResponseFile, Round, prompt_id

QUESTIONS = [{"turns": ["how do i boil the lever", "and then"]}, {"turns": ["how do i fold the edge", "why"]}]


def context_of(folder: Path, **settings: object) -> EvaluationContext:
    path = folder / "q.jsonl"
    path.write_text("\n".join(json.dumps({"question_id": place, **row}) for place, row in enumerate(QUESTIONS)))
    part = PromptSet.model_validate({"name": "mt", "data_files": (str(path),), **settings})
    plain = tiny_bench(folder / "run")
    return tiny_bench(folder / "run", evaluation=plain.experiment.evaluation.model_copy(update={"prompt_sets": (part,)}))


def evaluation_of(context: EvaluationContext, round_: Round | None = None) -> SetEvaluation:
    [part] = context.experiment.evaluation.prompt_sets
    return SetEvaluation(context, part, round_ or Round(context.initial_policy, None), 0)


@pytest.mark.slow
def test_a_second_turn_is_asked_after_the_policys_own_answer(tmp_path: Path) -> None:
    answers = evaluation_of(context_of(tmp_path)).answers
    assert [answer.row.axis for answer in answers] == ["mt.first"] * 2 + ["mt.second"] * 2
    for first, second, row in zip(answers[:2], answers[2:], QUESTIONS, strict=True):
        turns = [message.content for message in second.response.prompt.messages]
        assert turns == [row["turns"][0], first.response.text, row["turns"][1]]
        assert second.row.cluster_id == first.row.cluster_id


@pytest.mark.slow
def test_a_gold_model_by_axis_scores_the_declared_axis_or_the_mean_over_axes(tmp_path: Path) -> None:
    """The gold is an n-gram model with weights of its own for each axis, asked here directly about both."""
    context = context_of(tmp_path, turns="first")
    evaluation = evaluation_of(context)
    gold = context.experiment.models.gold[0]
    lab, model = context.lab(0, gold.model), context.gold(gold, 0)
    by_axis = {}
    for axis in ("helpful", "harmless"):
        items = []
        for answer in evaluation.answers:
            messages = answer.response.prompt.messages
            items.append((Prompt(prompt_id(axis, messages), messages, axis, "c"), answer.response.text))
        by_axis[axis] = in_order(lab.score(model, items), items)
    assert evaluation.scores()["linear.0"] == pytest.approx((by_axis["helpful"] + by_axis["harmless"]) / 2)
    declared = SetEvaluation(context, evaluation.part.model_copy(update={"axis": "helpful"}), evaluation.round, 0)
    assert [answer.response for answer in declared.answers] == [answer.response for answer in evaluation.answers]  # the first axis, too
    assert declared.scores()["linear.0"] == pytest.approx(by_axis["helpful"])


@pytest.mark.slow
def test_a_file_of_responses_answers_what_it_has(tmp_path: Path) -> None:
    """By the prompt's text: the second question alone, and no second turns."""
    file = ResponseFile("k", "f.jsonl", {QUESTIONS[1]["turns"][0]: ("fold it", 3)})
    evaluation = evaluation_of(context_of(tmp_path), Round(file, None))
    assert [answer.response.text for answer in evaluation.answers] == ["fold it"]
    assert evaluation.scores()["length"].tolist() == [3.0]
    nothing = evaluation_of(context_of(tmp_path), Round(ResponseFile("l", "g.jsonl", {}), None))
    assert nothing.answers == ()
    assert all(len(values) == 0 for values in nothing.scores().values())


def test_which_reward_models_score_by_axis() -> None:
    recipe = Recipe(learning_rate=1e-3)
    assert scores_by_axis(NgramReward())
    assert not scores_by_axis(NgramReward(per_axis=False))
    assert scores_by_axis(NeuralReward(kind="neural", initial="policy", training=recipe, axis_heads=True))
    assert not scores_by_axis(NeuralReward(kind="neural", initial="policy", training=recipe))


def test_the_rounds_of_a_set() -> None:
    """The initial policy and the last, or all; where a run has no round, the initial policy alone."""
    final, every = (PromptSet.model_validate({"name": "s", "data_files": ("f",), "round": name}) for name in ("final", "all"))
    assert [rounds_of(final, last) for last in (0, 1, 3)] == [(0,), (0, 1), (0, 3)]
    assert rounds_of(every, 3) == (0, 1, 2, 3)
