"""Sizes solved: on curves by hand, on the tiny world's counting Lab, and kept for a run."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_world import RJS, SMALL_TURN, tiny_task, tiny_tree

from apo_bench.config.schema import Experiment
from apo_bench.errors import InputError, NotHere
from apo_bench.plan import match_spend
from apo_bench.plan.match_spend import MatchedArm, overrides, read_or_size, save, size_arms, solve, with_sizes

PLAYER = {"use": RJS, "rounds": 1, **SMALL_TURN}


def experiment(**rjs: Any) -> Experiment:
    """The tiny experiment, with its arm rjs as given."""
    tree = tiny_tree()
    tree["arms"]["rjs"] = {**PLAYER, **rjs}
    return Experiment.model_validate_json(json.dumps(tree))


def fit(by: str, **fields: Any) -> dict[str, Any]:
    return {"to": "apo_rjs", "by": by, **fields}


def counted(curve: Callable[[float], float]) -> tuple[Callable[[float], float], list[float]]:
    values: list[float] = []

    def spent(value: float) -> float:
        values.append(value)
        return curve(value)

    return spent, values


@pytest.mark.parametrize(
    ("curve", "target", "value"),
    [
        (lambda n: 5 + 3 * n, 47, 14),  # exactly
        (lambda n: 5 + 3 * n, 48, 14),  # 47 is nearer than 50
        (lambda n: 5 + 3 * n, 49, 15),
        (lambda n: n * n, 1000, 32),  # 31: 961, 32: 1024
        (lambda n: 100 + n / 10, 5000, 49_000),  # far off
        (lambda n: 10 + n, 11, 1),
    ],
)
def test_whole_numbers_by_hand(curve: Any, target: float, value: int) -> None:
    spent, values = counted(curve)
    assert solve(spent, target, whole=True)[0] == value
    assert all(float(value).is_integer() for value in values)


@pytest.mark.parametrize(("curve", "target"), [(lambda x: 2 + x, 9.7), (lambda x: x**3, 4000), (lambda x: 8 * x, 0.5)])
def test_other_numbers_come_within_one_percent(curve: Any, target: float) -> None:
    value, limit = solve(curve, target, whole=False, start=1.5)
    assert curve(value) == pytest.approx(target, rel=0.01)
    assert not limit


def test_the_ends_are_reported() -> None:
    """No value above 12 can be had: 12 spends 24 of 100. And 1 spends 2 where 1 was asked for."""

    def spent(n: float) -> float:
        if n > 12:
            raise InputError("no more than 12")
        return 2 * n

    value, limit = solve(spent, 100, whole=True)
    assert (value, limit) == (12, "13: no more than 12")
    assert solve(spent, 1, whole=True) == (1, "1 is the least that is tried")


def test_what_does_not_grow_is_refused() -> None:
    with pytest.raises(InputError, match="does not grow with it: 10 at 1, 10 at"):
        solve(lambda n: 10, 20, whole=True)


@pytest.mark.slow
def test_samples_sized_by_hand() -> None:
    """apo_rjs samples 2 rounds of 6 golden x 2 and 8 prompts x 2: 56. rjs samples 8 prompts x n in one round: n = 7 is 56 exactly."""
    sizes = size_arms(experiment(fit=fit("samples_per_prompt", unit="sampled_responses")), tiny_task(), None)
    assert sizes == {"rjs": MatchedArm("rjs", "apo_rjs", "sampled_responses", "samples_per_prompt", 7, 1.0, ((6, 48 / 56), (8, 64 / 56)))}
    assert overrides(sizes) == {"arms.rjs.samples_per_prompt": 7}


@pytest.mark.slow
def test_rounding_is_the_nearest_and_reported() -> None:
    """56 of apo_rjs's samples over 2 x 8 a round are 3.5 rounds: as near as 3 is 4, and the first of equals is taken."""
    (size,) = size_arms(experiment(fit=fit("rounds", unit="sampled_responses")), tiny_task(), None).values()
    assert (size.value, size.ratio, size.beside) == (3, 48 / 56, ((2, 32 / 56), (4, 64 / 56)))


@pytest.mark.slow
@pytest.mark.parametrize(("by", "whole"), [("samples_per_prompt", True), ("epochs", False)])
def test_flops_include_everything(by: str, whole: bool) -> None:
    """The sized arm, planned, spends the reported ratio of what the other does, reward model and all."""
    from apo_bench.plan.make_plan import plan

    question = experiment(fit=fit(by))
    (size,) = size_arms(question, tiny_task(), None).values()
    used = plan(question, tiny_task()).used()
    assert used["rjs"]["flops"] / used["apo_rjs"]["flops"] == pytest.approx(size.ratio, rel=1e-3)
    assert size.ratio == pytest.approx(1, rel=0.1 if whole else 0.02)  # an epoch more is whole updates more


