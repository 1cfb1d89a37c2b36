"""`apo-bench new-method`: what it writes works, and it writes over nothing. The tutorial about it is followed in test_wheel.py."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pages import environment

from apo_bench.cli.new_method import KINDS, Kind, write_method
from apo_bench.config.load import load_experiment
from apo_bench.config.plugins import resolve
from apo_bench.config.python_files import load_python_file
from apo_bench.errors import InputError
from apo_bench.evaluation.method_contract import find_forbidden_access
from apo_bench.losses import OnlineAlgorithm, Rollouts, View
from apo_bench.run.validate import check_experiment

FIELDS = {"NAME", "CLASS", "ARM", "RIVAL", "RIVAL_ARM", "METHOD", "PARAMETERS"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "use", "rival"),
    [
        ("player", "my_way.py@MyWay", "rejection_sampling"),
        ("loss", "baselines/preference.py@Preference", "sigmoid"),
        ("online", "baselines/online.py@Online", "rloo"),
    ],
)
def test_what_is_written_passes_check(kind: Kind, use: str, rival: str, tmp_path: Path) -> None:
    paths = write_method("my_way", tmp_path / "new", kind)
    assert [path.name for path in paths] == ["my_way.py", "my_way.yaml", "test_my_way.py"]
    (note,) = check_experiment(paths[1])
    assert note.startswith("code, not of apo-bench: ")
    loaded = load_experiment(paths[1])
    assert list(loaded.arms) == ["my_way", rival]
    assert loaded.arms["my_way"].use == use
    for path in paths:
        assert not FIELDS & set(re.findall(r"[A-Z_]+", path.read_text())), path.name


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_its_own_test_passes(kind: Kind, tmp_path: Path) -> None:
    """The contract, run as a user runs it: pytest in the folder where it was written."""
    path = write_method("my_way", tmp_path, kind)[2]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", path.name], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_it_knows_nothing_but_what_methods_may(kind: Kind, tmp_path: Path) -> None:
    assert find_forbidden_access(write_method("my_way", tmp_path, kind)[0].read_text()) is None


def test_the_loss_is_dpo_with_a_margin(tmp_path: Path) -> None:
    """Log-ratios of 2 and -1 under beta 0.1 are 0.3, less 0.5: -log sigmoid(-0.2) = log(1 + e^0.2) = 0.79814."""
    write_method("my_loss", tmp_path, "loss")
    method = resolve("baselines/preference.py@Preference", {"loss": {"use": "my_loss.py@MyLoss", "margin": 0.5}}, base=tmp_path)
    ones = torch.ones(1, 2, 1)
    view = View(torch.tensor([[[2.0], [-1.0]]]), ones, {"reference_logps": torch.zeros(1, 2, 1)})
    assert method.loss(view).tolist() == pytest.approx([0.798139], abs=1e-6)


def test_the_online_algorithm_is_clipped(tmp_path: Path) -> None:
    """Scores 1, 3 lie 1 below and above their mean, a mean deviation of 1. Ratios 2 and e^0 over two tokens, advantage 1, clipped at 1.2:
    -(1.2 + 1) / 2."""
    write_method("my_way", tmp_path, "online")
    algorithm = load_python_file(tmp_path / "my_way.py").MyWay()
    assert isinstance(algorithm, OnlineAlgorithm)
    rollouts = Rollouts(torch.tensor([[1.0, 3.0]]), torch.ones(1, 2, 2), torch.ones(1, 2, dtype=torch.bool))
    assert algorithm.advantages(rollouts).tolist()[0] == pytest.approx([-1, 1], abs=1e-3)
    now = torch.tensor([[[2.0, 1.0]]]).log()
    view = View(now, torch.ones(1, 1, 2), {"old_logps": torch.zeros(1, 1, 2), "advantages": torch.ones(1)})
    assert algorithm(view).tolist() == pytest.approx([-1.1])


def test_the_method_may_be_a_player(tmp_path: Path) -> None:
    write_method("my_way", tmp_path)
    result = resolve("my_way.py@MyWay", {"share": 0.25}, base=tmp_path)
    assert callable(result.run)
    assert callable(result.update)
    with pytest.raises(InputError, match=r"share: at most 1, got 2"):
        resolve("my_way.py@MyWay", {"share": 2.0}, base=tmp_path)


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("mine")
    with pytest.raises(InputError, match=r"mine\.yaml is there already; nothing was written$"):
        write_method("mine", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
    assert (tmp_path / "mine.yaml").read_text() == "mine"


@pytest.mark.parametrize("name", ["", "Mine", "1st", "a-b", "a b", "../a", "a.py", "class", "_a", "a__b", "a_", "ä", "a\n"])
def test_odd_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a name has small letters"):
        write_method(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_rivals_name_is_taken(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="that is the method it is compared with"):
        write_method("rejection_sampling", tmp_path)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^new-method mine: .*file"):
        write_method("mine", tmp_path / "file")
