"""The schema of `tables/*.parquet`, and the only code that reads and writes these files.

Adding a table is one entry in TABLES. A file whose columns differ from its entry is refused, when it is written and when it is read.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from apo_bench.errors import InputError
from apo_bench.store import write_table as write_parquet

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Column:
    """A column: its name, what it holds and what that means.

    `nullable`: rows may lack a value. `added`: folders written before the column existed lack it, which reads as missing values. `among`:
    the texts that it may hold, any if there are none. `within`: the least and the largest number.
    """

    name: str
    kind: Literal["text", "whole", "number"]
    meaning: str
    nullable: bool = False
    added: bool = False
    among: tuple[str, ...] = ()
    within: tuple[float, float] | None = None


@dataclass(frozen=True)
class Table:
    """A table: its columns in the order of the file, and the columns its rows are sorted by.

    `unique`: columns that no two rows have alike. `finite`: number columns without NaN or infinity. `presence`: whether every run has
    the table, a run without it says so, or it is there only where something fills it. `with_run`: `read_run` reads it.
    """

    name: str
    meaning: str
    columns: tuple[Column, ...]
    sort_keys: tuple[str, ...]
    unique: tuple[str, ...] = ()
    finite: tuple[str, ...] = ()
    presence: Literal["required", "expected", "optional"] = "optional"
    with_run: bool = True

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of its columns."""
        return tuple(column.name for column in self.columns)


def _text(name: str, meaning: str, *, nullable: bool = False, added: bool = False, among: tuple[str, ...] = ()) -> Column:
    return Column(name, "text", meaning, nullable, added, among)


def _whole(name: str, meaning: str, *, nullable: bool = False, added: bool = False) -> Column:
    return Column(name, "whole", meaning, nullable, added)


def _number(name: str, meaning: str, *, added: bool = False, within: tuple[float, float] | None = None) -> Column:
    """NaN where it is not known."""
    return Column(name, "number", meaning, nullable=True, added=added, within=within)


FINITE = sys.float_info.max
_ARM = _text("arm", "the arm; `_floor`, `_bench`, `_tune.ARM` and `_judge.NAME` are not arms of the experiment")
_SEED = _whole("seed", "the run seed; -1 where it does not apply")
_ROUND = _whole("round", "the round, 0 for the initial policy")
_TRIAL = _whole("trial", "number of the trial among its arm's, from 1; missing where it is none", nullable=True, added=True)
_PROMPT = _text("prompt_id", "content id of the test prompt")
_CLUSTER = _text("cluster_id", "the unit that is split and resampled")
_AXIS = _text("axis", "the preference axis; `all` pools them")
_METRIC = _text("metric", "what was measured")
_INTERVAL = (_number("ci_low", "lower end of the 95 % interval"), _number("ci_high", "upper end of the 95 % interval"))

_RESPONSE_COLUMNS = (
    _ARM, _SEED, _ROUND, _PROMPT,
    _text("text", "the response"),
    _whole("tokens", "generated tokens, the end-of-sequence token included"),
    _text("finish", "why generation stopped: eos, turn or length"),
)  # fmt: skip
_TURN_COLUMNS = (
    _PROMPT, _whole("turn", "number of the turn, from 0"), _text("role", "user or assistant"), _text("text", "the turn"),
)  # fmt: skip
_SCORE_COLUMNS = (
    _ARM, _SEED, _ROUND, _PROMPT, _CLUSTER, _AXIS,
    _text("scorer", "proxy, a gold model, ground_truth, refusal or length"),
    _number("value", "the score of the response"),
)  # fmt: skip
_SCORE_KEYS = ("arm", "seed", "round", "prompt_id", "cluster_id", "axis", "scorer")
_SCORE_UNIQUE = ("arm", "seed", "round", "prompt_id", "axis", "scorer")
_JUDGMENT_COLUMNS = (
    _text("arm_a", "the first arm of the comparison"),
    _text("arm_b", "the second arm"),
    _whole("seed_a", "seed of arm_a's response"),
    _whole("seed_b", "seed of arm_b's response"),
    _text("round", "the round of both responses, such as 3, or 3/1 where they differ"),
    _PROMPT,
    _CLUSTER,
    _AXIS,
    _text("judge", "the judge's name"),
    _text("order", "ab: arm_a's response was shown first; ba: arm_b's; empty: not recorded", among=("ab", "ba", "")),
    _text("verdict", "first, tie or second; missing without a verdict", nullable=True, among=("first", "tie", "second")),
    _number("value", "the verdict for arm_a: 1 a win, 1/2 a tie, 0 a loss; missing without a verdict", within=(0, 1)),
    _text("failure", "why there is no verdict; empty where there is one", nullable=True),
    _number("length_a", "length of arm_a's response, in tokens"),
    _number("length_b", "length of arm_b's response, in tokens"),
    _text("question", "content id of the prompt and the responses in the order shown", nullable=True, added=True),
)
_JUDGMENT_KEYS = ("judge", "arm_a", "arm_b", "axis", "seed_a", "seed_b", "prompt_id", "order")

