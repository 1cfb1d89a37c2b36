"""A policy of a few thousand weights, demonstrations, pairs and groups to train it on, and training by the transformers engine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_tokenizers import WORDS, prompt

from apo_bench.config.schema import NeuralReward, PolicyModel, Recipe, Sampling
from apo_bench.engines.transformers import TransformersEngine
from apo_bench.losses import PolicyLoss, RewardLoss
from apo_bench.training.training_spec import Counts, PolicyTraining, RewardModelTraining
from apo_bench.types import Demonstration, Group, Pair, Policy

LLAMA = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "initializer_range": 0.2,
}  # fmt: skip
AXES = ("helpful", "harmless")
RECIPE = Recipe(learning_rate=1e-3, epochs=1, batch_size=16)
SPEC = PolicyModel(path=".", max_prompt_tokens=16, max_response_tokens=12, training=RECIPE, sampling=Sampling(max_new_tokens=8))
Weights = dict[str, torch.Tensor]


def sentences(n: int, seed: int, most: int = 8) -> list[str]:
    """1 to `most` words each, so that lengths differ."""
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, size=generator.integers(1, most + 1))) for _ in range(n)]


def demonstrations(n: int) -> list[Demonstration]:
    return [Demonstration(prompt(question), answer) for question, answer in zip(sentences(n, 1), sentences(n, 2), strict=True)]


def pairs(n: int) -> list[Pair]:
    """Every third one golden over a sample."""
    texts = zip(sentences(n, 1), sentences(n, 2), sentences(n, 3), strict=True)
    return [Pair(prompt(q), c, r, "human" if place % 3 else "golden_over_sample") for place, (q, c, r) in enumerate(texts)]


def groups(n: int) -> list[Group]:
    """Three answers of differing lengths, the scores in no order and sometimes tied."""
    scores = np.random.default_rng(6).integers(0, 4, size=(n, 3)).astype(float).tolist()
    columns = zip(sentences(n, 1), scores, *(sentences(n, seed) for seed in (2, 3, 4)), strict=True)
    return [Group(prompt(question), tuple(answers), tuple(values)) for question, values, *answers in columns]


def apart(weights: Weights, other: Weights) -> float:
    """The largest difference of any weight."""
    assert weights.keys() == other.keys()
    return max((weights[name] - other[name]).abs().max().item() for name in weights)


def train_policy(
    start: Path, data: Sequence[Any], loss: PolicyLoss, recipe: Recipe, into: Path,
    *, reference: Path | None = None, seed: int = 0, checkpoint_s: float = 600.0,
) -> Counts:  # fmt: skip
    """Train the policy in the folder `start` by a fresh engine; the model is in `into` afterwards. An absolute folder serves as a key."""
    engine = TransformersEngine(into.parent, checkpoint_s=checkpoint_s)
    reference_policy = Policy(str(reference)) if reference else None
    job = PolicyTraining(Policy(str(start)), tuple(data), loss, reference_policy, SPEC, recipe, seed)
    return engine.train_policy(job, into).counts


def train_reward_model(
    data: Sequence[Pair], loss: RewardLoss, spec: NeuralReward, into: Path, *, seed: int = 0, checkpoint_s: float = 600.0
) -> Counts:
    """Train a reward model of the spec's architecture by a fresh engine; the model is in `into` afterwards."""
    engine = TransformersEngine(into.parent, checkpoint_s=checkpoint_s)
    job = RewardModelTraining(None, None, tuple(data), loss, AXES, tuple(WORDS), spec, seed)
    return engine.train_reward_model(job, into).counts