@pytest.mark.slow
def test_a_players_parameter_is_dotted() -> None:
    tree = tiny_tree()
    tree["arms"]["refresh"] = {**tree["arms"]["apo_rjs"], "opponent": "initial", "fit": {"to": "rjs", "by": "player.prompts_per_round"}}
    tree["arms"]["rjs"] |= {"rounds": 6, "samples_per_prompt": 8}
    question = Experiment.model_validate_json(json.dumps(tree))
    sizes = size_arms(question, tiny_task(), None)
    arm = with_sizes(question, sizes).arms["refresh"]
    assert arm.parameters["player"]["prompts_per_round"] == sizes["refresh"].value
    assert arm.fit == question.arms["refresh"].fit
    assert sizes["refresh"].ratio == pytest.approx(1, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"fit": fit("bla")}, r"arms.rjs.fit.by: bla is no number.* unknown parameter 'bla'"),
        ({"fit": fit("player.epochs")}, r"arms.rjs.fit.by: player.epochs is no number.* the arm gives no player"),
        ({"fit": fit("budget.flops")}, r"arms.rjs.fit.by: budget.flops: no parameter of a method"),
        ({"fit": fit("learning_rate")}, r"arms.rjs.fit.by: learning_rate: the spending does not grow with it"),
        (
            {"fit": fit("samples_per_prompt"), "budget": {"sampled_responses": 24}},
            r"cannot be reached.* rjs with 3 spends .*; 4: the arm's own budget forbids it: .* arm rjs, unit sampled_responses",
        ),
        ({"fit": fit("rounds", unit="rm_updates")}, r"arms.rjs.fit.by: rounds: the spending does not grow with it"),
        ({"rounds": 1, "samples_per_prompt": 64, "fit": fit("rounds", unit="scored_responses")}, r"cannot be reached.* 1 is the least"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:40],
)
def test_what_cannot_be_sized(arm: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        size_arms(experiment(**arm), tiny_task(), None)
    assert str(error.value).startswith("arms.rjs.fit.by: ")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_most_that_the_task_allows_is_reported() -> None:
    """Six rounds of 28 samples are 168; with one of each of the policy split's 134 prompts, rjs comes to 134."""
    tree = tiny_tree()
    tree["arms"]["rjs"] |= {"samples_per_prompt": 1, "fit": fit("prompts_per_round", unit="sampled_responses")}
    tree["arms"]["apo_rjs"]["rounds"] = 6
    message = "apo_rjs spends 168 sampled_responses, rjs with 134 spends 134; 135: prompts of the policy split: 135 asked for, 134 there"
    with pytest.raises(InputError, match=f"cannot be reached: {message}"):
        size_arms(Experiment.model_validate_json(json.dumps(tree)), tiny_task(), None)


@pytest.mark.slow
def test_opponents_are_no_number() -> None:
    tree = tiny_tree()
    tree["arms"]["apo_rjs"]["fit"] = {"to": "rjs", "by": "opponent"}
    with pytest.raises(InputError, match=r"arms.apo_rjs.fit.by: opponent is no number.*'current' or 'initial'"):
        size_arms(Experiment.model_validate_json(json.dumps(tree)), tiny_task(), None)


@pytest.mark.slow
def test_why_the_other_arm_would_fail_is_reported() -> None:
    tree = tiny_tree()
    tree["arms"]["rjs"]["fit"] = fit("rounds")
    tree["arms"]["apo_rjs"]["budget"] = {"sampled_responses": 5}
    with pytest.raises(InputError, match=r"^arms.apo_rjs: the arm's own budget forbids it"):
        size_arms(Experiment.model_validate_json(json.dumps(tree)), tiny_task(), None)


@pytest.mark.slow
def test_flops_of_a_model_that_is_not_here_are_not_known() -> None:
    tree = tiny_tree()
    tree["arms"]["rjs"]["fit"] = fit("rounds")
    tree["models"]["policy"] = {"path": "nobody/nothing", "training": {"learning_rate": 1e-3}, "sampling": {"max_new_tokens": 10}}
    with pytest.raises(NotHere, match=r"arms.rjs.fit: flops cannot be counted"):
        size_arms(Experiment.model_validate_json(json.dumps(tree)), tiny_task(), None)


@pytest.mark.slow
def test_sizes_are_kept_and_hold_as_long_as_their_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever value the file (or an override) gives of the sized parameter, it is the same question; another budget is another."""
    question = experiment(fit=fit("samples_per_prompt", unit="sampled_responses"))
    sizes = read_or_size(tmp_path, question, tiny_task(), tmp_path)
    assert not list(tmp_path.iterdir())
    save(tmp_path, question, tiny_task(), tmp_path, sizes)
    monkeypatch.setattr(match_spend, "size_arms", lambda *_: pytest.fail("solved again"))
    for same in (question, with_sizes(question, sizes), question.model_copy(update={"name": "other"})):
        assert read_or_size(tmp_path, same, tiny_task(), tmp_path) == sizes
    monkeypatch.undo()
    fewer = question.model_copy(update={"budget": {"human_pairs": 32, "golden_responses": 3}})
    resized = read_or_size(tmp_path, fewer, tiny_task(), tmp_path)["rjs"]
    assert (
        resized.value == 5
    )  # 2 x (3 x 2 + 16) = 44 over 8: 5.5, and 5 is as near as 6  # 2 x (3 x 2 + 16) = 44 over 8: 5.5, and 5 is as near as 6
    (tmp_path / "store" / "fits.json").write_text('{"key"')
    assert read_or_size(tmp_path, question, tiny_task(), tmp_path) == sizes


@pytest.mark.slow
def test_kept_sizes_are_read_without_torch(tmp_path: Path) -> None:
    question = experiment(fit=fit("samples_per_prompt", unit="sampled_responses"))
    save(tmp_path, question, tiny_task(), tmp_path, size_arms(question, tiny_task(), tmp_path))
    (tmp_path / "question.json").write_text(question.model_dump_json())
    code = """
import sys
from pathlib import Path
from apo_bench.config.schema import Experiment
from apo_bench.plan.match_spend import read_or_size
from apo_bench.data.task import load_task
folder = Path(sys.argv[1])
question = Experiment.model_validate_json((folder / "question.json").read_text())
task = load_task(question.task.use, question.task.options, base=None)
print(read_or_size(folder, question, task, folder)["rjs"].value, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["7", "False"]
