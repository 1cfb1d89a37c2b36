"""Losses of a policy on single responses that are desirable or not. One term a response, no reduction.

Written with z, the log-ratio log pi(y | x) - log reference(y | x).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from apo_bench.errors import InputError
from apo_bench.losses.policy_loss import NotNegative, Positive, Reads, View


@dataclass(frozen=True)
class KTOLoss:
    """Kahneman-Tversky optimization (KTO, Ethayarajh et al., arXiv:2402.01306, Eq. 8; in earlier versions 7).

    A desirable response costs desirable_weight sigmoid(-beta (z - kl)), another undesirable_weight sigmoid(beta (z - kl)). `kl` estimates
    the policy's divergence from the reference: the mean log-ratio of the update's mismatched responses under the current policy, each a
    response to another prompt, at least 0 and without gradient, as in the paper and TRL. It couples an update's items.
    """

    beta: Positive = 0.1
    desirable_weight: NotNegative = 1.0
    undesirable_weight: NotNegative = 1.0
    reads: ClassVar[Reads] = "unpaired"
    needs_reference: ClassVar[bool] = True
    needs_mismatched: ClassVar[bool] = True
    couples_items: ClassVar[bool] = True

    def __call__(self, view: View) -> Tensor:
        log_ratios = view.response_logps - view.reference_response_logps
        if log_ratios.shape[1] != 2:
            raise InputError("KTOLoss: its data have no mismatched responses to estimate the KL from; see lab.with_mismatched")
        kl = log_ratios[:, 1].detach().mean().clamp(min=0)
        value = self.beta * (log_ratios[:, 0] - kl)
        return torch.where(view.labels, self.desirable_weight * (-value).sigmoid(), self.undesirable_weight * value.sigmoid())


@dataclass(frozen=True)
class BCOLoss:
    """Binary classifier optimization, unpaired (BCO, Jung et al., arXiv:2404.04656).

    A desirable response costs -log sigmoid(beta z - delta), another -log sigmoid(delta - beta z). `delta`, the reward shift, is the mean
    of beta z over the update's responses, without gradient; the paper keeps a running mean over updates, which no term could state. It
    couples an update's items.
    """

    beta: Positive = 0.1
    reads: ClassVar[Reads] = "unpaired"
    needs_reference: ClassVar[bool] = True
    couples_items: ClassVar[bool] = True

    def __call__(self, view: View) -> Tensor:
        rewards = self.beta * (view.response_logps - view.reference_response_logps)[:, 0]
        shifted = rewards - rewards.detach().mean()
        return F.softplus(torch.where(view.labels, -shifted, shifted))


@dataclass(frozen=True)
class AnchoredZeroUnpairedLoss:
    """Anchored preference optimization, zero, unpaired (D'Oosterlinck et al., arXiv:2408.06266, Eq. 7, a response at a time).

    A desirable response costs sigmoid(-beta z), another sigmoid(beta z): KTO with a KL of 0, whose terms are each item's own. TRL calls it
    apo_zero_unpaired.
    """

    beta: Positive = 0.1
    desirable_weight: NotNegative = 1.0
    undesirable_weight: NotNegative = 1.0
    reads: ClassVar[Reads] = "unpaired"
    needs_reference: ClassVar[bool] = True

    def __call__(self, view: View) -> Tensor:
        value = self.beta * (view.response_logps - view.reference_response_logps)[:, 0]
        return torch.where(view.labels, self.desirable_weight * (-value).sigmoid(), self.undesirable_weight * value.sigmoid())