_ALL = (
    Table(
        "scores",
        "Scores of the policies' responses to test prompts.",
        _SCORE_COLUMNS,
        _SCORE_KEYS,
        unique=_SCORE_UNIQUE,
        finite=("value",),
        presence="required",
    ),
    Table(
        "control_scores",
        "Scores of the controls' responses; apart from `scores`, so that no test takes a control for an arm.",
        _SCORE_COLUMNS,
        _SCORE_KEYS,
        unique=_SCORE_UNIQUE,
        finite=("value",),
    ),
    Table(
        "set_scores",
        "Scores of the policies' answers to sets of prompts that are only asked; apart from `scores`, so that nothing pools them with the "
        "task's. `axis` is the set, perhaps with a label or the turn behind a dot.",
        _SCORE_COLUMNS,
        _SCORE_KEYS,
        unique=_SCORE_UNIQUE,
        finite=("value",),
    ),
    Table(
        "metrics",
        "Metrics of each round's policy: KL, diversity, inference FLOPs, dev score.",
        (
            _ARM, _SEED, _ROUND, _AXIS, _METRIC,
            _number("value", "the metric, in its own unit"),
            _number("standard_error", "its standard error over prompts, robust to clusters"),
            _whole("n", "the prompts it was measured on", nullable=True),
        ),
        ("arm", "seed", "round", "axis", "metric"),
        unique=("arm", "seed", "round", "axis", "metric"),
        presence="expected",
    ),
    Table(
        "reward_models",
        "Diagnostics of each round's reward model on held-out data; arm `_floor`: an n-gram model on the same pairs.",
        (
            _ARM, _SEED, _ROUND, _AXIS, _METRIC,
            _number("value", "the diagnostic, in its own unit"),
            *_INTERVAL,
            _whole("n", "the pairs or responses it was measured on", nullable=True),
        ),
        ("arm", "seed", "round", "axis", "metric"),
        unique=("arm", "seed", "round", "axis", "metric"),
        presence="expected",
    ),
    Table(
        "reliability",
        "Reliability curves of each round's reward model on held-out human pairs.",
        (
            _ARM, _SEED, _ROUND, _AXIS,
            _whole("bin", "number of the confidence bin, from 0"),
            _number("low", "lower edge of the bin"),
            _number("high", "upper edge of the bin"),
            _number("confidence", "mean confidence of the bin's pairs"),
            _number("accuracy", "share of the bin's pairs ranked as people rank them"),
            _whole("n", "pairs in the bin", nullable=True),
        ),
        ("arm", "seed", "round", "axis", "bin"),
    ),
    Table(
        "gold",
        "How well the gold reward models rank held-out human pairs.",
        (
            _text("gold", "the gold model; `_floor` is an n-gram model on the same pairs"),
            _whole("seed", "the gold model's seed; -1 for the mean over its seeds"),
            _AXIS, _METRIC,
            _number("value", "the metric"),
            *_INTERVAL,
            _whole("n_pairs", "human pairs"),
            _whole("n_clusters", "clusters of their prompts"),
        ),
        ("gold", "seed", "axis", "metric"),
        unique=("gold", "seed", "axis", "metric"),
        presence="expected",
    ),
    Table(
        "ledger",
        "What each arm-seed spent, by unit; `_bench` is what evaluation spent, `_tune.ARM` what an arm's trials spent.",
        (
            _ARM, _SEED,
            _text("unit", "the metered unit"),
            _number("used", "the amount used", within=(0, FINITE)),
            _number("marginal", "the amount that no earlier arm-seed of the run had already paid for", added=True),
            _number("budget", "the limit; missing where there is none"),
        ),
        ("arm", "seed", "unit"),
        unique=("arm", "seed", "unit"),
        presence="required",
    ),
    Table(
        "samplers",
        "Which engine sampled the responses of each arm-seed, and how far a server's log-probabilities are from the trained policy's; "
        "in runs with `sampling.engine`.",
        (
            _ARM, _SEED,
            _text("purpose", "`arm`: its method's samples; `evaluation`: those of its rounds"),
            _text("engine", "`transformers`, or the server's package and version"),
            _whole("responses", "responses sampled"),
            _whole("measured", "those that the trained policy's model read again", nullable=True),
            _whole("tokens", "their tokens", nullable=True),
            _number("mean", "mean |difference| of log-probability, nats a token"),
            _number("largest", "the largest |difference|, nats"),
            _number("kl", "KL(sampler || trainer), nats a token: the mean of exp(d) - 1 - d"),
            _number("reencoded", "share of the measured whose text is encoded to other ids than they were sampled as"),
        ),
        ("arm", "seed", "purpose", "engine"),
    ),
    Table(
        "training",
        "Losses of every fit: of an arm-seed's policies and reward models, of those of trials, as arm `_tune.ARM`, and of `_aa`; as arm "
        "`_bench` of the initial policy and of the reward models that evaluate. At most 200 rows a fit; of a longer one a row is the "
        "mean over the updates since the row before.",
        (
            _ARM, _TRIAL, _SEED,
            _whole("round", "the round that the model was trained for; 0 for `_bench`"),
            _whole("fit", "number of the fit among the arm-seed's, from 1, in the order in which they were trained"),
            _text("model", "`policy` or `reward model`"),
            _text("artifact", "the model's folder in the store"),
            _whole("update", "number of the optimizer update, from 1"),
            _number("loss", "the training loss"),
        ),
        ("arm", "trial", "seed", "fit", "update"),
        unique=("arm", "trial", "seed", "fit", "update"),
    ),
    Table(
        "steps",
        "Online training, a row a step, of every policy that was trained while it sampled; arms as in `training`.",
        (
            _ARM, _TRIAL, _SEED,
            _whole("round", "the round that the policy was trained for"),
            _whole("fit", "number of the fit among the arm-seed's, as in `training`"),
            _whole("step", "number of the step within the fit"),
            _number("updates", "optimizer updates of the step"),
            _number("prompts", "prompts of the step"),
            _number("samples", "responses sampled"),
            _number("trained_samples", "responses trained on"),
            _number("reward", "mean score of the responses by the arm's reward model"),
            _number("reward_sd", "SD of the scores"),
            _number("kl", "KL to the reference, nats a response; missing without one"),
            _number("entropy", "entropy of the sampling policy, nats a token"),
            _number("length", "mean length of the responses, in tokens"),
            _number("cut_share", "share of the responses cut at the length limit"),
            _number("clip_share", "share clipped; missing where the loss has no ratio"),
            _number("gradient_norm", "norm of the gradient, mean over the updates"),
            _number("loss", "the training loss"),
            _number("learning_rate", "of the last update"),
            _number("sampled_tokens", "tokens sampled"),
            _number("train_tokens", "tokens trained on"),
        ),
        ("arm", "trial", "seed", "fit", "step"),
        unique=("arm", "trial", "seed", "fit", "step"),
    ),
    Table(
        "plan",
        "What each arm was planned to spend.",
        (_ARM, _text("unit", "the metered unit"), _number("planned", "the planned amount, a mean over seeds")),
        ("arm", "unit"),
        unique=("arm", "unit"),
    ),
    Table(
        "judgments",
        "Verdicts of judges on pairs of responses, one row a question.",
        _JUDGMENT_COLUMNS,
        _JUDGMENT_KEYS,
        unique=_JUDGMENT_KEYS,
    ),
    Table(
        "set_judgments",
        "Verdicts of judges on pairs of answers to sets of prompts; columns as of `judgments`.",
        _JUDGMENT_COLUMNS,
        _JUDGMENT_KEYS,
        unique=_JUDGMENT_KEYS,
    ),
    Table(
        "judge_audit",
        "Judges against people's labels: agreement, position and length bias, planted attacks.",
        (
            _text("judge", "the judge's name"),
            _AXIS, _METRIC,
            _number("value", "the metric"),
            *_INTERVAL,
            _whole("n", "comparisons with a value", nullable=True),
            _whole("n_missing", "comparisons without a verdict in both orders"),
        ),
        ("judge", "axis", "metric"),
        unique=("judge", "axis", "metric"),
    ),
    Table(
        "capabilities",
        "Scores of lm-eval's items, of each arm-seed's final policy and, as arm `_initial`, of the initial policy.",
        (
            _ARM, _SEED, _ROUND,
            _text("task", "the task's name in lm-eval"),
            _text("metric", "the metric and the filter, as lm-eval's results name them, such as `acc,none`"),
            _whole("rank", "the metric's place among those of its task, 0 for the first"),
            _whole("doc_id", "number of the item in its task, as in lm-eval's samples"),
            _CLUSTER,
            _number("value", "the item's score, as in lm-eval's samples"),
            _whole("higher_is_better", "1 where a higher score is better, else 0"),
        ),
        ("arm", "seed", "round", "task", "metric", "doc_id"),
        unique=("arm", "seed", "round", "task", "metric", "doc_id"),
        finite=("value",),
    ),
    Table(
        "responses",
        "The policies' responses to test prompts.",
        _RESPONSE_COLUMNS,
        ("arm", "seed", "round", "prompt_id"),
        unique=("arm", "seed", "round", "prompt_id"),
        with_run=False,
    ),
    Table(
        "prompts",
        "The test prompts that were answered, one row a turn.",
        _TURN_COLUMNS,
        ("prompt_id", "turn"),
        unique=("prompt_id", "turn"),
        with_run=False,
    ),
    Table(
        "set_responses",
        "The policies' answers to sets of prompts.",
        _RESPONSE_COLUMNS,
        ("arm", "seed", "round", "prompt_id"),
        unique=("arm", "seed", "round", "prompt_id"),
        with_run=False,
    ),
    Table(
        "set_prompts",
        "The prompts of sets, one row a turn.",
        _TURN_COLUMNS,
        ("prompt_id", "turn"),
        unique=("prompt_id", "turn"),
        with_run=False,
    ),
    Table(
        "timings",
        "Measured times, memory and money, the only values that differ between two runs of one experiment.",
        (
            _ARM, _SEED,
            _text("measure", "what was measured, with its unit"),
            _number("value", "the measurement"),
        ),
        ("arm", "seed", "measure"),
        with_run=False,
    ),
)  # fmt: skip
TABLES: Mapping[str, Table] = {table.name: table for table in _ALL}
CAPABILITY_ITEMS = TABLES["capabilities"].names[3:]  # of one policy
INITIAL_POLICY = "_initial"  # its name in the table `capabilities`


