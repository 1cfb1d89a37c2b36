"""Policies: what is sampled, counted and compared, on a random model and on one trained to echo."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from apo_bench.config.schema import PolicyModel, Recipe, Sampling
from apo_bench.errors import InputError
from apo_bench.losses import DPOLoss, RRHFLoss, SFTLoss, token_logps
from apo_bench.models import policy as policies
from apo_bench.models.tokenize import PAD, encode_prompt, encode_response, word_tokenizer
from apo_bench.training.trainer import train_policy
from apo_bench.types import Demonstration, Group, Message, Pair, Prompt, Response, prompt_id

LLAMA = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
ONE_TOKEN = Sampling(max_new_tokens=1)


def prompt(text: str) -> Prompt:
    messages = (Message("user", text),)
    return Prompt(prompt_id("helpful", messages), messages, "helpful", text)


PROMPTS = [prompt(text) for text in ("how do i wash it", "dry", "boil no and", "wash it and dry it and rinse it")]


def sampled(policy: Any, prompts: Sequence[Prompt], n: int = 1, seed: int = 0, **fields: Any) -> list[Response]:
    folder, spec = policy
    return policies.sample(folder, prompts, n, spec.sampling.model_copy(update=fields), spec, seed)[0]


# --- the draw -----------------------------------------------------------------------------------------------------------------


def test_the_draw_depends_on_its_seed_and_not_on_the_global_generator(tiny_policy: Any) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = sampled(tiny_policy, PROMPTS, n=4, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert sampled(tiny_policy, PROMPTS, n=4, seed=7) == first
    assert sampled(tiny_policy, PROMPTS, n=4, seed=8) != first


def test_n_responses_a_prompt_in_the_prompts_order(tiny_policy: Any) -> None:
    """Batches are sorted by length (2 prompts of 3 answers in a batch of 6), answers are not."""
    responses = sampled(tiny_policy, PROMPTS, n=3, batch_size=6)
    assert [one.prompt for one in responses] == [one for one in PROMPTS for _ in range(3)]
    assert len({one.text for one in responses[:3]}) > 1  # three draws, not one repeated


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PolicyModel]:
    """A policy trained to answer one word with that word, whatever filler comes before it."""
    folder = tmp_path_factory.mktemp("echo")
    words = "a b c d e f g h".split()
    policies.save_model(*policies.new_policy({**LLAMA, "hidden_size": 32}, [*words, "filler"], seed=0), folder / "start")
    shown = [Demonstration(prompt("filler " * count + word), word) for word in words for count in range(4)]
    recipe = Recipe(learning_rate=2e-2, epochs=60, batch_size=32)
    spec = PolicyModel(path=".", max_prompt_tokens=16, max_response_tokens=4, training=recipe, sampling=Sampling(max_new_tokens=4))
    train_policy(folder / "start", shown, SFTLoss(), None, spec, recipe, 0, folder / "trained")
    return folder / "trained", spec


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_every_answer_belongs_to_its_prompt(echo: Any, batch_size: int) -> None:
    """Prompts of mixed lengths in no order of length: sorted, batched, padded on the left and put back."""
    asked = [prompt("filler " * count + word) for count, word in zip((3, 0, 2, 1, 0, 3, 1, 2), "hgfedcba", strict=True)]
    responses = sampled(echo, asked, n=2, temperature=0.05, batch_size=batch_size)
    assert [one.text for one in responses] == [word for word in "hgfedcba" for _ in range(2)]
    assert {(one.tokens, one.finish) for one in responses} == {(2, "eos")}  # the word and the end


def test_left_padding_does_not_change_the_distribution(tiny_policy: Any) -> None:
    """At temperature 1e-4 the most probable answer: the same alone as beside longer prompts."""
    together = sampled(tiny_policy, PROMPTS, temperature=1e-4)
    alone = [sampled(tiny_policy, [one], temperature=1e-4)[0] for one in PROMPTS]
    assert together == alone
    assert len({one.text for one in together}) > 1


def test_top_k_0_and_top_p_1_leave_the_tail(tmp_path: Path) -> None:
    """300 words of nearly equal weight: 300 single draws hit far more than 50 of them (transformers' own top_k default)."""
    policies.save_model(*policies.new_policy(LLAMA, [f"w{number}" for number in range(300)], seed=0), tmp_path)
    spec = PolicyModel(path=".", max_prompt_tokens=4, training=Recipe(learning_rate=1), sampling=ONE_TOKEN)
    assert len({one.text for one in sampled((tmp_path, spec), [prompt("w1")], n=300, batch_size=300)}) > 100
    assert len({one.text for one in sampled((tmp_path, spec), [prompt("w1")], n=300, batch_size=300, top_k=7)}) <= 7


def test_draws_follow_the_models_probabilities(tiny_policy: Any) -> None:
    """4,000 first tokens against the softmax of a forward pass without <pad>: each frequency within 5 standard errors."""
    model, tokenizer = policies.load_policy(tiny_policy[0])
    ids = encode_prompt(tokenizer, PROMPTS[0], "", 16).ids
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1]
    logits[tokenizer.pad_token_id] = -math.inf
    expected = logits.softmax(dim=-1)
    drawn = sampled(tiny_policy, PROMPTS[:1], n=4000, batch_size=4000, max_new_tokens=1)
    for word in "how do i wash it rinse and dry no boil".split():
        p = expected[tokenizer.convert_tokens_to_ids(word)].item()
        assert sum(one.text == word for one in drawn) / 4000 == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / 4000))


