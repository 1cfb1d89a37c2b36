"""A run folder of three arms and seeds, and judges that are asked about it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from exchange_run import answered
from tiny_world import tiny_task

from apo_bench.analysis.results import read_responses, read_run
from apo_bench.analysis.seal import break_seal
from apo_bench.judging.judge_result import IncompleteJudge
from apo_bench.run import judges

SIMULATED = "apo_bench.judging.simulated_judge@SimulatedJudge"
ARMS = ("rjs", "golden_refresh", "apo_rjs")
TEXTS = {  # by arm: what it answers to the first four prompts, whatever the seed
    "rjs": ["boil base", "rinse cloth", "sorry i cannot", "dip edge"],
    "golden_refresh": ["boil base then fold lever", "rinse cloth", "", "dip edge then tap rim"],
    "apo_rjs": ["sorry i cannot", "rinse", "sorry i cannot", "brush edge then dip edge"],
}


def run_folder(folder: Path, judging: Mapping[str, Any] | None = None, **changes: Any) -> Path:
    """A run of three arms and seeds with one round, and an experiment with the given judges."""
    texts = {(arm, seed, round_): answers for arm, answers in TEXTS.items() for seed in (0, 1, 2) for round_ in (0, 1)}
    run = answered(folder, texts)
    path = run / "experiment.yaml"
    tree = yaml.safe_load(path.read_text()) | {"judging": {"audit_pairs": 20, **(judging or {})}, **changes}
    path.write_text(yaml.safe_dump(tree))
    return run


def judged(folder: Path, base: Path | None = None) -> tuple[pd.DataFrame, Sequence[IncompleteJudge]]:
    """Ask the run's judges and record what they answer, as a run does that has written its other tables; the rows of `judgments`, and
    the judges that left questions unanswered."""
    break_seal(folder, "judges")
    run = read_run(folder, repairing=True)
    judged_run = judges.judge_run(folder, run, read_responses(folder), tiny_task(), base)
    judges.record_judges(folder, judged_run)
    return pd.read_parquet(folder / "tables" / "judgments.parquet"), judged_run.incomplete
