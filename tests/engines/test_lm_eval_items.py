"""Rows of `evaluation.capabilities` are lm-eval's own samples: `simple_evaluate` runs beside ours on the same model and task files."""

import socket
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from lm_eval_tasks import hugging_face_model, lm_eval_results, write_tasks

from apo_bench.config.schema import Capabilities, Lora, PolicyModel
from apo_bench.engines.protocol import CapabilityJob
from apo_bench.types import FinishedPolicy

pytest.importorskip("lm_eval", reason="the lm-eval extra is not installed")
pytestmark = pytest.mark.slow
TASKS = ("choose", "finish")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def ours(tmp_path: Path, policy: FinishedPolicy, settings: Capabilities) -> tuple[pd.DataFrame, Any]:
    from apo_bench.engines.transformers import TransformersEngine

    computed = TransformersEngine(tmp_path / "run").run_capabilities(CapabilityJob(policy, policy.settings, settings))
    return pd.DataFrame(computed.value), computed.counts


def theirs(model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> dict[str, Any]:
    """lm-eval by itself, from the folder of the data, since it reads them relative to the working directory."""
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(folder)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return lm_eval_results(model, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0, **options)


def compare(rows: pd.DataFrame, results: dict[str, Any], n: int) -> None:
    """Every score of every sample, and each aggregate as the mean of its items."""
    for task in TASKS:
        expected = {
            (f"{metric},{sample['filter']}", sample["doc_id"]): float(sample[metric])
            for sample in results["samples"][task]
            for metric in sample["metrics"]
        }
        own = rows[rows["task"] == task]
        assert dict(zip(zip(own["metric"], own["doc_id"], strict=True), own["value"], strict=True)) == expected
        assert own["doc_id"].nunique() == n
        for metric, values in own.groupby("metric"):
            assert values["value"].mean() == pytest.approx(results["results"][task][metric])


def whole_policy(tiny_policy: tuple[Path, PolicyModel], **changes: Any) -> FinishedPolicy:
    folder, spec = tiny_policy
    return FinishedPolicy("whole", str(folder), None, spec.model_copy(update=changes))


def test_rows_are_lm_evals_samples(tmp_path: Path, tiny_policy: Any, monkeypatch: pytest.MonkeyPatch):
    """Multiple choice and generated answers, two metrics, two filters, two examples before each item, a limit below the items."""
    folder = write_tasks(tmp_path / "tasks")
    settings = Capabilities(tasks=TASKS, include_path=str(folder), limit=6, num_fewshot=2, batch_size=4)
    rows, counts = ours(tmp_path, whole_policy(tiny_policy), settings)
    results = theirs(
        hugging_face_model(pretrained=str(tiny_policy[0]), device="cpu", dtype="float32", batch_size=4),
        folder,
        monkeypatch,
        limit=6,
        num_fewshot=2,
    )
    compare(rows, results, 6)
    assert rows.groupby(["task", "metric"])["rank"].first().to_dict() == {
        ("choose", "acc,none"): 0,
        ("choose", "acc_norm,none"): 1,
        ("finish", "exact_match,first"): 0,
        ("finish", "exact_match,whole"): 1,
    }
    assert set(rows["higher_is_better"]) == {1}
    assert (counts["scored_responses"], counts["sampled_responses"]) == (6 * 3, 6)
    assert counts["flops"] > 0


def test_the_policys_own_template_and_system_prompt(tmp_path: Path, tiny_policy: Any, monkeypatch: pytest.MonkeyPatch):
    from transformers import AutoTokenizer

    template = "{% for m in messages %}{{ m['content'] }} {{ word }} {% endfor %}"
    folder, model = write_tasks(tmp_path / "tasks"), tmp_path / "model"
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy[0])
    tokenizer.chat_template = template
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tiny_policy[0]).save_pretrained(model)
    tokenizer.save_pretrained(model)
    spec = tiny_policy[1].model_copy(update={"system_prompt": "dry", "chat_template_kwargs": {"word": "boil"}})
    settings = Capabilities(tasks=TASKS, include_path=str(folder), limit=None, apply_chat_template=True)
    rows, _ = ours(tmp_path, FinishedPolicy("chat", str(model), None, spec), settings)
    lm = hugging_face_model(pretrained=str(model), device="cpu", dtype="float32", batch_size=16, chat_template_args={"word": "boil"})
    compare(rows, theirs(lm, folder, monkeypatch, apply_chat_template=True, system_instruction="dry"), 8)
    plain, _ = ours(tmp_path, FinishedPolicy("chat", str(model), None, spec), settings.model_copy(update={"apply_chat_template": False}))
    assert not plain["value"].equals(rows["value"])


def test_a_policy_with_adapters_is_run_with_them(tmp_path: Path, tiny_policy: Any, monkeypatch: pytest.MonkeyPatch):
    """The same as the model with merged weights, which lm-eval loads from a folder."""
    import torch

    from apo_bench.models import adapters
    from apo_bench.models.policy import load_policy, save_model

    model, tokenizer = load_policy(tiny_policy[0])
    adapted = adapters.add(model, Lora(rank=2), seed=0)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    adapted.save_pretrained(tmp_path / "adapters")
    save_model(adapters.plain(adapted), tokenizer, tmp_path / "merged")
    folder = write_tasks(tmp_path / "tasks")
    base = whole_policy(tiny_policy)
    policy = FinishedPolicy("adapted", str(tmp_path / "adapters"), base, base.settings)
    settings = Capabilities(tasks=TASKS, include_path=str(folder), limit=None)
    rows, _ = ours(tmp_path, policy, settings)
    compare(rows, theirs(hugging_face_model(pretrained=str(tmp_path / "merged"), device="cpu", dtype="float32"), folder, monkeypatch), 8)
    plain, _ = ours(tmp_path, base, settings)
    assert not plain["value"].equals(rows["value"])
