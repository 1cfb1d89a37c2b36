"""Sampling: what is drawn, ended and counted, on a random policy, on one trained to echo and on ones with known probabilities."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from constant_policy import LLAMA, constant_policy, policy_settings
from tiny_tokenizers import prompt, turn_tokenizer
from transformers import AutoTokenizer

from apo_bench.config.schema import PolicyModel, Recipe, Sampling
from apo_bench.engines.transformers import TransformersEngine
from apo_bench.losses import SFTLoss
from apo_bench.models import generate
from apo_bench.models import policy as policies
from apo_bench.models.tokenize import encode_prompt, word_tokenizer
from apo_bench.training.training_spec import PolicyTraining
from apo_bench.types import Demonstration, Policy, Prompt, Response

ONE_TOKEN = Sampling(max_new_tokens=1)
PROMPTS = [prompt(text) for text in ("how do i wash it", "dry", "boil no and", "wash it and dry it and rinse it")]


def sampled(policy: Any, prompts: Sequence[Prompt], n: int = 1, seed: int = 0, **fields: Any) -> list[Response]:
    folder, spec = policy
    return generate.generate(*policies.load_policy(folder), prompts, n, spec.sampling.model_copy(update=fields), spec, seed)[0]


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
    assert [response.prompt for response in responses] == [prompt for prompt in PROMPTS for _ in range(3)]
    assert len({response.text for response in responses[:3]}) > 1  # three draws, not one repeated


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PolicyModel]:
    """A policy trained to answer one word with that word, whatever filler comes before it."""
    folder = tmp_path_factory.mktemp("echo")
    words = "a b c d e f g h".split()
    policies.save_model(*policies.new_policy({**LLAMA, "hidden_size": 32}, [*words, "filler"], seed=0), folder / "start")
    data = [Demonstration(prompt("filler " * count + word), word) for word in words for count in range(4)]
    recipe = Recipe(learning_rate=2e-2, epochs=60, batch_size=32)
    spec = PolicyModel(path=".", max_prompt_tokens=16, max_response_tokens=4, training=recipe, sampling=Sampling(max_new_tokens=4))
    job = PolicyTraining(Policy(str(folder / "start")), tuple(data), SFTLoss(), None, spec, recipe, seed=0)
    TransformersEngine(folder).train_policy(job, folder / "trained")
    return folder / "trained", spec


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_every_answer_belongs_to_its_prompt(echo: Any, batch_size: int) -> None:
    """Prompts of mixed lengths in no order of length: sorted, batched, padded on the left and put back."""
    prompts = [prompt("filler " * count + word) for count, word in zip((3, 0, 2, 1, 0, 3, 1, 2), "hgfedcba", strict=True)]
    responses = sampled(echo, prompts, n=2, temperature=0.05, batch_size=batch_size)
    assert [response.text for response in responses] == [word for word in "hgfedcba" for _ in range(2)]
    assert {(response.tokens, response.finish) for response in responses} == {(2, "eos")}  # the word and the end


def test_left_padding_does_not_change_the_distribution(tiny_policy: Any) -> None:
    """At temperature 1e-4 the most probable answer: the same alone as beside longer prompts."""
    together = sampled(tiny_policy, PROMPTS, temperature=1e-4)
    alone = [sampled(tiny_policy, [prompt], temperature=1e-4)[0] for prompt in PROMPTS]
    assert together == alone
    assert len({response.text for response in together}) > 1


def test_top_k_0_and_top_p_1_leave_the_tail(tmp_path: Path) -> None:
    """300 words of nearly equal weight: 300 single draws hit far more than 50 of them (transformers' own top_k default)."""
    policies.save_model(*policies.new_policy(LLAMA, [f"w{number}" for number in range(300)], seed=0), tmp_path)
    spec = PolicyModel(path=".", max_prompt_tokens=4, training=Recipe(learning_rate=1), sampling=ONE_TOKEN)
    assert len({response.text for response in sampled((tmp_path, spec), [prompt("w1")], n=300, batch_size=300)}) > 100
    assert len({response.text for response in sampled((tmp_path, spec), [prompt("w1")], n=300, batch_size=300, top_k=7)}) <= 7


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
        assert sum(response.text == word for response in drawn) / 4000 == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / 4000))


