"""Judges as an experiment names them, opened: given what they need of the run, and checked before anything is asked."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from apo_bench.config.plugins import JUDGE, resolve
from apo_bench.config.schema import Experiment, JudgeChoice
from apo_bench.data.task import Task
from apo_bench.engines import engine_module, open_engine
from apo_bench.errors import InputError
from apo_bench.hashing import code_hash, digest
from apo_bench.judging.judge_protocol import Judge, JudgeContext
from apo_bench.provenance import versions
from apo_bench.store import RunStore
from apo_bench.types import Prompt


def open_judge(name: str, choice: JudgeChoice, context: JudgeContext) -> Judge:
    """The judge that an experiment names, ready to be asked. Raises InputError, one line that starts with judges.NAME."""
    base = None if context.base is None else Path(context.base)
    try:
        return resolve(choice.use, choice.parameters, base=base, arm=f"judges.{name}", kind=JUDGE).open(context)
    except InputError as error:
        message = str(error)
        raise type(error)(message if message.startswith("judges.") else f"judges.{name}: {message}") from None


def judge_context(experiment: Experiment, task: Task, folder: Path, base: Path | None) -> JudgeContext:
    """What a run offers its judges: the task's ground truth, and the run's gold reward models, loaded when the first is used."""

    @cache
    def evaluation() -> Any:
        from apo_bench.evaluation.context import EvaluationContext
        from apo_bench.models.policy import use_one_thread

        use_one_thread()
        return EvaluationContext(experiment, task, RunStore(folder), open_engine(experiment.engine, experiment.executor, folder))

    golds = {gold.name: gold for gold in experiment.models.gold}
    engine = engine_module(experiment.engine)
    data = {"task": task.fingerprint, "code": code_hash("apo_bench.evaluation.context", engine, *task.source_files), **versions()}
    gold_ids = {name: digest({**data, "gold": gold.model_dump(mode="json")}) for name, gold in golds.items()}

    def score(gold: str, items: Sequence[tuple[Prompt, str]]) -> Sequence[float]:
        import numpy as np

        from apo_bench.evaluation.context import in_order
        from apo_bench.models.pretrained_weights import resolve_model

        spec = golds[gold]
        if experiment.models.policy.path is not None:  # it may have stayed on another machine
            resolve_model(experiment.models.policy.path, base)
        by_seed = [in_order(evaluation().lab(seed, spec.model).score(evaluation().gold(spec, seed), items), items) for seed in spec.seeds]
        return np.mean(by_seed, axis=0).tolist()

    return JudgeContext(None if base is None else str(base), task.axes, task.ground_truth, digest(data), score, gold_ids)
