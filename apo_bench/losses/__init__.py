"""Losses as pure tensor maths: one term per item, and no reduction.

Training divides the sum of an update's terms by one denominator, its items or its response tokens, so that splitting an update into
micro-batches changes nothing. Losses are frozen dataclasses: their class and fields enter the keys of what is trained with them.
"""

from apo_bench.losses.likelihood import SFTLoss, token_logps
from apo_bench.losses.online_algorithm import OnlineAlgorithm, Rollouts
from apo_bench.losses.policy_gradient import (
    ALGORITHMS,
    CISPO,
    DAPO,
    GRPO,
    GSPO,
    REINFORCE,
    RLOO,
    DrGRPO,
    PolicyGradient,
    PPOClip,
    REINFORCEPlusPlus,
)
from apo_bench.losses.policy_loss import PolicyLoss, View, also_reads, denominator_of, needs_mismatched
from apo_bench.losses.preference import (
    AnchoredDownLoss,
    AnchoredZeroLoss,
    AOTLoss,
    AOTUnpairedLoss,
    BCOPairLoss,
    CDPOLoss,
    DiscoPOPLoss,
    DPOLoss,
    DPOPositiveLoss,
    EXOLoss,
    FDPOLoss,
    HingeLoss,
    IPOLoss,
    LengthNormalisedDPOLoss,
    LogRatioLoss,
    NCALoss,
    RDPOLoss,
    RobustLoss,
    SPPOLoss,
    WPOLoss,
)
from apo_bench.losses.ranking import RRHFLoss
from apo_bench.losses.reference_free import CPOLoss, ORPOLoss, SimPOLoss
from apo_bench.losses.reward import APOLoss, RankingLoss, RewardLoss
from apo_bench.losses.shipped import SHIPPED, OnlineLoss, PairLoss, UnpairedLoss, shipped_algorithm, shipped_loss
from apo_bench.losses.unpaired import AnchoredZeroUnpairedLoss, BCOLoss, KTOLoss

__all__ = [
    "ALGORITHMS",
    "CISPO",
    "DAPO",
    "GRPO",
    "GSPO",
    "REINFORCE",
    "RLOO",
    "SHIPPED",
    "AOTLoss",
    "AOTUnpairedLoss",
    "APOLoss",
    "AnchoredDownLoss",
    "AnchoredZeroLoss",
    "AnchoredZeroUnpairedLoss",
    "BCOLoss",
    "BCOPairLoss",
    "CDPOLoss",
    "CPOLoss",
    "DPOLoss",
    "DPOPositiveLoss",
    "DiscoPOPLoss",
    "DrGRPO",
    "EXOLoss",
    "FDPOLoss",
    "HingeLoss",
    "IPOLoss",
    "KTOLoss",
    "LengthNormalisedDPOLoss",
    "LogRatioLoss",
    "NCALoss",
    "ORPOLoss",
    "OnlineAlgorithm",
    "OnlineLoss",
    "PPOClip",
    "PairLoss",
    "PolicyGradient",
    "PolicyLoss",
    "RDPOLoss",
    "REINFORCEPlusPlus",
    "RRHFLoss",
    "RankingLoss",
    "RewardLoss",
    "RobustLoss",
    "Rollouts",
    "SFTLoss",
    "SPPOLoss",
    "SimPOLoss",
    "UnpairedLoss",
    "View",
    "WPOLoss",
    "also_reads",
    "denominator_of",
    "needs_mismatched",
    "shipped_algorithm",
    "shipped_loss",
    "token_logps",
]
