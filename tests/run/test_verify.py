"""A published result made again in part: the draw, what is refused, and a real run that its own report lets others check."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from command_line import write_experiment
from hypothesis import given
from hypothesis import strategies as st
from tiny_world import tiny_tree

from apo_bench.analysis.verification import BEYOND, SAME
from apo_bench.config.load import load_experiment
from apo_bench.errors import InputError
from apo_bench.run import run_experiment
from apo_bench.run.verify import EXPERIMENT, SCORES, draw_arm_seeds, verify


@given(st.integers(1, 60), st.floats(0.001, 1), st.integers(0, 5))
def test_a_draw_has_its_size_no_repeats_and_comes_again(n: int, share: float, seed: int) -> None:
    arm_seeds = [(f"arm{place % 3}", place // 3) for place in range(n)]
    drawn = draw_arm_seeds(arm_seeds, share, seed)
    assert drawn == draw_arm_seeds(arm_seeds, share, seed)
    assert len(drawn) == len(set(drawn)) >= 1
    assert share * n <= len(drawn) < share * n + 1
    assert set(drawn) <= set(arm_seeds)


@pytest.mark.parametrize("share", [0, -0.1, 1.01, float("nan")])
def test_shares_that_are_none(share: float) -> None:
    with pytest.raises(InputError, match="a share above 0 and at most 1"):
        draw_arm_seeds([("a", 0)], share, 0)


def test_a_folder_without_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"report/rerun\.yaml: no such file"):
        verify(tmp_path, tmp_path / "out")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report alone of a run whose arms are tuned."""
    folder = tmp_path_factory.mktemp("published")
    tree: dict[str, Any] = tiny_tree()
    tree["models"]["reward"], tree["models"]["gold"][0]["seeds"] = {"kind": "ngram"}, [0]
    tree["arms"] = {"rjs": tree["arms"]["rjs"], "more": {**tree["arms"]["rjs"], "samples_per_prompt": 3}}
    tree["evaluation"]["dev_prompts"] = 4
    tree["tune"] = {"trials": 2, "seeds": [9], "grids": {arm: {"learning_rate": [1e-2, 2e-2]} for arm in tree["arms"]}}
    tree["compare"] = {"primary": [{"a": "more", "b": "rjs"}]}
    run_experiment(write_experiment(folder, tree), out=folder / "run", workers=1)
    (folder / "results").mkdir()
    shutil.copytree(folder / "run" / "report", folder / "results" / "report")
    return folder / "results"


@pytest.mark.slow
def test_what_is_published_can_be_made_again_row_for_row(published: Path, tmp_path: Path) -> None:
    """All four arm-seeds, without the tuning: the settings that it chose stand in report/rerun.yaml."""
    assert load_experiment(published / EXPERIMENT).tune is None
    result = verify(published, tmp_path / "again", share=1.0, workers=1)
    assert (len(result.drawn), result.n_published, result.failures) == (4, 4, ())
    assert set(result.scores["verdict"]) == {SAME}
    assert set(result.scores["scorer"]) >= {"proxy", "linear", "linear.0", "ground_truth"}
    assert result.agrees
    assert not (tmp_path / "again" / "store" / "trials").exists()


@pytest.mark.slow
def test_scores_that_nobody_can_make_again_are_noticed(published: Path, tmp_path: Path) -> None:
    """The mean of every rjs is raised by 5000 and its rows' hash is another: seeds differ by far less."""
    shutil.copytree(published, tmp_path / "raised")
    path = tmp_path / "raised" / SCORES
    scores = pd.read_csv(path)
    raised = scores["arm"] == "rjs"
    scores.loc[raised, "mean"] += 5000.0
    scores.loc[raised, "rows"] = "0" * 16
    scores.to_csv(path, index=False)
    result = verify(tmp_path / "raised", tmp_path / "again", share=1.0, workers=1)
    assert not result.agrees
    assert BEYOND in set(result.scores.loc[result.scores["arm"] == "rjs", "verdict"])
    assert set(result.scores.loc[result.scores["arm"] == "more", "verdict"]) == {SAME}
