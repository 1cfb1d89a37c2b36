"""Controls, which show that a run reports no false difference and detects a true one: their names, seeds and rules.

A/A is the reference arm again under other seeds: it can differ by chance only. The oracle gives the best of several answers of the
reference's final policy: a true difference, but no fair arm, as it sees the scores. The diluted oracle does so on a share of the prompts
only. apo_bench.evaluation.oracle makes them, apo_bench.analysis.controls compares them.
"""

import csv
from collections.abc import Iterable
from pathlib import Path

from apo_bench.config.schema import Experiment
from apo_bench.errors import InputError
from apo_bench.types import identity

AA, ORACLE, FIRST, DILUTED = "_aa", "_oracle", "_oracle_first", "_oracle_diluted"  # no arm of an experiment begins with _
STEP, SEEDS = 1_000_000, 2**32
HARD = 0.001  # an A/A difference with a smaller p-value is not chance
TRUTH = "ground_truth"


def made_of(experiment: Experiment, arm: str) -> str:
    """The arm whose method, setting and budget a job of this name has: the reference for a control."""
    return experiment.reference if arm in (AA, ORACLE) else arm


def aa_seeds(experiment: Experiment) -> tuple[int, ...]:
    """A seed for each of the experiment's: a million more, and another million while that seed is taken (modulo 2**32)."""
    taken = {*experiment.seeds, *(experiment.tune.seeds if experiment.tune else ())}
    seeds = []
    for seed in sorted(experiment.seeds):
        while seed in taken:
            seed = (seed + STEP) % SEEDS
        taken.add(seed)
        seeds.append(seed)
    return tuple(seeds)


def chooser(experiment: Experiment, has_truth: bool) -> str:
    """The scorer that the oracle chooses by: the ground truth, or, in a task without one, the last gold model.

    Raises InputError where that model is also the first, which scores.
    """
    if has_truth:
        return TRUTH
    golds = experiment.models.gold
    if len(golds) < 2:
        raise InputError("controls.oracle: no ground truth to choose by, and a gold model that chooses may not score; give two of them")
    return golds[-1].name


def diluted(clusters: Iterable[str], share: float) -> set[str]:
    """The clusters of prompts on which a diluted oracle chooses: `share` of them, at least one, in the order of their hashes."""
    order = sorted(set(clusters), key=lambda cluster: identity("diluted", cluster))
    return set(order[: max(1, round(share * len(order)))])


def hard_failure(folder: Path) -> str | None:
    """A line on an A/A difference in the report's controls.csv that cannot be chance; None where there is none."""
    with (folder / "report" / "tables" / "controls.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["control"] == "aa" and row["hard"] == "yes":
                where = f"{row['scorer']}, {row['axis']}: {float(row['difference']):+.3g}, p = {float(row['p_value']):.2g}"
                return f"controls: {row['arm_a']} differs from itself under other seeds ({where})"
    return None
