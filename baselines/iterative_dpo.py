"""Iterative Direct Preference Optimization (Rafailov et al., arXiv:2305.18290) on the best against the worst of n samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from apo_bench.lab import Lab, Player, Positive, best_worst
from apo_bench.losses import DPOLoss
from apo_bench.types import Group, Policy


@dataclass(frozen=True)
class DPO(Player):
    """Prefer the best of each prompt's samples to the worst."""

    beta: Positive = 0.1
    reference: Literal["initial", "round_start"] = "initial"

    def learn(self, lab: Lab, policy: Policy, groups: Sequence[Group], rate: float | None) -> Policy:
        pairs = best_worst(groups)
        if not pairs:  # every group tied: nothing to learn this round
            return policy
        reference = lab.initial_policy if self.reference == "initial" else policy
        return lab.train_policy(policy, pairs, DPOLoss(self.beta), reference=reference, learning_rate=rate, epochs=self.epochs)
