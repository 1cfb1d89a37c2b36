"""Curves of training over seeds, and their section: figures, a table, csv files and a page, from tables by hand."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from run_folder import frame, scored, write_run

from apo_bench.analysis.results import Run, read_run
from apo_bench.analysis.training import POINTS, fit_losses, loss_curves, step_curves, trial_losses
from apo_bench.report.charts import DENSE, Lines
from apo_bench.report.document import blocks_of
from apo_bench.report.markdown import section_lines
from apo_bench.report.page import svg
from apo_bench.report.sections.training import frames, section

NAN = float("nan")
SCORES = {
    "scores": scored({("rjs", seed, 1): (0, 0) for seed in (0, 1)}),
    "ledger": frame("ledger", [("rjs", 0, "flops", 1.0, NAN)]),
}


def fit(arm: str, seed: int, round_: int, number: int, losses: list[float], model: str = "policy") -> list[tuple[Any, ...]]:
    return [(arm, seed, round_, number, model, f"policies/{arm}{seed}{number}", u, loss) for u, loss in enumerate(losses, 1)]


def step(arm: str, seed: int, number: int, reward: float, kl: float = NAN) -> tuple[Any, ...]:
    return (arm, seed, 1, 1, number, 2, 4, 16, 16, reward, 1.0, kl, 2.0, 9.0, 0.0, NAN, 1.0, 0.5, 1e-4, 144, 200)


def run_of(folder: Path, training: list[tuple[Any, ...]], steps: list[tuple[Any, ...]] | None = None) -> Run:
    tables = {**SCORES, "training": frame("training", training)} | ({"steps": frame("steps", steps)} if steps else {})
    return read_run(write_run(folder / "run", tables))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """rjs has two rounds of two updates in either seed, apo_rjs was trained online."""
    training = [
        *fit("rjs", 0, 1, 1, [4.0, 2.0]), *fit("rjs", 0, 2, 2, [3.0, 1.0]), *fit("rjs", 1, 1, 1, [6.0, 4.0]),
        *fit("rjs", 1, 2, 2, [3.0, 3.0]), *fit("_bench", -1, 0, 1, [5.0]),
    ]  # fmt: skip
    steps = [step("apo_rjs", 0, 1, 1.0), step("apo_rjs", 0, 2, 2.0, kl=0.5), step("apo_rjs", 1, 1, 2.0), step("apo_rjs", 1, 2, 4.0, kl=1.5)]
    return run_of(tmp_path, training, steps)


def test_losses_of_rounds_follow_one_another(run: Run) -> None:
    """Means of seeds 0 and 1: 5, 3, then 3, 2; the SD of 2 and 4 is 2 / sqrt 2."""
    curves = loss_curves(run)
    assert curves[["arm", "model", "update", "mean", "n_seeds"]].values.tolist() == [
        ["rjs", "policy", 1, 5.0, 2], ["rjs", "policy", 2, 3.0, 2], ["rjs", "policy", 3, 3.0, 2], ["rjs", "policy", 4, 2.0, 2],
    ]  # fmt: skip
    assert curves["seed_sd"].tolist() == pytest.approx([2**0.5, 2**0.5, 0, 2**0.5])


def test_a_fit_begins_and_ends_with_a_loss(run: Run) -> None:
    fits = fit_losses(run)[["arm", "round", "updates", "first", "last"]].values.tolist()
    assert fits == [
        ["apo_rjs", 1, 2.0, 0.5, 0.5], ["rjs", 1, 2.0, 5.0, 3.0], ["rjs", 2, 2.0, 3.0, 2.0], ["_bench", 0, 1.0, 5.0, 5.0],
    ]  # fmt: skip


def test_long_fits_are_as_many_points_as_a_chart_needs(tmp_path: Path) -> None:
    """150 updates with losses 1, ..., 150 are 50 points of three: the first is 2 at update 3. A seed that ends early has the first 20."""
    seeds = [fit("rjs", seed, 1, 1, [float(loss) for loss in range(1, n + 1)]) for seed, n in ((0, 150), (1, 60))]
    curves = loss_curves(run_of(tmp_path, [*seeds[0], *seeds[1]]))
    assert len(curves) == 50 <= POINTS
    assert curves["update"].tolist() == list(range(3, 151, 3))
    assert curves["mean"].tolist() == [float(n) for n in range(2, 151, 3)]
    assert curves["n_seeds"].tolist() == [2] * 20 + [1] * 30


def test_steps_are_curves_by_measure(run: Run) -> None:
    """Reward 1.5 and 3; KL was measured at the second step alone; no ratio was clipped, so there is no such curve."""
    curves = step_curves(run)
    assert curves.loc[curves["measure"] == "reward", ["step", "mean"]].values.tolist() == [[1, 1.5], [2, 3.0]]
    assert curves.loc[curves["measure"] == "kl", ["step", "mean"]].values.tolist() == [[2, 1.0]]
    assert "clip_share" not in set(curves["measure"])


def test_the_section_has_figures_and_a_table(run: Run) -> None:
    blocks = section(run).blocks
    losses, steps = (block for block in blocks if isinstance(block, Lines))
    assert [panel.title for panel in losses.panels] == ["rjs"]
    assert (losses.name, steps.name, steps.names) == ("training_policy", "steps", ("apo_rjs",))
    assert [panel.title.partition(",")[0] for panel in steps.panels] == [
        "reward", "KL to the reference", "loss", "length", "entropy", "norm of the gradient",
    ]  # fmt: skip
    text = "\n".join(section_lines([section(run)], "##"))
    assert "| `rjs` | 1 | policy | 2 | 5.000 ± 1.414 | 3.000 ± 1.414 |" in text
    assert "![Online training by step" in text
    assert list(frames(run)) == ["training_curves", "step_curves"]


@pytest.fixture
def tuned(tmp_path: Path) -> Run:
    """rjs, its A/A control and three of its trials over two fits; the second trial diverges, the third was stopped. apo_rjs: online."""
    training = frame("training", [*fit("rjs", 0, 1, 1, [4.0, 2.0]), *fit("_aa", 1_000_000, 1, 1, [5.0, 3.0])])
    trials = [
        frame("training", [*fit("_tune.rjs", 1000, 1, 1, losses), *fit("_tune.rjs", 1000, 2, 2, later)]).assign(trial=trial)
        for trial, losses, later in ((1, [4.0, 3.0], [2.0, 1.0]), (2, [4.0, 9.0], [20.0, 80.0]))
    ]
    steps = [frame("steps", [step("_tune.apo_rjs", 0, number, 1.0)]).assign(trial=1) for number in (1, 2)]
    tables = {**SCORES, "training": pd.concat([training, *trials]), "steps": pd.concat(steps)}
    settings = [{"rounds": number} for number in (1, 2, 3)]
    rjs = [{"setting": setting, "dev_score": 0.0} for setting in settings[:2]] + [{"setting": settings[2], "error": "the loss is nan"}]
    chosen = {"rjs": {"chosen": settings[0], "trials": rjs}}  # for apo_rjs no setting could be chosen
    return read_run(write_run(tmp_path / "tuned", tables, tuned=chosen))


def test_a_trial_that_diverged_and_one_that_was_stopped_are_seen(tuned: Run) -> None:
    """Of four updates, two fits of two, the first is the first fit's first and the last the last fit's last: a tenth of two is one."""
    missing = {"model": "", "updates": 0} | dict.fromkeys(("first", "last", "lowest", "highest"), -1)
    rows = trial_losses(tuned).drop(columns="error").fillna(missing)
    assert rows.values.tolist() == [
        ["apo_rjs", 1, "", "policy, online", 2, 0.5, 0.5, 0.5, 0.5, False], ["rjs", 1, "rounds = 1", "policy", 4, 4.0, 1.0, 1.0, 4.0, True],
        ["rjs", 2, "rounds = 2", "policy", 4, 4.0, 80.0, 4.0, 80.0, False], ["rjs", 3, "rounds = 3", "", 0, -1, -1, -1, -1, False],
    ]  # fmt: skip
    text = "\n".join(section_lines([section(tuned)], "##"))
    assert "| `rjs` | 1 | rounds = 1 | policy | 4 | 4.000 | 1.000 | 1.000 | 4.000 | chosen |" in text
    assert "| `rjs` | 2 | rounds = 2 | policy | 4 | 4.000 | 80.000 | 4.000 | 80.000 | ends above its start |" in text
    assert "| `rjs` | 3 | rounds = 3 | - | - | - | - | - | - | the loss is nan |" in text


def test_trials_have_a_figure_and_no_part_in_those_of_arms(tuned: Run) -> None:
    """The trials' updates count on from fit to fit: 1 to 4. The control has a panel as an arm has, and a row among the fits."""
    figures = {block.name: block for block in blocks_of([section(tuned)]) if isinstance(block, Lines)}
    assert list(figures) == ["training_policy", "trials_policy", "trials_policy_online"]
    assert [panel.title for panel in figures["training_policy"].panels] == ["rjs", "_aa"]
    (panel,) = figures["trials_policy"].panels
    assert [(line.name, [(point.x, point.y) for point in line.points]) for line in panel.series] == [
        ("trial 1", [(1, 4), (2, 3), (3, 2), (4, 1)]), ("trial 2", [(1, 4), (2, 9), (3, 20), (4, 80)]),
    ]  # fmt: skip
    assert [*fit_losses(tuned)["arm"]] == ["rjs", "_aa"]
    assert list(frames(tuned)) == ["training_curves", "trial_curves"]


def test_a_long_line_has_no_markers(tmp_path: Path) -> None:
    """On the page a marker is a path with a place of its own; a screen reader reads every third of 60 points."""
    run = run_of(tmp_path, fit("rjs", 0, 1, 1, [1.0] * 60))
    (figure,) = (block for block in section(run).blocks if isinstance(block, Lines))
    (series,) = figure.panels[0].series
    assert series.is_dense
    assert len(series.points) == 60 > DENSE
    drawn = svg.panel(figure, figure.panels[0])
    assert 'class="marker"' not in drawn
    assert svg.described(figure, figure.panels[0]).count(": 1.000") == 20


def test_a_run_that_trained_nothing_has_none(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", SCORES))
    assert section(run).blocks == []
    assert frames(run) == {}
    assert isinstance(loss_curves(run), pd.DataFrame)
