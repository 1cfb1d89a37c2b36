"""The reports of an experiment's variations -> how far its answers differ between them: report.md, report.html, spread.csv and a figure.

Within one variation, world, base policy and gold models are as they are; here they are what varies. No model, no torch.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy.special import stdtr, stdtrit  # scipy.stats would take a second to import

from apo_bench import formatting as markdown
from apo_bench.analysis.results import POOLED, UNINFORMATIVE
from apo_bench.config.load import load_experiment
from apo_bench.config.schema import JUDGE
from apo_bench.formatting import Row, claim, number, plain, probability, rows_of, signed, tested
from apo_bench.judging.audit_report import UNINFORMATIVE as UNINFORMATIVE_JUDGE
from apo_bench.report.figures import COLOURS, STYLE, save
from apo_bench.report.page.charts import Estimate
from apo_bench.report.page.markup import minus
from apo_bench.report.page.markup import name as page_name
from apo_bench.report.page.writing import render_levels
from apo_bench.report.write import write_report_files
from apo_bench.stats import holm

NEW = {  # what the levels of a factor are draws from; whatever does not vary with it is the same in all of them
    "world": "new worlds",
    "initial_policy": "new base policies; world, prompts and gold data as they are",
    "gold": "new gold models; world, prompts and policies as they are",
}
KEY = ["arm_a", "arm_b", "axis", "scorer", "at"]  # what is one contrast in every variation
NUMBERS = ["difference", "ci_low", "ci_high"]  # what a variation says of it
READ = [*KEY, "family", *NUMBERS, "scope", "test"]
DOUBTS = (UNINFORMATIVE, f"none: {UNINFORMATIVE_JUDGE}")  # how a scope, or a test, begins where no claim may rest on a scorer
SUMMARY = ["arm", "round", "axis", "scorer", "mean"]


@dataclass(frozen=True)
class OverLevels:
    """A mean over levels and what may be claimed of levels that were not run. NaN is "not available"; `test` says why."""

    mean: float
    sd: float
    ci_low: float
    ci_high: float
    p_value: float
    test: str


def over_levels(values: npt.ArrayLike, confidence: float = 0.95) -> OverLevels:
    """Mean, sample SD and t interval of differences (K,), each level one draw; NaN ones do not count.

    Three levels or more are tested against a mean of 0, two give an interval and no p-value, one gives neither, nor an SD.
    By hand, 1, 2, 3: mean 2, SD 1, error 1/sqrt(3), 2 degrees of freedom, t = sqrt(12). For 2 degrees of freedom
    P(|T| < t) = t / sqrt(2 + t^2), so p = 1 - sqrt(12/14) = 0.0742, and the 95 % point is 4.3027: from -0.484 to 4.484.
    """
    x = np.asarray(values, dtype=float)
    x = x[~np.isnan(x)]
    nan = math.nan
    if len(x) < 2:
        return OverLevels(float(x[0]) if len(x) else nan, nan, nan, nan, nan, f"none: {'one level only' if len(x) else 'no result'}")
    mean, sd = float(x.mean()), float(x.std(ddof=1))
    if np.ptp(x) <= 1e-12 * np.abs(x).max():
        return OverLevels(mean, 0.0, nan, nan, nan, "none: every level gives the same difference")
    error, df = sd / math.sqrt(len(x)), len(x) - 1
    half = error * float(stdtrit(df, (1 + confidence) / 2))
    if len(x) == 2:
        return OverLevels(mean, sd, mean - half, mean + half, nan, "none: two levels give an interval only")
    p_value = float(2 * stdtr(df, -abs(mean) / error))
    return OverLevels(mean, sd, mean - half, mean + half, p_value, f"t test over {len(x)} levels, each one draw")


def by_level(differences: Mapping[str, float]) -> dict[str, float]:
    """For each factor of labels such as "world=1,gold=0": the sample SD, over its levels, of the means over the other factors.

    NaN where a variation is missing: a mean over other levels than its neighbour's would differ by those too.
    By hand, worlds 0, 1 by golds 0, 1, differences 1, 2 and 3, 6: world means 1.5 and 4.5, SD 3/sqrt(2); gold means 2 and 4, SD sqrt(2).
    """
    cells = [dict(part.split("=", 1) for part in label.split(",")) for label in differences]
    found = {}
    for factor in cells[0]:
        groups: dict[str, list[float]] = {}
        for cell, value in zip(cells, differences.values(), strict=True):
            groups.setdefault(cell[factor], []).append(value)
        found[factor] = float(np.std([np.mean(group) for group in groups.values()], ddof=1))
    return found


def spread(contrasts: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """A row for each contrast x axis x scorer (x `at`): its difference in each variation, and mean, SD and test over them.

    `contrasts` has the columns READ and `variation`. One factor: a t interval over its levels, Holm-adjusted over the primary family.
    Several: their levels are crossed, so that the variations are no independent draws; SDs by factor and no interval or p-value.
    No p-value either where gold, or a judge, is uninformative in a variation, as within a run.
    """
    factors = [part.split("=", 1)[0] for part in labels[0].split(",")]
    rows = []
    for key, group in contrasts.groupby(KEY, sort=False):
        cells = group.set_index("variation")[NUMBERS].reindex(list(labels)).astype(float)
        values = cells["difference"]
        numbers = asdict(over_levels(values))
        scope = NEW[factors[0]]
        said = group[["scope", "test"]].fillna("").astype(str)
        blind = int((said["scope"].str.startswith(DOUBTS) | said["test"].str.startswith(DOUBTS)).sum())
        if len(factors) > 1:
            numbers |= {"ci_low": math.nan, "ci_high": math.nan, "p_value": math.nan}
            numbers["test"], scope = (
                f"none: {' and '.join(factors)} are crossed, so the variations are no independent draws",
                "these levels",
            )
        elif blind:
            who = UNINFORMATIVE_JUDGE if str(group["scorer"].iloc[0]).startswith(JUDGE) else UNINFORMATIVE
            numbers |= {"p_value": math.nan, "test": f"none: {who} in {blind} of {len(labels)} variations"}
        counts = {"n_variations": values.notna(), "n_missing": values.isna(), "n_positive": values > 0, "n_negative": values < 0}
        row = dict(zip(KEY, key, strict=True)) | {"family": group["family"].iloc[0], **numbers, "scope": scope}
        row |= {name: int(which.sum()) for name, which in counts.items()}
        if len(factors) > 1:
            row |= {f"sd_{factor}": sd for factor, sd in by_level({str(label): value for label, value in values.items()}).items()}
        row |= {f"{column}.{label}": cells.loc[label, column] for label in labels for column in NUMBERS}
        rows.append(row)
    table = pd.DataFrame(rows)
    if len(table):
        primary = table["family"] == "primary"
        adjusted = np.full(len(table), math.nan)
        adjusted[primary] = holm(table.loc[primary, "p_value"].to_numpy(dtype=float))
        table.insert(int(table.columns.get_loc("p_value")) + 1, "p_adjusted", adjusted)  # pyright: ignore[reportArgumentType]
    return table


def write(folder: Path, name: str, levels: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write `folder`/report from the variations' own, each in `folder`/<label>; `levels` maps labels to their levels."""
    parts = {label: _read(folder / label) for label in levels}
    if len({part.gold for part in parts.values() if part.gold}) > 1:  # another gold model in each: what is common is its office
        parts = {label: part.with_common_gold() for label, part in parts.items()}
    found = [part.contrasts.assign(variation=label) for label, part in parts.items() if part.there]
    table = spread(pd.concat(found, ignore_index=True), list(levels)) if found else pd.DataFrame(columns=[*KEY, "family"])
    figures = _draw(table, list(levels)) if len(table) else {}
    csv = table.to_csv(index=False, float_format="%.12g", lineterminator="\n")
    title, warnings = f"{name}: {' and '.join(_factors(levels))} varied", _warnings(parts, table)
    answers = [_sentence(row) for row in rows_of(table[table["family"] == "primary"])] or ["**No result**: no variation has a report."]
    heads, cells, remarks = _contrasts(table, list(levels))
    pages = {label: (folder / label / "report" / "report.html").is_file() for label in levels}
    page = render_levels(title, answers, warnings, _estimates(table, list(levels)), heads, cells, remarks, pages)
    lines = [f"# {title}", "", "## Answer", "", *[f"- {answer}" for answer in answers]]
    if warnings:
        lines += ["", "## Warnings", "", *[f"- {plain(warning)}" for warning in warnings]]
    lines += ["", "## Contrasts by variation", ""]
    lines += ["![Differences by variation, with their 95 % intervals; diamonds: mean](figures/spread.png)"] if figures else []
    if len(table):
        lines += ["", *markdown.table(heads, cells), "", *remarks[:2], "", *[f"- {remark}" for remark in remarks[2:]]]
    lines += ["", "## Final scores by variation", "", *_scores(parts, table)]
    lines += ["", "## Variations", "", *_variations(parts, levels)]
    files = {"report.md": "\n".join(lines) + "\n", "report.html": page, "tables/spread.csv": csv}
    write_report_files(folder, files | {f"figures/{name}": content for name, content in figures.items()})
    return folder / "report" / "report.md"


