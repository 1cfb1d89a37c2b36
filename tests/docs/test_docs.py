"""The documentation: it builds without a warning, its links lead somewhere, and what it quotes is what the code says."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
import yaml
from pages import DOCS, ROOT, blocks, environment, follow

PAGES = [*sorted(DOCS.rglob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/README.md"))]
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?)\s*$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
TELLS = 12  # letters, in more than a word, that a message has to have of its own


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="mkdocs-material is not installed (extra docs)")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    built = {path.relative_to(tmp_path / "site").with_suffix(".md") for path in (tmp_path / "site").rglob("*.html")}
    assert {page.relative_to(DOCS) for page in DOCS.rglob("*.md")} <= built
    outside = re.compile(r"(?:src|href)=\"(?:https?:)?//(?!arxiv\.org|github\.com|squidfunk\.github\.io)[^\"]*\"")
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"https?:", text), f"{page.name} fetches something"
        assert not outside.findall(text), page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(there), f"{page.name}: {target}"


def test_every_decision_is_in_the_index() -> None:
    index = (DOCS / "decisions" / "index.md").read_text(encoding="utf-8")
    assert not [page.name for page in DOCS.glob("decisions/0*.md") if f"({page.name})" not in index]


@cache
def anchors(page: Path) -> set[str]:
    """As mkdocs names headings (python-markdown's toc), which for these is what GitHub does."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    return {slug(heading) for heading in HEADING.findall(text)}


def slug(heading: str) -> str:
    plain = unicodedata.normalize("NFKD", re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading)).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def test_slugs_are_markdowns_own() -> None:
    assert slug("Eqs. 3, 14 and `x_y`: what *is* it?") == "eqs-3-14-and-x_y-what-is-it"


def test_the_algorithm_beside_the_equations_is_the_code() -> None:
    """Every line of the page's python, in this order, in one of the two files."""
    files = (ROOT / "apo_bench/apo.py", ROOT / "apo_bench/losses/reward.py")
    sources = [[line.strip() for line in path.read_text().splitlines()] for path in files]
    shown = [[line.strip() for line in block.text.splitlines() if line.strip()] for block in blocks(DOCS / "apo.md")]
    assert len(shown) == 3
    for lines in shown:
        assert any(_in_order(lines, source) for source in sources), lines


def _in_order(lines: list[str], source: list[str]) -> bool:
    rest = iter(source)
    return all(line in rest for line in lines)


# --- troubleshooting: every quoted line is a message of the code --------------------------------------------------------------


def templates() -> Iterator[str]:
    """Regular expressions of what the code can say: its string literals, with anything where a value goes."""
    for path in sorted((ROOT / "apo_bench").rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        formatted = [node.values for node in nodes if isinstance(node, ast.JoinedStr)]
        within = {id(part) for parts in formatted for part in parts}
        plain = [[node] for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in within]
        for literal in (*formatted, *plain):
            parts = [str(part.value) if isinstance(part, ast.Constant) else None for part in literal]
            if any(" " in part.strip() for part in parts if part) and sum(len(part) for part in parts if part) >= TELLS:
                yield ".+".join(re.escape(part) for part in _joined(parts))


def _joined(parts: Sequence[str | None]) -> list[str]:
    """Literal parts with the values between them, neighbouring values as one."""
    joined = [""]
    for part in parts:
        if part is not None:
            joined[-1] += part
        elif joined[-1] or len(joined) == 1:
            joined.append("")
    return joined


QUOTED = [line for block in blocks(DOCS / "troubleshooting.md") if block.language == "text" for line in block.text.splitlines()]


@pytest.mark.slow
def test_every_quoted_error_line_is_a_message_of_the_code() -> None:
    messages = [re.compile(template) for template in templates()]
    assert len(QUOTED) > 25
    assert not [line for line in QUOTED if not any(message.search(line) for message in messages)]
    assert not any(message.search("results/mine: the run is tired and wants to rest") for message in messages)


# --- pages that are followed -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_task_tutorial_runs_as_it_stands(tmp_path: Path) -> None:
    output = follow(DOCS / "new-task.md", tmp_path, environment())
    assert "bring me the red lamp | here is the red lamp" in output
    assert "golden_sft - best_of_4" in output
    about = yaml.load((tmp_path / "tasks/orders/orders.yaml").read_text().replace("!function ", ""), Loader=yaml.SafeLoader)
    assert about["task"] == "orders"


@pytest.mark.slow
def test_the_page_on_checkpoints_runs_as_it_stands(tmp_path: Path) -> None:
    output = follow(DOCS / "checkpoints.md", tmp_path, environment())
    assert "Mean scores; intervals over prompts, of these checkpoints only" in output
    assert "mine - rjs" in output
    assert (tmp_path / "results" / "scored" / "score.yaml").is_file()


@pytest.mark.slow
def test_the_page_on_your_own_data_runs_as_it_stands(tmp_path: Path) -> None:
    output = follow(DOCS / "data.md", tmp_path, environment())
    assert "Left out: 1 rows without rejected dropped" in output
    assert "note: task preferences: pairs.jsonl: preference pairs: texts, the prompt in a column; 1 rows without rejected dropped" in output
    assert "dpo - sft" in output


@pytest.mark.slow
def test_the_papers_experiments_pass_check() -> None:
    """The `sh` block of the page on reproducing the paper."""
    (block,) = [block for block in blocks(DOCS / "reproducing-the-paper.md") if block.language == "sh"]
    done = subprocess.run(["bash", "-euc", block.text], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ok  ") == 2


def test_yaml_on_pages_is_yaml() -> None:
    for page in DOCS.glob("*.md"):
        for block in blocks(page):
            if block.language == "yaml":
                yaml.safe_load(block.text.replace("!function ", ""))


# --- files beside the pages --------------------------------------------------------------------------------------------------


def test_the_citation_file_has_what_its_format_requires() -> None:
    """Citation File Format 1.2.0: cff-version, message, title and authors; of a reference type, title and authors."""
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(about)
    assert about["authors"] == [{"name": "apo-bench contributors"}]
    assert all({"type", "title", "authors"} <= set(reference) for reference in about["references"])


def test_the_changelog_names_the_version() -> None:
    from apo_bench import __version__

    assert f"({__version__})" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == __version__


def test_hooks_of_pre_commit_download_nothing() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    assert all(hook["language"] == "system" for repository in config["repos"] for hook in repository["hooks"])


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/apo.md"])
def test_trls_apo_is_named_as_another_method(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert all(word in text for word in ("apo_zero", "apo_down", "*Anchored*", "2408.06266"))
