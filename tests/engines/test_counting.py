"""Counts of many items at once against counts one by one."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_world import tiny_task, tiny_tree

from apo_bench.config.schema import Experiment
from apo_bench.engines import counting
from apo_bench.engines.counting import CountingStore, Estimated, Expected
from apo_bench.engines.model_sizes import Placeholder, RewardSize, policy_size
from apo_bench.engines.protocol import Items
from apo_bench.hashing import digest, digest_encoded

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return Experiment.model_validate(tiny_tree())


@pytest.fixture(scope="module")
def expected(experiment: Experiment) -> Expected:
    return Expected(experiment, tiny_task())


def placeholder(body: str, name: str, tokens: int) -> Placeholder:
    text = Placeholder(body + name)
    text.body, text.tokens = body, tokens
    return text


def test_conversations_one_by_one(experiment: Experiment, expected: Expected) -> None:
    """A prompt's tokens and a response's, cut at max_tokens; of a placeholder its body's and one for its name."""
    spec = experiment.models.reward.model_copy(update={"max_tokens": 20})
    size: RewardSize = expected.reward(spec)  # pyright: ignore[reportArgumentType]
    pairs = tiny_task().pairs["rm"][:30]
    prompts = [pair.prompt for pair in pairs] * 2
    answers = [placeholder(f"{pair.rejected} ", f"n{place}", 9) for place, pair in enumerate(pairs)]
    texts: list[str] = [*(pair.chosen for pair in pairs), *answers]

    def counted(place: int) -> int:
        text = texts[place]
        response = size.text(text.body) + 1 if isinstance(text, Placeholder) else size.text(text)
        return min(20, size.prompt(prompts[place]) + response)

    lengths = size.conversations(prompts, texts)
    assert lengths == [counted(place) for place in range(60)]
    assert max(lengths) == 20 > min(lengths)
    flops = sum(size.forward_flops([length]) for length in lengths)
    assert size.scored(list(zip(prompts, texts, strict=True))) == {
        "scored_responses": 60, "scored_tokens": sum(lengths), "flops": pytest.approx(flops, rel=1e-12),
    }  # fmt: skip
    assert size.trained(pairs)["rm_train_tokens"] == pytest.approx(
        sum(size.conversations([pair.prompt], [text])[0] for pair in pairs for text in (pair.chosen, pair.rejected))
        * spec.training.updates(30) / -(-30 // spec.training.batch_size)  # pyright: ignore[reportAttributeAccessIssue]
    )  # fmt: skip


def test_samples_one_by_one(experiment: Experiment) -> None:
    size = policy_size(experiment.models.policy, tiny_task().vocabulary)
    prompts = tiny_task().prompts["policy"][:5]
    tokens = [3, 4, 4, 3, 7, 7, 3, 4, 9, 1]
    flops = [size._size.generation(size.prompt(prompt), tokens[2 * place : 2 * place + 2]) for place, prompt in enumerate(prompts)]
    counts = size.sampled(prompts, 2, tokens)
    assert counts == {"sampled_responses": 10, "sampled_tokens": 45, "flops": pytest.approx(sum(flops), rel=1e-12)}


def test_items_are_encoded_as_their_digest_reads_them() -> None:
    pairs = tiny_task().pairs["rm"][:3]
    items = Items.of([(pair.prompt, pair.chosen) for pair in pairs])
    rows = [(pair.prompt.id, pair.chosen) for pair in pairs]
    assert digest_encoded(items.encoded) == digest(rows)
    assert digest_encoded(f'["key",{items.encoded}]') == digest(["key", rows])
    assert Items.of(items) is items


def computing(n: int, calls: list[str]) -> Callable[[Path], Any]:
    def compute(into: Path) -> Any:
        calls.append(into.name)
        return Estimated([0.0] * n, {}, 0.0, 0.0)

    return compute


def test_what_arms_share_is_counted_once_and_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for 10: a (4), b (4), a, c (4): b goes, and a stays; every artifact is planned all the same."""
    monkeypatch.setattr(counting, "KEPT", 10)
    store, calls = CountingStore(), list[str]()
    for name in "abacab":
        artifact, value = store.computed("scores", {"name": name}, computing(4, calls))
        assert artifact.folder == Path(os.devnull)
        assert value == [0.0] * 4
    assert len(calls) == 4
    assert calls[0] != calls[1] == calls[3]
    assert len(store.planned) == 3