# --- counts and finishes ------------------------------------------------------------------------------------------------------


def test_tokens_finishes_and_counts(tiny_policy: Any) -> None:
    """A word is a token. With the end: words + 1, finish eos; without: max_new_tokens of them, finish length.

    Per token 2 FLOPs a weight outside the looked-up embedding: 4 projections of 16 x 16, an MLP of 3 x 16 x 32, norms of 3 x 16, an
    output layer of 15 words x 16. Each of n answers reads its prompt (<user>, words, <assistant>). Attention: 4 FLOPs times 16 for each
    pair of tokens of the prompt, and for each of an answer's tokens and one before it.
    """
    folder, spec = tiny_policy
    responses, counts = policies.sample(folder, PROMPTS, 50, spec.sampling, spec, 3)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert {one.finish for one in responses} == {"eos", "length"}
    assert all(one.tokens == 6 for one in responses if one.finish == "length")
    assert all(1 <= one.tokens <= 6 for one in responses)
    for one in responses:  # this model may draw its special tokens too, and they are no text
        assert len(tokenizer(one.text)["input_ids"]) <= one.tokens - (one.finish == "eos")
    weights = 4 * 16 * 16 + 3 * 16 * 32 + 3 * 16 + 15 * 16
    read = [len(one.prompt.messages[0].content.split()) + 2 for one in responses]
    tokens = sum(one.tokens for one in responses)
    seen = sum(before**2 + before * one.tokens + one.tokens**2 / 2 for before, one in zip(read, responses, strict=True))
    flops = 2 * weights * (sum(read) + tokens) + 4 * 16 * seen
    assert counts == {
        "sampled_responses": 200, "sampled_tokens": tokens, "flops": pytest.approx(flops), "truncated_prompts": 0,
    }  # fmt: skip


def test_truncated_prompts_are_counted_once_a_prompt(tiny_policy: Any) -> None:
    folder, spec = tiny_policy
    narrow = spec.model_copy(update={"max_prompt_tokens": 6})
    _, counts = policies.sample(folder, PROMPTS, 3, ONE_TOKEN, narrow, 0)
    assert counts["truncated_prompts"] == 2  # of 5 and 8 words, with two specials


def constant_policy(folder: Path, weights: dict[str, float], tokenizer: Any) -> Path:
    """A policy whose next token has these probabilities (over their sum) whatever came before.

    Every embedding is the first unit vector and the layer adds nothing, so the normalised state is (4, 0, ..., 0) in 16 dimensions and
    the logits are 4 times the output layer's first column.
    """
    config = AutoConfig.for_model(**LLAMA, **policies.token_ids(tokenizer), rms_norm_eps=0.0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0) if "norm" in name else weight.zero_()
        model.get_input_embeddings().weight[:, 0] = 1.0
        model.lm_head.weight[:, 0] = -100.0
        for token, share in weights.items():
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(token), 0] = math.log(share) / 4
    policies.save_model(model, tokenizer, folder)
    return folder


