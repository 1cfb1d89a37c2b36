"""Trainers of TRL behind the Lab: they train on our tokens, end where our own fits end, and are charged what they report."""

import dataclasses
import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_world import RECIPE, tiny_bench, tiny_lab, tiny_task, tiny_tree

from apo_bench.config.schema import Executor, Experiment, Lora, Recipe, SamplingEngine
from apo_bench.engines import open_engine
from apo_bench.engines import trl as trl_engine
from apo_bench.engines.counting import CountingEngine, CountingStore, Expected
from apo_bench.engines.transformers import TransformersEngine
from apo_bench.errors import BudgetExceeded, InputError, NotHere
from apo_bench.evaluation.context import EvaluationContext
from apo_bench.lab import Lab
from apo_bench.losses import CPOLoss, DPOLoss, RankingLoss, SFTLoss, shipped_algorithm
from apo_bench.models.token_text import to_ids
from apo_bench.models.tokenize import ChatFormat
from apo_bench.plan.arm_spend import counting_context
from apo_bench.store import RunStore
from apo_bench.training.encoding import encode_items, response_logps
from apo_bench.training.online import StepRow
from apo_bench.training.trl_trainers import REFUSED, TRAINERS
from apo_bench.types import Demonstration, Pair, Policy, Response, RewardModel, UnpairedExample

pytestmark = pytest.mark.slow

DPO, SFT, KTO, GRPO, RLOO = (f"trl.{name}Trainer" for name in ("DPO", "SFT", "KTO", "GRPO", "RLOO"))
ONLINE_DPO = "trl.experimental.online_dpo.OnlineDPOTrainer"
FOUR = {"num_generations": 4}
Logs = list[dict[str, Any]]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> EvaluationContext:
    return tiny_bench(tmp_path_factory.mktemp("trl"))


@pytest.fixture(scope="module")
def reward_model(bench: EvaluationContext) -> RewardModel:
    lab = tiny_lab(bench)
    return lab.train_reward_model(lab.pairs(64), loss=RankingLoss())


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> Logs:
    """What the trainers themselves report, a row an update."""
    rows: Logs = []

    class Watch(trl_engine._Watch):
        def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **more: Any) -> None:
            rows.append(dict(logs or {}))
            super().on_log(args, state, control, logs=logs, **more)

    monkeypatch.setattr(trl_engine, "_Watch", Watch)
    return rows


def recorded_scores(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Sequence[Response], Sequence[float]]]:
    """What reward functions score from now on, call by call."""
    calls: list[tuple[Sequence[Response], Sequence[float]]] = []
    scorer = trl_engine.scorer

    def recording(*arguments: Any) -> Any:
        score = scorer(*arguments)

        def recorded(responses: Sequence[Response]) -> Any:
            scores, counts = score(responses)
            calls.append((responses, scores))
            return scores, counts

        return recorded

    monkeypatch.setattr(trl_engine, "scorer", recording)
    return calls


def engine_of(bench: EvaluationContext) -> TransformersEngine:
    assert isinstance(bench.engine, TransformersEngine)
    return bench.engine


def with_policy(bench: EvaluationContext, **changes: Any) -> EvaluationContext:
    """The bench with other settings of the policy; its initial policy is the same one."""
    models = bench.experiment.models
    policy = models.policy.model_copy(update=changes)
    return dataclasses.replace(
        bench, experiment=bench.experiment.model_copy(update={"models": models.model_copy(update={"policy": policy})})
    )


def lab_with(bench: EvaluationContext, budget: Mapping[Any, float] | None = None, **recipe: Any) -> Lab:
    training = bench.experiment.models.policy.training.model_copy(update=recipe)
    return tiny_lab(with_policy(bench, training=training), budget)


def logps(bench: EvaluationContext, policy: Policy, pairs: tuple[Pair, ...]) -> torch.Tensor:
    """Log-probabilities of both responses of each pair."""
    model = bench.experiment.models.policy
    loaded, tokenizer = engine_of(bench).models.policy(policy, model)
    items = encode_items(tokenizer, pairs, DPOLoss(), model)
    return torch.tensor([[row.sum() for row in sides] for sides in response_logps(loaded, items, tokenizer.pad_token_id, 16)])


