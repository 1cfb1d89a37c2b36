"""`apo-bench site`: one page over all reports of a results folder."""

from pathlib import Path
from typing import Annotated

import typer

from apo_bench.cli.terminal import plain_errors

app = typer.Typer()


@app.command()
@plain_errors()
def site(results: Annotated[Path, typer.Argument(metavar="RESULTS_DIR", help="The folder of run folders or their reports.")]) -> None:
    """Write RESULTS_DIR/index.html: every report's question and answer, and methods ranked at equal cost."""
    from apo_bench.report.across_reports.page import write_site

    typer.echo(write_site(results))
