"""The shape of the house: which module may import which, what stays light, how long a method may be."""

import ast
import graphlib
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "apo_bench"

# Modules outside a room, then the rooms: imports run downward. Within a room any order that has no cycle will do.
ORDER = (
    "errors types package_data hashing provenance store formatting tables losses config data clients models training engines lab apo "
    "finished stats evaluation judging analysis plan report run exchange cli"
).split()
OUTSIDE_A_ROOM = 11  # modules at most
TORCH = {"torch", "transformers", "accelerate", "peft", "trl"}
HEAVY = TORCH | {"pandas", "scipy", "matplotlib", "sklearn", "pyarrow", "datasets", "numpy"}
NO_TORCH_AT_START = (
    "types errors hashing provenance store formatting package_data tables config.schema config.load config.plugins config.controls "
    "config.tuning data.task lab.lab lab.ledger training.checkpoints engines engines.launch engines.worker_slots stats judging.load_judges "
    "judging.response_pairs judging.judge_result judging.audit_folder judging.audit_report judging.simulated_judge judging.chat_judge "
    "judging.local_judge judging.reward_judge clients.golden analysis.results analysis.contrasts analysis.costs analysis.win_rates "
    "analysis.power analysis.preregistration analysis.published analysis.reproduction analysis.reproduction_text plan.saved "
    "plan.match_spend report.report report.page report.latex report.across_variations run.jobs run.records run.up_to_date run.judges "
    "run.executors run.executors.local run.executors.ray run.worker run.experiment run.scheduler run.trials run.pipeline run.start "
    "run.variations run.status run.gc exchange.alpaca_eval_annotations"
).split()
NO_TORCH_AT_ALL = ("stats", "analysis", "report", "clients")  # rooms
METHOD_LINES = 60


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] != "__init__":
            yield ".".join(parts), path


def imported(path: Path, start_up_only: bool = False) -> Iterator[str]:
    """Absolute names of what a file imports; with `start_up_only`, what importing the file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes: list[ast.AST] = list(ast.walk(tree))
    if start_up_only:
        lazy = {
            id(node) for function in nodes if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(function)
        }
        nodes = [node for node in nodes if id(node) not in lazy]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def own(names: Iterator[str]) -> Iterator[str]:
    """Those of our modules that the names mean, without `apo_bench.`."""
    for name in names:
        if name.partition(".")[0] == "apo_bench":
            inner = name.removeprefix("apo_bench").lstrip(".").split(".")
            for length in range(len(inner), 0, -1):
                module = ".".join(inner[:length])
                if (PACKAGE / f"{module.replace('.', '/')}.py").exists() or (PACKAGE / module.replace(".", "/")).is_dir():
                    yield module
                    break


def code_lines(path: Path) -> int:
    """Lines that hold code: no blank lines, comments or docstrings."""
    source = path.read_text(encoding="utf-8")
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            skipped.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    occupied: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in layout:
            occupied.update(range(token.start[0], token.end[0] + 1))
    return len(occupied - skipped)


def room(module: str) -> str:
    return module.partition(".")[0]


def edges() -> Iterator[tuple[str, str]]:
    """Which module imports which, all of ours, inside functions too."""
    for module, path in modules():
        yield from ((module, other) for other in own(imported(path)) if other != module)


def test_few_modules_stand_outside_a_room() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= OUTSIDE_A_ROOM


@pytest.mark.slow
def test_the_rooms_order_is_derived_from_the_imports() -> None:
    """A topological order of the rooms exists, so there is no cycle, and the documented order is one."""
    above: dict[str, set[str]] = {room(module): set() for module, _ in modules()}
    for module, other in edges():
        if room(module) != room(other):
            above[room(module)].add(room(other))
    assert set(graphlib.TopologicalSorter(above).static_order()) == set(ORDER)
    rank = {name: place for place, name in enumerate(ORDER)}
    assert not [(name, other) for name, others in above.items() for other in others if rank[other] >= rank[name]]


def names(path: Path) -> Iterator[str]:
    """Every name that a file gives to something: variables, parameters, attributes, functions, classes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.arg | ast.keyword):
            yield node.arg or ""
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name


@pytest.mark.slow
def test_names_say_what_a_thing_is() -> None:
    """Not what was done with it, and not that it is one of several."""
    vague = {"found", "said", "one", "made", "asked", "held", "told", "says", "looks", "took"}
    rooms = ("apo_bench", "baselines", "tasks", "benchmarks", "tests")
    assert not [(path, name) for room in rooms for path in (ROOT / room).rglob("*.py") for name in names(path) if name.strip("_") in vague]


@pytest.mark.slow
def test_no_modules_import_each_other_in_a_circle() -> None:
    above: dict[str, set[str]] = {module: set() for module, _ in modules()}
    for module, other in edges():
        above[module].add(other)
    graphlib.TopologicalSorter(above).prepare()  # raises CycleError


def test_no_room_for_everything() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "handler"}
    assert not [path for path in ROOT.glob("*/**/*.py") if path.stem in vague and not {".venv", ".venv-vllm"} & {*path.parts}]


@pytest.mark.parametrize("path", sorted((ROOT / "baselines").glob("*.py")), ids=lambda path: path.name)
def test_a_baseline_is_short_and_knows_only_the_lab(path: Path) -> None:
    assert {room(module) for module in own(imported(path))} <= {"types", "losses", "lab"}
    assert not {name.partition(".")[0] for name in imported(path)} - {"apo_bench"} - set(sys.stdlib_module_names)
    assert code_lines(path) < METHOD_LINES


def test_apo_is_short() -> None:
    assert code_lines(PACKAGE / "apo.py") < METHOD_LINES


def test_lines_of_code_are_counted_without_words_about_them(tmp_path: Path) -> None:
    """By hand: import, def, the string's three lines, return: 6."""
    path = tmp_path / "counted.py"
    lines = ['"""Doc.', "", 'More."""', "", "import os  # why", "", "def f():", '    """Doc."""', "    # why"]
    path.write_text("\n".join([*lines, '    text = """a', "    b", '    """', "    return text", ""]))
    assert code_lines(path) == 6


@pytest.mark.parametrize("name", NO_TORCH_AT_ALL)
def test_reports_are_made_without_torch(name: str) -> None:
    for path in (PACKAGE / name).rglob("*.py"):
        assert not TORCH & {top.partition(".")[0] for top in imported(path)}


def test_only_the_store_and_the_report_write_tables_into_a_run_folder() -> None:
    """A method never opens a file: neither APO nor a baseline calls anything that does."""
    for path in (PACKAGE / "apo.py", *(ROOT / "baselines").glob("*.py")):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        names = {call.id if isinstance(call, ast.Name) else getattr(call, "attr", "") for call in calls}
        assert not names & {"open", "read_text", "write_text", "read_bytes", "write_bytes", "exec", "eval"}, path


def loaded_by(statement: str) -> set[str]:
    """Top-level names of what a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys; print('\\n'.join(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.slow
def test_the_command_line_starts_light() -> None:
    assert not loaded_by("import apo_bench.cli.main") & HEAVY


@pytest.mark.slow
def test_help_starts_light() -> None:
    lines = [
        "import contextlib, io",
        "from apo_bench.cli.main import app",
        "with contextlib.redirect_stdout(io.StringIO()):",
        "    app(['run', '--help'], standalone_mode=False)",
    ]
    assert not loaded_by("\n".join(lines)) & HEAVY


@pytest.mark.slow
def test_these_modules_start_without_torch() -> None:
    statement = "\n".join(f"import apo_bench.{module}" for module in NO_TORCH_AT_START)
    assert not loaded_by(statement) & TORCH
