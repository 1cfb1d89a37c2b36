"""Does a rerun reproduce a run? Two run folders -> contrast by contrast, what became of it. No model, no torch.

A rerun never gives the same difference, unless it is the same to the byte: other seeds give other policies. The question is whether the
two differences lie farther apart than seeds explain. The drift of a contrast is the second run's difference minus the first's.

The rule, for each contrast:

- *reproduced exactly*: difference and interval are the same in both reports, to all the digits there are.
- otherwise the drift is tested at 5 % (the primary contrasts together, by Holm): *drift within seed noise* or *beyond* it.
- *reproduced*: within seed noise, and both runs say the same at 5 %: a scored higher, or b did, or neither could be shown.
- *same sign, ...*, *opposite sign, ...* or *a difference of 0, ...*: what is left, with what became of the drift.
- *not comparable: ...*: one run lacks the contrast, or there is no error to test the drift by (one or two seeds, say).

So where nothing has changed a drift beyond seed noise is found in 5 % at most (3 to 4.5 % of simulated reruns of 3 to 6 seeds). Whether
the same is *said* hangs on the power as well: two honest runs with a power of 80 % say the same in about 0.8^2 + 0.2^2 = 68 %. A drift
within seed noise is no proof that there is none: its interval says how large it may still be.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from apo_bench.analysis.drift import Drift, drift, drift_of_contrasts, untested
from apo_bench.analysis.results import POOLED, Run, read_run
from apo_bench.errors import InputError
from apo_bench.formatting import ALPHA, Row, number, one_line, probability, rows_of, signed
from apo_bench.stats import holm

KEY = ["arm_a", "arm_b", "axis", "scorer", "at"]  # what is one contrast in both runs
NUMBERS = ["difference", "ci_low", "ci_high", "p_value", "p_adjusted", "standard_error", "df", "n_seeds"]
READ = [*KEY, "family", *NUMBERS]
LOOSE = ("name", "executor", "report")  # parts of an experiment that change no row
FACTS = ("commit", "dirty", "versions", "hardware", "machine")  # of a manifest: what a rerun may have done differently
MEASURED = ("timings",)  # tables that no two runs share
EXACT, REPRODUCED, UNCOMPARABLE = "reproduced exactly", "reproduced", "not comparable"
PAIRED = (
    "Both runs have one experiment and the same seeds, so seeds are paired: that a seed means the same draw of data and first weights in "
    "both is assumed (where it does not, the test is still right, and weaker)."
)
UNPAIRED = "Seeds are not paired: those of one run are taken to share no luck with those of the other (too cautious where they do)."
ADDED = (
    "Where it says that errors were added, both runs' standard errors make that of the drift, as if the prompts were others: too cautious "
    "where they are the same."
)


@dataclass(frozen=True)
class Side:
    """One run: the contrasts of its report, and its tables (None: only the report is there)."""

    folder: Path
    contrasts: pd.DataFrame
    run: Run | None


@dataclass(frozen=True)
class Compared:
    """What became of every contrast, what differs between the runs, and what was assumed.

    `contrasts`: KEY, family (in the first run), first, first_low, first_high, second, second_low, second_high, same_sign and overlap
    ("yes", "no" or ""), drift, drift_low, drift_high, p_drift (adjusted over the primary family), test, verdict. `settings` maps dotted
    keys to both values (None: not known, as only a report is there), `tables` a table to "identical", "same rows, other bytes",
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
    def status(self) -> int:
        """0 where every primary contrast is reproduced (exactly or not), else 1."""
        return 0 if len(self.primary) and self.primary["verdict"].isin([EXACT, REPRODUCED]).all() else 1


def compare(first: Path, second: Path) -> Compared:
    """What became of `first`'s contrasts in `second`, two folders of finished runs, or what is kept of them: report/tables/contrasts.csv.

    Raises InputError, one line, for a folder that holds no finished run and for runs without a common contrast.
    """
    sides = _read(first), _read(second)
    keys = [set(side.contrasts[KEY].itertuples(index=False, name=None)) for side in sides]
    if not keys[0] & keys[1]:
        raise InputError(f"{first} and {second}: no contrast (arms, axis, scorer and round) is in both")
    settings = _differing(*sides)
    paired = settings is not None and not any(key.startswith("experiment.") for key in settings)
    rows = both(*sides, paired=paired)
    assumed = [PAIRED if paired else UNPAIRED] if settings is not None else []
    assumed += [ADDED] if rows.loc[rows["verdict"] != EXACT, "test"].str.endswith("errors added").any() else []
    return Compared(first, second, rows, settings, _tables(first, second), tuple(assumed))


