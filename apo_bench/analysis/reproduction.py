"""Does a rerun reproduce a run? Two run folders in, a verdict for every contrast out.

A rerun never gives the same difference unless its files are identical: other seeds give other policies. The question is whether the two
differences lie farther apart than seeds explain. The drift of a contrast is the second run's difference minus the first's.

The rule, for each contrast:

- *reproduced exactly*: both reports have the same difference and interval, to the last digit.
- otherwise the drift is tested at 5 % (the primary contrasts together, by Holm): *drift within seed noise* or *beyond* it.
- *reproduced*: within seed noise, and both runs come to the same conclusion at 5 %: a scored higher, b did, or neither could be shown.
- *same sign, ...*, *opposite sign, ...* or *a difference of 0, ...*: all other cases, with the outcome of the drift test.
- *not comparable: ...*: one run lacks the contrast, or there is no error to test the drift with (one or two seeds, say).

Where nothing has changed, a drift beyond seed noise is reported in 5 % of contrasts at most (3 to 4.5 % of simulated reruns of 3 to 6
seeds). Whether the conclusions agree depends on power as well: with a power of 80 %, two sound runs agree in about 0.8^2 + 0.2^2 = 68 %.
A drift within seed noise is no proof that there is none: its interval bounds how large it may be.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit  # scipy.stats would take a second to import

from apo_bench.analysis.report_files import check_report_file
from apo_bench.analysis.results import POOLED, Run, read_run
from apo_bench.config.load import dotted
from apo_bench.errors import InputError
from apo_bench.formatting import ALPHA, Row, rows_of
from apo_bench.stats import contrast_of_all_rows, effective_df, holm

KEY = ["arm_a", "arm_b", "axis", "scorer", "at"]  # the same contrast in both runs
NUMBERS = ["difference", "ci_low", "ci_high", "p_value", "p_adjusted", "standard_error", "df", "n_seeds"]
READ = [*KEY, "family", *NUMBERS]
NOT_COMPARED = ("name", "executor", "report")  # keys of an experiment that change no row
FACTS = ("commit", "dirty", "versions", "hardware", "machine", "precision")  # keys of a manifest in which a rerun may differ
MEASURED = ("timings",)  # tables that differ from run to run
EXACT, REPRODUCED, UNCOMPARABLE = "reproduced exactly", "reproduced", "not comparable"
PAIRED = (
    "Both runs have one experiment and the same seeds, so seeds are paired: a seed is assumed to draw the same data and first weights in "
    "both (where it does not, the test is valid but weaker)."
)
UNPAIRED = "Seeds are not paired: the seeds of the two runs are assumed to be unrelated (too cautious where they are related)."
ADDED = (
    "Where errors were added, the standard error of the drift combines both runs' standard errors as if their prompts were different: too "
    "cautious where they are the same."
)


@dataclass(frozen=True)
class RunContrasts:
    """One run: the contrasts of its report (READ, and `sd` where the report has it), and its tables (None: only the report is there)."""

    folder: Path
    contrasts: pd.DataFrame
    run: Run | None


@dataclass(frozen=True)
class Drift:
    """The second run's difference minus the first's, with interval and two-sided p-value; NaN where `test` begins with "none"."""

    drift: float
    drift_low: float
    drift_high: float
    p_drift: float
    test: str


@dataclass(frozen=True)
class Reproduction:
    """The verdict on every contrast, what differs between the runs, and what was assumed.

    `contrasts`: KEY, family (in the first run), first, first_low, first_high, second, second_low, second_high, same_sign and overlap
    ("yes", "no" or ""), drift, drift_low, drift_high, p_drift (adjusted over the primary family), test, verdict. `settings` maps dotted
    keys to both values (None: unknown, as only a report is there), `tables` a table to "identical", "same rows, other bytes",
    "different" or where it is missing.
    """

    first: Path
    second: Path
    contrasts: pd.DataFrame
    settings: Mapping[str, tuple[Any, Any]] | None
    tables: Mapping[str, str]
    assumed: tuple[str, ...]

    @property
    def primary(self) -> pd.DataFrame:
        return self.contrasts[self.contrasts["family"] == "primary"]

    @property
    def exit_status(self) -> int:
        """0 where every primary contrast is reproduced (exactly or not), else 1."""
        return 0 if len(self.primary) and self.primary["verdict"].isin([EXACT, REPRODUCED]).all() else 1


def compare_runs(first: str | Path, second: str | Path) -> Reproduction:
    """Compare `first`'s contrasts with those of `second`: folders of finished runs, or of reports alone (report/tables/contrasts.csv).

    Raises InputError, one line, for a folder that holds no finished run and for runs without a common contrast.
    """
    first, second = Path(first), Path(second)
    runs = read_contrasts(first), read_contrasts(second)
    keys = [set(run.contrasts[KEY].itertuples(index=False, name=None)) for run in runs]
    if not keys[0] & keys[1]:
        raise InputError(f"{first} and {second}: no contrast (arms, axis, scorer and round) is in both")
    settings = _differing_settings(*runs)
    paired = settings is not None and not any(key.startswith("experiment.") for key in settings)
    rows = compare_contrasts(*runs, paired=paired)
    assumed = [PAIRED if paired else UNPAIRED] if settings is not None else []
    assumed += [ADDED] if rows.loc[rows["verdict"] != EXACT, "test"].str.endswith("errors added").any() else []
    return Reproduction(first, second, rows, settings, _compare_tables(first, second), tuple(assumed))


def compare_contrasts(first: RunContrasts, second: RunContrasts, *, paired: bool) -> pd.DataFrame:
    """The frame of `Reproduction.contrasts`: the first run's contrasts in their order, then those that only the second has."""
    by_key = [run.contrasts.set_index(KEY) for run in (first, second)]
    keys = list(dict.fromkeys([*by_key[0].index, *by_key[1].index]))
    rows = []
    for key in keys:
        a, b = (contrasts.loc[key] if key in contrasts.index else None for contrasts in by_key)
        row: dict[str, Any] = dict(zip(KEY, key, strict=True)) | {"family": "descriptive" if a is None else a["family"]}
        for name, side in (("first", a), ("second", b)):
            ends = ("difference", "ci_low", "ci_high")
            row |= {f"{name}{end}": math.nan if side is None else side[of] for end, of in zip(("", "_low", "_high"), ends, strict=True)}
        if a is None or b is None:
            where = first if b is None else second
            drift = untested_drift(f"only in {where.folder}")
        else:
            drift = _drift(first, second, key, a, b, paired)
        rows.append(row | _signs(row) | asdict(drift) | {"conclusions": [_conclusion(a), _conclusion(b)]})
    table = pd.DataFrame(rows)
    primary = table["family"] == "primary"
    table["p_drift"] = table["p_drift"].mask(primary, holm(table["p_drift"].where(primary)))
    return table.assign(verdict=[_verdict(row) for row in rows_of(table)]).drop(columns="conclusions")


