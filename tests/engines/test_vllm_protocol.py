"""Sampling by a server at a url, against one on the loopback that computes with transformers and answers as vLLM does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from constant_policy import LLAMA, constant_policy
from tiny_tokenizers import WORDS, prompt, turn_tokenizer
from vllm_double import VERSION, Double, served

from apo_bench.config.schema import PolicyModel, Recipe, Sampling, SamplingEngine
from apo_bench.engines.protocol import SamplingJob
from apo_bench.engines.transformers import TransformersEngine
from apo_bench.engines.vllm_client import VllmClient, request_settings
from apo_bench.engines.vllm_server import version_of
from apo_bench.errors import InputError, NotHere
from apo_bench.models import policy as policies
from apo_bench.models.tokenize import HUMAN_TURN
from apo_bench.types import Policy, Response

pytestmark = pytest.mark.slow

PROMPTS = tuple(prompt(text) for text in ("how do i wash it", "rinse and dry", "no boil", "do i dry it"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with two policies of random weights."""
    folder = tmp_path_factory.mktemp("run")
    for seed, name in enumerate(("first", "second")):
        model, tokenizer = policies.new_policy({**LLAMA, "initializer_range": 0.5}, WORDS, seed)
        policies.save_model(model, tokenizer, folder / "store" / "policies" / name)
    return folder


@pytest.fixture
def double(folder: Path) -> Iterator[tuple[Double, str]]:
    """A server of the first policy, and its url."""
    double = Double(*policies.load_policy(str(folder / "store" / "policies" / "first")), name="anything")
    with served(double) as url:
        yield double, url


def job(url: str, policy: str = "first", prompts: Any = PROMPTS, **sampling: Any) -> SamplingJob:
    settings = Sampling(**{"max_new_tokens": 6, "batch_size": 3, "engine": SamplingEngine(url=url), **sampling})
    model = PolicyModel(path=".", training=Recipe(learning_rate=1), sampling=settings, dtype="float32")
    return SamplingJob(Policy(policy), prompts, 3, settings, model, seed=5)


def ids_by_prompt(responses: tuple[Response, ...]) -> dict[tuple[str, int], Any]:
    return {(row.prompt.id, place % 3): row.token_ids for place, row in enumerate(responses)}


def test_each_response_is_a_request_of_its_own(folder: Path, double: tuple[Double, str]) -> None:
    """12 requests with 12 seeds, three at a time, of prompts as ids; each says what ends it and that padding is not drawn.

    The counts are those of the same responses from transformers, and the log-probabilities those of the policy itself.
    """
    server, url = double
    computed = TransformersEngine(folder).generate(job(url))
    requests = [body for body in server.requests if "prompt_logprobs" not in body]
    assert len({body["seed"] for body in requests}) == len(requests) == 12
    assert server.together <= 3
    tokenizer = server.tokenizer
    for body in requests:
        assert body["stop_token_ids"] == [tokenizer.eos_token_id]
        assert body["stop"] == []
        assert body["logit_bias"] == {str(tokenizer.pad_token_id): -100.0}
        assert all(isinstance(token, int) for token in body["prompt"])
    assert len(ids_by_prompt(computed.value)) == 12
    assert computed.counts["sampled_tokens"] == sum(row.tokens for row in computed.value)
    assert computed.counts["flops"] > 0
    assert computed.counts["mismatch_responses"] == 12
    assert computed.counts["mismatch_tokens"] == computed.counts["sampled_tokens"]
    assert computed.counts["mismatch_largest"] < 1e-5
    for row in computed.value:
        assert row.token_ids is not None
        assert (row.finish == "eos") == (row.token_ids[-1] == tokenizer.eos_token_id)
        assert row.finish == "eos" or row.tokens == 6


def test_a_server_of_the_makers_weights_lacks_the_row_of_our_padding(folder: Path, double: tuple[Double, str]) -> None:
    """vLLM refuses a bias beyond its vocabulary; what is not there cannot be drawn, and nothing is banned."""
    server, url = double
    server.vocabulary = server.tokenizer.pad_token_id
    assert len(TransformersEngine(folder).generate(job(url)).value) == 12
    assert all(body["logit_bias"] == {} for body in server.requests if "prompt_logprobs" not in body)


def test_permuted_prompts_give_the_same_samples(folder: Path, double: tuple[Double, str]) -> None:
    engine = TransformersEngine(folder)
    first, again = engine.generate(job(double[1])).value, engine.generate(job(double[1], prompts=PROMPTS[::-1])).value
    assert ids_by_prompt(first) == ids_by_prompt(again)
    assert len(set(ids_by_prompt(first).values())) > 4


def test_a_next_human_turn_ends_a_response_where_nothing_else_does(folder: Path) -> None:
    """A tokenizer without a chat template, and a policy that says hi three times of four: its ids end with an end in the turn's place."""
    tokenizer = turn_tokenizer()
    weights = {" hi": 0.75, HUMAN_TURN: 0.25}
    model, tokenizer = policies.load_policy(str(constant_policy(folder / "store" / "policies" / "turns", weights, tokenizer)))
    with served(Double(model, tokenizer, name="turns")) as url:
        responses = TransformersEngine(folder).generate(job(url, "turns", (prompt(" hi"), prompt(" ho")), max_new_tokens=9)).value
    turn, hi, end = (tokenizer.convert_tokens_to_ids(token) for token in (HUMAN_TURN, " hi", "<end>"))
    assert "turn" in {row.finish for row in responses}
    for row in responses:
        assert row.token_ids == ((hi,) * (row.tokens - 1) + (end,) if row.finish == "turn" else (hi,) * 9)
        assert turn not in (row.token_ids or ())


