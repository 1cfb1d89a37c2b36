"""Iterative Direct Preference Optimization (Rafailov et al., arXiv:2305.18290) on the best against the worst of n samples.

`loss` puts another loss of pairs in DPO's place, as in `baselines/preference.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from apo_bench.lab import Lab, Player, Positive, best_worst
from apo_bench.losses import DPOLoss, PairLoss
from apo_bench.types import Group, Policy


@dataclass(frozen=True)
class DPO(Player):
    """Prefer the best of each prompt's samples to the worst."""

    beta: Positive | None = None  # None: 0.1; of DPO's own loss only
    reference: Literal["initial", "round_start"] = "initial"
    loss: PairLoss | None = None  # None: DPO's, with `beta`

    def __post_init__(self) -> None:
        if self.loss is not None and self.beta is not None:
            raise ValueError("beta is DPO's; give the loss its own, as in loss: {name: ipo, beta: 0.5}")

    def learn(self, lab: Lab, policy: Policy, groups: Sequence[Group], rate: float | None) -> Policy:
        pairs = best_worst(groups)
        if not pairs:  # every group tied: nothing to learn this round
            return policy
        loss = self.loss or DPOLoss(self.beta or 0.1)
        reference = (lab.initial_policy if self.reference == "initial" else policy) if loss.needs_reference else None
        return lab.train_policy(policy, pairs, loss, reference=reference, learning_rate=rate, epochs=self.epochs)
