"""Losses of a policy on preferences: pairs, or all n scored responses to a prompt. One term an item, no reduction."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class DPOLoss:
    """Direct Preference Optimization (Rafailov et al., arXiv:2305.18290, Eq. 7): -log sigmoid(beta * difference of log-ratios)."""

    beta: float
    trains_on: ClassVar[Literal["pairs"]] = "pairs"

    def __call__(self, chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor) -> Tensor:
        """All (B,): log-probabilities of whole responses, summed over tokens. Returns (B,)."""
        return F.softplus(-self.beta * ((chosen - reference_chosen) - (rejected - reference_rejected)))


@dataclass(frozen=True)
class RRHFLoss:
    """Rank Responses to align with Human Feedback (Yuan et al., arXiv:2304.05302, Eqs. 2-5), over all n responses to a prompt.

    Responses are compared by their length-normalised log-probabilities p = log pi(y | x) / |y|: every response that is likelier than
    one scored above it costs the difference. Added is the negative log-likelihood of the best-scored one; among equals the first.
    """

    ranking_weight: float = 1.0
    trains_on: ClassVar[Literal["groups"]] = "groups"

    def __call__(self, logps: Tensor, lengths: Tensor, scores: Tensor) -> Tensor:
        """All (B, n): log-probabilities summed over tokens, token counts, the reward model's scores. Returns (B,)."""
        p = logps / lengths
        worse = scores[:, :, None] < scores[:, None, :]  # (B, i, j): i is scored below j
        ranking = ((p[:, :, None] - p[:, None, :]).clamp(min=0) * worse).sum(dim=(1, 2))
        best = logps.gather(1, scores.argmax(dim=1, keepdim=True)).squeeze(1)
        return self.ranking_weight * ranking - best