# --- what is read -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """A variation's report as it was found."""

    contrasts: pd.DataFrame
    summary: pd.DataFrame
    gold: str | None  # its first gold model
    failures: tuple[str, ...]
    there: bool

    def with_common_gold(self) -> "_Part":
        contrasts, summary = (frame.assign(scorer=frame["scorer"].replace({self.gold: "gold"})) for frame in (self.contrasts, self.summary))
        return _Part(contrasts, summary, self.gold, self.failures, self.there)


def _read(folder: Path) -> _Part:
    if not (folder / "report" / "tables" / "contrasts.csv").is_file():
        return _Part(pd.DataFrame(columns=READ), pd.DataFrame(columns=SUMMARY), None, (), False)
    texts = dict.fromkeys((*KEY, "family", "scope", "test", "arm"), str)  # an arm may be called 1, or null
    contrasts, summary = (
        pd.read_csv(folder / "report" / "tables" / f"{name}.csv", dtype=texts, keep_default_na=False, na_values=[""])
        for name in ("contrasts", "summary")
    )
    if "at" not in contrasts:
        contrasts["at"] = "final"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    failures = tuple(f"{one['arm']}, seed {one['seed']}: {one['message']}" for one in manifest.get("failures", []))
    gold = load_experiment(folder / "experiment.yaml").models.gold[0].name
    return _Part(contrasts[READ], summary[SUMMARY].dropna(subset=["mean"]), gold, failures, True)


