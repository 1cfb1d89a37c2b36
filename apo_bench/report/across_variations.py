"""The report over an experiment's variations: how far its answers differ between them, from the variations' own reports."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from apo_bench.analysis.across_variations import CHOSEN, KEY, NUMBERS, READ, over_levels, spread
from apo_bench.analysis.results import POOLED
from apo_bench.config.load import load_experiment
from apo_bench.formatting import Row as NamedRow
from apo_bench.formatting import number, rows_of, signed
from apo_bench.report import chosen_levels
from apo_bench.report.charts import Estimate, Forest, ForestPanel
from apo_bench.report.document import Answer, Block, Bullets, Claim, Claims, Part, Report, Section
from apo_bench.report.page.render import render as render_page
from apo_bench.report.report import render
from apo_bench.report.sections.answer import MOST_NAMED, headline, place_of, summary, tested
from apo_bench.report.sections.contrasts import test_and_scope, without_copies
from apo_bench.report.tables import CI, NAN, Cell, Column, Row, Table, arm_column, column, footnotes, text_column
from apo_bench.report.text import Span, join, say
from apo_bench.report.write import write_report_files

SUMMARY = ["arm", "round", "axis", "scorer", "mean", "seed_sd"]


@dataclass(frozen=True)
class VariationReport:
    """What is read of a variation's report. `gold`: its first gold model, None without a report; `has_page`: there is a page to link to."""

    contrasts: pd.DataFrame
    summary: pd.DataFrame
    gold: str | None
    failures: tuple[str, ...]
    has_page: bool

    def with_common_gold(self) -> "VariationReport":
        """With "gold" as the name of its first gold model."""
        contrasts, summary = (frame.assign(scorer=frame["scorer"].replace({self.gold: "gold"})) for frame in (self.contrasts, self.summary))
        return replace(self, contrasts=contrasts, summary=summary)