def apart(bench: EvaluationContext, policy: Policy, other: Policy, pairs: tuple[Pair, ...]) -> float:
    return (logps(bench, policy, pairs) - logps(bench, other, pairs)).abs().max().item()


# --- the same policy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro", [None, 4])
def test_dpo_of_trl_and_ours_give_the_same_policy(bench: EvaluationContext, micro: int | None) -> None:
    """16 pairs in one update, so that no order of batches can differ, 6 updates; the model has no dropout. Both read every pair in each."""
    ours, theirs = (lab_with(bench, epochs=6.0, learning_rate=3e-3, micro_batch_size=micro) for _ in range(2))
    pairs = ours.pairs(16)
    own = ours.train_policy(ours.initial_policy, pairs, DPOLoss(beta=0.3), reference=ours.initial_policy)
    other = theirs.train_with_trl(theirs.initial_policy, theirs.pairs(16), DPO, args={"beta": 0.3})
    assert apart(bench, own, ours.initial_policy, pairs) > 0.5
    assert apart(bench, own, other, pairs) < 1e-4
    for unit in ("human_pairs", "policy_updates", "policy_train_tokens"):
        assert ours.used[unit] == theirs.used[unit] > 0


def test_sft_of_trl_and_ours_give_the_same_policy(bench: EvaluationContext) -> None:
    ours, theirs = (lab_with(bench, epochs=6.0, learning_rate=3e-3) for _ in range(2))
    pairs = ours.pairs(16)
    data = [Demonstration(pair.prompt, pair.chosen) for pair in pairs]
    own = ours.train_policy(ours.initial_policy, data, SFTLoss())
    other = theirs.train_with_trl(theirs.initial_policy, data, SFT)
    assert apart(bench, own, ours.initial_policy, pairs) > 0.5
    assert apart(bench, own, other, pairs) < 1e-4
    assert ours.used["policy_train_tokens"] == theirs.used["policy_train_tokens"]


def test_adapters_are_trained_alike_and_stay_adapters(bench: EvaluationContext) -> None:
    """As whole weights; new adapters change nothing, so that the reference is the policy without them."""
    ours, theirs = (lab_with(bench, epochs=4.0, learning_rate=1e-2, lora=Lora(rank=4)) for _ in range(2))
    pairs = ours.pairs(16)
    own = ours.train_policy(ours.initial_policy, pairs, DPOLoss(), reference=ours.initial_policy)
    other = theirs.train_with_trl(theirs.initial_policy, pairs, DPO)
    assert (bench.store.root / "policies" / other.key / "adapter_model.safetensors").is_file()
    assert apart(bench, own, ours.initial_policy, pairs) > 0.1
    assert apart(bench, own, other, pairs) < 1e-4


