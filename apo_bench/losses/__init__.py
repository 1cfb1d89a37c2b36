"""Losses as pure tensor maths: one term per item, and no reduction.

Training divides the sum of terms by one denominator shared by the whole update (items, or response tokens), so that splitting
an update into micro-batches changes nothing. Losses are frozen dataclasses because their class and fields enter memo keys.
"""

from apo_bench.losses.likelihood import SFTLoss, token_logps
from apo_bench.losses.preference import DPOLoss, RRHFLoss
from apo_bench.losses.reward import APOLoss, RankingLoss, RewardLoss

PolicyLoss = SFTLoss | DPOLoss | RRHFLoss

__all__ = ["APOLoss", "DPOLoss", "PolicyLoss", "RRHFLoss", "RankingLoss", "RewardLoss", "SFTLoss", "token_logps"]
