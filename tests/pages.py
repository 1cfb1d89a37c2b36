"""Pages of documentation as tests read them: their code blocks, their links, and a tutorial followed to the letter."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    language: str
    title: str  # the file it is to be written into
    text: str


def blocks(page: Path) -> Iterator[Block]:
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        yield Block(*(part or "" for part in match.groups()))


def environment(**more: str) -> dict[str, str]:
    """A user's environment, with this python's commands first on the path."""
    quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **quiet, **more}


def follow(page: Path, folder: Path, env: Mapping[str, str]) -> str:
    """Write the page's titled blocks into a folder and run its `sh` blocks there, in the page's order; returns all they print.

    Raises AssertionError where a command fails.
    """
    outputs = []
    for block in blocks(page):
        if block.title:
            path = folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.language == "sh":
            done = subprocess.run(["bash", "-euc", block.text], cwd=folder, env=env, capture_output=True, text=True)
            assert done.returncode == 0, f"{page.name}: {block.text}\n{done.stdout}\n{done.stderr}"
            outputs.append(done.stdout)
    return "".join(outputs)
