"""The output of commands: tables that fit 100 columns, and errors in one line."""

import csv
import errno
import io
import json
import locale
import math
import os
import shlex
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from apo_bench.cli.methods import HEADINGS
from apo_bench.errors import InputError, lines_of
from apo_bench.formatting import number, one_line, p_equals, signed, visible

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130  # exit statuses
USER_ERRORS = {  # a path that cannot be written, or a full disk: the user can mend it
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOSPC,
    errno.EFBIG, errno.EDQUOT,
}  # fmt: skip
WIDTH = 100
LEFT_TO_THE_REPORT = (
    "length", "refusal", "distinct_1", "distinct_2", "unfinished", "unmatched", "kl_bound", "dev_score", "inference_flops",
)  # fmt: skip


@contextmanager
def plain_errors() -> Iterator[None]:
    """Print an error that a user can cause as one line on stderr, and exit; anything else is a bug and keeps its traceback."""
    try:
        yield
    except InputError as error:
        for line in lines_of(error):
            typer.echo(f"error: {one_line(line)}", err=True)
        raise typer.Exit(BAD_INPUT) from None
    except OSError as error:
        if error.errno not in USER_ERRORS:
            raise
        typer.echo(f"error: {one_line(error.filename or 'a file')}: {error.strerror}", err=True)
        raise typer.Exit(BAD_INPUT) from None
    except KeyboardInterrupt:
        typer.echo("interrupted; run the same command to continue", err=True)
        raise typer.Exit(INTERRUPTED) from None


def use_utf8() -> None:
    """Start this command again in Python's UTF-8 mode where the locale has another encoding: libraries want file names in UTF-8.

    Ends with one line where the working directory or an argument is not UTF-8 itself.
    """
    if os.name == "posix" and not sys.flags.utf8_mode and {sys.getfilesystemencoding(), locale.getencoding().lower()} != {"utf-8"}:
        os.environ["PYTHONUTF8"] = "1"  # for worker processes
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            stream.reconfigure(errors="backslashreplace")
    names = sys.argv[1:]
    with suppress(OSError):  # a folder that is gone
        names = [os.getcwd(), *names]
    for name in names:
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            typer.echo(f"error: {one_line(name)}: the name is not UTF-8", err=True)
            raise SystemExit(BAD_INPUT)


def refuse_unfinished(folder: Path) -> None:
    """Raise InputError for a folder without a finished run."""
    if not (folder / "manifest.json").is_file():
        raise InputError(f"{folder}: not a finished run folder (no manifest.json)")


def print_summary(folder: Path) -> None:
    """Each arm's last round and the primary contrasts, at most 100 columns wide; then the report's path."""
    print_tables(
        _scores(_rows(folder / "report" / "tables" / "summary.csv")), _contrasts(_rows(folder / "report" / "tables" / "contrasts.csv"))
    )
    print_report(folder)


def print_report(folder: Path) -> None:
    """Where the report is, and last the page, with the command that opens it."""
    print(str(folder / "report" / "report.md"))
    if (page := folder / "report" / "report.html").is_file():
        print(f"{page}  (apo-bench open {shlex.quote(str(folder))})")


def print_judge(folder: Path, judge: str) -> None:
    """A judge's audit in words, its win rates by pair and axis, at most 100 columns wide; then the report's path."""
    from apo_bench.analysis.results import read_run
    from apo_bench.judging.audit_report import sentences

    audit = read_run(folder).tables["judge_audit"]
    own = audit[audit["judge"] == judge]
    axes = list(dict.fromkeys(own["axis"]))
    lines = [" ".join(sentences(own, axis)) for axis in axes] or ["not audited (judging.audit_pairs: 0), so no claim may rest on it"]
    heads = ("pair", "axis", "win rate", "95 % interval", "p", "n", "missing")
    table = Table(*heads, box=SIMPLE_HEAD, padding=0, title=f"Win rates by {judge}")
    for row in _rows(folder / "report" / "tables" / "judged.csv"):
        if row["judge"] == judge:
            interval = f"{_short(row['ci_low'])} to {_short(row['ci_high'])}" if row["ci_low"] else "-"
            p = f"{float(row['p_value']):.2g}" if row["p_value"] else row["test"]
            pair = f"{row['arm_a']} over {row['arm_b']}"
            table.add_row(pair, row["axis"], _short(row["win_rate"]), interval, p, row["n_comparisons"], row["n_missing"])
    print_tables(*(f"Audit of {judge}, {line}" for line in lines), table)
    print_report(folder)


