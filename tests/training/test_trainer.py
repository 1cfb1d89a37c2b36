"""The optimisation loop: against plain torch, against itself in other pieces, and by what it teaches."""

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_tokenizers import WORDS, prompt
from training_items import (
    AXES,
    LLAMA,
    RECIPE,
    SPEC,
    Weights,
    apart,
    demonstrations,
    groups,
    pairs,
    sentences,
    train_policy,
    train_reward_model,
)
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from apo_bench.config.schema import Lora, NeuralReward, Recipe
from apo_bench.losses import APOLoss, DPOLoss, PolicyLoss, RankingLoss, RRHFLoss, SFTLoss
from apo_bench.models import policy as policies
from apo_bench.models import reward as rewards
from apo_bench.training import encoding
from apo_bench.training.batches import processes_share
from apo_bench.training.checkpoints import Checkpoints
from apo_bench.training.trainer import TrainResult, _without_weights, fit
from apo_bench.types import Demonstration, Group, Pair

pytestmark = pytest.mark.slow


def fit_policy(
    data: Sequence[Any], recipe: Recipe, scratch: Path, loss: PolicyLoss | None = None, seed: int = 0
) -> tuple[Any, TrainResult]:
    loss = loss or SFTLoss()
    model, tokenizer = policies.new_policy(LLAMA, WORDS, seed=0)
    items = encoding.encode_items(tokenizer, data, loss, SPEC)
    if loss.needs_reference:
        reference_logps = encoding.response_logps(policies.new_policy(LLAMA, WORDS, seed=1)[0], items, 0, 4)
        items = [{**item, "reference_logps": logps} for item, logps in zip(items, reference_logps, strict=True)]
    collate, terms = partial(encoding.collate, pad_id=0), partial(encoding.loss_terms, loss=loss)
    return fit(model, items, collate, terms, recipe, seed, Checkpoints(scratch))


def fit_reward(data: Sequence[Pair], recipe: Recipe, scratch: Path, seed: int = 0) -> tuple[Any, TrainResult]:
    spec = NeuralReward(architecture=LLAMA, training=recipe)
    model, tokenizer = rewards.new_reward_model(spec, None, AXES, WORDS, seed=0)
    items = rewards.pair_items(model, tokenizer, data, spec)
    loss = partial(rewards.loss_terms, loss=APOLoss(0.5, 2))
    return fit(model, items, partial(rewards.collate, pad_id=0), loss, recipe, seed, Checkpoints(scratch))


# --- one update is one update -------------------------------------------------------------------------------------------------

KINDS = {
    "reward pairs": (fit_reward, pairs),
    "demonstrations": (fit_policy, demonstrations),
    "policy pairs": (partial(fit_policy, loss=DPOLoss(0.5)), pairs),
    "groups": (partial(fit_policy, loss=RRHFLoss(3.0)), groups),
}


@pytest.mark.parametrize("n", [32, 37], ids=["whole updates", "a short last update"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_batch_of_16_equals_four_of_4(kind: str, n: int, tmp_path: Path) -> None:
    """Two epochs. 37 items are updates of 16, 16 and 5, and 5 are micro-batches of 4 and 1.

    A step of Adam is about the learning rate, 1e-4, whatever the gradient's scale; rounding may move it by a hundredth.
    """
    train, make = KINDS[kind]
    recipe = RECIPE.model_copy(update={"learning_rate": 1e-4, "epochs": 2, "max_grad_norm": 100.0, "weight_decay": 0.1})
    whole, result = train(make(n), recipe, tmp_path / "whole")
    parts, result_of_parts = train(make(n), recipe.model_copy(update={"micro_batch_size": 4}), tmp_path / "parts")
    assert result.updates == result_of_parts.updates == recipe.updates(n) == 2 * math.ceil(n / 16)
    assert result.tokens == result_of_parts.tokens
    assert result.losses == pytest.approx(result_of_parts.losses, abs=1e-3)
    start, _ = train(make(n), recipe.model_copy(update={"learning_rate": 1e-12}), tmp_path / "start")
    assert apart(whole.state_dict(), parts.state_dict()) < 1e-6
    assert apart(whole.state_dict(), start.state_dict()) > 1e-4


def plain_loop(data: Sequence[Demonstration], factors: Sequence[float], recipe: Recipe) -> tuple[Weights, list[float]]:
    """AdamW as torch has it, all items in every update, the mean of cross-entropy over response tokens; one learning-rate factor each."""
    model, tokenizer = policies.new_policy(LLAMA, WORDS, seed=0)
    decayed = [weight for name, weight in model.named_parameters() if "norm" not in name]
    kept = [weight for name, weight in model.named_parameters() if "norm" in name]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.999), eps=1e-8)
    losses = []
    for factor in factors:
        total, count = torch.zeros(()), 0
        for item in data:
            start = tokenizer(f"<user> {item.prompt.messages[0].content} <assistant>")["input_ids"]
            end = tokenizer(f"{item.response} <eos>")["input_ids"]
            logits = model(torch.tensor([start + end])).logits[0, len(start) - 1 : -1]
            total, count = total + F.cross_entropy(logits, torch.tensor(end), reduction="sum"), count + len(end)
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * factor
        optimizer.step()
        optimizer.zero_grad()
        losses.append((total / count).item())
    return model.state_dict(), losses


