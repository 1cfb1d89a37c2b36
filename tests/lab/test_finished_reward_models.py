"""Finished reward models and ensembles behind the Lab: what is trained, what is spent, and what they score."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_server import right_score, serving
from foreign_models import reward_folder
from tiny_world import tiny_bench, tiny_lab

from apo_bench.config.schema import EnsembleReward, Gold, JudgeReward, Models, NeuralReward, NgramReward, PretrainedReward, Recipe
from apo_bench.errors import InputError
from apo_bench.evaluation.context import FLOOR, EvaluationContext
from apo_bench.lab import Lab, golden_over_samples
from apo_bench.losses import APOLoss, RankingLoss
from apo_bench.models import reward as rewards
from apo_bench.models.finished_reward import load_finished
from apo_bench.types import Pair, Prompt

pytestmark = pytest.mark.slow
RECIPE = Recipe(learning_rate=1e-2, batch_size=8)
HUMAN = RankingLoss()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reward_folder(tmp_path_factory.mktemp("finished"), labels=2)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> EvaluationContext:
    return tiny_bench(tmp_path_factory.mktemp("bench"))


def finished(folder: Path, **fields: Any) -> PretrainedReward:
    return PretrainedReward.model_validate({"kind": "pretrained", "path": str(folder), "output": 1, "max_tokens": 256, **fields})


def duels(lab: Lab) -> tuple[Pair, ...]:
    golden = lab.golden(4)
    return golden_over_samples(golden, lab.sample(lab.initial_policy, [response.prompt for response in golden]))


def sides(pairs: tuple[Pair, ...]) -> list[tuple[Prompt, str]]:
    return [(pair.prompt, text) for pair in pairs for text in (pair.chosen, pair.rejected)]


def scores(lab: Lab, model: Any, items: list[tuple[Prompt, str]]) -> list[float]:
    return [score for group in lab.score(model, items) for score in group.scores]


def test_human_pairs_leave_it_as_it_is(bench: EvaluationContext, folder: Path) -> None:
    """No update, no token, no FLOP; one model for all seeds; its scores are those of the folder."""
    spec, pairs = finished(folder), bench.task.pairs["rm"][:6]
    lab, other = (tiny_lab(bench, reward_model=spec, seed=seed) for seed in (0, 1))
    model = lab.train_reward_model(pairs, loss=HUMAN)
    assert not any(lab.used.values())
    assert model == lab.finished_reward_model == other.train_reward_model(pairs, loss=HUMAN)
    items = list(dict(zip(sides(pairs), range(12), strict=False)))
    expected = dict(zip(items, rewards.score(*load_finished(folder, spec), items, spec)[0], strict=True))
    assert sorted(scores(lab, model, items)) == pytest.approx(sorted(expected.values()), abs=1e-5)
    assert lab.used["scored_responses"] == len(items)


def test_a_judge_scores_each_response_once_whatever_the_seed(bench: EvaluationContext) -> None:
    """The server gives its score .8, the next lower .1; nothing is trained, and a replay asks nothing."""
    items = [(prompt, f"worth {worth}") for worth, prompt in enumerate(bench.task.prompts["policy"][:4], 2)]
    with serving() as server:
        spec = JudgeReward(kind="judge", model="m", base_url=server.base_url, api_key_env=None)
        lab, other = (tiny_lab(bench, reward_model=spec, seed=seed) for seed in (0, 1))
        model = lab.train_reward_model(lab.pairs(4), loss=HUMAN)
        assert model == lab.finished_reward_model
        assert not lab.used["rm_updates"]
        assert scores(lab, model, items) == pytest.approx([right_score(text) - 0.1 / 0.9 for _, text in items])
        assert scores(other, other.train_reward_model(other.pairs(4), loss=HUMAN), items) == scores(lab, model, items)
        assert len(server.requests()) == len(items)
        with pytest.raises(InputError, match="m is a finished reward model without a recipe to train it by; take another kind"):
            lab.train_reward_model(duels(lab), loss=HUMAN)
    assert lab.used["scored_responses"] == 2 * len(items)  # scored twice, computed once


def test_other_pairs_need_a_recipe(bench: EvaluationContext, folder: Path) -> None:
    lab = tiny_lab(bench, reward_model=finished(folder))
    with pytest.raises(InputError, match="is a finished reward model without a recipe"):
        lab.train_reward_model(lab.pairs(4), duels(lab), loss=APOLoss(0.1, 1))


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_with_a_recipe_a_method_goes_on_from_it(bench: EvaluationContext, folder: Path, lora: dict[str, int] | None) -> None:
    """Training on pairs makes the loss on them smaller than the finished model's, and goes on from there the next time."""
    spec = finished(folder, training={**RECIPE.model_dump(), "lora": lora, "epochs": 4.0})
    lab = tiny_lab(bench, reward_model=spec)
    human, rivals = lab.pairs(4), duels(lab)
    start, items = lab.train_reward_model(human, loss=HUMAN), sides((*human, *rivals))

    def loss_on_pairs(model: Any) -> float:
        by_item = {
            (group.prompt.id, text): score
            for group in lab.score(model, list(dict.fromkeys(items)))
            for text, score in zip(group.responses, group.scores, strict=True)
        }
        pairs = (*human, *rivals)
        margins = np.array([by_item[pair.prompt.id, pair.chosen] - by_item[pair.prompt.id, pair.rejected] for pair in pairs])
        return float(np.logaddexp(0, -margins).mean())

    assert lab.used["rm_updates"] == 0
    first = lab.train_reward_model(human, rivals, loss=HUMAN, start=start)
    second = lab.train_reward_model(human, rivals, loss=HUMAN, start=first)
    assert loss_on_pairs(start) > loss_on_pairs(first) > loss_on_pairs(second)
    assert lab.used["rm_updates"] == 2 * spec.training.updates(8)  # pyright: ignore[reportOptionalMemberAccess]


