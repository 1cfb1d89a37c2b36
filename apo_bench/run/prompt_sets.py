"""Prompt sets in a run folder: their tables, what tells refusals among the answers, and the pairs of answers that judges compare."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from apo_bench.analysis.results import Run
from apo_bench.clients.endpoint import ChatSettings
from apo_bench.config.plugins import JUDGE, resolve
from apo_bench.config.schema import RULE, Experiment, PromptSet
from apo_bench.data.prompt_sets import OWN_ANSWER, QuestionSet, leaks, read_set, second_id, set_of
from apo_bench.data.task import Task
from apo_bench.errors import InputError
from apo_bench.judging import refusals
from apo_bench.judging.judge_protocol import ResponsePair
from apo_bench.judging.judge_result import IncompleteJudge
from apo_bench.judging.response_pairs import response_pairs
from apo_bench.run.jobs import Records
from apo_bench.tables import read_table, table_path
from apo_bench.types import Message, Prompt

SCORES, RESPONSES, PROMPTS, JUDGMENTS = "set_scores", "set_responses", "set_prompts", "set_judgments"
ANSWERED = ["arm", "seed", "round"]


@dataclass(frozen=True)
class SetTables:
    """Tables of the sets, what the manifest says of each, and judges that left questions about refusals unanswered."""

    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    incomplete: Sequence[IncompleteJudge] = ()


def gather_sets(folder: Path, experiment: Experiment, task: Task, records: Records, base: Path | None) -> SetTables:
    """The rows of all arm-seeds on all sets, with refusals where they are scored; nothing where there are no sets."""
    parts = experiment.evaluation.prompt_sets
    if not parts or not records:
        return SetTables()
    sets = {part.name: read_set(part) for part in parts}
    frames: dict[str, list[pd.DataFrame]] = {SCORES: [], RESPONSES: []}
    for (arm, seed), record in records.items():
        for number, round_ in enumerate(record["rounds"]):
            for key in round_.get("prompt_sets", {}).values():
                for table, name in ((SCORES, "scores"), (RESPONSES, "responses")):
                    rows = pd.read_parquet(folder / "store" / "evaluations" / key / f"{name}.parquet")
                    frames[table] += [rows.assign(arm=arm, seed=seed, round=number)] if len(rows) else []
    tables = {name: pd.concat(rows, ignore_index=True) for name, rows in frames.items() if rows}
    if not tables:  # no file of responses has any of the prompts
        return SetTables(facts={part.name: _facts(part, sets[part.name], task) for part in parts})
    tables[PROMPTS] = pd.DataFrame(
        [
            {"prompt_id": prompt.id, "turn": place, "role": turn.role, "text": turn.content}
            for questions in sets.values()
            for question in questions.questions
            for prompt in question.prompts
            for place, turn in enumerate(prompt.messages)
        ]
    )
    facts, incomplete = {}, []
    for part in parts:
        facts[part.name] = _facts(part, sets[part.name], task)
        if "refusal" in part.scorers:
            try:
                rows, quality = _refusals(folder, experiment, part, tables, base)
            except InputError as error:
                incomplete.append(IncompleteJudge(part.refusal_by, f"refusals of {part.name}: {str(error).removeprefix('kind: judge: ')}"))
                continue
            tables[SCORES] = pd.concat([tables[SCORES], rows], ignore_index=True)
            facts[part.name]["refusal"] = quality
    return SetTables(tables, facts, incomplete)


def check_sets(experiment: Experiment, task: Task, base: Path | None) -> Iterator[str]:
    """A note on each set: what its files were taken for, and which prompts stand in the policies' training data.

    `experiment` has its files located. Raises InputError for a file that is no set, and for what does not go with the task.
    """
    for place, part in enumerate(experiment.evaluation.prompt_sets):
        key = f"evaluation.prompt_sets.{place}"
        if part.name in task.axes:
            raise InputError(f"{key}.name: {part.name} is an axis of task {task.name}")
        if part.axis is not None and part.axis not in task.axes:
            raise InputError(f"{key}.axis: task {task.name} has no axis {part.axis!r}; it has: {', '.join(task.axes)}")
        _settings(experiment, part, base)
        refusals.read_labelled(part.refusal_labels and Path(part.refusal_labels))  # pyright: ignore[reportArgumentType]
        questions = read_set(part)
        yield f"{key}: {part.name}: {questions.summary}"
        if leaked := leaks(questions.questions, task):
            yield f"{key}: {part.name}: {len(leaked)} of its prompts stand, in equal words or nearly, in the policies' training data"


def set_pairs(folder: Path, run: Run) -> list[ResponsePair]:
    """The pairs of answers to sets that judges compare: those of each arm's last round, of sets with the scorer `judge`.

    A second turn is compared as the conversation from the first answer on. The prompts' axes are what judges take them for.
    """
    parts = [part for part in run.experiment.evaluation.prompt_sets if "judge" in part.scorers]
    if not parts or not table_path(folder, RESPONSES).exists():
        return []
    responses = read_table(table_path(folder, RESPONSES), RESPONSES)
    about = _about(read_table(table_path(folder, SCORES), SCORES))
    turns = _turns(read_table(table_path(folder, PROMPTS), PROMPTS))
    pairs: list[ResponsePair] = []
    for part in parts:
        own = responses[[set_of(about[id_][0]) == part.name for id_ in responses["prompt_id"]]]
        present = set(zip(own["arm"], own["seed"], own["round"], strict=True))
        rounds = {(arm, seed): run.final_round[arm] for arm, seeds in run.arm_seeds.items() for seed in seeds}
        rounds = {key: round_ for key, round_ in rounds.items() if (*key, round_) in present}
        prompts = [_judged_prompt(part, id_, turns[id_], *about[id_]) for id_ in own["prompt_id"].drop_duplicates()]
        shown = own.assign(text=list(_from_the_first_answer(own, turns)))
        pairs += response_pairs(run.experiment, rounds, shown, prompts, table_path(folder, RESPONSES))
    return pairs


def with_set_axes(folder: Path, judgments: pd.DataFrame) -> pd.DataFrame:
    """Verdicts on sets, their axes those of the sets again."""
    if judgments.empty:
        return judgments
    about = _about(read_table(table_path(folder, SCORES), SCORES))
    return judgments.assign(axis=[about[id_][0] for id_ in judgments["prompt_id"]])


def _facts(part: PromptSet, questions: QuestionSet, task: Task) -> dict[str, Any]:
    leaked = leaks(questions.questions, task)
    return {
        "files": dict(questions.forms),
        "rows": dict(questions.n_rows),
        "prompts": len(questions.questions),
        "dropped": dict(questions.dropped),
        "leaks": [f"{Path(question.where.rpartition(': ')[0]).name}: {question.where.rpartition(': ')[2]}" for question in leaked],
        "reward_axes": [part.axis] if part.axis else list(task.axes),
    }


def _refusals(
    folder: Path, experiment: Experiment, part: PromptSet, tables: Mapping[str, pd.DataFrame], base: Path | None
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Rows of the scorer `refusal`, and how well refusals are verdicts."""
    about, turns = _about(tables[SCORES]), _turns(tables[PROMPTS])
    responses = tables[RESPONSES]
    responses = responses[[set_of(about[id_][0]) == part.name for id_ in responses["prompt_id"]]]
    labelled, labels = refusals.read_labelled(Path(part.refusal_labels) if part.refusal_labels else None)
    settings = _settings(experiment, part, base)
    rows = []
    if settings is None:
        verdicts, values = (
            refusals.by_rule(labelled),
            {index: float(refusals.declines(str(text))) for index, text in responses["text"].items()},
        )
    else:
        scorer, journals = refusals.scorer_of(settings), folder / "store" / "judging" / f"refusals.{part.refusal_by}"
        verdicts, values = refusals.by_judge(scorer, labelled, journals), {}
        firsts = _texts(responses)
        for _, group in responses.groupby(ANSWERED, sort=True):
            items = [
                (_conversation(row["prompt_id"], turns, firsts[row["arm"], row["seed"], row["round"]]), str(row["text"]))
                for row in group.to_dict("records")
            ]
            values |= dict(zip(group.index, refusals.by_judge(scorer, items, journals), strict=True))
    for index, row in zip(responses.index, responses.to_dict("records"), strict=True):
        axis, cluster = about[row["prompt_id"]]
        same = {name: row[name] for name in ("arm", "seed", "round", "prompt_id")}
        rows.append({**same, "cluster_id": cluster, "axis": axis, "scorer": "refusal", "value": values[index]})
    scored = pd.DataFrame(rows).dropna(subset=["value"])
    described = {"by": part.refusal_by, "labelled": Path(part.refusal_labels).name if part.refusal_labels else None}
    return scored, {**described, "n_missing": len(rows) - len(scored), **asdict(refusals.quality(labels, verdicts))}


