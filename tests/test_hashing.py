"""What code a result depends on: the closure of imports, and which results are made again when a line of it changes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_world import smallest_tree

from apo_bench import hashing

ROOT = Path(__file__).parents[1]
Package = Callable[[Mapping[str, str]], Callable[..., set[str]]]


@pytest.fixture
def package(tmp_path: Path) -> Package:
    """Writes a package `house` from its files' texts; returns `code_files` of it, as paths relative to its folder."""

    def write(files: Mapping[str, str]) -> Callable[..., set[str]]:
        house = tmp_path / "house"
        for name, text in {"__init__.py": "", **files}.items():
            path = house / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

        def reached(*sources: str | Path) -> set[str]:
            return {os.path.relpath(path, house) for path in hashing.code_files(*sources, package=house)}

        return reached

    return write


def test_imports_are_followed_to_any_depth_and_inside_functions(package: Package) -> None:
    reached = package({
        "a.py": "import json\nimport house.b\n",
        "b.py": "def f():\n    if True:\n        from house import c\n",
        "c.py": "from house.room.d import value\n",
        "room/__init__.py": "",
        "room/d.py": "from house.a import again\n",  # a circle ends
        "other.py": "import house.a\n",
    })  # fmt: skip
    assert reached("house.a") == {"a.py", "b.py", "c.py", "room/d.py"}
    assert reached("house.other", "house.c") == {"a.py", "b.py", "c.py", "room/d.py", "other.py"}


def test_what_only_a_type_checker_imports_does_not_count(package: Package) -> None:
    reached = package({
        "a.py": "import typing\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house.b\nelse:\n    import house.c\n"
        "if typing.TYPE_CHECKING:\n    from house.b import x\n",
        "b.py": "",
        "c.py": "",
    })  # fmt: skip
    assert reached("house.a") == {"a.py", "c.py"}


REEXPORTS = {
    "room/__init__.py": "from house.room.b import B\nfrom house.room.c import inner as C\nfrom house.d import D\nVERSION = 1\n",
    "room/b.py": "",
    "room/c.py": "",
    "d.py": "",
}


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("from house.room import B", {"room/b.py"}),
        ("from house.room import C", {"room/c.py"}),
        ("from house.room import B, D", {"room/b.py", "d.py"}),
        ("from house.room import b", {"room/b.py"}),
        ("from house import room", {"room/__init__.py", "room/b.py", "room/c.py", "d.py"}),
        ("import house.room", {"room/__init__.py", "room/b.py", "room/c.py", "d.py"}),
        ("from house.room import *", {"room/__init__.py", "room/b.py", "room/c.py", "d.py"}),
        ("from house.room import VERSION", {"room/__init__.py", "room/b.py", "room/c.py", "d.py"}),
    ],
)  # fmt: skip
def test_reexports_are_followed_name_by_name(package: Package, statement: str, expected: set[str]) -> None:
    assert package({**REEXPORTS, "a.py": statement})("house.a") == {"a.py", *expected}


def test_data_files_beside_a_module_count_and_those_beside_no_module_do_not(package: Package) -> None:
    reached = package({
        "page/a.py": "", "page/style.css": "", "page/words/deep/hello.txt": "", "page/.hidden": "",
        "page/more/b.py": "", "page/more/b.txt": "", "logo.svg": "", "other/data.txt": "",
    })  # fmt: skip
    assert reached("house.page.a") == {"page/a.py", "page/style.css", "page/words/deep/hello.txt"}
    assert reached("house.page.more.b") == {"page/more/b.py", "page/more/b.txt"}


def test_a_file_outside_the_package_brings_what_it_imports_from_its_folder_and_from_the_package(package: Package, tmp_path: Path) -> None:
    reached = package({"a.py": "import house.b", "b.py": "", "c.py": ""})
    (tmp_path / "mine.py").write_text("import json, near\nfrom house.a import x\n")
    (tmp_path / "near.py").write_text("import house.c\n")
    (tmp_path / "far.py").write_text("")
    (tmp_path / "notes.txt").write_text("")
    assert reached(tmp_path / "mine.py") == {"../mine.py", "../near.py", "a.py", "b.py", "c.py"}


def test_a_file_that_a_wheel_carries_brings_what_it_would_in_a_checkout(package: Package, tmp_path: Path) -> None:
    """Its neighbours that it imports, and not the README beside it."""
    folder = "_shipped/tasks/pairs"
    reached = package({
        "a.py": "",
        f"{folder}/README.md": "",
        f"{folder}/task.py": "import rows\nfrom house import a\n",
        f"{folder}/rows.py": "",
        f"{folder}/other.py": "",
    })  # fmt: skip
    assert reached(tmp_path / "house" / folder / "task.py") == {"a.py", f"{folder}/task.py", f"{folder}/rows.py"}


def test_a_file_that_is_no_python_brings_only_itself(package: Package, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "task.yaml").write_text("import house.a")
    assert package({"a.py": ""})(tmp_path / "broken.py", tmp_path / "task.yaml") == {"../broken.py", "../task.yaml"}


@pytest.mark.parametrize("name", ["house.absent", "json", "__main__"])
def test_a_module_that_the_package_does_not_have_is_refused(package: Package, name: str) -> None:
    """A hash of no files would be the same for ever."""
    with pytest.raises(ModuleNotFoundError, match=name):
        package({})(name)


def test_a_users_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("x = 1\n")
    before = hashing.code_hash(path)
    path.write_text("x = 2\n")
    assert hashing.code_hash(path) != before
    path.write_text("x = 1\n")
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere" / "mine.py")
    assert hashing.code_hash(moved) == before  # no folder of a machine is in it


