"""Names beyond ASCII where the locale knows none, and names that are no UTF-8."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import MAIN, PATIENCE_S, write_experiment
from tiny_world import smallest_tree

C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def command(folder: Path | bytes, *words: str | bytes | Path, **environment: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command line in a folder."""
    known = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path), **environment}
    done = subprocess.run([sys.executable, "-c", MAIN, *words], cwd=folder, env=known, capture_output=True, timeout=PATIENCE_S)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.slow
def test_a_run_in_a_folder_beyond_ascii_with_the_locale_c(tmp_path: Path) -> None:
    folder = tmp_path / "\u00fc" / "\u65e5\u672c"
    write_experiment(folder, smallest_tree())
    assert command(folder, "check", "tiny.yaml", **C_LOCALE)[0] == 0
    status, shown, errors = command(folder, "run", "tiny.yaml", "--workers", "1", "--out", "r\u00fc", **C_LOCALE)
    assert (status, errors.splitlines()[-1:] if status else []) == (0, [])
    assert (folder / "r\u00fc" / "report" / "report.md").is_file()
    assert str(folder) in shown or "r\u00fc" in shown
    assert command(folder, "report", "r\u00fc", **C_LOCALE)[0] == 0
    assert command(folder, "report", "r\u00fc", PYTHONIOENCODING="ascii")[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, C_LOCALE])
def test_a_name_that_is_no_utf_8_is_one_line(environment: dict[str, str], tmp_path: Path) -> None:
    """As an argument, and as the working directory."""
    folder = os.fsencode(tmp_path) + b"/\xfc"
    os.mkdir(folder)
    for where, words in ((tmp_path, (folder + b"/tiny.yaml",)), (folder, (b"tiny.yaml",))):
        status, _, errors = command(where, b"check", *words, **environment)
        assert (status, len(errors.splitlines())) == (2, 1)
        assert "the name is not UTF-8" in errors
