"""Losses of a policy on preferences: pairs, or all n scored responses to a prompt. One term an item, no reduction."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from apo_bench.losses.policy_loss import PolicyLoss, Reads, View

LossName = Literal["sigmoid"]


@dataclass(frozen=True)
class DPOLoss:
    """Direct Preference Optimization (Rafailov et al., arXiv:2305.18290, Eq. 7): -log sigmoid(beta * difference of log-ratios)."""

    beta: float = 0.1
    reads: ClassVar[Reads] = "pairs"
    needs_reference: ClassVar[bool] = True

    def __call__(self, view: View) -> Tensor:
        chosen, rejected = (view.response_logps - view.reference_response_logps).unbind(dim=1)
        return F.softplus(-self.beta * (chosen - rejected))


@dataclass(frozen=True)
class RRHFLoss:
    """Rank Responses to align with Human Feedback (Yuan et al., arXiv:2304.05302, Eqs. 2-5), over all n responses to a prompt.

    Responses are compared by their length-normalised log-probabilities p = log pi(y | x) / |y|: every response that is likelier than
    one scored above it costs the difference. Added is the negative log-likelihood of the best-scored one; among equals the first.
    """

    ranking_weight: float = 1.0
    reads: ClassVar[Reads] = "groups"
    needs_reference: ClassVar[bool] = False

    def __call__(self, view: View) -> Tensor:
        logps, scores = view.response_logps, view.scores
        p = logps / view.lengths
        worse = scores[:, :, None] < scores[:, None, :]  # (B, i, j): i is scored below j
        ranking = ((p[:, :, None] - p[:, None, :]).clamp(min=0) * worse).sum(dim=(1, 2))
        best = logps.gather(1, scores.argmax(dim=1, keepdim=True)).squeeze(1)
        return self.ranking_weight * ranking - best


def preference_loss(loss: PolicyLoss | LossName) -> PolicyLoss:
    """A loss on preference pairs by its name, with its default parameters; a loss as it is."""
    return {"sigmoid": DPOLoss}[loss]() if isinstance(loss, str) else loss
