"""Scores of an ensemble of reward models: those of its members, standardised and combined."""

from collections.abc import Sequence
from typing import Literal

import numpy as np


def combined(scores: Sequence[Sequence[float]], scales: Sequence[tuple[float, float]], combine: Literal["mean", "worst"]) -> list[float]:
    """Each member's scores (members, items) standardised by its (mean, sd), then their mean, or the worst of them: (items,)."""
    scaled = [(np.asarray(own) - mean) / sd for own, (mean, sd) in zip(scores, scales, strict=True)]
    return (np.mean(scaled, axis=0) if combine == "mean" else np.min(scaled, axis=0)).tolist()
