"""Published numbers of other work, validated, and compared with a run in one table."""

import csv
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from apo_bench.analysis.results import POOLED, Run, summary
from apo_bench.config.schema import Arm, Experiment
from apo_bench.errors import InputError
from apo_bench.formatting import rows_of
from apo_bench.package_data import find_beside
from apo_bench.stats import clustered_mean, wilson

PUBLISHED_COLUMNS = ("table", "model", "data", "arm", "against", "metric", "value", "n", "judge", "scale", "unknown", "source", "certainty")
METRICS = {  # metric: its name in a table, lowest and highest value, digits as published
    "score": ("mean reward", -math.inf, math.inf, 3),
    "win_percent": ("win rate, %", 0, 100, 2),
    "accuracy_percent": ("reward model: accuracy, %", 0, 100, 2),
    "ece": ("reward model: ECE", 0, 1, 3),
}
PLAYERS = {"rjs": "RejectionSampling", "rrhf": "RRHF", "dpo": "DPO"}
ABLATIONS = {"opponent": "current", "refit": "every_round", "start": "base", "human_pairs": True, "duel": "ranking"}  # the paper's setting
HEADERS = (
    "measure", "published: a - b", "published: b", "published: a", "published: a - b (95 % interval)", "z",
    "ours: a - b", "ours: b", "ours: a", "ours: a - b (95 % interval)",
)  # fmt: skip
REWARD_MODELS = {"rm_base": ("rjs", "rrhf", "dpo"), "rm_apo_v3": ("apo_rjs", "apo_rrhf", "apo_dpo")}  # arms whose last reward model counts


def share_difference(a: float, b: float, n_a: int, n_b: int) -> tuple[float, float, float]:
    """The 95 % interval of share `a` of `n_a` items minus share `b` of `n_b` other items, and its z against no difference: (low, high, z).

    Interval: Newcombe's from Wilson's two (Statistics in Medicine 17, 1998, method 10): with intervals l..u,
    low = d - sqrt((a - l_a)^2 + (u_b - b)^2) and high = d + sqrt((u_a - a)^2 + (b - l_b)^2). z: d over
    sqrt(p (1 - p) (1/n_a + 1/n_b)) with the pooled share p. Raises ValueError as `wilson` does.
    """
    (low_a, high_a), (low_b, high_b) = wilson(a * n_a, n_a), wilson(b * n_b, n_b)
    difference, pooled = a - b, (a * n_a + b * n_b) / (n_a + n_b)
    error = math.sqrt(pooled * (1 - pooled) * (1 / n_a + 1 / n_b))
    low = difference - math.hypot(a - low_a, high_b - b)
    high = difference + math.hypot(high_a - a, b - low_b)
    return low, high, difference / error if error else math.nan


def find_published(name: str) -> Path:
    """The path of results/published/NAME.csv, in the working directory or shipped. Raises InputError where there is none."""
    path = find_beside(f"results/published/{name}.csv", None) if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) else None
    if path is None:
        raise InputError(f"report.beside: no published numbers named {name!r} in results/published")
    return path


