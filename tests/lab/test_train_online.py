"""The Lab's verb for online training, with the real parts: metered, memoised, refused in one line."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from foreign_models import reward_folder
from online_algorithms import Reinforce, ReinforceToReference
from tiny_world import tiny_bench, tiny_lab

from apo_bench.config.schema import EnsembleReward, NgramReward, PretrainedReward, Recipe, Sampling
from apo_bench.engines import online
from apo_bench.engines.transformers import TransformersEngine
from apo_bench.errors import BudgetExceeded, InputError
from apo_bench.evaluation.context import EvaluationContext
from apo_bench.lab import Lab
from apo_bench.lab.ledger import Ledger
from apo_bench.losses import DPOLoss, RankingLoss, RRHFLoss
from apo_bench.training.training_spec import OnlineTraining
from apo_bench.types import BestOfNPolicy, Response, RewardModel

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {"steps": 2, "prompts_per_step": 4, "n": 2}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> EvaluationContext:
    return tiny_bench(tmp_path_factory.mktemp("online"))


@pytest.fixture(scope="module")
def reward_model(bench: EvaluationContext) -> RewardModel:
    lab = tiny_lab(bench)
    return lab.train_reward_model(lab.pairs(20), loss=RankingLoss())


def steps_of(bench: EvaluationContext, key: str) -> list[dict[str, Any]]:
    text = (bench.store.root / "policies" / key / "steps.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_it_charges_what_its_steps_say(bench: EvaluationContext, reward_model: RewardModel) -> None:
    """2 steps of 4 prompts x 2 in batches of 16: 16 samples, 16 scores, an update a step. Twice is twice, and a replay computes nothing."""
    lab = tiny_lab(bench)
    policy = lab.train_online(lab.initial_policy, reward_model, Reinforce(), **SMALL)
    rows = steps_of(bench, policy.key)
    assert [row["step"] for row in rows] == [1, 2]
    assert all((row["prompts"], row["samples"], row["trained_samples"], row["updates"]) == (4, 8, 8, 1) for row in rows)
    used = lab.used
    assert (used["sampled_responses"], used["scored_responses"], used["policy_updates"]) == (16, 16, 2)
    assert used["sampled_tokens"] == sum(row["sampled_tokens"] for row in rows)
    assert used["policy_train_tokens"] == sum(row["train_tokens"] for row in rows)
    assert used["scored_tokens"] > 0
    assert used["flops"] > 0
    built = len(bench.store.built)
    assert lab.train_online(lab.initial_policy, reward_model, Reinforce(), **SMALL) == policy
    assert len(bench.store.built) == built
    assert lab.used == {unit: 2 * amount for unit, amount in used.items()}


def test_samples_go_on_from_the_trained_weights(bench: EvaluationContext, reward_model: RewardModel) -> None:
    """A second step at a large rate has other samples than one at a small rate; the first step's are the same."""
    lab, policies = tiny_lab(bench), []
    for rate in (1e-9, 0.1):
        policies.append(lab.train_online(lab.initial_policy, reward_model, Reinforce(), learning_rate=rate, **SMALL))
    small, large = (steps_of(bench, policy.key) for policy in policies)
    assert small[0]["reward"] == large[0]["reward"]
    assert small[1]["reward"] != large[1]["reward"]


# --- refused ------------------------------------------------------------------------------------------------------------------


def best_of_two(lab: Lab, reward_model: RewardModel) -> BestOfNPolicy:
    policy = lab.best_of_n(lab.initial_policy, reward_model, 2)
    assert isinstance(policy, BestOfNPolicy)
    return policy


@dataclasses.dataclass(frozen=True)
class Undeclared:
    pass


@dataclasses.dataclass(frozen=True)
class ReadsSurprise(Reinforce):
    also_reads: ClassVar[tuple[str, ...]] = ("surprise",)


@dataclasses.dataclass(frozen=True)
class Coupled(Reinforce):
    couples_items: ClassVar[bool] = True


