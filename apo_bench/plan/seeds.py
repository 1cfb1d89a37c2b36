"""Arm-seeds of a plan: the first seeds are played, and where they spend alike the others are copied from the last of them.

What a seed draws for itself, its human pairs and golden responses, is drawn for each.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from apo_bench.config.schema import Unit
from apo_bench.lab import Lab
from apo_bench.lab.ledger import STOCKS
from apo_bench.plan.arm_spend import CountingContext
from apo_bench.types import BestOfNPolicy, Policy, Round

PLAYED = 2  # seeds
COUNTS: tuple[Unit, ...] = ("sampled_responses", "scored_responses", "rm_updates", "policy_updates")


@dataclass(frozen=True)
class PlayedArm:
    """What an arm-seed left. granted: see `Lab.granted`. planned, bench: keys of artifacts that it was the first to plan, or to charge."""

    rounds: tuple[Round, ...]
    used: Mapping[Unit, float]
    charged: Mapping[str, Mapping[str, float]]
    seen: Mapping[Unit, set[str]]
    granted: Mapping[Unit, int]
    planned: tuple[str, ...]
    bench: tuple[str, ...]

    @classmethod
    def of(cls, lab: Lab, planned: Sequence[str], bench: Sequence[str]) -> "PlayedArm":
        return cls(tuple(lab.rounds), lab.used, lab.charged, lab.seen, lab.granted, tuple(planned), tuple(bench))

    def form(self, context: CountingContext) -> Any:
        """What is equal where two seeds spend alike: counts, rounds, and which artifacts there are."""
        kinds = (Counter(context.planned[key].kind for key in keys) for keys in (self.charged, self.planned))
        rounds = [(isinstance(round_.policy, BestOfNPolicy), round_.reward_model is None) for round_ in self.rounds]
        return [self.used[unit] for unit in COUNTS], dict(self.granted), rounds, *kinds, len(self.bench)


def copied(context: CountingContext, arm: str, played: PlayedArm, own: set[str], seed: int) -> PlayedArm:
    """The arm for another seed, its artifacts planned and charged. `own`: keys of what the played seed's arms planned."""
    engine = context.engine

    def named(key: str) -> str:
        return f"{key}, seed {seed}" if key in own else key

    for key in played.planned:
        context.planned[named(key)] = context.planned[key]
        engine.copy_policy(key, named(key), named)
    for key in played.bench:
        context.charged[named(key)] = context.charged[key]
    lab = context.lab(seed, arm=arm)
    for unit, n in played.granted.items():
        (lab.pairs if unit == "human_pairs" else lab.golden)(n)
    return replace(
        played,
        rounds=tuple(_round(round_, named) for round_ in played.rounds),
        used={**played.used, **{unit: lab.used[unit] for unit in STOCKS}},
        charged={named(key): counts for key, counts in played.charged.items()},
        seen=lab.seen,
    )


def _round(round_: Round, named: Any) -> Round:
    reward_model = round_.reward_model and replace(round_.reward_model, key=named(round_.reward_model.key))
    return Round(_policy(round_.policy, named), reward_model)


def _policy(policy: Policy, named: Any) -> Policy:
    if isinstance(policy, BestOfNPolicy):
        scorer = replace(policy.reward_model, key=named(policy.reward_model.key))
        return BestOfNPolicy(named(policy.key), _policy(policy.policy, named), scorer, policy.n)
    return Policy(named(policy.key))
