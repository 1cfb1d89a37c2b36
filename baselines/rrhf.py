"""Rank Responses to align with Human Feedback (RRHF, Yuan et al., arXiv:2304.05302), on all n samples of the policy itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from apo_bench.lab import Lab, Player, Positive
from apo_bench.losses import RRHFLoss
from apo_bench.types import Group, Policy


@dataclass(frozen=True)
class RRHF(Player):
    """Make likelier what is scored higher, and imitate the best."""

    ranking_weight: Positive = 1.0  # beside the imitation of the best; the paper adds the two as they are
    # The authors' code averages the imitation over the padded length L, so their weight w is w x L here; or as it is, with "padded_mean".
    imitation: Literal["sum", "padded_mean"] = "sum"

    def learn(self, lab: Lab, policy: Policy, groups: Sequence[Group], rate: float | None) -> Policy:
        loss = RRHFLoss(self.ranking_weight, self.imitation)
        return lab.train_policy(policy, groups, loss, learning_rate=rate, epochs=self.epochs)
