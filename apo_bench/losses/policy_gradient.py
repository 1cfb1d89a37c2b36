"""Online algorithms of the policy-gradient family: advantages of a step's samples, and the loss that they weigh.

A step's samples have scores R, (P, n). From them come returns, which may bear the KL to the reference; less a baseline and scaled, these
are the advantages A. A token's loss is -A log pi, or -A times a clipped ratio of the probabilities now and when it was sampled; plus
`kl_coeff` times k3, where the KL is in the loss, less `entropy_bonus` times the entropy. `normalise` says what a response's sum over
tokens is divided by. Each algorithm is a choice of these parts; defaults are its paper's, and where the paper has none, TRL's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from apo_bench.errors import InputError
from apo_bench.losses.advantages import (
    EPSILON,
    batch_mean,
    batch_normalised,
    batch_sd,
    group_mean,
    leave_one_out,
    response_returns,
    tied,
    token_returns,
)
from apo_bench.losses.online_algorithm import OnlineAlgorithm, Rollouts
from apo_bench.losses.policy_loss import Denominator, NotNegative, Positive, View

KLIn = Literal["loss", "reward", "return"]
Baseline = Literal["none", "batch", "group", "leave_one_out"]
Scale = Literal["none", "group", "batch", "normalised"]
Ratio = Literal["token", "sequence", "product"]
Normalise = Literal["response", "tokens", "constant"]
Clip = Literal["objective", "weight"]
Bound = NotNegative | None


# --- losses -------------------------------------------------------------------------------------------------------------------


def k3(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """Schulman's estimate of the KL to the reference, at each token and at least 0: r - log r - 1, r the reference's ratio; same shape."""
    log_ratio = reference_logps - logps
    return log_ratio.exp() - log_ratio - 1


def clip_ratio(ratio: Tensor, low: float | None, high: float | None) -> Tensor:
    """The ratio within (1 - low, 1 + high); None: no bound on that side."""
    if low is None and high is None:
        return ratio
    return ratio.clamp(None if low is None else 1 - low, None if high is None else 1 + high)


@dataclass(frozen=True)
class PolicyGradient:
    """Policy gradient of parts, all of which may be chosen: a token's loss is -A log pi.

    - `kl_coeff`: weight of the KL to the reference; 0 needs none. `kl_in`: the `loss`, as k3 at each token; the `reward` of a whole
      response, as its log-ratio; or the `return`: each token bears the log-ratios from it on, and advantages are of tokens.
    - `baseline`: what is subtracted from returns: nothing, the mean of the `batch`, of the `group` of samples to a prompt, or of its others
      (`leave_one_out`). `scale`: what they are divided by: nothing, the returns' standard deviation in the `group` or in the `batch`; or
      `normalised`, to mean 0 and standard deviation 1 over the batch. A batch is a step's samples.
    - `normalise`: by `response`: its sum over tokens is divided by its length; by `tokens`: an update's sum by its tokens; by `constant`:
      each response's sum by `constant_length`, and the update's by its responses.
    - `entropy_bonus`: weight of the entropy at each token. `mask_cut`: samples that were cut at the length limit count in baselines and
      are not trained on. `drop_tied`: nor are groups whose scores are equal.
    """

    kl_coeff: NotNegative = 0.0
    kl_in: KLIn = "loss"
    baseline: Baseline = "none"
    scale: Scale = "none"
    normalise: Normalise = "constant"
    constant_length: Positive = 1.0
    entropy_bonus: NotNegative = 0.0
    mask_cut: bool = False
    drop_tied: bool = False
    reads: ClassVar[Literal["rollouts"]] = "rollouts"
    needs_reference: ClassVar[bool] = False  # where kl_coeff is above 0
    denominator: ClassVar[Denominator] = "items"  # where `normalise` is tokens, they are

    def __post_init__(self) -> None:
        if self.kl_in == "return" and self._has_groups:
            raise InputError(
                f"{type(self).__name__}: kl_in: return gives each token a return, which has no group: take baseline and scale of the batch"
            )
        object.__setattr__(self, "needs_reference", self.kl_coeff > 0)
        object.__setattr__(self, "denominator", "tokens" if self.normalise == "tokens" else "items")

    @property
    def also_reads(self) -> tuple[str, ...]:
        return ("entropy",) if self.entropy_bonus else ()

    def advantages(self, rollouts: Rollouts) -> Tensor:
        """(P, n), or (P, n, T) where kl_in is `return`; nan for what is not trained on. Raises InputError for groups of one sample."""
        if rollouts.scores.shape[1] < 2 and self._has_groups:
            raise InputError(f"{type(self).__name__}: one sample to a prompt is no group: n is 2 or more")
        returns, mask = self._returns(rollouts)
        advantages = self._scaled(returns - self._baseline(returns, mask), returns, mask)
        left_out = tied(rollouts.scores) & self.drop_tied | ~rollouts.finished & self.mask_cut
        return advantages.masked_fill(left_out if advantages.ndim == 2 else left_out[..., None], torch.nan)

    def objective(self, view: View, logps: Tensor, mask: Tensor) -> Tensor:
        """What is made large at each token, (B, T) or (B, 1); logps and mask (B, T)."""
        return advantages_of(view) * logps

    def __call__(self, view: View) -> Tensor:
        """One term a response, (B,)."""
        mask, logps = view.mask.squeeze(1), response_tokens(view, view.logps)
        losses = -self.objective(view, logps, mask) * mask
        if self.kl_coeff and self.kl_in == "loss":
            losses = losses + self.kl_coeff * k3(logps, response_tokens(view, view.reference_logps)) * mask
        if self.entropy_bonus:
            losses = losses - self.entropy_bonus * view.entropy.squeeze(1) * mask
        terms = losses.sum(dim=-1)
        if self.normalise == "response":
            return terms / mask.sum(dim=-1).clamp(min=1)
        return terms / self.constant_length if self.normalise == "constant" else terms

    @property
    def _has_groups(self) -> bool:
        return self.baseline in ("group", "leave_one_out") or self.scale == "group"

    def _returns(self, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
        """Returns (P, n) or (P, n, T), and what of them there is."""
        scores, log_ratios = rollouts.scores, rollouts.log_ratios
        if self.kl_coeff and self.kl_in != "loss" and log_ratios is None:
            raise InputError(f"{type(self).__name__}: kl_in: {self.kl_in} needs log-ratios to a reference")
        if self.kl_in == "return":
            zeros = torch.zeros_like(rollouts.mask, dtype=scores.dtype)
            return token_returns(scores, zeros if log_ratios is None else log_ratios, self.kl_coeff), rollouts.mask
        if self.kl_in == "reward" and log_ratios is not None:
            scores = response_returns(scores, log_ratios, self.kl_coeff)
        return scores, torch.ones_like(scores)

    def _baseline(self, returns: Tensor, mask: Tensor) -> Tensor | float:
        if self.baseline == "batch":
            return batch_mean(returns, mask)
        if self.baseline == "group":
            return group_mean(returns)
        return leave_one_out(returns) if self.baseline == "leave_one_out" else 0.0

    def _scaled(self, advantages: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
        if self.scale == "group":
            return advantages / (returns.std(dim=1, keepdim=True) + EPSILON)
        if self.scale == "batch":
            return advantages / (batch_sd(returns, mask) + EPSILON)
        return batch_normalised(advantages, mask) if self.scale == "normalised" else advantages


@dataclass(frozen=True)
class ClippedPolicyGradient(PolicyGradient):
    """Policy gradient with a ratio r of the probability now and when it was sampled: a token's loss is -min(A r, A clip(r)).

    - `ratio`: of each `token`; of the `sequence`, as the geometric mean over its tokens; or their `product`, the whole response's.
    - `clip`: the `objective`, as above; or the `weight`: the loss is -clip(r) A log pi, where clip(r) has no gradient.
    - `clip_low`, `clip_high`: the interval is (1 - clip_low, 1 + clip_high); null: no bound.
    - The rest as in PolicyGradient.
    """

    normalise: Normalise = "tokens"
    ratio: Ratio = "token"
    clip: Clip = "objective"
    clip_low: Bound = 0.2
    clip_high: Bound = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio == "product" and self.normalise != "response":
            name = type(self).__name__
            raise InputError(f"{name}: ratio: product is of a whole response: normalise: response, not {self.normalise}")

    def objective(self, view: View, logps: Tensor, mask: Tensor) -> Tensor:
        advantages, ratio = advantages_of(view), self._ratio(view, logps, mask)
        clipped = clip_ratio(ratio, self.clip_low, self.clip_high)
        return clipped.detach() * advantages * logps if self.clip == "weight" else torch.minimum(ratio * advantages, clipped * advantages)

    def clipped(self, view: View) -> Tensor:
        """Where clipping takes a token's gradient away, or changes its weight: (B, 1, T), 1 there."""
        mask, logps = view.mask.squeeze(1), response_tokens(view, view.logps)
        ratio, advantages = self._ratio(view, logps, mask), advantages_of(view)
        clipped = clip_ratio(ratio, self.clip_low, self.clip_high)
        changed = clipped != ratio if self.clip == "weight" else clipped * advantages < ratio * advantages
        return (changed * mask)[:, None]

    def _ratio(self, view: View, logps: Tensor, mask: Tensor) -> Tensor:
        """(B, T), or (B, 1) of whole responses."""
        log_ratio = logps - response_tokens(view, view.old_logps)
        if self.ratio != "token":
            log_ratio = log_ratio.sum(dim=-1, keepdim=True)
        return (log_ratio / mask.sum(dim=-1, keepdim=True).clamp(min=1) if self.ratio == "sequence" else log_ratio).exp()


