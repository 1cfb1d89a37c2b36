"""A run's responses for others: AlpacaEval's model outputs, preference pairs for TRL, a blind sheet for human annotators."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from apo_bench.analysis.results import Run, read_responses, read_run
from apo_bench.analysis.win_rates import comparisons_from_verdicts, uninformative_judge
from apo_bench.data.task import load_task
from apo_bench.errors import InputError
from apo_bench.formatting import inert, rows_of
from apo_bench.judging.judge_protocol import Order, ResponsePair, both_orders
from apo_bench.run.inputs import with_inputs
from apo_bench.store import write_text
from apo_bench.types import Prompt, identity

At = int | Literal["final", "dev_best"]  # a round's number, each arm's last, or each arm-seed's best on dev
SHEET = ("id", "prompt", "response_1", "response_2", "preference")


@dataclass(frozen=True)
class Exported:
    """The files written, how many rows they hold together, and what was left out, by reason."""

    paths: tuple[Path, ...]
    n: int
    left_out: Mapping[str, int]


@dataclass(frozen=True)
class Answers:
    """What a run's policies answered to its test prompts: (arm, seed, round, prompt_id) -> text."""

    run: Run
    prompts: Mapping[str, Prompt]
    texts: Mapping[tuple[str, int, int, str], str]


def read_answers(folder: Path, base: Path | None = None) -> Answers:
    """A run folder's responses, with the prompts from its task.

    `base` is a folder that the task's files are relative to, besides the working directory. Raises InputError, also where the task
    does not have the prompts that were answered.
    """
    run, rows = read_run(folder), read_responses(folder)
    choice = with_inputs(folder, run.experiment).task
    prompts = {prompt.id: prompt for prompt in load_task(choice.use, choice.options, base=base).prompts["test"]}
    if unknown := sorted(set(rows["prompt_id"]) - set(prompts)):
        path = folder / "tables" / "responses.parquet"
        raise InputError(f"{path}: prompt_id: {unknown[0]} is no test prompt of task {choice.use}; have its data or options changed?")
    keys = zip(rows["arm"], rows["seed"].tolist(), rows["round"].tolist(), rows["prompt_id"], strict=True)
    return Answers(run, prompts, dict(zip(keys, rows["text"], strict=True)))


def rounds(run: Run, at: At | None = None) -> dict[tuple[str, int], int]:
    """The round at which each arm-seed that came through is taken; None: where the experiment compares its arms.

    An arm-seed without a dev_score is taken at its last round, as judges take it.
    """
    at = run.experiment.compare.round if at is None else at
    chosen = run.dev_round if at == "dev_best" else {}
    return {
        (arm, seed): at if isinstance(at, int) else chosen.get((arm, seed), run.final_round[arm])
        for arm, seeds in run.arm_seeds.items()
        for seed in seeds
    }


# AlpacaEval


def export_alpaca_eval(folder: Path, out: Path, *, at: At | None = None, base: Path | None = None) -> Exported:
    """Write out/<arm>/seed<seed>/model_outputs.json, which alpaca_eval takes as model outputs and as reference outputs.

    Rows of instruction, output, generator, dataset (the prompt's axis). A prompt of several turns is one instruction, a transcript.
    alpaca_eval joins two files by instruction, so of prompts that read the same only the first is there; the others are counted.
    Raises InputError for a round that no policy has.
    """
    answers = read_answers(folder, base)
    read_as = {prompt.id: transcript(prompt) for prompt in answers.prompts.values()}
    first = {text: id_ for id_, text in reversed(read_as.items())}
    paths, n, n_same = [], 0, 0
    for (arm, seed), round_ in rounds(answers.run, at).items():
        answered = [id_ for id_ in read_as if (arm, seed, round_, id_) in answers.texts]
        rows = [
            {
                "instruction": read_as[id_],
                "output": answers.texts[arm, seed, round_, id_],
                "generator": f"{arm}-seed{seed}-round{round_}",
                "dataset": answers.prompts[id_].axis,
            }
            for id_ in answered
            if first[read_as[id_]] == id_
        ]
        if rows:
            paths.append(out / arm / f"seed{seed}" / "model_outputs.json")
            write_text(paths[-1], json.dumps(rows, indent=1) + "\n")
        n, n_same = n + len(rows), n_same + len(answered) - len(rows)
    if not paths:
        raise InputError(f"{folder}: no responses of round {answers.run.experiment.compare.round if at is None else at}")
    return Exported(tuple(paths), n, {"same instruction": n_same})