def print_checkpoints(folder: Path) -> None:
    """Each finished arm's mean scores with their intervals over prompts, and the primary contrasts; then the report's path."""
    rows = _rows(folder / "report" / "tables" / "checkpoints.csv")
    heads = ("arm", "stands for", "scorer", "mean", "95 % interval", "clusters", "unmatched")
    table = Table(*heads, box=SIMPLE_HEAD, padding=0, title="Mean scores; intervals over prompts, of these checkpoints only")
    for row in rows:
        interval = f"{_short(row['ci_low'])} to {_short(row['ci_high'])}" if row["ci_low"] else "-"
        table.add_row(row["arm"], row["stands_for"], row["scorer"], _short(row["mean"]), interval, row["clusters"], row["unmatched"] or "-")
    print_tables(table, _contrasts(_rows(folder / "report" / "tables" / "contrasts.csv")))
    print_report(folder)


class _Inert(Console):
    """A console on which text has no effects: headers, titles, cells and paragraphs are made visible before they are measured."""

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(visible(text), **how)


def print_tables(*tables: Table | str) -> None:
    """Tables, or paragraphs, at most 100 columns wide."""
    console = _Inert(markup=False, emoji=False, highlight=False)
    console.width = min(WIDTH, console.width) if console.is_terminal else WIDTH
    for table in tables:
        console.print(table)


def print_first_prompt(shown: Any) -> None:
    """What a model reads: the text, then its tokens, those of a policy's target after a bar."""
    heading = f"{shown.model}  {visible(shown.path)}".rstrip()
    if not shown.tokens and not shown.text:
        print(f"{heading}\n  not shown: {visible(shown.note)}\n")
        return
    read, target = ([json.dumps(token, ensure_ascii=False) for token in part] for part in (shown.tokens, shown.target))
    lines = [heading, *(f"  {line}" for line in visible(shown.text).splitlines() or [""])]
    if shown.tokens:
        lines += ["", f"  {len(shown.tokens)} tokens" + (f" | {len(shown.target)} to learn" if shown.target else "")]
    tokens = " ".join([*read, *(["|"] if target else []), *target])
    lines += textwrap.wrap(tokens, WIDTH, initial_indent="  ", subsequent_indent="  ", break_long_words=False)
    lines += [f"  a response ends with {visible(shown.end)}"] if shown.end else []
    lines += [f"  note: {visible(shown.note)}"] if shown.note else []
    print("\n".join([*lines, ""]))


def print_preview(jobs: Sequence[tuple[Any, bool]]) -> None:
    """Print the jobs that would run and those that are finished, a line per arm."""
    table = Table("arm", "to run", "finished", box=SIMPLE_HEAD, padding=0, title="Nothing is run")
    for arm in dict.fromkeys(job.arm for job, _ in jobs):
        cells = (", ".join(_job(job) for job, done in jobs if job.arm == arm and done == finished) for finished in (False, True))
        table.add_row(arm, *(cell or "-" for cell in cells))
    print_tables(table)


def _job(job: Any) -> str:
    return f"seed {job.seed}" if job.trial is None else f"trial {job.trial + 1} on seed {job.seed}"


