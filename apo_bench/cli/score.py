"""`apo-bench score`: the experiment that compares finished checkpoints and response files, and a command that runs it."""

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from apo_bench.cli import terminal
from apo_bench.cli.judging import chosen_judge
from apo_bench.cli.overrides import overrides_of
from apo_bench.cli.terminal import FAILED, plain_errors
from apo_bench.config.finished_arms import FINISHED
from apo_bench.config.plain_yaml import PlainDumper, parse_yaml
from apo_bench.config.schema import JUDGE
from apo_bench.errors import InputError
from apo_bench.formatting import one_line
from apo_bench.store import write_text

app = typer.Typer()
FILE, RUN = "score.yaml", "run"  # in the folder that is written
RESPONSE_FILES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
UNUSED_RECIPE = {"learning_rate": 1e-6}  # nothing is trained


@app.command()
@plain_errors()
def score(
    arms: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]PATH[,PATH...]...",
            help="A model folder, a hub id, a folder of adapters, or a file of responses; several paths are seeds. The first is compared "
            "with every other.",
        ),
    ],
    data: Annotated[list[Path] | None, typer.Option(help="A file of preferences, for the task; can be given again.")] = None,
    task: Annotated[str, typer.Option(help="The task that reads the data.")] = "preferences",
    gold: Annotated[
        list[str] | None, typer.Option(metavar="PATH|YAML", help="A finished reward model, or a gold model as in an experiment's models.")
    ] = None,
    judge: Annotated[list[str] | None, typer.Option(metavar="YAML", help="A judge, as of judge; the first is the scorer.")] = None,
    initial: Annotated[str | None, typer.Option(metavar="PATH", help="What KL is measured to; the first model if not given.")] = None,
    base: Annotated[str | None, typer.Option(metavar="PATH", help="What adapters stand on; what their folders name if not given.")] = None,
    prompts: Annotated[int | None, typer.Option(min=2, help="Test prompts; all if not given.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest response.")] = 256,
    max_prompt_tokens: Annotated[int, typer.Option(min=1, help="Longest prompt.")] = 1024,
    out: Annotated[Path, typer.Option(help="The folder of the experiment and its run.")] = Path("results/score"),
    workers: Annotated[int | None, typer.Option(min=1, help="As of run.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As of run.")] = None,
) -> None:
    """Evaluate finished checkpoints and response files on a task's test prompts: write that experiment, run it, print its tables."""
    from apo_bench.run import run_experiment

    path = write_experiment(
        out, arms, data=data or (), task=task, golds=gold or (), judges=judge or (), initial=initial, base=base, prompts=prompts,
        max_new_tokens=max_new_tokens, max_prompt_tokens=max_prompt_tokens,
    )  # fmt: skip
    typer.echo(str(path))
    result = run_experiment(path, overrides=overrides_of(set_), out=out / RUN, workers=workers)
    for failure in result.failures:
        typer.echo(f"failed: {one_line(failure)}", err=True)
    terminal.print_checkpoints(result.folder)
    if result.failures:
        raise typer.Exit(FAILED)


