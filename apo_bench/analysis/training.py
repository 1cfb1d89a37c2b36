"""How training went: losses of fits and steps of online training, over seeds."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from apo_bench.analysis.results import Run, in_order
from apo_bench.config.controls import AA
from apo_bench.config.tuning import TUNING

POINTS = 60  # of a curve at most
TENTH = 0.1
MEASURES = ("reward", "kl", "loss", "length", "entropy", "clip_share", "gradient_norm")  # of steps, those with a curve
COLUMNS = ("arm", "trial", "seed", "round", "fit", "model", "update", "loss")
LOSSES = ("updates", "first", "last", "lowest", "highest")
ONLINE = "policy, online"


def fit_losses(run: Run) -> pd.DataFrame:
    """arm, round, model, updates, and first and last: the loss in the first and in the last tenth of a fit; mean and SD over seeds.

    Of online training an update is a step. Trials are not among the arms.
    """
    keys = ["arm", "seed", "round", "model", "fit"]
    losses = _losses(run)
    ends = _ends(losses[losses["trial"].isna()], keys)
    grouped = ends.groupby(["arm", "round", "model"])
    fits = grouped[["updates", "first", "last"]].mean().assign(first_sd=grouped["first"].std(), last_sd=grouped["last"].std())
    return in_order(fits.reset_index(), run, ["arm", "round", "model"])


def loss_curves(run: Run) -> pd.DataFrame:
    """arm, model, update, mean, seed_sd, n_seeds: the losses of an arm's fits one after the other, at most 60 points of each model.

    `update` counts on from fit to fit; a point is the mean over the updates since the point before. The A/A control is an arm here.
    """
    table = run.tables["training"]
    table = table[table["arm"].isin(with_aa(run))]
    rows = counted_on(table, ["arm", "seed", "model"], "update").assign(value=table["loss"])
    return in_order(_over_seeds(rows, ["arm", "model"], "update"), run, ["arm", "model", "update"])


def step_curves(run: Run) -> pd.DataFrame:
    """arm, measure, step, mean, seed_sd, n_seeds: the steps of an arm's online training one after the other, as in `loss_curves`."""
    table = run.tables["steps"]
    rows = counted_on(table[table["arm"].isin(with_aa(run))], ["arm", "seed"], "step")
    long = rows.melt(["arm", "seed", "step"], MEASURES, var_name="measure").astype({"value": float}).dropna(subset=["value"])
    return in_order(_over_seeds(long, ["arm", "measure"], "step"), run, ["arm", "measure", "step"], measure=MEASURES)


def trial_losses(run: Run) -> pd.DataFrame:
    """A row for each trial of tuning and each model that it trained; of a trial without a finished fit one row, with NaN.

    Columns: arm, trial (from 1), setting ("" where it is not known), model; updates (all fits together), first and last (mean loss in the
    first tenth of the first fit and in the last tenth of the last), lowest and highest (of all fits), each a mean over the tuning seeds;
    chosen (whether the arm runs with the setting) and error (of a trial without a score). Numbers are of the rows of `training`.
    """
    keys = ["arm", "trial", "seed", "model"]
    ends = _ends(_of_trials(_losses(run)), [*keys, "fit"]).sort_values("fit").groupby(keys)
    of_seeds = ends.agg(
        updates=("updates", "sum"), first=("first", "first"), last=("last", "last"), lowest=("lowest", "min"), highest=("highest", "max")
    )
    of_trial: dict[Any, pd.DataFrame] = dict(
        iter(of_seeds.groupby(level=["arm", "trial", "model"]).mean().reset_index().groupby(["arm", "trial"]))
    )
    nothing = pd.DataFrame([{"model": None, **dict.fromkeys(LOSSES, np.nan)}])
    # also of arms that no setting could be chosen for
    remarks = {place: {"setting": "", "chosen": False, "error": ""} for place in of_trial}
    for arm, tuned in (run.manifest.get("tuned") or {}).items():
        for number, trial in enumerate(tuned.get("trials", ()), 1):
            setting = ", ".join(f"{name} = {json.dumps(value)}" for name, value in trial["setting"].items())
            chosen, error = trial["setting"] == tuned.get("chosen"), trial.get("error") or ""
            remarks[arm, number] = {"setting": setting, "chosen": chosen, "error": error}
    rows = [of_trial.get(place, nothing).assign(arm=place[0], trial=place[1], **remark) for place, remark in remarks.items()]
    columns = ["arm", "trial", "setting", "model", *LOSSES, "chosen", "error"]
    table = pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)
    return in_order(table, run, ["arm", "trial", "model"])


def trial_curves(run: Run) -> pd.DataFrame:
    """arm, trial, model, update, mean, seed_sd, n_seeds: as `loss_curves`, of each trial of tuning, over the tuning seeds."""
    table = _of_trials(_losses(run))
    rows = counted_on(table, ["arm", "trial", "seed", "model"], "update").assign(value=table["loss"])
    return in_order(_over_seeds(rows, ["arm", "trial", "model"], "update"), run, ["arm", "trial", "model", "update"])


def with_aa(run: Run) -> tuple[str, ...]:
    """The arms, and the A/A control after them."""
    return (*run.arms, AA)


def _losses(run: Run) -> pd.DataFrame:
    """The rows of `training`, and those of `steps` as a model of their own, of which an update is a step."""
    steps = run.tables["steps"].assign(model=ONLINE).drop(columns="updates").rename(columns={"step": "update"})
    training = run.tables["training"]
    return pd.concat([part for part in (training, steps[[*COLUMNS]]) if len(part)] or [training[[*COLUMNS]]], ignore_index=True)


def _of_trials(losses: pd.DataFrame) -> pd.DataFrame:
    """The rows of trials, under the names of their arms."""
    rows = losses[losses["trial"].notna()]
    return rows.assign(arm=rows["arm"].astype(str).str.removeprefix(TUNING)).astype({"trial": int})


def _ends(losses: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """A row for each fit, which `keys` tell apart: keys, updates, first, last (means of its first and last tenth), lowest, highest."""
    rows = []
    for key, fit in losses.sort_values("update").groupby([*keys]):
        few = max(1, round(TENTH * len(fit)))
        loss = fit["loss"]
        values = (fit["update"].max(), loss.head(few).mean(), loss.tail(few).mean(), loss.min(), loss.max())
        rows.append(dict(zip(keys, key, strict=True)) | dict(zip(LOSSES, values, strict=True)))
    return pd.DataFrame(rows, columns=[*keys, *LOSSES])


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