def both(first: Side, second: Side, *, paired: bool) -> pd.DataFrame:
    """The frame of `Compared.contrasts`: the first run's contrasts in their order, then those that only the second has."""
    sides = [side.contrasts.set_index(KEY) for side in (first, second)]
    keys = list(dict.fromkeys([*sides[0].index, *sides[1].index]))
    found = []
    for key in keys:
        one, other = (side.loc[key] if key in side.index else None for side in sides)
        about: dict[str, Any] = dict(zip(KEY, key, strict=True)) | {"family": "descriptive" if one is None else one["family"]}
        for name, row in (("first", one), ("second", other)):
            ends = ("difference", "ci_low", "ci_high")
            about |= {f"{name}{end}": math.nan if row is None else row[of] for end, of in zip(("", "_low", "_high"), ends, strict=True)}
        if one is None or other is None:
            where = first if other is None else second
            tested = untested(f"only in {where.folder}")
        else:
            tested = _drift(first, second, key, one, other, paired)
        found.append(about | _signs(about) | asdict(tested) | {"said": [_says(one), _says(other)]})
    table = pd.DataFrame(found)
    primary = (table["family"] == "primary").to_numpy()
    adjusted = table["p_drift"].to_numpy(dtype=float).copy()
    adjusted[primary] = holm(adjusted[primary])
    table = table.assign(p_drift=adjusted)
    return table.assign(verdict=[_verdict(row) for row in rows_of(table)]).drop(columns="said")


def _drift(first: Side, second: Side, key: tuple[str, ...], one: pd.Series, other: pd.Series, paired: bool) -> Drift:
    """By the runs' own scores where both have them for the same prompts; else by what the reports say of the errors."""
    if math.isnan(one["difference"]) or math.isnan(other["difference"]):
        where = first if math.isnan(one["difference"]) else second
        return untested(f"no result in {where.folder}")
    if reason := _another_scale(first, second, key[3]):
        return untested(reason)
    scores, others = (_differences(side.run, *key) if side.run else None for side in (first, second))
    if scores is not None and others is not None and _mostly_shared(set(scores["prompt_id"]), set(others["prompt_id"])):
        try:
            return drift(scores, others, paired=paired)
        except ValueError as error:
            return untested(str(error).removeprefix("contrast: "), other["difference"] - one["difference"])
    return drift_of_contrasts(one.to_dict(), other.to_dict())  # pyright: ignore[reportArgumentType] (columns are numbers)


def _mostly_shared(first: set[str], second: set[str]) -> bool:
    """Whether the runs asked the same prompts; other worlds, too, share a few."""
    return 2 * len(first & second) > min(len(first), len(second))


def _another_scale(first: Side, second: Side, scorer: str) -> str:
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
    if at == "final":
        rows = run.final
    elif at == "dev_best":
        every = run.tables["scores"]
        rows = every[
            every["round"] == pd.Series([run.dev_round.get(key) for key in zip(every["arm"], every["seed"], strict=True)], every.index)
        ]
    else:
        return None
    rows = rows[(rows["scorer"] == scorer) & ((axis == POOLED) | (rows["axis"] == axis))]
    keys = ["seed", "prompt_id", "cluster_id"]
    merged = rows[rows["arm"] == a].merge(rows[rows["arm"] == b], on=keys, suffixes=("_a", "_b"))
    return merged[keys].assign(value=merged["value_a"] - merged["value_b"]) if len(merged) else None


def _says(row: pd.Series | None) -> str:
    """What a run says of a contrast at 5 %: "higher", "lower", "not shown", or "" without a test."""
    if row is None:
        return ""
    p = row["p_value"] if math.isnan(row["p_adjusted"]) else row["p_adjusted"]
    if math.isnan(p):
        return ""
    return "not shown" if p >= ALPHA else "higher" if row["difference"] > 0 else "lower"


