"""Frames of verdicts, audits and scores of two arms."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from apo_bench.judging.judge_protocol import value_of

A, B, NAN = "apo_rjs", "golden_refresh", math.nan
AUDIT = ["judge", "axis", "metric", "value", "ci_low", "ci_high", "n", "n_missing"]
FIRST, TIE, SECOND = "first", "tie", "second"
CHOICES = (FIRST, TIE, SECOND, None)
Choices = Mapping[tuple[int, str], Sequence[Any]]  # (seed, prompt) -> the choice as "ab" and as "ba"


def verdicts(choices_of: Choices, lengths: Mapping[str, tuple[float, float]] | None = None, **fixed: Any) -> pd.DataFrame:
    """Rows of both orders. A prompt is its own cluster; lengths are 10 and 10 unless given; a missing verdict is unparsable."""
    rows = []
    for (seed, prompt), choices in choices_of.items():
        length_a, length_b = (lengths or {}).get(prompt, (10, 10))
        for order, choice in zip(("ab", "ba"), choices, strict=True):
            row = {"arm_a": A, "arm_b": B, "seed_a": seed, "seed_b": seed, "round": "3", "prompt_id": prompt, "cluster_id": prompt}
            row |= {"axis": "helpful", "judge": "judge", "order": order, "verdict": choice, "value": value_of(order, choice)}
            rows.append(row | {"failure": "" if choice else "unparsable", "length_a": length_a, "length_b": length_b} | fixed)
    return pd.DataFrame(rows)


def audited(judge: str = "judge", axis: str = "helpful", **metrics: tuple[float, float, float]) -> pd.DataFrame:
    good = {"accuracy": (0.8, 0.7, 0.9), "kappa": (0.6, 0.4, 0.8), "consistency": (0.9, 0.8, 1.0)} | metrics
    return pd.DataFrame([(judge, axis, metric, *values, 100, 0) for metric, values in good.items()], columns=AUDIT)


NO_AUDIT = pd.DataFrame(columns=AUDIT)
BY_HAND: Choices = {
    (0, "p0"): (FIRST, SECOND),
    (0, "p1"): (TIE, FIRST),
    (0, "p2"): (FIRST, FIRST),
    (0, "p3"): (TIE, TIE),
    (0, "p4"): (None, FIRST),
}
LENGTHS = {"p0": (10, 8), "p1": (12, 8), "p2": (8, 8), "p3": (10, 8), "p4": (20, 8)}


def three_seeds(generator: np.random.Generator, *, missing: float = 0.1, **fixed: Any) -> pd.DataFrame:
    """Two axes, 12 prompts in 8 clusters, 3 seeds, verdicts at random, some missing for row of two reasons."""
    choices_of = {(seed, f"p{i:02}"): [CHOICES[x] for x in generator.integers(0, 3, 2)] for seed in range(3) for i in range(12)}
    frame = verdicts(choices_of, **fixed)
    lost = generator.random(len(frame)) < missing
    place = frame["prompt_id"].str[1:].astype(int)
    return frame.assign(
        cluster_id="c" + (place % 8).astype(str),
        axis=np.where(place < 7, "harmless", "helpful"),
        value=frame["value"].where(~lost),
        verdict=frame["verdict"].where(~lost, None),
        failure=np.where(lost, np.where(place < 4, "refused", "unparsable"), ""),
        length_a=20 + place,
        length_b=generator.integers(10, 40, len(frame) // 2).repeat(2),
    )


def scored(values: Mapping[str, tuple[float, float]], scorer: str = "gold", rounds: tuple[int, int] = (3, 3)) -> pd.DataFrame:
    rows = [
        (arm, 0, round_, prompt, scorer, x)
        for prompt, both in values.items()
        for arm, round_, x in zip((A, B), rounds, both, strict=True)
        if not math.isnan(x)
    ]
    return pd.DataFrame(rows, columns=["arm", "seed", "round", "prompt_id", "scorer", "value"])
