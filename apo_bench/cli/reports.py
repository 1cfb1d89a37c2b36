"""`apo-bench open` and `apo-bench meta`: a report's page, and one contrast over several reports."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from apo_bench.cli import terminal
from apo_bench.cli.terminal import plain_errors
from apo_bench.errors import InputError

app = typer.Typer()


@app.command(name="open")
@plain_errors()
def open_page(folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run folder, or one with a report.html.")]) -> None:
    """Open a run's report page in a browser; prints its path, which is all where there is no browser."""
    import webbrowser

    pages = (folder / "report" / "report.html", folder / "report.html")
    page = next((page for page in pages if page.is_file()), None)
    if page is None:
        raise InputError(f"{folder}: no report page (no report/report.html); run it to its end, or apo-bench report {folder}")
    typer.echo(str(page))
    if not webbrowser.open(page.resolve().as_uri()):
        typer.echo("no browser here: open this file in one", err=True)


@app.command()
@plain_errors()
def meta(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Finished runs, or published reports, of independent experiments.")
    ],
    contrast: Annotated[str, typer.Option(metavar="A,B", help="The two arms whose difference is combined.")],
    axis: Annotated[str, typer.Option(help="The axis; all: pooled.")] = "all",
    at: Annotated[Literal["final", "dev_best", "matched_kl"], typer.Option(help="Where arms are compared.")] = "final",
    scorer: Annotated[
        str | None, typer.Option(help="The scorer, such as ground_truth or judge/NAME; all that are shared if not given.")
    ] = None,
    in_sds: Annotated[
        bool,
        typer.Option("--in-sds", help="In SDs of the second arm's scores, for scorers of unlike scales; also by each run's own scorer."),
    ] = False,
    tau: Annotated[
        Literal["paule_mandel", "reml"], typer.Option(help="How the variance between experiments is estimated.")
    ] = "paule_mandel",
) -> None:
    """Combine one contrast over several experiments: random effects, how far they differ, and what a new one would show."""
    from apo_bench.analysis.combined_experiments import combine_experiments

    arms = tuple(name.strip() for name in contrast.split(","))
    if len(arms) != 2 or not all(arms):
        raise InputError(f"--contrast {contrast}: two arms, separated by a comma, are needed")
    combined = combine_experiments(folders, *arms, axis=axis, at=at, scorer=scorer, in_sds=in_sds, tau=tau)
    terminal.print_tables(*terminal.combination(combined))
