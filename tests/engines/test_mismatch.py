"""Sampler against trainer, by hand."""

import math

import pytest

from apo_bench.engines.mismatch import MEASURED, chosen, mismatch, mismatch_of, sampler_rows


def test_differences_by_hand() -> None:
    """Three tokens of two responses, off by 0.5, 0 and -0.25 nats (trainer minus sampler): mean 0.25, largest 0.5.

    exp(d) - 1 - d: e^0.5 - 1.5 and e^-0.25 - 0.75.
    """
    result = mismatch([[-2.0, -1.0], [-1.0]], [[-1.5, -1.0], [-1.25]], [True, False])
    assert (result.responses, result.tokens, result.reencoded) == (2, 3, 1)
    assert (result.mean, result.largest) == pytest.approx((0.25, 0.5))
    assert result.kl == pytest.approx(math.exp(0.5) - 1.5 + math.exp(-0.25) - 0.75)


def test_equal_log_probabilities_differ_by_nothing() -> None:
    result = mismatch([[-2.0, -1.0]], [[-2.0, -1.0]], [False])
    assert (result.absolute, result.largest, result.kl, result.reencoded) == (0, 0, 0, 0)


def test_a_token_that_the_sampler_takes_for_impossible_is_a_number() -> None:
    """vLLM writes -9999 for a probability of 0."""
    assert math.isfinite(mismatch([[-9999.0]], [[-1.0]], [False]).kl)


def test_responses_are_spread_evenly() -> None:
    assert chosen(3) == [0, 1, 2]
    assert chosen(2 * MEASURED) == list(range(0, 2 * MEASURED, 2))
    assert chosen(10_000)[-1] == 10_000 - 10_000 // MEASURED - 1 or len(chosen(10_000)) == MEASURED


def test_rows_pool_artifacts() -> None:
    """One artifact of 2 tokens 0.1 off and one of 6 tokens 0.3 off: 0.25 a token. A third was sampled by the engine that trains."""
    first = mismatch([[0.0, 0.0]], [[0.1, 0.1]], [True])
    second = mismatch([[0.0] * 6] * 1, [[0.3] * 6] * 1, [False])
    artifacts = [{"sampled_responses": 1.0, **each.counts} for each in (first, second)]
    pooled = mismatch_of(artifacts)
    assert pooled is not None
    assert pooled.mean == pytest.approx(0.25)
    server, own = sampler_rows("arm", [*artifacts, {"sampled_responses": 4.0}, {"flops": 1.0}], "vllm 1.0")
    assert (server["engine"], server["responses"], server["measured"], server["tokens"]) == ("vllm 1.0", 2, 2, 8)
    assert (server["mean"], server["largest"], server["reencoded"]) == pytest.approx((0.25, 0.3, 0.5))
    assert (own["engine"], own["responses"], own["measured"]) == ("transformers", 4, None)
    assert math.isnan(own["mean"])
    assert mismatch_of([{"flops": 1.0}]) is None
