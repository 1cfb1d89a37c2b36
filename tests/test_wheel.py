"""The wheel: built, unpacked outside the checkout, and used from there. The tutorial on methods is followed with it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pages import DOCS, ROOT, environment, follow

pytestmark = pytest.mark.slow

COMMAND = "#!{python}\nfrom apo_bench.cli.main import main\n\nif __name__ == '__main__':\n    main()\n"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str] | None:
    """The environment of somebody who has the wheel and no checkout: built from the sources, installed into a folder of its own.

    None where hatchling is not installed: then no wheel can be built without a network.
    """
    if importlib.util.find_spec("hatchling") is None:
        return None
    place = tmp_path_factory.mktemp("wheel")
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    pip = [sys.executable, "-m", "pip"]
    _run([*pip, "wheel", *quiet, "--no-build-isolation", "--no-index", "--wheel-dir", str(place / "built"), str(ROOT)])
    (wheel,) = (place / "built").glob("apo_bench-*.whl")
    _run([*pip, "install", *quiet, "--no-index", "--target", str(place / "site"), str(wheel)])
    command = place / "bin" / "apo-bench"  # pip gives --target's scripts a folder that is on nobody's path
    command.parent.mkdir()
    command.write_text(COMMAND.format(python=sys.executable))
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{environment()['PATH']}"
    return environment(PYTHONPATH=str(place / "site"), PATH=path)


def _run(words: list[str], **more: object) -> str:
    done = subprocess.run(words, capture_output=True, text=True, **more)  # pyright: ignore
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_what_ships_is_in_it_and_nothing_else_is(installed: dict[str, str] | None, tmp_path: Path) -> None:
    """Methods, tasks, experiments and templates; no tests, no results of ours. Shipped experiments pass check, from any folder."""
    if installed is None:
        pytest.skip("hatchling is not installed (extra dev)")
    site = Path(installed["PYTHONPATH"])
    code = "import apo_bench; print(apo_bench.__file__)"
    assert _run([sys.executable, "-c", code], cwd=tmp_path, env=installed).strip() == str(site / "apo_bench" / "__init__.py")
    shipped = site / "apo_bench" / "_shipped"
    for kind, pattern in (("baselines", "*.py"), ("experiments", "*.yaml"), ("tasks", "*/*.yaml")):
        ours = {path.relative_to(ROOT) for path in (ROOT / kind).glob(pattern)}
        assert ours == {path.relative_to(shipped) for path in (shipped / kind).glob(pattern)}
    assert (site / "apo_bench" / "cli" / "templates" / "player.py.txt").is_file()
    assert {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} <= {"apo_bench", "bin"}
    assert {path.name for path in (shipped / "results").iterdir()} <= {"published"} if (shipped / "results").exists() else True
    named = [f"experiments/{name}.yaml" for name in ("quickstart", "hh_smollm2", "hh_llama")]  # looked up in the shipped data
    assert _run(["apo-bench", "check", *named], cwd=tmp_path, env=installed).count("ok  ") == len(named)
    assert not list(tmp_path.iterdir())


def test_the_method_tutorial_runs_as_it_stands(installed: dict[str, str] | None, tmp_path: Path) -> None:
    """With the wheel; without one, with this checkout."""
    output = follow(DOCS / "new-method.md", tmp_path, installed or environment())
    assert output.count("clear_best - rejection_sampling") >= 2
    assert "better_than_usual - rejection_sampling" in output
    assert output.count("passed  replayable") == 3  # a loss, an online algorithm, a method
    assert "FAILED" not in output
    assert (tmp_path / "results" / "clear_best" / "report" / "report.md").is_file()