def contrast_drift(first: pd.DataFrame, second: pd.DataFrame, *, paired: bool) -> Drift:
    """The drift between two runs on the prompts that both have: seed, prompt_id, cluster_id and value (a - b) of each.

    Two-way test over seeds (`paired`: seeds of one label belong together) and clusters of prompts. Whatever prompts do to the difference
    in both runs alike cancels, so the error is that of the seeds, and of seeds that differ on some prompts and not on others.
    Raises ValueError as `apo_bench.stats.contrast` does; too few seeds: a Drift without a p-value.
    """
    if paired:  # a seed that one run lost cannot be paired
        first, second = (run[run["seed"].isin(other["seed"])] for run, other in ((first, second), (second, first)))
    rows = pd.concat([first.assign(arm="first"), second.assign(arm="second")])
    tested = contrast_of_all_rows(rows, "second", "first", paired_seeds=paired)
    test = tested.test if tested.n_seeds > 1 else "none: one seed tells nothing of seed noise"
    p_value = math.nan if test.startswith("none") else tested.p_value
    return Drift(tested.difference, tested.ci_low, tested.ci_high, p_value, test)


def drift_from_reports(first: Mapping[str, float], second: Mapping[str, float], confidence: float = 0.95) -> Drift:
    """The drift between two contrasts of independent runs, from their difference, standard_error, df and n_seeds.

    Variances add up, degrees of freedom by `effective_df`.
    """
    value = second["difference"] - first["difference"]
    if min(first["n_seeds"], second["n_seeds"]) < 3:
        return untested_drift("fewer than three seeds in one of the runs", value)
    errors, dfs = ([float(row[name]) for row in (first, second)] for name in ("standard_error", "df"))
    if not (np.isfinite([value, *errors, *dfs]).all() and min(errors) > 0):
        return untested_drift("no standard error in one of the runs", value)
    error, df = math.hypot(*errors), float(effective_df([errors[0] ** 2, errors[1] ** 2], dfs))
    half = error * float(stdtrit(df, (1 + confidence) / 2))
    return Drift(value, value - half, value + half, float(2 * stdtr(df, -abs(value) / error)), "t test, errors added")


