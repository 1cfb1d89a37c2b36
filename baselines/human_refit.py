"""The control of APO's reward-model step (RM_AB in Cheng et al., arXiv:2311.08045): refitted every round, on human pairs alone.

In place of APO's golden-over-sample pairs it reads human pairs a second time, other ones each round. So its reward models take as many
updates as APO's and differ from round to round as APO's do, without a golden response and without an adversary.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from apo_bench.lab import Count, Lab, PolicyUpdate
from apo_bench.losses import RankingLoss


@dataclass(frozen=True)
class HumanRefit:
    """Any player against a reward model that is fitted anew to human pairs before each of its moves."""

    trains_reward_model: ClassVar[bool] = True  # a finished one only by a recipe of its own

    player: PolicyUpdate  # the policy's move
    repeated_pairs: Count  # human pairs that a round reads a second time; as APO's: golden responses x samples_per_prompt
    rounds: Count = 3
    start: Literal["base", "previous"] = "base"  # each round's reward model starts from the base model or goes on

    def run(self, lab: Lab) -> None:
        human = lab.pairs()
        policy, reward_model = lab.initial_policy, None
        for round_ in range(self.rounds):
            first = round_ * self.repeated_pairs
            again = [human[(first + place) % len(human)] for place in range(self.repeated_pairs)]
            previous = reward_model if self.start == "previous" else None
            reward_model = lab.train_reward_model(human, again, loss=RankingLoss(), start=previous)
            policy = self.player.update(lab, policy, reward_model, draw=round_)
            lab.finish_round(policy, reward_model)