def test_frozen_weights_stay(bench: EvaluationContext) -> None:
    lab = lab_with(bench, freeze="embed_tokens|lm_head")
    policy = lab.train_with_trl(lab.initial_policy, lab.pairs(16), DPO)
    before, after = (
        engine_of(bench).models.policy(each, bench.experiment.models.policy)[0].state_dict() for each in (lab.initial_policy, policy)
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not {name for name in changed if "embed_tokens" in name or "lm_head" in name}


def test_what_is_stored_is_a_policy_without_traces_of_the_trainer(bench: EvaluationContext) -> None:
    lab = tiny_lab(bench)
    policy = lab.train_with_trl(lab.initial_policy, lab.pairs(16), DPO)
    before, after = (bench.store.root / "policies" / each.key for each in (lab.initial_policy, policy))
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (before / name).read_text() == (after / name).read_text()
    assert len(json.loads((after / "training_losses.json").read_text())) == 1


# --- tokens -------------------------------------------------------------------------------------------------------------------


def test_every_row_holds_the_tokens_that_our_own_fits_read(bench: EvaluationContext) -> None:
    """Responses are cut at 4 tokens: a longer one has no end, and gets none from a trainer that adds ends to what lacks them."""
    model = bench.experiment.models.policy.model_copy(update={"max_response_tokens": 4})
    _, tokenizer = engine_of(bench).models.policy(bench.initial_policy, model)
    chat, lab = ChatFormat.of(tokenizer, model), tiny_lab(bench)
    pairs = lab.pairs(24)
    job = trl_engine.TRLTraining(
        lab.initial_policy, pairs, DPO, {}, None, bench.experiment.models.reward, model, model.training, 1, 0, "arm", {}
    )
    texts = trl_engine.TokenText(len(tokenizer), tokenizer.pad_token_id, chat.end_id)
    ended = 0
    for row, pair in zip(trl_engine.rows(pairs, chat, job), pairs, strict=True):
        for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            ids = chat.encode_response(pair.prompt, text, 4)
            added = "" if row[side].endswith(texts.eos_token) else texts.eos_token
            prompt = chat.encode_prompt(pair.prompt, model.max_prompt_tokens).ids
            assert texts(row["prompt"] + row[side] + added)["input_ids"] == prompt + ids
            assert to_ids(row["prompt"]) == prompt
            ended += ids[-1] == chat.end_id
    assert 0 < ended < 48


def test_cut_responses_are_trained_on_without_an_end(bench: EvaluationContext) -> None:
    """As our own fit, whose policy it gives."""
    short = with_policy(bench, max_response_tokens=4)
    ours, theirs = (lab_with(short, epochs=3.0) for _ in range(2))
    pairs = ours.pairs(16)
    own = ours.train_policy(ours.initial_policy, pairs, DPOLoss(), reference=ours.initial_policy)
    assert apart(bench, own, theirs.train_with_trl(theirs.initial_policy, pairs, DPO), pairs) < 1e-4


# --- what is charged ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainer", [SFT, DPO, KTO])
def test_offline_trainers_are_charged_the_tokens_that_they_report(bench: EvaluationContext, logs: Logs, trainer: str) -> None:
    lab = tiny_lab(bench)
    pairs = lab.pairs(32)
    data: list[Any] = list(pairs)
    if trainer == SFT:
        data = [Demonstration(pair.prompt, pair.chosen) for pair in pairs]
    if trainer == KTO:
        data = [UnpairedExample(pair.prompt, pair.chosen, place % 2 == 0) for place, pair in enumerate(pairs)]
    lab.train_with_trl(lab.initial_policy, data, trainer)
    reported = [row["num_tokens"] for row in logs if "num_tokens" in row]
    assert lab.used["policy_updates"] == len([row for row in logs if "loss" in row]) == 2
    assert lab.used["policy_train_tokens"] == reported[-1] > 0
    assert lab.used["sampled_responses"] == 0


@pytest.mark.parametrize("trainer", [GRPO, RLOO])
def test_online_trainers_are_charged_what_they_report(
    bench: EvaluationContext, reward_model: RewardModel, logs: Logs, monkeypatch: pytest.MonkeyPatch, trainer: str
) -> None:
    """8 prompts, 4 responses each, 16 an update. Their mean length times 16 is what an update sampled; their tokens are prompts and
    responses, of which each is trained on once. Rewards are the reward model's scores."""
    lab, scored = tiny_lab(bench), recorded_scores(monkeypatch)
    lab.train_with_trl(lab.initial_policy, lab.prompts(n=8), trainer, args=FOUR, reward_model=reward_model)
    rows = [row for row in logs if "reward" in row]
    assert lab.used["policy_updates"] == len(rows) == 2
    assert lab.used["sampled_responses"] == lab.used["scored_responses"] == 32
    assert lab.used["sampled_tokens"] == pytest.approx(sum(16 * row["completions/mean_length"] for row in rows))
    assert lab.used["policy_train_tokens"] == rows[-1]["num_tokens"]
    means = [float(np.mean(values)) for _, values in scored]
    assert [row["reward"] for row in rows] == pytest.approx(means, abs=1e-5)
    assert lab.used["flops"] > 0


def test_flops_are_those_of_our_rule(bench: EvaluationContext) -> None:
    """SFT reads as our own fit does, but for logits: on a CPU it takes those of all positions, and computes them again for gradients."""
    from apo_bench.models import flops

    ours, theirs = tiny_lab(bench), tiny_lab(bench)
    pairs = ours.pairs(16)
    data = [Demonstration(pair.prompt, pair.chosen) for pair in pairs]
    ours.train_policy(ours.initial_policy, data, SFTLoss())
    theirs.train_with_trl(theirs.initial_policy, data, SFT)
    model, tokenizer = engine_of(bench).models.policy(bench.initial_policy, bench.experiment.models.policy)
    items = encode_items(tokenizer, data, SFTLoss(), bench.experiment.models.policy)
    lengths = [item["length"] for item in items]
    step, output = flops.training(model, Recipe(**RECIPE)).step, flops.size(model).rates.output
    assert theirs.used["flops"] == pytest.approx(step.total(lengths, lengths) + output * sum(lengths))
    assert ours.used["flops"] == pytest.approx(step.total(lengths, [item["size"] for item in items]))


def test_an_ensemble_scores_by_its_standardised_members(bench: EvaluationContext) -> None:
    """The same rewards as lab.score gives for the responses that were scored."""
    from apo_bench.config.schema import EnsembleReward, NgramReward

    spec = EnsembleReward(kind="ensemble", of=(NgramReward(), NgramReward(ngrams=(1, 1))), combine="worst")
    lab = bench.lab(0, spec)
    model = lab.train_reward_model(lab.pairs(32), loss=RankingLoss())
    lab.train_with_trl(lab.initial_policy, lab.prompts(n=8), GRPO, args=FOUR, reward_model=model)
    assert lab.used["scored_responses"] == 2 * (32 + 2 * len(tiny_task().pairs["dev"]))
    assert lab.used["sampled_responses"] == 32


# --- learning -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainer", [GRPO, RLOO, ONLINE_DPO])
def test_online_trainers_raise_the_reward(bench: EvaluationContext, reward_model: RewardModel, trainer: str) -> None:
    """Fresh samples before and after: the difference is 3 standard errors or more. Without KL, but for OnlineDPO, which trains on it."""
    lab = lab_with(bench, learning_rate=1e-2, epochs=60.0 if trainer == ONLINE_DPO else 15.0)
    args = {"beta": 0.05} if trainer == ONLINE_DPO else {**FOUR, "beta": 0.0}
    policy = lab.train_with_trl(lab.initial_policy, lab.prompts(n=16), trainer, args=args, reward_model=reward_model)
    before, after = (
        torch.tensor([group.scores for group in lab.score(reward_model, lab.sample(each, lab.prompts(), draw=7))]).flatten()
        for each in (lab.initial_policy, policy)
    )
    error = (before.var() / len(before) + after.var() / len(after)).sqrt()
    assert after.mean() - before.mean() > 3 * error


def test_a_reward_function_sees_only_what_a_method_may(
    bench: EvaluationContext, reward_model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of the policy split and the arm's own reward model; the data set holds nothing beside the prompts."""
    scored, columns, rows = recorded_scores(monkeypatch), set[str](), trl_engine.rows

    def recorded(*arguments: Any) -> Any:
        for row in rows(*arguments):
            columns.update(row)
            yield row

    monkeypatch.setattr(trl_engine, "rows", recorded)
    lab = tiny_lab(bench, seed=3)
    lab.train_with_trl(lab.initial_policy, lab.prompts(n=8), GRPO, args=FOUR, reward_model=reward_model)
    assert {response.prompt for responses, _ in scored for response in responses} == set(lab.prompts(n=8))
    assert columns == {"prompt", "prompt_id"}
    pairs = [(response, value) for responses, values in scored for response, value in zip(responses, values, strict=True)]
    groups = lab.score(reward_model, [response for response, _ in pairs])
    by_text = {(group.prompt.id, text): value for group in groups for text, value in zip(group.responses, group.scores, strict=True)}
    for response, value in pairs:
        assert by_text[response.prompt.id, response.text] == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("trainer", [GRPO, ONLINE_DPO])
def test_steps_are_kept_as_those_of_our_own_online_training(
    bench: EvaluationContext, reward_model: RewardModel, monkeypatch: pytest.MonkeyPatch, trainer: str
) -> None:
    """Of 16 prompts, 4 or 2 responses each: 16 or 32 responses an update."""
    lab, scored = tiny_lab(bench, seed=6), recorded_scores(monkeypatch)
    args = {} if trainer == ONLINE_DPO else FOUR
    policy = lab.train_with_trl(lab.initial_policy, lab.prompts(n=16), trainer, args=args, reward_model=reward_model)
    lines = (bench.store.root / "policies" / policy.key / "steps.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    assert all(list(row) == [field.name for field in dataclasses.fields(StepRow)] for row in steps)
    assert [row["step"] for row in steps] == [1, 2, 3, 4][: len(steps)]
    assert len(steps) == lab.used["policy_updates"] == (1 if trainer == ONLINE_DPO else 4)
    assert {row["samples"] for row in steps} == {32 if trainer == ONLINE_DPO else 16}
    assert sum(row["sampled_tokens"] for row in steps) == lab.used["sampled_tokens"]
    assert sum(row["train_tokens"] for row in steps) == lab.used["policy_train_tokens"]
    assert [row["reward"] for row in steps] == pytest.approx([float(np.mean(values)) for _, values in scored])
    assert [row["cut_share"] for row in steps] == pytest.approx(
        [float(np.mean([response.finish == "length" for response in responses])) for responses, _ in scored]
    )


def test_a_policy_with_adapters_is_trained_whole_and_compared_with_itself(bench: EvaluationContext, reward_model: RewardModel) -> None:
    """Its merged weights lie nowhere in the store, and are read as the reference all the same."""
    first = lab_with(bench, lora=Lora(rank=4), learning_rate=1e-2)
    adapted = first.train_with_trl(first.initial_policy, first.pairs(16), DPO)
    lab = lab_with(bench, learning_rate=1e-9)
    policy = lab.train_with_trl(adapted, lab.prompts(n=8), RLOO, args={**FOUR, "beta": 1.0}, reward_model=reward_model)
    assert (bench.store.root / "policies" / policy.key / "model.safetensors").is_file()
    assert apart(bench, policy, adapted, lab.pairs(16)) < 1e-4


# --- budgets and replays ------------------------------------------------------------------------------------------------------


def policies_in(bench: EvaluationContext) -> set[str]:
    return {path.parent.name for path in (bench.store.root / "policies").glob("*/manifest.json")}


def steps_of(logs: Logs) -> int:
    return len([row for row in logs if "loss" in row])


def test_over_budget_it_stops_within_a_step(bench: EvaluationContext, logs: Logs) -> None:
    """An update reads about 680 tokens and 1000 are left: the second is the last of 6, and no policy is kept."""
    lab = lab_with(bench, {"policy_train_tokens": 1000}, epochs=3.0)
    before = policies_in(bench)
    with pytest.raises(BudgetExceeded, match=r"arm arm, unit policy_train_tokens: needs 1\d\d\d, has 1000 left"):
        lab.train_with_trl(lab.initial_policy, lab.pairs(32), DPO)
    assert steps_of(logs) <= 2
    assert policies_in(bench) == before


def test_sampling_over_budget_stops_within_a_step(bench: EvaluationContext, reward_model: RewardModel, logs: Logs) -> None:
    lab = lab_with(bench, {"sampled_tokens": 100}, epochs=3.0)
    with pytest.raises(BudgetExceeded, match="unit sampled_tokens"):
        lab.train_with_trl(lab.initial_policy, lab.prompts(n=8), GRPO, args=FOUR, reward_model=reward_model)
    assert steps_of(logs) <= 1


@pytest.mark.parametrize(("unit", "amount"), [("policy_updates", 1), ("sampled_responses", 31), ("scored_responses", 31)])
def test_what_is_known_beforehand_is_refused_before_it_starts(
    bench: EvaluationContext, reward_model: RewardModel, logs: Logs, unit: str, amount: int
) -> None:
    """8 prompts with 4 responses each, 16 an update: 2 updates, 32 samples, 32 scores."""
    lab = tiny_lab(bench, {unit: amount}, seed=4)
    with pytest.raises(BudgetExceeded, match=unit):
        lab.train_with_trl(lab.initial_policy, lab.prompts(n=8), GRPO, args=FOUR, reward_model=reward_model)
    assert logs == []


def test_a_replay_computes_nothing_and_charges_the_same(bench: EvaluationContext, reward_model: RewardModel) -> None:
    first = tiny_lab(bench)
    policy = first.train_with_trl(first.initial_policy, first.prompts(n=8), GRPO, args=FOUR, reward_model=reward_model)
    store = RunStore(bench.store.run_folder)
    again = tiny_lab(dataclasses.replace(bench, store=store))
    assert again.train_with_trl(again.initial_policy, again.prompts(n=8), GRPO, args=FOUR, reward_model=reward_model) == policy
    assert store.built == []
    assert again.used == first.used


def test_other_arguments_are_another_policy(bench: EvaluationContext) -> None:
    lab = tiny_lab(bench)
    keys = {lab.train_with_trl(lab.initial_policy, lab.pairs(16), DPO, args={"beta": beta}).key for beta in (0.1, 0.2)}
    assert len(keys) == 2


def test_equal_seeds_give_equal_bytes(tmp_path: Path, reward_model: RewardModel, bench: EvaluationContext) -> None:
    def weights(folder: Path) -> bytes:
        other = tiny_bench(folder)
        lab = tiny_lab(other)
        model = lab.train_reward_model(lab.pairs(32), loss=RankingLoss())
        policy = lab.train_with_trl(lab.initial_policy, lab.prompts(n=8), GRPO, args=FOUR, reward_model=model)
        return (other.store.root / "policies" / policy.key / "model.safetensors").read_bytes()

    assert weights(tmp_path / "a") == weights(tmp_path / "b")


# --- refusals -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (
            {"learning_rate": 1e-3},
            "args.learning_rate: not an arm's to decide: models.policy.training.learning_rate, or learning_rate of",
        ),
        ({"seed": 1}, "args.seed: not an arm's to decide: seeds"),
        ({"max_steps": 3}, "args.max_steps: not an arm's to decide: models.policy.training.epochs, or epochs of the method"),
        ({"bf16": True}, "args.bf16: not an arm's to decide: models.policy.training.precision"),
        ({"betta": 0.1}, "args.betta: DPOConfig has no such argument; did you mean beta?"),
        ({"loss_type": "nonsense"}, "nonsense"),
        ({"loss_type": "exo_pair"}, "trl.DPOTrainer: Label smoothing must be greater than 0.0 when using 'exo_pair' loss"),
    ],
)
def test_arguments_are_refused_in_one_line(bench: EvaluationContext, args: dict[str, Any], line: str) -> None:
    lab = tiny_lab(bench)
    with pytest.raises(InputError) as error:
        lab.train_with_trl(lab.initial_policy, lab.pairs(16), DPO, args=args)
    assert line in str(error.value)
    assert lab.used["policy_updates"] == 0


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_trainers_that_cannot_be_arms_say_why(bench: EvaluationContext, name: str) -> None:
    with pytest.raises(InputError, match=f"trainer: {name}: it "):
        tiny_lab(bench).train_with_trl(bench.initial_policy, tiny_lab(bench).pairs(4), name)