# --- counts and finishes ------------------------------------------------------------------------------------------------------


def test_tokens_finishes_and_counts(tiny_policy: Any) -> None:
    """A word is a token. With the end: words + 1, finish eos; without: max_new_tokens of them, finish length.

    Per token 2 FLOPs a weight of 4 projections of 16 x 16 and an MLP of 3 x 16 x 32, and for what is drawn of an output layer of 15 words
    x 16. A prompt (<user>, words, <assistant>) is read once for its 50 answers; what is drawn last is not read. Attention: 4 FLOPs times
    16 for each pair of tokens of the prompt, and for each of an answer's tokens read and those up to it.
    """
    folder, spec = tiny_policy
    responses, counts = generate.generate(*policies.load_policy(folder), PROMPTS, 50, spec.sampling, spec, 3)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert {response.finish for response in responses} == {"eos", "length"}
    assert all(response.tokens == 6 for response in responses if response.finish == "length")
    assert all(1 <= response.tokens <= 6 for response in responses)
    for response in responses:  # this model may draw its special tokens too, and they are no text
        assert len(tokenizer(response.text)["input_ids"]) <= response.tokens - (response.finish == "eos")
    body, output = 4 * 16 * 16 + 3 * 16 * 32, 15 * 16
    prompts = [len(prompt.messages[0].content.split()) + 2 for prompt in PROMPTS]
    read = [len(response.prompt.messages[0].content.split()) + 2 for response in responses]
    tokens = sum(response.tokens for response in responses)
    seen = sum(length**2 for length in prompts)
    seen += sum(before + step for before, response in zip(read, responses, strict=True) for step in range(1, response.tokens))
    steps = tokens - len(responses)
    flops = 2 * body * (sum(prompts) + steps) + 2 * output * (len(prompts) + steps) + 4 * 16 * seen
    assert counts == {
        "sampled_responses": 200, "sampled_tokens": tokens, "flops": pytest.approx(flops), "truncated_prompts": 0,
    }  # fmt: skip


def test_truncated_prompts_are_counted_once_a_prompt(tiny_policy: Any) -> None:
    folder, spec = tiny_policy
    narrow = spec.model_copy(update={"max_prompt_tokens": 6})
    _, counts = generate.generate(*policies.load_policy(folder), PROMPTS, 3, ONE_TOKEN, narrow, 0)
    assert counts["truncated_prompts"] == 2  # of 5 and 8 words, with two specials


def test_the_padding_token_is_never_drawn(tmp_path: Path) -> None:
    """<pad> has 4/5 of the probability, yet all 8 tokens are words, and a mix of them."""
    folder = constant_policy(tmp_path, {"<pad>": 8, "a": 1, "b": 1}, word_tokenizer(["a", "b"]))
    responses = sampled((folder, policy_settings(8)), [prompt("a")], n=20)
    assert {(response.tokens, response.finish, len(response.text.split())) for response in responses} == {(8, "length", 8)}
    assert len({response.text for response in responses}) > 1


def test_without_a_template_a_next_human_turn_ends_a_response(tmp_path: Path) -> None:
    """Each step: " hi" 1/2, a human turn 1/4, the end 1/4, at most 3 steps: 1/8 of answers are cut, the rest ends half and half."""
    folder = constant_policy(tmp_path, {" hi": 2, "\n\nHuman:": 1, "<end>": 1}, turn_tokenizer())
    responses = sampled((folder, policy_settings(3)), [prompt("hi"), prompt("ho hi ho")], n=400, batch_size=800)
    for response in responses:
        assert "Human" not in response.text
        assert response.tokens == response.text.count("hi") + (response.finish != "length")  # the ending token counts
        assert response.tokens == 3 or response.finish != "length"
    frequencies = {finish: sum(response.finish == finish for response in responses) / 800 for finish in ("eos", "turn", "length")}
    assert frequencies == pytest.approx({"eos": 7 / 16, "turn": 7 / 16, "length": 1 / 8}, abs=5 * 0.5 / math.sqrt(800))
