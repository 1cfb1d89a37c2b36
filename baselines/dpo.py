"""Iterative Direct Preference Optimization (Rafailov et al., arXiv:2305.18290) on the best against the worst of n samples."""

from dataclasses import dataclass
from typing import Literal

from apo_bench.lab import Count, Lab, Positive, best_worst, play_alone
from apo_bench.losses import DPOLoss
from apo_bench.types import Policy, RewardModel


@dataclass(frozen=True)
class DPO:
    """Sample n, prefer the best to the worst by the reward model. Alone, the reward model is fitted once, to human pairs."""

    rounds: Count = 3
    prompts_per_round: Count | None = None  # None: all policy prompts, every round
    samples_per_prompt: Count = 4
    beta: Positive = 0.1
    reference: Literal["initial", "round_start"] = "initial"
    learning_rate: Positive | None = None  # None: the experiment's
    epochs: Positive | None = None

    def update(self, lab: Lab, policy: Policy, reward_model: RewardModel, draw: int) -> Policy:
        prompts = lab.prompts("policy", n=self.prompts_per_round, draw=draw)
        samples = lab.sample(policy, prompts, n=self.samples_per_prompt, draw=draw)
        pairs = best_worst(lab.score(reward_model, samples))
        if not pairs:  # every group tied: nothing to learn this round
            return policy
        reference = lab.initial_policy if self.reference == "initial" else policy
        return lab.train_policy(
            policy, pairs, DPOLoss(self.beta), reference=reference, learning_rate=self.learning_rate, epochs=self.epochs
        )

    def run(self, lab: Lab) -> None:
        play_alone(lab, self, self.rounds)
