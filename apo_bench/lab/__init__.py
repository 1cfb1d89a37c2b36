"""The Lab, everything a method may do: its verbs, its ledger, players, and ways to select among scored samples."""

from apo_bench.lab.lab import (
    Count,
    Lab,
    Player,
    PolicyUpdate,
    Positive,
    Progress,
    best_of,
    best_worst,
    golden_over_samples,
    of_round,
    play_alone,
)

__all__ = [
    "Count",
    "Lab",
    "Player",
    "PolicyUpdate",
    "Positive",
    "Progress",
    "best_of",
    "best_worst",
    "golden_over_samples",
    "of_round",
    "play_alone",
]
