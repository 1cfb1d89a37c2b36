"""Losses of a policy on preference pairs that compare it with a reference. One term a pair, no reduction.

Written with c and r, the log-ratios log pi(y | x) - log reference(y | x) of the chosen and the rejected response, and m = beta (c - r).
Equations are numbered as TRL's source, an author's code or a transcription of the paper has them, and not at all where none of these was
there; versions of a paper may number otherwise. Where a paper is known to differ from what is computed here, its docstring says so.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Gt, Lt
from torch import Tensor

from apo_bench.errors import InputError
from apo_bench.losses.policy_loss import FlipRate, NotNegative, PolicyLoss, Positive, Reads, View


def log_ratios(view: View) -> tuple[Tensor, Tensor]:
    """c and r, (B,) each."""
    chosen, rejected = (view.response_logps - view.reference_response_logps).unbind(dim=1)
    return chosen, rejected


def mean_log_ratios(view: View) -> tuple[Tensor, Tensor]:
    """c / |chosen| and r / |rejected|, (B,) each."""
    chosen, rejected = ((view.response_logps - view.reference_response_logps) / view.lengths).unbind(dim=1)
    return chosen, rejected


@dataclass(frozen=True)
class LogRatioLoss:
    """What losses of c and r have in common. `beta`: strength of the pull to the reference."""

    beta: Positive = 0.1
    reads: ClassVar[Reads] = "pairs"
    needs_reference: ClassVar[bool] = True

    def __call__(self, view: View) -> Tensor:
        return self.of(*log_ratios(view))

    def of(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """The terms, (B,), from c and r, (B,) each."""
        raise NotImplementedError


@dataclass(frozen=True)
class DPOLoss(LogRatioLoss):
    """Direct Preference Optimization (Rafailov et al., arXiv:2305.18290, Eq. 7): -log sigmoid(m)."""

    def of(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return F.softplus(-self.beta * (chosen - rejected))


@dataclass(frozen=True)
class HingeLoss(LogRatioLoss):
    """Hinge loss of SLiC on log-ratios (Liu et al., arXiv:2309.06657; Zhao et al., arXiv:2305.10425): max(0, 1 - m)."""

    def of(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return (1 - self.beta * (chosen - rejected)).clamp(min=0)


@dataclass(frozen=True)
class IPOLoss(LogRatioLoss):
    """Identity Preference Optimization (Azar et al., arXiv:2310.12036, Eq. 17): (c / |chosen| - r / |rejected| - 1 / (2 beta))^2.

    The paper writes sums over tokens; with means, as here and in TRL, its authors obtained their results. `beta` is their tau.
    """

    def __call__(self, view: View) -> Tensor:
        chosen, rejected = mean_log_ratios(view)
        return (chosen - rejected - 1 / (2 * self.beta)) ** 2


@dataclass(frozen=True)
class CDPOLoss(LogRatioLoss):
    """Conservative DPO (Mitchell, ericmitchell.ai/cdpo.pdf, Eq. 3): -(1 - e) log sigmoid(m) - e log sigmoid(-m), e the label smoothing."""

    label_smoothing: FlipRate = 0.1

    def of(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        margin = self.beta * (chosen - rejected)
        return (1 - self.label_smoothing) * F.softplus(-margin) + self.label_smoothing * F.softplus(margin)


@dataclass(frozen=True)
class RobustLoss(LogRatioLoss):
    """Provably robust DPO (Chowdhury et al., arXiv:2403.00409): (-(1 - e) log sigmoid(m) + e log sigmoid(-m)) / (1 - 2 e).

    Its mean over preferences of which the share e is flipped is DPO's over true ones. It has no lower bound.
    """

    label_smoothing: FlipRate = 0.1

    def of(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        margin, rate = self.beta * (chosen - rejected), self.label_smoothing
        return ((1 - rate) * F.softplus(-margin) - rate * F.softplus(margin)) / (1 - 2 * rate)


@dataclass(frozen=True)
class EXOLoss(LogRatioLoss):
    """Efficient exact optimization (Ji et al., arXiv:2402.00856, Eq. 16): KL of (sigmoid(m), sigmoid(-m)) from (1 - e, e)."""

    label_smoothing: Annotated[float, Gt(0), Lt(0.5)] = 1e-3

    def of(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        margin = self.beta * (chosen - rejected)
        wins = margin.sigmoid() * (F.logsigmoid(margin) - math.log1p(-self.label_smoothing))
        return wins + (-margin).sigmoid() * (F.logsigmoid(-margin) - math.log(self.label_smoothing))


@dataclass(frozen=True)
class NCALoss(LogRatioLoss):
    """Noise contrastive alignment, pairs (Chen et al., arXiv:2402.05369).

    -log sigmoid(beta c) - (log sigmoid(-beta c) + log sigmoid(-beta r)) / 2.
    """

    def of(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        chosen, rejected = self.beta * chosen, self.beta * rejected
        return F.softplus(-chosen) + (F.softplus(chosen) + F.softplus(rejected)) / 2


@dataclass(frozen=True)
class BCOPairLoss(LogRatioLoss):
    """Binary classifier optimization, pairs (Jung et al., arXiv:2404.04656): -log sigmoid(beta c) - log sigmoid(-beta r).

    Without the paper's reward shift, as in TRL.
    """

    def of(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return F.softplus(-self.beta * chosen) + F.softplus(self.beta * rejected)


@dataclass(frozen=True)
class SPPOLoss(LogRatioLoss):
    """Self-play preference optimization, hard labels (Wu et al., arXiv:2405.00675, Eq. 4.7): (c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2.

    The probability of winning is 1 for the chosen and 0 for the rejected response. The paper's eta is 1 / beta, and 1000.
    """

    def of(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return (chosen - 0.5 / self.beta) ** 2 + (rejected + 0.5 / self.beta) ** 2


@dataclass(frozen=True)
class AnchoredZeroLoss(LogRatioLoss):
    """Anchored preference optimization, zero (D'Oosterlinck et al., arXiv:2408.06266, Eq. 7): 1 - sigmoid(beta c) + sigmoid(beta r).

    For chosen responses that are better than the policy's own. TRL calls it apo_zero.
    """

    def of(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return (-self.beta * chosen).sigmoid() + (self.beta * rejected).sigmoid()


@dataclass(frozen=True)
class AnchoredDownLoss(LogRatioLoss):
    """Anchored preference optimization, down (D'Oosterlinck et al., arXiv:2408.06266, Eq. 8): sigmoid(beta c) + 1 - sigmoid(m).

    For chosen responses that are worse than the policy's own. TRL calls it apo_down.
    """

    def of(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return (self.beta * chosen).sigmoid() + (-self.beta * (chosen - rejected)).sigmoid()


@dataclass(frozen=True)
class DiscoPOPLoss(LogRatioLoss):
    """Discovered preference optimization (Lu et al., arXiv:2406.08414, Eq. 5): -(1 - s) log sigmoid(m) + s exp(-m).

    s = sigmoid(m / tau).
    """

    tau: Positive = 0.05

    def of(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        margin = self.beta * (chosen - rejected)
        share = (margin / self.tau).sigmoid()
        return (1 - share) * F.softplus(-margin) + share * (-margin).exp()


@dataclass(frozen=True)
class DPOPositiveLoss(LogRatioLoss):
    """DPO-positive (Pal et al., arXiv:2402.13228): -log sigmoid(m - beta penalty max(0, -c)).

    A chosen response may not become less likely than under the reference. `penalty` is the paper's lambda.
    """

    penalty: NotNegative = 50.0

    def of(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return F.softplus(-self.beta * (chosen - rejected - self.penalty * (-chosen).clamp(min=0)))


@dataclass(frozen=True)
class LengthNormalisedDPOLoss(LogRatioLoss):
    """Length-normalised DPO (Lambert et al., arXiv:2411.15124, Eq. 6): -log sigmoid(beta (c / |chosen| - r / |rejected|)).

    Means are small where sums are large: beta is usually above 1.
    """

    def __call__(self, view: View) -> Tensor:
        chosen, rejected = mean_log_ratios(view)
        return F.softplus(-self.beta * (chosen - rejected))


@dataclass(frozen=True)
class RDPOLoss(LogRatioLoss):
    """Length-regularised DPO (R-DPO, Park et al., arXiv:2403.19159): -log sigmoid(m + alpha (|chosen| - |rejected|)).

    `alpha`: reward that a token costs.
    """

    alpha: NotNegative = 0.01

    def __call__(self, view: View) -> Tensor:
        chosen, rejected = log_ratios(view)
        longer = view.lengths[:, 0] - view.lengths[:, 1]
        return F.softplus(-self.beta * (chosen - rejected) - self.alpha * longer)


@dataclass(frozen=True)
class FDPOLoss(LogRatioLoss):
    """DPO under another divergence than KL (f-DPO, Wang et al., arXiv:2309.16240): -log sigmoid(beta (f'(e^c) - f'(e^r))).

    f'(u) is, but for constants: reverse_kl log u, which is DPO; forward_kl -1 / u; js log(u / (1 + u)); alpha -u^-alpha / alpha, between
    the two KLs (TRL's coefficient is 1 - alpha). forward_kl and alpha overflow where a response has become e^88 times less likely.
    """

    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "js"
    alpha: Annotated[float, Gt(0), Lt(1)] = 0.5

    def of(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return F.softplus(-self.beta * (self._derivative(chosen) - self._derivative(rejected)))

    def _derivative(self, log_ratio: Tensor) -> Tensor:
        if self.divergence == "reverse_kl":
            return log_ratio
        if self.divergence == "forward_kl":
            return -(-log_ratio).exp()
        if self.divergence == "js":
            return F.logsigmoid(log_ratio)
        return -(-self.alpha * log_ratio).exp() / self.alpha


@dataclass(frozen=True)
class AOTLoss(LogRatioLoss):
    """Alignment via optimal transport, paired (Melnyk et al., arXiv:2406.05882).

    cDPO on sorted margins: log pi(chosen) - log pi(rejected) of the update's pairs in order of size, against the reference's in theirs.
    """

    label_smoothing: FlipRate = 0.0
    couples_items: ClassVar[bool] = True

    def __call__(self, view: View) -> Tensor:
        margins, of_reference = (-logps.diff(dim=1).squeeze(1) for logps in (view.response_logps, view.reference_response_logps))
        return CDPOLoss(self.beta, self.label_smoothing).of(margins.sort().values, of_reference.sort().values)


@dataclass(frozen=True)
class AOTUnpairedLoss(LogRatioLoss):
    """Alignment via optimal transport, unpaired (Melnyk et al., arXiv:2406.05882): cDPO on sorted c against sorted r of an update.

    It reads pairs, and forgets which responses belong together.
    """

    label_smoothing: FlipRate = 0.0
    couples_items: ClassVar[bool] = True

    def of(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return CDPOLoss(self.beta, self.label_smoothing).of(chosen.sort().values, rejected.sort().values)


@dataclass(frozen=True)
class WPOLoss:
    """Weighted preference optimization (WPO, Zhou et al., arXiv:2406.11827, Eq. 2): a pair's term of `loss`, weighted by how likely it is.

    The weight has no gradient: the product, over both responses, of exp of the mean over tokens of log pi(y_t). With `alignment: sampled`,
    as in the paper's experiments, log of the sum of squared probabilities of all tokens is subtracted at each token: what a sample has.
    """

    loss: PolicyLoss = DPOLoss()
    alignment: Literal["sampled", "none"] = "sampled"
    reads: ClassVar[Reads] = "pairs"
    needs_reference: ClassVar[bool] = True  # where `loss` does

    def __post_init__(self) -> None:
        if self.loss.reads != "pairs" or getattr(self.loss, "couples_items", False):
            raise InputError(f"WPOLoss.loss: {type(self.loss).__name__} has no term for each pair, which could be weighted")
        object.__setattr__(self, "needs_reference", self.loss.needs_reference)

    @property
    def also_reads(self) -> tuple[str, ...]:
        return ("log_collision",) if self.alignment == "sampled" else ()

    def __call__(self, view: View) -> Tensor:
        logps = view.logps.detach()
        aligned = logps - view.log_collision if self.alignment == "sampled" else logps
        means = torch.where(view.mask > 0, aligned, 0).sum(dim=-1) / view.lengths
        return self.loss(view) * means.sum(dim=1).exp()