def response_tokens(view: View, values: Tensor) -> Tensor:
    """Values (B, 1, T) of single responses without their side, 0 off the response: (B, T)."""
    return torch.where(view.mask > 0, values, 0).squeeze(1)


def advantages_of(view: View) -> Tensor:
    """(B, 1), or of tokens (B, T)."""
    return view.advantages[:, None] if view.advantages.ndim == 1 else view.advantages.squeeze(1)


# --- algorithms ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class REINFORCE(PolicyGradient):
    """REINFORCE (Williams, Machine Learning 8, 1992, Sec. 4): -(R - b) log pi(y | x), b the step's mean score; `baseline: none` has no b.

    As the RLOO paper (arXiv:2402.14740) has it, a response is one action, and the KL is in its reward; here the default is none.
    """

    baseline: Baseline = "batch"
    kl_in: KLIn = "reward"


@dataclass(frozen=True)
class RLOO(PolicyGradient):
    """REINFORCE leave-one-out (Ahmadian et al., arXiv:2402.14740, Sec. 2.2): -(R_i - mean of the other R) log pi(y_i | x).

    R is the score less kl_coeff log pi(y | x) / reference(y | x). `kl_coeff` is TRL's. TRL's loss has a clipped ratio, with the same
    gradient at a step's first update: ClippedPolicyGradient with `ratio: product`.
    """

    kl_coeff: NotNegative = 0.05
    kl_in: KLIn = "reward"
    baseline: Baseline = "leave_one_out"