def settings_for(max_new_tokens: int, max_response_tokens: int = 32) -> PolicyModel:
    return PolicyModel(
        path=".", max_prompt_tokens=16, max_response_tokens=max_response_tokens,
        training=Recipe(learning_rate=1), sampling=Sampling(max_new_tokens=max_new_tokens),
    )  # fmt: skip


def test_the_padding_token_is_never_drawn(tmp_path: Path) -> None:
    """<pad> has 4/5 of the probability, yet all 8 tokens are words, and a mix of them."""
    folder = constant_policy(tmp_path, {"<pad>": 8, "a": 1, "b": 1}, word_tokenizer(["a", "b"]))
    responses = sampled((folder, settings_for(8)), [prompt("a")], n=20)
    assert {(one.tokens, one.finish, len(one.text.split())) for one in responses} == {(8, "length", 8)}
    assert len({one.text for one in responses}) > 1


def turn_tokenizer() -> Any:
    """No chat template; a next human turn is one token."""
    tokens = ["<end>", "?", "\n\nHuman:", "\n\nAssistant:", " hi", " ho", "abcdef"]  # transformers tries stop strings after the last
    backend = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("\n\n\\w+:| h[io]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", unk_token="?", pad_token="<end>")


def test_without_a_template_a_next_human_turn_ends_a_response(tmp_path: Path) -> None:
    """Each step: " hi" 1/2, a human turn 1/4, the end 1/4, at most 3 steps: 1/8 of answers are cut, the rest ends half and half."""
    folder = constant_policy(tmp_path, {" hi": 2, "\n\nHuman:": 1, "<end>": 1}, turn_tokenizer())
    responses = sampled((folder, settings_for(3)), [prompt("hi"), prompt("ho hi ho")], n=400, batch_size=800)
    for one in responses:
        assert "Human" not in one.text
        assert one.tokens == one.text.count("hi") + (one.finish != "length")  # the ending token counts
        assert one.tokens == 3 or one.finish != "length"
    shares = {finish: sum(one.finish == finish for one in responses) / 800 for finish in ("eos", "turn", "length")}
    assert shares == pytest.approx({"eos": 7 / 16, "turn": 7 / 16, "length": 1 / 8}, abs=5 * 0.5 / math.sqrt(800))


# --- KL -----------------------------------------------------------------------------------------------------------------------

ANSWERS = [Response(PROMPTS[0], "rinse and dry", 4, "eos"), Response(PROMPTS[1], "no", 2, "eos"), Response(PROMPTS[3], "", 1, "eos")]


def test_kl_with_itself_is_0(tiny_policy: Any) -> None:
    folder, spec = tiny_policy
    assert policies.kl(folder, folder, ANSWERS, spec, 2) == [0.0, 0.0, 0.0]


