"""Kahneman-Tversky optimization (KTO, Ethayarajh et al., arXiv:2402.01306), or another loss of single responses that are good or bad.

Human pairs are read as their users read them: each chosen response is desirable, each rejected one is not, and which belong together is
forgotten. A pair is two items, so at the same batch size an epoch takes twice the updates that it takes on pairs.
"""

from dataclasses import dataclass, field

from apo_bench.lab import Count, Lab, Positive, with_mismatched
from apo_bench.losses import KTOLoss, UnpairedLoss, needs_mismatched
from apo_bench.types import UnpairedExample


@dataclass(frozen=True)
class KTO:
    """Train the initial policy on the sides of human pairs, one pass of the recipe a round."""

    loss: UnpairedLoss = field(default_factory=KTOLoss)
    rounds: Count = 1
    learning_rate: Positive | None = None  # None: the experiment's
    epochs: Positive | None = None

    def run(self, lab: Lab) -> None:
        pairs = lab.pairs()
        desirable = [UnpairedExample(pair.prompt, pair.chosen, desirable=True) for pair in pairs]
        undesirable = [UnpairedExample(pair.prompt, pair.rejected, desirable=False) for pair in pairs]
        examples = desirable + undesirable
        if needs_mismatched(self.loss):
            examples = with_mismatched(examples)
        reference = lab.initial_policy if self.loss.needs_reference else None
        policy = lab.initial_policy
        for _ in range(self.rounds):
            policy = lab.train_policy(
                policy, examples, self.loss, reference=reference, learning_rate=self.learning_rate, epochs=self.epochs
            )
            lab.finish_round(policy)
