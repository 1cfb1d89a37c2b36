"""A trainer of TRL as an arm: supervised, on preference pairs or single responses, or sampling and scored by the arm's reward model.

It reads human pairs: their chosen sides as demonstrations, or both sides as responses that are desirable or not; or prompts. `args` are
arguments of its configuration; the experiment decides all that other arms share, such as learning rate, batches and sampling.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from apo_bench.lab import Count, Lab, Positive, trl_trainer
from apo_bench.losses import RankingLoss
from apo_bench.types import Demonstration, Policy, RewardModel, UnpairedExample


@dataclass(frozen=True)
class TRLTrainer:
    """Train the initial policy, one pass of the recipe a round, each from the round before, which is its reference. As a player: online."""

    in_one_process: ClassVar[bool] = True  # no `executor.launch`

    trainer: str  # such as trl.DPOTrainer, or trl.experimental.online_dpo.OnlineDPOTrainer
    args: Mapping[str, Any] = field(default_factory=dict)
    rounds: Count = 1
    prompts_per_round: Count | None = None  # of a trainer that samples; None: all policy prompts
    learning_rate: Positive | None = None  # None: the experiment's
    epochs: Positive | None = None

    def __post_init__(self) -> None:
        trl_trainer(self.trainer, self.args)  # refuses those that cannot be arms

    def run(self, lab: Lab) -> None:
        policy, reward_model, reads = lab.initial_policy, None, trl_trainer(self.trainer).reads
        if reads == "prompts":
            reward_model = lab.finished_reward_model or lab.train_reward_model(lab.pairs(), loss=RankingLoss())
        for round_ in range(self.rounds):
            if reward_model is None:
                policy = self.trained(lab, policy, offline_data(lab, reads))
            else:
                policy = self.update(lab, policy, reward_model, draw=round_)
            lab.finish_round(policy, reward_model)

    def update(self, lab: Lab, policy: Policy, reward_model: RewardModel, draw: int) -> Policy:
        return self.trained(lab, policy, lab.prompts("policy", n=self.prompts_per_round, draw=draw), reward_model)

    def trained(self, lab: Lab, policy: Policy, data: Any, reward_model: RewardModel | None = None) -> Policy:
        return lab.train_with_trl(
            policy, data, self.trainer, args=self.args, reward_model=reward_model, learning_rate=self.learning_rate, epochs=self.epochs
        )


def offline_data(lab: Lab, reads: str) -> list[Any]:
    """Human pairs in the form that is read."""
    pairs = lab.pairs()
    if reads == "demonstrations":
        return [Demonstration(pair.prompt, pair.chosen) for pair in pairs]
    if reads == "unpaired":
        desirable = [UnpairedExample(pair.prompt, pair.chosen, desirable=True) for pair in pairs]
        return [*desirable, *(UnpairedExample(pair.prompt, pair.rejected, desirable=False) for pair in pairs)]
    return list(pairs)
