"""How training went: the losses of every fit, and the steps of online training."""

from collections.abc import Iterator

import pandas as pd

from apo_bench.analysis import training
from apo_bench.analysis.results import Run
from apo_bench.report.charts import Lines, Panel, series_of
from apo_bench.report.document import Block, Section
from apo_bench.report.tables import Paper, Table, arm_column, column, text_column
from apo_bench.report.text import say

TITLE = "Training curves"
MEAN = "mean over seeds"
HEADS = {
    "reward": "reward", "kl": "KL to the reference, nats a response", "length": "length, tokens", "entropy": "entropy, nats a token",
    "clip_share": "share clipped", "gradient_norm": "norm of the gradient",
}  # fmt: skip
NOTE = (
    "Loss in the first and in the last tenth of each fit's updates, mean ± sample SD over seeds; losses of different methods are on "
    "different scales. `_bench`: the initial policy and the reward models that evaluate, where they were trained. n-gram models have no "
    "updates. Every fit's losses: tables/training.parquet, at most 200 rows a fit."
)
CAPTION = (
    "Loss of the {model} by update, the rounds of an arm one after the other; line: mean over seeds, band: sample SD over seeds. A point "
    "is the mean over the updates since the point before"
)
STEPS = (
    "Online training by step, the rounds of an arm one after the other; lines: mean over seeds, bands: sample SD over seeds. All steps: "
    "tables/steps.parquet"
)


def section(run: Run) -> Section:
    """Figures of losses and steps, and a table of every fit; no blocks where nothing was trained by gradient."""
    if run.tables["training"].empty and run.tables["steps"].empty:
        return Section(TITLE, [])
    blocks: list[Block] = [*_loss_figures(run), *_step_figures(run)]
    if len(fits := training.fit_losses(run)):
        columns = [
            arm_column(paper=True), text_column("round", paper=True), text_column("model", paper=True),
            column("updates", form="count", paper=True), column("loss at first", "first", paper=True),
            column("loss at last", "last", paper=True),
        ]  # fmt: skip
        paper = Paper(rows=lambda row: row["arm"] in run.arms)
        blocks.append(Table(fits, columns, "Losses of the fits", say(NOTE), (), "training", paper))
    return Section(TITLE, blocks)


def frames(run: Run) -> dict[str, pd.DataFrame]:
    """The frames behind the figures, by name of the csv file."""
    curves = {"training_curves": training.loss_curves(run), "step_curves": training.step_curves(run)}
    return {name: frame for name, frame in curves.items() if len(frame)}


def _loss_figures(run: Run) -> Iterator[Lines]:
    """A panel for each arm: losses of arms are on different scales."""
    for model, rows in training.loss_curves(run).groupby("model"):
        of_arm = dict(iter(rows.groupby("arm")))
        panels = tuple(Panel(arm, (series_of(MEAN, 0, of_arm[arm], "update"),)) for arm in run.arms if arm in of_arm)
        name = f"training_{str(model).replace(' ', '_')}"
        yield Lines(name, f"Loss of the {model}", say(CAPTION, model=model), panels, (MEAN,), "update", "loss")


def _step_figures(run: Run) -> Iterator[Lines]:
    """A panel for each measure, a line for each arm that was trained online."""
    curves = training.step_curves(run)
    arms = tuple(arm for arm in run.arms if arm in set(curves["arm"]))
    of = dict(iter(curves.groupby(["measure", "arm"])))
    lines = {key: [series_of(arm, place, of[key, arm], "step") for place, arm in enumerate(arms) if (key, arm) in of] for key in HEADS}
    panels = tuple(Panel(head, tuple(lines[key])) for key, head in HEADS.items() if lines[key])
    if panels:
        yield Lines("steps", "Online training by step", say(STEPS), panels, arms, "step", "")
