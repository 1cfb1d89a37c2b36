"""Losses as pure tensor maths: one term per item, and no reduction.

Training divides the sum of terms by one denominator shared by the whole update (items, or response tokens), so that splitting
an update into micro-batches changes nothing. Losses are frozen dataclasses because their class and fields enter memo keys.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class RewardLoss(Protocol):
    """A reward model's loss on preference pairs."""

    def __call__(self, margin: Tensor, golden: Tensor) -> Tensor:
        """margin (B,): score of chosen minus rejected; golden (B,) bool: a golden-over-sample pair. Returns (B,)."""
        ...


@dataclass(frozen=True)
class RankingLoss:
    """Bradley-Terry ranking, -log sigmoid(margin), on every pair alike (APO paper, Eq. 3)."""

    def __call__(self, margin: Tensor, golden: Tensor) -> Tensor:
        return F.softplus(-margin)


@dataclass(frozen=True)
class APOLoss:
    """The APO reward model's loss (arXiv:2311.08045): ranking on human pairs, weight 1, plus golden-over-sample pairs.

    A golden response is compared with `samples_per_prompt` samples, so each such pair weighs apo_coeff / samples_per_prompt.
    `duel` is what such a pair costs: "ranking", as a human pair; "difference", the bare -margin, a critic's as in a WGAN
    (Arjovsky et al., arXiv:1701.07875), which nothing but the recipe bounds.
    """

    apo_coeff: float
    samples_per_prompt: int
    duel: Literal["ranking", "difference"] = "ranking"

    def __call__(self, margin: Tensor, golden: Tensor) -> Tensor:
        ranking = F.softplus(-margin)
        duel = ranking if self.duel == "ranking" else -margin
        return torch.where(golden, self.apo_coeff / self.samples_per_prompt * duel, ranking)


@dataclass(frozen=True)
class SFTLoss:
    """Negative log-likelihood of a response, summed over its tokens; the shared denominator is the update's response tokens."""

    trains_on: ClassVar[Literal["demonstrations"]] = "demonstrations"

    def __call__(self, logps: Tensor, mask: Tensor) -> Tensor:
        """logps (B, T): log-probability of each token; mask (B, T): 1 on response tokens. Returns (B,)."""
        return -(logps * mask).sum(dim=1)


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


PolicyLoss = SFTLoss | DPOLoss | RRHFLoss


def token_logps(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of each token given those before it: logits (B, T, V), tokens (B, T) -> (B, T), 0 at the first position."""
    logps = -F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none")
    return F.pad(logps.view(tokens.shape[0], -1), (1, 0))
