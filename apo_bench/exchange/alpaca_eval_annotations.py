"""AlpacaEval's annotations: verdicts on models from elsewhere, with our statistics, in a folder of their own.

AlpacaEval shows every comparison in one order, drawn at random, and does not record which. So a comparison has one row, its `order` is
"", and in place of a `verdict`, which is in terms of order, there is only the `value` for arm_a.
"""

import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from apo_bench.data.strict_json import parse_json
from apo_bench.errors import InputError
from apo_bench.exchange.human_annotations import COMPARISON, Imported, as_judgments, missing_by_reason, text_of
from apo_bench.formatting import csv_text, number, plain, rows_of, table
from apo_bench.hashing import digest_files
from apo_bench.provenance import origin
from apo_bench.stats import BradleyTerry, bradley_terry, instruction_difficulty, length_controlled_win_rate, win_rate
from apo_bench.store import write_json, write_text
from apo_bench.tables import table_path, write_table
from apo_bench.types import Message, prompt_id

NO_PREFERENCE = "no preference"
KIND = "outside verdicts"
TEXTS = ("instruction", "output_1", "output_2", "generator_1", "generator_2")
DEFAULTS = {"annotator": "alpaca_eval", "dataset": "overall"}  # texts that may be absent
NUMBERS = ("win_rate", "standard_error", "ci_low", "ci_high", "lc_win_rate", "lc_low", "lc_high", "share_longer", "length_a", "length_b")
COUNTS = ("n", "n_missing", "n_wins", "n_ties", "n_losses")
ALONE = "none at equal lengths: of one model alone, how hard the instructions are is not known (--without-difficulty leaves that out)"
WORDS = ("scope", "test", "lc_test", "lc_note")


def import_annotations(paths: Sequence[Path], out: Path, *, without_difficulty: bool = False) -> Imported:
    """Write annotations to a folder of their own: tables/judgments.parquet, win_rates.csv, summary.md, manifest.json.

    `without_difficulty`: as in `win_rates`. Comparisons of a model with itself are skipped and counted.
    Raises InputError also where the folder is something else, a run's, say.
    """
    (judgments, n_skipped), about = _read(paths), out / "manifest.json"
    if (out / "experiment.yaml").exists() or (about.exists() and f'"kind": "{KIND}"' not in about.read_text(encoding="utf-8")):
        raise InputError(f"{out}: not a folder of {KIND}; they do not go into a run's folder")
    rates, fitted = win_rates(judgments, without_difficulty=without_difficulty), strengths(judgments)
    path = table_path(out, "judgments")
    write_table(path, "judgments", judgments)
    write_text(out / "win_rates.csv", csv_text(rates))
    write_text(out / "summary.md", "\n".join(_summary(rates, fitted)) + "\n")
    files = {str(path): digest_files([path]) for path in paths}
    counts = {"rows": len(judgments), "missing": missing_by_reason(judgments), "skipped": n_skipped}
    write_json(about, {"kind": KIND, "files": files, **counts, **origin()})
    return Imported(path, len(judgments), missing_by_reason(judgments), n_skipped)


def read_annotations(paths: Sequence[Path]) -> pd.DataFrame:
    """AlpacaEval's annotations, a row each: arm_a is generator_2, the model that was asked about, arm_b generator_1, its reference.

    preference 1: output_1 wins, 2: output_2 wins, 1.5 or 0: a draw, a number between: how far; null: no verdict. `value` = preference - 1.
    judge is the annotator, axis the dataset, each instruction a cluster of its own, lengths are in characters. Outside models have no seed
    (0) and no round, and the order that was shown is not recorded. Rows of a model compared with itself (a baseline's own file) are left
    out.
    """
    return _read(paths)[0]


