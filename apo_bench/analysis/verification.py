"""What lets a stranger check a published result: the scores of every arm-seed with a hash of their rows, and a test of some made again.

The rule, for an arm-seed that was made again from the published experiment:

- *same rows*: every score of every prompt is the published one, to 12 digits. To be expected on like hardware with the same versions.
- *within seed noise*: the rows differ, as on other hardware, and the mean differs from the published one by no more than two seeds do. The
  difference of two draws of one arm has the standard deviation sqrt(2) s, where s is that of the published seeds, so that
  t = difference / (sqrt(2) s) has Student's distribution with n - 1 degrees of freedom. Holm over all that were made again, at 5 %.
- *beyond seed noise*: farther away than that.
- *not testable*: rows differ, and the published arm has one seed, or no spread over its seeds.
"""

import hashlib
import math
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.special import stdtr, stdtrit  # scipy.stats would take a second to import

from apo_bench.analysis.results import Run
from apo_bench.config import tuning
from apo_bench.config.load import ExperimentFile
from apo_bench.config.schema import JUDGE, Experiment
from apo_bench.formatting import ALPHA
from apo_bench.stats import holm

KEY = ["arm", "seed", "axis", "scorer"]
SAME, WITHIN, BEYOND, UNTESTABLE = "same rows", "within seed noise", "beyond seed noise", "not testable"


def arm_seed_scores(run: Run) -> pd.DataFrame:
    """arm, seed, round, axis, scorer, mean, n_prompts and rows (a hash of the scores) of every arm-seed's last round."""
    return summarise_rows(run.final_scores)


def summarise_rows(scores: pd.DataFrame) -> pd.DataFrame:
    """The same of rows of scores: arm, seed, round, axis, scorer, prompt_id, value."""
    groups = scores.groupby([*KEY[:2], "round", *KEY[2:]], sort=False)
    rows = [
        dict(zip((*KEY[:2], "round", *KEY[2:]), key, strict=True))
        | {"mean": float(group["value"].mean()), "n_prompts": len(group), "rows": hash_of(group)}
        for key, group in groups
    ]
    return pd.DataFrame(rows, columns=[*KEY[:2], "round", *KEY[2:], "mean", "n_prompts", "rows"])


def hash_of(rows: pd.DataFrame) -> str:
    """The first 16 digits of the SHA-256 of prompt ids and values (12 digits), in order of prompt."""
    lines = sorted(f"{prompt} {value:.12g}" for prompt, value in zip(rows["prompt_id"], rows["value"], strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def experiment_as_run(run: Run) -> Experiment:
    """The experiment with the settings that tuning and sizing gave its arms, at its own level of what varies, and without judges.

    From it an arm-seed can be made alone: nothing is left to be tuned, sized or asked.
    """
    chosen: dict[str, Any] = {}
    for arm, facts in (run.manifest.get("tuned") or {}).items():
        chosen |= tuning.overrides(arm, facts["chosen"])
    for arm, size in (run.manifest.get("fits") or {}).items():
        chosen |= {f"arms.{arm}.{size['by']}": size["value"], f"arms.{arm}.fit": None}
    tree = run.experiment.model_dump(mode="json")
    scorer = {"compare.scorer": "gold"} if run.judge else {}
    controls = {"controls": {"aa": False, "oracle": False}}
    names = {name: shown for name, shown in run.experiment.report.names.items() if not name.startswith(JUDGE)}
    return (
        ExperimentFile(Path(), tree, {}, run.experiment)
        .under({**chosen, **controls, **scorer, "tune": None, "judges": {}, "vary": {}, "report.names": names})
        .experiment
    )


def compare_scores(published: pd.DataFrame, again: pd.DataFrame) -> pd.DataFrame:
    """A row per arm-seed, axis and scorer of `again`: published, again, difference, tolerance, p_value (Holm) and verdict.

    published: all arm-seeds' rows of `arm_seed_scores`, read as published. tolerance: the largest difference that is no evidence against
    the published mean, before Holm's correction.
    """
    groups = published.groupby(["arm", "axis", "scorer"])["mean"]
    spread = {key: (float(means.std()), len(means)) for key, means in groups}
    by_key = {tuple(row[name] for name in KEY): row for row in published.to_dict("records")}
    rows: list[dict[str, Any]] = []
    for row in again.to_dict("records"):
        key = tuple(row[name] for name in KEY)
        before = by_key[key]
        sd, count = spread[row["arm"], row["axis"], row["scorer"]]
        difference, same = row["mean"] - before["mean"], row["rows"] == before["rows"]
        testable, error = count > 1 and sd > 0, math.sqrt(2) * sd
        rows.append(
            dict(zip(KEY, key, strict=True))
            | {"published": before["mean"], "again": row["mean"], "difference": difference, "same": same}
            | {"tolerance": error * float(stdtrit(count - 1, 1 - ALPHA / 2)) if testable else math.nan}
            | {"p_value": float(2 * stdtr(count - 1, -abs(difference) / error)) if testable and not same else math.nan}
        )
    table = pd.DataFrame(rows)
    table["p_value"] = holm(table["p_value"])
    return table.assign(verdict=[_verdict(same, p) for same, p in zip(table["same"], table["p_value"], strict=True)]).drop(columns="same")


def _verdict(same: bool, p_value: float) -> str:
    if same:
        return SAME
    return UNTESTABLE if math.isnan(p_value) else WITHIN if p_value >= ALPHA else BEYOND
