"""The shape of the house: which module may import which, what stays light, how long a method may be."""

import ast
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "apo_bench"

# A module imports only from those above it. Modules on one line do not know each other.
ORDER = [
    ["types", "errors", "reference_words"],
    ["visible"],
    ["config"],
    ["controls"],
    ["experiment_file"],
    ["shipped"],
    ["new_method"],
    ["splits"],
    ["task_files"],
    ["task_rows"],
    ["tasks"],
    ["lm_eval_rows"],
    ["budget", "store", "losses", "controls"],
    ["looks"],
    ["models.text", "models.imports", "models.ngram"],
    ["models.flops"],
    ["models.policy"],
    ["models.reward"],
    ["batches", "checkpoints"],
    ["training"],
    ["launched"],
    ["lab"],
    ["apo"],
    ["methods"],
    ["stats.checks"],
    ["stats.scores", "stats.shares", "stats.calibration"],
    ["stats.crossed", "stats.agreement", "stats.logit"],
    ["stats.families", "stats.resample", "stats.claims", "stats.preferences", "stats.planning"],
    ["stats.length", "stats.strengths"],
    ["stats"],
    ["markdown"],
    ["judging", "judging.verdicts", "judging.journal"],
    ["judging.asking", "judging.templates"],
    ["judging.endpoint", "judging.pace"],
    ["judging.chat"],
    ["judging.chat_judge", "judging.local_judge", "judging.reward_judge", "judging.simulated"],
    ["judging.labels", "golden"],
    ["judging.attacks"],
    ["judging.audit"],
    ["bench"],
    ["evaluate"],
    ["oracle"],
    ["oracle"],
    ["plan", "plan.sizes"],
    ["plan.counting"],
    ["plan.fitting"],
    ["contract"],
    ["tune"],
    ["tables"],
    ["results", "figures"],
    ["judged"],
    ["judging.panel", "contrasts", "costs"],
    ["drifts"],
    ["latex", "published", "compare_runs"],
    ["judging.auditing", "exchange", "exchange.export"],
    ["exchange.importing"],
    ["exchange.annotations"],
    ["planned"],
    ["plan.accounts"],
    ["plan.projecting"],
    ["plan.probing"],
    ["plan.kept"],
    ["plan.display"],
    ["sections", "sections_judging", "sections_controls", "sections_costs"],
    ["page.markup", "page.reading"],
    ["page.svg", "page.answer", "page.samples", "page.provenance"],
    ["page.scores", "page.charts"],
    ["page.writing"],
    ["page"],
    ["report"],
    ["spread"],
    ["jobs"],
    ["live"],
    ["records", "answer"],
    ["executors"],
    ["executors.local", "executors.ray"],
    ["work"],
    ["runner"],
    ["status"],
    ["sweep"],
    ["variation"],
    ["check", "tiny"],
    ["terminal"],
    ["judging_commands"],
    ["cli"],
    ["reference"],
]
RANK = {module: rank for rank, row in enumerate(ORDER) for module in row}
TORCH = {"torch", "transformers", "accelerate", "peft", "trl"}
HEAVY = TORCH | {"pandas", "scipy", "matplotlib", "sklearn", "pyarrow", "datasets", "numpy"}
NO_TORCH_AT_START = [
    "types", "errors", "config", "experiment_file", "shipped", "tasks", "budget", "store", "methods", "stats", "lab", "tune", "results",
    "contrasts", "costs", "looks", "planned", "sections", "latex", "published", "drifts", "compare_runs", "page", "report", "spread",
    "jobs", "records", "answer", "executors", "executors.local", "executors.ray", "work", "runner", "variation", "judged",
    "sections_judging", "status", "sweep", "golden", "sections_costs", "plan.fitting", "plan.kept", "controls", "sections_controls",
    "checkpoints", "launched", "exchange.annotations", "judging.panel", "judging.auditing", "judging.simulated", "judging.chat_judge",
    "judging.local_judge", "judging.reward_judge",
]  # fmt: skip
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
                if module in RANK or (PACKAGE / f"{module.replace('.', '/')}.py").exists():
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
    held: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in layout:
            held.update(range(token.start[0], token.end[0] + 1))
    return len(held - skipped)


def test_every_module_has_its_place() -> None:
    assert not {name for name, _ in modules()} - set(RANK), "a new module: give it a row in ORDER"


def test_no_room_for_everything() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "handler"}
    assert not [path for path in ROOT.glob("*/**/*.py") if path.stem in vague and ".venv" not in path.parts]


@pytest.mark.parametrize(("module", "path"), modules(), ids=[name for name, _ in modules()])
def test_a_module_imports_only_from_those_above_it(module: str, path: Path) -> None:
    assert not [other for other in own(imported(path)) if RANK[other] >= RANK[module]]


@pytest.mark.parametrize("path", sorted((ROOT / "baselines").glob("*.py")), ids=lambda path: path.name)
def test_a_baseline_is_short_and_knows_only_the_lab(path: Path) -> None:
    assert set(own(imported(path))) <= {"types", "losses", "lab"}
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


@pytest.mark.parametrize(
    "module",
    [
        "stats",
        "looks",
        "results",
        "figures",
        "markdown",
        "contrasts",
        "costs",
        "planned",
        "sections",
        "judged",
        "sections_judging",
        "sections_costs",
        "sections_controls",
        "latex",
        "published",
        "drifts",
        "compare_runs",
        "page",
        "report",
        "spread",
    ],
)
def test_reports_are_made_without_torch(module: str) -> None:
    paths = (PACKAGE / module).glob("*.py") if (PACKAGE / module).is_dir() else [PACKAGE / f"{module}.py"]
    for path in paths:
        assert not TORCH & {name.partition(".")[0] for name in imported(path)}


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


def test_the_command_line_starts_light() -> None:
    assert not loaded_by("import apo_bench.cli") & HEAVY


def test_help_starts_light() -> None:
    lines = [
        "import contextlib, io",
        "from apo_bench.cli import app",
        "with contextlib.redirect_stdout(io.StringIO()):",
        "    app(['run', '--help'], standalone_mode=False)",
    ]
    assert not loaded_by("\n".join(lines)) & HEAVY


def test_these_modules_start_without_torch() -> None:
    statement = "\n".join(f"import apo_bench.{module}" for module in NO_TORCH_AT_START)
    assert not loaded_by(statement) & TORCH