def untested_drift(reason: str, value: float = math.nan) -> Drift:
    """A drift without a test, and why."""
    return Drift(value, math.nan, math.nan, math.nan, f"none: {reason}")


def _drift(first: RunContrasts, second: RunContrasts, key: tuple[str, ...], a: pd.Series, b: pd.Series, paired: bool) -> Drift:
    """From the runs' own scores where both have them for the same prompts; else from the errors in their reports."""
    if math.isnan(a["difference"]) or math.isnan(b["difference"]):
        where = first if math.isnan(a["difference"]) else second
        return untested_drift(f"no result in {where.folder}")
    if reason := another_scale(first, second, key[3]):
        return untested_drift(reason)
    differences, others = (_differences(side.run, *key) if side.run else None for side in (first, second))
    if differences is not None and others is not None and mostly_shared(set(differences["prompt_id"]), set(others["prompt_id"])):
        try:
            return contrast_drift(differences, others, paired=paired)
        except ValueError as error:
            return untested_drift(str(error).removeprefix("contrast: "), b["difference"] - a["difference"])
    return drift_from_reports(a.to_dict(), b.to_dict())  # pyright: ignore[reportArgumentType] (columns are numbers)


def mostly_shared(first: set[str], second: set[str]) -> bool:
    """Whether the runs have the same test prompts; different worlds share a few, too."""
    return 2 * len(first & second) > min(len(first), len(second))


def another_scale(first: RunContrasts, second: RunContrasts, scorer: str) -> str:
    """Why two runs' scores by one scorer's name are not on one scale, or ""."""
    if first.run is None or second.run is None:
        return ""
    golds = [{gold.name: gold for gold in side.run.experiment.models.gold} for side in (first, second) if side.run is not None]
    if golds[0].get(scorer) != golds[1].get(scorer):
        return f"gold model {scorer} is another one in each run"
    tasks = [side.run.experiment.task.use for side in (first, second) if side.run is not None]
    return "" if tasks[0] == tasks[1] else f"the tasks are {tasks[0]} and {tasks[1]}"


def _differences(run: Run, a: str, b: str, axis: str, scorer: str, at: str) -> pd.DataFrame | None:
    """a - b by seed and prompt, where the scores are those of whole rounds; None elsewhere."""
    if at not in ("final", "dev_best"):
        return None
    rows = run.scores_at(at)
    rows = rows[(rows["scorer"] == scorer) & ((axis == POOLED) | (rows["axis"] == axis))]
    keys = ["seed", "prompt_id", "cluster_id"]
    merged = rows[rows["arm"] == a].merge(rows[rows["arm"] == b], on=keys, suffixes=("_a", "_b"))
    return merged[keys].assign(value=merged["value_a"] - merged["value_b"]) if len(merged) else None


def _conclusion(row: pd.Series | None) -> str:
    """A run's conclusion at 5 %: "higher", "lower", "not shown", or "" without a test."""
    if row is None:
        return ""
    p = row["p_value"] if math.isnan(row["p_adjusted"]) else row["p_adjusted"]
    if math.isnan(p):
        return ""
    return "not shown" if p >= ALPHA else "higher" if row["difference"] > 0 else "lower"


def _signs(row: Mapping[str, Any]) -> dict[str, str]:
    first, second = (row[name] for name in ("first", "second"))
    ends = [row[f"{name}{end}"] for name in ("first", "second") for end in ("_low", "_high")]
    same = "" if math.isnan(first + second) or first * second == 0 else "yes" if first * second > 0 else "no"
    overlap = "" if math.isnan(sum(ends)) else "yes" if ends[0] <= ends[3] and ends[2] <= ends[1] else "no"
    return {"same_sign": same, "overlap": overlap}