@pytest.mark.parametrize(
    ("changes", "factors"),
    [
        ({"max_grad_norm": 100.0}, [1, 1, 1, 1]),
        ({"max_grad_norm": 1.5, "weight_decay": 0.3}, [1, 1, 1, 1]),
        ({"schedule": "linear"}, [1, 3 / 4, 2 / 4, 1 / 4]),
        ({"schedule": "linear", "warmup_steps": 2}, [0, 1 / 2, 1, 1 / 2]),
        ({"schedule": "constant", "warmup_steps": 2}, [0, 1 / 2, 1, 1]),
        ({"schedule": "cosine"}, [(1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]),
    ],
    ids=["plain", "decay and clipping", "linear", "linear with warmup", "constant with warmup", "cosine"],
)
def test_a_fit_equals_a_plain_loop(changes: dict[str, Any], factors: list[float], tmp_path: Path) -> None:
    """7 items in one update of 16, 4 epochs: no order to agree on.

    The gradients' norms are 2.0, 1.8, 1.4 and 1.3: clipping at 1.5 meets the first two, so the scale of a gradient shows.
    """
    recipe = Recipe(**{"learning_rate": 1e-2, "epochs": 4, "batch_size": 16, "micro_batch_size": 2, **changes})
    model, result = fit_policy(demonstrations(7), recipe, tmp_path)
    weights, losses = plain_loop(demonstrations(7), factors, recipe)
    assert apart(model.state_dict(), weights) < 1e-5
    assert result.losses == pytest.approx(losses, abs=1e-3)


def test_a_fit_depends_on_its_seed_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = fit_reward(pairs(40), RECIPE, tmp_path, seed=5)[0].state_dict()
    torch.manual_seed(2)
    assert apart(first, fit_reward(pairs(40), RECIPE, tmp_path, seed=5)[0].state_dict()) == 0
    assert apart(first, fit_reward(pairs(40), RECIPE, tmp_path, seed=6)[0].state_dict()) > 0


# --- what a recipe freezes or adapts ------------------------------------------------------------------------------------------


def test_frozen_weights_are_bit_equal(tmp_path: Path) -> None:
    start = policies.new_policy(LLAMA, WORDS, seed=0)[0].state_dict()
    model, _ = fit_policy(demonstrations(16), RECIPE.model_copy(update={"freeze": r"embed_tokens|self_attn\.[qk]_proj"}), tmp_path)
    for name, weight in model.state_dict().items():
        frozen = "embed_tokens" in name or "q_proj" in name or "k_proj" in name
        assert torch.equal(weight, start[name]) == frozen, name


@pytest.mark.parametrize("modules", [("q_proj",), "all-linear"])
def test_a_reward_models_head_is_trained_beside_adapters(modules: Any, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    recipe = RECIPE.model_copy(update={"learning_rate": 1e-2, "epochs": 2, "lora": Lora(rank=2, target_modules=modules)})
    spec = NeuralReward(architecture=LLAMA, axis_heads=True, training=recipe)
    start, _ = rewards.new_reward_model(spec, None, AXES, WORDS, seed=0)
    train_reward_model(pairs(16), RankingLoss(), spec, tmp_path / "trained")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "trained")
    assert model.config.label2id == {"helpful": 0, "harmless": 1}
    assert model.state_dict().keys() == start.state_dict().keys()
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, start.state_dict()[name])}
    expected = {name for name in start.state_dict() if "q_proj" in name or (modules == "all-linear" and "_proj" in name)}
    assert moved == expected | {"score.weight"}


# --- counts -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "updates"), [(1, 3), (2, 6), (0.5, 2), (1.5, 5), (0.01, 1)])
def test_updates_of_whole_and_broken_epochs(epochs: float, updates: int, tmp_path: Path) -> None:
    """37 items in updates of 16 are 3 an epoch; half an epoch is 1.5, and begun updates are finished."""
    recipe = RECIPE.model_copy(update={"epochs": epochs, "micro_batch_size": 8})
    _, result = fit_policy(demonstrations(37), recipe, tmp_path)
    assert result.updates == updates == recipe.updates(37) == len(result.losses)


