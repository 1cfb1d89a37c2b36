"""The sample browser's data: prompts, responses, scores and verdicts as columns, compressed into a block that no text can leave."""

import base64
import gzip
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from apo_bench.analysis.results import Run, in_order, read_responses
from apo_bench.clients.journal import Journal
from apo_bench.data.task import load_task
from apo_bench.errors import InputError
from apo_bench.formatting import rows_of
from apo_bench.hashing import digest
from apo_bench.judging.judge_protocol import ORDERS, Choice
from apo_bench.tables import read_table, table_path
from apo_bench.types import identity

LIMIT = 2_000_000  # bytes of the block in the page, which leaves a third of 3 MB for all the rest
SHRINKS, ROW = 5, 40  # how much smaller a block is than its characters, at best; characters of a row of numbers
CHOICES: tuple[Choice, ...] = ("first", "tie", "second")
Turns = Mapping[str, Sequence[tuple[str, str]]]  # prompt id -> (role, text) of each turn
KEYS = ["arm", "seed", "round", "prompt_id"]


@dataclass(frozen=True)
class Samples:
    """The block (base64 of gzip of JSON), how many of the prompts it holds, and why their texts are not there, or ""."""

    block: str
    n_prompts: int
    n_all: int
    without_prompts: str


def read_samples(folder: Path, run: Run, limit: int = LIMIT) -> Samples | None:
    """All answers to test prompts of a run folder, or, where their block were larger than `limit` bytes, those to some of the prompts.

    Which ones is decided by a hash of the prompt's id, so equal runs show equal prompts. None where the run kept no responses. Raises
    InputError as `read_run` does.
    """
    if not (folder / "tables" / "responses.parquet").exists():
        return None
    rows = answers(folder, run)
    turns, reason = read_prompts(folder, run)
    judge_texts = read_judge_texts(folder, run)
    ids = sorted(set(rows["prompt_id"]), key=lambda id_: hashlib.sha256(id_.encode("utf-8", "surrogatepass")).digest())
    characters = int(rows["text"].drop_duplicates().str.len().sum()) + ROW * len(rows)
    kept = min(len(ids), max(1, SHRINKS * limit * len(ids) // max(characters, 1)))  # what cannot fit is not tried
    while True:
        block = encoded(columns(run, rows[rows["prompt_id"].isin(ids[:kept])], turns, judge_texts))
        if len(block) <= limit or kept <= 1:
            return Samples(block, kept, len(ids), reason)
        kept = max(1, min(kept - 1, int(0.95 * kept * limit / len(block))))


def encoded(data: Any) -> str:
    """Values as base64, whose letters mean nothing to html, of gzip of JSON; the same values give the same text."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode("ascii"), 6, mtime=0)).decode("ascii")


def answers(folder: Path, run: Run) -> pd.DataFrame:
    """A row per answer: KEYS, axis, text, tokens, finish, a column for each scorer, and `gap`.

    `gap` says how far the arm's own reward model ranks an answer above the first gold model: the difference of both scores, each in SDs
    from its mean over the prompts of that arm, seed and round. NaN where either is missing or does not vary.
    """
    scores = pd.concat([run.tables["scores"], run.tables["set_scores"]]) if len(run.tables["set_scores"]) else run.tables["scores"]
    scores = scores[scores["scorer"].isin([*run.scorers, "refusal"])]
    wide = scores.pivot(index=KEYS, columns="scorer", values="value").reset_index()
    about = scores[["prompt_id", "axis"]].drop_duplicates("prompt_id")
    responses = read_responses(folder)
    if (path := table_path(folder, "set_responses")).exists():
        responses = pd.concat([responses, read_table(path, "set_responses")], ignore_index=True)
    rows = responses.merge(wide, on=KEYS, how="left").merge(about, on="prompt_id", how="left")
    rows = rows[rows["arm"].isin(run.arms)].fillna({"axis": ""})
    rows["gap"] = np.nan
    if {"proxy", run.golds[0]} <= set(rows.columns):
        pair = ["proxy", run.golds[0]]
        groups = rows.groupby(["arm", "seed", "round"])[pair]
        standard = (rows[pair] - groups.transform("mean")) / groups.transform("std")
        rows["gap"] = (standard["proxy"] - standard[run.golds[0]]).replace([np.inf, -np.inf], np.nan)
    return in_order(
        rows, run, ["axis", "prompt_id", "arm", "seed", "round"], axis=("", *run.axes, *sorted(set(run.tables["set_scores"]["axis"])))
    )


def columns(run: Run, rows: pd.DataFrame, turns: Turns, judge_texts: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    """Rows of `answers` and the verdicts on them as columns; texts, prompts, arms and the like are places in lists."""
    texts: defaultdict[str, int] = defaultdict(lambda: len(texts))  # a new text gets the next place when it is looked up
    prompts = rows.drop_duplicates("prompt_id")
    ids = prompts["prompt_id"].tolist()
    place = {"prompt_id": _places(ids), "axis": _places(sorted(set(rows["axis"]))), "arm": _places(run.arms)}
    scorers = [scorer for scorer in (*run.scorers, "refusal") if scorer in rows]
    return {
        "arms": list(run.arms),
        "axes": list(place["axis"]),
        "scorers": scorers,
        "gold": run.golds[0],
        "prompts": {
            "id": ids,
            "axis": [place["axis"][axis] for axis in prompts["axis"]],
            "turns": [[[role, texts[content]] for role, content in turns.get(id_, ())] for id_ in ids],
        },
        "responses": {
            "prompt": [place["prompt_id"][id_] for id_ in rows["prompt_id"]],
            "arm": [place["arm"][arm] for arm in rows["arm"]],
            "seed": [int(seed) for seed in rows["seed"]],
            "round": [int(round_) for round_ in rows["round"]],
            "text": [texts[content] for content in rows["text"]],
            "tokens": _numbers(rows["tokens"]),
            "cut": [int(finish == "length") for finish in rows["finish"]],
            "gap": _numbers(rows["gap"], 3),
            "scores": [_numbers(rows[scorer]) for scorer in scorers],
        },
        "verdicts": _verdicts(run, rows, place, texts, judge_texts),
        "labels": [*run.experiment.report.names.items()],
        "texts": list(texts),  # last, when all are known
    }


def _verdicts(
    run: Run,
    rows: pd.DataFrame,
    place: Mapping[str, Mapping[str, int]],
    texts: defaultdict[str, int],
    judge_texts: Mapping[tuple[str, str], str],
) -> Any:
    """A row per verdict on the prompts of `rows`; `judge_texts` are found by the question's identity, which is made of what was shown."""
    judged = run.tables["judgments"]
    judged = pd.concat([judged, run.tables["set_judgments"]]) if len(run.tables["set_judgments"]) else judged
    judged = judged[judged["prompt_id"].isin(place["prompt_id"]) & judged["arm_a"].isin(run.arms) & judged["arm_b"].isin(run.arms)]
    judged = judged.sort_values(["prompt_id", "judge", "arm_a", "arm_b", "seed_a", "seed_b", "round", "order"])
    answer = dict(zip(zip(*(rows[key].tolist() for key in KEYS), strict=True), rows["text"], strict=True))
    names = sorted(set(judged["judge"]))
    verdicts = []
    for row in rows_of(judged):
        rounds = [int(part) if part.isdecimal() else -1 for part in (row.round.split("/")[0], row.round.split("/")[-1])]
        sides = (row.arm_a, row.seed_a, rounds[0]), (row.arm_b, row.seed_b, rounds[1])
        shown = [answer.get((arm, int(seed), round_, row.prompt_id)) for arm, seed, round_ in sides]
        is_swapped = row.order != ORDERS[0]
        words = None if None in shown else judge_texts.get((row.judge, _question(row.prompt_id, *shown[:: -1 if is_swapped else 1])))
        verdicts.append((
            place["prompt_id"][row.prompt_id], names.index(row.judge), place["arm"][row.arm_a], place["arm"][row.arm_b],
            [int(row.seed_a), int(row.seed_b)], rounds, int(is_swapped), CHOICES.index(row.verdict) if row.verdict in CHOICES else None,
            texts[row.failure] if isinstance(row.failure, str) and row.failure else None, None if words is None else texts[words],
        ))  # fmt: skip
    columns = ["prompt", "judge", "a", "b", "seeds", "rounds", "order", "choice", "failure", "words"]
    return {"judges": names, **pd.DataFrame(verdicts, columns=columns, dtype=object).to_dict("list")}


def _question(prompt_id: str, *shown: Any) -> str:
    try:
        return identity(prompt_id, *shown)
    except UnicodeEncodeError:  # half of a surrogate pair has no bytes, and was never asked
        return ""


def _places(values: Iterable[str]) -> dict[str, int]:
    return {value: place for place, value in enumerate(values)}


def _numbers(values: Iterable[float], digits: int = 4) -> list[Any]:
    """Numbers of so many digits, whole ones without a point; None for what is missing."""
    rounded = [None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}") for value in values]
    return [int(value) if value is not None and value == int(value) else value for value in rounded]


def read_prompts(folder: Path, run: Run) -> tuple[Turns, str]:
    """The turns of the test prompts, from tables/prompts.parquet or else from the run's task; why there are none, or "".

    The table has prompt_id, turn, role and text. Prompts' ids are made of their texts, so another task's cannot stand for the run's.
    """
    path, turns = table_path(folder, "prompts"), {}
    if path.exists():
        tables = [name for name in ("prompts", "set_prompts") if table_path(folder, name).exists()]
        for row in rows_of(pd.concat([read_table(table_path(folder, name), name) for name in tables]).sort_values(["prompt_id", "turn"])):
            turns.setdefault(str(row.prompt_id), []).append((str(row.role), str(row.text)))
        return turns, ""
    choice = run.experiment.task
    try:
        task = load_task(choice.use, choice.options, base=Path.cwd())
    except InputError as error:
        return {}, str(error)
    return {prompt.id: [(turn.role, turn.content) for turn in prompt.messages] for prompt in task.prompts["test"]}, ""


def read_judge_texts(folder: Path, run: Run) -> dict[tuple[str, str], str]:
    """What each judge of the run answered in words, by (judge, question), as its journal has it."""
    texts = {}
    for judge, facts in (run.manifest.get("judges") or {}).items():
        if isinstance(identity := facts.get("identity"), dict):
            try:
                prefix = f"{digest(identity)}."
            except ValueError:  # NaN, by damage: no judge has such an identity
                continue
            for key, record in Journal(folder / "store" / "judging" / f"{judge}.jsonl").records.items():
                if key.startswith(prefix) and isinstance(record.get("text"), str):
                    texts[judge, key.removeprefix(prefix)] = record["text"]
    return texts
