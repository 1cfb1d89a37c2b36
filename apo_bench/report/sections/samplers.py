"""Which engine sampled, and how far a server's log-probabilities are from those of the policy that is trained."""

import math

from apo_bench.analysis import results
from apo_bench.analysis.results import Run
from apo_bench.report.document import Section
from apo_bench.report.tables import Column, Table, arm_column, column, text_column
from apo_bench.report.text import say

TITLE = "Sampling by a server"


def section(run: Run) -> Section:
    """A row for each arm-seed, purpose and engine; no table where no server sampled."""
    table = run.tables["samplers"]
    if table.empty:
        return Section(TITLE, [])
    frame = results.in_order(table, run, ["arm", "seed", "purpose"])
    columns = [
        arm_column(), *map(text_column, ("seed", "purpose", "engine")), column("responses", form="count"), column("measured", form="count"),
        column("tokens", form="count"),
        *[_small(head, key) for head, key in (("mean difference", "mean"), ("largest", "largest"), ("KL a token", "kl"))],
        Column("encoded otherwise", lambda row: None if math.isnan(row["reencoded"]) else f"{100 * row['reencoded']:.0f} %"),
    ]  # fmt: skip
    note = say(
        "Of every sampled artifact some responses are read again by the model that is trained: |difference| of log-probability (nats a "
        "token), the estimate exp(d) - 1 - d of KL(sampler || trainer), and the share of responses whose text is encoded to other ids than "
        "they were sampled as; training reads the sampled ids. In float32 a difference is rounding; a large one means that the sampled "
        "policy is not the one that is trained."
    )
    return Section(TITLE, [Table(frame, columns, "Sampler and trainer", note, name="samplers")])


def _small(head: str, key: str) -> Column:
    return Column(head, lambda row: None if math.isnan(row[key]) else f"{row[key]:.2g}")
