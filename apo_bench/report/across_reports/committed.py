"""Reports as they lie in a results folder, without the runs that made them: provenance, tables, the experiment as it was run."""

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from apo_bench.analysis.report_files import check_report_file
from apo_bench.config.plain_yaml import read_yaml
from apo_bench.errors import InputError

PRIMARY = [
    "arm_a", "arm_b", "axis", "scorer", "at", "family", "difference", "standard_error", "df", "ci_low", "ci_high", "p_value", "p_adjusted",
    "n_seeds", "n_clusters", "scope", "test",
]  # fmt: skip
SPREAD = ["arm_a", "arm_b", "axis", "scorer", "at", "family", "mean", "sd", "ci_low", "ci_high", "p_value", "p_adjusted", "n_variations"]
COLUMNS: Mapping[str, list[str]] = {
    "contrasts": PRIMARY,
    "spread": SPREAD,
    "summary": ["arm", "round", "axis", "scorer", "mean", "seed_sd", "n_seeds"],
    "arm_seeds": ["arm", "seed", "axis", "scorer", "mean", "n_prompts"],
    "budget": ["arm_a", "arm_b", "unit", "used_a", "used_b"],
    "audit": ["judge", "data", "axis", "metric", "value", "ci_low", "ci_high", "n"],
}
TEXTS = dict.fromkeys(("arm", "arm_a", "arm_b", "axis", "scorer", "at", "family", "scope", "test", "unit", "judge", "data", "metric"), str)
WITHOUT = {  # what a report of older code may lack, and what follows
    "tables/arm_seeds.csv": "scores by seed (tables/arm_seeds.csv), so its arms are ranked as if their seeds were unrelated",
    "rerun.yaml": "the experiment as it was run (rerun.yaml), so it is not combined with others",
    "report.html": "a page (report.html), so the link leads to report.md",
    "commit": "the commit that made it, so its date is not known",
}


@dataclass(frozen=True)
class CommittedReport:
    """A report: where it lies, what its provenance says, and its tables; an absent table has no rows.

    `name`: its folder, from the results folder. `link`: its page, or its Markdown. `date`: of the commit that made it, "" if not known.
    `experiment`: as it was run, None where the report does not have it. `lacks`: keys of WITHOUT.
    """

    name: str
    link: str
    task: str
    commit: str
    date: str
    experiment: Mapping[str, Any] | None
    tables: Mapping[str, pd.DataFrame]
    lacks: tuple[str, ...]

    @property
    def is_audit(self) -> bool:
        return not self.tables["audit"].empty

    @property
    def is_spread(self) -> bool:
        return not self.tables["spread"].empty

    @property
    def primary(self) -> pd.DataFrame:
        """The declared primary contrasts, over the variations where something was varied."""
        table = self.tables["spread"] if self.is_spread else self.tables["contrasts"]
        return table[table["family"] == "primary"]


def committed_reports(results: Path) -> tuple[CommittedReport, ...]:
    """All reports of a results folder, and of its folders' variations, newest first.

    Raises InputError for a folder without any, and for a table or an experiment that cannot be read.
    """
    folders = sorted({path.parent.parent for pattern in ("*/report/*.md", "*/*/report/*.md") for path in results.glob(pattern)})
    reports = [_read(results, folder) for folder in folders]
    if not reports:
        raise InputError(f"{results}: no folder NAME/report with a report")
    dated = [replace(report, date=report.date or _newest(report, reports)) for report in reports]
    return tuple(sorted(sorted(dated, key=lambda report: report.name), key=lambda report: report.date, reverse=True))


def _newest(report: CommittedReport, reports: list[CommittedReport]) -> str:
    """Of a report over variations, the date of the newest of them."""
    return max((other.date for other in reports if report.is_spread and other.name.startswith(f"{report.name}/")), default="")


def _read(results: Path, folder: Path) -> CommittedReport:
    place, name = folder / "report", folder.relative_to(results).as_posix()
    tables = {table: _table(place / ("" if table == "audit" else "tables") / f"{table}.csv", columns) for table, columns in COLUMNS.items()}
    markdown = place / ("report.md" if tables["audit"].empty else "audit.md")
    facts = _provenance(markdown)
    commit, rerun = re.split("[, ]", facts.get("commit", ""))[0], place / "rerun.yaml"
    experiment = read_yaml(rerun, str(rerun)) if rerun.is_file() else None
    if experiment is not None and not isinstance(experiment, Mapping):
        raise InputError(f"{rerun}: an experiment is needed, got {type(experiment).__name__}")
    is_audit, is_spread, has_page = not tables["audit"].empty, not tables["spread"].empty, (place / "report.html").is_file()
    is_absent = {
        "tables/arm_seeds.csv": not is_audit and not is_spread and tables["arm_seeds"].empty,
        "rerun.yaml": not is_audit and not is_spread and experiment is None,
        "report.html": not is_audit and not has_page,
        "commit": not is_spread and not commit,
    }
    return CommittedReport(
        name=name,
        link=f"{name}/report/{'report.html' if has_page else markdown.name}",
        task=facts.get("task", ""),
        commit=commit,
        date=_date_of(commit, results),
        experiment=experiment,
        tables=tables,
        lacks=tuple(key for key, absent in is_absent.items() if absent),
    )


def _table(path: Path, columns: list[str]) -> pd.DataFrame:
    """A table's columns; without rows where there is no file."""
    if not path.is_file():
        return pd.DataFrame(columns=columns)
    if path.parent.name == "tables":
        check_report_file(path.parents[1], f"tables/{path.name}")
    try:
        frame = pd.read_csv(path, dtype=TEXTS, keep_default_na=False, na_values=[""], encoding="utf-8")
    except ValueError as error:  # a parser's and a decoder's are such
        raise InputError(f"{path}: no table: {error}") from None
    if absent := [column for column in columns if column not in frame]:
        raise InputError(f"{path}: column {absent[0]} is missing")
    return frame


def _provenance(path: Path) -> dict[str, str]:
    """The lines `- key: value` of a report's provenance."""
    if not path.is_file():
        return {}
    return dict(re.findall(r"^- (task|commit): (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE))


def _date_of(commit: str, results: Path) -> str:
    """The day of a commit, as its repository has it; "" where that is not there."""
    if not re.fullmatch(r"[0-9a-f]{7,40}", commit):
        return ""
    try:
        shown = subprocess.run(
            ["git", "show", "--no-patch", "--format=%cs", commit], cwd=results, capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return shown.stdout.strip()