PARTS = Recipe(learning_rate=1e-3, batch_size=4, micro_batch_size=2)
NO_WEIGHTS = "a best-of-n policy has no weights to train, or to compare with"
REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no reads": (Undeclared(), {}, "Undeclared has no reads; an online algorithm declares reads and needs_reference"),
    "groups": (RRHFLoss(1.0), {}, "RRHFLoss reads groups; what is trained online reads rollouts or pairs"),
    "unknown field": (ReadsSurprise(), {}, "ReadsSurprise also_reads 'surprise'; there are: log_collision, entropy"),
    "no steps": (Reinforce(), {"steps": 0}, "steps is 1 or more for Reinforce, got 0"),
    "no pair": (DPOLoss(), {"n": 1}, "n is 2 or more for DPOLoss, got 1"),
    "too many prompts": (Reinforce(), {"prompts_per_step": 10_000}, r"prompts_per_step 10000, but the policy split has \d+ prompts"),
    "no reference": (ReinforceToReference(), {}, "ReinforceToReference needs a reference policy; give reference="),
    "pairs without a reference": (DPOLoss(), {}, "DPOLoss needs a reference policy; give reference="),
    "an unneeded reference": (Reinforce(), {"reference": "initial"}, "Reinforce reads no reference policy; leave reference out"),
    "best of n": (Reinforce(), {"policy": "best"}, NO_WEIGHTS),
    "best of n as reference": (ReinforceToReference(), {"reference": "best"}, NO_WEIGHTS),
    "an update in parts": (Coupled(), {"recipe": PARTS}, "Coupled reads an update whole: micro_batch_size 2 would split its 4 items[^\n]*"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused_before_anything_is_spent(
    bench: EvaluationContext, reward_model: RewardModel, name: str
) -> None:
    algorithm, changes, message = REFUSED[name]
    lab = tiny_lab(bench)
    named = {"initial": lab.initial_policy, "best": best_of_two(lab, reward_model)}
    arguments = {**SMALL, **{key: named.get(value, value) if isinstance(value, str) else value for key, value in changes.items()}}
    policy = arguments.pop("policy", lab.initial_policy)
    with pytest.raises(InputError, match=rf"^lab\.train_online: {message}$"):
        lab.train_online(policy, reward_model, algorithm, **arguments)
    assert not any(lab.used.values())


def test_a_server_that_samples_is_refused(bench: EvaluationContext, reward_model: RewardModel) -> None:
    sampling = Sampling.model_validate({"max_new_tokens": 4, "engine": {"url": "http://localhost:1"}})
    with pytest.raises(InputError, match=r"^sampling\.engine: online training samples from weights that change[^\n]*$"):
        tiny_lab(bench).train_online(bench.initial_policy, reward_model, Reinforce(), sampling=sampling, **SMALL)


def test_several_processes_are_refused(bench: EvaluationContext, reward_model: RewardModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.engine, "launch_config", "two/launch.yaml")
    lab = tiny_lab(bench)
    with pytest.raises(InputError, match=r"^executor\.launch: two/launch\.yaml: online training runs in one process; leave launch out$"):
        lab.train_online(lab.initial_policy, reward_model, Reinforce(), draw=5, **SMALL)
    assert not any(lab.used.values())


@pytest.mark.parametrize(("unit", "needed"), [("sampled_responses", 24), ("scored_responses", 24), ("policy_updates", 12)])
def test_the_most_it_can_spend_is_admitted_before_it_begins(
    bench: EvaluationContext, reward_model: RewardModel, unit: Any, needed: int
) -> None:
    """3 steps of 4 x 2 samples, and of each two passes in batches of 4: 2 x 2 updates. Exactly enough is enough."""
    recipe = Recipe(learning_rate=1e-3, batch_size=4, epochs=2)
    arguments: dict[str, Any] = {"steps": 3, "prompts_per_step": 4, "n": 2, "recipe": recipe, "draw": 1}
    poor = tiny_lab(bench, {unit: needed - 1})
    with pytest.raises(BudgetExceeded, match=f"unit {unit}: needs {needed}, has {needed - 1} left"):
        poor.train_online(poor.initial_policy, reward_model, Reinforce(), **arguments)
    assert not any(poor.used.values())
    lab = tiny_lab(bench, {unit: needed})
    lab.train_online(lab.initial_policy, reward_model, Reinforce(), **arguments)
    assert lab.used[unit] == needed


def test_epochs_take_the_place_of_the_recipes(bench: EvaluationContext, reward_model: RewardModel) -> None:
    """3 passes over a step's 8 samples in batches of 16 are 3 updates. The recipe's own 1 is the same key."""
    lab = tiny_lab(bench)
    own, same, several = (
        lab.train_online(lab.initial_policy, reward_model, Reinforce(), epochs=epochs, **SMALL) for epochs in (None, 1.0, 3.0)
    )
    assert own == same != several
    assert [row["updates"] for row in steps_of(bench, several.key)] == [3, 3]
    assert lab.used["policy_updates"] == 2 + 2 + 6


# --- memoised -----------------------------------------------------------------------------------------------------------------


def test_it_is_keyed_by_everything_that_can_change_it(bench: EvaluationContext, reward_model: RewardModel) -> None:
    lab = tiny_lab(bench)
    other_reward = lab.train_reward_model(lab.pairs(19), loss=RankingLoss())
    start = lab.initial_policy
    first = lab.train_online(start, reward_model, Reinforce(), **SMALL)
    both: dict[str, Any] = {**SMALL, "reference": start}
    policies = {
        "as it is": first,
        "start": lab.train_online(first, reward_model, Reinforce(), **SMALL),
        "reward model": lab.train_online(start, other_reward, Reinforce(), **SMALL),
        "algorithm": lab.train_online(start, reward_model, ReinforceToReference(), **both),
        "coefficient": lab.train_online(start, reward_model, ReinforceToReference(coeff=0.2), **both),
        "reference": lab.train_online(start, reward_model, ReinforceToReference(), **{**both, "reference": first}),
        "pairs": lab.train_online(start, reward_model, DPOLoss(), **both),
        "steps": lab.train_online(start, reward_model, Reinforce(), **{**SMALL, "steps": 3}),
        "prompts": lab.train_online(start, reward_model, Reinforce(), **{**SMALL, "prompts_per_step": 3}),
        "n": lab.train_online(start, reward_model, Reinforce(), **{**SMALL, "n": 3}),
        "draw": lab.train_online(start, reward_model, Reinforce(), draw=1, **SMALL),
        "rate": lab.train_online(start, reward_model, Reinforce(), learning_rate=1e-4, **SMALL),
        "recipe": lab.train_online(start, reward_model, Reinforce(), recipe=PARTS, **SMALL),
        "sampling": lab.train_online(start, reward_model, Reinforce(), sampling=Sampling(max_new_tokens=4), **SMALL),
        "seed": tiny_lab(bench, seed=1).train_online(start, reward_model, Reinforce(), **SMALL),
    }
    assert len({policy.key for policy in policies.values()}) == len(policies)
    weights = {(bench.store.root / "policies" / policy.key / "model.safetensors").read_bytes() for policy in policies.values()}
    assert len(weights) == len(policies)


def test_prompts_come_in_shuffled_passes(bench: EvaluationContext, reward_model: RewardModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every policy prompt once, then all again in another order; another draw begins with another."""
    lab, jobs, split = tiny_lab(bench), list[OnlineTraining](), bench.training_data.prompts["policy"]

    def refuse(self: TransformersEngine, job: OnlineTraining, *_: Any) -> Any:
        jobs.append(job)
        raise InputError("seen")

    monkeypatch.setattr(TransformersEngine, "train_online", refuse)
    for draw in (0, 1):
        with pytest.raises(InputError, match="seen"):
            lab.train_online(lab.initial_policy, reward_model, Reinforce(), steps=len(split) // 4 + 8, prompts_per_step=4, draw=draw)
    ids = [[prompt.id for prompt in job.prompts] for job in jobs]
    assert sorted(ids[0][: len(split)]) == sorted(prompt.id for prompt in split)
    assert len(set(ids[0][len(split) :])) == len(ids[0]) - len(split) >= 28
    assert ids[0][: len(split)] != ids[1][: len(split)]
    assert ids[0][:28] != ids[0][len(split) :][:28]


# --- reward models of other kinds -------------------------------------------------------------------------------------------------


def test_a_linear_reward_model_scores(bench: EvaluationContext) -> None:
    lab = tiny_lab(bench, reward_model=NgramReward())
    policy = lab.train_online(lab.initial_policy, lab.train_reward_model(lab.pairs(20), loss=RankingLoss()), Reinforce(), **SMALL)
    assert lab.used["scored_responses"] == 16
    assert all(row["reward_sd"] > 0 for row in steps_of(bench, policy.key))


def test_a_finished_reward_model_scores(bench: EvaluationContext, tmp_path: Path) -> None:
    spec = PretrainedReward.model_validate({"kind": "pretrained", "path": str(reward_folder(tmp_path, labels=2)), "max_tokens": 256})
    lab = tiny_lab(bench, reward_model=spec)
    assert lab.finished_reward_model is not None
    policy = lab.train_online(lab.initial_policy, lab.finished_reward_model, Reinforce(), **SMALL)
    assert (lab.used["scored_responses"], lab.used["rm_updates"]) == (16, 0)
    assert all(row["reward_sd"] > 0 for row in steps_of(bench, policy.key))


def test_an_ensembles_reward_is_its_members_standardised_on_dev(bench: EvaluationContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's mean reward is that of the Lab's scores of its samples. Every member's scores are charged, and those of dev's pairs."""
    members = [{"kind": "ngram"}, {"kind": "ngram", "bootstrap": False}]
    spec = EnsembleReward.model_validate({"kind": "ensemble", "of": members, "combine": "worst"})
    lab = Lab(
        store=bench.store, engine=bench.engine, ledger=Ledger("arm", {}), seed=0, data=bench.training_data,
        policy_model=bench.experiment.models.policy, reward_model=spec, reward_bodies=(None, None),
        dev_pairs=bench.task.pairs["dev"], initial_policy=bench.initial_policy,
    )  # fmt: skip
    model = lab.train_reward_model(lab.pairs(20), loss=RankingLoss())
    before, scorer, sampled = lab.used["scored_responses"], online.scorer, list[Sequence[Response]]()

    def watched(*arguments: Any) -> Any:
        score = scorer(*arguments)
        return lambda responses: (sampled.append(responses), score(responses))[1]

    monkeypatch.setattr(online, "scorer", watched)
    policy = lab.train_online(lab.initial_policy, model, Reinforce(), **SMALL)
    sides = 2 * len(bench.task.pairs["dev"])
    assert lab.used["scored_responses"] - before == 2 * 16 + 2 * sides
    assert lab.used["sampled_responses"] == 16
    for row, responses in zip(steps_of(bench, policy.key), sampled, strict=True):
        scores = [score for group in lab.score(model, responses) for score in group.scores]
        assert row["reward"] == pytest.approx(sum(scores) / 8)
    with pytest.raises(InputError, match=r"^lab\.train_online: [^\n]* one is an ensemble and the other is not$"):
        lab.train_online(lab.initial_policy, model.members[0], Reinforce(), **SMALL)  # pyright: ignore


def test_steps_are_reported_as_stages(bench: EvaluationContext, reward_model: RewardModel) -> None:
    stages = list[str]()
    lab = dataclasses.replace(bench, progress=lambda stage, used: stages.append(stage)).lab(0)
    lab.train_online(lab.initial_policy, reward_model, ReinforceToReference(), reference=lab.initial_policy, draw=3, **SMALL)
    assert stages[-3] == "online training: 2 steps of 4 x 2"
    assert re.fullmatch(r"online step 2 of 2: reward -?\d+\.\d\d, KL -?\d+\.\d\d", stages[-1])


def test_what_was_sampled_alike_is_scored_and_trained_on_alike(bench: EvaluationContext, reward_model: RewardModel) -> None:
    """A cut sample has no end, in scores and in training: with 2 new tokens at most, nearly all are cut. The tokens that are read are
    the prompt's and those that were sampled, and no more.
    """
    lab = tiny_lab(bench)
    short = Sampling(max_new_tokens=2)
    policy = lab.train_online(lab.initial_policy, reward_model, Reinforce(), sampling=short, steps=1, prompts_per_step=4)
    [row] = steps_of(bench, policy.key)
    assert row["cut_share"] > 0.5
    prompts = lab._subset(bench.training_data.prompts["policy"], None, "prompts online 0 0", "")[:4]
    lengths = [3 + len(prompt.messages[0].content.split()) - 1 for prompt in prompts]  # <user> words <assistant>
    assert row["train_tokens"] == 4 * sum(lengths) + row["sampled_tokens"]
    assert lab.used["scored_tokens"] <= 4 * sum(lengths) + row["sampled_tokens"]
