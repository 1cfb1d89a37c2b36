"""Sampling: what is read, drawn, ended and counted; on random policies of several architectures, on one trained to echo and on ones with
known probabilities. transformers' `generate` is the other implementation that greedy answers and warped probabilities are compared with."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from constant_policy import LLAMA, constant_policy, policy_settings
from scipy.stats import chi2
from tiny_tokenizers import WORDS, prompt, turn_tokenizer
from transformers import AutoTokenizer, GenerationConfig

from apo_bench.config.schema import PolicyModel, Recipe, Sampling
from apo_bench.engines.transformers import TransformersEngine
from apo_bench.losses import SFTLoss
from apo_bench.models import generate, kv_cache
from apo_bench.models import policy as policies
from apo_bench.models.tokenize import ChatFormat
from apo_bench.models.word_tokenizer import word_tokenizer
from apo_bench.training.training_spec import PolicyTraining
from apo_bench.types import Demonstration, Policy, Prompt, Response

ONE_TOKEN = Sampling(max_new_tokens=1)
PROMPTS = [prompt(text) for text in ("how do i wash it", "dry", "boil no and", "wash it and dry it and rinse it")]


SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "mistral": {**SMALL, "sliding_window": 4},
    "gemma3_text": {**SMALL, "head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen3": {**SMALL, "head_dim": 8},
    "lfm2": {**SMALL, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3, "block_multiple_of": 8},
    "minimax": {  # keeps states beside the cache's layers
        **SMALL, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "num_local_experts": 2, "num_experts_per_tok": 1,
        "block_size": 4,
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """(model, tokenizer) of two layers with weights large enough that what is read matters."""
    model, tokenizer = policies.new_policy({"model_type": request.param, **ARCHITECTURES[request.param]}, WORDS, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.3, generator=generator)
    return model.eval(), tokenizer


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


def by_prompt(loaded: Any, prompts: Sequence[Prompt], n: int, **fields: Any) -> dict[str, list[tuple[int, ...] | None]]:
    """Sampled ids of each prompt."""
    sampling = Sampling(max_new_tokens=8).model_copy(update=fields)
    model, tokenizer = loaded
    spec = policy_settings(8).model_copy(update={"max_prompt_tokens": 128})
    responses, _ = generate.generate(model, tokenizer, prompts, n, sampling, spec, 3)
    return {each.id: [response.token_ids for response in responses if response.prompt == each] for each in prompts}


def test_a_response_depends_on_neither_n_nor_other_prompts_nor_the_batch(architecture: Any) -> None:
    """All four responses at once; the first two in another order, beside shorter prompts only, and one prompt a batch."""
    four = by_prompt(architecture, PROMPTS, 4)
    assert len({ids for several in four.values() for ids in several}) > 8
    two = {place: several[:2] for place, several in four.items()}
    assert by_prompt(architecture, PROMPTS[::-1], 2) == two
    assert by_prompt(architecture, PROMPTS, 2, batch_size=1) == two
    assert by_prompt(architecture, PROMPTS[:2], 2) == {each.id: two[each.id] for each in PROMPTS[:2]}


def test_prompts_of_unlike_length_are_read_apart(architecture: Any) -> None:
    """The shortest two of four together, where the cache's layers are all of full attention: the same responses as one prompt a batch."""
    model, _ = architecture
    prompts = [*PROMPTS[:2], *(prompt("wash it and dry it " * times) for times in (8, 16))]
    passes = forward_passes(model)
    together = by_prompt(architecture, prompts, 2)
    read = [rows for (rows, width), _ in passes if width > 1]
    full = model.config.model_type in ("llama", "qwen3")
    assert read == [2, 1, 1] if full else read[0] == 2 and 4 in read
    assert by_prompt(architecture, prompts, 2, batch_size=1) == together


def test_a_prompt_that_occurs_twice_is_answered_twice(tiny_policy: Any) -> None:
    first, second, *_ = (sampled(tiny_policy, [PROMPTS[0], PROMPTS[1], PROMPTS[0]], n=6)[place : place + 6] for place in (0, 12))
    assert [response.text for response in first] != [response.text for response in second]
    assert first == sampled(tiny_policy, [PROMPTS[0]], n=6)


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
    ids = ChatFormat(tokenizer).encode_prompt(PROMPTS[0], 16).ids
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1]
    logits[tokenizer.pad_token_id] = -math.inf
    expected = logits.softmax(dim=-1)
    drawn = sampled(tiny_policy, PROMPTS[:1], n=4000, batch_size=4000, max_new_tokens=1)
    for word in "how do i wash it rinse and dry no boil".split():
        p = expected[tokenizer.convert_tokens_to_ids(word)].item()
        assert sum(response.text == word for response in drawn) / 4000 == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / 4000))


