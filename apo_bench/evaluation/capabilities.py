"""`evaluation.capabilities`: lm-eval's tasks on an arm-seed's final policy and on the initial one. All of it is charged to `_bench`."""

from typing import Any

import pandas as pd

from apo_bench.data import capability_tasks
from apo_bench.engines.protocol import CapabilityJob
from apo_bench.evaluation.context import EvaluationContext
from apo_bench.hashing import code_hash
from apo_bench.lab.key_parts import of_format
from apo_bench.tables import CAPABILITY_ITEMS
from apo_bench.types import BestOfNPolicy, FinishedPolicy, Policy, ResponseFile

KIND = "capabilities"  # of artifacts
ITEMS = "items.parquet"


def capability_keys(context: EvaluationContext, final: Policy) -> dict[str, str | None]:
    """Artifacts with the item scores of the final and of the initial policy; None of a policy that has no weights of its own.

    A policy is run once, however many arm-seeds end with it.
    """
    policies = {"final": final, "initial": context.initial_policy}
    return {name: None if isinstance(policy, BestOfNPolicy | ResponseFile) else _run(context, policy) for name, policy in policies.items()}


def _run(context: EvaluationContext, policy: Policy) -> str:
    settings, task = context.experiment.evaluation.capabilities, context.experiment.task
    assert settings is not None
    options: dict[str, Any] = {context.task.name: task.options}
    model = policy.settings if isinstance(policy, FinishedPolicy) else context.policy_model
    with capability_tasks.as_in_lm_eval():
        tasks = capability_tasks.identity(settings, capability_tasks.open_tasks(settings, options))
    inputs = {
        "policy": policy.key,
        "tasks": tasks,
        "options": options,
        "format": of_format(model),
        "code": code_hash(__name__),
        "engine": context.engine.identity,
    }
    job = CapabilityJob(policy, model, settings, options)
    artifact, _ = context.store.computed(
        KIND,
        inputs,
        lambda folder: context.engine.run_capabilities(job),
        lambda folder, rows: pd.DataFrame(rows, columns=list(CAPABILITY_ITEMS)).to_parquet(folder / ITEMS, index=False),
    )
    context.charged[artifact.key] = artifact.counts
    return artifact.key
