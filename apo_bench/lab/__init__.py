"""The Lab, everything a method may do: its verbs, its ledger, players, and ways to select among scored samples."""

from apo_bench.lab.lab import Lab
from apo_bench.lab.metered_store import Progress
from apo_bench.lab.player import Count, OnlinePlayer, Player, PolicyUpdate, Positive, of_round, play_alone
from apo_bench.lab.sample_selection import best_of, best_worst, golden_over_samples, with_mismatched
from apo_bench.training.trl_trainers import trl_trainer

__all__ = [
    "Count",
    "Lab",
    "OnlinePlayer",
    "Player",
    "PolicyUpdate",
    "Positive",
    "Progress",
    "best_of",
    "best_worst",
    "golden_over_samples",
    "of_round",
    "play_alone",
    "trl_trainer",
    "with_mismatched",
]