def transcript(prompt: Prompt) -> str:
    """A prompt as one text: a single turn as it is, several with who speaks."""
    if len(prompt.messages) == 1:
        return prompt.messages[0].content
    return "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in prompt.messages)


# Preference pairs


def export_pairs(folder: Path, out: Path, *, judge: str | None = None, base: Path | None = None) -> Exported:
    """Write out/<judge>.jsonl: TRL's conversational preference format, the response that the judge prefers as chosen.

    Fields prompt, chosen and rejected; beside them judge, axis, prompt_id, who wrote which, `value`: 1, or 3/4 where one order was a tie,
    and `informative`: "", or why nothing may rest on this judge on this axis. Ties and comparisons without a verdict are left out and
    counted. None: every judge of the run. These are the run's test prompts: a policy trained on the pairs cannot be evaluated on them.
    Raises InputError where there is no such judge or no such comparison.
    """
    answers = read_answers(folder, base)
    table = comparisons_from_verdicts(answers.run.tables["judgments"])
    judges = sorted(set(table["judge"]))
    if judge not in (None, *judges):
        raise InputError(f"{folder}: no verdicts of judge {judge!r}; judges: {', '.join(judges) or 'none'}")
    table = table[table["judge"].isin(judges if judge is None else [judge])]
    missing, tie = table["value"].isna(), table["value"] == 0.5
    decided = table[~missing & ~tie]
    if decided.empty:
        raise InputError(f"{folder}: no comparison is decided: {len(table)} comparisons, {missing.sum()} without a verdict")
    paths = []
    for name, rows in decided.groupby("judge", sort=True):
        paths.append(out / f"{name}.jsonl")
        doubts = {
            axis: uninformative_judge(answers.run.tables["judge_audit"], str(name), axis, answers.run.axes) for axis in answers.run.axes
        }
        preferred = (_preferred(answers, row) | {"informative": doubts.get(row.axis, "")} for row in rows_of(rows))
        write_text(paths[-1], "".join(json.dumps(row) + "\n" for row in preferred))
    return Exported(tuple(paths), len(decided), {"missing": int(missing.sum()), "ties": int(tie.sum())})


def _preferred(answers: Answers, row: Any) -> dict[str, Any]:
    sides = []
    for arm, seed, label in ((row.arm_a, row.seed_a, row.round.split("/")[0]), (row.arm_b, row.seed_b, row.round.split("/")[-1])):
        round_ = int(label) if label.isdigit() else rounds(answers.run).get((arm, seed), -1)  # "1+2": seeds were chosen differently
        if (arm, seed, round_, row.prompt_id) not in answers.texts:
            raise InputError(
                f"judgments: judge {row.judge}: round {row.round}: {arm}, seed {seed}, has no response to prompt {row.prompt_id}"
            )
        sides.append((arm, int(seed), answers.texts[arm, seed, round_, row.prompt_id]))
    chosen, rejected = sides if row.value > 0.5 else reversed(sides)
    return {
        "prompt": [{"role": message.role, "content": message.content} for message in answers.prompts[row.prompt_id].messages],
        "chosen": [{"role": "assistant", "content": chosen[2]}],
        "rejected": [{"role": "assistant", "content": rejected[2]}],
        "judge": row.judge,
        "axis": row.axis,
        "prompt_id": row.prompt_id,
        "chosen_arm": chosen[0],
        "chosen_seed": chosen[1],
        "rejected_arm": rejected[0],
        "rejected_seed": rejected[1],
        "value": max(row.value, 1 - row.value),
    }


# The annotators' sheet


class Shown(BaseModel):
    """Whose responses a row of the sheet shows; `order` "ab": arm_a's is response_1. `question` is the id of prompt and responses."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    arm_a: str
    arm_b: str
    seed_a: int
    seed_b: int
    round: str
    prompt_id: str
    cluster_id: str
    axis: str
    order: Order
    length_a: float
    length_b: float
    question: str


class Key(BaseModel):
    """What a sheet does not say, by its rows' ids. Nobody is asked about the `identical` responses: they are ties."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    shown: dict[str, Shown]
    identical: tuple[Shown, ...]


