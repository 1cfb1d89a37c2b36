"""Losses as pure tensor maths: one term per item, and no reduction.

Training divides the sum of an update's terms by one denominator, its items or its response tokens, so that splitting an update into
micro-batches changes nothing. Losses are frozen dataclasses: their class and fields enter the keys of what is trained with them.
"""

from apo_bench.losses.likelihood import SFTLoss, token_logps
from apo_bench.losses.policy_loss import PolicyLoss, View, denominator_of
from apo_bench.losses.preference import DPOLoss, LossName, RRHFLoss, preference_loss
from apo_bench.losses.reward import APOLoss, RankingLoss, RewardLoss

__all__ = [
    "APOLoss",
    "DPOLoss",
    "LossName",
    "PolicyLoss",
    "RRHFLoss",
    "RankingLoss",
    "RewardLoss",
    "SFTLoss",
    "View",
    "denominator_of",
    "preference_loss",
    "token_logps",
]