def _warnings(parts: Mapping[str, _Part], table: pd.DataFrame) -> list[str]:
    found = [f"{label}: no report; it is missing below." for label, part in parts.items() if not part.there]
    found += [f"{label}: failed: {failure}" for label, part in parts.items() for failure in part.failures]
    if len(table) and (missing := int((table["n_missing"] > 0).sum())):
        found.append(f"{missing} of {len(table)} rows lack a difference in at least one variation; column missing counts them.")
    return found


# --- what is said -------------------------------------------------------------------------------------------------------------


def _sentence(row: Row) -> str:
    a, b = f"`{row.arm_a}`", f"`{row.arm_b}`"
    where = f"{row.scorer}, {'all axes pooled' if row.axis == POOLED else row.axis}{'' if row.at == 'final' else f', {row.at}'}"
    if not row.n_variations:
        return f"**No result for {a} against {b}** ({where})."
    size = f"mean difference {signed(row.mean)} over {row.n_variations} variations (SD {number(row.sd)})"
    size += "" if math.isnan(row.ci_low) else f", 95 % interval {signed(row.ci_low)} to {signed(row.ci_high)}"
    signs = f"higher in {row.n_positive}, lower in {row.n_negative}" + (f", missing in {row.n_missing}" if row.n_missing else "")
    if math.isnan(row.p_adjusted):
        return f"**No test of {a} against {b}** ({where}): {size}; {row.test.removeprefix('none: ')}. {signs.capitalize()}."
    said = claim(a, b, where, row.mean, row.p_adjusted)
    return f"{said}: {size}, {tested(row.p_adjusted, row.p_value, row.test)}; {signs}. Scope: {row.scope}."