def print_spread(folder: Path) -> None:
    """The primary contrasts over variations, at most 100 columns wide; then the report's path."""
    heads = ("primary contrast", "axis", "scorer", "mean", "SD", "95 % interval", "p (Holm)", "+/-")
    table = Table(*heads, box=SIMPLE_HEAD, padding=0, title="Is it really better, elsewhere too?")
    for row in _rows(folder / "report" / "tables" / "spread.csv"):
        if row["family"] == "primary":
            interval = f"{_short(row['ci_low'])} to {_short(row['ci_high'])}" if row["ci_low"] else "-"
            p = f"{float(row['p_adjusted']):.2g}" if row["p_adjusted"] else row["test"]
            names = (f"{row['arm_a']} - {row['arm_b']}", row["axis"], row["scorer"])
            table.add_row(*names, _short(row["mean"]), _short(row["sd"]), interval, p, f"{row['n_positive']}/{row['n_negative']}")
            table.caption = _with_test(row, table.caption)
    print_tables(table)
    print_report(folder)


def print_listing(listed: Sequence[Any]) -> None:
    """What can be named, under a heading for each kind: the name, and below it what it is, reads and needs, and its paper."""
    for kind, heading in HEADINGS.items():
        print(f"{heading}\n")
        for item in listed:
            if item.kind == kind:
                needs, player = f"; needs {item.needs}" if item.needs else "", "; can be a player" if item.player else ""
                about = f"{item.purpose}. Reads {item.reads}{needs}{player}. {item.paper}"
                print("\n".join([f"  {item.name}", *textwrap.wrap(about, WIDTH, initial_indent="      ", subsequent_indent="      ")]))
        print()


def plans(plans: Any, scorer: str, power: float) -> list[Table]:
    """The smallest differences that this run detects, then a table of seeds x clusters for each primary contrast."""
    heads = (
        "primary contrast",
        "axis",
        "seeds x\nclusters",
        "seed SD\n(95 %)",
        "method x\nprompt SD",
        "residual\nSD",
        "detected",
        "by Holm",
    )
    tables = [Table(*heads, box=SIMPLE_HEAD, padding=0, title=f"Smallest {scorer} difference this run detects, power {power:g}")]
    for plan in plans:
        sds, components = ("-", "-", "-"), plan.components
        if components:
            interval = f"{_digits(components.seed_sd)} ({_digits(components.seed_sd_low)}-{_digits(components.seed_sd_high)})"
            sds = (interval, _digits(components.method_prompt_sd), _digits(components.residual_sd))
        names = (f"{plan.a} - {plan.b}", plan.axis, f"{plan.n_seeds} x {plan.n_clusters}")
        tables[0].add_row(*names, *sds, _digits(plan.detectable), _digits(plan.detectable_by_holm))
        if plan.table is not None:
            clusters = [f"{count} clusters" for count in plan.table.columns]
            grid = Table("seeds", *clusters, box=SIMPLE_HEAD, padding=0, title=f"Other sizes: {plan.a} - {plan.b}, {plan.axis}")
            for seeds, row in plan.table.iterrows():
                grid.add_row(str(seeds), *map(_digits, row))
            tables.append(grid)
    return tables


def verification(result: Any) -> list[Table | str]:
    """The scores that were made again beside the published ones, then what they say."""
    heads = ("arm", "seed", "axis", "scorer", "published", "again", "difference", "tolerance", "verdict")
    table = Table(*heads, box=SIMPLE_HEAD, padding=0, title=f"{len(result.drawn)} of {result.n_published} arm-seeds, made again")
    for row in result.scores.itertuples():
        numbers = (_digits(row.published), _digits(row.again), _digits(row.difference), _digits(row.tolerance))
        table.add_row(row.arm, str(row.seed), row.axis, row.scorer, *numbers, row.verdict)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in result.scores["verdict"].value_counts().items())
    failed = [f"failed: {one_line(failure)}" for failure in result.failures]
    verdict = "agrees with what was published" if result.agrees else "does not agree with what was published, or cannot be told to"
    return [table, *failed, f"{counts}: what was made again {verdict}"]


