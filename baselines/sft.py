"""Supervised fine-tuning on the chosen side of human pairs, or on golden responses; alone, or before a player's moves."""

from dataclasses import dataclass
from typing import Literal

from apo_bench.lab import Count, Lab, PolicyUpdate, Positive, play_alone
from apo_bench.losses import SFTLoss
from apo_bench.types import Demonstration


@dataclass(frozen=True)
class SFT:
    """Imitate the annotation directly, one pass of the recipe a round. With `then`, that is only the start, and a player's rounds count."""

    imitate: Literal["chosen", "golden"] = "chosen"
    rounds: Count = 1
    learning_rate: Positive | None = None  # None: the experiment's
    epochs: Positive | None = None
    then: PolicyUpdate | None = None
    then_rounds: Count = 3

    def run(self, lab: Lab) -> None:
        if self.imitate == "chosen":
            demonstrations = [Demonstration(pair.prompt, pair.chosen) for pair in lab.pairs()]
        else:
            demonstrations = [Demonstration(golden.prompt, golden.text) for golden in lab.golden()]
        policy = lab.initial_policy
        for _ in range(self.rounds):
            policy = lab.train_policy(policy, demonstrations, SFTLoss(), learning_rate=self.learning_rate, epochs=self.epochs)
            if self.then is None:
                lab.finish_round(policy)
        if self.then is not None:
            play_alone(lab, self.then, self.then_rounds, start=policy)