@dataclass(frozen=True)
class PPOClip(ClippedPolicyGradient):
    """PPO's clipped objective (Schulman et al., arXiv:1707.06347, Eq. 7), without a value head: the baseline is the step's mean score.

    The paper has no reference; with one, `kl_in: return` puts the KL of each token into the reward, as RLHF does.
    """

    kl_in: KLIn = "return"
    baseline: Baseline = "batch"


@dataclass(frozen=True)
class REINFORCEPlusPlus(ClippedPolicyGradient):
    """REINFORCE++ (Hu et al., arXiv:2501.03262, Sec. 3): PPO's clipped objective without a value head.

    A token's return is the score less kl_coeff times the log-ratios to the reference from it on; advantages are returns normalised over all
    tokens of the step. `kl_coeff` is OpenRLHF's, the authors' code. `kl_in: loss, baseline: group` is its variant with a baseline, whose
    paper estimates the KL in the loss otherwise (k2).
    """

    kl_coeff: NotNegative = 0.01
    kl_in: KLIn = "return"
    scale: Scale = "normalised"


@dataclass(frozen=True)
class GRPO(ClippedPolicyGradient):
    """Group relative policy optimization (GRPO, Shao et al., arXiv:2402.03300, Eqs. 3 and 4): A = (R - group mean) / group sd.

    Each response is a mean over its tokens, and k3 is in the loss. `kl_coeff` is the paper's; its clipping range is not given: TRL's.
    """

    kl_coeff: NotNegative = 0.04
    baseline: Baseline = "group"
    scale: Scale = "group"
    normalise: Normalise = "response"


