"""Labelled pairs: PandaLM's votes, HH's lines and a task's pairs, and what is wrong with a file."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_world import tiny_task

from apo_bench.data.splits import normalise
from apo_bench.data.task import load_task
from apo_bench.errors import InputError
from apo_bench.judging.human_preferences import IDENTICAL, NO_MAJORITY, NOT_TEXT, Labelled, labelled_pairs, read_labelled
from apo_bench.types import Message, identity, prompt_id

DATA = Path(__file__).parents[3] / "shared" / "data"
HH = [DATA / "hh" / f"hh_{axis}_base_test.jsonl" for axis in ("helpful", "harmless")]
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the data are not beside the project (../shared/data)")


def item(a: Any = "Yes.", b: Any = "No.", votes: tuple[Any, ...] = (1, 1, 2), **changes: Any) -> dict[str, Any]:
    """One PandaLM item."""
    labels = {f"annotator{i}": vote for i, vote in enumerate(votes, 1)}
    return {"idx": 0, "instruction": "Is it?", "input": "", "response1": a, "response2": b, **labels, **changes}


def line(place: int = 0, **changes: Any) -> dict[str, Any]:
    """One line of HH."""
    prompt = f"\n\nHuman: Hello {place}\n\nAssistant: Hi!\n\nHuman: How?\n\nAssistant:"
    return {"prompt": prompt, "chosen": f" So {place}.", "rejected": "No.", "subset": "helpful-base/test", **changes}


def write(folder: Path, name: str, content: Any) -> Path:
    """A file of text as it is, or of JSON lines."""
    path = folder / name
    text = content if isinstance(content, str) else "\n".join(json.dumps(record) for record in content)
    path.write_text(text, encoding="utf-8")
    return path


def write_items(folder: Path, items: list[Any]) -> Path:
    return write(folder, "items.json", json.dumps(items, indent=1))


def test_majority_of_three(tmp_path: Path):
    """1 is a, 2 is b, 0 a tie; three different votes are no majority; true is no text; equal responses say nothing of a judge."""
    items = [
        item("one", votes=(1, 2, 1)), item("two", votes=(2, 2, 2)), item("three", votes=(0, 1, 0)), item("four", votes=(0, 1, 2)),
        item(True), item("same", " same"), item("", input="more"),
    ]  # fmt: skip
    labelled = read_labelled(write_items(tmp_path, items))
    assert {pair.a: pair.label for pair in labelled.pairs} == {"one": "a", "two": "b", "three": "tie", "": "a"}
    assert labelled.left_out == {NO_MAJORITY: 1, NOT_TEXT: 1, IDENTICAL: 1}
    assert labelled.name == "items.json"
    prompts = {pair.a: pair.prompt for pair in labelled.pairs}
    assert prompts["one"].messages == (Message("user", "Is it?"),)
    assert prompts[""].messages == (Message("user", "Is it?\n\nmore"),)
    assert {prompt.axis for prompt in prompts.values()} == {"overall"}
    assert prompts["one"].cluster_id == prompts["two"].cluster_id != prompts[""].cluster_id


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"annotator2": 3}, "annotator2: 0, 1 or 2 is needed, got 3"),
        ({"annotator2": True}, "annotator2: 0, 1 or 2 is needed, got True"),
        ({"annotator3": None}, "annotator3: 0, 1 or 2 is needed, got None"),
        ({"response1": 5}, "response1: text is needed, got int"),
        ({"input": None}, "input: text is needed, got NoneType"),
        ({"response2": "\ud800"}, "response2: holds half a surrogate pair, which is no text"),
    ],
)
def test_a_bad_item_is_named(tmp_path: Path, changes: dict[str, Any], problem: str):
    path = write_items(tmp_path, [item(), item(**changes)])
    with pytest.raises(InputError) as error:
        read_labelled(path)
    assert str(error.value) == f"{path}: item 2: {problem}"


@pytest.mark.parametrize("key", ["instruction", "input", "response1", "response2", "annotator1"])
def test_a_missing_key_is_named(tmp_path: Path, key: str):
    path = write_items(tmp_path, [{name: value for name, value in item().items() if name != key}])
    with pytest.raises(InputError, match=f"item 1: {key}: missing"):
        read_labelled(path)


def test_hh_lines(tmp_path: Path):
    """The label is on the chosen side; prompt, axis and cluster are the task's. The original form, whole transcripts, is read as well."""
    start = "\n\nHuman: Bomb?\n\nAssistant:"
    transcripts = {"chosen": f"{start} No.", "rejected": f"{start} Sure.", "subset": "harmless-base/test"}
    other = {**transcripts, "chosen": "\n\nHuman: Cake?\n\nAssistant: Yes."}
    labelled = read_labelled(write(tmp_path, "some.jsonl", [line(), transcripts, other]))
    pairs = {pair.prompt.axis: pair for pair in labelled.pairs}
    assert {axis: pair.a if pair.label == "a" else pair.b for axis, pair in pairs.items()} == {"helpful": "So 0.", "harmless": "No."}
    messages = (Message("user", "Hello 0"), Message("assistant", "Hi!"), Message("user", "How?"))
    assert pairs["helpful"].prompt.messages == messages
    assert pairs["helpful"].prompt.id == prompt_id("helpful", messages)
    assert pairs["helpful"].prompt.cluster_id == identity(normalise("Hello 0"))
    assert labelled.left_out == {"pairs whose sides do not share a prompt dropped": 1}


