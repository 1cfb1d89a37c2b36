"""A model reads no more than it has places for: huggingface/transformers#14243."""

from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_experiment import foreign_tree, refusal
from foreign_models import policy_folder, reward_folder, tokenizer
from transformers import AutoModelForSequenceClassification

from apo_bench.errors import InputError
from apo_bench.judging.judge_protocol import JudgeContext, Question
from apo_bench.judging.reward_judge import TOO_LONG, RewardModelJudge
from apo_bench.models.model_folder import context_length
from apo_bench.types import Message, Prompt

PROMPT = Prompt("p", (Message("user", "b"),), "helpful", "p")


def encoder(folder: Path, kind: str, positions: int) -> Path:
    return reward_folder(folder, tokenizer(template=False), model_type=kind, max_position_embeddings=positions, pad_token_id=1)


@pytest.mark.parametrize(("kind", "expected"), [("bert", 128), ("roberta", 126), ("xlm-roberta", 126), ("distilbert", 128), ("mpnet", 126)])
def test_places_are_those_that_the_model_can_read(tmp_path: Path, kind: str, expected: int) -> None:
    """By trial: so many tokens go through, one more does not. RoBERTa counts positions from after its padding token, 1."""
    fields = {"model_type": kind, "max_position_embeddings": 128, "pad_token_id": 1, "vocab_size": 300}
    if kind == "distilbert":
        fields |= {"dim": 32, "hidden_dim": 64, "n_layers": 1, "n_heads": 2}
    model = AutoModelForSequenceClassification.from_pretrained(reward_folder(tmp_path, tokenizer(), **fields)).eval()
    assert context_length(model.config) == expected
    with torch.no_grad():
        model(torch.full((1, expected), 7))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, expected + 1), 7))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_judge_counts_what_is_too_long(tmp_path: Path, kind: str) -> None:
    """About 300 bytes for 128 places; the other question has about 30."""
    questions = [Question(PROMPT, "yes " * 75, "no"), Question(PROMPT, "yes", "no")]
    judge = RewardModelJudge(path=str(encoder(tmp_path, kind, 128)), template="transcript").open(JudgeContext(None))
    failures = [verdict.failure for _, verdict in judge.verdicts(questions)]
    assert failures == [TOO_LONG, ""]


def test_a_judge_of_more_tokens_than_places_is_refused(tmp_path: Path) -> None:
    folder = encoder(tmp_path, "roberta", 128)
    with pytest.raises(InputError, match=r"max_tokens: 127 tokens, but the model's context has 126"):
        RewardModelJudge(path=str(folder), max_tokens=127).open(JudgeContext(None))


@pytest.mark.parametrize(("kind", "tokens"), [("bert", 129), ("roberta", 127)])
@pytest.mark.parametrize(
    "spec", [{"kind": "pretrained", "template": "transcript"}, {"kind": "neural", "training": {"learning_rate": 1e-4}}]
)
def test_check_refuses_more_tokens_than_places(tmp_path: Path, kind: str, tokens: int, spec: dict[str, Any]) -> None:
    folder = encoder(tmp_path / "gold", kind, 128)
    tree = foreign_tree(policy_folder(tmp_path / "policy"), {**spec, "path": str(folder), "max_tokens": tokens})
    assert f"models.gold.0.model.max_tokens: {tokens} tokens, but the model's context has {tokens - 1}" in refusal(tmp_path, tree)