def read_published(path: str | Path) -> pd.DataFrame:
    """A file of published numbers, PUBLISHED_COLUMNS; value and n are numbers, n is NaN where unknown.

    Raises InputError, one line naming file, line and column.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = tuple(reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not readable as csv: {error}") from None
    if columns != PUBLISHED_COLUMNS:
        raise InputError(f"{path}: the columns are {', '.join(PUBLISHED_COLUMNS)}")
    checked = [_checked(path, line, row) for line, row in rows]
    frame = pd.DataFrame(checked, columns=list(PUBLISHED_COLUMNS))
    keys = ["table", "arm", "metric"]
    if twice := list(frame.loc[frame.duplicated(keys), keys].itertuples(index=False, name=None)):
        raise InputError(f"{path}: {', '.join(twice[0])} occurs twice")
    present = set(frame[keys].itertuples(index=False, name=None))
    for row in rows_of(frame[frame["against"] != ""]):
        if (row.table, row.against, row.metric) not in present:
            raise InputError(f"{path}: against: {row.arm} is compared with {row.against!r}, which has no {row.metric} in table {row.table}")
    return frame


def _checked(path: Path, line: int, row: Mapping[str | None, Any]) -> Mapping[str | None, Any]:
    def refuse(column: str, why: str) -> InputError:
        return InputError(f"{path}: line {line}: {column}: {why}")

    if None in row or None in row.values():
        raise refuse("columns", f"{len(PUBLISHED_COLUMNS)} are needed")
    for column in PUBLISHED_COLUMNS:
        if column not in ("against", "value", "n") and not row[column].strip():
            raise refuse(column, "empty")
    if row["metric"] not in METRICS:
        raise refuse("metric", f"{row['metric']!r} is none of {', '.join(METRICS)}")
    _, low, high, _ = METRICS[row["metric"]]
    try:
        value = float(row["value"])
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and low <= value <= high):
        raise refuse("value", f"a number{f' from {low} to {high}' if math.isfinite(low) else ''} is needed, got {row['value']!r}")
    if row["n"] and not re.fullmatch(r"[1-9][0-9]{0,14}", row["n"]):
        raise refuse("n", f"a whole number of 1 or more, or nothing, is needed, got {row['n']!r}")
    return {**row, "value": value, "n": float(row["n"] or "nan")}


def published_differences(rows: pd.DataFrame) -> pd.DataFrame:
    """The difference of each published pair: metric, arm, against, value, value_against, difference, ci_low, ci_high, z, n, note.

    `note` states the assumption of the interval, or why there is none. Percentages stay percentages.
    """
    by_key = {(row.table, row.arm, row.metric): row for row in rows_of(rows)}
    differences = []
    for row in rows_of(rows[rows["against"] != ""]):
        other = by_key[row.table, row.against, row.metric]
        low = high = z = math.nan
        if row.metric not in ("win_percent", "accuracy_percent"):
            note = "no interval: " + ("no SD is known" if row.metric == "score" else "an ECE is no share")
        elif math.isnan(row.n) or math.isnan(other.n):
            note = "no interval: the number of items is not known"
        else:
            low, high, z = share_difference(row.value / 100, other.value / 100, int(row.n), int(other.n))
            low, high = 100 * low, 100 * high
            note = "two shares of independent items"
        differences.append((row.metric, row.arm, row.against, row.value, other.value, row.value - other.value, low, high, z, row.n, note))
    names = ["metric", "arm", "against", "value", "value_against", "difference", "ci_low", "ci_high", "z", "n", "note"]
    return pd.DataFrame(differences, columns=names)


def matching_arms(experiment: Experiment, named: Mapping[str, str]) -> dict[str, str]:
    """The arm of each policy of the paper: as `named`, or else the only arm with that method in the paper's setting.

    Of several such arms, the one with the paper's name; otherwise none, as nothing is guessed.
    Raises InputError for a name that is no policy of the paper or no arm.
    """
    policies = [*PLAYERS, *(f"apo_{player}" for player in PLAYERS), "golden_sft"]
    for policy, arm in named.items():
        if policy not in policies:
            raise InputError(f"report.arms.{policy}: no such policy; policies: {', '.join(policies)}")
        if arm not in experiment.arms:
            raise InputError(f"report.arms.{policy}: no arm named {arm!r}; arms: {', '.join(experiment.arms)}")
    arms = dict(named)
    for policy in policies:
        alike = [name for name, arm in experiment.arms.items() if _policy(arm) == policy]
        if policy not in arms and (len(alike) == 1 or policy in alike):
            arms[policy] = policy if policy in alike else alike[0]
    return arms


def _policy(arm: Arm) -> str | None:
    """The paper's policy that an arm corresponds to by its method, or None."""
    method, fields = arm.use.rpartition("@")[2], arm.parameters
    classes = {name: player for player, name in PLAYERS.items()}
    if method == "APO" and all(fields.get(name, usual) == usual for name, usual in ABLATIONS.items()):
        player = fields.get("player")
        named = player.get("use") if isinstance(player, dict) else player
        return f"apo_{classes[player_class]}" if (player_class := str(named).rpartition("@")[2]) in classes else None
    if method == "SFT":
        return "golden_sft" if fields.get("imitate") == "golden" and fields.get("then") is None else None
    return classes.get(method)