def _signs(about: Mapping[str, Any]) -> dict[str, str]:
    first, second = (about[name] for name in ("first", "second"))
    known = [about[f"{name}{end}"] for name in ("first", "second") for end in ("_low", "_high")]
    same = "" if math.isnan(first + second) or first * second == 0 else "yes" if first * second > 0 else "no"
    overlap = "" if math.isnan(sum(known)) else "yes" if known[0] <= known[3] and known[2] <= known[1] else "no"
    return {"same_sign": same, "overlap": overlap}


def _verdict(row: Row) -> str:
    sides = [[getattr(row, f"{name}{end}") for end in ("", "_low", "_high")] for name in ("first", "second")]
    if not math.isnan(row.first) and np.array_equal(*sides, equal_nan=True):
        return EXACT if row.said[0] == row.said[1] else "the same numbers, another claim (other p-values are adjusted beside it)"
    if math.isnan(row.p_drift):
        return f"{UNCOMPARABLE}: {row.test.removeprefix('none: ')}"
    sign, within = {"yes": "same sign", "no": "opposite sign", "": "a difference of 0"}[row.same_sign], row.p_drift >= ALPHA
    if within and row.said[0] and row.said[0] == row.said[1]:
        return REPRODUCED
    return f"{sign}, drift {'within' if within else 'beyond'} seed noise"


# --- the folders ----------------------------------------------------------------------------------------------------------------


def _read(folder: Path) -> Side:
    path = folder / "report" / "tables" / "contrasts.csv"
    if (folder / "report" / "tables" / "spread.csv").is_file():
        raise InputError(f"{folder}: a run at several levels; name the folder of one of them")
    if not path.is_file() or ((folder / "experiment.yaml").is_file() and not (folder / "manifest.json").is_file()):
        missing = "manifest.json" if path.is_file() else "report/tables/contrasts.csv"
        raise InputError(f"{folder}: not a finished run folder (no {missing})")
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(" ".join(f"{path}: not readable as csv: {error}".split())) from None
    for column in READ:
        if column not in rows:
            raise InputError(f"{path}: column {column} is missing")
    for column in NUMBERS:
        values = pd.to_numeric(rows[column].replace("", "nan"), errors="coerce")
        if bad := list(rows[column][values.isna() & ~rows[column].isin(["", "nan"])]):
            raise InputError(f"{path}: column {column}: {bad[0]!r} is no number")
        rows[column] = values.astype(float)
    if rows.duplicated(KEY).any():
        raise InputError(f"{path}: two rows have the same {', '.join(KEY)}")
    whole = (folder / "manifest.json").is_file() and (folder / "tables" / "scores.parquet").is_file()
    return Side(folder, rows[READ], read_run(folder) if whole else None)


def _differing(first: Side, second: Side) -> dict[str, tuple[Any, Any]] | None:
    """experiment.* and what the manifests say of code and machine, by dotted key, where they differ; None where only a report is there."""
    if first.run is None or second.run is None:
        return None
    told = []
    for run in (first.run, second.run):
        experiment = {key: value for key, value in run.experiment.model_dump(mode="json").items() if key not in LOOSE}
        facts = {key: run.manifest.get(key) for key in FACTS}
        told.append(dict(_flat({"experiment": experiment, **facts, "failures": len(run.manifest.get("failures") or ())})))
    keys = dict.fromkeys([*told[0], *told[1]])
    return {key: (told[0].get(key), told[1].get(key)) for key in keys if told[0].get(key) != told[1].get(key)}


def _flat(tree: Any, key: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        for name, value in tree.items():
            yield from _flat(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, tree


def _tables(first: Path, second: Path) -> dict[str, str]:
    """For each table but the measured ones, whether both folders hold the same; nothing where one holds none at all."""
    if not all((folder / "tables").is_dir() for folder in (first, second)):
        return {}
    names = sorted({path.stem for folder in (first, second) for path in (folder / "tables").glob("*.parquet")} - set(MEASURED))
    found = {}
    for name in names:
        paths = [folder / "tables" / f"{name}.parquet" for folder in (first, second)]
        absent = [path for path in paths if not path.is_file()]
        found[name] = f"missing in {absent[0].parents[1]}" if absent else _same(*paths)
    return found


def _same(first: Path, second: Path) -> str:
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second)]
    if digests[0] == digests[1]:
        return "identical"
    try:
        return "same rows, other bytes" if pd.read_parquet(first).equals(pd.read_parquet(second)) else "different"
    except Exception as error:  # what a damaged byte makes of a file, its reader and pandas tell in errors of every kind
        raise InputError(" ".join(f"{first} or {second}: not readable as parquet: {error or type(error).__name__}".split())) from None


