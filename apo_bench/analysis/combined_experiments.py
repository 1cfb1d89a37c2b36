"""One contrast over several experiments: their reports' differences, combined by random effects."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from apo_bench.analysis.reproduction import RunContrasts, another_scale, mostly_shared, read_contrasts
from apo_bench.analysis.results import POOLED
from apo_bench.errors import InputError
from apo_bench.stats import MetaAnalysis, meta_analysis
from apo_bench.stats.meta_analysis import Tau

FEW_SEEDS = 5
DECLARED = "each run's declared scorer"
COLUMNS = ["folder", "scorer", "difference", "ci_low", "ci_high", "standard_error", "n_seeds", "weight"]


@dataclass(frozen=True)
class CombinedExperiments:
    """The contrast a - b by one scorer. `experiments`: COLUMNS, `weight` a share of the mean; `left_out`: why others are not there."""

    scorer: str
    experiments: pd.DataFrame
    result: MetaAnalysis
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Combination:
    """The contrast a - b over experiments, by each scorer that two of them have, and what to know of it (`notes`)."""

    a: str
    b: str
    axis: str
    at: str
    in_sds: bool
    by_scorer: tuple[CombinedExperiments, ...]
    notes: tuple[str, ...]


def combine_experiments(
    folders: Sequence[str | Path],
    a: str,
    b: str,
    *,
    axis: str = POOLED,
    at: str = "final",
    scorer: str | None = None,
    in_sds: bool = False,
    tau: Tau = "paule_mandel",
    confidence: float = 0.95,
) -> Combination:
    """Combine the contrast a - b of finished runs, or of reports alone, by `meta_analysis`.

    `at`: final, dev_best or matched_kl. Without a `scorer` every one that two experiments share has its combination, but
    for the proxy, which is another model in each; scorers of one
    experiment score the same answers, so they stand side by side and are never averaged. `in_sds`: differences in SDs of the second arm's
    scores over prompts, as Hedges' g has them (the SD is taken as known), so that scorers of other scales can be combined, by DECLARED
    too: each run's own declared scorer. A report that has the contrast as b - a is turned round.
    Raises InputError, one line, for fewer than two folders, a folder twice, and where no two have the contrast.
    """
    paths = [Path(folder) for folder in folders]
    if len(paths) < 2:
        raise InputError("meta: at least two run folders are needed")
    resolved = [path.resolve() for path in paths]
    if twice := [path for place, path in enumerate(paths) if resolved[place] in resolved[:place]]:
        raise InputError(f"meta: {twice[0]} is named twice")
    if a == b:
        raise InputError(f"meta: --contrast {a},{b}: two different arms are needed")
    runs = [read_contrasts(path) for path in paths]
    rows = {run.folder: _rows(run, a, b, axis, at, in_sds) for run in runs}
    shared = [
        name
        for name in dict.fromkeys(name for table in rows.values() for name in table["scorer"])
        if name != "proxy" and _n_with(rows, name) > 1
    ]
    wanted = [scorer] if scorer else [*shared, *([DECLARED] if in_sds else [])]
    combined = list(filter(None, (_combine(runs, rows, name, in_sds, tau, confidence) for name in wanted)))
    if not combined:
        by = f" by {scorer}" if scorer else ""
        raise InputError(f"meta: --contrast {a},{b}: no two of these folders have it{by} with a standard error (axis {axis}, {at})")
    return Combination(a, b, axis, at, in_sds, tuple(combined), tuple(_notes(runs, combined)))


def _rows(run: RunContrasts, a: str, b: str, axis: str, at: str, in_sds: bool) -> pd.DataFrame:
    """The report's rows of this contrast, a - b, in SDs if so wanted."""
    table = run.contrasts[(run.contrasts["axis"] == axis) & (run.contrasts["at"] == at)]
    ends = {"ci_low": "ci_high", "ci_high": "ci_low"}
    turned = table[(table["arm_a"] == b) & (table["arm_b"] == a)].rename(columns=ends)
    turned = turned.assign(**{name: -turned[name] for name in ("difference", *ends)})
    rows = pd.concat([table[(table["arm_a"] == a) & (table["arm_b"] == b)], turned], ignore_index=True)
    if in_sds:
        if "sd" not in rows:
            raise InputError(f"{run.folder}: report/tables/contrasts.csv: column sd is missing, so there are no differences in SDs")
        rows = rows.assign(**{name: rows[name] / rows["sd"] for name in ("difference", *ends, "standard_error")})
    return rows.assign(folder=str(run.folder))


def _n_with(rows: dict[Path, pd.DataFrame], scorer: str) -> int:
    return sum(int((table["scorer"] == scorer).any()) for table in rows.values())


def _combine(
    runs: Sequence[RunContrasts], rows: dict[Path, pd.DataFrame], scorer: str, in_sds: bool, tau: Tau, confidence: float
) -> CombinedExperiments | None:
    """The combination by one scorer; None for fewer than two experiments."""
    kept, left_out = [], []
    for run in runs:
        table = rows[run.folder]
        own = table[(table["family"] != "descriptive") if scorer == DECLARED else (table["scorer"] == scorer)]
        if own.empty:
            left_out.append(f"{run.folder}: no such contrast")
            continue
        row = own.iloc[0]
        first = kept[0][0] if kept else run
        if not (np.isfinite(row["difference"]) and np.isfinite(row["standard_error"]) and row["standard_error"] > 0):
            left_out.append(f"{run.folder}: no standard error")
        elif not in_sds and (reason := another_scale(first, run, scorer)):
            left_out.append(f"{run.folder}: {reason}")
        else:
            kept.append((run, row))
    if len(kept) < 2:
        return None
    table = pd.DataFrame([row for _, row in kept]).reset_index(drop=True)
    result = meta_analysis(table["difference"], table["standard_error"], tau=tau, confidence=confidence)
    between = 0.0 if np.isnan(result.tau) else result.tau**2
    weights = 1 / (table["standard_error"] ** 2 + between)
    return CombinedExperiments(scorer, table.assign(weight=weights / weights.sum())[COLUMNS], result, tuple(left_out))


def _notes(runs: Sequence[RunContrasts], combined: Sequence[CombinedExperiments]) -> list[str]:
    used = {folder: int(n) for each in combined for folder, n in zip(each.experiments["folder"], each.experiments["n_seeds"], strict=True)}
    notes = []
    if few := [folder for folder, n in used.items() if n < 2]:
        notes.append(f"One seed, so the error is that of its checkpoints only: {', '.join(few)}.")
    if few := [folder for folder, n in used.items() if 2 <= n < FEW_SEEDS]:
        notes.append(f"Standard errors are taken as known, but few seeds know them roughly (fewer than {FEW_SEEDS}): {', '.join(few)}.")
    prompts = {run.folder: set(run.run.final_scores["prompt_id"]) for run in runs if run.run is not None and str(run.folder) in used}
    alike = [f"{first} and {second}" for first, second in combinations(prompts, 2) if mostly_shared(prompts[first], prompts[second])]
    if alike:
        notes.append(f"The same test prompts, which the mean counts as if they were drawn again: {', '.join(alike)}.")
    if len(prompts) < len(used):
        notes.append("Some folders are reports alone: whether scales, prompts and seeds are the same is not known there.")
    return notes
