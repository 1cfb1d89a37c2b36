"""Losses of a reward model on preference pairs: one term a pair, no reduction."""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class RewardLoss(Protocol):
    """A reward model's loss on preference pairs: a frozen dataclass.

    A loss that is softplus(-margin) times a weight for each pair may say so by `is_weighted_ranking = True`: linear models can then be
    trained with it.
    """

    def __call__(self, margin: Tensor, golden: Tensor) -> Tensor:
        """margin (B,): score of chosen minus rejected; golden (B,) bool: a golden-over-sample pair. Returns (B,)."""
        ...


@dataclass(frozen=True)
class RankingLoss:
    """Bradley-Terry ranking, -log sigmoid(margin), on every pair alike (APO paper, Eq. 3)."""

    is_weighted_ranking: ClassVar[bool] = True

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

    @property
    def is_weighted_ranking(self) -> bool:
        return self.duel == "ranking"

    def __call__(self, margin: Tensor, golden: Tensor) -> Tensor:
        ranking = F.softplus(-margin)
        duel = ranking if self.duel == "ranking" else -margin
        return torch.where(golden, self.apo_coeff / self.samples_per_prompt * duel, ranking)