def compare_with_published(run: Run, frames: Mapping[str, pd.DataFrame], rows: pd.DataFrame, named: Mapping[str, str]) -> pd.DataFrame:
    """Published differences beside this run's: the columns of `published_differences`, then our_arm, our_against, our_scorer,
    our_value, our_value_against, our_difference, our_low, our_high.

    `frames` are the report's (contrasts, and judged if there are judges). NaN and "" where the run has no counterpart.
    """
    arms = matching_arms(run.experiment, named)
    means, theirs, own = summary(run), published_differences(rows), []
    for row in rows_of(theirs):
        if row.metric in ("accuracy_percent", "ece"):
            own.append(_our_reward_model(run, arms, row.arm, row.against, row.metric))
        elif row.metric == "win_percent":
            own.append(_our_win_rate(run, frames.get("judged"), arms, row.arm, row.against))
        else:
            own.append(_our_score(run, means, frames["contrasts"], arms, row.arm, row.against))
    names = ["our_arm", "our_against", "our_scorer", "our_value", "our_value_against", "our_difference", "our_low", "our_high"]
    return pd.concat([theirs, pd.DataFrame(own, columns=names)], axis=1)


OwnNumbers = tuple[str, str, str, float, float, float, float, float]
NO_NUMBERS: OwnNumbers = ("", "", "", *[math.nan] * 5)  # pyright: ignore[reportAssignmentType]


def _our_score(run: Run, means: pd.DataFrame, contrasts: pd.DataFrame, arms: Mapping[str, str], a: str, b: str) -> OwnNumbers:
    """Means by the first gold model at the last round, all axes pooled; the contrast's interval if the pair is declared."""
    scorer, start = run.golds[0], b == "base"
    if a not in arms or not (start or b in arms):
        return NO_NUMBERS
    first, second = arms[a], "initial policy" if start else arms[b]
    pooled = means[(means["scorer"] == scorer) & (means["axis"] == POOLED)].set_index(["arm", "round"])["mean"].to_dict()
    value = pooled.get((first, run.final_round.get(first)), math.nan)
    other = pooled.get((first, 0) if start else (second, run.final_round.get(second)), math.nan)
    names = {"arm_a": first, "arm_b": second, "axis": POOLED, "scorer": scorer, "at": "final"}
    rows = rows_of(contrasts[(contrasts[list(names)] == pd.Series(names)).all(axis=1)])
    difference, low, high = (rows[0].difference, rows[0].ci_low, rows[0].ci_high) if rows else (value - other, math.nan, math.nan)
    return (first, second, scorer, value, other, difference, low, high)


def _our_win_rate(run: Run, judged: pd.DataFrame | None, arms: Mapping[str, str], a: str, b: str) -> OwnNumbers:
    """The win rate of a over b by the experiment's own judge: its scorer, else the first that its audit shows to be informative.

    Without one there are no numbers: a judge that was added or imported later changes none. Published ones may be against another opponent.
    """
    if judged is None or a not in arms or b not in arms:
        return NO_NUMBERS
    own = dict.fromkeys([*([run.judge] if run.judge else []), *run.experiment.judges])
    rows = judged[(judged["arm_a"] == arms[a]) & (judged["arm_b"] == arms[b]) & (judged["axis"] == POOLED)]
    rows = rows[rows["judge"].isin(list(own)) & (rows["informative"] == "") & rows["win_rate"].notna()]
    if rows.empty:
        return NO_NUMBERS
    rows = rows.sort_values("judge", key=lambda names: names.map(list(own).index), kind="stable")
    rate, low, high = (100 * float(rows.iloc[0][column]) for column in ("win_rate", "ci_low", "ci_high"))
    return (arms[a], arms[b], f"judge/{rows.iloc[0]['judge']}", rate, 100 - rate, 2 * rate - 100, 2 * low - 100, 2 * high - 100)


def _our_reward_model(run: Run, arms: Mapping[str, str], a: str, b: str, metric: str) -> OwnNumbers:
    """The last round's reward models on held-out human pairs, all axes pooled; t interval over shared seeds."""
    pairs = zip(*(REWARD_MODELS.get(policy, ()) for policy in (a, b)), strict=False)
    pair = next(((arms[policy], arms[other]) for policy, other in pairs if policy in arms and other in arms), None)
    if pair is None:
        return NO_NUMBERS
    name, scale = ("accuracy_human", 100.0) if metric == "accuracy_percent" else ("ece", 1.0)
    table = run.tables["reward_models"]
    table = table[(table["metric"] == name) & (table["axis"] == POOLED)].dropna(subset=["value"])
    values = [
        table[(table["arm"] == arm) & (table["round"] == run.final_round.get(arm))].set_index("seed")["value"] * scale for arm in pair
    ]
    change = (values[0] - values[1]).dropna()
    nothing = (math.nan, math.nan, math.nan)
    difference, low, high = clustered_mean(change.to_numpy(), change.index.tolist())[:3] if len(change) else nothing
    return (*pair, "held-out human pairs", values[0].mean(), values[1].mean(), difference, low, high)