def table_path(folder: Path, name: str) -> Path:
    """The file of a table in a run folder."""
    return folder / "tables" / f"{name}.parquet"


def empty_table(name: str) -> "pd.DataFrame":
    """A table without rows."""
    import pandas as pd

    return pd.DataFrame({column: [] for column in TABLES[name].names})


def read_table(path: Path, name: str) -> "pd.DataFrame":
    """The rows of a parquet file that holds the table `name`. Raises InputError, one line naming file and column."""
    import numpy as np
    import pandas as pd

    try:
        rows = pd.read_parquet(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # a damaged byte makes the reader, or pandas, raise errors of every kind
        raise InputError(f"{path}: not readable as parquet: {error or type(error).__name__}") from None
    table = TABLES[name]
    rows = rows.assign(**{column.name: np.nan for column in table.columns if column.added and column.name not in rows})
    _check(rows, table, path)
    return rows.loc[:, list(table.names)]


def write_table(path: Path, name: str, rows: "pd.DataFrame") -> None:
    """Write rows as the table `name`, its columns in order and its rows sorted. Raises InputError, one line naming file and column."""
    table = TABLES[name]
    _check(rows, table, path)
    write_parquet(path, rows.loc[:, list(table.names)].sort_values(list(table.sort_keys), ignore_index=True))


def _check(rows: "pd.DataFrame", table: Table, path: Path) -> None:
    import numpy as np

    for column in table.columns:
        if column.name not in rows:
            raise InputError(f"{path}: column {column.name} is missing")
        if reason := _misfit(rows[column.name], column):
            raise InputError(f"{path}: column {column.name}: {reason}")
    for name in rows.columns:
        if name not in table.names:
            raise InputError(f"{path}: column {name}: table {table.name} has no such column")
    if table.unique and (repeated := int(rows.duplicated(list(table.unique)).sum())):
        raise InputError(f"{path}: {repeated} rows have the same {', '.join(table.unique)} as another")
    for name in table.finite:
        if bad := int((~np.isfinite(rows[name].to_numpy(dtype=float))).sum()):
            raise InputError(f"{path}: column {name}: {bad} rows are NaN or infinite")


def _misfit(values: "pd.Series", column: Column) -> str:
    """Why these cannot be a column's values, or ""."""
    import pandas as pd

    known = values.dropna()
    if not column.nullable and len(known) < len(values):
        return f"{len(values) - len(known)} rows have none"
    if column.kind == "text":
        if isinstance(values.dtype, pd.StringDtype):
            if reason := _undecodable(values):
                return reason
        elif not all(isinstance(value, str) for value in known):
            return "texts are needed"
        other = sorted(set(known) - set(column.among)) if column.among else []
        return f"{', '.join(filter(None, column.among))} are needed, got {other[0]!r:.80}" if other else ""
    if len(known) and not pd.api.types.is_numeric_dtype(values):
        return f"numbers are needed, got {values.dtype}"
    if column.within and not known.between(*column.within).all():
        outside = known[~known.between(*column.within)]
        return f"numbers from {column.within[0]:g} to {column.within[1]:g} are needed, got {outside.iloc[0]:g}"
    return "whole numbers are needed" if column.kind == "whole" and bool((known % 1 != 0).any()) else ""


def _undecodable(values: "pd.Series") -> str:
    """Why texts that parquet holds are none, or "": pandas decodes them only when they are used."""
    import pyarrow as pa

    try:
        pa.array(values.array).validate(full=True)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        return f"damaged: {error}"
    return ""
