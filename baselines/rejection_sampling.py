"""Rejection sampling (RJS; RAFT, Dong et al., arXiv:2304.06767): fine-tune on the best of n samples by the reward model."""

from dataclasses import dataclass

from apo_bench.lab import Count, Lab, Positive, best_of, play_alone
from apo_bench.losses import SFTLoss
from apo_bench.types import Policy, RewardModel


@dataclass(frozen=True)
class RejectionSampling:
    """Sample n, keep the best, imitate it. Alone, the reward model is fitted once, to human pairs."""

    rounds: Count = 3
    prompts_per_round: Count | None = None  # None: all policy prompts, every round
    samples_per_prompt: Count = 4
    learning_rate: Positive | None = None  # None: the experiment's
    epochs: Positive | None = None

    def update(self, lab: Lab, policy: Policy, reward_model: RewardModel, draw: int) -> Policy:
        prompts = lab.prompts("policy", n=self.prompts_per_round, draw=draw)
        samples = lab.sample(policy, prompts, n=self.samples_per_prompt, draw=draw)
        best = best_of(lab.score(reward_model, samples))
        return lab.train_policy(policy, best, SFTLoss(), learning_rate=self.learning_rate, epochs=self.epochs)

    def run(self, lab: Lab) -> None:
        play_alone(lab, self, self.rounds)
