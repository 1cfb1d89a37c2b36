"""Sampling by a real vLLM server on a CPU, with SmolLM2: `make test-vllm`. What needs no vLLM is in `test_vllm_protocol.py`."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from apo_bench.config.schema import Lora, PolicyModel, Recipe, Sampling, SamplingEngine
from apo_bench.engines.protocol import SamplingJob
from apo_bench.engines.transformers import TransformersEngine
from apo_bench.engines.vllm_client import VllmClient
from apo_bench.engines.vllm_sampler import VllmSampler
from apo_bench.errors import InputError
from apo_bench.models import adapters
from apo_bench.models.policy import load_policy, save_model
from apo_bench.models.pretrained_weights import resolve_model
from apo_bench.store import Computed
from apo_bench.types import Message, Policy, Prompt, Response, prompt_id

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("APO_BENCH_VLLM", ROOT / ".venv-vllm" / "bin" / "python"))
LORA = Lora(rank=4, alpha=8)
WORDS = "red blue warm cold slow fast early late round square loud quiet".split()


def _smollm2() -> Path | None:
    try:
        return Path(resolve_model("smollm2", ROOT))
    except InputError:
        return None


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="no environment with vLLM: make vllm-env"),
    pytest.mark.skipif(_smollm2() is None, reason="no SmolLM2: apo-bench import-model smollm2"),
]


def prompt(text: str) -> Prompt:
    messages = (Message("user", text),)
    return Prompt(prompt_id("all", messages), messages, "all", text)


PROMPTS = tuple(prompt(f"Reply with one word only: what is the opposite of {word}?") for word in WORDS)
SAMPLING = Sampling(max_new_tokens=24, temperature=0.8, batch_size=16, engine=SamplingEngine(python=str(PYTHON), kv_cache_gb=1.0))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TransformersEngine]:
    """Of a run with four policies: `first`, `second` with other weights, `adapted`, adapters on `first`, and `readapted`, on those."""
    engine = TransformersEngine(tmp_path_factory.mktemp("run"))
    policies = engine.run_folder / "store" / "policies"
    model, tokenizer = load_policy(_smollm2() or "", trust_remote_code=False)
    torch.manual_seed(0)
    lora = adapters.add(model, LORA, seed=0)
    for name, weight in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    save_model(model, tokenizer, policies / "first")
    adapters.save(lora, LORA, "first", policies / "adapted")
    adapters.save(lora, LORA, "adapted", policies / "readapted")
    for weight in model.parameters():
        weight.data += 0.02 * weight.std() * torch.randn_like(weight)
    save_model(model, tokenizer, policies / "second")
    yield engine
    sampler(engine).end()


def sampler(engine: TransformersEngine) -> VllmSampler:
    assert SAMPLING.engine is not None
    return engine._sampler(SAMPLING.engine)


def job(policy: str = "first", prompts: tuple[Prompt, ...] = PROMPTS, n: int = 2, **sampling: Any) -> SamplingJob:
    settings = SAMPLING.model_copy(update=sampling)
    training = Recipe(learning_rate=1e-4, lora=LORA)
    model = PolicyModel(path="smollm2", training=training, sampling=SAMPLING, dtype="float32", max_response_tokens=24)
    return SamplingJob(Policy(policy), prompts, n, settings, model, seed=7)


def mean_difference(computed: Computed[Any]) -> float:
    return computed.counts["mismatch_absolute"] / computed.counts["mismatch_tokens"]


def sampled(computed: Computed[tuple[Response, ...]]) -> dict[tuple[str, int], tuple[int, ...] | None]:
    """Ids by prompt and number."""
    return {(row.prompt.id, place % 2): row.token_ids for place, row in enumerate(computed.value)}


@pytest.fixture(scope="module")
def first(engine: TransformersEngine) -> Computed[tuple[Response, ...]]:
    return engine.generate(job())


def test_log_probabilities_are_those_of_the_trained_model(first: Computed[tuple[Response, ...]]) -> None:
    """In fp32 both compute the same sums in another order. The estimate of KL is of second order: d^2 / 2 for a difference d."""
    assert first.counts["mismatch_responses"] == 24
    assert mean_difference(first) < 1e-3
    assert first.counts["mismatch_largest"] < 1e-2
    assert 0 <= first.counts["mismatch_kl"] <= first.counts["mismatch_largest"] ** 2 * first.counts["mismatch_tokens"]


def test_a_response_ends_where_the_template_ends_a_turn_or_at_the_limit(
    engine: TransformersEngine, first: Computed[tuple[Response, ...]]
) -> None:
    """2 is SmolLM2's <|im_end|>; no response holds the padding token, 49152, which was added to its vocabulary."""
    assert {row.finish for row in first.value} == {"eos", "length"}
    for row in first.value:
        assert row.token_ids is not None
        assert row.tokens == len(row.token_ids) <= 24
        assert (row.finish == "eos") == (row.token_ids[-1] == 2)
        assert 2 not in row.token_ids[:-1]
        assert 49152 not in row.token_ids
        assert row.tokens == 24 or row.finish == "eos"