@pytest.fixture(scope="module")
def constants(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two policies: (a 1/2, b 1/4, <eos> 1/4) and (a 1/4, b 1/4, <eos> 1/2)."""
    folder, tokenizer = tmp_path_factory.mktemp("constants"), word_tokenizer(["a", "b"])
    p = constant_policy(folder / "p", {"a": 2, "b": 1, "<eos>": 1}, tokenizer)
    return p, constant_policy(folder / "q", {"a": 1, "b": 1, "<eos>": 2}, tokenizer)


def test_kl_of_constant_policies_by_hand(constants: tuple[Path, Path]) -> None:
    """KL(p || q) = 1/2 log 2 + 1/4 log 1 - 1/4 log 2 = log 2 / 4 at every token of the response, prompts apart.

    "a b" with its end has 3 tokens, cut off 2; after a human turn, which is no part of the text, 2.
    """
    short, long = prompt("a"), prompt("a b a b a b a b")
    responses = [
        Response(short, "a b", 3, "eos"), Response(long, "a b", 3, "eos"), Response(long, "a b", 2, "length"),
        Response(short, "a b", 3, "turn"), Response(short, "", 1, "eos"), Response(short, "", 1, "turn"),
    ]  # fmt: skip
    nats = policies.kl(*constants, responses, settings_for(8), 4)
    assert nats == pytest.approx([count * math.log(2) / 4 for count in (3, 3, 2, 2, 1, 0)], abs=1e-5)


def test_kl_leaves_out_the_padding_token(constants: tuple[Path, Path], tmp_path: Path) -> None:
    """It is never drawn, so its share changes nothing: log 2 / 4 at both tokens, as above."""
    p = constant_policy(tmp_path, {"<pad>": 4, "a": 2, "b": 1, "<eos>": 1}, word_tokenizer(["a", "b"]))
    assert policies.kl(p, constants[1], [Response(prompt("a"), "b", 2, "eos")], settings_for(8), 1) == pytest.approx(
        [math.log(2) / 2], abs=1e-5
    )


def test_kl_counts_all_tokens_of_a_response_as_long_as_allowed(constants: tuple[Path, Path]) -> None:
    """4 tokens sampled, no end, and room for exactly 4: there is no end to leave out."""
    nats = policies.kl(*constants, [Response(prompt("a"), "a b a b", 4, "length")], settings_for(4, max_response_tokens=4), 1)
    assert nats == pytest.approx([4 * math.log(2) / 4], abs=1e-5)


@pytest.fixture(scope="module")
def other_policy(tiny_policy: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny policy with other weights."""
    folder = tmp_path_factory.mktemp("other")
    model, tokenizer = policies.load_policy(tiny_policy[0])
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
    policies.save_model(model, tokenizer, folder)
    return folder


def test_kl_against_a_plain_loop(tiny_policy: Any, other_policy: Path) -> None:
    """Token by token, without batch or padding, over the vocabulary but <pad> (id 0) in python floats; batches of 2 pad."""
    folder, spec = tiny_policy
    p_model, q_model = (AutoModelForCausalLM.from_pretrained(path) for path in (other_policy, folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def by_hand(one: Response) -> float:
        ids = tokenizer("<user> " + one.prompt.messages[0].content + " <assistant>")["input_ids"]
        total = 0.0
        for token in [*tokenizer(one.text)["input_ids"], tokenizer.eos_token_id]:
            with torch.no_grad():
                p, q = (model(torch.tensor([ids])).logits[0, -1, 1:].double().softmax(dim=-1).tolist() for model in (p_model, q_model))
            total += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
            ids.append(token)
        return total

    nats = policies.kl(other_policy, folder, ANSWERS, spec, 2)
    assert nats == pytest.approx([by_hand(one) for one in ANSWERS], abs=1e-4)
    assert min(nats) > 0.01


@pytest.mark.slow
@settings(max_examples=8)
@given(words=st.lists(st.sampled_from("how do i wash it rinse and dry no boil".split()), max_size=7))
def test_kl_is_never_negative(tiny_policy: Any, other_policy: Path, words: list[str]) -> None:
    folder, spec = tiny_policy
    one = Response(PROMPTS[0], " ".join(words), len(words) + 1, "eos")
    assert min(*policies.kl(folder, other_policy, [one], spec, 1), *policies.kl(other_policy, folder, [one], spec, 1)) >= 0


# --- training items and folders -----------------------------------------------------------------------------------------------


def test_training_items_by_hand(tiny_policy: Any) -> None:
    """Ids: <user> 3, <assistant> 4, <eos> 1, and the words from 5. A pair weighs 1, a demonstration its response's tokens."""
    folder, spec = tiny_policy
    tokenizer = AutoTokenizer.from_pretrained(folder)
    shown = [Demonstration(prompt("how do"), "i wash"), Demonstration(prompt("how"), "it it it it it it it it")]
    items = policies.training_items(tokenizer, shown, SFTLoss(), spec)
    assert items == [
        {"sides": [([3, 5, 6, 4, 7, 8, 1], [0, 0, 0, 0, 1, 1, 1])], "size": 3, "length": 7},
        {"sides": [([3, 5, 4] + [9] * 8, [0] * 3 + [1] * 8)], "size": 8, "length": 11},  # cut at 8, without an end
    ]
    batch = policies.collate(items, tokenizer.pad_token_id)
    assert batch["input_ids"].tolist() == [[3, 5, 6, 4, 7, 8, 1] + [0] * 4, [3, 5, 4] + [9] * 8]
    assert batch["attention_mask"].tolist() == [[1] * 7 + [0] * 4, [1] * 11]
    assert batch["response_mask"].tolist() == [[0] * 4 + [1] * 3 + [0] * 4, [0] * 3 + [1] * 8]
    [pair] = policies.training_items(tokenizer, [Pair(prompt("how"), "do", "i wash")], DPOLoss(0.1), spec)
    assert pair == {"sides": [([3, 5, 4, 6, 1], [0, 0, 0, 1, 1]), ([3, 5, 4, 7, 8, 1], [0, 0, 0, 1, 1, 1])], "size": 1, "length": 11}


def logp_alone(model: Any, tokenizer: Any, question: str, answer: str) -> tuple[float, int]:
    """Of one answer in a pass of its own, without padding: log-probability and tokens, the end among them."""
    start, end = encode_prompt(tokenizer, prompt(question), "", 16).ids, encode_response(tokenizer, answer, 8)
    ids = torch.tensor([start + end])
    with torch.no_grad():
        return token_logps(model(ids).logits, ids)[0, len(start) :].sum().item(), len(end)


def test_group_items_by_hand(tiny_policy: Any) -> None:
    """As a pair's sides, for as many as there are; a group weighs 1. In a batch: all first answers, all second ones, all third."""
    folder, spec = tiny_policy
    tokenizer = AutoTokenizer.from_pretrained(folder)
    groups = [Group(prompt("how"), ("do", "i wash", ""), (0.5, -1.0, 0.5)), Group(prompt("do"), ("i", "how", "it"), (1.0, 2.0, 3.0))]
    items = policies.training_items(tokenizer, groups, RRHFLoss(), spec)
    mask = [0, 0, 0, 1, 1]
    assert items[0] == {
        "sides": [([3, 5, 4, 6, 1], mask), ([3, 5, 4, 7, 8, 1], [*mask, 1]), ([3, 5, 4, 1], mask[:-1])],
        "size": 1, "length": 15, "scores": (0.5, -1.0, 0.5),
    }  # fmt: skip
    batch = policies.collate(items, tokenizer.pad_token_id)
    assert batch["input_ids"][:, 1].tolist() == [5, 6] * 3
    assert batch["input_ids"][:, 3].tolist() == [6, 7, 7, 5, 1, 9]
    assert batch["response_mask"].sum(dim=1).tolist() == [2, 2, 3, 2, 1, 2]
    assert batch["scores"].tolist() == [[0.5, -1.0, 0.5], [1.0, 2.0, 3.0]]


GROUPS = [
    Group(prompt("how do i wash"), ("rinse and dry", "no", "boil it", "no no no no no no"), (2.0, 0.0, 1.0, 2.0)),
    Group(prompt("dry"), ("it", "rinse rinse rinse", "", "wash it and dry it and rinse"), (0.0, 1.0, 0.0, -1.0)),
    Group(prompt("i"), ("no", "how do", "dry dry", "boil"), (-1.0, 3.0, 2.0, 1.0)),
]


def rrhf_terms(tiny_policy: Any, groups: Sequence[Group], padding: int = 0) -> list[float]:
    folder, spec = tiny_policy
    model, tokenizer = policies.load_policy(folder)
    batch = policies.collate(policies.training_items(tokenizer, groups, RRHFLoss(2.0), spec), tokenizer.pad_token_id)
    for name, fill in (("input_ids", tokenizer.pad_token_id), ("attention_mask", 0), ("response_mask", 0)):
        batch[name] = torch.nn.functional.pad(batch[name], (0, padding), value=fill)
    with torch.no_grad():
        return policies.loss_terms(model.eval(), batch, RRHFLoss(2.0)).tolist()


def test_rrhf_terms_against_single_passes(tiny_policy: Any) -> None:
    """Each answer alone, without padding, and the loss summed over pairs of answers in python. The ranking part is not idle."""
    model, tokenizer = policies.load_policy(tiny_policy[0])
    rankings = []
    for group, term in zip(GROUPS, rrhf_terms(tiny_policy, GROUPS), strict=True):
        found = [logp_alone(model, tokenizer, group.prompt.messages[0].content, text) for text in group.responses]
        p = [logp / count for logp, count in found]
        k = range(len(p))
        ranking = sum(p[i] - p[j] for i in k for j in k if group.scores[i] < group.scores[j] and p[i] > p[j])
        best = max(k, key=lambda place: group.scores[place])
        assert term == pytest.approx(2.0 * ranking - found[best][0], abs=1e-4)
        rankings.append(ranking)
    assert max(rankings) > 0.05


def test_padding_changes_no_rrhf_term(tiny_policy: Any) -> None:
    """Lengths are the responses' own: alone, beside longer groups, and with 9 more columns of padding, a group costs the same."""
    together = rrhf_terms(tiny_policy, GROUPS)
    assert [rrhf_terms(tiny_policy, [group])[0] for group in GROUPS] == pytest.approx(together, abs=1e-4)
    assert rrhf_terms(tiny_policy, GROUPS, padding=9) == pytest.approx(together, abs=1e-4)


@pytest.mark.parametrize(
    ("data", "loss", "said"),
    [
        (GROUPS, SFTLoss(), "SFTLoss trains on demonstrations, got groups"),
        (GROUPS, DPOLoss(0.1), "DPOLoss trains on pairs, got groups"),
        ([Demonstration(PROMPTS[0], "no")], RRHFLoss(), "RRHFLoss trains on groups, got demonstrations"),
        ([*GROUPS, Pair(PROMPTS[0], "no", "dry")], RRHFLoss(), "RRHFLoss trains on groups, got pairs"),
        ([*GROUPS, Group(PROMPTS[0], ("no", "dry"), (0.0, 1.0))], RRHFLoss(), "groups of different sizes; give each prompt the same"),
    ],
)  # fmt: skip
def test_data_of_another_kind_are_refused_in_one_line(tiny_policy: Any, data: Any, loss: Any, said: str) -> None:
    folder, spec = tiny_policy
    with pytest.raises(InputError, match=rf"^lab\.train_policy: {said}[^\n]*$"):
        policies.training_items(AutoTokenizer.from_pretrained(folder), data, loss, spec)


def test_reference_log_probabilities_against_single_passes(tiny_policy: Any) -> None:
    """Each side alone, without padding; pairs in no order of length, batches of 2."""
    folder, spec = tiny_policy
    model, tokenizer = policies.load_policy(folder)
    texts = [("how do i wash", "no", "boil it and"), ("dry", "rinse rinse rinse rinse", ""), ("i", "it", "do it")]
    items = policies.training_items(tokenizer, [Pair(prompt(p), c, r) for p, c, r in texts], DPOLoss(0.1), spec)
    policies.add_reference(model, tokenizer, items, batch_size=2)

    for item, (question, *answers) in zip(items, texts, strict=True):
        assert item["reference"] == pytest.approx([logp_alone(model, tokenizer, question, answer)[0] for answer in answers], abs=1e-4)


def test_a_new_policy_depends_on_its_seed_alone() -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        return policies.new_policy(LLAMA, ["a", "b"], seed)[0].state_dict()

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = weights(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert all(torch.equal(weight, first[name]) for name, weight in weights(0).items())
    assert not torch.equal(weights(1)["lm_head.weight"], first["lm_head.weight"])


@pytest.mark.parametrize("tied", [False, True])
def test_weights_that_multiply(tied: bool) -> None:
    """Per token: 4 x 16 x 16 attention, 3 x 16 x 32 MLP, 3 x 16 norms, 7 x 16 output layer, tied or not."""
    model, _ = policies.new_policy({**LLAMA, "tie_word_embeddings": tied}, ["a", "b"], 0)
    assert policies.parameters(model) == 4 * 16 * 16 + 3 * 16 * 32 + 3 * 16 + 7 * 16


def test_a_folder_is_an_ordinary_transformers_folder(tiny_policy: Any) -> None:
    folder, _ = tiny_policy
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ours, _ = policies.load_policy(folder)
    ids = torch.tensor([tokenizer("<user> how do i wash it <assistant>")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, ours(ids).logits)
    assert (folder / "model.safetensors").exists()


def test_a_model_that_pads_with_its_end_token_gets_a_row_of_its_own(tmp_path: Path) -> None:
    """7 tokens and <end> as padding: the policy pads with id 7, and the logits of the first 7 stay as they were."""
    tokenizer = turn_tokenizer()
    config = AutoConfig.for_model(**LLAMA, **policies.token_ids(tokenizer))
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config)
    policies.save_model(base, tokenizer, tmp_path / "base")
    model, own = policies.load_policy(tmp_path / "base")
    assert (own.pad_token, own.pad_token_id, model.config.pad_token_id) == (PAD, 7, 7)
    policies.save_model(model, own, tmp_path / "saved")
    again, _ = policies.load_policy(tmp_path / "saved")
    ids = torch.tensor([[2, 4, 5, 3]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits[..., :7], base.eval()(ids).logits)
        assert torch.equal(again(ids).logits, model(ids).logits)