def write_experiment(out: Path, arms: Sequence[str], **options: Any) -> Path:
    """Write the experiment into the folder `out`; returns its file. Raises InputError where another one is there already."""
    text = yaml.dump(experiment_tree(arms, **options), Dumper=PlainDumper, sort_keys=False)
    path = out / FILE
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise InputError(f"{path}: another experiment is there; choose another --out, or run it as it is: apo-bench run {path}")
    out.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def experiment_tree(
    arms: Sequence[str], *, data: Sequence[Path], task: str, golds: Sequence[str], judges: Sequence[str], initial: str | None,
    base: str | None, prompts: int | None, max_new_tokens: int, max_prompt_tokens: int,
) -> dict[str, Any]:  # fmt: skip
    """The experiment, as its file spells it. The first arm is compared with every other (primary), the others among each other.

    Raises InputError, naming the option, for arms that cannot stand side by side.
    """
    paths = _named(arms)
    names, seeds = list(paths), len(next(iter(paths.values())))
    models = [each[0] for each in paths.values() if not _is_file(each[0])]
    start = initial or next((model for model in models if not _is_adapter(model)), None) or base
    if len(names) < 2:
        raise InputError(f"score: one arm, {names[0]}; give another to compare it with")
    if odd := next((name for name in names if len(paths[name]) != seeds), None):
        raise InputError(f"score: {odd}: {len(paths[odd])} paths, {names[0]} has {seeds}; each is a seed, and arms have equally many")
    if start is None:
        raise InputError("score: no whole model among the arms; give --initial, a model to measure KL to")
    spoken = dict(chosen_judge(text) for text in judges)
    kind: Any = {"temperature": 1.0, "max_new_tokens": max_new_tokens}
    limits = {"max_prompt_tokens": max_prompt_tokens, "max_response_tokens": max_new_tokens}
    return {
        "name": "score",
        "task": {"use": task, "options": {"data_files": [str(path.absolute()) for path in data]}} if data else {"use": task},
        "seeds": list(range(seeds)),
        "models": {
            "policy": {"path": _absolute(start), **limits, "training": UNUSED_RECIPE, "sampling": {"max_new_tokens": max_new_tokens}},
            "reward": {"kind": "ngram"},
            "gold": [{"name": f"gold{place or ''}", "model": _gold(text)} for place, text in enumerate(golds or ("{kind: ngram}",))],
        },
        "evaluation": {"sampling": kind, "prompts": prompts, "kl_prompts": min(prompts or 64, 64)},
        "arms": {name: _arm(each, base) for name, each in paths.items()},
        "judges": {name: choice.model_dump(mode="json") for name, choice in spoken.items()},
        "compare": {
            "scorer": f"{JUDGE}{next(iter(spoken))}" if spoken else "gold",
            "primary": [{"a": other, "b": names[0]} for other in names[1:]],
            "secondary": [{"a": a, "b": b} for b, a in combinations(names[1:], 2)],
        },
    }


def _named(arms: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Paths by arm; an arm without a name has that of its folder or file."""
    named: dict[str, tuple[str, ...]] = {}
    for text in arms:
        name, equals, rest = text.partition("=")
        paths = tuple(filter(None, (rest if equals else text).split(",")))
        name = name if equals else re.sub(r"\.jsonl?(\.gz)?$", "", Path(paths[0]).name if paths else "")
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_")
        if not name or not paths or name in named:
            raise InputError(f"score: {text!r}: {'two arms have this name' if name in named else 'no name'}; give NAME=PATH")
        named[name] = paths
    return named


def _arm(paths: tuple[str, ...], base: str | None) -> dict[str, Any]:
    kind = "responses" if _is_file(paths[0]) else "adapters" if _is_adapter(paths[0]) else "policies"
    places = [_absolute(path) for path in paths]
    by_seed = places[0] if len(places) == 1 else dict(zip(map(str, range(len(places))), places, strict=True))
    return {"use": FINISHED, kind: by_seed} | ({"base": _absolute(base)} if base and kind == "adapters" else {})


def _gold(text: str) -> Mapping[str, Any]:
    if not text.lstrip().startswith("{"):
        return {"kind": "pretrained", "path": _absolute(text)}
    settings = parse_yaml(text, "--gold")
    if not isinstance(settings, dict):
        raise InputError(f"--gold {text}: a path, or a mapping with kind:, is needed")
    return settings | ({"path": _absolute(str(settings["path"]))} if "path" in settings else {})


def _is_file(path: str) -> bool:
    return path.endswith(RESPONSE_FILES)


def _is_adapter(path: str) -> bool:
    return (Path(path) / "adapter_config.json").is_file() and not (Path(path) / "config.json").is_file()


def _absolute(path: str) -> str:
    """Of what lies here; a hub id, or a name that import-model knows, as it is."""
    return str(Path(path).expanduser().absolute()) if Path(path).expanduser().exists() else path
