"""lm-eval's tasks from local files: opened without a network, known by content, refused in one line."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from lm_eval_tasks import write_tasks

from apo_bench.config.schema import Capabilities, Evaluation
from apo_bench.data import capability_tasks
from apo_bench.data.capability_tasks import as_in_lm_eval, expected, file_identity, identity, open_tasks
from apo_bench.errors import InputError

EVALUATION = {"sampling": {"max_new_tokens": 4}}


def settings(folder: Path, **own: object) -> Capabilities:
    return Capabilities.model_validate({"tasks": ("choose",), "include_path": str(folder), **own})


def test_an_experiment_without_capabilities_keeps_its_bytes():
    """The section is in no dump, and so in no key, unless it is given."""
    assert "capabilities" not in Evaluation.model_validate(EVALUATION).model_dump()
    given = Evaluation.model_validate({**EVALUATION, "capabilities": {"tasks": ("ifeval",)}}).model_dump()
    assert given["capabilities"]["limit"] == 200


def test_files_are_known_by_content(tmp_path: Path):
    """Not by place, margin or metric; by every file of the folder, and by data that a task names elsewhere."""
    first, second = (write_tasks(tmp_path / name) for name in ("a", "b"))
    before = file_identity(settings(first))
    assert file_identity(settings(second)) == before
    assert file_identity(settings(first, margin=0.1, metrics={"choose": "acc_norm,none"})) == before
    assert file_identity(settings(first, limit=5)) != before
    data = second / "choose.jsonl"
    data.write_text(data.read_text(encoding="utf-8").replace("how", "no"), encoding="utf-8")
    assert file_identity(settings(second)) != before
    elsewhere = tmp_path / "elsewhere.jsonl"
    elsewhere.write_bytes(data.read_bytes())
    data.unlink()
    tree = yaml.safe_load((second / "choose.yaml").read_text())
    tree["dataset_kwargs"]["data_files"]["test"] = str(elsewhere)
    (second / "choose.yaml").write_text(yaml.safe_dump(tree))
    moved = file_identity(settings(second))
    elsewhere.write_bytes(elsewhere.read_bytes() + elsewhere.read_bytes())
    assert file_identity(settings(second)) != moved


def test_what_is_not_installed_is_a_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(capability_tasks.importlib.util, "find_spec", lambda name: None)
    assert capability_tasks.lacking() == "evaluation.capabilities: lm-eval is not installed; run: pip install 'apo-bench[lm-eval]'"


@pytest.mark.slow
def test_opened_tasks_are_known_by_what_they_ask(tmp_path: Path):
    pytest.importorskip("lm_eval")
    folder = write_tasks(tmp_path / "tasks")
    with as_in_lm_eval():
        known = identity(settings(folder, limit=4), open_tasks(settings(folder, limit=4), {}))
    assert known["tasks"]["choose"]["version"] == "2.0"
    data = folder / "choose.jsonl"
    lines = data.read_text(encoding="utf-8").splitlines(keepends=True)
    data.write_text("".join([*lines[:4], *reversed(lines[4:])]), encoding="utf-8")  # beyond the limit
    with as_in_lm_eval():
        same = identity(settings(folder, limit=4), open_tasks(settings(folder, limit=4), {}))
        other = identity(settings(folder, limit=5), open_tasks(settings(folder, limit=5), {}))
    assert same["tasks"] == known["tasks"]
    assert other["tasks"] != known["tasks"]


@pytest.mark.slow
def test_what_is_wrong_is_one_line(tmp_path: Path):
    pytest.importorskip("lm_eval")
    folder = write_tasks(tmp_path / "tasks")
    with pytest.raises(InputError, match=r"include_path: .*nowhere: no such folder"):
        open_tasks(settings(tmp_path / "nowhere"), {})
    (folder / "choose.jsonl").unlink()
    with pytest.raises(InputError, match=r"evaluation\.capabilities\.tasks: choose: lm-eval cannot open it: FileNotFoundError"):
        open_tasks(settings(folder), {})


@pytest.mark.slow
def test_a_name_that_no_task_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setattr(
        capability_tasks, "_all_tasks", lambda *_: SimpleNamespace(task_index={"choosy": None})
    )  # in place of thousands of files
    with pytest.raises(InputError, match=r"tasks: no task 'chose' in lm-eval or .*tasks; near: choose, choosy"):
        open_tasks(settings(write_tasks(tmp_path / "tasks"), tasks=("chose",)), {})


@pytest.mark.slow
def test_tokens_are_counted_roughly(tmp_path: Path):
    """Of `choose` a question and an option a request; of `finish` a question, and 4 tokens that are written at most."""
    pytest.importorskip("lm_eval")
    folder = write_tasks(tmp_path / "tasks", n=3)
    rows = [yaml.safe_load(line) for line in (folder / "choose.jsonl").read_text(encoding="utf-8").splitlines()]
    letters = sum(len(row["question"]) + 1 + len(option) for row in rows for option in row["options"])
    assert expected(settings(folder), {}) == (3, letters / 4)
    items, tokens = expected(settings(folder, tasks=("finish",)), {})
    written = [yaml.safe_load(line)["question"] for line in (folder / "finish.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (items, tokens) == (3, sum(map(len, written)) / 4 + 3 * 4)