def export_annotate(pairs: Sequence[ResponsePair], sheet: Path, *, seed: int = 0, per_pair: int | None = None) -> Exported:
    """Write a blind CSV sheet, columns SHEET, and beside it the key that annotators must not see (`key_path`).

    Annotators put 1, 2 or tie under preference. A hash with `seed` shuffles prompts, a prompt's rows and sides. A win rate needs a prompt
    in all its seeds, so a prompt's rows stand together (half a sheet is half the prompts), and `per_pair`, at most so many rows for each
    pair of arms, takes whole prompts. Identical responses are left out, counted, and ties in the key. A cell that a spreadsheet would
    run has an apostrophe before it (`inert`).
    Raises InputError where nothing is left to annotate, and where the sheet exists: somebody may have written into it.
    """
    if sheet.exists():
        raise InputError(f"{sheet}: exists, and may be filled in; give another name")
    drawn = _drawn(pairs, seed, per_pair)
    place = {pair.prompt.id: identity(str(seed), "prompt", pair.prompt.id) for pair in drawn}
    different = sorted((pair for pair in drawn if pair.a != pair.b), key=lambda pair: (place[pair.prompt.id], _hash(seed, "row", pair)))
    if not different:
        reason = "no two responses differ" if per_pair is None else f"no prompt, in all its seeds, fits into {per_pair} rows"
        raise InputError(f"{sheet}: nothing to annotate: {reason}")
    name = "s" + identity(*(_hash(seed, "name", pair) for pair in different))[:6]  # no sheet fits another's key
    shown, text = {}, io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(SHEET)
    for number, pair in enumerate(different, 1):
        order: Order = "ab" if int(_hash(seed, "side", pair), 16) % 2 else "ba"
        id_, sides = f"{name}_{number:04d}", (pair.a, pair.b) if order == "ab" else (pair.b, pair.a)
        shown[id_] = _shown(pair, order)
        writer.writerow([id_, *map(inert, (transcript(pair.prompt), *sides)), ""])
    identical = tuple(_shown(pair, "ab") for pair in drawn if pair.a == pair.b)
    write_text(key_path(sheet), Key(shown=shown, identical=identical).model_dump_json(indent=1) + "\n")
    write_text(sheet, "\ufeff" + text.getvalue())  # without the mark Excel does not take it for UTF-8
    left_out = {"identical responses": len(identical), "not drawn": len(pairs) - len(drawn)}
    return Exported((sheet, key_path(sheet)), len(different), left_out)


def key_path(sheet: Path) -> Path:
    """Where a sheet's key is: sheet.csv -> sheet.key.json."""
    return sheet.with_suffix(".key.json")


def _drawn(pairs: Sequence[ResponsePair], seed: int, per_pair: int | None) -> list[ResponsePair]:
    if per_pair is None:
        return list(pairs)
    by_arms: dict[tuple[str, str], dict[str, list[ResponsePair]]] = {}
    for pair in pairs:
        by_arms.setdefault((pair.arm_a, pair.arm_b), {}).setdefault(pair.prompt.id, []).append(pair)
    drawn = []
    for prompts in by_arms.values():
        left = per_pair
        for prompt in sorted(prompts, key=lambda prompt: identity(str(seed), "prompt", prompt)):
            left -= sum(pair.a != pair.b for pair in prompts[prompt])
            if left < 0:
                break
            drawn += prompts[prompt]
    return drawn


def _hash(seed: int, what: str, pair: ResponsePair) -> str:
    names = (pair.arm_a, pair.arm_b, str(pair.seed_a), str(pair.seed_b), pair.round)
    return identity(str(seed), what, *names, pair.prompt.id, pair.a, pair.b)


def _shown(pair: ResponsePair, order: Order) -> Shown:
    return Shown(
        arm_a=pair.arm_a, arm_b=pair.arm_b, seed_a=pair.seed_a, seed_b=pair.seed_b, round=pair.round,
        prompt_id=pair.prompt.id, cluster_id=pair.prompt.cluster_id, axis=pair.prompt.axis, order=order,
        length_a=pair.length_a, length_b=pair.length_b, question=both_orders(pair.prompt, pair.a, pair.b)[order == "ba"].id,
    )  # fmt: skip
