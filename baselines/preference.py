"""Offline preference optimization: any loss that reads preference pairs, on human pairs or on golden responses over samples.

`loss: sigmoid` is DPO (Rafailov et al., arXiv:2305.18290); `loss: simpo`, or `loss: {name: simpo, beta: 2.5}`, another shipped loss; a
loss of one's own is `loss: {use: file.py@Class, ...}`.
"""

from dataclasses import dataclass, field
from typing import Literal

from apo_bench.lab import Count, Lab, Positive, golden_over_samples
from apo_bench.losses import DPOLoss, PairLoss


@dataclass(frozen=True)
class Preference:
    """Train the initial policy on preference pairs, one pass of the recipe a round."""

    loss: PairLoss = field(default_factory=DPOLoss)
    pairs: Literal["human", "golden_over_sample"] = "human"
    samples_per_prompt: Count = 4  # of golden_over_sample: the initial policy's, per golden response
    rounds: Count = 1
    learning_rate: Positive | None = None  # None: the experiment's
    epochs: Positive | None = None

    def run(self, lab: Lab) -> None:
        if self.pairs == "human":
            pairs = lab.pairs()
        else:
            golden = lab.golden()
            samples = lab.sample(lab.initial_policy, [response.prompt for response in golden], n=self.samples_per_prompt)
            pairs = golden_over_samples(golden, samples)
        reference = lab.initial_policy if self.loss.needs_reference else None
        policy = lab.initial_policy
        for _ in range(self.rounds):
            policy = lab.train_policy(policy, pairs, self.loss, reference=reference, learning_rate=self.learning_rate, epochs=self.epochs)
            lab.finish_round(policy)