def test_the_most_likely_token_is_that_of_transformers(folder: Path, double: tuple[Double, str]) -> None:
    """At temperature 0 both take the same."""
    engine = TransformersEngine(folder)
    assert engine.generate(job(double[1], temperature=0.0)).value == engine.generate(job(double[1], temperature=0.0, engine=None)).value


def test_the_mean_difference_is_what_the_server_is_off_by(folder: Path, double: tuple[Double, str]) -> None:
    """Every log-probability 0.005 too high: a probe lets it pass, a limit of 0.001 does not. KL by exp(d) - 1 - d at d = -0.005."""
    server, url = double
    server.shift = 0.005
    counts = TransformersEngine(folder).generate(job(url)).counts
    assert counts["mismatch_absolute"] / counts["mismatch_tokens"] == pytest.approx(0.005, rel=1e-3)
    assert counts["mismatch_kl"] / counts["mismatch_tokens"] == pytest.approx(1.248e-5, rel=1e-2)
    with pytest.raises(InputError, match=r"sampling.max_mismatch: .* of 12 responses .* 0.005 nats a token, over 0.001"):
        TransformersEngine(folder).generate(job(url, max_mismatch=0.001))


def refusal(folder: Path, given: SamplingJob) -> str:
    with pytest.raises(InputError) as caught:
        TransformersEngine(folder).generate(given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_server_of_other_weights_is_refused(folder: Path, double: tuple[Double, str]) -> None:
    assert "sampling.engine: vLLM serves other weights than policy anything" in refusal(folder, job(double[1], "second"))


def test_a_server_that_does_not_answer_as_vllm_is_refused(folder: Path, double: tuple[Double, str]) -> None:
    server, url = double
    server.without = "token_ids"
    assert "the answer has no token_ids" in refusal(folder, job(url))
    server.without = "prompt_token_ids"
    assert "the answer has no prompt_token_ids" in refusal(folder, job(url))


def test_a_refusal_is_in_the_servers_own_words(folder: Path, double: tuple[Double, str]) -> None:
    server, url = double
    server.refusal = (400, {"error": {"message": "the prompt is\ntoo long"}})
    assert refusal(folder, job(url)).endswith("/v1/completions: HTTP 400: the prompt is too long")


def test_a_lost_server_is_one_line(folder: Path, double: tuple[Double, str]) -> None:
    """One that stops answering at the fifth response, one whose engine is dead, and none at all; none of them is ours to start again."""
    server, url = double
    server.dies_at = 5
    assert "sampling.engine: the vLLM server is lost, with 4 of 12 responses sampled" in refusal(folder, job(url, batch_size=1))
    server.dies_at, server.refusal = None, (500, {"error": {"message": "EngineCore died"}})
    assert refusal(folder, job(url)).endswith("HTTP 500: EngineCore died")
    nobody = "http://127.0.0.1:9"
    assert "with 0 of 12 responses sampled: http://127.0.0.1:9: ConnectionRefusedError" in refusal(folder, job(nobody))
    with pytest.raises(NotHere, match=r"sampling.engine.url: no vLLM server answers: http://127.0.0.1:9"):
        version_of(None, nobody)


def test_the_key_holds_engine_version_dtype_and_attention(folder: Path, double: tuple[Double, str]) -> None:
    given, engine = job(double[1]), TransformersEngine(folder)
    assert engine.sampler(given.sampling, given.model) == {
        "name": "vllm", "version": f"vllm {VERSION}", "dtype": "float32", "attention_backend": "auto", "arguments": [],
    }  # fmt: skip
    assert engine.sampler(given.sampling.model_copy(update={"engine": None}), given.model) is None


def test_log_probabilities_of_a_prompt(double: tuple[Double, str]) -> None:
    """Of each token but the first, as the model gives them on the whole sequence."""
    server, url = double
    ids = [3, 5, 4, 7]
    with torch.no_grad():
        expected = server.model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)[range(3), ids[1:]]
    assert VllmClient(url).prompt_logps("anything", ids) == pytest.approx(expected.tolist())


def test_settings_of_a_request() -> None:
    """All that a Sampling says goes to the server."""
    sampling = Sampling(max_new_tokens=7, temperature=0.5, top_p=0.9, top_k=3, repetition_penalty=1.5)
    settings = request_settings(sampling, {9, 2}, HUMAN_TURN, never=1)
    sent = {name: settings[name] for name in ("max_tokens", "temperature", "top_p", "top_k", "repetition_penalty")}
    assert sent == {"max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "repetition_penalty": 1.5}
    assert settings["stop_token_ids"] == [2, 9]
    assert settings["ignore_eos"]
    assert settings["stop"] == [HUMAN_TURN]
    assert request_settings(sampling, {9}, None, never=1)["stop"] == []
    assert request_settings(sampling, {9}, None, never=None)["logit_bias"] == {}
