"""Each promise of the Lab, with the real parts: metered, memoised, replayable, blind."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pages import DOCS, blocks
from tiny_world import LLAMA, RECIPE, tiny_bench, tiny_lab, tiny_task

from apo_bench.config.python_files import load_python_file
from apo_bench.config.schema import NeuralReward, NgramReward, Recipe, Sampling
from apo_bench.errors import BudgetExceeded, InputError
from apo_bench.evaluation.context import EvaluationContext
from apo_bench.lab import Lab, best_of
from apo_bench.lab.reward_models import ArmRewardModel
from apo_bench.losses import APOLoss, DPOLoss, RankingLoss, RRHFLoss, SFTLoss, View
from apo_bench.losses.policy_loss import Reads
from apo_bench.models.policy import load_policy
from apo_bench.models.tokenize import ChatFormat
from apo_bench.store import RunStore
from apo_bench.training.training_spec import PolicyTraining
from apo_bench.types import (
    BestOfNPolicy,
    Demonstration,
    Group,
    Pair,
    Policy,
    Prompt,
    Response,
    RewardModel,
    Round,
    TrainingData,
    UnpairedExample,
)  # fmt: skip

pytestmark = pytest.mark.slow

NOTHING = dict.fromkeys(
    (
        "human_pairs", "golden_responses", "sampled_responses", "sampled_tokens", "scored_responses", "scored_tokens",
        "rm_updates", "rm_train_tokens", "policy_updates", "policy_train_tokens", "flops",
    ),
    0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> EvaluationContext:
    return tiny_bench(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def reward_model(bench: EvaluationContext) -> RewardModel:
    lab = tiny_lab(bench)
    return lab.train_reward_model(lab.pairs(20), loss=RankingLoss())


@pytest.fixture(scope="module")
def human(bench: EvaluationContext) -> tuple[Pair, ...]:
    return tiny_lab(bench).pairs(20)


@pytest.fixture(scope="module")
def shown(human: tuple[Pair, ...]) -> list[Demonstration]:
    return [Demonstration(pair.prompt, pair.chosen) for pair in human]


def built(bench: EvaluationContext, work: Callable[[], Any]) -> list[str]:
    """Kinds of the artifacts that this work computed."""
    before = len(bench.store.built)
    work()
    return [name.split("/")[0] for name in bench.store.built[before:]]


# --- metered ------------------------------------------------------------------------------------------------------------------


def test_stocks_are_counted_once(bench: EvaluationContext) -> None:
    lab = tiny_lab(bench)
    assert lab.used == NOTHING
    for n, expected in ((10, 10), (10, 10), (4, 10), (13, 13)):
        lab.pairs(n)
        assert lab.used == {**NOTHING, "human_pairs": expected}
    for n in (5, 5, 3):
        lab.golden(n)
        assert lab.used == {**NOTHING, "human_pairs": 13, "golden_responses": 5}
    lab.prompts("rm", 3)
    lab.prompts("policy")
    assert lab.used == {**NOTHING, "human_pairs": 13, "golden_responses": 5}


def test_no_number_takes_what_the_budget_grants(bench: EvaluationContext) -> None:
    lab = tiny_lab(bench, {"human_pairs": 7, "golden_responses": 3})
    assert (len(lab.pairs()), len(lab.golden())) == (7, 3)
    assert (len(lab.pairs()), len(lab.golden())) == (7, 3)
    with pytest.raises(BudgetExceeded, match="unit human_pairs: needs 1, has 0 left"):
        lab.pairs(8)
    free = tiny_lab(bench, {"human_pairs": 10_000})
    assert len(free.pairs()) == len(bench.training_data.pairs)
    assert len(free.golden()) == len(bench.training_data.golden)


def test_flows_are_added_per_use(
    bench: EvaluationContext, reward_model: RewardModel, human: tuple[Pair, ...], shown: list[Demonstration]
) -> None:
    """20 pairs or demonstrations in batches of 16 are 2 updates an epoch; 5 prompts x 3 are 15 responses. Twice is twice."""
    lab = tiny_lab(bench, seed=0)
    prompts = lab.prompts(n=5)
    for times in (1, 2):
        samples = lab.sample(lab.initial_policy, prompts, n=3)
        tokens = sum(response.tokens for response in samples)
        assert lab.used["sampled_responses"] == 15 * times
        assert lab.used["sampled_tokens"] == tokens * times
    for times in (1, 2):
        lab.score(reward_model, samples)
        assert lab.used["scored_responses"] == 15 * times
    assert lab.used["scored_tokens"] > 0
    for times in (1, 2):
        lab.train_reward_model(human, loss=RankingLoss())
        assert lab.used["rm_updates"] == 2 * times
    for times in (1, 2):
        lab.train_policy(lab.initial_policy, shown, SFTLoss())
        assert lab.used["policy_updates"] == 2 * times
    lab.train_policy(lab.initial_policy, shown, SFTLoss(), epochs=3)
    assert lab.used["policy_updates"] == 4 + 6
    assert lab.used["flops"] > 0
    assert lab.used["human_pairs"] == 0  # these pairs were another lab's


def test_tokens_read_in_training_are_those_of_the_texts(
    bench: EvaluationContext, human: tuple[Pair, ...], shown: list[Demonstration]
) -> None:
    """One word a token. Policy: <user> words <assistant> response <eos>; the reward model's template ends likewise."""

    def length(prompt: Prompt, response: str) -> int:
        return 3 + len(prompt.messages[0].content.split()) + len(response.split())

    for item in shown:  # nothing is cut, or the sums below would be too large
        assert len(item.prompt.messages[0].content.split()) + 2 <= 24
        assert len(item.response.split()) + 1 <= 24
    lab = tiny_lab(bench)
    lab.train_policy(lab.initial_policy, shown, SFTLoss())
    assert lab.used["policy_train_tokens"] == sum(length(item.prompt, item.response) for item in shown)
    lab.train_reward_model(human, loss=RankingLoss())
    assert lab.used["rm_train_tokens"] == sum(length(pair.prompt, text) for pair in human for text in (pair.chosen, pair.rejected))


