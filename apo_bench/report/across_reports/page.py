"""The living benchmark as one html file that loads nothing and needs no script."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from markupsafe import Markup

from apo_bench.formatting import count, number
from apo_bench.report import page as report_page
from apo_bench.report.across_reports.answers import Answered, answers_of, mind_of
from apo_bench.report.across_reports.committed import WITHOUT, CommittedReport, committed_reports
from apo_bench.report.across_reports.ranking import Ranked, agreement, not_combined, rankings
from apo_bench.report.charts import Estimate, ForestPanel
from apo_bench.report.page.render import environment, policy_hash
from apo_bench.report.page.svg import minus
from apo_bench.report.text import Text
from apo_bench.store import write_text

HERE = Path(__file__).parent
INDEX = "index.html"


@dataclass(frozen=True)
class RankTable:
    """A ranking as the page draws it: each arm's difference from the first, on one scale."""

    ranked: Ranked
    panel: ForestPanel
    ranks: tuple[str, ...]

    @property
    def caption(self) -> str:
        return f"By {self.ranked.place.scorer}, {self.ranked.budget}"

    @property
    def mind(self) -> Text:
        return mind_of(self.ranked)

    @property
    def agreement(self) -> list[str]:
        return agreement(self.ranked)


def write_site(results: Path) -> Path:
    """Write RESULTS/index.html from the reports that lie there, and return its path. The same reports give the same bytes.

    Raises InputError for a folder without reports, and for a report whose tables cannot be read.
    """
    write_text(results / INDEX, render(committed_reports(results)))
    return results / INDEX


def render(reports: Sequence[CommittedReport]) -> str:
    """The whole document."""
    answers = {report.name: answers_of(report) for report in reports}
    tables, left_out = rankings(reports)
    style = Markup("".join(path.read_text(encoding="utf-8") for path in (Path(report_page.__path__[0]) / "page.css", HERE / "index.css")))
    policy = f"default-src 'none'; style-src '{policy_hash(style)}'; base-uri 'none'; form-action 'none'"
    compared = [answer for report in reports if not report.is_audit for answer in answers[report.name]]
    return environment(HERE).get_template("index.html.j2").render(
        style=style, policy=Markup(policy), reports=reports, answers=answers, without=WITHOUT, tasks=_by_task(tables),
        reasons=not_combined(tables), counts=_counts(compared),
        left_out={name: [*items] for name, items in groupby(sorted(left_out, key=lambda item: item.report), key=lambda item: item.report)},
    )  # fmt: skip


def _counts(answers: Sequence[Answered]) -> str:
    """How many comparisons were declared, and what came of them."""
    shown, tested = sum(answer.is_shown for answer in answers), sum(answer.is_tested for answer in answers)
    untested = len(answers) - tested
    parts = [f"{shown} show{'s' * (shown == 1)} a difference", f"{tested - shown} do{'es' * (tested - shown == 1)} not"]
    parts += [f"{untested} could not be tested"] if untested else []
    return f"{len(answers)} declared comparison{'s' * (len(answers) != 1)}: {', '.join(parts)}."


def _by_task(tables: Sequence[Ranked]) -> Mapping[str, Mapping[str, list[RankTable]]]:
    """Tables by task, then by the reports that they are of, those of most reports first."""
    tasks: dict[str, dict[str, list[RankTable]]] = {}
    for table in sorted(tables, key=lambda table: -len(table.reports)):
        tasks.setdefault(table.place.task, {}).setdefault(", ".join(table.reports), []).append(_drawn(table))
    return tasks


def _drawn(ranked: Ranked) -> RankTable:
    rows, ranks = [], []
    for place, row in enumerate(ranked.table.to_dict("records")):
        flops = "" if math.isnan(row["flops"]) else f", {count(row['flops'])}\u00a0FLOPs"
        sources = f"; {row['report']}" if len(ranked.reports) > 1 else ""
        remark = minus(f"mean {number(row['mean'])}") + f", {row['n_seeds']} seeds{flops}{sources}"
        is_clear = row["ci_high"] < 0 or row["ci_low"] > 0
        value = 0.0 if place == 0 else row["difference"]
        rows.append(Estimate(row["label"], value, row["ci_low"], row["ci_high"], remark=remark, family="primary" if is_clear else ""))
        low, high = row["rank_low"], row["rank_high"]
        ranks.append(f"rank {low}" if low == high else f"rank {low} to {high}")
    return RankTable(ranked, ForestPanel("", tuple(rows), x_label="difference from the first"), tuple(ranks))
