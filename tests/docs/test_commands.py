"""The map of commands: all of them, spelled as the command line takes them, each called by a test."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import typer
from pages import DOCS, ROOT

from apo_bench.cli.main import app

COMMANDS = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
LINES = re.findall(r"\| `(apo-bench [^`]+)` \|$", (DOCS / "commands.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_command_is_in_the_map() -> None:
    assert {shlex.split(line)[1] for line in LINES} == set(COMMANDS)


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_the_map_is_taken_as_it_stands(line: str) -> None:
    """Its arguments and options, by the command's own parser; nothing is run."""
    _, name, *words = shlex.split(line)
    context = COMMANDS[name].make_context(name, words)
    assert context.params


def called(path: Path) -> set[str]:
    """The texts that a file of tests holds, in lists and calls too."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_every_command_is_called_by_a_test() -> None:
    """As a word of its own, or in a command line that a test of README or docs runs."""
    files = [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
    texts = set().union(*map(called, files))
    assert not set(COMMANDS) - texts
