"""Parts of advantages: returns of a step's samples, baselines and scales. Shapes: P prompts, n samples to each, T tokens."""

from torch import Tensor

EPSILON = 1e-4  # added to standard deviations, as in TRL


def response_returns(scores: Tensor, log_ratios: Tensor, kl_coeff: float) -> Tensor:
    """Scores (P, n) less kl_coeff times the log-ratio of the whole response to the reference, from (P, n, T): (P, n)."""
    return scores - kl_coeff * log_ratios.sum(dim=-1)


def token_returns(scores: Tensor, log_ratios: Tensor, kl_coeff: float) -> Tensor:
    """Of each token, the score less kl_coeff times the log-ratios from it on: (P, n), (P, n, T) -> (P, n, T)."""
    return scores[..., None] - kl_coeff * log_ratios.flip(-1).cumsum(dim=-1).flip(-1)


def group_mean(returns: Tensor) -> Tensor:
    """Mean return of each prompt's samples, (P, n) -> (P, 1)."""
    return returns.mean(dim=1, keepdim=True)


def leave_one_out(returns: Tensor) -> Tensor:
    """Mean return of the other samples to the same prompt, (P, n) -> (P, n)."""
    return (returns.sum(dim=1, keepdim=True) - returns) / (returns.shape[1] - 1)


def batch_mean(returns: Tensor, mask: Tensor) -> Tensor:
    """Mean return of the step, over what `mask` has, as a scalar."""
    return (returns * mask).sum() / mask.sum()


def batch_sd(returns: Tensor, mask: Tensor) -> Tensor:
    """Standard deviation of the step's returns, with Bessel's correction, over what `mask` has, as a scalar."""
    return returns[mask > 0].std()


def batch_normalised(returns: Tensor, mask: Tensor) -> Tensor:
    """Returns with mean 0 and standard deviation 1 over what `mask` has; same shape."""
    return (returns - batch_mean(returns, mask)) / (batch_sd(returns, mask) + EPSILON)


def tied(scores: Tensor) -> Tensor:
    """Whether all samples to a prompt have one score, (P, n) -> (P, 1) bool."""
    return scores.amax(dim=1, keepdim=True) == scores.amin(dim=1, keepdim=True)