def test_tokens_are_those_read_without_padding(tmp_path: Path) -> None:
    """A demonstration: <user>, words, <assistant>, words, <eos>; a pair twice its prompt. Three epochs read all three times."""
    recipe = RECIPE.model_copy(update={"epochs": 3})

    def words(text: str) -> int:
        return len(text.split())

    tokens = sum(words(item.prompt.messages[0].content) + words(item.response) + 3 for item in demonstrations(21))
    assert fit_policy(demonstrations(21), recipe, tmp_path)[1].tokens == 3 * tokens
    tokens = sum(2 * words(pair.prompt.messages[0].content) + words(pair.chosen) + words(pair.rejected) + 6 for pair in pairs(21))
    assert fit_reward(pairs(21), recipe, tmp_path)[1].tokens == 3 * tokens


@pytest.fixture
def start(tmp_path: Path) -> Path:
    policies.save_model(*policies.new_policy(LLAMA, WORDS, seed=0), tmp_path / "start")
    return tmp_path / "start"


def test_counts_of_policy_training(start: Path, tmp_path: Path) -> None:
    """2,560 weights multiply a token: 4 x 256 attention, 3 x 512 MLP; 15 x 16 of the output layer a token of a response, its end included.

    In two epochs: 6 FLOPs a weight and token read, 6 an output weight and response token (logits of one chunk are computed once), and
    12 x 16 a pair of tokens of a text; DPO's reference reads each pair once more: 2, 2 and 4 x 16. Frozen MLPs save their own gradient,
    2 a token.
    """
    weights, output = 4 * 16 * 16 + 3 * 16 * 32, 15 * 16

    def responses(*texts: str) -> int:
        return sum(len(text.split()) + 1 for text in texts)

    def squares(item: Any, *texts: str) -> int:
        return sum((len(item.prompt.messages[0].content.split()) + len(text.split()) + 3) ** 2 for text in texts)

    attention = 2 * 12 * 16 * sum(squares(item, item.response) for item in demonstrations(20))
    logits = 2 * 6 * output * sum(responses(item.response) for item in demonstrations(20))
    pair_squares = sum(squares(pair, pair.chosen, pair.rejected) for pair in pairs(20))
    pair_logits = sum(responses(pair.chosen, pair.rejected) for pair in pairs(20))
    recipe = RECIPE.model_copy(update={"epochs": 2})
    counts = train_policy(start, demonstrations(20), SFTLoss(), recipe, tmp_path / "sft")
    assert counts["policy_updates"] == 4
    assert counts["flops"] == pytest.approx(6 * weights * counts["policy_train_tokens"] + logits + attention)
    counts = train_policy(start, pairs(20), DPOLoss(0.1), recipe, tmp_path / "dpo", reference=start)
    assert counts["policy_updates"] == 4
    spent = 7 * weights * counts["policy_train_tokens"] + (2 * 6 + 2) * output * pair_logits + (2 * 12 + 4) * 16 * pair_squares
    assert counts["flops"] == pytest.approx(spent)
    frozen = recipe.model_copy(update={"freeze": "mlp"})
    counts = train_policy(start, demonstrations(20), SFTLoss(), frozen, tmp_path / "frozen")
    assert counts["flops"] == pytest.approx((6 * weights - 2 * 3 * 16 * 32) * counts["policy_train_tokens"] + logits + attention)


# --- it learns ----------------------------------------------------------------------------------------------------------------


def test_sft_lowers_the_loss_and_leaves_a_folder(start: Path, tmp_path: Path) -> None:
    """Answers that are their prompts' last word; the losses of all updates lie beside the weights."""
    data = [Demonstration(prompt(text), text.split()[-1]) for text in sentences(64, 1)]
    recipe = RECIPE.model_copy(update={"learning_rate": 1e-2, "epochs": 10})
    counts = train_policy(start, data, SFTLoss(), recipe, tmp_path / "trained")
    losses = json.loads((tmp_path / "trained" / "training_losses.json").read_text())
    assert len(losses) == counts["policy_updates"] == 40
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) / 2
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (start, tmp_path / "trained"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "trained")
    ids = torch.tensor([tokenizer("<user> how do i boil <assistant>")["input_ids"]])
    boil = tokenizer.convert_tokens_to_ids("boil")
    with torch.no_grad():
        assert after(input_ids=ids).logits[0, -1].softmax(-1)[boil] > 2 * before(input_ids=ids).logits[0, -1].softmax(-1)[boil]


def test_dpo_prefers_what_is_chosen(start: Path, tmp_path: Path) -> None:
    """Chosen begins with "rinse", rejected with "boil": the odds of the two move apart; the first loss is log 2."""
    data = [Pair(prompt(text), f"rinse {text}", f"boil {text}") for text in sentences(32, 1, most=4)]
    recipe = RECIPE.model_copy(update={"learning_rate": 1e-2, "epochs": 5})
    train_policy(start, data, DPOLoss(0.5), recipe, tmp_path / "dpo", reference=start)
    losses = json.loads((tmp_path / "dpo" / "training_losses.json").read_text())
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3)
    assert losses[-1] < 0.3