def test_a_mistyped_trainer_gets_the_nearest_name(bench: EvaluationContext) -> None:
    with pytest.raises(InputError, match=r"no trainer 'trl.DPOTrainr', did you mean trl.DPOTrainer\?"):
        tiny_lab(bench).train_with_trl(bench.initial_policy, tiny_lab(bench).pairs(4), "trl.DPOTrainr")


def test_every_trainer_of_this_trl_is_known_or_refused() -> None:
    """Trainers that its two tiers export, but for bases of others."""
    import trl
    from trl import experimental

    names = {f"trl.{name}" for name in trl._import_structure["trainer"] if name.endswith("Trainer")}
    for folder in sorted(Path(experimental.__path__[0]).iterdir()):
        for path in folder.glob("*trainer.py"):
            classes = [line.removeprefix("class ").partition("(")[0] for line in path.read_text().splitlines() if line.startswith("class ")]
            names |= {f"trl.experimental.{folder.name}.{name}" for name in classes if name.endswith("Trainer")}
    assert names == {*TRAINERS, *REFUSED}


def test_data_and_reward_models_have_to_suit_the_trainer(bench: EvaluationContext, reward_model: RewardModel) -> None:
    lab = tiny_lab(bench)
    cases: list[tuple[Any, str, RewardModel | None, str]] = [
        (lab.pairs(4), SFT, None, "trl.SFTTrainer reads demonstrations, got pairs"),
        (lab.prompts(n=4), DPO, None, "trl.DPOTrainer reads pairs, got prompts"),
        ([], DPO, None, "trl.DPOTrainer got no pairs to train on"),
        (lab.prompts(n=4), GRPO, None, "trl.GRPOTrainer needs a reward model"),
        (lab.pairs(4), DPO, reward_model, "trl.DPOTrainer reads no reward model"),
    ]
    for data, trainer, model, line in cases:
        with pytest.raises(InputError, match=line):
            lab.train_with_trl(lab.initial_policy, data, trainer, reward_model=model)


