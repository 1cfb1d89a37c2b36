"""The main table: arms against scorers and axes at each arm's final round, with what a contrast says of the best one."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from apo_bench.analysis import published, results
from apo_bench.analysis.results import POOLED, Run
from apo_bench.formatting import ALPHA, number, rows_of
from apo_bench.report.page.markup import MISSING, Markup, aside, code, el, escaped, join, minus, name, scrolled, table
from apo_bench.report.page.svg import key

Means = Mapping[tuple[str, str, str], tuple[float, float]]  # (arm, scorer, axis) -> mean and sample SD over seeds
MARKS = {  # what a cell says of its column: the mark, and its words for those who hear the page
    "highest": ("▲", "highest mean"),
    "alike": ("≈", "not distinguishable from the highest"),
    "lower": ("▽", "lower than the highest"),
}
RULE = (
    "Mean over seeds ± sample SD over seeds; clusters of prompts weigh alike, as in the contrasts. ▲ highest mean of its column, of "
    "whatever size. ≈ not distinguishable from it, and ▽ lower: so says the contrast of the two arms at the final round, at p = 0.05, "
    "adjusted where it belongs to a declared family. Where no such test was made there is no mark."
)


def main_table(run: Run, frames: Mapping[str, pd.DataFrame]) -> Markup:
    """Arms x (gold models and truth by axis, win rates, KL, length, refusals), with seeds and clusters."""
    axes = run.axes if len(run.axes) == 1 else (POOLED, *run.axes)
    means, scorers = final_means(run), [one for one in run.scorers if one != "proxy"]
    columns = [(scorer, axis) for scorer in scorers for axis in axes]
    places = {column: _standing(run, frames["contrasts"], means, *column) for column in columns}
    start = _initial(frames["summary"])
    also = [one for one in ("kl", "length", "refusal") if any((arm, one, POOLED) in means for arm in run.arms) or one == "kl"]
    judges = list(dict.fromkeys(frames["judged"]["judge"])) if "judged" in frames else []
    first = [el("th", "Arm", scope="col", rowspan="2"), el("th", "Round", scope="col", rowspan="2")]
    first += [el("th", name(_title(scorer)), scope="colgroup", colspan=len(axes)) for scorer in scorers]
    first += [el("th", "Win rate, by ", name(judge), scope="col", rowspan="2") for judge in judges]
    titles = {"kl": "KL, nats", "length": "Length, tokens", "refusal": "Refusals"}
    first += [el("th", one, scope="col", rowspan="2") for one in (*(titles[metric] for metric in also), "Seeds")]
    second = [el("th", "all" if axis == POOLED else name(axis), scope="col") for _ in scorers for axis in axes]
    before = [start.get(column, math.nan) for column in (*columns, *((one, POOLED) for one in also))]
    cells = [[minus(number(one))] for one in before]
    nothing = [[MISSING] for _ in judges]
    rows = [_row("initial policy", "0", [*cells[: len(columns)], *nothing, *cells[len(columns) :], [MISSING]])]
    for arm in run.arms:
        cells = [_cell(means.get((arm, *column)), places[column].get(arm)) for column in columns]
        cells += [_win_rates(frames["judged"], judge, arm) for judge in judges]
        cells += [_metric(means, arm, one) for one in also]
        clusters = run.final.loc[run.final["arm"] == arm, "cluster_id"].nunique()
        cells.append([str(len(run.arm_seeds.get(arm, []))), el("span", f"{clusters} clusters", class_="sd")])
        label = join([key(run.arms.index(arm)), " ", code(arm)])
        rows.append(_row(label, str(run.final_round.get(arm, MISSING)), cells))
    caption = "Scores at each arm's final round"
    body = el("table", el("caption", caption), el("thead", el("tr", *first), el("tr", *second)), el("tbody", *rows), class_="main")
    return join([scrolled(body, caption), el("p", RULE, class_="small")])


def final_means(run: Run) -> Means:
    """Mean and SD over the seeds that came through, of scores by axis and of the KL (`kl`, or its bound `kl_bound`) on all axes."""
    parts = [results.seed_means(run.final, axis).assign(axis=axis) for axis in (*run.axes, POOLED)]
    metrics = results.exclude_failed(run.tables["metrics"], run.failed)
    metrics = metrics[(metrics["axis"] == POOLED) & metrics["metric"].isin(["kl", "kl_bound"])].dropna(subset=["value"])
    metrics = metrics[metrics["round"] == metrics["arm"].map(run.final_round)].rename(columns={"metric": "scorer"})
    columns = ["arm", "scorer", "axis", "value"]
    grouped = pd.concat([*[part[columns] for part in parts], metrics[columns]]).groupby(["arm", "scorer", "axis"])["value"]
    found = grouped.agg(["mean", "std"]).reset_index()
    return {(one.arm, one.scorer, one.axis): (one.mean, one.std) for one in rows_of(found)}


def _standing(run: Run, contrasts: pd.DataFrame, means: Means, scorer: str, axis: str) -> dict[str, str]:
    """Each arm's mark in a column: a key of MARKS; arms that were not tested against the highest have none."""
    column = {arm: means[arm, scorer, axis][0] for arm in run.arms if (arm, scorer, axis) in means}
    if not column:
        return {}
    top = max(column.values())
    highest = [arm for arm, value in column.items() if value == top]
    found = dict.fromkeys(highest, "highest")
    made = contrasts[(contrasts["scorer"] == scorer) & (contrasts["axis"] == axis) & (contrasts["at"] == "final")]
    for row in rows_of(made.dropna(subset=["p_value"])):
        for one, other in ((row.arm_a, row.arm_b), (row.arm_b, row.arm_a)):
            if other in highest and one not in highest:
                p = row.p_value if math.isnan(row.p_adjusted) else row.p_adjusted
                found[one] = "lower" if p < ALPHA else "alike"
    return found


