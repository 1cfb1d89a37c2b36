"""What people's labels bought: win rates by people's standard, from their labels alone and with a judge's verdicts."""

import pandas as pd

from apo_bench.report.document import Section
from apo_bench.report.tables import Table, column, pair_column, text_column
from apo_bench.report.text import say

NOTE = (
    "Win rates of the first arm by people's standard. Labels alone: of the comparisons that people labelled. With the judge: its verdicts "
    "on all comparisons, corrected by the labels and weighed so that the error is not above that of the labels alone (prediction-powered "
    "inference); right whatever the judge is worth, if the labelled comparisons are a random part. A sheet filled to its end is one; "
    "filled in part it has too many ties, those of identical responses. Worth: so many labels alone would be as sure. The judge alone is "
    "not corrected by anything."
)


def section(frame: pd.DataFrame) -> Section:
    """Empty where no labels were imported beside a judge."""
    if frame.empty:
        return Section("What people's labels bought", [])
    columns = [
        pair_column(), text_column("axis"), text_column("people"), text_column("judge"), text_column("labels", "n_labelled"),
        text_column("comparisons", "n"), column("labels alone", "labels_only", ends=("labels_low", "labels_high")),
        column("with the judge", "win_rate", ends=("ci_low", "ci_high")), column("worth, labels", "bought", "count"),
        column("judge alone", "judge_only"),
    ]  # fmt: skip
    return Section("What people's labels bought", [Table(frame, columns, "Win rates by people's standard", say(NOTE), name="human_labels")])