def test_too_few_prompts_are_one_line(bench: EvaluationContext, reward_model: RewardModel) -> None:
    """16 responses an update, 4 to a prompt: an update reads 4 prompts. Nothing is spent on what TRL would not train on."""
    lab = tiny_lab(bench)
    with pytest.raises(InputError, match=r"^lab\.train_with_trl: trl\.GRPOTrainer samples for 4 prompts at a time, got 3$"):
        lab.train_with_trl(lab.initial_policy, lab.prompts(n=3), GRPO, args=FOUR, reward_model=reward_model)


def test_other_samplers_and_launched_fits_are_refused(bench: EvaluationContext, reward_model: RewardModel, tmp_path: Path) -> None:
    sampling = bench.experiment.models.policy.sampling
    lab = tiny_lab(with_policy(bench, sampling=sampling.model_copy(update={"temperature": 0.0})))
    with pytest.raises(InputError, match=r"models.policy.sampling.temperature: 0: trl.GRPOTrainer samples at random"):
        lab.train_with_trl(lab.initial_policy, lab.prompts(n=8), GRPO, reward_model=reward_model)
    served = tiny_lab(with_policy(bench, sampling=sampling.model_copy(update={"engine": SamplingEngine(python="python")})))
    with pytest.raises(InputError, match=r"models.policy.sampling.engine: trl.GRPOTrainer samples in its own process"):
        served.train_with_trl(served.initial_policy, served.prompts(n=8), GRPO, reward_model=reward_model)
    config = tmp_path / "two.yaml"
    config.write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n")
    engine = open_engine(bench.experiment.engine, Executor(launch=str(config)), bench.store.run_folder)
    launched = tiny_lab(dataclasses.replace(bench, engine=engine))
    with pytest.raises(InputError, match=r"executor.launch: trl.DPOTrainer trains in one process"):
        launched.train_with_trl(launched.initial_policy, launched.pairs(4), DPO)


