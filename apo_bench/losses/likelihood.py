"""Log-probabilities of tokens, and the likelihood loss on demonstrations."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from apo_bench.losses.policy_loss import Denominator, Reads, View


@dataclass(frozen=True)
class SFTLoss:
    """Negative log-likelihood of a response, summed over its tokens; an update is divided by its response tokens."""

    reads: ClassVar[Reads] = "demonstrations"
    needs_reference: ClassVar[bool] = False
    denominator: ClassVar[Denominator] = "tokens"

    def __call__(self, view: View) -> Tensor:
        return -view.response_logps.squeeze(1)


def token_logps(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of each token given those before it: logits (B, T, V), tokens (B, T) -> (B, T), 0 at the first position."""
    logps = -F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none")
    return F.pad(logps.view(tokens.shape[0], -1), (1, 0))