def _read(paths: Sequence[Path]) -> tuple[pd.DataFrame, int]:
    """The annotations, and how many more compare a model with itself."""
    rows: list[dict[str, Any]] = []
    seen: dict[tuple[Any, ...], str] = {}
    n_skipped = 0
    for path in paths:
        for where, annotation in _annotations(path):
            row = _annotation(where, annotation)
            if row["arm_a"] == row["arm_b"]:
                n_skipped += 1
                continue
            key = tuple(row[name] for name in ("judge", *COMPARISON))
            if key in seen:
                raise InputError(f"{where}: instruction: annotated before, {seen[key]}")
            seen[key] = where
            rows.append(row)
    if not rows:
        skipped = f" but {n_skipped} of a model compared with itself" if n_skipped else ""
        raise InputError(f"{', '.join(map(str, paths))}: no annotations{skipped}")
    return as_judgments(rows), n_skipped


def _annotations(path: Path) -> Iterator[tuple[str, Any]]:
    """Every annotation of a JSON list, or of JSON lines, with its place."""
    text = text_of(path)
    if path.name.removesuffix(".gz").endswith(".json"):
        annotations = _json(text, str(path))
        if not isinstance(annotations, list):
            raise InputError(f"{path}: a list of annotations is needed, got {type(annotations).__name__}")
        yield from ((f"{path}: row {row}", annotation) for row, annotation in enumerate(annotations, 1))
    else:
        lines = ((f"{path}: line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
        yield from ((where, _json(line, where)) for where, line in lines)


def _annotation(where: str, annotation: Any) -> dict[str, Any]:
    if not isinstance(annotation, dict):
        raise InputError(f"{where}: an annotation is a mapping of keys, got {type(annotation).__name__}")
    texts = {key: _text(where, key, annotation.get(key)) for key in TEXTS}
    texts |= {key: _text(where, key, default if annotation.get(key) is None else annotation[key]) for key, default in DEFAULTS.items()}
    value = _value(where, annotation)
    prompt = prompt_id(texts["dataset"], (Message("user", texts["instruction"]),))
    return {
        "arm_a": texts["generator_2"], "arm_b": texts["generator_1"], "seed_a": 0, "seed_b": 0, "round": "", "prompt_id": prompt,
        "cluster_id": prompt, "axis": texts["dataset"], "judge": texts["annotator"], "order": "", "verdict": None, "value": value,
        "failure": NO_PREFERENCE if math.isnan(value) else "", "question": "",
        "length_a": float(len(texts["output_2"])), "length_b": float(len(texts["output_1"])),
    }  # fmt: skip


def _text(where: str, key: str, text: Any) -> str:
    if not isinstance(text, str):
        raise InputError(f"{where}: {key}: {'missing' if text is None else f'text is needed, got {reprlib.repr(text)}'}")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a character
        raise InputError(f"{where}: {key}: not Unicode text (character {error.start})") from None
    return text


def _value(where: str, annotation: Mapping[str, Any]) -> float:
    if "preference" not in annotation:
        raise InputError(f"{where}: preference: missing")
    preference = annotation["preference"]
    if preference is None or preference != preference:
        return math.nan
    if isinstance(preference, bool) or not isinstance(preference, int | float) or not (preference == 0 or 1 <= preference <= 2):
        raise InputError(f"{where}: preference: a number from 1 to 2, or 0 for a draw, is needed, got {reprlib.repr(preference)}")
    return 0.5 if preference == 0 else float(preference - 1)


def win_rates(judgments: pd.DataFrame, *, draws: int = 1000, seed: int = 0, without_difficulty: bool = False) -> pd.DataFrame:
    """A row for each judge and two models, over all instructions: judge, arm_a, arm_b, COUNTS, NUMBERS, WORDS.

    win_rate is arm_a's: see `stats.win_rate`; lc_* and share_longer: see `stats.length_controlled_win_rate`, whose bootstrap takes
    `draws` and `seed`. How hard instructions are is fitted to all models of a judge and reference together (`instruction_difficulty`);
    one model alone has no such table, and no lc_* unless `without_difficulty`, which leaves the term out. length_* are means in
    characters. What the statistics refuse is NaN, and `test` or `lc_test` says why.
    """
    rows = []
    references = judgments.rename(columns={"arm_a": "model"}).groupby(["judge", "arm_b"], sort=True)
    tables = {key: None if without_difficulty else _difficulty(part) for key, part in references}
    for (judge, a, b), part in judgments.groupby(["judge", "arm_a", "arm_b"], sort=True):
        row: dict[str, Any] = {"judge": judge, "arm_a": a, "arm_b": b}
        row |= dict.fromkeys(COUNTS, 0) | dict.fromkeys(NUMBERS, math.nan) | dict.fromkeys(WORDS, "")
        row |= {"n_missing": int(part["value"].isna().sum()), "length_a": part["length_a"].mean(), "length_b": part["length_b"].mean()}
        try:
            rate = asdict(win_rate(part["value"]))
            row |= {"win_rate": rate.pop("mean")} | rate
            if (table := tables[judge, b]) is None and not without_difficulty:
                row["lc_test"] = ALONE
                rows.append(row)
                continue
            even = length_controlled_win_rate(part, difficulty=table, draws=draws, seed=seed)
            row |= {"lc_win_rate": even.lc_win_rate, "lc_low": even.ci_low, "lc_high": even.ci_high}
            row |= {"share_longer": even.share_longer, "lc_test": even.test, "lc_note": even.note}
        except ValueError as error:
            row["lc_test" if row["test"] else "test"] = f"none: {error}"
        rows.append(row)
    return pd.DataFrame(rows)


def _difficulty(preferences: pd.DataFrame) -> dict[Any, float] | None:
    """How hard each instruction is; None for a single model."""
    rated = preferences.dropna(subset=["value"])
    if rated["model"].nunique() < 2:
        return None
    return dict.fromkeys(preferences["prompt_id"], 0.0) | instruction_difficulty(rated)


def strengths(judgments: pd.DataFrame) -> dict[str, BradleyTerry]:
    """Strengths of the models by judge, where it has verdicts on three or more (`stats.bradley_terry`, instructions drawn together)."""
    fitted = {}
    for judge, part in judgments.groupby("judge", sort=True):
        battles = part.rename(columns={"arm_a": "a", "arm_b": "b"})
        if len(set(battles["a"]) | set(battles["b"])) > 2 and battles["value"].notna().any():
            fitted[judge] = bradley_terry(battles[["a", "b", "value", "prompt_id"]], cluster="prompt_id")
    return fitted


def _summary(rates: pd.DataFrame, fitted: Mapping[str, BradleyTerry]) -> list[str]:
    heads = ("judge", "model", "against", "win rate", "95 % interval", "n", "missing", "won / tied / lost", "at equal lengths", "lengths")
    rows = [
        (
            plain(row.judge), plain(row.arm_a), plain(row.arm_b), number(row.win_rate), _interval(row.ci_low, row.ci_high),
            str(row.n), str(row.n_missing), f"{row.n_wins} / {row.n_ties} / {row.n_losses}",
            f"{number(row.lc_win_rate)} ({_interval(row.lc_low, row.lc_high)})", f"{row.length_a:.0f} / {row.length_b:.0f}",
        )
        for row in rows_of(rates)
    ]  # fmt: skip
    words = dict.fromkeys(f"{note}." for row in rows_of(rates) for note in (row.test, row.scope, row.lc_test, row.lc_note) if note)
    lines = ["# Outside verdicts", "", *table(heads, rows), ""]
    lines += [
        "Win rates are shares of preferences, a draw 1/2. At equal lengths: what preferences, lengths and, where several models are here,",
        "how hard the instructions are predict together for answers of one length, a sensitivity analysis. Lengths: mean characters of the",
        "model's answers and of the other's.",
        "",
    ]
    lines += [f"- {plain(word)}" for word in words]
    for judge, fit in fitted.items():
        heads = ("model", "strength (log-odds)", "95 % interval", "comparisons")
        models = [
            (plain(row.model), number(row.strength), _interval(row.ci_low, row.ci_high), str(row.battles)) for row in rows_of(fit.strengths)
        ]
        lines += ["", f"## Strengths by {plain(judge)}", "", *table(heads, models), "", f"Bradley-Terry; {fit.test}; {fit.scope}."]
        lines += [f"{plain(fit.note)}."] if fit.note else []
    return lines


def _interval(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"{number(low)} to {number(high)}"


def _json(text: str, where: str) -> Any:
    try:
        return parse_json(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON: {error}") from None
