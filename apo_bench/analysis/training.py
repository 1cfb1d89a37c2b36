"""How training went: losses of fits and steps of online training, over seeds."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from apo_bench.analysis.results import Run, in_order

POINTS = 60  # of a curve at most
TENTH = 0.1
MEASURES = ("reward", "kl", "length", "entropy", "clip_share", "gradient_norm")  # of steps, those with a curve


def fit_losses(run: Run) -> pd.DataFrame:
    """arm, round, model, updates, and first and last: the loss in the first and in the last tenth of a fit; mean and SD over seeds."""
    keys = ["arm", "seed", "round", "model", "fit"]
    rows = []
    for key, fit in run.tables["training"].sort_values("update").groupby(keys):
        few = max(1, round(TENTH * len(fit)))
        ends = {"first": fit["loss"].head(few).mean(), "last": fit["loss"].tail(few).mean()}
        rows.append(dict(zip(keys, key, strict=True)) | {"updates": fit["update"].max(), **ends})
    grouped = pd.DataFrame(rows, columns=[*keys, "updates", "first", "last"]).groupby(["arm", "round", "model"])
    fits = grouped[["updates", "first", "last"]].mean().assign(first_sd=grouped["first"].std(), last_sd=grouped["last"].std())
    return in_order(fits.reset_index(), run, ["arm", "round", "model"])


def loss_curves(run: Run) -> pd.DataFrame:
    """arm, model, update, mean, seed_sd, n_seeds: the losses of an arm's fits one after the other, at most 60 points of each model.

    `update` counts on from fit to fit; a point is the mean over the updates since the point before.
    """
    table = run.tables["training"]
    table = table[table["arm"].isin(run.arms)]
    rows = counted_on(table, ["arm", "seed", "model"], "update").assign(value=table["loss"])
    return in_order(_over_seeds(rows, ["arm", "model"], "update"), run, ["arm", "model", "update"])


def step_curves(run: Run) -> pd.DataFrame:
    """arm, measure, step, mean, seed_sd, n_seeds: the steps of an arm's online training one after the other, as in `loss_curves`."""
    table = run.tables["steps"]
    rows = counted_on(table[table["arm"].isin(run.arms)], ["arm", "seed"], "step")
    long = rows.melt(["arm", "seed", "step"], MEASURES, var_name="measure").astype({"value": float}).dropna(subset=["value"])
    return in_order(_over_seeds(long, ["arm", "measure"], "step"), run, ["arm", "measure", "step"], measure=MEASURES)


def counted_on(table: pd.DataFrame, keys: Sequence[str], count: str) -> pd.DataFrame:
    """The table with `count` going on from one fit to the next of the same `keys`."""
    lengths = table.groupby([*keys, "fit"])[count].max()
    before = lengths.groupby(level=list(keys)).cumsum() - lengths
    return table.assign(**{count: table[count].to_numpy() + before.reindex(pd.MultiIndex.from_frame(table[[*keys, "fit"]])).to_numpy()})


def _over_seeds(rows: pd.DataFrame, keys: Sequence[str], count: str) -> pd.DataFrame:
    """Mean and SD over seeds of each seed's mean `value` within at most POINTS equal stretches of `count`."""
    longest = rows.groupby(list(keys))[count].transform("max") if len(rows) else rows[count]
    width = np.maximum(1, np.ceil(longest / POINTS))
    stretch = rows.assign(**{count: np.minimum(np.ceil(rows[count] / width) * width, longest)})
    means = stretch.groupby([*keys, count, "seed"])["value"].mean()
    grouped = means.groupby(level=[*keys, count])
    return grouped.agg(mean="mean", seed_sd="std", n_seeds="size").reset_index().astype({count: int})
