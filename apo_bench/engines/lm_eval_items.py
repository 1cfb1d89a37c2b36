"""lm-eval run on a loaded policy: a row for each task, metric and item, with exactly the scores of lm-eval's own samples."""

import copy
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np

from apo_bench.data.capability_tasks import KEY, OTHER, as_in_lm_eval, open_tasks
from apo_bench.engines.protocol import CapabilityJob
from apo_bench.errors import InputError
from apo_bench.models import flops
from apo_bench.models.device import seeded
from apo_bench.models.tokenize import ChatFormat
from apo_bench.store import Computed

Row = dict[str, Any]  # task, metric, rank, doc_id, cluster_id, value, higher_is_better


def item_scores(model: Any, tokenizer: Any, job: CapabilityJob) -> Computed[list[Row]]:
    """A row for each task, metric and item that has one number; metrics are named as in lm-eval's results, such as `acc,none`.

    `rank` is the metric's place among those of its task, 0 for the first. Items of one `cluster_id`, where a document has that field, or
    of the same content count as one cluster. Greedy and sampled answers are lm-eval's, not those of `evaluation.sampling`.
    """
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    settings, chat = job.settings, job.settings.apply_chat_template
    tokenizer = copy.deepcopy(tokenizer)  # lm-eval sets what it needs
    if chat:
        tokenizer.chat_template = ChatFormat.of(tokenizer, job.model).template
    with as_in_lm_eval(), seeded(OTHER):
        tasks = open_tasks(settings, job.options)
        lm = cast(Any, HFLM)(
            pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size, chat_template_args=dict(job.model.chat_template_kwargs)
        )
        results = evaluate(
            lm, tasks, limit=settings.limit, bootstrap_iters=0, apply_chat_template=chat, fewshot_as_multiturn=True,
            system_instruction=(job.model.system_prompt or None) if chat else None,
        )  # fmt: skip
        samples: dict[str, list[Any]] = (results or {}).get("samples", {})
        counts = _spent(model, lm, samples)
    return Computed([row for name, task in tasks.items() for row in _rows(name, task, samples[name])], counts)


def _rows(name: str, task: Any, samples: list[Any]) -> Iterator[Row]:
    better, order = task.higher_is_better() or {}, list(task.aggregation() or {})
    scored = [(metric, sample) for sample in samples for metric in sample["metrics"] if _is_number(sample[metric])]
    if not scored:
        raise InputError(f"{KEY}.tasks: {name}: no metric of it is one number an item")
    filters = list(dict.fromkeys(sample["filter"] for _, sample in scored))

    def place(metric: tuple[str, str]) -> tuple[int, int, str]:
        return order.index(metric[0]) if metric[0] in order else len(order), filters.index(metric[1]), metric[0]

    metrics = sorted({(metric, sample["filter"]) for metric, sample in scored}, key=place)
    for metric, sample in scored:
        document = sample["doc"]
        cluster = document.get("cluster_id") if isinstance(document, Mapping) else None
        yield {
            "task": name,
            "metric": f"{metric},{sample['filter']}",
            "rank": metrics.index((metric, sample["filter"])),
            "doc_id": int(sample["doc_id"]),
            "cluster_id": str(cluster or sample["doc_hash"][:16]),
            "value": float(sample[metric]),
            "higher_is_better": int(better.get(metric, True)),
        }


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float | np.generic) and math.isfinite(value)


def _spent(model: Any, lm: Any, samples: Mapping[str, list[Any]]) -> dict[str, float]:
    """What was read and written: each request once, however many filters and metrics read its answer."""
    size, spent = flops.size(model), Counter[str]()
    once = [sample for of_task in samples.values() for sample in of_task if sample["filter"] == of_task[0]["filter"]]
    for arguments, answers in (pair for sample in once for pair in zip(sample["arguments"], sample["resps"], strict=True)):
        if isinstance(arguments[1], str):
            tokens = len(lm.tok_encode("".join(arguments[:2])))
            spent.update({"scored_responses": 1, "scored_tokens": tokens, "flops": size.forward([tokens])})
        else:
            written = [len(lm.tok_encode(str(text), add_special_tokens=False)) + 1 for text in answers]
            read = size.generation(len(lm.tok_encode(arguments[0])), written)
            spent.update({"sampled_responses": len(written), "sampled_tokens": sum(written), "flops": read})
    return {unit: float(amount) for unit, amount in spent.items()}