@dataclass(frozen=True)
class DrGRPO(ClippedPolicyGradient):
    """GRPO done right (Dr. GRPO, Liu et al., arXiv:2503.20783, Sec. 3.2): A = R - group mean, and no response is divided by its length.

    Its sum over tokens is divided by `constant_length`, the paper's generation budget: yours is max_new_tokens; the default is TRL's 512.
    Without KL, as in the paper.
    """

    baseline: Baseline = "group"
    normalise: Normalise = "constant"
    constant_length: Positive = 512.0


@dataclass(frozen=True)
class DAPO(ClippedPolicyGradient):
    """Decoupled clip and dynamic sampling policy optimization (DAPO, Yu et al., arXiv:2503.14476, Eqs. 8 and 9).

    GRPO without KL; ratios may rise further than they fall; an update's sum is divided by its tokens. Groups of equal scores are left out,
    where the paper samples until the batch is full. Cut samples are left out, its overlong filtering (Sec. 3.4), whose soft penalty of
    lengths is not here.
    """

    clip_high: Bound = 0.28
    baseline: Baseline = "group"
    scale: Scale = "group"
    mask_cut: bool = True
    drop_tied: bool = True


@dataclass(frozen=True)
class GSPO(ClippedPolicyGradient):
    """Group sequence policy optimization (GSPO, Zheng et al., arXiv:2507.18071, Eqs. 5-7): GRPO with the ratio of whole responses.

    It is (pi(y | x) / old(y | x)) ^ (1 / |y|). Clipping as in the paper's Sec. 5.1; without KL.
    """

    ratio: Ratio = "sequence"
    clip_low: Bound = 3e-4
    clip_high: Bound = 4e-4
    baseline: Baseline = "group"
    scale: Scale = "group"
    normalise: Normalise = "response"


@dataclass(frozen=True)
class CISPO(ClippedPolicyGradient):
    """Clipped importance-sampling weights (CISPO, MiniMax, arXiv:2506.13585, Eqs. 4 and 5): a clipped ratio weighs A log pi.

    The ratio has no gradient, so no token loses its own. No lower bound, as in the paper, whose upper one is not given: 1 + clip_high = 5
    is what TRL's documentation advises.
    """

    clip: Clip = "weight"
    clip_low: Bound = None
    clip_high: Bound = 4.0
    baseline: Baseline = "group"
    scale: Scale = "group"


ALGORITHMS: Mapping[str, type[OnlineAlgorithm]] = {
    "reinforce": REINFORCE, "rloo": RLOO, "reinforce_plus_plus": REINFORCEPlusPlus, "ppo_clip": PPOClip, "grpo": GRPO, "dr_grpo": DrGRPO,
    "dapo": DAPO, "gspo": GSPO, "cispo": CISPO, "policy_gradient": PolicyGradient,
    "clipped_policy_gradient": ClippedPolicyGradient,
}  # fmt: skip