def test_draws_of_fixed_scores_follow_their_softmax() -> None:
    """10,000 rows, each with a generator of its own: chi-square of 5 tokens below its 99.9 % point; a score of -inf is never drawn."""
    scores = torch.tensor([0.0, 2.0, -math.inf, -3.0, 1.0, -1.0])
    rows = 10_000
    drawn = generate.draw(scores.expand(rows, -1), [torch.Generator().manual_seed(seed) for seed in range(rows)])
    counts, expected = drawn.bincount(minlength=6).double(), rows * scores.double().softmax(dim=-1)
    assert counts[2] == 0
    possible = expected > 0
    assert ((counts - expected)[possible] ** 2 / expected[possible]).sum() < chi2.ppf(0.999, df=4)


WARPED = {"temperature": 0.7, "top_k": 9, "top_p": 0.9, "repetition_penalty": 1.3}


@pytest.mark.parametrize("fields", [{}, WARPED, *({name: value} for name, value in WARPED.items())], ids=str)
def test_next_token_probabilities_are_those_of_generate(tiny_policy: Any, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """At each of 4 tokens: the probabilities that a token is drawn with, against those that `generate` reports for the same beginning."""
    model, tokenizer = policies.load_policy(tiny_policy[0])
    drawn_with: list[torch.Tensor] = []

    def draw(scores: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        drawn_with.append(scores.softmax(dim=-1))
        return scores.argsort(dim=-1)[:, -2]  # any token but the end

    monkeypatch.setattr(generate, "draw", draw)
    sampling = Sampling(max_new_tokens=4, **fields)
    (response,), _ = generate.generate(model, tokenizer, PROMPTS[:1], 1, sampling, tiny_policy[1], 0)
    assert response.token_ids is not None
    assert len(response.token_ids) == len(drawn_with)
    ids = ChatFormat(tokenizer).encode_prompt(PROMPTS[0], 16).ids
    settings = GenerationConfig(
        do_sample=True, max_new_tokens=1, output_scores=True, return_dict_in_generate=True, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, suppress_tokens=[tokenizer.pad_token_id], **{"top_k": 0, **fields},
    )  # fmt: skip
    for token, probabilities in zip(response.token_ids, drawn_with, strict=True):
        begun = torch.tensor([ids])
        expected = model.generate(begun, attention_mask=torch.ones_like(begun), generation_config=settings).scores[0].softmax(dim=-1)
        assert torch.allclose(probabilities, expected, atol=1e-6)
        assert torch.equal(probabilities > 0, expected > 0)
        ids.append(token)


@pytest.mark.parametrize("fields", [{}, {"repetition_penalty": 1.3}], ids=str)
def test_temperature_0_is_generate_without_sampling(architecture: Any, fields: dict[str, Any]) -> None:
    """Prompts of 3 to 10 tokens and windows of 4: together, padded and in two copies, against each alone."""
    model, tokenizer = architecture
    sampled = by_prompt(architecture, PROMPTS, 2, temperature=0.0, **fields)
    for each in PROMPTS:
        ids = torch.tensor([ChatFormat(tokenizer).encode_prompt(each, 16).ids])
        settings = GenerationConfig(
            do_sample=False, max_new_tokens=8, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
            suppress_tokens=[tokenizer.pad_token_id], **fields,
        )  # fmt: skip
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)[0, ids.shape[1] :]
        assert sampled[each.id] == [tuple(expected.tolist())] * 2


# --- what is read -------------------------------------------------------------------------------------------------------------


def forward_passes(model: Any) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes of the ids that each forward pass reads and of the logits it gives, in a list that grows."""
    passes: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    model.register_forward_hook(
        lambda module, args, options, output: passes.append((tuple(options["input_ids"].shape), tuple(output.logits.shape))),
        with_kwargs=True,
    )
    return passes


def test_each_prompt_is_read_once_and_finished_rows_leave(tiny_policy: Any) -> None:
    """One pass over 4 prompts of 3 to 10 tokens, whose last position alone goes through the output layer; then a token a row.

    Of 40 rows those that have ended leave as soon as they are an eighth of the batch.
    """
    model, tokenizer = policies.load_policy(tiny_policy[0])
    passes = forward_passes(model)
    responses, _ = generate.generate(model, tokenizer, PROMPTS, 10, Sampling(max_new_tokens=12), tiny_policy[1], 0)
    (prefill, first_logits), *steps = passes
    assert prefill == (4, 10)
    assert first_logits[:2] == (4, 1)
    assert len(steps) == max(response.tokens for response in responses) - 1
    for step, ((rows, width), logits) in enumerate(steps, start=1):
        going_on = sum(response.tokens > step for response in responses)
        assert width == logits[1] == 1
        assert going_on <= rows < going_on + rows / 8
    assert steps[-1][0][0] < 40


def test_a_cache_that_cannot_be_selected_from_is_not_used(tiny_policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same responses; every pass reads everything."""
    model, tokenizer = policies.load_policy(tiny_policy[0])
    expected = by_prompt((model, tokenizer), PROMPTS, 3)
    monkeypatch.setattr(kv_cache, "selectable", lambda cache: None)
    passes = forward_passes(model)
    assert by_prompt((model, tokenizer), PROMPTS, 3) == expected
    assert [width for (_, width), _ in passes] == list(range(10, 10 + len(passes)))


def test_adapters_are_sampled_unmerged(tiny_policy: Any) -> None:
    """Greedy answers of a policy with random adapters beside its weights are those of the merged one, and not those without them."""
    from peft import LoraConfig, get_peft_model

    model, tokenizer = policies.load_policy(tiny_policy[0])
    without = by_prompt((model, tokenizer), PROMPTS, 1, temperature=0.0)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora" in name:
                weight.normal_(generator=generator)
    unmerged = by_prompt((adapted, tokenizer), PROMPTS, 1, temperature=0.0)
    assert unmerged != without
    assert by_prompt((adapted.merge_and_unload(), tokenizer), PROMPTS, 1, temperature=0.0) == unmerged


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
        "cut_responses": sum(response.finish == "length" for response in responses),
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
    tokenizer = turn_tokenizer()
    folder = constant_policy(tmp_path, {" hi": 2, "\n\nHuman:": 1, "<end>": 1}, tokenizer)
    responses = sampled((folder, policy_settings(3)), [prompt("hi"), prompt("ho hi ho")], n=400, batch_size=800)
    for response in responses:
        assert "Human" not in response.text
        assert response.tokens == response.text.count("hi") + (response.finish != "length")  # the ending token counts
        assert response.tokens == 3 or response.finish != "length"
        expected = tokenizer.convert_tokens_to_ids([f" {word}" for word in response.text.split()])
        assert response.token_ids == (*expected, *([0] if response.finish != "length" else []))  # the end, in a turn's place too
    frequencies = {finish: sum(response.finish == finish for response in responses) / 800 for finish in ("eos", "turn", "length")}
    assert frequencies == pytest.approx({"eos": 7 / 16, "turn": 7 / 16, "length": 1 / 8}, abs=5 * 0.5 / math.sqrt(800))


def test_ids_before_a_human_turn_keep_all_of_the_text(tiny_policy: Any) -> None:
    """A turn may begin within a token: the ids that are kept are the fewest whose text begins with the response's, then the end (1)."""
    pieces = {5: "Dry it", 6: ".\n\n", 7: "Human", 8: ":", 9: " now", 10: ".\n\nHuman:"}

    class Pieces:
        eos_token_id = 1

        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            assert skip_special_tokens
            return "".join(pieces[token] for token in ids)

    def response(*ids: int) -> Response:
        return generate.response_of(Pieces(), PROMPTS[0], list(ids), frozenset({1}))

    assert response(5, 6, 7, 8) == Response(PROMPTS[0], "Dry it.", 4, "turn", (5, 6, 1))
    assert response(5, 10) == Response(PROMPTS[0], "Dry it.", 2, "turn", (5, 1))  # no ids have the text and not the turn
    assert response(5, 6, 7, 8, 9) == Response(PROMPTS[0], "Dry it.", 5, "turn", (5, 6, 1))  # a template's model goes on
    assert response(5, 9) == Response(PROMPTS[0], "Dry it now", 2, "length", (5, 9))
