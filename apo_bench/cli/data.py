"""The commands about a user's own preference files: data, new-experiment."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from apo_bench.cli import terminal
from apo_bench.cli.terminal import plain_errors
from apo_bench.errors import InputError

app = typer.Typer()
Files = Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="jsonl, json, csv, tsv or parquet, perhaps .gz or .zst.")]
Option = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="KEY=VALUE", help="An option of the task preferences: 'axis={column: subset}'."),
]
Policy = Annotated[str | None, typer.Option(metavar="PATH", help="A model folder or hub id, whose tokens are counted; words without one.")]


@app.command()
@plain_errors()
def data(
    files: Files = None,
    option: Option = None,
    policy: Policy = None,
    cut: Annotated[
        int | None, typer.Option(min=1, help="Count pairs whose sides are equal when cut after so many tokens, or words.")
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="How many rows of each file to show.")] = 1,
) -> None:
    """What preference files are taken for: rows, axes, clusters, splits, lengths, length bias, repeats, leaks between files."""
    from apo_bench.data.overview import overview
    from apo_bench.data.preference_rows import options_of, read_preferences
    from apo_bench.data.task_folder import find_task, merge_options, read_description, with_shares

    folder = find_task("preferences", None)
    path = folder / f"{folder.name}.yaml"
    about = read_description(path)
    given = merge_options(path, about.options, {**task_options(option), **({"data_files": [*map(str, files)]} if files else {})})
    shares = given.pop("splits")
    if shares is not None:
        about = with_shares(path, about, shares)
    preferences = read_preferences(options_of(given), Path.cwd())
    if not preferences.rows:
        raise InputError(f"task preferences: no rows are left: {_reasons(preferences.dropped)}")
    unit, units = ("tokens", _tokens(policy)) if policy else ("words", str.split)
    seen = overview(preferences, about.splits, about.salt, units, cut)
    terminal.print_tables(*_tables(preferences, seen, unit))
    for name in preferences.forms:
        for row in islice((row for row in preferences.rows if row.source == name), show):
            sides = {"chosen": row.chosen, "rejected": row.rejected, "golden": row.golden}
            lines = [*row.messages, *((side, text) for side, text in sides.items() if text is not None)]
            terminal.print_tables(f"{name}, {row.axis}", *(f"  {who}: {text}" for who, text in lines), "")


@app.command()
@plain_errors()
def new_experiment(
    policy: Annotated[str, typer.Option(metavar="PATH", help="The model to be trained: a folder or a hub id.")],
    files: Files = None,
    option: Option = None,
    to: Annotated[Path, typer.Option(help="The experiment that is written.")] = Path("preferences.yaml"),
) -> None:
    """Write an experiment on your own preference files: SFT, DPO and rejection sampling, sizes from the data."""
    from apo_bench.cli.new_experiment import write_experiment

    options = {**task_options(option), **({"data_files": [*map(str, files)]} if files else {})}
    typer.echo(f"{write_experiment(to, policy, options)}\nnext: apo-bench check {to} && apo-bench plan {to} && apo-bench run {to}")


def task_options(assignments: Sequence[str] | None) -> dict[str, Any]:
    """Options of the task from KEY=VALUE, values in YAML. Raises InputError."""
    from apo_bench.config.plain_yaml import parse_yaml

    options: dict[str, Any] = {}
    for assignment in assignments or ():
        key, equals, value = assignment.partition("=")
        if not equals or not key or key in options:
            raise InputError(f"--option {assignment}: expected key=value, each key once, such as 'axis={{column: subset}}'")
        options[key] = parse_yaml(value, f"--option {key}")
    return options


def _tokens(policy: str) -> Callable[[str], list[int]]:
    from apo_bench.models.pretrained_weights import resolve_model
    from apo_bench.models.tokenize import load_tokenizer

    tokenizer = load_tokenizer(resolve_model(policy, Path.cwd()))
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


def _reasons(dropped: Mapping[str, int]) -> str:
    return "; ".join(f"{n} {reason}" for reason, n in dropped.items() if n) or "none"


def _tables(preferences: Any, seen: Any, unit: str) -> Iterator[Table | str]:
    yield _table(
        "Files", ("file", "read as", "rows", "pairs"),
        [(name, form, preferences.n_rows[name], seen.pairs[name]) for name, form in preferences.forms.items()],
    )  # fmt: skip
    yield f"Left out: {_reasons(preferences.dropped)}\n"
    yield _table(
        "Splits, by conversation", ("axis", "split", "prompts", "pairs", "clusters"),
        [(count.axis, count.split, count.prompts, count.pairs, count.clusters) for count in seen.splits],
    )  # fmt: skip
    yield _table(
        f"Lengths in {unit}", ("axis", "part", "median", "95 %", "longest"),
        [(line.axis, line.part, f"{line.median:g}", line.cut_at, line.longest) for line in seen.lengths],
    )  # fmt: skip
    for bias in seen.bias:
        if bias.n:
            yield f"{bias.axis}: chosen is longer in {100 * bias.longer / bias.n:.0f} % of {bias.n} pairs whose sides differ in length"
    yield _table("Repeats", ("what", "n"), list(seen.repeats.items()))
    if seen.leaks:
        leaks = [(leak.first, leak.second, leak.clusters, leak.of_first, leak.of_second) for leak in seen.leaks]
        yield _table("Clusters in two files", ("a", "b", "in both", "of a's", "of b's"), leaks)


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    table = Table(*heads, box=SIMPLE_HEAD, padding=0, title=title)
    for row in rows:
        table.add_row(*map(str, row))
    return table
