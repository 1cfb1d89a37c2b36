"""Neural reward models: a score belongs to its text alone, whatever is scored beside it."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_models import policy_folder, tokenizer
from tiny_tokenizers import WORDS, bert_tokenizer, chatml_tokenizer, prompt
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from apo_bench.config.schema import NeuralReward, Recipe
from apo_bench.errors import InputError
from apo_bench.losses import APOLoss, RankingLoss
from apo_bench.models import policy as policies
from apo_bench.models import reward as rewards
from apo_bench.models.tokenize import ChatFormat
from apo_bench.types import Pair, Prompt

LLAMA = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "initializer_range": 0.3,
}  # fmt: skip
BERT = {**LLAMA, "model_type": "bert", "max_position_embeddings": 64}
AXES = ("helpful", "harmless")
ITEMS = [
    (prompt("how do i wash it", "rinse", "and dry it"), "no"),
    (prompt("dry"), ""),
    (prompt("boil"), "rinse and dry and rinse and dry and boil"),
    (prompt("boil", axis="harmless"), "no"),
    (prompt("how do i"), "wash it"),
    (prompt("dry"), "no no"),
]


def settings(**fields: Any) -> NeuralReward:
    return NeuralReward(**{"path": ".", "max_tokens": 48, "training": Recipe(learning_rate=1e-2), **fields})


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What reward models start from: a decoder that pads with its end token, and an encoder."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("decoder", "encoder")}
    torch.manual_seed(0)
    tokenizer = chatml_tokenizer()
    config = AutoConfig.for_model(**LLAMA, **policies.token_ids(tokenizer))
    policies.save_model(AutoModelForCausalLM.from_config(config), tokenizer, folders["decoder"])
    tokenizer = bert_tokenizer()
    config = AutoConfig.for_model(**BERT, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    policies.save_model(AutoModel.from_config(config), tokenizer, folders["encoder"])
    return folders


@pytest.fixture(scope="module", params=["decoder", "encoder"])
def reward_model(request: pytest.FixtureRequest, bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    policies.save_model(*rewards.new_reward_model(settings(), bases[request.param], AXES, None, seed=3), folder)
    return folder


def scores(folder: Path, items: Sequence[tuple[Prompt, str]], **fields: Any) -> list[float]:
    return rewards.score(*rewards.load_reward_model(folder), items, settings(**fields))[0]


@pytest.mark.slow
def test_a_score_does_not_depend_on_its_batch(reward_model: Path) -> None:
    """All together, in twos, alone, in reverse: the same to 1e-4; and different texts differ by far more."""
    alone = [scores(reward_model, [item])[0] for item in ITEMS]
    for size in (1, 2, 64):
        assert scores(reward_model, ITEMS, score_batch_size=size) == pytest.approx(alone, abs=1e-4)
    assert scores(reward_model, ITEMS[::-1]) == pytest.approx(alone[::-1], abs=1e-4)
    assert min(b - a for a, b in itertools.pairwise(sorted({*alone[:3], *alone[4:]}))) > 1e-3


def test_the_score_is_read_where_the_text_ends(reward_model: Path) -> None:
    """Without padding, by hand: a decoder's last hidden state, here the end token's, through its head; an encoder's own pooling."""
    model = AutoModelForSequenceClassification.from_pretrained(reward_model).eval()
    tokenizer = AutoTokenizer.from_pretrained(reward_model)
    by_hand = []
    for item in ITEMS:
        ids = ChatFormat(tokenizer).encode_scored(*item, 48).ids
        with torch.no_grad():
            states = model.base_model(torch.tensor([ids])).last_hidden_state
            if hasattr(model, "score"):
                assert ids[-1] == tokenizer.eos_token_id
                by_hand.append((states[0, -1] @ model.score.weight[0]).item())
            else:
                pooled = torch.tanh(states[0, 0] @ model.bert.pooler.dense.weight.T + model.bert.pooler.dense.bias)
                by_hand.append((pooled @ model.classifier.weight[0] + model.classifier.bias[0]).item())
    assert scores(reward_model, ITEMS) == pytest.approx(by_hand, abs=1e-4)


