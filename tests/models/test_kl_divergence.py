"""KL between policies: against hand calculation, a plain loop, and 0 from below."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from constant_policy import constant_policy, policy_settings
from hypothesis import given, settings
from hypothesis import strategies as st
from meta_models import llama_3b
from tiny_tokenizers import WORDS, prompt
from transformers import AutoModelForCausalLM, AutoTokenizer

from apo_bench.config.schema import PolicyModel
from apo_bench.models import kl_divergence, output_layer
from apo_bench.models import policy as policies
from apo_bench.models.memory import LiveBytes
from apo_bench.models.word_tokenizer import word_tokenizer
from apo_bench.types import Response

ANSWERS = [
    Response(prompt("how do i wash it"), "rinse and dry", 4, "eos"),
    Response(prompt("dry"), "no", 2, "eos"),
    Response(prompt("wash it and dry it and rinse it"), "", 1, "eos"),
]


def kl(policy: Path, reference: Path, responses: list[Response], spec: PolicyModel, batch_size: int) -> list[float]:
    model, tokenizer = policies.load_policy(policy)
    return kl_divergence.kl(model, policies.load_policy(reference)[0], tokenizer, responses, spec, batch_size)


def test_kl_with_itself_is_0(tiny_policy: Any) -> None:
    folder, spec = tiny_policy
    assert kl(folder, folder, ANSWERS, spec, 2) == [0.0, 0.0, 0.0]


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
    nats = kl(*constants, responses, policy_settings(8), 4)
    assert nats == pytest.approx([count * math.log(2) / 4 for count in (3, 3, 2, 2, 1, 0)], abs=1e-5)


def test_kl_leaves_out_the_padding_token(constants: tuple[Path, Path], tmp_path: Path) -> None:
    """It is never drawn, so its share changes nothing: log 2 / 4 at both tokens, as above."""
    p = constant_policy(tmp_path, {"<pad>": 4, "a": 2, "b": 1, "<eos>": 1}, word_tokenizer(["a", "b"]))
    assert kl(p, constants[1], [Response(prompt("a"), "b", 2, "eos")], policy_settings(8), 1) == pytest.approx([math.log(2) / 2], abs=1e-5)


def test_kl_counts_all_tokens_of_a_response_as_long_as_allowed(constants: tuple[Path, Path]) -> None:
    """4 tokens sampled, no end, and room for exactly 4: there is no end to leave out."""
    nats = kl(*constants, [Response(prompt("a"), "a b a b", 4, "length")], policy_settings(4, max_response_tokens=4), 1)
    assert nats == pytest.approx([4 * math.log(2) / 4], abs=1e-5)


def test_kl_reads_the_sampled_ids(constants: tuple[Path, Path]) -> None:
    """log 2 / 4 a token: of 3 ids with the end, of 3 that were cut, of the 2 before an end in a turn's place; of 2 where 3 are too many.

    The text would be 2 tokens with its end: the ids are other than the tokenizer's for this text.
    """
    a, b, end = (word_tokenizer(["a", "b"]).convert_tokens_to_ids(word) for word in ("a", "b", "<eos>"))
    responses = [
        Response(prompt("a"), "a", 3, "eos", (a, b, end)), Response(prompt("a"), "a", 3, "length", (a, b, a)),
        Response(prompt("a"), "a", 3, "turn", (a, b, end)),
    ]  # fmt: skip
    nats = kl(*constants, responses, policy_settings(8), 2)
    assert nats == pytest.approx([count * math.log(2) / 4 for count in (3, 3, 2)], abs=1e-5)
    short = kl(*constants, responses[1:2], policy_settings(8, max_response_tokens=2), 2)
    assert short == pytest.approx([2 * math.log(2) / 4], abs=1e-5)


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

    def by_hand(response: Response) -> float:
        ids = tokenizer("<user> " + response.prompt.messages[0].content + " <assistant>")["input_ids"]
        total = 0.0
        for token in [*tokenizer(response.text)["input_ids"], tokenizer.eos_token_id]:
            with torch.no_grad():
                p, q = (model(torch.tensor([ids])).logits[0, -1, 1:].double().softmax(dim=-1).tolist() for model in (p_model, q_model))
            total += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
            ids.append(token)
        return total

    nats = kl(other_policy, folder, ANSWERS, spec, 2)
    assert nats == pytest.approx([by_hand(answer) for answer in ANSWERS], abs=1e-4)
    assert min(nats) > 0.01


def test_chunks_and_passes_change_nothing(
    tiny_policy: Any, other_policy: Path, constants: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One position a chunk and one response a pass, against all at once; among them a response without a token, whose KL is 0."""
    folder, spec = tiny_policy
    whole = kl(other_policy, folder, ANSWERS, spec, 3)
    monkeypatch.setattr(output_layer, "CHUNK", 1)
    monkeypatch.setattr(kl_divergence, "TOKENS_A_PASS", 1)
    assert kl(other_policy, folder, ANSWERS, spec, 3) == pytest.approx(whole, abs=1e-5)
    cut = Response(prompt("a"), "", 0, "length")
    assert kl(*constants, [cut], policy_settings(8), 1) == [0.0]


def test_a_policy_that_is_built_otherwise_is_compared_by_its_own_logits(
    tiny_policy: Any, other_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, spec = tiny_policy
    expected = kl(other_policy, folder, ANSWERS, spec, 2)
    monkeypatch.setattr(kl_divergence, "is_recognised", lambda model: False)
    assert kl(other_policy, folder, ANSWERS, spec, 2) == pytest.approx(expected, abs=1e-5)


def test_kl_of_3b_policies_holds_under_2_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 responses of 512 tokens to prompts of 106, at a vocabulary of 128,256, beside the two models; two layers, of which none is kept.

    Logits of all these positions would take 20 GB a model. What leaves the device, where no numbers are, is taken as 0.
    """
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: torch.zeros(tensor.shape))
    spec = policy_settings(512, max_response_tokens=512).model_copy(update={"max_prompt_tokens": 106})
    responses = [Response(prompt("a " * 200), "b " * 512, 512, "length")] * 64
    tokenizer = word_tokenizer(["a", "b"])
    policy, reference = llama_3b(layers=2), llama_3b(layers=2)
    with LiveBytes() as memory:
        nats = kl_divergence.kl(policy, reference, tokenizer, responses, spec, batch_size=64)
    assert nats == [0.0] * 64
    assert memory.peak < 1.5e9


@pytest.mark.slow
@settings(max_examples=8)
@given(words=st.lists(st.sampled_from(WORDS), max_size=7))
def test_kl_is_never_negative(tiny_policy: Any, other_policy: Path, words: list[str]) -> None:
    folder, spec = tiny_policy
    response = Response(ANSWERS[0].prompt, " ".join(words), len(words) + 1, "eos")
    assert min(*kl(folder, other_policy, [response], spec, 1), *kl(other_policy, folder, [response], spec, 1)) >= 0
