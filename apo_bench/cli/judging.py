"""The commands about judges, reward models and outside responses: judge, audit-judge, audit-reward, golden, export, import-judgments."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from apo_bench.cli import terminal
from apo_bench.cli.terminal import FAILED, plain_errors, refuse_unfinished
from apo_bench.errors import InputError
from apo_bench.formatting import one_line, visible

app = typer.Typer()
PARAMETERS = (  # `judging.judge_parameters` as text: commands start without importing judges
    'apo_bench.judging.chat_judge@ChatJudge: model, base_url, api_key_env="", served_as=null, temperature=0.0, max_tokens=512, '
    'max_tokens_key="max_tokens", seed=0, extra={}, concurrency=16, timeout_s=60.0, max_attempts=6, max_wait_s=60.0, '
    'usd_per_million_prompt_tokens=0.0, usd_per_million_completion_tokens=0.0, max_usd=null, system="own", headers={}, '
    'api_version=null, template="by_axis"\n\n'
    'apo_bench.judging.local_judge@LocalJudge: path, template="by_axis", tie_margin=0.0, batch_size=8, max_tokens=2048, '
    'trust_remote_code=false, chat_template_kwargs={}, template_date="2025-01-01"\n\n'
    "apo_bench.judging.reward_judge@RewardModelJudge: gold=null, path=null, tie_margin=0.0, max_tokens=null, batch_size=64, "
    'axis_input=false, output=0, template=null, system_prompt=null, dtype="auto", attention="auto", trust_remote_code=false\n\n'
    "apo_bench.judging.simulated_judge@SimulatedJudge: noise=0.0, position_bias=0.0, length_bias=0.0, tie_margin=0.0, "
    "failure_rate=0.0, seed=0\n\n"
)
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A finished run's folder.")]
_JUDGE = typer.Option(
    "--judge",
    metavar="YAML",
    help="A judge as in an experiment's judges, with name: and use:, as a YAML mapping or a file; or the name of one of the run's.",
)
JudgeSpec = Annotated[str, _JUDGE]


@app.command(epilog=PARAMETERS)
@plain_errors()
def judge(
    folder: Folder,
    judge: Annotated[str | None, _JUDGE] = None,
    remove: Annotated[str | None, typer.Option(metavar="NAME", help="Take a judge out that was added or imported.")] = None,
) -> None:
    """Add a judge to a finished run, or ask one of its own again; existing answers are kept. Or take one out again."""
    refuse_unfinished(folder)
    if (judge is None) == (remove is None):
        raise InputError("judge: give --judge or --remove, one of them")
    from apo_bench.report.report import write_report
    from apo_bench.run.inputs import experiment_of_run
    from apo_bench.run.judges import add_judge, remove_judge

    folder = folder.resolve()
    if remove is not None:
        remove_judge(folder, remove)
        write_report(folder)
        terminal.print_report(folder)
        return
    assert judge is not None
    experiment, task = experiment_of_run(folder, Path.cwd())
    choice = experiment.judges.get(judge)
    name, choice = (judge, choice) if choice else chosen_judge(judge, experiment.judges)
    unanswered = add_judge(folder, name, choice, experiment, task)
    write_report(folder)
    terminal.print_judge(folder, name)
    _fail_on(unanswered)


@app.command(epilog=PARAMETERS)
@plain_errors()
def audit_judge(
    judge: Annotated[str | None, _JUDGE] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Pairs with people's labels: a file in any form of docs/data.md, or a task for its test pairs."),
    ] = None,
    verdicts: Annotated[
        Path | None,
        typer.Option(help="Verdicts recorded elsewhere in place of a judge: rows of JudgeBench, LLMBar, MT-Bench, RewardBench, PandaLM."),
    ] = None,
    n: Annotated[int | None, typer.Option(min=1, help="At most so many pairs of each, chosen by hash.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder for the audit; results/audit_NAME if not given.")] = None,
    attacks: Annotated[bool, typer.Option(help="Also plant attacks in the worse responses.")] = True,
) -> None:
    """Audit a judge against people's labels: agreement, position and length bias, consistency, planted attacks."""
    if (judge is None) == (verdicts is None) or (judge is not None and not data):
        raise InputError("audit-judge: give --judge with --data, or --verdicts")
    if verdicts is not None:
        from apo_bench.judging.recorded_verdicts import audit_recorded

        labels = [Path(name) for name in data or ()]
        if len(labels) > 1:
            raise InputError("audit-judge: --verdicts goes with one --data at most")
        recorded = audit_recorded(verdicts, labels[0] if labels else None, out or Path("results") / f"audit_{verdicts.stem}")
        typer.echo(visible(recorded.read_text(encoding="utf-8")))
        typer.echo(str(recorded))
        return
    assert judge is not None
    assert data is not None
    from apo_bench.judging import audit_folder

    name, choice = chosen_judge(judge)
    folder = out or Path("results") / f"audit_{name}"
    unanswered = audit_folder.audit_judge(name, choice, data, folder, n=n, attacks=attacks)
    typer.echo(visible((folder / "report" / "audit.md").read_text(encoding="utf-8")))
    typer.echo(str(folder / "report" / "audit.md"))
    _fail_on(unanswered)


