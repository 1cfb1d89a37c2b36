"""How training went: the losses of every fit, those of tuning's trials and of controls too, and the steps of online training."""

from collections.abc import Iterator

import pandas as pd

from apo_bench.analysis import training
from apo_bench.analysis.results import Run
from apo_bench.report.charts import Lines, Panel, series_of
from apo_bench.report.document import Block, Section
from apo_bench.report.tables import Column, Paper, Row, Table, arm_column, column, text_column
from apo_bench.report.text import say

TITLE = "Training curves"
MEAN = "mean over seeds"
HEADS = {
    "reward": "reward", "kl": "KL to the reference, nats a response", "loss": "loss", "length": "length, tokens",
    "entropy": "entropy, nats a token", "clip_share": "share clipped", "gradient_norm": "norm of the gradient",
}  # fmt: skip
NOTE = (
    "Loss in the first and in the last tenth of each fit's updates, mean ± sample SD over seeds; losses of different methods are on "
    "different scales. Of online training an update is a step. `_aa`: the reference under other seeds; the oracle trains nothing. "
    "`_bench`: the initial policy and the reward models that evaluate, trials of tuning included, where they were trained. n-gram models "
    "have no updates. Every fit's losses: tables/training.parquet, at most 200 rows a fit, and tables/steps.parquet."
)
CAPTION = (
    "Loss of the {model} by update, the rounds of an arm one after the other; line: mean over seeds, band: sample SD over seeds. A point "
    "is the mean over the updates since the point before"
)
STEPS = (
    "Online training by step, the rounds of an arm one after the other; lines: mean over seeds, bands: sample SD over seeds. All steps: "
    "tables/steps.parquet"
)
TRIALS = (
    "Loss in the first tenth of a trial's first fit and in the last tenth of its last, and the lowest and the highest in between; means "
    "over the tuning seeds. A trial of which a loss or a weight was no finite number has failed."
)
TRIAL_CAPTION = (
    "Loss of the {model} by update in each trial of tuning, the rounds of a trial one after the other; line: mean over tuning seeds, "
    "band: sample SD"
)


def section(run: Run) -> Section:
    """Figures of losses and steps, and tables of every fit and trial; no blocks where nothing was trained by gradient."""
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
    if trials := _trial_blocks(run):
        blocks.append(Section("Trials of tuning", trials))
    return Section(TITLE, blocks)


def frames(run: Run) -> dict[str, pd.DataFrame]:
    """The frames behind the figures, by name of the csv file."""
    curves = {
        "training_curves": training.loss_curves(run), "step_curves": training.step_curves(run), "trial_curves": training.trial_curves(run),
    }  # fmt: skip
    return {name: frame for name, frame in curves.items() if len(frame)}


def _loss_figures(run: Run) -> Iterator[Lines]:
    """A panel for each arm: losses of arms are on different scales."""
    for model, rows in training.loss_curves(run).groupby("model"):
        of_arm = dict(iter(rows.groupby("arm")))
        panels = tuple(Panel(arm, (series_of(MEAN, 0, of_arm[arm], "update"),)) for arm in training.with_aa(run) if arm in of_arm)
        yield Lines(_name("training", model), f"Loss of the {model}", say(CAPTION, model=model), panels, (MEAN,), "update", "loss")


def _step_figures(run: Run) -> Iterator[Lines]:
    """A panel for each measure, a line for each arm that was trained online."""
    curves = training.step_curves(run)
    arms = tuple(arm for arm in training.with_aa(run) if arm in set(curves["arm"]))
    of = dict(iter(curves.groupby(["measure", "arm"])))
    lines = {key: [series_of(arm, place, of[key, arm], "step") for place, arm in enumerate(arms) if (key, arm) in of] for key in HEADS}
    panels = tuple(Panel(head, tuple(lines[key])) for key, head in HEADS.items() if lines[key])
    if panels:
        yield Lines("steps", "Online training by step", say(STEPS), panels, arms, "step", "")


def _trial_blocks(run: Run) -> list[Block]:
    """A figure for each kind of model and a table of every trial; nothing where no trial's losses are known."""
    curves, losses = training.trial_curves(run), training.trial_losses(run)
    if curves.empty:
        return []
    names = tuple(f"trial {number}" for number in range(1, int(losses["trial"].max()) + 1))
    blocks: list[Block] = []
    for model, rows in curves.groupby("model"):
        lines = {
            arm: tuple(
                series_of(name, place, own, "update")
                for place, name in enumerate(names)
                if len(own := of_arm[of_arm["trial"] == place + 1])
            )
            for arm, of_arm in rows.groupby("arm")
        }
        panels = tuple(Panel(arm, lines[arm]) for arm in run.arms if arm in lines)
        title = f"Loss of the {model} in trials"
        blocks.append(Lines(_name("trials", model), title, say(TRIAL_CAPTION, model=model), panels, names, "update", "loss"))
    numbers = [column("updates", form="count"), *(column(name) for name in ("first", "last", "lowest", "highest"))]
    columns = [arm_column(), text_column("trial"), text_column("setting"), text_column("model"), *numbers, Column("remark", _remark)]
    return [*blocks, Table(losses, columns, "Losses of trials", say(TRIALS), (), "trial_losses")]


def _remark(row: Row) -> str:
    rose = row["model"] != training.ONLINE and row["last"] > row["first"]
    return "; ".join(filter(None, ("chosen" if row["chosen"] else "", "ends above its start" if rose else "", row["error"])))


def _name(start: str, model: object) -> str:
    """The name of a figure's file."""
    return "_".join([start, *str(model).replace(",", "").split()])