def test_each_distinct_text_is_computed_once_and_charged_each_time(reward_model: Path) -> None:
    """Five items, of them two distinct: two rows go through the model, five are charged, equal ones score equal.

    2 FLOPs a token and weight that is not looked up, 4 times the width for each layer and pair of tokens.
    """
    rows = []

    def count(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if type(module).__name__.endswith("ForSequenceClassification"):
            rows.append(len(output.logits))

    items = [ITEMS[0], ITEMS[2], ITEMS[0], ITEMS[0], ITEMS[2]]
    loaded = rewards.load_reward_model(reward_model)
    hook = torch.nn.modules.module.register_module_forward_hook(count, with_kwargs=True)
    values, counts = rewards.score(*loaded, items, settings())
    hook.remove()
    assert rows == [2]
    assert values[0] == values[2] == values[3] != values[1] == values[4]
    tokenizer, model = AutoTokenizer.from_pretrained(reward_model), AutoModelForSequenceClassification.from_pretrained(reward_model)
    first, second = (len(ChatFormat(tokenizer).encode_scored(*ITEMS[place], 48).ids) for place in (0, 2))
    tokens = 3 * first + 2 * second
    looked_up = ("embed_tokens", "word_emb", "position_emb", "token_type_emb")
    matrices = {name: weight.numel() for name, weight in model.named_parameters() if weight.dim() > 1}
    pooled = sum(count for name, count in matrices.items() if "pooler" in name or "classifier" in name)  # one row a sequence
    multiplying = sum(count for name, count in matrices.items() if not any(part in name for part in looked_up)) - pooled
    pairs = 3 * first**2 + 2 * second**2
    flops = 2 * (multiplying * tokens + pooled * len(items)) + 4 * model.config.num_hidden_layers * model.config.hidden_size * pairs
    assert counts == {
        "scored_responses": 5, "scored_tokens": tokens, "flops": pytest.approx(flops), "truncated_scored": 0,
    }  # fmt: skip


def test_pairs_of_unlike_length_are_computed_apart(reward_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair whose prompt has 1 word beside one whose prompt has 40: terms and gradients are those of one pass over the padded batch."""
    model, tokenizer = rewards.load_reward_model(reward_model)
    pairs = [Pair(prompt(text), "no", "boil it") for text in ("wash it " * 20, "how")]
    batch = rewards.collate(rewards.pair_items(model, tokenizer, pairs, settings()), tokenizer.pad_token_id)
    widths: list[int] = []
    model.register_forward_hook(lambda module, args, options, output: widths.append(options["input_ids"].shape[1]), with_kwargs=True)

    def terms_and_gradients() -> list[torch.Tensor]:
        model.zero_grad()
        terms = rewards.loss_terms(model.eval(), batch, RankingLoss())
        terms.sum().backward()
        return [terms.detach(), *(weight.grad.clone() for weight in model.parameters() if weight.grad is not None)]

    apart = terms_and_gradients()
    monkeypatch.setattr("apo_bench.models.padding.like_lengths", lambda lengths: [slice(0, len(lengths))])
    torch.testing.assert_close(apart, terms_and_gradients(), atol=1e-5, rtol=1e-4)
    assert widths[0] < widths[1] == widths[2] == batch["input_ids"].shape[1]


def test_truncated_texts_are_counted(reward_model: Path) -> None:
    values, counts = rewards.score(*rewards.load_reward_model(reward_model), [*ITEMS, ITEMS[0]], settings(max_tokens=12))
    tokenizer = AutoTokenizer.from_pretrained(reward_model)
    long = sum(len(ChatFormat(tokenizer).encode_scored(*item, 99).ids) > 12 for item in [*ITEMS, ITEMS[0]])
    assert (counts["truncated_scored"], len(values)) == (long, 7)
    assert long > 0


def test_the_head_depends_on_the_seed_alone(bases: dict[str, Path]) -> None:
    def head(seed: int) -> torch.Tensor:
        return rewards.new_reward_model(settings(), bases["decoder"], AXES, None, seed)[0].score.weight

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = head(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(head(0), first)
    assert not torch.equal(head(1), first)
    assert first.std() > 0


def test_the_body_is_the_base_models_whatever_the_seed(bases: dict[str, Path]) -> None:
    base = AutoModelForCausalLM.from_pretrained(bases["decoder"]).model.state_dict()
    for seed in (0, 1):
        model, tokenizer = rewards.new_reward_model(settings(), bases["decoder"], AXES, None, seed)
        for name, weight in base.items():
            assert torch.equal(model.model.state_dict()[name][: len(weight)], weight), name
        assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_body_without_a_row_for_padding_gets_the_same_one_again(tmp_path: Path) -> None:
    """A reward model of adapters: the configuration it was stored with counts the row that its body's file lacks."""
    own = tokenizer()
    own.add_special_tokens({"pad_token": "<extra pad>"})
    folder = policy_folder(tmp_path / "body", own, spare=-1, pad_token_id=None)
    spec = NeuralReward(kind="neural", path=str(folder), training=Recipe(learning_rate=1e-3))
    trained, _ = rewards.new_reward_model(spec, folder, ["helpful"], None, seed=0)
    trained.config.save_pretrained(tmp_path / "adapters")
    loaded, _ = rewards.load_reward_model(folder, labels_of=tmp_path / "adapters")
    embeddings = [model.get_input_embeddings().weight for model in (trained, loaded)]
    assert embeddings[0].shape[0] == len(own)
    assert torch.equal(*embeddings)


def test_an_architecture_of_its_own(tmp_path: Path) -> None:
    """The task's vocabulary is its tokenizer's, and it is saved, loaded and scored like any other."""
    spec = settings(path=None, architecture=LLAMA)
    model, tokenizer = rewards.new_reward_model(spec, None, AXES, WORDS, seed=0)
    assert len(tokenizer) == model.config.vocab_size == 5 + len(WORDS)
    again, _ = rewards.new_reward_model(spec, None, AXES, WORDS, seed=0)
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())
    policies.save_model(model, tokenizer, tmp_path)
    assert scores(tmp_path, ITEMS[:3]) == pytest.approx([scores(tmp_path, [item])[0] for item in ITEMS[:3]], abs=1e-4)


def test_the_axis_is_an_input_only_if_asked_for(reward_model: Path) -> None:
    same = [(prompt("boil", axis=axis), "rinse") for axis in AXES]
    first, second = scores(reward_model, same)
    assert first == second
    first, second = scores(reward_model, same, axis_input=True)
    assert abs(first - second) > 1e-4


@pytest.mark.parametrize("base", ["decoder", "encoder"])
def test_each_axis_reads_its_own_head(bases: dict[str, Path], tmp_path: Path, base: str) -> None:
    """Two outputs, saved and loaded: a prompt of an axis reads that axis's; an axis without one is refused."""
    spec = settings(axis_heads=True)
    model, tokenizer = rewards.new_reward_model(spec, bases[base], AXES, None, seed=3)
    policies.save_model(model, tokenizer, tmp_path)
    ids = ChatFormat(tokenizer).encode_scored(prompt("boil"), "rinse", 48).ids
    with torch.no_grad():
        outputs = model.eval()(torch.tensor([ids])).logits[0].tolist()
    assert abs(outputs[0] - outputs[1]) > 1e-4
    assert scores(tmp_path, [(prompt("boil", axis=axis), "rinse") for axis in AXES], axis_heads=True) == pytest.approx(outputs, abs=1e-4)
    with pytest.raises(InputError, match="no output for axis 'kind'"):
        scores(tmp_path, [(prompt("boil", axis="kind"), "rinse")])


def test_loss_terms_by_hand(bases: dict[str, Path]) -> None:
    """-log sigmoid(chosen - rejected) of each pair's scores, each side alone; a golden pair weighs 0.1 / 4 with APO's loss."""
    spec = settings(axis_heads=True)
    model, tokenizer = rewards.new_reward_model(spec, bases["decoder"], AXES, None, seed=3)
    model.eval()
    pairs = [
        Pair(prompt("how do i wash it"), "rinse", "no no no no"),
        Pair(prompt("boil", axis="harmless"), "no", "boil", source="golden_over_sample"),
    ]

    def score(prompt: Prompt, text: str) -> float:
        ids = ChatFormat(tokenizer).encode_scored(prompt, text, 48).ids
        return model(torch.tensor([ids])).logits[0, AXES.index(prompt.axis)].item()

    batch = rewards.collate(rewards.pair_items(model, tokenizer, pairs, spec), tokenizer.pad_token_id)
    with torch.no_grad():
        margins = torch.tensor([score(pair.prompt, pair.chosen) - score(pair.prompt, pair.rejected) for pair in pairs])
        plain = rewards.loss_terms(model, batch, RankingLoss())
        apo = rewards.loss_terms(model, batch, APOLoss(apo_coeff=0.1, samples_per_prompt=4))
    by_hand = -torch.log(1 / (1 + torch.exp(-margins)))
    torch.testing.assert_close(plain, by_hand, atol=1e-4, rtol=0)
    torch.testing.assert_close(apo, by_hand * torch.tensor([1, 0.025]), atol=1e-4, rtol=0)
