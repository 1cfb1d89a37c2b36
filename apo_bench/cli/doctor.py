"""`apo-bench doctor`: what is installed, and what is missing for an experiment."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from apo_bench.cli import terminal
from apo_bench.cli.overrides import overrides_of
from apo_bench.cli.terminal import FAILED, plain_errors
from apo_bench.formatting import one_line

app = typer.Typer()


@app.command()
@plain_errors()
def doctor(
    experiment: Annotated[Path | None, typer.Argument(metavar="[EXPERIMENT]")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As of run.")] = None,
    ask_servers: Annotated[bool, typer.Option("--ask-servers", help="Also connect to judges' and sampling servers.")] = False,
) -> None:
    """What is installed here, which devices and extras; with an experiment also what it lacks, and exit status 1 where it lacks any."""
    from apo_bench.run import doctor as findings
    from apo_bench.run.start import open_experiment

    file = None if experiment is None else open_experiment(experiment, overrides_of(set_))[0]
    terminal.print_tables(_table("This machine", ("what", "version"), findings.machine()))
    terminal.print_tables(_table("Extras", ("extra", "installed"), findings.extras()))
    if file is None:
        return
    needs = findings.needs(file, ask_servers=ask_servers)
    rows = [(need.key, need.what, need.state, need.detail) for need in needs]
    if rows:
        terminal.print_tables(_table(f"What {file.path} needs", ("key", "what", "state", ""), rows))
    missing, (notes, refusals) = findings.missing(needs), findings.checked(file)
    for note in notes:
        typer.echo(f"note: {one_line(note)}")
    for need in missing:
        typer.echo(f"missing: {one_line(f'{need.key}: {need.what}: {need.detail}')}", err=True)
    for line in refusals:
        typer.echo(f"check: {one_line(line)}", err=True)
    if missing or refusals:
        raise typer.Exit(FAILED)
    typer.echo(f"nothing is missing for {file.path}")


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=0, title=title)
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
