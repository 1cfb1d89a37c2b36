"""Verification of a published result: a drawn sample of its arm-seeds is made again and compared with the published scores."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from apo_bench.analysis.verification import BEYOND, KEY, UNTESTABLE, compare_scores, summarise_rows
from apo_bench.errors import InputError
from apo_bench.run import records
from apo_bench.run.experiment import resolve_experiment
from apo_bench.run.start import run_experiment

EXPERIMENT, SCORES = Path("report") / "rerun.yaml", Path("report") / "tables" / "arm_seeds.csv"


@dataclass(frozen=True)
class Verification:
    """What was made again of `n_published` arm-seeds: `scores` as `compare_scores` has them; `failures`, each with its message."""

    scores: pd.DataFrame
    drawn: tuple[tuple[str, int], ...]
    n_published: int
    failures: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether every arm-seed was made again, and none lies beyond seed noise or cannot be told to lie within."""
        return not self.failures and not self.scores["verdict"].isin([BEYOND, UNTESTABLE]).any()


def verify(published: Path, out: Path, *, share: float = 0.05, seed: int = 0, workers: int | None = None) -> Verification:
    """Make a share of a published result's arm-seeds again in the folder `out`, at least one, drawn by `seed`, and compare their scores.

    published: the folder that holds report/. Methods, tasks and files that the experiment names are looked for beside report/rerun.yaml,
    in the working directory and among those shipped.
    Raises InputError for a folder without what is needed, and for whatever `run_experiment` refuses.
    """
    scores = read_scores(published)
    arm_seeds = sorted(set(zip(scores["arm"], scores["seed"], strict=True)))
    drawn = draw_arm_seeds(arm_seeds, share, seed)
    experiment, failures, parts = published / EXPERIMENT, [], []
    for arm, arm_seed in drawn:
        result = run_experiment(experiment, out=out, arms=[arm], seeds=[arm_seed], workers=workers)
        failures += [str(failure) for failure in result.failures]
    resolved = resolve_experiment(experiment, folder=out)
    for arm, arm_seed in drawn:
        if record := records.finished(resolved.job(arm, arm_seed), resolved):
            last = len(record["rounds"]) - 1
            path = out / "store" / "evaluations" / record["rounds"][last]["evaluation"] / "scores.parquet"
            parts.append(pd.read_parquet(path).assign(arm=arm, seed=arm_seed, round=last))
    if not parts:
        raise InputError(f"{out}: no arm-seed could be made again: {'; '.join(failures)}")
    again = summarise_rows(pd.concat(parts, ignore_index=True))
    shared = again.merge(scores[KEY], on=KEY)
    return Verification(compare_scores(scores, shared), drawn, len(arm_seeds), tuple(failures))


def read_scores(published: Path) -> pd.DataFrame:
    """The published scores of all arm-seeds. Raises InputError."""
    for part in (EXPERIMENT, SCORES):
        if not (published / part).is_file():
            raise InputError(f"{published / part}: no such file; reports have it since 0.2.0: make this one again with apo-bench report")
    scores = pd.read_csv(published / SCORES, dtype={"arm": str, "axis": str, "scorer": str, "rows": str}, keep_default_na=False)
    if missing := {*KEY, "mean", "rows"} - set(scores.columns):
        raise InputError(f"{published / SCORES}: column {min(missing)} is missing")
    if scores.empty:
        raise InputError(f"{published / SCORES}: has no arm-seed")
    return scores


def draw_arm_seeds(arm_seeds: Sequence[tuple[str, int]], share: float, seed: int) -> tuple[tuple[str, int], ...]:
    """A share of the arm-seeds, rounded up and at least one, without replacement and in order."""
    if not 0 < share <= 1:
        raise InputError(f"--sample {share:g}: a share above 0 and at most 1")
    chosen = random.Random(f"verify {seed}").sample(range(len(arm_seeds)), max(1, math.ceil(share * len(arm_seeds))))
    return tuple(arm_seeds[place] for place in sorted(chosen))
