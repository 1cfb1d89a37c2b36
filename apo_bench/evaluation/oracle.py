"""The oracle: the best of several answers by the ground truth. No fair arm; all of it is charged to `_bench`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from apo_bench.config.controls import FIRST, ORACLE, chooser
from apo_bench.evaluation.context import EvaluationContext, write_charged
from apo_bench.evaluation.evaluate import RoundEvaluation
from apo_bench.hashing import code_hash, digest
from apo_bench.store import Artifact
from apo_bench.types import Response, Round

DRAW = -4  # of its own: an evaluation's are 0 to -3


def oracle(context: EvaluationContext, final: Round, seed: int) -> Artifact:
    """Scores of the best and of the first of `controls.oracle_n` fresh answers to every test prompt, by every scorer.

    `scores.parquet` has the columns of an evaluation's, and `arm`: ORACLE for the best answer, FIRST for the first. Raises InputError where
    there is nothing to choose by.
    """
    experiment = context.experiment
    chooser(experiment, context.task.ground_truth is not None)
    inputs = {
        "policy": final.policy.key,
        "reward_model": final.reward_model.key if final.reward_model else None,
        "golds": {f"{gold.name}.{number}": context.gold(gold, number).key for gold in experiment.models.gold for number in gold.seeds},
        "seed": seed,
        "n": experiment.controls.oracle_n,
        "sampling": experiment.evaluation.sampling.model_dump(),
        "task": context.task.fingerprint,
        "prompts": digest([prompt.id for prompt in context.test_prompts]),
        "oracle": code_hash(__name__),
        **context.key_parts(),
    }

    def build(folder: Path) -> Mapping[str, float]:
        within = replace(context, charged={})
        candidates = BestAndFirst(within, final, seed)
        arms = [ORACLE, FIRST] * len(context.test_prompts)
        prompts = [(response.prompt.id, response.prompt.cluster_id, response.prompt.axis) for response in candidates.responses]
        frame = pd.DataFrame(prompts, columns=["prompt_id", "cluster_id", "axis"]).assign(arm=arms)
        by_scorer = [frame.assign(scorer=scorer, value=np.asarray(values, dtype=float)) for scorer, values in candidates.scores().items()]
        pd.concat(by_scorer).to_parquet(folder / "scores.parquet", index=False)
        return write_charged(folder, within)

    return context.account(context.store.artifact("evaluations", inputs, build))


class BestAndFirst(RoundEvaluation):
    """Examines two answers to each test prompt: of n fresh ones the best, among equals the first of them, and then the first."""

    @cached_property
    def responses(self) -> tuple[Response, ...]:
        n = self.context.experiment.controls.oracle_n
        tried = self.lab.sample(self.round.policy, self.context.test_prompts, n=n, draw=DRAW, sampling=self.settings.sampling)
        best = self.worth(tried).reshape(-1, n).argmax(axis=1)
        return tuple(tried[place + pick] for place, chosen in zip(range(0, len(tried), n), best, strict=True) for pick in (chosen, 0))

    def worth(self, answers: Sequence[Response]) -> np.ndarray:
        """What the oracle chooses by: the ground truth, or the last gold model's mean score over its seeds. (answers,)"""
        if truth := self.context.task.ground_truth:
            return np.array([truth(answer.prompt, answer.text) for answer in answers])
        last = self.context.experiment.models.gold[-1]
        return np.mean(list(self._gold_scores(last, answers).values()), axis=0)