# --- in words -------------------------------------------------------------------------------------------------------------------


def sentences(found: Compared) -> list[str]:
    """The answer, a sentence per primary contrast, what differs between the runs, and what was assumed."""
    primary = found.primary
    good = int(primary["verdict"].isin([EXACT, REPRODUCED]).sum())
    lines = [f"{good} of {len(primary)} primary contrasts of {found.first} reproduced in {found.second}."]
    lines += [_sentence(row) for row in rows_of(primary)]
    others = found.contrasts[found.contrasts["family"] != "primary"]["verdict"].str.partition(":")[0].value_counts(sort=False)
    lines += [f"Of the other contrasts: {', '.join(f'{n} {verdict}' for verdict, n in others.items())}."] if len(others) else []
    states = list(found.tables.values())
    if found.settings is None:
        lines.append("One of them is a report alone: its settings and tables are not compared.")
    elif set(states) <= {"identical"}:
        lines.append(f"All {len(states)} tables are byte-identical (timings aside).")
    else:
        told = ", ".join(f"{name} {state}" for name, state in found.tables.items() if state != "identical")
        lines.append(f"{states.count('identical')} of {len(states)} tables are byte-identical; {told}.")
    if found.settings is not None:
        lines.append(f"Differing settings, code and versions: {', '.join(found.settings) or 'none'}.")
    return [one_line(line) for line in [*lines, *found.assumed]]


def _sentence(row: Row) -> str:
    where = f"{row.scorer}, {'all axes pooled' if row.axis == POOLED else row.axis}{'' if row.at == 'final' else f', {row.at}'}"
    said = f"{row.arm_a} against {row.arm_b} ({where}): {row.verdict}. {_ends(row, 'first')} first, {_ends(row, 'second')} second"
    if math.isnan(row.drift) or row.verdict == EXACT:
        return f"{said}."
    overlap = {"yes": "; the intervals overlap", "no": "; the intervals do not overlap", "": ""}[row.overlap]
    p = "" if math.isnan(row.p_drift) else f", p = {probability(row.p_drift)}"
    return f"{said}{overlap}; drift {_ends(row, 'drift')}{p} ({row.test})."


def _ends(row: Row, name: str) -> str:
    value, low, high = (getattr(row, f"{name}{end}") for end in ("", "_low", "_high"))
    return signed(value) + ("" if math.isnan(low) else f" ({signed(low)} to {signed(high)})")


def tables(found: Compared, *, descriptive: bool = False) -> list[Any]:
    """What the terminal shows, at most 100 columns wide: declared contrasts (or all), then what differs between the runs."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    heads = ("contrast", "axis", "scorer", "at", "first", "second", "drift (95 %)", "p", "verdict")
    shown = Table(*heads, box=SIMPLE_HEAD, padding=0, title="Does the second run reproduce the first?")
    order = {"primary": 0, "secondary": 1, "descriptive": 2}
    for row in sorted(rows_of(found.contrasts), key=lambda row: order.get(row.family, 2)):
        if descriptive or row.family in ("primary", "secondary"):
            mark, exact = "*" if row.family == "primary" else "", row.verdict == EXACT
            cells = [f"{mark}{row.arm_a} - {row.arm_b}", row.axis, row.scorer, row.at, number(row.first), number(row.second)]
            cells += ["-", "-"] if exact else [_ends(row, "drift"), probability(row.p_drift) or "-"]
            shown.add_row(*map(one_line, [*cells, row.verdict]))
    shown.caption = "* primary: p adjusted together by Holm"
    if not found.settings:
        return [shown]
    differing = Table("differs", "first", "second", box=SIMPLE_HEAD, padding=0)
    for key, values in found.settings.items():
        differing.add_row(*map(one_line, [key, *map(str, values)]))
    return [shown, differing]
