"""A run folder's tables -> report.md, three csv files and figures. No model is opened, and no text a model wrote is shown."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from apo_bench import results
from apo_bench.config import Unit
from apo_bench.results import POOLED, Run

Row = Any  # one row of a frame, its columns as attributes
ALPHA = 0.05
CAPTIONS = {
    "by_round.png": "Scores by round; bands: sample SD over seeds",
    "by_kl.png": "Scores against KL to the initial policy; the last round is numbered",
}


def write_report(folder: Path) -> Path:
    """Rebuild `folder`/report from its tables; the same tables give the same bytes. Returns the path of report.md.

    Reads experiment.yaml (resolved), manifest.json and tables/*.parquet. Raises InputError, one line naming file and key or column.
    """
    from apo_bench.figures import draw  # matplotlib takes a second to import

    run = results.read_run(folder)
    frames = {"summary": results.summary(run), "contrasts": results.contrasts(run), "budget": results.budget(run)}
    target = folder / "report"
    target.mkdir(parents=True, exist_ok=True)
    for name, frame in frames.items():
        frame.to_csv(target / f"{name}.csv", index=False, float_format="%.12g", lineterminator="\n")
    shown = run.axes if len(run.axes) == 1 else (POOLED, *run.axes)
    figures = draw(frames["summary"], run.arms, run.judges, shown, target / "figures")
    lines = compose(run, **frames, figures=[path.name for path in figures if path.suffix == ".png"])
    path = target / "report.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    return path


def compose(run: Run, summary: pd.DataFrame, contrasts: pd.DataFrame, budget: pd.DataFrame, figures: Sequence[str]) -> list[str]:
    """The lines of report.md."""
    lines = [f"# {run.experiment.name}", ""]
    lines += [f"**Not matched as declared:** {missed}" for missed in _missed(budget)]
    lines += ["", "## Answer", ""] if len(lines) > 2 else ["## Answer", ""]
    lines += [f"- {_sentence(row)}" for row in _rows(contrasts[contrasts["family"] == "primary"])]
    lines += ["", *[f"- {_matches(budget, pair.a, pair.b)}" for family, pair in results.comparisons(run) if family == "primary"]]
    if warnings := _warnings(run, contrasts):
        lines += ["", "## Warnings", "", *[f"- {_plain(warning)}" for warning in warnings]]
    lines += ["", "## Scores at the final round", "", *_final(run, summary)]
    lines += ["", "## Contrasts", "", *_contrasts(contrasts)]
    lines += ["", "## By round", "", *[f"![{CAPTIONS[name]}](figures/{name})" for name in figures]]
    lines += ["", *_by_round(run, summary)]
    lines += ["", "## Reward models by round", "", *_reward_models(run)]
    lines += ["", "## Gold reward models", "", *_gold(run)]
    lines += ["", "## Budget", "", *_budget(run, budget)]
    lines += ["", "## Data and provenance", "", *_provenance(run)]
    return lines


def _sentence(row: Row) -> str:
    where = f"{row.scorer}, {'all axes pooled' if row.axis == POOLED else row.axis}"
    a, b = f"`{row.arm_a}`", f"`{row.arm_b}`"
    if math.isnan(row.difference):
        return f"**No result for {a} against {b}** ({where}): {_plain(row.test.removeprefix('none: '))}."
    size = f"difference {_signed(row.difference)}"
    if not math.isnan(row.ci_low):
        size += f", 95 % interval {_signed(row.ci_low)} to {_signed(row.ci_high)}"
    counts = f"{row.n_seeds} {'seed' if row.n_seeds == 1 else 'seeds'}, {row.n_clusters} clusters of prompts"
    if math.isnan(row.p_adjusted):
        return f"**No test of {a} against {b}** ({where}): {size}; {_plain(row.test.removeprefix('none: '))}. Scope: {row.scope}; {counts}."
    if row.p_adjusted < ALPHA:
        claim = f"**{a} scored {'higher' if row.difference > 0 else 'lower'} than {b}** ({where})"
    else:
        claim = f"**No difference between {a} and {b} could be shown** ({where})"
    return (
        f"{claim}: {size}, Holm-adjusted p = {_p(row.p_adjusted)} (unadjusted {_p(row.p_value)}; {row.test}). Scope: {row.scope}; {counts}."
    )


def _missed(budget: pd.DataFrame) -> list[str]:
    rows = budget[(budget["declared"] == "yes") & (budget["matched"] == "no")]
    return [f"`{r.arm_a}` against `{r.arm_b}`: {r.unit} {_spent(r)}." for r in _rows(rows)]


def _spent(row: Row) -> str:
    ratio = "" if math.isnan(row.ratio) else f", ratio {row.ratio:.3g}"
    return f"{_count(row.used_a)} against {_count(row.used_b)}{ratio}"


def _matches(budget: pd.DataFrame, a: str, b: str) -> str:
    rows = _rows(budget[(budget["arm_a"] == a) & (budget["arm_b"] == b) & (budget["kind"] != "")])

    def these(declared: str, matched: str) -> list[Row]:
        return [row for row in rows if (row.declared, row.matched) == (declared, matched)]

    parts = []
    if kept := these("yes", "yes"):
        parts.append("matched as declared: " + ", ".join(row.unit for row in kept))
    if missed := these("yes", "no"):
        parts.append("**declared but not matched**: " + ", ".join(f"{row.unit} ({_spent(row)})" for row in missed))
    if equal := these("no", "yes"):
        parts.append("equal without being required: " + ", ".join(row.unit for row in equal))
    if other := these("no", "no"):
        parts.append("not required and different: " + ", ".join(f"{row.unit} ({_spent(row)})" for row in other))
    return f"`{a}` against `{b}`: {'; '.join(parts)}."


def _warnings(run: Run, contrasts: pd.DataFrame) -> list[str]:
    found = []
    for failure in run.manifest.get("failures", []):
        seed = "" if failure.get("seed") is None else f", seed {failure['seed']}"
        found.append(f"Failed: {failure['arm']}{seed}: {failure['message']}")
    for arm in run.arms:
        seeds = set(run.final.loc[run.final["arm"] == arm, "seed"])
        if missing := sorted(set(run.experiment.seeds) - seeds):
            found.append(f"{arm}: no final scores for seed {', '.join(map(str, missing))}; contrasts use the seeds that both arms have.")
    for gold in run.golds:
        for axis in run.axes:
            if reason := results.uninformative(run, gold, axis):
                found.append(f"Gold model {gold}: {reason}. No test is made on it, nor on the pooled axes.")
    primary = contrasts[contrasts["family"] == "primary"]
    few = primary[primary["n_seeds"].between(1, 2)].drop_duplicates(["arm_a", "arm_b"])
    for row in _rows(few):
        found.append(f"{row.arm_a} against {row.arm_b}: only {row.n_seeds} seed(s); three or more are needed for a claim about new seeds.")
    for row in _rows(contrasts[contrasts["n_dropped"] > 0]):
        where = f"{row.arm_a} against {row.arm_b}, {row.axis}, {row.scorer}"
        found.append(f"{where}: {row.n_dropped} rows left out (prompt not scored in every seed of both).")
    found += [f"Table {name} is absent; what it would show is missing." for name in run.absent]
    if run.manifest.get("dirty"):
        found.append("The code had uncommitted changes.")
    return found


def _final(run: Run, summary: pd.DataFrame) -> list[str]:
    axes = run.axes if len(run.axes) == 1 else (POOLED, *run.axes)
    columns = [(scorer, axis) for scorer in run.judges for axis in axes]
    final = pd.concat([results.seed_means(run.final, axis).assign(axis=axis) for axis in axes])
    cells = {key: _mean_sd(group["value"]) for key, group in final.groupby(["arm", "scorer", "axis"])}
    start = {(one.scorer, one.axis): _number(one.mean) for one in _rows(_initial(summary))}
    rows = [["*initial policy*", "0", "", *[start.get(column, "-") for column in columns]]]
    for arm in run.arms:
        n_seeds = run.final.loc[run.final["arm"] == arm, "seed"].nunique()
        rows.append([f"`{arm}`", str(run.final_round.get(arm, "-")), str(n_seeds), *[cells.get((arm, *column), "-") for column in columns]])
    note = (
        "Mean over seeds ± sample SD over seeds; clusters of prompts weigh alike, as in the contrasts. `proxy` is each arm's own "
        "reward model, so its values are not comparable across arms."
    )
    return [*_table(["arm", "round", "seeds", *[f"{scorer}: {axis}" for scorer, axis in columns]], rows), "", note]


def _initial(summary: pd.DataFrame) -> pd.DataFrame:
    """The initial policy's means, where all arms agree on them (a proxy of its own makes an arm differ)."""
    rounds = summary[summary["round"] == 0].groupby(["scorer", "axis"])["mean"].agg(["min", "max"]).reset_index()
    same = rounds[(rounds["max"] - rounds["min"]) <= 1e-6 * rounds[["min", "max"]].abs().max(axis=1).clip(lower=1.0)]
    return same.rename(columns={"min": "mean"})[["scorer", "axis", "mean"]]


def _contrasts(contrasts: pd.DataFrame) -> list[str]:
    notes: dict[tuple[str, str], str] = {}
    rows = []
    for one in _rows(contrasts):
        letter = notes.setdefault((str(one.test), str(one.scope)), _letter(len(notes)))
        interval = "-" if math.isnan(one.ci_low) else f"{_signed(one.ci_low)} to {_signed(one.ci_high)}"
        pair = f"`{one.arm_a}` - `{one.arm_b}`"
        numbers = [_signed(one.difference), interval, _p(one.p_value), _p(one.p_adjusted), str(one.n_seeds), str(one.n_clusters)]
        rows.append([pair, _plain(one.axis), one.scorer, one.family, *numbers, letter])
    headers = ["contrast", "axis", "scorer", "family", "difference", "95 % interval", "p", "p (Holm)", "seeds", "clusters", "note"]
    explained = [f"- ({letter}) Test: {_plain(test)}. Scope: {_plain(scope)}." for (test, scope), letter in notes.items()]
    return [
        *_table(headers, rows),
        "",
        "Holm's correction covers the primary family; other p-values are unadjusted and descriptive.",
        "",
        *explained,
    ]


def _letter(place: int) -> str:
    return chr(ord("a") + place) if place < 26 else f"a{place}"


def _by_round(run: Run, summary: pd.DataFrame) -> list[str]:
    table = summary[summary["axis"] == (run.axes[0] if len(run.axes) == 1 else POOLED)]
    axis_name = "" if len(run.axes) == 1 else " All axes pooled; by axis in `summary.csv`."
    single = tuple(f"{gold}." for gold in run.golds)
    scorers = [scorer for scorer in dict.fromkeys(table["scorer"]) if not scorer.startswith(single)]
    cells = {(one.arm, one.round, one.scorer): _pm(one.mean, one.seed_sd) for one in _rows(table)}
    rows = []
    for arm, round_ in table[["arm", "round"]].drop_duplicates().itertuples(index=False):
        rows.append([f"`{arm}`", str(round_), *[cells.get((arm, round_, scorer), "-") for scorer in scorers]])
    note = f"Mean ± sample SD over seeds.{axis_name} KL in nats per response, length in tokens, refusal and distinct-n as shares."
    return [*_table(["arm", "round", *scorers], rows), "", note]


def _reward_models(run: Run) -> list[str]:
    table = run.tables["reward_models"].dropna(subset=["value"])
    own = table[table["arm"].isin(run.arms)]
    if own.empty:
        return ["No diagnostics were recorded."]
    floors = table[(table["arm"] == "_floor") & (table["metric"] == "accuracy_human")].groupby("axis")["value"].mean().to_dict()
    metrics = sorted(own["metric"].unique())
    cells = {key: _mean_sd(group["value"]) for key, group in own.groupby(["arm", "round", "axis", "metric"])}
    rows = []
    for arm in run.arms:
        for round_, axis in sorted({(one.round, one.axis) for one in _rows(own[own["arm"] == arm])}):
            found = [cells.get((arm, round_, axis, metric), "-") for metric in metrics]
            rows.append([f"`{arm}`", str(int(round_)), _plain(axis), *found, _number(floors.get(axis, math.nan))])
    note = (
        "Mean ± sample SD over seeds. accuracy_human: held-out human pairs (falling means forgetting); accuracy_golden: golden response "
        f"over the current policy's samples; ece: expected calibration error, {run.experiment.evaluation.ece_bins} equal-width bins on "
        "[0, 1]; gold_correlation: with gold, on the policy's own samples. The floor is the human-pair accuracy of a linear n-gram model "
        "on the same pairs."
    )
    return [*_table(["arm", "round", "axis", *metrics, "n-gram floor"], rows), "", note]


def _gold(run: Run) -> list[str]:
    rows = []
    for one in _rows(results.gold_accuracy(run)):
        spread = f"{_number(one.seed_low)} to {_number(one.seed_high)} ({_count(one.n_gold_seeds)} seeds)"
        verdict = results.uninformative(run, str(one.gold), str(one.axis)) or "better than chance"
        interval = f"{_number(one.ci_low)} to {_number(one.ci_high)}"
        sizes = [_count(one.n_pairs), _count(one.n_clusters)]
        rows.append([str(one.gold), _plain(one.axis), _number(one.value), interval, spread, *sizes, _number(one.floor), _plain(verdict)])
    headers = ["gold", "axis", "accuracy", "95 % interval", "single seeds", "pairs", "clusters", "n-gram floor", "verdict"]
    lines = _table(headers, rows) if rows else ["No gold accuracy was recorded."]
    if rows:
        lines += ["", "Accuracy of the mean score over gold seeds on held-out human pairs; interval robust to clusters of prompts."]
    agreement = results.sign_agreement(run)
    if len(agreement):
        cells = [[one.gold, _plain(one.axis), _number(one.agree), str(one.n)] for one in _rows(agreement)]
        lines += [
            "",
            "### How far gold can be trusted",
            "",
            *_table(["gold", "axis", "same sign as the truth", "changes"], cells),
            "",
            "Of all changes between two rounds of one arm and seed in which mean ground truth moved by more than "
            f"{results.TRUSTED_CHANGE:g}, the share in which gold moved the same way. The changes are not independent of each other.",
        ]
    return lines


def _budget(run: Run, budget: pd.DataFrame) -> list[str]:
    rows = [
        [
            f"`{r.arm_a}` / `{r.arm_b}`",
            r.unit,
            _count(r.used_a),
            _count(r.used_b),
            _number(r.ratio),
            r.kind or "-",
            r.declared,
            r.matched or "-",
        ]
        for r in _rows(budget)
    ]
    lines = _table(["pair", "unit", "a used", "b used", "a / b", "kind", "declared", "matched"], rows)
    lines += [
        "",
        "Means over shared seeds. Matched: counts equal in every seed, flops within 5 % in every seed.",
        "",
        "### What each arm costs alone",
        "",
    ]
    ledger = run.tables["ledger"]
    order = [unit for unit in get_args(Unit) if unit in set(ledger["unit"])]
    used = ledger.groupby(["arm", "unit"])["used"].mean().to_dict()
    arms = [arm for arm in (*run.arms, "_bench") if arm in set(ledger["arm"])]
    cost = [
        [unit, *[_count(used.get((arm, unit), 0.0)) for arm in arms], _count(run.experiment.budget.get(unit, math.nan))] for unit in order
    ]
    lines += _table(["unit", *[f"`{arm}`" for arm in arms], "budget"], cost)
    note = "Mean over seeds; a failed seed counts with what it spent."
    if "_bench" in arms:
        note += " `_bench` is what the benchmark itself spends (gold models, evaluation, warm-up); no arm is charged for it."
    return [*lines, "", note]


def _provenance(run: Run) -> list[str]:
    manifest = run.manifest
    lines = [f"{_plain(manifest.get('provenance') or 'No provenance was recorded.')}", ""]
    splits = manifest.get("splits") or {}
    if splits:
        rows = [
            [_plain(name), *[str(counts.get(what, "-")) for what in ("pairs", "prompts", "clusters")]] for name, counts in splits.items()
        ]
        lines += [*_table(["split", "pairs", "prompts", "clusters"], rows), ""]
    lines += [f"- {_plain(note)}" for note in manifest.get("notes") or []]
    arms = manifest.get("arms") or {name: arm.use for name, arm in run.experiment.arms.items()}
    commit = f"{manifest.get('commit') or 'unknown'}{' with uncommitted changes' if manifest.get('dirty') else ''}"
    versions = ", ".join(f"{name} {version}" for name, version in sorted((manifest.get("versions") or {}).items()))
    facts = {
        "task": manifest.get("task") or run.experiment.task.use,
        "seeds": ", ".join(map(str, run.experiment.seeds)),
        "arms": ", ".join(f"{name} = {use}" for name, use in arms.items()),
        "command": manifest.get("command"),
        "commit": commit,
        "versions": versions,
    }
    return [*lines, *[f"- {name}: {_plain(value)}" for name, value in facts.items() if value]]


def _rows(frame: pd.DataFrame) -> list[Row]:
    return list(frame.itertuples())


def _table(headers: Iterable[str], rows: Iterable[Sequence[str]]) -> list[str]:
    headers = list(headers)
    return [f"| {' | '.join(line)} |" for line in (headers, ["---"] * len(headers), *rows)]


def _plain(value: object) -> str:
    """Text from a file as one table cell or line."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _mean_sd(values: pd.Series) -> str:
    return _pm(float(values.mean()), float(values.std()))


def _pm(mean: float, sd: float) -> str:
    return _number(mean) if math.isnan(sd) else f"{_number(mean)} ± {_number(sd)}"


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.3f}"


def _p(value: float) -> str:
    return "" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _count(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.3e}" if value >= 1e7 else f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"
