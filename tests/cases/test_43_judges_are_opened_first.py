"""A judge that cannot judge (no folder, no class, no tokenizer, no weights): one line before anything is asked or spent."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from foreign_models import change_config, policy_folder, reward_folder

from apo_bench.config.schema import JudgeChoice
from apo_bench.errors import InputError
from apo_bench.judging.judge_protocol import JudgeContext
from apo_bench.judging.load_judges import open_judge

LOCAL, REWARD = "apo_bench.judging.local_judge@LocalJudge", "apo_bench.judging.reward_judge@RewardModelJudge"


def opened(use: str, **parameters: Any) -> Any:
    return open_judge("j", JudgeChoice(use=use, **parameters), JudgeContext())  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("use", "parameters", "reason"),
    [
        (LOCAL, {"path": "/no/such"}, "no such model folder"),
        (LOCAL, {"path": "./no/such"}, "no such model folder"),
        (LOCAL, {"path": ""}, "no such model folder"),
        (REWARD, {"path": "/no/such"}, "no such model folder"),
        ("apo_bench.judging.local_judge@Absent", {}, "has no class 'Absent'"),
        ("apo_bench.judging.local_judge@TYPE_CHECKING", {}, "has no class"),
        ("apo_bench.judging.absent@Judge", {}, "no such module"),
        ("apo_bench.judging.judge_protocol@Question", {"prompt": 1, "first": "", "second": ""}, "a judge has open"),
        ("absent.py@Judge", {}, "no such file"),
        (LOCAL, {"path": "/tmp", "batch_size": 0}, "batch_size"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(use: str, parameters: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=rf"^judges\.j.*{reason}") as caught:
        opened(use, **parameters)
    assert len(str(caught.value).splitlines()) == 1


BROKEN: dict[str, Callable[[Path], Any]] = {
    "config.json is a list": lambda folder: (folder / "config.json").write_text("[]"),
    "no config.json": lambda folder: (folder / "config.json").unlink(),
    "no tokenizer": lambda folder: [path.unlink() for path in folder.glob("*token*")],
    "hidden_size -5": lambda folder: change_config(folder, hidden_size=-5),
    "hidden_size 2147483648": lambda folder: change_config(folder, hidden_size=2**31),
    "custom code": lambda folder: change_config(folder, model_type="own", auto_map={"AutoConfig": "own.Config"}),
    "no weights": lambda folder: [path.unlink() for path in folder.glob("*.safetensors")],
}


@pytest.mark.slow
@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("use", [LOCAL, REWARD])
def test_a_broken_folder_is_refused_when_the_judge_is_opened(use: str, broken: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (policy_folder if use == LOCAL else reward_folder)(folder)
    BROKEN[broken](folder)
    with pytest.raises(InputError, match=r"^judges\.j") as caught:
        opened(use, path=str(folder))
    assert str(folder) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_a_whole_folder_is_opened(tmp_path: Path) -> None:
    for use, folder in ((LOCAL, policy_folder(tmp_path / "policy")), (REWARD, reward_folder(tmp_path / "reward"))):
        assert opened(use, path=str(folder)).identity["kind"] in ("local", "reward model")