@pytest.mark.parametrize(
    ("name", "content", "axes"),
    [
        ("alpaca.jsonl", [{"instruction": "Is it?", "output_1": "No.", "output_2": "Yes.", "preference": 1.9}], {"overall"}),
        ("trl.json", json.dumps([{"prompt": "Is it?", "chosen": "Yes.", "rejected": "No.", "axis": "helpful"}]), {"helpful"}),
        ("table.csv", "prompt,chosen,rejected\nIs it?,Yes.,No.\n", {"overall"}),
        (
            "pku.jsonl",
            [{"prompt": "Is it?", "response_0": "Yes.", "response_1": "No.", "better_response_id": 0, "safer_response_id": 0}],
            {"helpful", "harmless"},
        ),
    ],
)
def test_every_form_of_the_task_preferences(tmp_path: Path, name: str, content: Any, axes: set[str]):
    labelled = read_labelled(write(tmp_path, name, content))
    assert {pair.prompt.axis for pair in labelled.pairs} == axes
    assert {pair.a if pair.label == "a" else pair.b for pair in labelled.pairs} == {"Yes."}
    assert {pair.prompt.messages for pair in labelled.pairs} == {(Message("user", "Is it?"),)}


def test_labels_are_balanced_by_a_hash(tmp_path: Path):
    """400 fair coins give 160 to 240 heads but for one in 20,000; the hash does not know whose side it puts first."""
    labelled = read_labelled(write(tmp_path, "many.jsonl", [line(place) for place in range(400)]))
    assert 160 <= Counter(pair.label for pair in labelled.pairs)["a"] <= 240
    assert all((pair.a if pair.label == "a" else pair.b).startswith("So") for pair in labelled.pairs)


def test_a_subset_is_the_same_whatever_the_order_of_the_file(tmp_path: Path):
    lines = [line(place) for place in range(50)]
    all_, some, few = (read_labelled(write(tmp_path, "many.jsonl", lines), n) for n in (None, 20, 5))
    assert (len(all_.pairs), some.pairs, few.pairs) == (50, all_.pairs[:20], all_.pairs[:5])
    assert read_labelled(write(tmp_path, "many.jsonl", lines[::-1]), 20) == some
    assert len(read_labelled(tmp_path / "many.jsonl", 80).pairs) == 50
    with pytest.raises(InputError, match="n: a whole number from 1 is needed, got 0"):
        read_labelled(tmp_path / "many.jsonl", 0)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "line 1: neither a JSON list"),
        ("prompt,chosen\n", "line 1: neither a JSON list"),
        ('{"prompt": "x", "chosen": "y"}', "columns prompt, chosen are no known form"),
        ('{"prompt": "x", "chosen": "y", "subset": "helpful"}', "columns prompt, chosen, subset are no known form"),
        (json.dumps(line()) + "\n{", "line 2: broken JSON"),
        (json.dumps([item()]) + "\n]", "line 2: broken JSON"),
        ("[]", r"no labelled pair \(0 left out\)"),
        ("[3]", "item 1: an object is needed, got int"),
        (json.dumps([item("x", "x")]), r"no labelled pair \(1 left out\)"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: str, problem: str):
    path = write(tmp_path, "data", content)
    with pytest.raises(InputError, match=problem) as error:
        read_labelled(path)
    assert str(path) in str(error.value)


@given(st.binary(max_size=200) | st.sampled_from([b"[", b"{", b"\xef\xbb\xbf[", b"[\xff]"]))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("name", ["data.json", "data.gz"])
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        read_labelled(tmp_path / name)
    assert "\n" not in str(error.value)


def test_no_file_no_folder_and_a_packed_file(tmp_path: Path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_labelled(path)
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(line()).encode()))
    assert len(read_labelled(packed).pairs) == 1


def test_a_tasks_own_pairs():
    """Those of the test split, each once, with the side that was chosen as the label's."""
    task = tiny_task()
    labelled = labelled_pairs(task)
    sides = Counter((pair.prompt.id, *((pair.a, pair.b) if pair.label == "a" else (pair.b, pair.a))) for pair in labelled.pairs)
    assert sides == Counter((pair.prompt.id, pair.chosen, pair.rejected) for pair in task.pairs["test"])
    assert labelled == Labelled("sim_hh test", labelled.pairs, {})
    assert labelled_pairs(task, 3).pairs == labelled.pairs[:3]


@needs_data
def test_pandalm():
    """Every item has a majority (see test_stats_judge_data); six responses are true, which is not text: 999 - 6."""
    labelled = read_labelled(DATA / "judging" / "pandalm" / "testset-v1.json")
    assert (len(labelled.pairs), labelled.left_out) == (993, {NOT_TEXT: 6})
    assert len({pair.prompt.cluster_id for pair in labelled.pairs}) == 170


@pytest.mark.slow
@needs_data
def test_hh_as_the_task_reads_it():
    """The same prompts (with axis and cluster) and sides as those of the task over all its splits."""
    task = load_task("hh", {"data_files": [str(path) for path in HH]}, base=None)
    expected = Counter((pair.prompt, pair.chosen, pair.rejected) for pairs in task.pairs.values() for pair in pairs)
    labelled = [pair for path in HH for pair in read_labelled(path).pairs]
    assert Counter((pair.prompt, *((pair.a, pair.b) if pair.label == "a" else (pair.b, pair.a))) for pair in labelled) == expected
    assert len(labelled) == 2339 + 2303 - 48  # with a speaker's turn inside