def test_rrhf_turns_to_the_best_answer(start: Path, tmp_path: Path) -> None:
    """Scored "rinse" over "boil" over "no". In the end "rinse" is the likeliest by token, and "boil", never imitated, before "no"."""
    data = [Group(prompt(text), (f"rinse {text}", f"boil {text}", f"no {text}"), (2.0, 1.0, 0.0)) for text in sentences(32, 1, most=4)]
    recipe = RECIPE.model_copy(update={"learning_rate": 1e-2, "epochs": 5})
    counts = train_policy(start, data, RRHFLoss(5.0), recipe, tmp_path / "rrhf")
    assert counts["policy_updates"] == 10
    losses = json.loads((tmp_path / "rrhf" / "training_losses.json").read_text())
    assert losses[-1] < losses[0]
    for folder, low, high in ((start, 0.0, 0.2), (tmp_path / "rrhf", 0.8, 1.0)):
        model, tokenizer = policies.load_policy(folder)
        batch = encoding.collate(encoding.encode_items(tokenizer, data, RRHFLoss(), SPEC), 0)
        ids, attention, mask = (batch[name].flatten(0, 1) for name in ("input_ids", "attention_mask", "response_mask"))
        with torch.no_grad():
            logits = model.eval()(input_ids=ids, attention_mask=attention).logits
        logps = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2) * mask[:, 1:]
        by_token = (logps.sum(1) / mask.sum(1)).view(3, -1)
        in_order = (by_token[0] > by_token[1]) & (by_token[1] > by_token[2])
        assert low <= in_order.float().mean().item() <= high


def test_a_reward_model_learns_a_planted_preference(tmp_path: Path) -> None:
    """People prefer the answer with "rinse" in it, wherever it stands; 100 pairs it never saw, more than 95 % right."""

    def planted(n: int, seed: int) -> list[Pair]:
        generator = np.random.default_rng(seed)
        planted_pairs = []
        for question, answer in zip(sentences(n, seed), sentences(n, seed + 1), strict=True):
            words = [word for word in answer.split() if word != "rinse"]
            place = generator.integers(len(words) + 1)
            chosen, rejected = (" ".join([*words[:place], word, *words[place:]]) for word in ("rinse", "no"))
            planted_pairs.append(Pair(prompt(question), chosen, rejected))
        return planted_pairs

    recipe = Recipe(learning_rate=1e-2, epochs=4, batch_size=16)
    spec = NeuralReward(architecture=LLAMA, max_tokens=32, training=recipe)
    counts = train_reward_model(planted(200, 1), RankingLoss(), spec, tmp_path / "trained")
    assert counts["rm_updates"] == 4 * 13
    held_out = planted(100, 50)
    items = [(pair.prompt, text) for pair in held_out for text in (pair.chosen, pair.rejected)]
    values, _ = rewards.score(*rewards.load_reward_model(tmp_path / "trained"), items, spec)
    assert np.mean(np.array(values[::2]) > np.array(values[1::2])) > 0.95


@pytest.mark.parametrize("tied", [True, False])
def test_a_sharded_models_weights_are_gathered_into_a_copy_that_has_none(tied: bool) -> None:
    """Until then it holds none; afterwards it computes what the model does, with weights tied as they were."""
    model, _ = policies.new_policy({**LLAMA, "tie_word_embeddings": tied}, WORDS, seed=0)
    whole = _without_weights(model)
    assert all(weight.is_meta for weight in whole.parameters())
    whole.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    whole.tie_weights()
    ids = torch.arange(5, 13)[None]
    assert torch.equal(whole(ids).logits, model(ids).logits)
    assert (whole.lm_head.weight is whole.get_input_embeddings().weight) == tied


def test_processes_share_the_references_reading_batch_by_batch() -> None:
    """Together three processes read every item once, in batches as of one process: the same bits, whatever the padding does."""
    model, tokenizer = policies.new_policy(LLAMA, WORDS, seed=0)
    items = encoding.encode_items(tokenizer, pairs(23), DPOLoss(0.1), SPEC)
    alone = encoding.response_logps(model, items, 0, 4)
    shares = [processes_share(items, 4, process, 3) for process in range(3)]
    assert sorted(place for share in shares for place in share) == list(range(23))
    for share in shares:
        for place, sides in zip(share, encoding.response_logps(model, [items[place] for place in share], 0, 4), strict=True):
            assert all(torch.equal(*side) for side in zip(sides, alone[place], strict=True))
    assert processes_share(items[:3], 4, 1, 2) == []
