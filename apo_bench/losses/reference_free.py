"""Losses of a policy on preference pairs without a reference. One term a pair, no reduction."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from apo_bench.losses.policy_loss import NotNegative, Positive, Reads, View


@dataclass(frozen=True)
class SimPOLoss:
    """Simple preference optimization (SimPO, Meng et al., arXiv:2405.14734, Eq. 6): -log sigmoid(beta (p_chosen - p_rejected) - gamma).

    p = log pi(y | x) / |y|. `gamma`: margin of the reward beta p, which is TRL's simpo_gamma.
    """

    beta: Positive = 2.0
    gamma: NotNegative = 1.0
    reads: ClassVar[Reads] = "pairs"
    needs_reference: ClassVar[bool] = False

    def __call__(self, view: View) -> Tensor:
        chosen, rejected = (view.response_logps / view.lengths).unbind(dim=1)
        return F.softplus(self.gamma - self.beta * (chosen - rejected))


@dataclass(frozen=True)
class ORPOLoss:
    """Odds ratio preference optimization (ORPO, Hong et al., arXiv:2403.07691, Eqs. 4, 6, 7).

    -p_chosen - beta log sigmoid(log odds(chosen) - log odds(rejected)); p = log pi(y | x) / |y|, log odds = p - log(1 - e^p). `beta` is
    the paper's lambda. The likelihood is of the response, a mean of its own tokens; TRL's adds the prompt, over all of a batch's tokens.
    """

    beta: NotNegative = 0.1
    reads: ClassVar[Reads] = "pairs"
    needs_reference: ClassVar[bool] = False

    def __call__(self, view: View) -> Tensor:
        p = view.response_logps / view.lengths
        chosen, rejected = (p - (-p.expm1()).log()).unbind(dim=1)
        return self.beta * F.softplus(rejected - chosen) - p[:, 0]


@dataclass(frozen=True)
class CPOLoss:
    """Contrastive preference optimization (CPO, Xu et al., arXiv:2401.08417, Eq. 3 and its likelihood term).

    -log sigmoid(beta (log pi(chosen) - log pi(rejected))) - likelihood_weight log pi(chosen) / |chosen|. The paper sums the likelihood
    over tokens; TRL takes one mean over all of a batch's tokens, here it is the mean of each response.
    """

    beta: Positive = 0.1
    likelihood_weight: NotNegative = 1.0
    reads: ClassVar[Reads] = "pairs"
    needs_reference: ClassVar[bool] = False

    def __call__(self, view: View) -> Tensor:
        chosen, rejected = view.response_logps.unbind(dim=1)
        return F.softplus(-self.beta * (chosen - rejected)) - self.likelihood_weight * chosen / view.lengths[:, 0]