@app.command()
@plain_errors()
def audit_reward(
    model: Annotated[str, typer.Argument(help="A reward model's folder or hub id, or the keys of kind: pretrained, as YAML.")],
    data: Annotated[
        list[str],
        typer.Option(help="Pairs with people's labels: a file in any form of docs/data.md, or a task for its test pairs."),
    ],
    n: Annotated[int | None, typer.Option(min=1, help="At most so many pairs of each, chosen by hash.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder for the audit; results/audit_MODEL if not given.")] = None,
) -> None:
    """Audit a finished reward model against people's labels: accuracy by axis or subset, calibration, length bias, ties."""
    from apo_bench.judging import audit_reward as audits

    spec = audits.reward_spec(model)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(spec.path).name)
    summary = audits.audit_reward(spec, data, out or Path("results") / f"audit_{name}", n=n)
    typer.echo(visible(summary.read_text(encoding="utf-8")))
    typer.echo(str(summary))


@app.command()
@plain_errors()
def golden(
    task: Annotated[str, typer.Argument(help="A task whose rm prompts are answered.")],
    writer: Annotated[Path, typer.Option(metavar="FILE", help="YAML: model, base_url, api_key_env and what else a chat client takes.")],
    out: Annotated[Path, typer.Option(help="The file of golden responses, .jsonl; the hh task reads it as golden: FILE.")],
    options: Annotated[str, typer.Option(metavar="YAML", help="The task's options, such as '{data_files: [...]}'.")] = "{}",
    n: Annotated[int | None, typer.Option(min=1, help="At most so many prompts, by hash, the axes in turn.")] = None,
) -> None:
    """Write golden responses by any chat model for the reward model's prompts; existing responses are kept."""
    from apo_bench.clients.golden import golden_writer, write_golden
    from apo_bench.clients.replies import counted_reasons
    from apo_bench.config.plain_yaml import parse_yaml, read_yaml
    from apo_bench.data.task import load_task

    chosen, source = parse_yaml(options, "--options"), f"--writer {writer}"
    if not isinstance(chosen, Mapping):
        raise InputError(f"--options: a mapping is needed, got {options!r}")
    settings = golden_writer(read_yaml(writer, source), source)
    loaded = load_task(task, {key: value for key, value in chosen.items() if key != "golden"}, base=Path.cwd())
    result = write_golden(loaded, out, settings, n=n)
    cost = f"{result.prompt_tokens:,} prompt and {result.completion_tokens:,} completion tokens, {result.cost_usd:.4f} USD"
    typer.echo(f"{result.n} golden responses; {cost}{_counted(result.left_out, 'left out')}")
    if result.n:
        typer.echo(str(result.path))
    if result.unanswered:
        typer.echo(
            f"failed: prompts without an answer: {one_line(counted_reasons(result.unanswered))}; the same command asks again", err=True
        )
        raise typer.Exit(FAILED)


