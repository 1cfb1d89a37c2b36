"""What people's labels on a part of the comparisons and a judge's verdicts on all of them say together."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pandas as pd

from apo_bench.analysis.results import POOLED, Run
from apo_bench.analysis.win_rates import COMPARISON_KEYS
from apo_bench.stats import PredictionPowered, prediction_powered_win_rate

PAIR = ["arm_a", "arm_b", "round"]
NUMBERS = list(PredictionPowered.__dataclass_fields__)
COLUMNS = ["arm_a", "arm_b", "axis", "judge", "people", *NUMBERS]


def imported_judges(run: Run) -> list[str]:
    """The judges whose verdicts came from outside: neither the experiment's nor asked since (those are in the manifest)."""
    asked_since = {name for name, facts in (run.manifest.get("judges") or {}).items() if "left_out" not in facts}
    return sorted(set(run.tables["judgments"]["judge"]) - set(run.experiment.judges) - asked_since)


def human_labels(judgments: pd.DataFrame, people: list[str]) -> pd.DataFrame:
    """A row for every judge, pair and axis (and all) on which `people`, imported judges, labelled a part: COLUMNS.

    A judge's value is the mean of its two orders, missing unless both are there. What the statistics refuse (labels in fewer than two
    clusters or seeds, say) has no row.
    """
    return pd.DataFrame(list(_rows(judgments, people)), columns=COLUMNS)


def _rows(judgments: pd.DataFrame, people: list[str]) -> Iterator[dict[str, Any]]:
    keys = [*COMPARISON_KEYS, "cluster_id"]
    values = judgments.groupby(["judge", *keys], sort=True)["value"].agg(lambda orders: orders.mean(skipna=False)).reset_index()
    values = values[values["seed_a"] == values["seed_b"]]
    for person in people:
        labels = values[values["judge"] == person].dropna(subset=["value"])
        for judge, verdicts in values[~values["judge"].isin(people)].groupby("judge", sort=True):
            both = verdicts.merge(labels[[*keys, "value"]].rename(columns={"value": "label"}), on=keys, how="left")
            both = both.rename(columns={"value": "verdict"}).drop(columns="judge").rename(columns={"verdict": "judge"})
            both = both.assign(seed=both["seed_a"])
            for (a, b, _), pair in both.groupby(PAIR, sort=True):
                axes = sorted(pair["axis"].unique())
                for axis, part in [(POOLED, pair), *((axis, pair[pair["axis"] == axis]) for axis in axes if len(axes) > 1)]:
                    if (result := _powered(part)) is not None:
                        yield {"arm_a": a, "arm_b": b, "axis": axis, "judge": judge, "people": person, **asdict(result)}


def _powered(part: pd.DataFrame) -> PredictionPowered | None:
    if part["label"].isna().all():
        return None
    columns = ["judge", "label", "cluster_id", *(["seed"] if part["seed"].nunique() > 1 else [])]
    try:
        return prediction_powered_win_rate(part[columns])
    except ValueError:
        return None
