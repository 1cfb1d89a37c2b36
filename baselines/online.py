"""Online training by a reward model: GRPO, RLOO, DAPO, or another online algorithm, step by step on samples of the current policy.

`algorithm: grpo`, or `{name: grpo, clip_high: 0.28}` with parameters; one's own is `{use: file.py@Class}`. Alone, the reward model is
fitted once, to human pairs.
"""

from dataclasses import dataclass, field

from apo_bench.lab import OnlinePlayer
from apo_bench.losses import OnlineLoss


@dataclass(frozen=True)
class Online(OnlinePlayer):
    """Sample, score, and train by an online algorithm; or by a loss of pairs, on each prompt's best sample against its worst."""

    algorithm: OnlineLoss = field(kw_only=True)
