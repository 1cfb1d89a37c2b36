"""Losses of a policy on all n scored responses to a prompt. One term a prompt, no reduction."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from apo_bench.losses.policy_loss import Positive, Reads, View


@dataclass(frozen=True)
class RRHFLoss:
    """Rank Responses to align with Human Feedback (RRHF, Yuan et al., arXiv:2304.05302, Eqs. 2-5), over all n responses to a prompt.

    Responses are compared by their length-normalised log-probabilities p = log pi(y | x) / |y|: every response that is likelier than
    one scored above it costs the difference, times `ranking_weight`. Added is the negative log-likelihood of the best-scored one; among
    equals the first.

    `imitation`: "sum", as the paper writes it, adds that likelihood up over the best response's tokens; "padded_mean", as the authors'
    code computes it, divides the sum by L, the tokens of prompt and longest response. Their weight w is therefore our ranking_weight w
    with "padded_mean", and about w L with "sum", where the whole loss is L times larger.
    """

    ranking_weight: Positive = 1.0
    imitation: Literal["sum", "padded_mean"] = "sum"
    reads: ClassVar[Reads] = "groups"
    needs_reference: ClassVar[bool] = False

    def __call__(self, view: View) -> Tensor:
        logps, scores = view.response_logps, view.scores
        p = logps / view.lengths
        worse = scores[:, :, None] < scores[:, None, :]  # (B, i, j): i is scored below j
        ranking = ((p[:, :, None] - p[:, None, :]).clamp(min=0) * worse).sum(dim=(1, 2))
        best = logps.gather(1, scores.argmax(dim=1, keepdim=True)).squeeze(1)
        if self.imitation == "padded_mean":
            places = torch.arange(1, view.mask.shape[-1] + 1, device=view.mask.device)
            best = best / (view.mask * places).amax(dim=(1, 2))  # a response stands behind its prompt, before the padding
        return self.ranking_weight * ranking - best