def _contrasts(table: pd.DataFrame, labels: Sequence[str]) -> tuple[list[str], list[list[str]], list[str]]:
    """Heads, cells and remarks of the table of contrasts."""
    factors = [column for column in map(str, table.columns) if column.startswith("sd_")]
    notes: dict[str, str] = {}
    cells = []
    for row in table.to_dict("records"):
        note = notes.setdefault(f"Test: {row['test']}. Scope: {row['scope']}.", str(len(notes) + 1))
        at = "" if row["at"] == "final" else f" ({row['at']})"
        numbers = [_interval(*(row[f"{column}.{label}"] for column in NUMBERS)) for label in labels]
        p_values = [] if factors else [probability(row["p_value"]), probability(row["p_adjusted"])]
        cells.append([
            f"`{row['arm_a']}` - `{row['arm_b']}`{at}", row["axis"], row["scorer"], row["family"], *numbers,
            _interval(row["mean"], row["ci_low"], row["ci_high"]), number(row["sd"]), *[number(row[factor]) for factor in factors],
            *p_values, f"{row['n_positive']} / {row['n_negative']}", str(row["n_missing"]), note,
        ])  # fmt: skip
    heads = ["contrast", "axis", "scorer", "family", *labels, "mean", "SD", *[f"SD by {factor[3:]}" for factor in factors]]
    heads += [*([] if factors else ["p", "p (Holm)"]), "higher / lower", "missing", "note"]
    said = (
        "Differences with 95 % intervals: of a variation, as its own report has them; of the mean, over variations. Gold scores have a "
        "scale of their own in each variation, so that their mean and SD mix scales; signs do not."
    )
    draws = (
        "SD by factor: of the means over the levels of that factor, the others averaged; missing where a variation is."
        if factors
        else "Each level counts as one draw at random from what it stands for; levels that somebody picked are no such draw, and say "
        "nothing of new ones. Holm's correction covers the primary family; other p-values are unadjusted and descriptive."
    )
    return heads, cells, [said, draws, *[f"({number}) {text}" for text, number in notes.items()]]


def _estimate(label: str, value: float, low: float, high: float) -> Estimate:
    return Estimate(page_name(label), value, low, high, minus(signed(value)), "", 0.0, "primary" if label == "mean" else "")


def _estimates(table: pd.DataFrame, labels: Sequence[str]) -> dict[str, list[Estimate]]:
    """For the page: each declared contrast by each scorer but the proxy, a line per variation and, below them, the mean."""
    found = {}
    for row in table[(table["family"] != "descriptive") & (table["scorer"] != "proxy")].to_dict("records") if len(table) else []:
        axis, at = "all axes" if row["axis"] == POOLED else row["axis"], "" if row["at"] == "final" else f", {row['at']}"
        columns = {label: [f"{one}.{label}" for one in NUMBERS] for label in labels} | {"mean": ["mean", "ci_low", "ci_high"]}
        lines = [_estimate(label, *(float(row[one]) for one in names)) for label, names in columns.items()]
        if known := [line for line in lines if not math.isnan(line.value)]:
            found[f"{row['arm_a']} \u2212 {row['arm_b']}: {row['scorer']}, {axis}{at}"] = known
    return found


def _scores(parts: Mapping[str, _Part], table: pd.DataFrame) -> list[str]:
    """Means at each arm's last round, on the axes and scorers of the contrasts, and the KL."""
    final = {label: _last(part.summary) for label, part in parts.items() if part.there}
    if not final or table.empty:
        return ["No scores."]
    declared = table[table["family"] != "descriptive"]
    axes, scorers = list(dict.fromkeys(declared["axis"])), [one for one in dict.fromkeys(table["scorer"]) if one != "proxy"]
    arms = dict.fromkeys(arm for one in final.values() for arm, _, _ in one)
    lines = []
    for arm in arms:
        for axis in axes:
            for scorer in (*scorers, "kl"):
                values = np.array([final.get(label, {}).get((arm, axis, scorer), math.nan) for label in parts])
                if not np.isnan(values).all():
                    over = over_levels(values)
                    missing = str(int(np.isnan(values).sum()))
                    lines.append([f"`{arm}`", axis, scorer, *map(number, values), number(over.mean), number(over.sd), missing])
    note = "Means over seeds at each arm's last round; mean and SD over variations. KL in nats per response."
    return [*markdown.table(["arm", "axis", "scorer", *parts, "mean", "SD", "missing"], lines), "", note]


