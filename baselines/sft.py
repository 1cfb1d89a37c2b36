"""Supervised fine-tuning on the chosen side of human pairs, or on golden responses."""

from dataclasses import dataclass
from typing import Literal

from apo_bench.lab import Count, Lab, Positive
from apo_bench.losses import SFTLoss
from apo_bench.types import Demonstration


@dataclass(frozen=True)
class SFT:
    """Imitate the annotation directly, one pass of the recipe a round."""

    on: Literal["chosen", "golden"] = "chosen"
    rounds: Count = 1
    learning_rate: Positive | None = None  # None: the experiment's
    epochs: Positive | None = None

    def run(self, lab: Lab) -> None:
        if self.on == "chosen":
            demonstrations = [Demonstration(pair.prompt, pair.chosen) for pair in lab.pairs()]
        else:
            demonstrations = [Demonstration(golden.prompt, golden.text) for golden in lab.golden()]
        policy = lab.initial_policy
        for _ in range(self.rounds):
            policy = lab.train_policy(policy, demonstrations, SFTLoss(), learning_rate=self.learning_rate, epochs=self.epochs)
            lab.finish_round(policy)