@pytest.mark.parametrize(
    ("module", "inside", "outside"),
    [
        ("apo_bench.lab.lab", {"config/schema/models.py", "types.py"}, {"cli/", "report/", "formatting.py", "stats/", "config/schema/com"}),
        ("apo_bench.engines.transformers", {"training/trainer.py", "models/generate.py"}, {"cli/", "report/", "lab/", "evaluation/"}),
        ("apo_bench.report.report", {"formatting.py", "stats/", "report/page/page.css"}, {"cli/", "training/"}),
        ("apo_bench.models.policy", {"models/tokenize.py"}, {"lab/", "store.py"}),
    ],
)  # fmt: skip
def test_what_results_of_ours_depend_on(module: str, inside: set[str], outside: set[str]) -> None:
    files = {str(path.relative_to(hashing.PACKAGE)) for path in hashing.code_files(module)}
    assert not {prefix for prefix in inside if not any(file.startswith(prefix) for file in files)}
    assert not {prefix for prefix in outside if any(file.startswith(prefix) for file in files)}


# --- a real run from a copy of the code ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Products:
    """What a run folder holds: artifacts by kind, as keys; records and the report's files, as the times they were written at."""

    artifacts: Mapping[str, set[str]]
    records: Mapping[str, int]
    report: Mapping[str, int]
    text: str

    @classmethod
    def of(cls, run: Path) -> "Products":
        kinds = [folder for folder in sorted((run / "store").iterdir()) if folder.is_dir()]
        artifacts = {kind.name: {path.parent.name for path in kind.glob("[!.]*/manifest.json")} for kind in kinds}
        return cls(
            {kind: keys for kind, keys in artifacts.items() if keys},
            {path.name: path.stat().st_mtime_ns for path in sorted((run / "store" / "arm_seeds").glob("*.json"))},
            {path.name: path.stat().st_mtime_ns for path in sorted((run / "report").iterdir()) if path.is_file()},
            (run / "report" / "report.md").read_text(encoding="utf-8"),
        )


def small() -> dict[str, Any]:
    """Two arms, one seed, one round: what a run makes of each kind, as little of it as there can be."""
    return smallest_tree() | {"seeds": [0]}


@pytest.fixture(scope="module")
def copy_of_the_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages that a run reads, an experiment, and its finished run in `run`."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("apo_bench", "baselines", "tasks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "small.yaml").write_text(yaml.safe_dump(small(), sort_keys=False), encoding="utf-8")
    run(folder)
    return folder


def run(folder: Path) -> Products:
    command = [sys.executable, "-c", "from apo_bench.cli.main import main; main()"]
    subprocess.run(
        [*command, "run", "small.yaml", "--out", "run", "--workers", "1"],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}, check=True, capture_output=True,
    )  # fmt: skip
    return Products.of(folder / "run")


def rerun_with(code: Path, tmp_path: Path, line: str, changed: str) -> tuple[Products, Products]:
    """What a finished run had before a line of the code was changed, and what it has when the changed code has run again."""
    folder = tmp_path / "changed"
    shutil.copytree(code, folder)
    before = Products.of(folder / "run")
    (place,) = [path for path in (folder / "apo_bench").rglob("*.py") if line in path.read_text(encoding="utf-8")]
    place.write_text(place.read_text(encoding="utf-8").replace(line, changed), encoding="utf-8")
    return before, run(folder)


def kinds_added(before: Products, after: Products) -> set[str]:
    assert all(after.artifacts[kind] >= keys for kind, keys in before.artifacts.items())  # nothing is removed
    return {kind for kind, keys in after.artifacts.items() if keys - before.artifacts.get(kind, set())}


@pytest.mark.slow
def test_a_line_of_the_command_line_changes_nothing(copy_of_the_code: Path, tmp_path: Path) -> None:
    before, after = rerun_with(copy_of_the_code, tmp_path, "def main() -> None:", "def main() -> None:  # started here")
    assert after == before


@pytest.mark.slow
def test_a_line_of_the_formatting_makes_the_report_again_and_nothing_else(copy_of_the_code: Path, tmp_path: Path) -> None:
    before, after = rerun_with(copy_of_the_code, tmp_path, 'else f"{value:+.3f}"', 'else f"{value:+.4f}"')
    assert not kinds_added(before, after)
    assert after.records == before.records
    assert set(after.report) == set(before.report)
    assert {name for name, written in after.report.items() if written != before.report[name]} >= {"report.md", "report.html"}
    assert after.text != before.text


@pytest.mark.slow
def test_a_line_of_the_schema_makes_again_what_reads_it(copy_of_the_code: Path, tmp_path: Path) -> None:
    """All that the Lab makes: recipes and sampling settings have their defaults there."""
    line = "temperature: float = Field(default=1.0, ge=0)"
    before, after = rerun_with(copy_of_the_code, tmp_path, line, f"{line}  # changed")
    assert kinds_added(before, after) == set(before.artifacts)
    assert all(after.records[name] != written for name, written in before.records.items())
    assert {name for name, written in after.report.items() if written == before.report[name]} == set()


@pytest.mark.slow
def test_a_line_of_the_seed_derivation_makes_again_what_is_drawn(copy_of_the_code: Path, tmp_path: Path) -> None:
    """Not the first weights, whose seed the experiment gives: of `policies` there is one that stays."""
    before, after = rerun_with(copy_of_the_code, tmp_path, "str(self.seed), *purpose", 'str(self.seed), "anew", *purpose')
    assert kinds_added(before, after) == set(before.artifacts)
    n_before = len(before.artifacts["policies"])
    assert len(after.artifacts["policies"]) == 2 * n_before - 1
    assert all(after.records[name] != written for name, written in before.records.items())
    assert after.text != before.text
