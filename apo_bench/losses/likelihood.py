"""Log-probabilities of tokens, and the likelihood loss on demonstrations."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class SFTLoss:
    """Negative log-likelihood of a response, summed over its tokens; the shared denominator is the update's response tokens."""

    trains_on: ClassVar[Literal["demonstrations"]] = "demonstrations"

    def __call__(self, logps: Tensor, mask: Tensor) -> Tensor:
        """logps (B, T): log-probability of each token; mask (B, T): 1 on response tokens. Returns (B,)."""
        return -(logps * mask).sum(dim=1)


def token_logps(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of each token given those before it: logits (B, T, V), tokens (B, T) -> (B, T), 0 at the first position."""
    logps = -F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none")
    return F.pad(logps.view(tokens.shape[0], -1), (1, 0))
