"""Answers to sets of prompts that are only asked, and the gold models' scores of them. All of it is charged to `_bench`.

A gold model that scores by axis takes the prompts for those of the axis that the set declares, or scores them as each of the task's axes,
of which the mean counts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from apo_bench.config.prompt_sets import rounds_of
from apo_bench.config.schema import Gold, PromptSet, RewardSpec, members
from apo_bench.engines.protocol import Items
from apo_bench.evaluation.context import EvaluationContext, in_order, write_charged
from apo_bench.hashing import code_hash, digest
from apo_bench.lab import Lab
from apo_bench.store import Artifact
from apo_bench.tables import empty_table
from apo_bench.types import Message, Prompt, Response, Round, prompt_id


@dataclass(frozen=True)
class SetAnswer:
    """An answer. `row`: the prompt that stands for it in tables; `response.prompt` is the conversation that the policy answered."""

    row: Prompt
    response: Response


def evaluate_sets(context: EvaluationContext, round_: Round, seed: int, number: int, last: int) -> dict[str, str]:
    """By set the key of this round's evaluation, of the sets that are asked in round `number` of rounds 0 to `last`."""
    parts = context.experiment.evaluation.prompt_sets
    return {part.name: evaluate_set(context, part, round_, seed).key for part in parts if number in rounds_of(part, last)}


def evaluate_set(context: EvaluationContext, part: PromptSet, round_: Round, seed: int) -> Artifact:
    """Answers and scores of one round's policy on one set, as parquet files in an artifact."""
    golds = context.experiment.models.gold if "gold" in part.scorers else ()
    inputs = {
        "policy": round_.policy.key,
        "golds": {f"{gold.name}.{number}": context.gold(gold, number).key for gold in golds for number in gold.seeds},
        "seed": seed,
        "questions": digest([[prompt.id for prompt in question.prompts] for question in context.prompt_sets[part.name].questions]),
        "axis": part.axis,
        "sampling": context.experiment.evaluation.sampling.model_dump(exclude={"engine"}),
        "task": context.task.fingerprint,
        "prompt_sets": code_hash(__name__),
        **context.key_parts(),
    }

    def build(folder: Path) -> Mapping[str, float]:
        within = replace(context, charged={})
        evaluation = SetEvaluation(within, part, round_, seed)
        for name, rows in (("scores", evaluation.score_rows()), ("responses", evaluation.response_rows())):
            (pd.DataFrame(rows) if rows else empty_table(name)).to_parquet(folder / f"{name}.parquet", index=False)
        return write_charged(folder, within)

    return context.account(context.store.artifact("evaluations", inputs, build))


@dataclass(frozen=True)
class SetEvaluation:
    """One round's rows of one set."""

    context: EvaluationContext
    part: PromptSet
    round: Round
    seed: int

    @cached_property
    def answers(self) -> tuple[SetAnswer, ...]:
        """To first turns, then to second ones. A file of responses lacks those of prompts that it does not have."""
        questions = self.context.prompt_sets[self.part.name].questions
        lab, axis = self.context.lab(self.seed), self.part.axis or self.context.task.axes[0]
        by_id = {(prompt := _as_axis(question.prompt, axis)).id: (prompt, question) for question in questions}
        first = self._sample(lab, [prompt for prompt, _ in by_id.values()])
        answers = [SetAnswer(by_id[response.prompt.id][1].prompt, response) for response in first]
        going_on = {}
        for response in first:
            prompt, question = by_id[response.prompt.id]
            if question.follow_up is not None:
                turns = (*prompt.messages, Message("assistant", response.text), Message("user", question.follow_up))
                second = Prompt(prompt_id(axis, turns), turns, axis, prompt.cluster_id)
                going_on[second.id] = (second, question)
        second = self._sample(lab, [prompt for prompt, _ in going_on.values()]) if going_on else ()
        return (*answers, *(SetAnswer(going_on[response.prompt.id][1].second, response) for response in second))

    def _sample(self, lab: Lab, prompts: Sequence[Prompt]) -> tuple[Response, ...]:
        return lab.sample(self.round.policy, prompts, n=1, sampling=self.context.experiment.evaluation.sampling)

    def scores(self) -> dict[str, np.ndarray]:
        """Of every scorer a value for each of the answers."""
        scores: dict[str, np.ndarray] = {}
        for gold in self.context.experiment.models.gold if "gold" in self.part.scorers else ():
            by_seed = {seed: self._gold_scores(gold, seed) for seed in gold.seeds}
            scores |= {f"{gold.name}.{seed}": values for seed, values in by_seed.items()}
            scores[gold.name] = np.mean(list(by_seed.values()), axis=0)
        return scores | {"length": np.asarray([float(answer.response.tokens) for answer in self.answers])}

    def score_rows(self) -> list[dict[str, Any]]:
        return [
            {
                "prompt_id": answer.row.id,
                "cluster_id": answer.row.cluster_id,
                "axis": answer.row.axis,
                "scorer": scorer,
                "value": float(value),
            }
            for scorer, values in self.scores().items()
            for answer, value in zip(self.answers, values, strict=True)
        ]

    def response_rows(self) -> list[dict[str, Any]]:
        rows = ((answer.row, answer.response) for answer in self.answers)
        return [{"prompt_id": row.id, "text": answer.text, "tokens": answer.tokens, "finish": answer.finish} for row, answer in rows]

    def _gold_scores(self, gold: Gold, seed: int) -> np.ndarray:
        """(answers,), the mean over the axes that the model reads the prompts as."""
        if not self.answers:
            return np.zeros(0)
        lab, model = self.context.lab(seed, gold.model), self.context.gold(gold, seed)
        by_axis = []
        for axis in self._axes(gold.model):
            responses = [replace(answer.response, prompt=_as_axis(answer.response.prompt, axis)) for answer in self.answers]
            items = Items.of(responses)
            by_axis.append(in_order(lab.score(model, items), items))
        return np.mean(by_axis, axis=0)

    def _axes(self, spec: RewardSpec) -> Iterator[str]:
        axes = self.context.task.axes
        yield from (self.part.axis,) if self.part.axis else axes if scores_by_axis(spec) else axes[:1]


def scores_by_axis(spec: RewardSpec) -> bool:
    """Whether a reward model's score of a response depends on the prompt's axis."""
    by_template = (getattr(member, "template", None) == "by_axis" for member in members(spec))
    own = (getattr(member, name, False) for member in members(spec) for name in ("axis_heads", "axis_input", "per_axis"))
    return any((*by_template, *own))


def _as_axis(prompt: Prompt, axis: str) -> Prompt:
    """The same conversation as a prompt of this axis."""
    return Prompt(prompt_id(axis, prompt.messages), prompt.messages, axis, prompt.cluster_id)
