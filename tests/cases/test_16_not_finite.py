"""A fit that diverges ends there: huggingface/trl#3042, OpenRLHF/OpenRLHF#209."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import tiny_bench, tiny_lab

from apo_bench.config.schema import NeuralReward, Recipe
from apo_bench.errors import InputError
from apo_bench.losses import RankingLoss, SFTLoss
from apo_bench.training import trainer
from apo_bench.types import Demonstration

pytestmark = pytest.mark.slow
HUGE = {"learning_rate": 1e30, "epochs": 3.0, "batch_size": 4}


def test_a_reward_model_that_diverges(tmp_path: Path) -> None:
    """A step of 1e30 squares to more than fp32 holds."""
    bench = tiny_bench(tmp_path)
    spec = NeuralReward(initial="policy", training=Recipe(**HUGE), max_tokens=48)
    lab = tiny_lab(bench, reward_model=spec)
    with pytest.raises(InputError, match=r"reward model: the loss of update 2 of \d+ is (nan|inf)"):
        lab.train_reward_model(lab.pairs(12), loss=RankingLoss())


def test_a_policy_that_diverges(tmp_path: Path) -> None:
    bench = tiny_bench(tmp_path)
    lab = tiny_lab(bench)
    data = [Demonstration(pair.prompt, pair.chosen) for pair in lab.pairs(12)]
    with pytest.raises(InputError, match=r"policy: the loss of update 2 of \d+ is (nan|inf)"):
        lab.train_policy(lab.initial_policy, data, SFTLoss(), recipe=Recipe(**HUGE))


def test_weights_after_the_last_update() -> None:
    """One update from a finite loss, sqrt(1) = 1 of a gradient that is infinite at 0: the derivative of sqrt."""
    model: Any = torch.nn.Linear(1, 1, bias=False)
    model.supports_gradient_checkpointing = False
    torch.nn.init.zeros_(model.weight)
    items = [{"size": 1, "length": 1}]

    def collate(batch: Any) -> dict[str, torch.Tensor]:
        return {"attention_mask": torch.ones(len(batch), 1)}

    def terms(model: Any, batch: Any) -> torch.Tensor:
        return model.weight.abs().sqrt().sum(dim=1) + 0 * batch["attention_mask"][:, 0]

    with pytest.raises(InputError, match="policy: after update 1, the last, weight is not finite"):
        trainer.fit(model, items, collate, terms, Recipe(learning_rate=1.0, batch_size=1), 0, name="policy")