def _settings(experiment: Experiment, part: PromptSet, base: Path | None) -> ChatSettings | None:
    """The chat judge that tells refusals; None for the rule."""
    if part.refusal_by == RULE:
        return None
    choice = experiment.judges[part.refusal_by]
    spec = resolve(choice.use, choice.parameters, base=base, arm=f"judges.{part.refusal_by}", kind=JUDGE)
    if not isinstance(spec, ChatSettings):
        raise InputError(f"evaluation.prompt_sets: {part.name}: refusal_by: {part.refusal_by} is no chat judge")
    return spec


def _about(scores: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Axis and cluster of each prompt."""
    once = scores.drop_duplicates("prompt_id")
    return {row.prompt_id: (row.axis, row.cluster_id) for row in once.itertuples()}  # pyright: ignore


def _turns(prompts: pd.DataFrame) -> dict[str, tuple[Message, ...]]:
    turns: dict[str, list[Message]] = {}
    for row in prompts.sort_values(["prompt_id", "turn"]).to_dict("records"):
        turns.setdefault(row["prompt_id"], []).append(Message(row["role"], row["text"]))
    return {id_: tuple(messages) for id_, messages in turns.items()}


def _texts(responses: pd.DataFrame) -> dict[tuple[Any, ...], dict[str, str]]:
    """(arm, seed, round) -> prompt id -> answer."""
    texts: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in responses.to_dict("records"):
        texts.setdefault((row["arm"], row["seed"], row["round"]), {})[row["prompt_id"]] = row["text"]
    return texts


def _conversation(id_: str, turns: Mapping[str, tuple[Message, ...]], answers: Mapping[str, str]) -> Prompt:
    """A prompt as it was asked: a second turn after the policy's own first answer."""
    first = {second_id(other): other for other in answers}.get(id_)
    messages = turns[id_]
    if first is not None:
        messages = tuple(replace(turn, content=answers[first]) if turn.content == OWN_ANSWER else turn for turn in messages)
    return Prompt(id_, messages, "", "")


def _judged_prompt(part: PromptSet, id_: str, turns: tuple[Message, ...], axis: str, cluster: str) -> Prompt:
    """What judges are shown before the answers: everything up to the policy's own first one."""
    shown = turns[:-2] if _is_second(turns) else turns
    return Prompt(id_, shown, part.axis or axis, cluster)


def _is_second(turns: tuple[Message, ...]) -> bool:
    return len(turns) > 2 and turns[-2] == Message("assistant", OWN_ANSWER)


def _from_the_first_answer(responses: pd.DataFrame, turns: Mapping[str, tuple[Message, ...]]) -> Iterator[str]:
    """Each answer; to a second turn the first answer, the user's second turn and the answer."""
    texts = _texts(responses)
    firsts: Collection[str] = set(responses["prompt_id"])
    first_of = {second_id(id_): id_ for id_ in firsts}
    for row in responses.to_dict("records"):
        first, own = first_of.get(row["prompt_id"]), texts[row["arm"], row["seed"], row["round"]]
        if first is None or first not in own:
            yield row["text"]
        else:
            yield f"{own[first]}\n\n[user]\n{turns[row['prompt_id']][-1].content}\n\n[assistant]\n{row['text']}"