def test_permuted_prompts_and_other_batches_give_the_same_samples(
    engine: TransformersEngine, first: Computed[tuple[Response, ...]]
) -> None:
    again = engine.generate(job(prompts=PROMPTS[::-1], batch_size=5))
    assert sampled(again) == sampled(first)
    assert len(set(sampled(first).values())) > 12


def test_adapters_are_requests_to_the_server_of_their_base(engine: TransformersEngine, first: Computed[tuple[Response, ...]]) -> None:
    """One server, of weights that stay loaded; the base samples beside the adapters what it samples alone."""
    engine.generate(job())
    server = sampler(engine).server
    adapted = engine.generate(job("adapted"))
    assert mean_difference(adapted) < 1e-3
    assert sampled(adapted) != sampled(first)
    assert sampled(engine.generate(job())) == sampled(first)
    assert sampler(engine).server is server


def test_more_prompts_than_are_read_in_a_pass(engine: TransformersEngine) -> None:
    """128 prompts of more than 32 tokens each at once: over 4096. None is read in parts, which seeded requests on a CPU die of."""
    prompts = tuple(prompt(f"Name a thing that is {word} and has the number {number}.") for number in range(11) for word in WORDS)[:128]
    computed = engine.generate(job(prompts=prompts, n=1, max_new_tokens=2, batch_size=128))
    assert computed.counts["sampled_responses"] == 128
    assert mean_difference(computed) < 1e-3


def test_a_mismatch_over_the_limit_is_refused(engine: TransformersEngine) -> None:
    with pytest.raises(InputError, match=r"sampling.max_mismatch: vLLM's log-probabilities of 24 responses differ .* over 1e-12"):
        engine.generate(job(max_mismatch=1e-12))


def test_an_unreadable_model_is_one_line(engine: TransformersEngine) -> None:
    """A server that ends while it starts: an argument that vLLM does not know."""
    choice = SamplingEngine(python=str(PYTHON), arguments=("--no-such-argument",))
    with pytest.raises(InputError, match=r"sampling.engine: vLLM did not start: .*no-such-argument") as refusal:
        engine.generate(replace(job(), sampling=SAMPLING.model_copy(update={"engine": choice})))
    assert "\n" not in str(refusal.value)


def test_a_killed_server_is_started_again_and_asked_for_the_rest(
    engine: TransformersEngine, first: Computed[tuple[Response, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 of all its processes after the third response."""
    killed: list[int] = []
    completions = VllmClient.completions

    def killing(client: VllmClient, *arguments: Any) -> Iterator[Any]:
        for number, completion in enumerate(completions(client, *arguments)):
            yield completion
            if number == 2 and not killed:
                server = sampler(engine).server
                assert server is not None
                killed.append(server.pid)
                os.killpg(server.pid, signal.SIGKILL)

    monkeypatch.setattr(VllmClient, "completions", killing)
    again = engine.generate(job())
    assert len(killed) == 1
    assert sampled(again) == sampled(first)


def test_weights_of_another_policy_are_refused(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that goes on to serve the first policy under the second's name."""
    engine.generate(job())
    server = sampler(engine).server
    assert server is not None
    monkeypatch.setattr(server.served.__class__, "covers", lambda *_: True)
    monkeypatch.setattr(VllmClient, "prompt_logps", _as("first"))
    with pytest.raises(InputError, match=r"sampling.engine: vLLM serves other weights than policy second") as refusal:
        engine.generate(job("second"))
    assert "\n" not in str(refusal.value)


def _as(name: str) -> Any:
    """`prompt_logps` of the policy `name`, whichever is asked for."""
    prompt_logps = VllmClient.prompt_logps
    return lambda client, _, ids: prompt_logps(client, name, ids)


def test_two_policies_in_turn_have_each_its_own_log_probabilities(
    engine: TransformersEngine, first: Computed[tuple[Response, ...]]
) -> None:
    """The second's weights are the first's with noise of 2 %; the first, served again, samples what it did."""
    second = engine.generate(job("second"))
    assert mean_difference(second) < 1e-3
    assert sampled(second) != sampled(first)
    assert sampled(engine.generate(job())) == sampled(first)


def test_adapters_on_adapters_are_merged(engine: TransformersEngine) -> None:
    assert mean_difference(engine.generate(job("readapted"))) < 1e-3