def test_a_missing_trl_is_one_line(bench: EvaluationContext, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "trl" else find_spec(name, *more))
    with pytest.raises(NotHere, match=r"trl is not installed: pip install 'apo-bench\[trl\]'"):
        tiny_lab(bench).train_with_trl(bench.initial_policy, tiny_lab(bench).pairs(4), DPO)


def test_a_fit_that_diverges_is_one_line(bench: EvaluationContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reward is not finite, so neither is the loss."""
    lab = lab_with(bench, learning_rate=1e30, epochs=4.0, max_grad_norm=1e30)
    with pytest.raises(InputError, match=r"policy: .* update \d of 4.*; the fit has diverged: lower the learning rate"):
        lab.train_with_trl(lab.initial_policy, lab.pairs(16), DPO)


# --- plans --------------------------------------------------------------------------------------------------------------------


def test_a_plan_counts_what_can_be_known(bench: EvaluationContext) -> None:
    """8 prompts, 4 responses each, 16 an update, as a run; how a trainer from elsewhere reads is not known."""
    task, experiment = tiny_task(), bench.experiment
    engine = CountingEngine(Expected(experiment, task), task, "cpu")
    planned = EvaluationContext(experiment, task, CountingStore(), engine)  # pyright: ignore
    lab = tiny_lab(planned)
    model = lab.train_reward_model(lab.pairs(32), loss=RankingLoss())
    lab.train_with_trl(lab.initial_policy, lab.prompts(n=8), GRPO, args=FOUR, reward_model=model)
    assert {unit: lab.used[unit] for unit in ("policy_updates", "sampled_responses", "scored_responses")} == {
        "policy_updates": 2, "sampled_responses": 32, "scored_responses": 32,
    }  # fmt: skip
    assert math.isnan(lab.used["flops"])
    assert math.isnan(lab.used["policy_train_tokens"])


def as_ours(steps: int, prompts: int, n: int, epochs: float = 1.0) -> dict[str, Any]:
    return {"steps": steps, "prompts_per_step": prompts, "n": n, "epochs": epochs}


TWICE = {**FOUR, "beta": 0.1, "num_iterations": 2, "steps_per_generation": 2}
ESTIMATED: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {  # TRL's arguments, what of ours it is taken for, and in which steps
    SFT: ({}, SFTLoss(), {}),
    DPO: ({"beta": 0.3}, DPOLoss(), {}),
    "trl.experimental.cpo.CPOTrainer": ({}, CPOLoss(), {}),
    GRPO: (FOUR, shipped_algorithm({"name": "grpo", "kl_coeff": 0.0}), as_ours(4, 4, 4)),
    "trl.experimental.gmpo.GMPOTrainer": (TWICE, shipped_algorithm("grpo"), as_ours(2, 8, 4, 2.0)),
    ONLINE_DPO: ({}, DPOLoss(), as_ours(1, 16, 2)),
}


@pytest.mark.parametrize("trainer", ESTIMATED)
def test_a_plan_estimates_time_and_memory_by_our_own_fit(trainer: str) -> None:
    """Of 32 pairs, or of 16 prompts by 16 items an update: 4 responses each are 4 updates; sampled for two at a time and used twice,
    2 steps of 4. Online DPO's items are prompts. Answers are one token, so that none differs; the prompts of the two do."""
    tree, (args, loss, steps) = tiny_tree(), ESTIMATED[trainer]
    tree["models"]["policy"]["sampling"]["max_new_tokens"] = 1
    works, passes = [], []
    for ours in (True, False):
        context = counting_context(Experiment.model_validate(tree), tiny_task())
        lab = context.lab(0)
        start, data = lab.initial_policy, list[Any](lab.pairs(32))
        model = lab.train_reward_model(data, loss=RankingLoss()) if steps else None
        if trainer == SFT:
            data = [Demonstration(pair.prompt, pair.chosen) for pair in data]
        reference = start if loss.needs_reference else None
        if not ours:
            lab.train_with_trl(start, lab.prompts(n=16) if model else data, trainer, args=args, reward_model=model)
        elif model:
            lab.train_online(start, model, loss, reference=reference, **steps)
        else:
            lab.train_policy(start, data, loss, reference=reference)
        *_, fit = context.planned.values()
        works.append({"policies": fit.work, **fit.within})
        passes.append(sorted((part.verb, part.items, part.sides) for part in context.engine.passes.largest.values()))
        assert context.engine.trainers == (set() if ours else {trainer})
    assert works[0] == pytest.approx(works[1], rel=0.05)
    assert passes[0] == passes[1]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_defaults_that_plans_count_by_are_trls(trainer: str) -> None:
    form, config = TRAINERS[trainer], trl_engine._config_class(trl_engine._trainer_class(trainer))
    defaults = {field.name: field.default_factory() if callable(field.default_factory) else field.default
                for field in dataclasses.fields(config)}  # fmt: skip
    if form.beta is not None:
        assert defaults["beta"] in (form.beta, [form.beta])
    if form.group is not None:
        name, n = form.group
        assert defaults[name] == n


def test_what_is_sampled_at_a_time_is_charged_whole(bench: EvaluationContext, reward_model: RewardModel) -> None:
    """12 prompts x 4 are three updates of 16. Two at a time are sampled: 32 for the first two, and 32 for the third, which reads half."""
    lab = tiny_lab(bench, {"sampled_responses": 64})
    args = {**FOUR, "steps_per_generation": 2}
    lab.train_with_trl(lab.initial_policy, lab.prompts(n=12), GRPO, args=args, reward_model=reward_model)
    assert lab.used["policy_updates"] == 3
    assert lab.used["sampled_responses"] == lab.used["scored_responses"] == 64
