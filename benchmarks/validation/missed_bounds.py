"""Cells that miss a bound, grouped by test, bound and likely reason."""

from typing import Any

import pandas as pd

from validation.markdown_tables import markdown, pairing_of, percent_range

SKEWED_ARM = "skewed, effects in one arm"
RARE_EVENTS = "rare events"
COLLAPSE = "one seed in ten of arm a collapses"

REASONS = {
    "skewed seeds": "no test can see the skewness of a distribution from which it has 3 to 10 draws, nor a collapse that has not happened "
    "yet: where one seed in ten collapses, three seeds are spared 73 % of the time, and agree on a mean that is too high. The deeper the "
    "collapse, the worse. Look at each seed's mean",
    "skewed clusters": "the same, with 30 skewed clusters; with 300 the cells are in bounds",
    "heavy tails": "skewness cancels between arms that are alike and leaves heavy tails, with which every t test is conservative",
    "guards": "where seeds and clusters both make up the variance, two guards make the test careful: V may not fall below what clusters "
    "alone or seeds alone say, and the mixture averages the tails of two t distributions where the truth is the tail of an average",
    "Welch's df": "with three seeds in an arm, Welch's degrees of freedom are conservative where both arms' seeds vary alike; nobody knows "
    "beforehand that they do, and the test that assumes it (pooled df, below) rejects too often where they do not",
    "chance or unexplained": "none of the above",
}  # fmt: skip


def grouped(rows: pd.DataFrame) -> str:
    """A row for each test, bound and reason, and the reasons in words."""
    rows = rows.assign(why=[reason(row) for row in rows.to_dict("records")])
    cells = []
    for (test, misses, why), part in rows.groupby(["test", "misses", "why"], sort=False):
        seeds = sorted(set(zip(part["seeds_a"], part["seeds_b"], strict=True)))
        sizes = "; ".join(str(a) if a == b else f"{a}, {b}" for a, b in seeds)
        pairing = " or ".join(sorted({pairing_of(row) for row in part.to_dict("records")}, reverse=True))
        scores = "; ".join(dict.fromkeys(scores_of(row) for row in part.to_dict("records")))
        rates, share = percent_range(part["rejected"]), percent_range(part["seed_share"])
        cells.append([test, misses, why, str(len(part)), rates, sizes, pairing, scores, share])
    headers = ["test", "misses", "why", "cells", "%", "seeds", "pairing", "scores", "seed share, %"]
    explained = "\n".join(f"- *{why}*: {text}." for why, text in REASONS.items() if why in set(rows["why"]))
    return f"{markdown(headers, cells)}\n\n{explained}"


def scores_of(row: dict[Any, Any]) -> str:
    if row["shape"] == "skewed":
        return SKEWED_ARM if row["method_sd_b"] == 0 else "skewed"
    if row["collapse_depth"]:
        return f"{COLLAPSE} by {row['collapse_depth']:g} SDs"
    return {"normal": "normal", "tied": "whole numbers", "rare": RARE_EVENTS}[row["shape"]]


def reason(row: dict[Any, Any]) -> str:
    """The key in REASONS that explains why a cell misses its bound."""
    above, share, scores = row["misses"].startswith("above"), row["seed_share"], scores_of(row)
    lopsided = scores == SKEWED_ARM or scores.startswith(COLLAPSE)
    if above and lopsided:
        return "skewed seeds" if share > 0 else "skewed clusters"
    if not above and (lopsided or scores == "skewed") and share > 0.5:
        return "heavy tails"
    if not above and not row["paired"] and min(row["seeds_a"], row["seeds_b"]) == 3 and share >= 0.5:
        return "Welch's df"
    return "guards" if not above and share <= 0.8 else "chance or unexplained"