def _initial(summary: pd.DataFrame) -> dict[tuple[str, str], float]:
    """The initial policy's means, where all arms agree on them."""
    rounds = summary[(summary["round"] == 0) & (summary["scorer"] != "proxy")].groupby(["scorer", "axis"])["mean"].agg(["min", "max"])
    return {key: one.min for key, one in zip(rounds.index, rows_of(rounds), strict=True) if abs(one.max - one.min) < 1e-6}


def _row(label: object, round_: str, cells: Sequence[Sequence[object]]) -> Markup:
    return el("tr", el("th", label, scope="row"), el("td", round_), *[el("td", *cell) for cell in cells])


def _cell(value: tuple[float, float] | None, standing: str | None) -> list[object]:
    if value is None:
        return [MISSING]
    shown = el("b", minus(number(value[0]))) if standing == "highest" else escaped(minus(number(value[0])))
    mark = []
    if standing:
        sign, words = MARKS[standing]
        mark = [" ", el("span", sign, class_=f"mark {standing}", aria_hidden="true"), aside(f" {words}")]
    return [shown, *mark, *_spread(value[1])]


def _metric(means: Means, arm: str, metric: str) -> list[object]:
    value = means.get((arm, metric, POOLED))
    if value is None and metric == "kl" and (bound := means.get((arm, "kl_bound", POOLED))):
        return [f"≤ {number(bound[0])}"]
    return [MISSING] if value is None else [number(value[0]), *_spread(value[1])]


def _spread(sd: float) -> list[object]:
    return [] if math.isnan(sd) else [" ", el("span", f"± {number(sd)}", class_="sd")]


def _win_rates(rates: pd.DataFrame, judge: str, arm: str) -> list[object]:
    """An arm's win rates over the arms that it was held against, on all axes; its own side of each pair."""
    own = rates[(rates["judge"] == judge) & (rates["axis"] == POOLED)]
    lines = []
    for row in rows_of(own[(own["arm_a"] == arm) | (own["arm_b"] == arm)]):
        rate, other = (row.win_rate, row.arm_b) if row.arm_a == arm else (1 - row.win_rate, row.arm_a)
        lines.append(el("span", number(rate), " over ", code(other), class_="rate"))
    return list(lines) or [MISSING]


def _title(scorer: str) -> str:
    return "Ground truth" if scorer == "ground_truth" else f"Gold model {scorer}"


def published_numbers(run: Run, found: pd.DataFrame) -> Markup:
    """The published numbers that the experiment names beside ours, and what differs. `found`: as `published.compare_with_published` has it.

    Raises InputError as `published.read_published` does.
    """
    source = run.experiment.report.beside or ""
    rows = [
        [
            join([name(pair), el("span", measure, class_="sub")], " "),
            *map(shown_number, theirs),
            name(own) if own != "-" else MISSING,
            *map(shown_number, ours),
        ]
        for measure, pair, theirs, own, ours in (
            (*cells[:2], cells[2:6], cells[6], cells[7:]) for cells in published.comparison_cells(found)
        )
    ]
    heads = published.HEADS[1:]
    said = published.comparison_caveats(run, published.read_published(published.find_published(source)), found)
    return join([table(name(f"{source} beside this run"), heads, rows), el("ul", *[el("li", name(line)) for line in said])])


def shown_number(cell: str) -> str:
    """A number of markdown as the page shows it."""
    return MISSING if cell == "-" else minus(cell)
