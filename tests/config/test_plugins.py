"""`use:` and parameters -> methods; every error is one line that names arm and key."""

import sys
from pathlib import Path
from typing import Any

import pytest

from apo_bench.config.plugins import resolve, source_files
from apo_bench.errors import InputError
from apo_bench.package_data import find_beside, shipped_root

METHOD = """
from dataclasses import dataclass, field
from typing import Literal

from apo_bench.config.schema import Sampling
from apo_bench.lab import PolicyUpdate


@dataclass(frozen=True)
class Player:
    rate: float = 0.5

    def update(self, lab, policy, reward_model, draw):
        return policy


@dataclass(frozen=True)
class Method:
    rounds: int
    player: PolicyUpdate | None = None
    mode: Literal["a", "b"] = "a"
    shares: tuple[float, ...] = (1.0,)
    sampling: Sampling | None = None
    derived: int = field(default=7, init=False)

    def __post_init__(self):
        if self.rounds < 1:
            raise ValueError("rounds: at least one")

    def run(self, lab):
        pass


@dataclass
class Melting:
    def run(self, lab):
        pass


@dataclass(frozen=True)
class Idle:
    pass


class Plain:
    def run(self, lab):
        pass
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(METHOD)
    return tmp_path


def build(base: Path, use: str = "mine.py@Method", **parameters: Any) -> Any:
    return resolve(use, parameters, base=base, arm="arm")


def refusal(base: Path, use: str = "mine.py@Method", **parameters: Any) -> str:
    with pytest.raises(InputError) as caught:
        build(base, use, **parameters)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith("arm")
    return message


def test_a_file_is_a_method_with_its_parameters(base: Path) -> None:
    method = build(base, rounds=2, mode="b", shares=[0.5, 1], sampling={"max_new_tokens": 3})
    assert (method.rounds, method.mode, method.shares, method.derived) == (2, "b", (0.5, 1.0), 7)
    assert method.sampling.max_new_tokens == 3


def test_a_mapping_with_use_is_a_method_too(base: Path) -> None:
    method = build(base, rounds=1, player={"use": "mine.py@Player", "rate": 0.25})
    assert (type(method.player).__name__, method.player.rate) == ("Player", 0.25)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"rounds": 1, "depth": 2}, "arm: unknown parameter 'depth' of Method; it has: rounds, player, mode, shares, sampling"),
        ({"rounds": 1, "derived": 2}, "arm: unknown parameter 'derived' of Method"),
        ({}, "arm: Method needs the parameter 'rounds'"),
        ({"rounds": "2"}, "arm.rounds: a whole number is needed"),
        ({"rounds": True}, "arm.rounds: a whole number is needed"),
        ({"rounds": 1.5}, "arm.rounds: "),
        ({"rounds": None}, "arm.rounds: "),
        ({"rounds": {1, 2}}, "arm: Method: TypeError"),
        ({"rounds": 0}, "arm: Method: ValueError: rounds: at least one"),
        ({"rounds": 1, "mode": "c"}, "arm.mode: 'a' or 'b' is needed (got 'c')"),
        ({"rounds": 1, "shares": [0.5, "x"]}, "arm.shares.1: a number is needed (got 'x')"),
        ({"rounds": 1, "shares": [float("nan")]}, "arm.shares.0: "),
        ({"rounds": 1, "sampling": {"max_new_tokens": 0}}, "arm.sampling.max_new_tokens: 1 or more is needed (got 0)"),
        ({"rounds": 1, "player": 3}, "arm.player: expected a method or a loss, as a mapping with `use`"),
        ({"rounds": 1, "player": {"use": "mine.py@Player", "rat": 1}}, "arm.player: unknown parameter 'rat' of Player"),
        ({"rounds": 1, "player": {"use": "mine.py@Method", "rounds": 1}}, "arm.player: "),  # has no update
        ({"rounds": 1, "player": {"use": 7}}, "arm.player: use: a method is module@Class or file.py@Class"),
    ],
)
def test_bad_parameters(base: Path, parameters: dict[str, Any], expected: str) -> None:
    assert expected in refusal(base, **parameters)


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        ("mine.py", "use: a method is module@Class or file.py@Class"),
        ("absent.py@Method", "use: absent.py: no such file"),
        ("mien.py@Method", "or among the shipped methods; did you mean 'mine.py'?"),
        ("baselines/rejection_samplng.py@RJS", "did you mean 'baselines/rejection_sampling.py'?"),
        ("mine.py@Absent", "has no class 'Absent'; it has: Player, Method, Melting, Idle"),
        ("mine.py@METHOD", "has no class 'METHOD'"),
        ("mine.py@Melting", "a method is a frozen dataclass"),
        ("mine.py@Plain", "a method is a frozen dataclass"),
        ("mine.py@Idle", "a method has run(lab) or update(lab, policy, reward_model, draw)"),
        ("no_such_module.inside@Method", "use: no_such_module.inside: cannot be imported: ModuleNotFoundError"),
        ("no_such_module@Method", "use: no_such_module: no such module"),
        ("sys@Method", "use: sys: no such module"),
        (".lab@Method", "use: .lab: cannot be imported"),
        ("apo_bench.apo@Absent", "has no class 'Absent'; it has: APO"),
    ],
)
def test_bad_use(base: Path, use: str, expected: str) -> None:
    assert expected in refusal(base, use)


@pytest.mark.parametrize("source", ["def broken(:", "raise RuntimeError('two\\nlines')", "import absent_package", "exit(3)", "x = 1\0"])
def test_a_file_that_cannot_be_imported_is_one_line_naming_it(base: Path, source: str) -> None:
    (base / "broken.py").write_text(source)
    assert f"{base / 'broken.py'}: cannot be imported" in refusal(base, "broken.py@Method")
    assert not [name for name in sys.modules if "broken" in name and "apo_bench_method" in name]


def test_annotations_that_name_nothing_are_one_line(base: Path) -> None:
    (base / "odd.py").write_text(METHOD.replace("rounds: int", "rounds: 'Integer'"))
    assert "arm: Method: NameError" in refusal(base, "odd.py@Method", rounds=1)


def test_equal_file_names_do_not_meet_and_a_changed_file_is_read_again(base: Path) -> None:
    (base / "a").mkdir()
    (base / "a" / "mine.py").write_text(METHOD.replace('"a"', '"A"'))
    assert build(base, rounds=1).mode == "a"
    assert build(base / "a", rounds=1).mode == "A"
    (base / "mine.py").write_text(METHOD.replace('"a"', '"Z"'))
    assert build(base, rounds=1).mode == "Z"
    assert type(build(base, rounds=1)) is type(build(base, rounds=2))
    assert "mine" not in sys.modules
    assert not list(base.rglob("__pycache__"))


def test_source_files_name_the_method_and_its_players_once(base: Path) -> None:
    player = {"use": "baselines/iterative_dpo.py@DPO"}
    files = source_files("apo_bench.apo@APO", {"player": player, "rounds": 2}, base=base)
    assert files == (shipped_root() / "apo_bench" / "apo.py", shipped_root() / "baselines" / "iterative_dpo.py")
    assert source_files("mine.py@Method", {"rounds": 1, "player": {"use": "mine.py@Player"}}, base=base) == (base.resolve() / "mine.py",)


def test_shipped_methods_resolve_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    method = resolve("apo_bench.apo@APO", {"player": {"use": "baselines/iterative_dpo.py@DPO", "beta": 0.2}}, base=None)
    assert method.player.beta == 0.2


def test_look_up_goes_from_beside_the_experiment_to_the_working_directory_to_shipped_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, here = tmp_path / "beside", tmp_path / "here"
    for folder in (beside, here):
        (folder / "baselines").mkdir(parents=True)
        (folder / "baselines" / "iterative_dpo.py").touch()
    monkeypatch.chdir(here)
    assert find_beside("baselines/iterative_dpo.py", beside) == beside / "baselines" / "iterative_dpo.py"
    (beside / "baselines" / "iterative_dpo.py").unlink()
    assert find_beside("baselines/iterative_dpo.py", beside) == here / "baselines" / "iterative_dpo.py"
    (here / "baselines" / "iterative_dpo.py").unlink()
    assert find_beside("baselines/iterative_dpo.py", beside) == shipped_root() / "baselines" / "iterative_dpo.py"
    assert find_beside("baselines/absent.py", beside) is None
    assert find_beside(tmp_path / "absent.py", beside) is None
