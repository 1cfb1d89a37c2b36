"""Views for losses, from log-probabilities of whole responses."""

import torch

from apo_bench.losses import View


def even_view(response_logps: torch.Tensor, lengths: torch.Tensor, **optional: torch.Tensor) -> View:
    """A view of responses with these log-probabilities, (B, S), spread evenly over their tokens; 99 on padding, which counts for nothing.

    A response's gradient is the sum of its tokens' gradients.
    """
    mask = torch.arange(int(lengths.max())) < lengths[..., None]
    return View(torch.where(mask, (response_logps / lengths)[..., None], 99.0), mask.long(), optional)
