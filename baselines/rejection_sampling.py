"""Rejection sampling (RJS; RAFT, Dong et al., arXiv:2304.06767): fine-tune on the best of n samples by the reward model."""

from collections.abc import Sequence
from dataclasses import dataclass

from apo_bench.lab import Lab, Player, best_of
from apo_bench.losses import SFTLoss
from apo_bench.types import Group, Policy


@dataclass(frozen=True)
class RejectionSampling(Player):
    """Imitate the best of each prompt's samples."""

    def learn(self, lab: Lab, policy: Policy, groups: Sequence[Group], rate: float | None) -> Policy:
        return lab.train_policy(policy, best_of(groups), SFTLoss(), learning_rate=rate, epochs=self.epochs)
