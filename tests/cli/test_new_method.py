"""`apo-bench new-method`: what it writes works, and it writes over nothing. The tutorial about it is followed in test_wheel.py."""

from pathlib import Path

import pytest

from apo_bench.cli.new_method import write_method
from apo_bench.config.load import load_experiment
from apo_bench.config.plugins import resolve
from apo_bench.errors import InputError
from apo_bench.evaluation.method_contract import find_forbidden_access
from apo_bench.run.validate import check_experiment


@pytest.mark.slow
def test_what_is_written_passes_check(tmp_path: Path) -> None:
    method, experiment = write_method("my_way", tmp_path / "new")
    assert (method.name, experiment.name) == ("my_way.py", "my_way.yaml")
    (note,) = check_experiment(experiment)
    assert note.startswith("code, not of apo-bench: ")
    loaded = load_experiment(experiment)
    assert list(loaded.arms) == ["my_way", "rejection_sampling"]
    assert loaded.arms["my_way"].use == "my_way.py@MyWay"
    for text in (method.read_text(), experiment.read_text()):
        assert not {"NAME", "CLASS"} & set(text.replace(":", " ").split())


def test_the_method_may_be_a_player_and_knows_nothing_but_the_lab(tmp_path: Path) -> None:
    method, _ = write_method("my_way", tmp_path)
    result = resolve("my_way.py@MyWay", {"share": 0.25}, base=tmp_path)
    assert callable(result.run)
    assert callable(result.update)
    assert find_forbidden_access(method.read_text()) is None
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