def write(folder: Path, name: str, levels: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write `folder`/report from the variations' own, each in `folder`/<label>; `levels` maps labels to their levels."""
    variations = {label: read_variation(folder / label) for label in levels}
    if len({variation.gold for variation in variations.values() if variation.gold}) > 1:  # another gold model in each
        variations = {label: variation.with_common_gold() for label, variation in variations.items()}
    finished = [variation.contrasts.assign(variation=label) for label, variation in variations.items() if variation.gold]
    table = spread(pd.concat(finished, ignore_index=True), list(levels)) if finished else pd.DataFrame(columns=[*KEY, "family", "scope"])
    report = build(name, variations, levels, table)
    write_report_files(folder, {**render(report), "report.html": render_page(report, None)})
    return folder / "report" / "report.md"


def read_variation(folder: Path) -> VariationReport:
    """A variation's contrasts and scores; empty where it has no report."""
    tables, has_page = folder / "report" / "tables", (folder / "report" / "report.html").is_file()
    if not (tables / "contrasts.csv").is_file():
        return VariationReport(pd.DataFrame(columns=READ), pd.DataFrame(columns=SUMMARY), None, (), has_page)
    texts = dict.fromkeys((*KEY, "family", "scope", "test", "arm"), str)  # an arm may be called 1, or null
    contrasts, summary = (
        pd.read_csv(tables / f"{name}.csv", dtype=texts, keep_default_na=False, na_values=[""]) for name in ("contrasts", "summary")
    )
    if "at" not in contrasts:
        contrasts["at"] = "final"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    failures = tuple(f"{failure['arm']}, seed {failure['seed']}: {failure['message']}" for failure in manifest.get("failures", []))
    gold = load_experiment(folder / "experiment.yaml").models.gold[0].name
    return VariationReport(contrasts[READ], summary[SUMMARY].dropna(subset=["mean"]), gold, failures, has_page)


def build(name: str, variations: Mapping[str, VariationReport], levels: Mapping[str, Mapping[str, Any]], table: pd.DataFrame) -> Report:
    """The report over variations; `table` is that of `analysis.spread.spread`."""
    warnings = [say("{warning}", warning=warning) for warning in warnings_of(variations, table)]
    claims = [claim(row) for row in rows_of(table[table["family"] == "primary"])]
    primary = table[table["family"] == "primary"]
    answer: list[Block] = [Bullets([say("**No result**: no variation has a report.")])]
    if claims:
        answer = [_summary(primary), Claims(claims)]
    contrasts = contrast_table(table, list(levels)) if len(table) else say("No results.")
    pages = Bullets([
        (Span(label, data=True, link=f"../{label}/report/report.html"),) if variation.has_page else say("{label}: no page", label=label)
        for label, variation in variations.items()
    ])  # fmt: skip
    own_pages = Section("Pages of the variations", [pages], is_on_page_only=True)
    parts = [
        Part("answer", "The answer", [Section("Answer", answer), Section("Warnings", [Bullets(warnings)] if warnings else [])]),
        Part("figures", "Figures", [Section("Differences by variation", [forest_of(table, list(levels))])]),
        Part("spread", "Contrasts by variation", [Section("Contrasts by variation", [contrasts])]),
        *(_where_each_wins(variations, levels, table) if chosen_levels.chosen_factors(levels) else ()),
        Part("scores", "Final scores by variation", [Section("Final scores by variation", [score_table(variations, table)])]),
        Part("levels", "Variations", [Section("Variations", [variation_table(variations, levels)]), own_pages]),
    ]
    title = f"{name}: {' and '.join(_factors(levels))} varied"
    return Report(title, parts, {"spread": table})


def _where_each_wins(
    variations: Mapping[str, VariationReport], levels: Mapping[str, Mapping[str, Any]], table: pd.DataFrame
) -> Iterator[Part]:
    primary = table[table["family"] == "primary"]
    if primary.empty:
        return
    last = [_with_initial(variation.summary).assign(label=label) for label, variation in variations.items() if variation.gold]
    yield Part("levels", "By level", [chosen_levels.section(pd.concat(last, ignore_index=True), levels, str(primary["scorer"].iloc[0]))])


def _with_initial(summary: pd.DataFrame) -> pd.DataFrame:
    """Each arm's last round, after the initial policy (round 0, which all arms share)."""
    initial = summary[summary["round"] == 0].groupby(["axis", "scorer"], sort=False)[["mean", "seed_sd"]].mean().reset_index()
    trained = summary[(summary["round"] > 0) & (summary["round"] == summary.groupby("arm")["round"].transform("max"))]
    return pd.concat([initial.assign(arm=chosen_levels.INITIAL), trained.drop(columns="round")], ignore_index=True)


def warnings_of(variations: Mapping[str, VariationReport], table: pd.DataFrame) -> list[str]:
    lines = [f"{label}: no report; it is missing below." for label, variation in variations.items() if not variation.gold]
    lines += [f"{label}: failed: {failure}" for label, variation in variations.items() for failure in variation.failures]
    if len(table) and (missing := int((table["n_missing"] > 0).sum())):
        lines.append(f"{missing} of {len(table)} rows lack a difference in at least one variation; column missing counts them.")
    return lines


def _summary(primary: pd.DataFrame) -> Answer:
    """For somebody who reads no further; over levels that were chosen nothing is tested, and the first contrasts are counted."""
    if not primary["test"].eq(CHOSEN).any():
        return summary(rows_of(primary.assign(difference=primary["mean"])), ", on average over the variations")
    counts = "**`{a}` scored higher than `{b}` at {n_positive} of {n_variations} levels, and lower at {n_negative}.**"
    rows = primary.rename(columns={"arm_a": "a", "arm_b": "b"}).head(MOST_NAMED).to_dict("records")
    certainty = "The levels were chosen, so nothing is tested over them: their own intervals say how certain each is."
    return Answer(join([say(counts, **{str(key): value for key, value in row.items()}) for row in rows]), say(certainty))


def claim(row: NamedRow) -> Claim:
    """A primary contrast over the variations."""
    if not row.n_variations:
        return Claim(headline(row, row.mean), place_of(row), ())
    if row.test == CHOSEN:
        shown = f"higher in {row.n_positive} of {row.n_variations} (95 % interval above 0 in {row.n_above}), lower in {row.n_negative}"
        detail = say(f"{shown} (below 0 in {row.n_below}); the levels were chosen, so nothing is tested over them.")
        return Claim(say("`{a}` against `{b}` at each level", a=row.arm_a, b=row.arm_b), place_of(row), detail)
    size = f"mean difference {signed(row.mean)} over {row.n_variations} variations (SD {number(row.sd)})"
    size += "" if math.isnan(row.ci_low) else f", 95 % interval {signed(row.ci_low)} to {signed(row.ci_high)}"
    signs = f"higher in {row.n_positive}, lower in {row.n_negative}" + (f", missing in {row.n_missing}" if row.n_missing else "")
    if math.isnan(row.p_adjusted):
        detail = say(f"{size}; {{reason}}. {signs.capitalize()}.", reason=row.test.removeprefix("none: "))
    else:
        detail = say(f"{size}, {{tested}}; {signs}. Scope: {row.scope}.", tested=tested(row))
    return Claim(headline(row, row.mean), place_of(row), detail)


def contrast_table(table: pd.DataFrame, labels: Sequence[str]) -> Table:
    """A row per contrast, axis and scorer: its difference in each variation, and over them."""
    factors = [name for name in map(str, table.columns) if name.startswith("sd_")]
    is_chosen = table["test"].eq(CHOSEN).any()
    table = without_copies(table)
    mark, legend = footnotes(table, test_and_scope)

    def pair(row: Row) -> Cell:
        at = "" if row["at"] == "final" else f" ({row['at']})"
        return say(f"`{{a}}` - `{{b}}`{at}", a=row["arm_a"], b=row["arm_b"])

    columns = [
        Column("contrast", pair), *map(text_column, ("axis", "scorer", "family")),
        *[column(label, f"difference.{label}", "signed", ends=(f"ci_low.{label}", f"ci_high.{label}")) for label in labels],
        column("mean", form="signed", ends=CI), column("SD", "sd"),
        *[column(f"SD by {factor.removeprefix('sd_')}", factor) for factor in factors],
        *([] if factors or is_chosen else [column("p", "p_value", "probability"), column("p (Holm)", "p_adjusted", "probability")]),
        Column("higher / lower", lambda row: f"{row['n_positive']} / {row['n_negative']}"), text_column("missing", "n_missing"), mark,
    ]  # fmt: skip
    draws = (
        "SD by factor: of the means over the levels of that factor, the others averaged; missing where a variation is."
        if factors
        else "The levels were chosen and stand for no others: nothing is tested over them."
        if is_chosen
        else "Each level counts as one draw at random from what it stands for; levels that somebody picked are no such draw, and say "
        "nothing of new ones. Holm's correction covers the primary family; other p-values are unadjusted and descriptive."
    )
    note = (
        "Differences with 95 % intervals: of a variation, as in its own report; of the mean, over variations. Gold scores have a scale of "
        f"their own in each variation, so that their mean and SD mix scales; signs do not. {draws}"
    )
    return Table(table, columns, "Differences by variation", say(note), legend)


def forest_of(table: pd.DataFrame, labels: Sequence[str]) -> Block:
    """A panel per declared contrast, axis and scorer but the proxy: a line per variation and, below them, the mean."""
    declared = table[table["family"] != "descriptive"]
    places = declared[["arm_a", "arm_b", "axis", "at"]].drop_duplicates().itertuples(index=False, name=None)
    scorers = [scorer for scorer in dict.fromkeys(declared["scorer"]) if scorer != "proxy"]
    rows = declared.set_index(KEY).to_dict("index")
    panels = []
    for (a, b, axis, at), scorer in product(places, scorers):
        row = rows.get((a, b, axis, scorer, at), {})
        own = [Estimate(label, *(row.get(f"{name}.{label}", NAN) for name in NUMBERS)) for label in labels]
        mean = Estimate("mean", *(row.get(name, NAN) for name in ("mean", "ci_low", "ci_high")), family="mean")
        title = f"{a} \N{MINUS SIGN} {b}: {scorer}, {'all axes' if axis == POOLED else axis}{'' if at == 'final' else f', {at}'}"
        panels.append(ForestPanel(title, (*own, mean), x_label=f"{scorer}: difference"))
    if all(math.isnan(estimate.value) for panel in panels for estimate in panel.rows):
        return say("No results.")
    caption = (
        "Differences by variation, with their 95 % intervals, and below them their mean (a diamond in the file): right of the dotted line "
        "favours the first arm"
    )
    return Forest("Differences by variation", say(caption), tuple(panels), "spread", columns=len(scorers))


def score_table(variations: Mapping[str, VariationReport], table: pd.DataFrame) -> Block:
    """Means at each arm's last round, on the axes and scorers of the contrasts, and the KL."""
    final = {label: _last(variation.summary) for label, variation in variations.items() if variation.gold}
    if not final or table.empty:
        return say("No scores.")
    declared = table[table["family"] != "descriptive"]
    scorers = [scorer for scorer in dict.fromkeys(table["scorer"]) if scorer != "proxy"]
    arms = dict.fromkeys(arm for means in final.values() for arm in means.index.get_level_values("arm"))
    places = pd.MultiIndex.from_product([arms, declared["axis"].unique(), [*scorers, "kl"]], names=["arm", "axis", "scorer"])
    means = pd.DataFrame(final, index=places, columns=list(variations), dtype=float).dropna(how="all")
    over = [over_levels(values) for values in means.to_numpy()]
    frame = means.reset_index().assign(
        mean=[level.mean for level in over], sd=[level.sd for level in over], missing=means.isna().sum(axis=1).to_list()
    )
    columns = [
        arm_column(), text_column("axis"), text_column("scorer"), *map(column, variations), column("mean"), column("SD", "sd"),
        text_column("missing"),
    ]  # fmt: skip
    note = say("Means over seeds at each arm's last round; mean and SD over variations. KL in nats per response.")
    return Table(frame, columns, "Final scores by variation", note)


def _last(summary: pd.DataFrame) -> pd.Series:
    """The mean by arm, axis and scorer at each arm's last round."""
    rows = summary[summary["round"] == summary.groupby("arm")["round"].transform("max")]
    return rows.set_index(["arm", "axis", "scorer"])["mean"]


def variation_table(variations: Mapping[str, VariationReport], levels: Mapping[str, Mapping[str, Any]]) -> Table:
    """The variations with their levels and links to their reports."""
    frame = pd.DataFrame([
        {factor: json.dumps(level, sort_keys=True) for factor, level in levels[label].items()}
        | {"variation": label, "gold": variation.gold, "failures": len(variation.failures)}
        for label, variation in variations.items()
    ])  # fmt: skip

    def link(row: Row) -> Cell:
        return (Span("report", link=f"../{row['variation']}/report/report.md"),) if variations[row["variation"]].gold else say("none")

    columns = [
        arm_column("variation", "variation"), *map(text_column, _factors(levels)), text_column("first gold model", "gold"),
        text_column("failures"), Column("report", link),
    ]  # fmt: skip
    note = say("Each is a run of its own: budgets, gold accuracy, data, versions and the command are in its report.")
    return Table(frame, columns, "Variations", note)


def _factors(levels: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(next(iter(levels.values())))