def combination(combined: Any) -> list[Table | str]:
    """A contrast over experiments: by each scorer the experiments' differences and their mean, then what to know of it."""
    shown: list[Table | str] = []
    place = f"{combined.a} - {combined.b}, {'all axes pooled' if combined.axis == 'all' else combined.axis}, {combined.at}"
    for by in combined.by_scorer:
        unit = ", in SDs" if combined.in_sds else ""
        table = Table(
            "experiment", "scorer", "seeds", "difference", "95 % interval", "weight", box=SIMPLE_HEAD, padding=0, title=f"{place}{unit}"
        )
        for row in by.experiments.itertuples():
            interval = f"{signed(row.ci_low)} to {signed(row.ci_high)}"
            table.add_row(row.folder, row.scorer, str(int(row.n_seeds)), signed(row.difference), interval, f"{row.weight:.2f}")
        result = by.result
        table.add_section()
        table.add_row("mean", by.scorer, "", signed(result.mean), f"{signed(result.ci_low)} to {signed(result.ci_high)}", "1.00")
        p = "" if math.isnan(result.p_value) else f", {p_equals(result.p_value)}"
        spread = f"true differences vary with SD {number(result.tau)} (I2 {result.i_squared:.0%}, Q {result.q:.3g}, "
        spread += f"{p_equals(result.q_p_value)})"
        new = f"in a new experiment {signed(result.predicted_low)} to {signed(result.predicted_high)}"
        shown += [table, f"By {by.scorer}: {result.test}{p}; {spread}; {new}.", *(f"left out: {line}" for line in by.left_out)]
    return [*shown, *combined.notes]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _scores(summary: list[dict[str, str]]) -> Table:
    """A row per arm and axis, a column per scorer; single training seeds of gold models (`name.seed`) are left to the report."""
    scorers = [name for name in dict.fromkeys(row["scorer"] for row in summary) if "." not in name and name not in LEFT_TO_THE_REPORT]
    last = {row["arm"]: row["round"] for row in sorted(summary, key=lambda row: int(row["round"]))}
    cells = {(row["arm"], row["axis"], row["scorer"]): _mean_sd(row) for row in summary if row["round"] == last[row["arm"]]}
    table = Table(
        "arm", "round", "axis", *scorers, box=SIMPLE_HEAD, padding=0, title="Last round, mean over seeds ± their standard deviation"
    )
    for arm, axis in dict.fromkeys((row["arm"], row["axis"]) for row in summary):
        table.add_row(arm, last[arm], axis, *(cells.get((arm, axis, scorer), "-") for scorer in scorers))
    return table


def _mean_sd(row: dict[str, str]) -> str:
    return _short(row["mean"]) + (f" ± {_short(row['seed_sd'])}" if row["seed_sd"] else "")


def _contrasts(contrasts: list[dict[str, str]]) -> Table:
    table = Table(
        "primary contrast",
        "axis",
        "scorer",
        "difference",
        "95 % interval",
        "p (Holm)",
        box=SIMPLE_HEAD,
        padding=0,
        title="Is it really better?",
    )
    for row in contrasts:
        if row["family"] == "primary":
            interval = f"{_short(row['ci_low'])} to {_short(row['ci_high'])}" if row["ci_low"] else "-"
            difference, p = _short(row["difference"]), f"{float(row['p_adjusted']):.2g}" if row["p_adjusted"] else row["test"]
            table.add_row(f"{row['arm_a']} - {row['arm_b']}", row["axis"], row["scorer"], difference, interval, p)
            table.caption = _with_test(row, table.caption)
    return table


def _with_test(row: Mapping[str, str], caption: Any) -> Any:
    """A table's caption with the test and scope of a row's p-value, each once."""
    words = f"p: {row['test']}; scope: {row['scope']}"
    if not row["p_adjusted"] or words in (caption or "").split("\n"):
        return caption
    return f"{caption}\n{words}" if caption else words


def _short(cell: str) -> str:
    return f"{float(cell):.3f}" if cell else "-"


def _digits(value: float) -> str:
    return "-" if value != value else f"{value:.3g}"