def test_one_gold_seed() -> None:
    spec = {"kind": "pretrained", "path": "org/model"}
    assert Gold.model_validate({"name": "skywork", "model": spec}).seeds == (0,)
    assert Gold.model_validate({"name": "skywork", "model": spec, "seeds": (4,)}).seeds == (4,)
    assert Gold.model_validate({"name": "linear", "model": {"kind": "ngram"}}).seeds == (0, 1, 2)
    both = {"kind": "ensemble", "of": (spec, {"kind": "ngram"})}
    assert Gold.model_validate({"name": "both", "model": both}).seeds == (0, 1, 2)
    with pytest.raises(ValueError, match="a finished reward model has one score"):
        Gold.model_validate({"name": "skywork", "model": spec, "seeds": (0, 1)})


def test_a_finished_proxy_does_not_choose_its_own_rounds(bench: EvaluationContext, folder: Path) -> None:
    models: Models = bench.experiment.models

    def referee(spec: Any) -> Any:
        experiment = bench.experiment.model_copy(update={"models": models.model_copy(update={"reward": spec})})
        return EvaluationContext(experiment, bench.task, bench.store, bench.engine).referee_spec

    assert referee(finished(folder)) == FLOOR
    assert referee(EnsembleReward(kind="ensemble", of=(finished(folder), NgramReward()))) == FLOOR
    assert isinstance(referee(models.reward), NeuralReward)


@pytest.mark.parametrize("combine", ["mean", "worst"])
def test_an_ensemble_is_standardised_on_dev(bench: EvaluationContext, folder: Path, combine: Any) -> None:
    """By hand: each member's scores, less their mean on both sides of the dev pairs, by their sd there; then the mean, or the lowest."""
    other = reward_folder(folder.parent / "other", seed=7)
    members = (finished(folder), finished(other, output=0), NgramReward(bootstrap=False, per_axis=False))
    spec, pairs = EnsembleReward(kind="ensemble", of=members, combine=combine), bench.task.pairs["rm"][:8]
    lab = bench.lab(0, spec)
    model = lab.train_reward_model(pairs, loss=HUMAN)
    items = list(dict.fromkeys(sides(pairs)))
    scaled = []
    for member in members:
        alone = bench.lab(0, member)
        own = alone.train_reward_model(pairs, loss=HUMAN)
        dev = list(dict.fromkeys(sides(bench.task.pairs["dev"])))
        known = dict(zip(dev, scores_in_order(alone, own, dev), strict=True))
        on_dev = np.array([known[side] for side in sides(bench.task.pairs["dev"])])
        scaled.append((np.array(scores_in_order(alone, own, items)) - on_dev.mean()) / on_dev.std())
    expected = np.mean(scaled, axis=0) if combine == "mean" else np.min(scaled, axis=0)
    assert scores_in_order(lab, model, items) == pytest.approx(expected.tolist(), abs=1e-4)


def scores_in_order(lab: Lab, model: Any, items: list[tuple[Prompt, str]]) -> list[float]:
    by_item = {
        (group.prompt.id, text): score
        for group in lab.score(model, items)
        for text, score in zip(group.responses, group.scores, strict=True)
    }
    return [by_item[prompt.id, text] for prompt, text in items]