@app.command()
@plain_errors()
def export(
    folder: Folder,
    format_: Annotated[Literal["alpaca-eval", "pairs", "annotate", "model"], typer.Option("--format")],
    out: Annotated[Path, typer.Option(help="A folder; for annotate the sheet, a CSV file.")],
    arm: Annotated[str | None, typer.Argument(help="model: of which arm.")] = None,
    arm_seed: Annotated[int | None, typer.Argument(metavar="[SEED]", help="model: of which seed.")] = None,
    round_: Annotated[int | None, typer.Argument(metavar="[ROUND]", help="model: after which round; the last if not given.")] = None,
    judge: Annotated[str | None, typer.Option(help="pairs: by whose verdicts; every judge's if not given.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="annotate: of the order of rows and sides.")] = 0,
    per_pair: Annotated[int | None, typer.Option(min=1, help="annotate: at most so many rows for each pair of arms.")] = None,
) -> None:
    """Export responses: model outputs for alpaca_eval, preference pairs for TRL, a blind sheet for human annotators; or a policy."""
    if (format_ == "model") != (arm is not None and arm_seed is not None):
        raise InputError("export: ARM and SEED go with --format model, and it needs both")
    refuse_unfinished(folder)
    if arm is not None and arm_seed is not None:
        from apo_bench.exchange.export_model import export_model

        typer.echo(str(export_model(folder, arm, arm_seed, round_, out)))
        return
    from apo_bench.exchange import export as exporting

    if format_ == "alpaca-eval":
        exported = exporting.export_alpaca_eval(folder, out, base=Path.cwd())
    elif format_ == "pairs":
        exported = exporting.export_pairs(folder, out, judge=judge, base=Path.cwd())
    else:
        from apo_bench.analysis.results import read_responses, read_run
        from apo_bench.run.inputs import experiment_of_run
        from apo_bench.run.judges import pairs_of

        task = experiment_of_run(folder, Path.cwd())[1]
        exported = exporting.export_annotate(
            pairs_of(folder, read_run(folder), read_responses(folder), task), out, seed=seed, per_pair=per_pair
        )
    typer.echo(f"{exported.n} rows{_counted(exported.left_out, 'left out')}")
    for path in exported.paths:
        typer.echo(str(path))


@app.command()
@plain_errors()
def import_judgments(
    files: Annotated[list[Path], typer.Argument(help="Filled sheets of `export --format annotate`, or AlpacaEval's annotations.")],
    run: Annotated[Path | None, typer.Option(metavar="DIR", help="Sheets: the run they go into.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Annotations: a folder of their own.")] = None,
    key: Annotated[Path | None, typer.Option(help="The one sheet's key, where it is not beside it.")] = None,
    name: Annotated[str, typer.Option(help="Sheets: what the judge is called.")] = "human",
    without_difficulty: Annotated[
        bool, typer.Option("--without-difficulty", help="Annotations: win rates at equal lengths without a term for hard instructions.")
    ] = False,
) -> None:
    """Import outside verdicts: people's, as a judge of a run, or AlpacaEval's, with our statistics."""
    if (run is None) == (out is None):
        raise InputError("import-judgments: give --run for filled sheets or --out for AlpacaEval's annotations, one of them")
    if run is not None:
        refuse_unfinished(run)
        from apo_bench.exchange.human_annotations import import_sheets
        from apo_bench.report.report import write_report

        imported, summary = import_sheets(run, files, key, judge=name), run / "report" / "report.md"
        write_report(run)
    else:
        assert out is not None
        from apo_bench.exchange.alpaca_eval_annotations import import_annotations

        imported, summary = import_annotations(files, out, without_difficulty=without_difficulty), out / "summary.md"
        typer.echo(visible(summary.read_text(encoding="utf-8")))
    skipped = f"; {imported.n_skipped} skipped: a model compared with itself" if imported.n_skipped else ""
    typer.echo(f"{imported.n} comparisons{_counted(imported.missing, 'without a verdict')}{skipped}")
    typer.echo(str(summary))


def chosen_judge(given: str, own: Iterable[str] = ()) -> tuple[str, Any]:
    """The judge that `--judge` describes, and its name. Raises InputError, naming the option and key."""
    from pydantic import ValidationError

    from apo_bench.config.plain_yaml import parse_yaml, read_yaml
    from apo_bench.config.schema import JudgeChoice
    from apo_bench.config.schema_errors import input_error

    file = given.endswith((".yaml", ".yml"))
    source = f"--judge {given}" if file else "--judge"
    settings = read_yaml(Path(given), source) if file else parse_yaml(given, source)
    if not isinstance(settings, Mapping) or not isinstance(settings.get("name"), str):
        own_judges = f"; this run's own judges: {', '.join(own)}" if own else ""
        raise InputError(f"{source}: a mapping with name: and use: is needed, such as '{{name: gpt, use: module@Class, ...}}'{own_judges}")
    name = settings["name"]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise InputError(f"{source}: name: {name!r}: letters, digits, '_', '-', '.', starting with a letter or digit")
    tree = {key: value for key, value in settings.items() if key != "name"}
    try:
        return name, JudgeChoice.model_validate(tree)
    except ValidationError as error:
        raise input_error(source, error, tree, JudgeChoice) from None


def _counted(reasons: Mapping[str, int], what: str) -> str:
    shown = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()) if count)
    return f"; {what}: {one_line(shown)}" if shown else ""


def _fail_on(unanswered: Any) -> None:
    for judge in unanswered:
        typer.echo(f"failed: {one_line(judge)}", err=True)
    if unanswered:
        raise typer.Exit(FAILED)
