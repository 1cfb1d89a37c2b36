"""Arms that were trained elsewhere: what stands for their seeds, what they cost, and what cannot be known of them."""

from collections.abc import Iterator

import pandas as pd

from apo_bench.analysis.results import POOLED, Run, exclude_failed, in_order
from apo_bench.config.finished_arms import FILES, declared_cost, finished_arms, is_same_in_every_seed, paths
from apo_bench.config.schema import Arm
from apo_bench.formatting import count
from apo_bench.report.document import Bullets, Section
from apo_bench.report.tables import NAN, Table, arm_column, column, interval_column, text_column
from apo_bench.report.text import Text, join, say
from apo_bench.stats import clustered_mean

NOTE = (
    "These arms were trained elsewhere and are evaluated here as any other. Their data are not known to be apart from this task's test "
    "prompts. Lengths and tokens are in each policy's own vocabulary, those of responses out of a file in the initial policy's."
)

INTERVALS = (
    "Of these checkpoints only: intervals are over clusters of prompts, which weigh alike, and hold no difference between trainings. One "
    "seed is one seed; whether arms differ is in the contrasts."
)


def section(run: Run) -> Section:
    """A line an arm; empty where all arms were trained here."""
    lines = [
        say("`{arm}`: {facts}.", arm=name, facts=join(_facts(run, name, arm), "; "))
        for name, arm in finished_arms(run.experiment).items()
    ]  # fmt: skip
    columns = [
        arm_column(), text_column("stands for", "stands_for"), text_column("scorer"), column("mean"), interval_column("number"),
        text_column("clusters"), text_column("unmatched"),
    ]  # fmt: skip
    caption = "Final scores with intervals over prompts"
    table = Table(intervals(run), columns, caption, say(INTERVALS), name="checkpoints") if lines else None
    return Section("Arms that were trained elsewhere", [say(NOTE), Bullets(lines), table] if table else [])


def intervals(run: Run) -> pd.DataFrame:
    """Final mean scores of finished arms: arm, stands_for, scorer, mean, ci_low, ci_high, clusters, unmatched.

    Over clusters of prompts, which weigh alike, each a mean over the arm's seeds: nothing is drawn but prompts.
    """
    metrics = exclude_failed(run.tables["metrics"], run.failed)
    unmatched = metrics[metrics["metric"] == "unmatched"].groupby("arm")["value"].max().to_dict()
    rows = []
    for (arm, scorer), scores in run.final_scores.groupby(["arm", "scorer"], sort=False):
        if str(arm) in finished_arms(run.experiment) and scorer in (*run.golds, "ground_truth"):
            by_cluster = scores.groupby("cluster_id")["value"].mean()
            mean, low, high, clusters = clustered_mean(by_cluster, by_cluster.index)
            rows.append((arm, _seeds_in_words(run, str(arm)), scorer, mean, low, high, clusters, unmatched.get(arm, NAN)))
    frame = pd.DataFrame(rows, columns=["arm", "stands_for", "scorer", "mean", "ci_low", "ci_high", "clusters", "unmatched"])
    return in_order(frame, run, ["arm", "scorer"])


def _seeds_in_words(run: Run, name: str) -> str:
    """One seed is one seed."""
    stands = standing_for_seeds(run, name)
    return stands if isinstance(stands, str) else f"{stands} seed{'s' if stands > 1 else ''}"


def standing_for_seeds(run: Run, name: str) -> int | str:
    """Seeds of an arm that came through; of a finished one the same policy or file may stand for all of them."""
    n, arm = len(run.arm_seeds.get(name, [])), run.experiment.arms[name]
    return f"{n}, of one {_kind(arm)}" if n > 1 and is_same_in_every_seed(arm) else n


def cost_in_words(arm: Arm) -> Text:
    """What a finished arm declares to have cost a seed; of the rest that it is not known."""
    declared = declared_cost(arm) or {}
    amounts = ", ".join(f"{count(float(amount))} {unit}" for unit, amount in declared.items())
    if not amounts:
        return say("what it cost is not known, and matches nothing")
    return say(f"{amounts} a seed are **declared**, not metered; what else it cost is not known, and matches nothing")


def _facts(run: Run, name: str, arm: Arm) -> Iterator[Text]:
    yield say("{path}", path=", ".join(dict.fromkeys(path for _, path in paths(arm))))
    if is_same_in_every_seed(arm):
        seeds = len(run.experiment.seeds)
        yield say(
            f"one {_kind(arm)}{f' for all {seeds} seeds' if seeds > 1 else ', one seed'}, so nothing is shown of other trainings like it"
        )
    yield cost_in_words(arm)
    metrics = exclude_failed(run.tables["metrics"], run.failed)
    rows = metrics[(metrics["arm"] == name) & (metrics["round"] > 0) & (metrics["axis"] == POOLED)]
    if not len(rows[rows["metric"] == "kl"]):
        reason = "responses in a file have none" if _kind(arm) == "file" else "its vocabulary is not the initial policy's"
        yield say(f"KL to the initial policy not known: {reason}")
    lacking = rows[rows["metric"] == "unmatched"]
    if len(lacking) and lacking["value"].max() > 0:
        yield say(f"{count(lacking['value'].max())} of {count(lacking['n'].max())} test prompts are not in the file, and are left out")


def _kind(arm: Arm) -> str:
    return "file" if any(arm.parameters.get(name) for name in FILES) else "checkpoint"
