"""Online DPO (Guo et al., arXiv:2402.04792; Rafailov et al., arXiv:2305.18290): pairs from the current policy at every step.

A pair is the best against the worst of a prompt's samples by the reward model; `loss` puts another loss of pairs in DPO's place. The
iterative form, which samples once a round, is `baselines/iterative_dpo.py`.
"""

from dataclasses import dataclass, field

from apo_bench.lab import OnlinePlayer
from apo_bench.losses import DPOLoss, PairLoss


@dataclass(frozen=True)
class OnlineDPO(OnlinePlayer):
    """Prefer the best of each prompt's samples to the worst, with fresh samples at every step."""

    loss: PairLoss = field(default_factory=DPOLoss)

    @property
    def algorithm(self) -> PairLoss:
        return self.loss
