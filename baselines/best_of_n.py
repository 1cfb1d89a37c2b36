"""Best of n: no training of the policy; at inference, sample n answers and give the one the reward model scores highest.

Alone, the reward model is fitted once, to human pairs. As APO's player it is the policy's move: the reward model then learns from
answers that its predecessor chose.
"""

from dataclasses import dataclass

from apo_bench.lab import Count, Lab, of_round, play_alone
from apo_bench.types import Policy, RewardModel


@dataclass(frozen=True)
class BestOfN:
    """Choose among n samples of the initial policy; several n are rounds, one after the other."""

    n: Count | tuple[Count, ...] = 4

    def update(self, lab: Lab, policy: Policy, reward_model: RewardModel, draw: int) -> Policy:
        return lab.best_of_n(lab.initial_policy, reward_model, of_round(self.n, draw, "n"))

    def run(self, lab: Lab) -> None:
        play_alone(lab, self, len(self.n) if isinstance(self.n, tuple) else 1)