def _last(summary: pd.DataFrame) -> dict[tuple[str, str, str], float]:
    rows = summary[summary["round"] == summary.groupby("arm")["round"].transform("max")]
    return {(arm, axis, scorer): float(mean) for arm, axis, scorer, mean in rows[["arm", "axis", "scorer", "mean"]].itertuples(index=False)}


def _variations(parts: Mapping[str, _Part], levels: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = []
    for label, part in parts.items():
        report = f"[report](../{label}/report/report.md)" if part.there else "none"
        told = [plain(json.dumps(levels[label][factor], sort_keys=True)) for factor in _factors(levels)]
        rows.append([f"`{label}`", *told, part.gold or "-", str(len(part.failures)), report])
    note = "Each is a run of its own: its report tells budgets, gold accuracy, data, versions and the command."
    return [*markdown.table(["variation", *_factors(levels), "first gold model", "failures", "report"], rows), "", note]


def _factors(levels: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(next(iter(levels.values())))


def _interval(value: float, low: float, high: float) -> str:
    return signed(value) + ("" if math.isnan(low) else f" ({signed(low)} to {signed(high)})")


# --- the figure ---------------------------------------------------------------------------------------------------------------


def _draw(table: pd.DataFrame, labels: Sequence[str]) -> dict[str, bytes]:
    """spread.{png,svg}: a row of panels per declared contrast and axis, a column per scorer; a line per variation, below them the mean."""
    declared = table[table["family"] != "descriptive"]
    places = list(dict.fromkeys(declared[["arm_a", "arm_b", "axis", "at"]].itertuples(index=False, name=None)))
    scorers = [scorer for scorer in dict.fromkeys(table["scorer"]) if scorer != "proxy"]
    if not places or not scorers:
        return {}
    names = [*labels, "mean"]
    depth = 0.2 * len(names) + 0.45
    left = 0.075 * max(map(len, names)) + 0.25
    width, height = 2.6 * len(scorers) + left, depth * len(places) + 0.5
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=150)
        # margins in inches, by hand: matplotlib's own layout takes as long as the drawing
        figure.subplots_adjust(left=left / width, right=1 - 0.1 / width, bottom=0.5 / height, top=1 - 0.4 / height, wspace=0.1, hspace=0.5)
        panels = figure.subplots(len(places), len(scorers), squeeze=False, sharex="col", sharey="all")
        rows = {
            (*key, row["scorer"]): row for row in table.to_dict("records") for key in [tuple(row[one] for one in KEY if one != "scorer")]
        }
        for across, place in enumerate(places):
            for down, scorer in enumerate(scorers):
                panel, row = panels[across][down], rows.get((*place, scorer), {})
                panel.axvline(0, color="#808080", linewidth=0.8)
                for line, label in enumerate(labels):
                    _forest(panel, line, *(row.get(f"{one}.{label}", math.nan) for one in NUMBERS), mean=False)
                _forest(panel, len(labels), *(row.get(one, math.nan) for one in ("mean", "ci_low", "ci_high")), mean=True)
                panel.set_yticks(range(len(names)), names)
                panel.set_ylim(len(names) - 0.5, -0.5)
                if down == 0:
                    a, b, axis, at = place
                    where = "" if (axis, at) == (POOLED, "final") else f" ({axis}{'' if at == 'final' else f', {at}'})"
                    panel.set_title(f"{a} - {b}{where}", loc="left")
                if across == len(places) - 1:
                    panel.set_xlabel(f"{scorer}: difference")
        return save(figure, "spread")


def _forest(panel: Any, line: int, value: float, low: float, high: float, *, mean: bool) -> None:
    colour = COLOURS[1] if mean else COLOURS[0]
    if not math.isnan(low):
        panel.plot([low, high], [line, line], color=colour, linewidth=1.5)
    if not math.isnan(value):
        panel.plot([value], [line], marker="D" if mean else "o", markersize=4, color=colour, linestyle="none")