def comparison_cells(comparison: pd.DataFrame) -> list[list[str]]:
    """The rows of `compare_with_published` as text cells under HEADERS; "-" where there is nothing."""
    lines = []
    for row in rows_of(comparison):
        title, _, _, digits = METRICS[row.metric]
        theirs = [_number(row.value_against, digits), _number(row.value, digits)]
        theirs.append(_change(row.difference, row.ci_low, row.ci_high, digits))
        own = [_number(row.our_value_against, digits), _number(row.our_value, digits)]
        own.append(_change(row.our_difference, row.our_low, row.our_high, digits))
        pair = f"{row.our_arm} - {row.our_against}" if row.our_arm else "-"
        lines.append([title, f"{row.arm} - {row.against}", *theirs, _number(row.z, 2), pair, *own])
    return lines


def comparison_caveats(run: Run, rows: pd.DataFrame, comparison: pd.DataFrame) -> list[str]:
    """How published and own numbers differ, and what is unknown of the published ones, as sentences of plain text."""

    def all_of(column: str, *metrics: str) -> str:
        return "; ".join(dict.fromkeys(rows.loc[rows["metric"].isin(metrics or METRICS), column]))

    policy, metrics = run.experiment.models.policy, set(rows["metric"])
    model = policy.path or f"a {(policy.architecture or {}).get('model_type', 'model')} of our own"
    scores = run.final_scores.groupby("arm")["prompt_id"].nunique()
    prompts = f"{scores.min()} test prompts" if len(scores) else "no finished arm"
    seeds = len(run.experiment.seeds)
    held_out = "ours is the last round's, on held-out human pairs, of the first player that has both a plain and an APO arm"
    own = {
        "score": f"ours is by {run.golds[0]}; signs can be compared, sizes cannot",
        "win_percent": f"ours is that of arm a over arm b (b has the rest of 100 %), {_own_judge(comparison)}; the difference is a's lead",
        "accuracy_percent": held_out,
        "ece": held_out,
    }
    lines = [
        f"Source: {all_of('source')}. Certainty: {all_of('certainty')}.",
        f"Model: theirs {all_of('model', 'score', 'win_percent') or 'not stated'}, ours {model}.",
        f"Data: theirs {all_of('data')}; ours task {run.experiment.task.use}, {prompts}, {seeds} {'seed' if seeds == 1 else 'seeds'}.",
    ]
    for metric in (name for name in METRICS if name in metrics):
        by, scale, unknown = (all_of(column, metric) for column in ("judge", "scale", "unknown"))
        title = METRICS[metric][0]
        lines.append(f"{title[0].upper()}{title[1:]}: theirs by {by}, {scale}; unknown: {unknown}. Here {own[metric]}.")
    if not comparison["ci_low"].isna().all():
        lines.append(
            "Published intervals: Newcombe's for two shares of independent items, at the published n. They ignore which items two rows "
            "share and variation between trainings, so they hold for those checkpoints only. Ours hold for new seeds and prompts where "
            "the contrast does, and for new seeds of the reward models where reward models are compared."
        )
    here = set(comparison.loc[comparison["our_arm"] != "", "arm"])
    if absent := [arm for arm in dict.fromkeys(comparison["arm"]) if arm not in here]:
        lines.append(f"No arm here corresponds to: {', '.join(absent)}. The key report.arms maps published policies to arms.")
    return lines


def _own_judge(comparison: pd.DataFrame) -> str:
    """By whom our win rates are."""
    scorers = comparison.loc[(comparison["metric"] == "win_percent") & (comparison["our_scorer"] != ""), "our_scorer"]
    return f"by {', '.join(dict.fromkeys(scorers))}" if len(scorers) else "by none: the experiment has no informative judge of these arms"


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _change(value: float, low: float, high: float, digits: int) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:+.{digits}f}" + ("" if math.isnan(low) else f" ({low:+.{digits}f} to {high:+.{digits}f})")