def test_an_arm_is_charged_in_full_for_shared_work(bench: EvaluationContext) -> None:
    def work(lab: Lab) -> None:
        samples = lab.sample(lab.initial_policy, lab.prompts(n=4), n=2, draw=50)
        model = lab.train_reward_model(lab.pairs(17), loss=RankingLoss())
        policy = lab.train_policy(lab.initial_policy, best_of(lab.score(model, samples)), SFTLoss())
        lab.finish_round(policy, model)

    first, second = tiny_lab(bench, arm="first"), tiny_lab(bench, arm="second")
    assert sorted(built(bench, lambda: work(first))) == ["policies", "reward_models", "samples", "scores"]
    assert built(bench, lambda: work(second)) == []
    assert first.used == second.used
    assert first.rounds == second.rounds
    assert first.wall_s == second.wall_s > 0
    assert first.charged == second.charged
    assert len(first.charged) == 4


Verb = Callable[[Lab, RewardModel], Any]
VERBS: dict[str, tuple[Verb, str, float]] = {  # a verb, its unit, and how much of it it needs
    "pairs": (lambda lab, _: lab.pairs(6), "human_pairs", 6),
    "golden": (lambda lab, _: lab.golden(6), "golden_responses", 6),
    "sample": (lambda lab, _: lab.sample(lab.initial_policy, lab.prompts(n=3), n=2, draw=60), "sampled_responses", 6),
    "score": (lambda lab, rm: lab.score(rm, [(prompt, "sorry") for prompt in lab.prompts(n=6, draw=61)]), "scored_responses", 6),
    "train_reward_model": (
        lambda lab, _: lab.train_reward_model(tiny_task().pairs["rm"][:96], loss=RankingLoss()), "rm_updates", 6,
    ),
    "train_policy": (
        lambda lab, _: lab.train_policy(lab.initial_policy, tiny_task().demonstrations[:96], SFTLoss()), "policy_updates", 6,
    ),
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_an_amount_known_beforehand_is_refused_before_it_is_spent(bench: EvaluationContext, reward_model: RewardModel, verb: str) -> None:
    work, unit, amount = VERBS[verb]
    lab = tiny_lab(bench, {unit: amount - 1}, arm="poor", seed=60)

    def refused() -> None:
        with pytest.raises(BudgetExceeded) as caught:
            work(lab, reward_model)
        assert (caught.value.arm, caught.value.unit, caught.value.needed, caught.value.left) == ("poor", unit, amount, amount - 1)

    assert built(bench, refused) == []
    assert lab.used == NOTHING
    assert lab.charged == {}
    work(tiny_lab(bench, {unit: amount}, seed=60), reward_model)  # exactly enough is enough


@pytest.mark.parametrize("verb", [*VERBS, "finish_round"])
def test_an_overdraft_of_tokens_is_raised_at_the_next_verb(bench: EvaluationContext, reward_model: RewardModel, verb: str) -> None:
    lab = tiny_lab(bench, {"sampled_tokens": 1}, arm="late")
    samples = lab.sample(lab.initial_policy, lab.prompts(n=2))  # its tokens are not known beforehand
    tokens = sum(response.tokens for response in samples)
    assert tokens > 1
    assert lab.used["sampled_tokens"] == tokens
    before = lab.used

    def next_verb() -> None:
        with pytest.raises(BudgetExceeded, match="arm late, unit sampled_tokens"):
            lab.finish_round(lab.initial_policy) if verb == "finish_round" else VERBS[verb][0](lab, reward_model)

    assert built(bench, next_verb) == []
    assert lab.used == before
    assert lab.rounds == []


# --- memoised -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OtherRankingLoss(RankingLoss):
    """Equal maths under another name."""


def test_reward_models_are_keyed_by_everything_that_can_change_them(
    bench: EvaluationContext, human: tuple[Pair, ...], reward_model: RewardModel
) -> None:
    as_golden = [dataclasses.replace(pair, source="golden_over_sample") for pair in human]
    swapped = [dataclasses.replace(human[0], chosen=human[0].rejected, rejected=human[0].chosen), *human[1:]]
    lab, other_seed = tiny_lab(bench), tiny_lab(bench, seed=1)
    train = lab.train_reward_model
    keys = {
        "as it is": reward_model,
        "loss": train(human, loss=OtherRankingLoss()),
        "apo": train(human, loss=APOLoss(0.1, 4)),
        "apo_coeff": train(human, loss=APOLoss(0.2, 4)),
        "samples_per_prompt": train(human, loss=APOLoss(0.1, 2)),
        "pair source": train(as_golden, loss=RankingLoss()),
        "pair sides": train(swapped, loss=RankingLoss()),
        "fewer pairs": train(human[:19], loss=RankingLoss()),
        "seed": other_seed.train_reward_model(human, loss=RankingLoss()),
        "start": train(human, loss=RankingLoss(), start=reward_model),
        "recipe": tiny_lab(
            bench, reward_model=bench.experiment.models.reward.model_copy(update={"training": Recipe(learning_rate=0.5)})
        ).train_reward_model(human, loss=RankingLoss()),
        "kind": tiny_lab(bench, reward_model=NgramReward()).train_reward_model(human, loss=RankingLoss()),
    }
    assert len({model.key for model in keys.values()}) == len(keys)
    assert built(bench, lambda: train(human, loss=APOLoss(0.2, 4))) == []
    assert train(human[:8], human[8:], loss=RankingLoss()) == reward_model  # all pairs together, however they were handed over


def test_a_reward_model_of_its_own_architecture_is_keyed_by_its_vocabulary(bench: EvaluationContext, human: tuple[Pair, ...]) -> None:
    """Its tokenizer is made of the task's vocabulary: fewer words are another model."""
    spec = NeuralReward(architecture=dict(LLAMA), max_tokens=48, training=Recipe.model_validate(RECIPE))
    fewer = dataclasses.replace(bench.training_data, vocabulary=(bench.training_data.vocabulary or ())[:20])
    whole_lab, fewer_lab = (tiny_lab(bench, reward_model=spec, data=data) for data in (bench.training_data, fewer))
    assert whole_lab.train_reward_model(human, loss=RankingLoss()) != fewer_lab.train_reward_model(human, loss=RankingLoss())


def test_samples_are_keyed_by_everything_that_can_change_them(bench: EvaluationContext, shown: list[Demonstration]) -> None:
    lab = tiny_lab(bench)
    prompts, policy = lab.prompts(n=3, draw=90), lab.initial_policy  # prompts that no other test samples
    other = lab.train_policy(policy, shown, SFTLoss())
    warm = Sampling(max_new_tokens=10, temperature=1.2)
    usual = lambda: lab.sample(policy, prompts)  # noqa: E731
    usual()
    for work in (
        lambda: lab.sample(other, prompts),
        lambda: lab.sample(policy, prompts[:2]),
        lambda: lab.sample(policy, prompts[::-1]),
        lambda: lab.sample(policy, prompts, n=2),
        lambda: lab.sample(policy, prompts, draw=1),
        lambda: lab.sample(policy, prompts, sampling=warm),
        lambda: tiny_lab(bench, seed=1).sample(policy, prompts),
    ):
        assert built(bench, work) == ["samples"]
        assert built(bench, work) == []
    assert built(bench, usual) == []
    assert built(bench, lambda: lab.sample(policy, prompts, sampling=bench.experiment.models.policy.sampling)) == []


def test_policies_are_keyed_by_everything_that_can_change_them(
    bench: EvaluationContext, human: tuple[Pair, ...], shown: list[Demonstration]
) -> None:
    lab = tiny_lab(bench)
    start = lab.initial_policy
    other = lab.train_policy(start, shown, SFTLoss())
    recipe = bench.experiment.models.policy.training
    policies = [
        other,
        lab.train_policy(other, shown, SFTLoss()),
        lab.train_policy(start, shown[:18], SFTLoss()),
        lab.train_policy(start, shown, SFTLoss(), learning_rate=5e-3),
        lab.train_policy(start, shown, SFTLoss(), epochs=2),
        lab.train_policy(start, shown, SFTLoss(), recipe=recipe.model_copy(update={"weight_decay": 0.1})),
        lab.train_policy(start, human, DPOLoss(0.1), reference=start),
        lab.train_policy(start, human, DPOLoss(0.2), reference=start),
        lab.train_policy(start, human, DPOLoss(0.1), reference=other),
        tiny_lab(bench, seed=1).train_policy(start, shown, SFTLoss()),
    ]
    assert len({policy.key for policy in [start, *policies]}) == len(policies) + 1
    assert lab.train_policy(start, shown, SFTLoss(), learning_rate=recipe.learning_rate, recipe=recipe) == other


def test_groups_are_keyed_by_answers_scores_and_weight(bench: EvaluationContext, reward_model: RewardModel) -> None:
    lab = tiny_lab(bench)
    start = lab.initial_policy
    some = lab.score(reward_model, lab.sample(start, lab.prompts(n=3), n=2))
    turned = [dataclasses.replace(some[0], scores=some[0].scores[::-1]), *some[1:]]
    other = [dataclasses.replace(some[0], responses=("sorry", some[0].responses[1])), *some[1:]]
    policies = [
        lab.train_policy(start, some, RRHFLoss()),
        lab.train_policy(start, some, RRHFLoss(2.0)),
        lab.train_policy(start, turned, RRHFLoss()),
        lab.train_policy(start, other, RRHFLoss()),
        lab.train_policy(start, some[:2], RRHFLoss()),
    ]
    assert len({policy.key for policy in policies}) == len(policies)
    assert built(bench, lambda: lab.train_policy(start, some, RRHFLoss())) == []


def test_sampled_ids_are_kept_and_trained_on(bench: EvaluationContext, reward_model: RewardModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job names the ids of those of its responses that this lab sampled: as pairs, groups or demonstrations; read back from disk too.

    Words are tokens: the ids are the words and, unless the sample was cut, an end. The same texts from elsewhere are texts, and another
    policy comes out of them where a sample was cut.
    """
    _, tokenizer = load_policy(bench.store.open("policies", bench.initial_policy.key).folder)
    lab, cut = tiny_lab(bench), Sampling(max_new_tokens=2)
    prompts = lab.prompts(n=6, draw=71)
    samples = lab.sample(lab.initial_policy, prompts, n=3, draw=71, sampling=cut)
    assert {sample.finish for sample in samples} >= {"length"}
    for sample in samples:
        end = [] if sample.finish == "length" else [tokenizer.eos_token_id]
        assert sample.token_ids is not None
        assert len(sample.token_ids) == sample.tokens
        assert list(sample.token_ids[sample.tokens - len(end) :]) == end
        assert tokenizer.decode(sample.token_ids, skip_special_tokens=True).strip() == sample.text
    again = tiny_lab(bench, store=RunStore(bench.store.run_folder))
    assert again.sample(again.initial_policy, prompts, n=3, draw=71, sampling=cut) == samples

    jobs: list[PolicyTraining] = []
    train = bench.engine.train_policy
    monkeypatch.setattr(bench.engine, "train_policy", lambda job, into: jobs.append(job) or train(job, into))
    groups = lab.score(reward_model, samples)
    golden = Demonstration(prompts[0], "words of someone else")
    best = [*best_of(groups), golden]
    policy = lab.train_policy(lab.initial_policy, best, SFTLoss())
    trained_tokens = lab.used["policy_train_tokens"]
    first: dict[tuple[str, str], Any] = {}
    for sample in samples:
        first.setdefault((sample.prompt.id, sample.text), sample.token_ids)
    assert {(id_, text): ids for id_, texts in jobs[0].token_ids.items() for text, ids in texts.items()} == {
        (item.prompt.id, item.response): first[item.prompt.id, item.response] for item in best_of(groups)
    }
    lab.train_policy(lab.initial_policy, groups, RRHFLoss())
    assert {(id_, text) for id_, texts in jobs[1].token_ids.items() for text in texts} == set(first)
    elsewhere = tiny_lab(bench)
    assert elsewhere.train_policy(elsewhere.initial_policy, best, SFTLoss()) != policy
    assert jobs[2].token_ids == {}
    assert jobs[2].data == jobs[0].data
    was_cut = sum(first[item.prompt.id, item.response][-1] != tokenizer.eos_token_id for item in best_of(groups))
    assert elsewhere.used["policy_train_tokens"] - trained_tokens == was_cut > 0  # an end more for each that was cut


def test_equal_texts_of_other_ids_are_other_data(bench: EvaluationContext) -> None:
    """The latest sample of a text counts, and of one draw the first."""
    lab, prompt = tiny_lab(bench), bench.task.prompts["policy"][0]
    drawn: list[tuple[Response, ...]] = [
        (Response(prompt, "sorry", 1, "length", (7,)), Response(prompt, "sorry", 2, "eos", (7, 1))),
        (Response(prompt, "sorry", 2, "eos", (7, 1)),),
        (Response(prompt, "sorry", 1, "length"),),
    ]
    keys = []
    for draw, responses in enumerate(drawn):
        lab._store.computed = lambda *args, responses=responses: (None, responses)  # pyright: ignore
        lab.sample(lab.initial_policy, [prompt], n=len(responses), draw=draw)
        del lab._store.computed  # pyright: ignore
        keys.append(lab.train_policy(lab.initial_policy, [Demonstration(prompt, "sorry")], SFTLoss()).key)
    assert keys[0] != keys[1] == keys[2]  # a response known as a text alone changes nothing


def test_scores_are_keyed_by_model_and_items(bench: EvaluationContext, human: tuple[Pair, ...], reward_model: RewardModel) -> None:
    lab = tiny_lab(bench)
    items = [(pair.prompt, pair.chosen) for pair in human[:4]]
    other = lab.train_reward_model(human, loss=RankingLoss(), start=reward_model)
    assert built(bench, lambda: lab.score(reward_model, items)) == ["scores"]
    assert built(bench, lambda: lab.score(other, items)) == ["scores"]
    assert built(bench, lambda: lab.score(reward_model, items[::-1])) == ["scores"]
    as_responses = [Response(prompt, text, 3, "eos") for prompt, text in items]
    assert built(bench, lambda: lab.score(reward_model, as_responses)) == []
    assert lab.score(reward_model, as_responses) == lab.score(reward_model, items)


def test_arms_of_one_seed_share_their_luck_and_seeds_do_not(bench: EvaluationContext) -> None:
    first, second = tiny_lab(bench, arm="first"), tiny_lab(bench, {"flops": 1e18}, arm="second")
    other, policy = tiny_lab(bench, seed=1), bench.initial_policy
    assert first.pairs(9) == second.pairs(9) != other.pairs(9)
    assert first.golden(9) == second.golden(9) != other.golden(9)
    assert first.prompts(n=9) == second.prompts(n=9) != other.prompts(n=9)
    prompts = first.prompts(n=9)
    assert first.sample(policy, prompts) == second.sample(policy, prompts) != other.sample(policy, prompts)


@pytest.mark.parametrize("loss", [RankingLoss, lambda margin, golden: margin, print])
def test_a_loss_is_an_instance_of_a_dataclass(bench: EvaluationContext, human: tuple[Pair, ...], loss: Any) -> None:
    """The source of two closures with other constants is equal, so a closure would be memoised wrongly."""
    with pytest.raises(InputError, match="a loss is a dataclass instance"):
        tiny_lab(bench).train_reward_model(human, loss=loss)


def test_nothing_to_train_on_is_an_error(bench: EvaluationContext) -> None:
    lab = tiny_lab(bench)
    with pytest.raises(InputError, match="no pairs to train on"):
        lab.train_reward_model((), [], loss=RankingLoss())
    with pytest.raises(InputError, match="no data to train on"):
        lab.train_policy(lab.initial_policy, [], SFTLoss())
    with pytest.raises(InputError, match="DPOLoss needs a reference policy"):
        lab.train_policy(lab.initial_policy, lab.pairs(4), DPOLoss(0.1))
    assert lab.used == {**NOTHING, "human_pairs": 4}


# --- replayable ---------------------------------------------------------------------------------------------------------------


def test_a_replay_by_another_process_store_computes_nothing_and_ends_the_same(bench: EvaluationContext) -> None:
    def play(lab: Lab) -> list[Any]:
        model = lab.train_reward_model(lab.pairs(20), loss=RankingLoss())
        samples = lab.sample(lab.initial_policy, lab.prompts(n=4), n=2, draw=70)
        groups = lab.score(model, samples)
        policy = lab.train_policy(lab.initial_policy, best_of(groups), SFTLoss())
        lab.finish_round(policy, model)
        return [model, samples, groups, policy]

    first, store = tiny_lab(bench), RunStore(bench.store.run_folder)
    results = play(first)
    again = tiny_lab(bench, store=store)
    assert play(again) == results
    assert store.built == []
    assert again.used == first.used
    assert again.rounds == first.rounds == [Round(results[3], results[0])]


def test_two_stores_hold_equal_weights_under_equal_keys(bench: EvaluationContext, tmp_path: Path, shown: list[Demonstration]) -> None:
    elsewhere = tiny_bench(tmp_path)
    here, there = tiny_lab(bench), tiny_lab(elsewhere)
    policy, same = (lab.train_policy(lab.initial_policy, shown, SFTLoss()) for lab in (here, there))
    assert policy == same
    files = [store.open("policies", policy.key).folder / "model.safetensors" for store in (bench.store, elsewhere.store)]
    assert files[0].read_bytes() == files[1].read_bytes()


# --- blind --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["test", "dev", "gold", "all", ""])
def test_closed_splits_are_refused(bench: EvaluationContext, split: Any) -> None:
    with pytest.raises(InputError, match=rf"lab\.prompts: split '{split}' is closed to methods; open are rm and policy"):
        tiny_lab(bench).prompts(split)


def test_training_data_has_no_other_split(bench: EvaluationContext) -> None:
    data, task = bench.training_data, tiny_task()
    assert {field.name for field in dataclasses.fields(TrainingData)} <= {"pairs", "prompts", "golden", "vocabulary", "axes"}
    assert set(data.prompts) == {"rm", "policy"}
    assert data.pairs == task.pairs["rm"]
    assert data.prompts["rm"] == task.prompts["rm"]
    assert data.prompts["policy"] == task.prompts["policy"]
    assert {golden.prompt for golden in data.golden} <= set(task.prompts["rm"])


# --- draws and subsets --------------------------------------------------------------------------------------------------------


def test_the_same_draw_gives_the_same_samples_and_another_fresh_ones(bench: EvaluationContext) -> None:
    lab = tiny_lab(bench)
    prompts = lab.prompts(n=6)
    first, again, fresh = (lab.sample(lab.initial_policy, prompts, n=2, draw=draw) for draw in (3, 3, 4))
    assert first == again
    assert [response.text for response in first] != [response.text for response in fresh]
    assert [response.prompt for response in first] == [prompt for prompt in prompts for _ in range(2)]
    assert any(first[place].text != first[place + 1].text for place in range(0, 12, 2))  # n samples are n draws, not copies


@given(numbers=st.tuples(st.integers(1, 134), st.integers(1, 134)), draw=st.integers(0, 3), seed=st.integers(0, 3))
def test_subsets_are_distinct_and_nested(bench: EvaluationContext, numbers: tuple[int, int], draw: int, seed: int) -> None:
    few, many = sorted(numbers)
    lab, again = tiny_lab(bench, seed=seed), tiny_lab(bench, seed=seed)
    for split in ("rm", "policy"):
        every = bench.training_data.prompts[split]
        few, many = min(few, len(every)), min(many, len(every))
        chosen = lab.prompts(split, many, draw)
        assert len(set(chosen)) == many
        assert set(chosen) <= set(every)
        assert again.prompts(split, few, draw) == chosen[:few]
    few, many = min(few, len(bench.training_data.golden)), min(many, len(bench.training_data.golden))
    for there, get in ((bench.training_data.pairs, Lab.pairs), (bench.training_data.golden, Lab.golden)):
        chosen = get(lab, many)
        assert len(set(chosen)) == many
        assert set(chosen) <= set(there)
        assert get(again, few) == chosen[:few]


def test_prompts_of_another_draw_are_others(bench: EvaluationContext) -> None:
    lab = tiny_lab(bench)
    assert lab.prompts(n=20, draw=0) != lab.prompts(n=20, draw=1)
    assert set(lab.prompts(draw=0)) == set(lab.prompts(draw=1)) == set(tiny_task().prompts["policy"])


@pytest.mark.parametrize("n", [0, -1, 100_000])
def test_more_or_less_than_there_is(bench: EvaluationContext, n: int) -> None:
    lab = tiny_lab(bench)
    for verb in (lab.prompts, lab.pairs, lab.golden):
        with pytest.raises(InputError, match=rf"{n} asked for, \d+ there"):
            verb(n=n)
    assert lab.used == NOTHING


# --- the game -----------------------------------------------------------------------------------------------------------------


def test_scores_come_grouped_by_prompt_in_order_of_first_appearance(bench: EvaluationContext, reward_model: RewardModel) -> None:
    lab = tiny_lab(bench)
    first, second, third = lab.prompts(n=3)
    items = [(second, "sorry"), (first, "great"), (second, "turn the"), (third, "sorry"), (first, "sorry")]
    groups = lab.score(reward_model, items)
    assert [(group.prompt, group.responses) for group in groups] == [
        (second, ("sorry", "turn the")),
        (first, ("great", "sorry")),
        (third, ("sorry",)),
    ]
    for group in groups:
        for text, value in zip(group.responses, group.scores, strict=True):
            assert value == pytest.approx(lab.score(reward_model, [(group.prompt, text)])[0].scores[0], abs=1e-5)


def test_a_reward_model_learns_its_pairs_and_can_be_trained_further(bench: EvaluationContext, human: tuple[Pair, ...]) -> None:
    """All pairs in each update and a small step: plain descent. A model that knows nothing has a mean loss of log 2."""
    recipe = Recipe(learning_rate=1e-3, epochs=8, batch_size=len(human))
    lab = tiny_lab(bench, reward_model=bench.experiment.models.reward.model_copy(update={"training": recipe}))

    def mean_loss(model: RewardModel) -> float:
        chosen, rejected = (
            [group.scores[0] for group in lab.score(model, [(pair.prompt, text) for pair, text in zip(human, texts, strict=True)])]
            for texts in ([pair.chosen for pair in human], [pair.rejected for pair in human])
        )
        return sum(math.log1p(math.exp(low - high)) for high, low in zip(chosen, rejected, strict=True)) / len(human)

    first = lab.train_reward_model(human, loss=RankingLoss())
    second = lab.train_reward_model(human, loss=RankingLoss(), start=first)
    assert mean_loss(second) < mean_loss(first) < math.log(2)


def test_a_reward_models_loss_of_ones_own(bench: EvaluationContext, human: tuple[Pair, ...], tmp_path: Path) -> None:
    """The one of docs/new-loss.md. By hand: margins 0 and log 3, gamma 2: log 2 / 4, and log(4/3) / 16. The Lab trains with it."""
    (text,) = [block.text for block in blocks(DOCS / "new-loss.md") if "class FocalRanking" in block.text]
    (tmp_path / "focal.py").write_text(text)
    loss = load_python_file(tmp_path / "focal.py").FocalRanking()
    assert loss(torch.tensor([0.0, math.log(3)]), torch.zeros(2).bool()).tolist() == pytest.approx([math.log(2) / 4, math.log(4 / 3) / 16])
    lab = tiny_lab(bench)
    assert lab.train_reward_model(human, loss=loss) != lab.train_reward_model(human, loss=RankingLoss())
    with pytest.raises(InputError, match="an n-gram model cannot be trained with FocalRanking"):
        tiny_lab(bench, reward_model=NgramReward()).train_reward_model(human, loss=loss)


def test_an_ngram_reward_model_takes_ranking_losses_only(bench: EvaluationContext, human: tuple[Pair, ...]) -> None:
    lab = tiny_lab(bench, reward_model=NgramReward())
    model = lab.train_reward_model(human, loss=APOLoss(0.1, 4))
    assert lab.used["rm_updates"] == 1
    assert len(lab.score(model, [(pair.prompt, pair.chosen) for pair in human])) == len({pair.prompt for pair in human})
    with pytest.raises(InputError, match="an n-gram model cannot be trained with SFTLoss"):
        lab.train_reward_model(human, loss=SFTLoss())


def by_token(bench: EvaluationContext, policy: Policy, prompt: Prompt, text: str) -> float:
    """Log-probability of an answer by token, alone and without padding: independent of the training code."""
    spec = bench.experiment.models.policy
    model, tokenizer = load_policy(bench.store.open("policies", policy.key).folder)
    start = ChatFormat(tokenizer, spec.system_prompt).encode_prompt(prompt, spec.max_prompt_tokens).ids
    end = ChatFormat(tokenizer, spec.system_prompt).encode_response(prompt, text, spec.max_response_tokens)
    with torch.no_grad():
        rows = model.eval()(input_ids=torch.tensor([start + end])).logits[0].log_softmax(dim=-1)
    return sum(float(rows[len(start) + place - 1, token]) for place, token in enumerate(end)) / len(end)


def test_rrhf_makes_the_best_likelier_and_gives_way_to_no_worse(bench: EvaluationContext, reward_model: RewardModel) -> None:
    """On 4 samples a prompt: the best's likelihood rises, and so does the share of pairs of answers that it orders as the scores do."""
    lab = tiny_lab(bench)
    some = lab.score(reward_model, lab.sample(lab.initial_policy, lab.prompts(n=12), n=4, draw=33))
    policy = lab.train_policy(lab.initial_policy, some, RRHFLoss(3.0), epochs=6)
    assert lab.used["policy_updates"] == 6  # 12 groups in one update, six times
    best, alike = [], []
    for compared in (lab.initial_policy, policy):
        p = [[by_token(bench, compared, group.prompt, text) for text in group.responses] for group in some]
        best.append(sum(values[max(range(4), key=group.scores.__getitem__)] for values, group in zip(p, some, strict=True)))
        alike.append([
            values[i] > values[j]
            for values, group in zip(p, some, strict=True) for i in range(4) for j in range(4) if group.scores[i] > group.scores[j]
        ])  # fmt: skip
    assert best[1] > best[0]
    assert len(alike[0]) == len(alike[1]) > 30
    assert sum(alike[1]) > sum(alike[0])


def test_groups_of_other_sizes_or_for_another_loss_leave_nothing(bench: EvaluationContext, reward_model: RewardModel) -> None:
    lab = tiny_lab(bench)
    first, second = lab.prompts(n=2)
    uneven = [Group(first, ("sorry", "great"), (0.0, 1.0)), Group(second, ("sorry",), (0.0,))]

    def refused() -> None:
        with pytest.raises(InputError, match=r"^lab\.train_policy: groups of different sizes[^\n]*$"):
            lab.train_policy(lab.initial_policy, uneven, RRHFLoss())
        with pytest.raises(InputError, match="SFTLoss reads demonstrations, got groups"):
            lab.train_policy(lab.initial_policy, uneven[:1], SFTLoss())

    assert built(bench, refused) == []
    assert lab.used == NOTHING


@dataclass(frozen=True)
class DesirableLikelihood:
    """The log-probability of undesirable responses minus that of desirable ones, as a method might bring it."""

    reads: ClassVar[Reads] = "unpaired"
    needs_reference: ClassVar[bool] = False

    def __call__(self, view: View) -> torch.Tensor:
        return torch.where(view.labels, -1.0, 1.0) * view.response_logps.squeeze(1)


def test_a_methods_own_loss_trains_on_unpaired_data(bench: EvaluationContext, human: tuple[Pair, ...]) -> None:
    """Keyed by each response and whether it is desirable; 20 items are 2 updates. The label moves the likelihood."""
    lab, text = tiny_lab(bench), human[0].chosen
    prompt = human[0].prompt
    data = [UnpairedExample(pair.prompt, pair.chosen, True) for pair in human]
    turned = [dataclasses.replace(item, desirable=False) for item in data]
    other = [dataclasses.replace(data[0], response="sorry"), *data[1:]]
    policies = [lab.train_policy(lab.initial_policy, items, DesirableLikelihood()) for items in (data, turned, other)]
    assert lab.used["policy_updates"] == 6
    assert len({policy.key for policy in policies}) == 3
    assert built(bench, lambda: lab.train_policy(lab.initial_policy, data, DesirableLikelihood())) == []
    desirable, initial, undesirable = (by_token(bench, policy, prompt, text) for policy in (policies[0], lab.initial_policy, policies[1]))
    assert desirable > initial > undesirable
    with pytest.raises(InputError, match=r"^lab\.train_policy: DesirableLikelihood reads unpaired, got pairs$"):
        lab.train_policy(lab.initial_policy, human, DesirableLikelihood())


# --- best of n ----------------------------------------------------------------------------------------------------------------


def test_best_of_n_gives_each_answers_best_of_n_tries(bench: EvaluationContext, reward_model: RewardModel) -> None:
    """2 answers of n = 3 to each of 5 prompts are 30 tries. The same tries, sampled and scored as a method might, and chosen by hand."""
    prompts = tiny_lab(bench).prompts(n=5)
    lab, by_hand = tiny_lab(bench), tiny_lab(bench)
    policy = lab.best_of_n(lab.initial_policy, reward_model, 3)
    assert lab.used == NOTHING  # nothing is spent until it is sampled
    answers = lab.sample(policy, prompts, n=2, draw=8)
    tries = by_hand.sample(by_hand.initial_policy, prompts, n=6, draw=8)
    assert len(answers) == 10
    for place, answer in enumerate(answers):
        mine = tries[place * 3 : place * 3 + 3]
        assert {response.prompt for response in mine} == {answer.prompt} == {prompts[place // 2]}
        scores = [by_hand.score(reward_model, [response])[0].scores[0] for response in mine]
        assert scores[mine.index(answer)] == pytest.approx(max(scores), abs=1e-5)
    assert any(answer != tries[place * 3] for place, answer in enumerate(answers))  # not always the first
    assert (lab.used["sampled_responses"], lab.used["scored_responses"]) == (30, 30)
    for unit in ("sampled_responses", "sampled_tokens"):
        assert lab.used[unit] == by_hand.used[unit]
    assert lab.sample(policy, prompts, n=2, draw=8) == answers
    assert lab.used["sampled_responses"] == 60


def test_the_first_of_equals_is_the_answer(bench: EvaluationContext, reward_model: RewardModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores 1, 3, 3, 2 over the four tries: the second."""
    lab = tiny_lab(bench)
    policy = lab.best_of_n(lab.initial_policy, reward_model, 4)
    monkeypatch.setattr(ArmRewardModel, "scores", lambda self, model, items: [1.0, 3.0, 3.0, 2.0] * (len(items) // 4))
    tries = lab.sample(lab.initial_policy, lab.prompts(n=3), n=4, draw=9)
    assert lab.sample(policy, lab.prompts(n=3), draw=9) == tries[1::4]


def test_best_of_1_is_the_policy_itself(bench: EvaluationContext, reward_model: RewardModel) -> None:
    lab = tiny_lab(bench)
    prompts = lab.prompts(n=6)
    best = lab.sample(lab.best_of_n(lab.initial_policy, reward_model, 1), prompts, n=2, draw=10)
    assert best == lab.sample(lab.initial_policy, prompts, n=2, draw=10)
    assert lab.used["scored_responses"] == 12  # the reward model scores them even so


def test_best_of_n_policies_differ_by_policy_reward_model_and_n(
    bench: EvaluationContext, reward_model: RewardModel, shown: list[Demonstration]
) -> None:
    lab = tiny_lab(bench)
    other = lab.train_policy(lab.initial_policy, shown, SFTLoss())
    another = lab.train_reward_model(lab.pairs(20), loss=APOLoss(0.1, 4))
    policies = [
        lab.best_of_n(lab.initial_policy, reward_model, 2),
        lab.best_of_n(lab.initial_policy, reward_model, 3),
        lab.best_of_n(other, reward_model, 2),
        lab.best_of_n(lab.initial_policy, another, 2),
    ]
    assert len({policy.key for policy in [lab.initial_policy, *policies]}) == 5
    assert lab.best_of_n(lab.initial_policy, reward_model, 2) == policies[0] != Policy(policies[0].key)
    assert isinstance(policies[0], BestOfNPolicy)
    with pytest.raises(InputError, match="n is 1 or more, got 0"):
        lab.best_of_n(lab.initial_policy, reward_model, 0)


def test_a_best_of_n_policy_has_no_weights_to_train(
    bench: EvaluationContext, reward_model: RewardModel, shown: list[Demonstration], human: tuple[Pair, ...]
) -> None:
    lab = tiny_lab(bench)
    policy = lab.best_of_n(lab.initial_policy, reward_model, 2)

    def refused() -> None:
        for reference, data, loss, start in ((None, shown, SFTLoss(), policy), (policy, human, DPOLoss(0.1), lab.initial_policy)):
            with pytest.raises(InputError, match=r"^lab\.train_policy: a best-of-n policy has no weights[^\n]*$"):
                lab.train_policy(start, data, loss, reference=reference)

    assert built(bench, refused) == []
    assert lab.used == NOTHING


def test_best_of_n_may_not_overspend(bench: EvaluationContext, reward_model: RewardModel) -> None:
    """2 prompts x 3 tries want 6 of each unit. Short of samples it stops before; short of scores, after sampling."""
    for unit, sampled in (("sampled_responses", 0), ("scored_responses", 6)):
        lab = tiny_lab(bench, {unit: 5})
        with pytest.raises(BudgetExceeded, match=f"unit {unit}: needs 6, has 5 left"):
            lab.sample(lab.best_of_n(lab.initial_policy, reward_model, 3), lab.prompts(n=2))
        assert (lab.used["sampled_responses"], lab.used["scored_responses"]) == (sampled, 0)


def test_rounds_are_recorded_in_order(bench: EvaluationContext, reward_model: RewardModel) -> None:
    lab = tiny_lab(bench)
    lab.finish_round(Policy("one"), reward_model)
    lab.finish_round(Policy("two"))
    assert lab.rounds == [Round(Policy("one"), reward_model), Round(Policy("two"), None)]