def _verdict(row: Row) -> str:
    numbers = [[getattr(row, f"{name}{end}") for end in ("", "_low", "_high")] for name in ("first", "second")]
    first, second = row.conclusions
    if not math.isnan(row.first) and np.array_equal(*numbers, equal_nan=True):
        return EXACT if first == second else "same numbers, another conclusion (adjusted together with other p-values)"
    if math.isnan(row.p_drift):
        return f"{UNCOMPARABLE}: {row.test.removeprefix('none: ')}"
    sign, within = {"yes": "same sign", "no": "opposite sign", "": "a difference of 0"}[row.same_sign], row.p_drift >= ALPHA
    if within and first and first == second:
        return REPRODUCED
    return f"{sign}, drift {'within' if within else 'beyond'} seed noise"


# --- the folders ----------------------------------------------------------------------------------------------------------------


def read_contrasts(folder: Path) -> RunContrasts:
    """The contrasts of a finished run, or of a report alone. Raises InputError, one line naming folder or file and column."""
    path = folder / "report" / "tables" / "contrasts.csv"
    if (folder / "report" / "tables" / "spread.csv").is_file():
        raise InputError(f"{folder}: a run at several levels; name the folder of one of them")
    if not path.is_file() or ((folder / "experiment.yaml").is_file() and not (folder / "manifest.json").is_file()):
        missing = "manifest.json" if path.is_file() else "report/tables/contrasts.csv"
        raise InputError(f"{folder}: not a finished run folder (no {missing})")
    check_report_file(folder / "report", "tables/contrasts.csv")
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as csv: {error}") from None
    for column in READ:
        if column not in rows:
            raise InputError(f"{path}: column {column} is missing")
    columns = [*READ, *(["sd"] if "sd" in rows else [])]
    for column in columns[columns.index(NUMBERS[0]) :]:
        values = pd.to_numeric(rows[column].replace("", "nan"), errors="coerce")
        if bad := list(rows[column][values.isna() & ~rows[column].isin(["", "nan"])]):
            raise InputError(f"{path}: column {column}: {bad[0]!r} is no number")
        if bad := values[np.isinf(values) | ((values < 0) & (column in ("standard_error", "df", "n_seeds", "sd")))].tolist():
            raise InputError(f"{path}: column {column}: {bad[0]:g} cannot be")
        rows[column] = values.astype(float)
    if rows.duplicated(KEY).any():
        raise InputError(f"{path}: two rows have the same {', '.join(KEY)}")
    whole = (folder / "manifest.json").is_file() and (folder / "tables" / "scores.parquet").is_file()
    return RunContrasts(folder, rows[columns], read_run(folder) if whole else None)


def _differing_settings(first: RunContrasts, second: RunContrasts) -> dict[str, tuple[Any, Any]] | None:
    """Keys of the experiments and of the manifests (code, machine) that differ, dotted; None where only a report is there."""
    if first.run is None or second.run is None:
        return None
    settings = []
    for run in (first.run, second.run):
        experiment = {key: value for key, value in run.experiment.model_dump(mode="json").items() if key not in NOT_COMPARED}
        facts = {key: run.manifest.get(key) for key in FACTS}
        settings.append(dotted({"experiment": experiment, **facts, "failures": len(run.manifest.get("failures") or ())}))
    a, b = settings
    return {key: (a.get(key), b.get(key)) for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)}


def _compare_tables(first: Path, second: Path) -> dict[str, str]:
    """For each table but the measured ones, whether both folders hold the same; nothing where one has no tables."""
    if not all((folder / "tables").is_dir() for folder in (first, second)):
        return {}
    names = sorted({path.stem for folder in (first, second) for path in (folder / "tables").glob("*.parquet")} - set(MEASURED))
    states = {}
    for name in names:
        paths = [folder / "tables" / f"{name}.parquet" for folder in (first, second)]
        absent = [path for path in paths if not path.is_file()]
        states[name] = f"missing in {absent[0].parents[1]}" if absent else _compare_table(*paths)
    return states


def _compare_table(first: Path, second: Path) -> str:
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second)]
    if digests[0] == digests[1]:
        return "identical"
    try:
        return "same rows, other bytes" if pd.read_parquet(first).equals(pd.read_parquet(second)) else "different"
    except Exception as error:  # a damaged file raises errors of every kind
        raise InputError(f"{first} or {second}: not readable as parquet: {error or type(error).__name__}") from None
