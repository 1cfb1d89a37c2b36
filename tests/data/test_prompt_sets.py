"""Files of prompts as people have them: recognised by their columns, read, counted, clustered; and which prompts stand in training data."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_world import tiny_task

from apo_bench.config.schema import PromptSet
from apo_bench.data import prompt_sets
from apo_bench.data.preference_forms import WrongRow
from apo_bench.data.prompt_forms import Question, recognise
from apo_bench.data.prompt_sets import OWN_ANSWER, read_prompt_set, read_set, second_id
from apo_bench.errors import InputError
from apo_bench.types import Message, Prompt, prompt_id

REAL = Path(__file__).parents[3] / "shared" / "data" / "prompts"
ASKED = (("user", "Why is the sky blue?"),)
TALK = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Who are you?"}]
TALK_TURNS = (("user", "Hi."), ("assistant", "Hello."), ("user", "Who are you?"))
XSTEST = {"id": "1", "type": "homonyms", "focus": "kill", "note": None}
FORMS: dict[str, tuple[Mapping[str, Any], str, Question]] = {  # a row with the columns that the published files have
    "alpaca_eval": (
        {"dataset": "helpful_base", "instruction": "Why is the sky blue?", "output": "Light.", "generator": "text_davinci_003"},
        "AlpacaEval", Question(ASKED),
    ),
    "arena_hard_0.1": (
        {"question_id": "a1", "category": "arena-hard-v0.1", "cluster": "Sky", "turns": [{"content": "Why is the sky blue?"}]},
        "MT-Bench or Arena-Hard, by turns", Question(ASKED),
    ),
    "arena_hard_2.0": (
        {"uid": "a1", "category": "hard_prompt", "subcategory": "coding", "prompt": "Why is the sky blue?"}, "Arena-Hard", Question(ASKED),
    ),
    "mt_bench": (
        {"question_id": 81, "category": "writing", "turns": ["Why is the sky blue?", "Say it shorter."], "reference": ["a", "b"]},
        "MT-Bench or Arena-Hard, by turns", Question(ASKED, ("Say it shorter.",)),
    ),
    "wildbench": (
        {"session_id": "s", "conversation_input": TALK, "checklist": ["x"], "primary_tag": "Editing"}, "WildBench", Question(TALK_TURNS),
    ),
    "xstest": ({**XSTEST, "prompt": "Why is the sky blue?", "label": "safe"}, "XSTest", Question(ASKED, label="safe")),
    "xstest_without_labels": (
        {**XSTEST, "prompt": "Why is the sky blue?", "type": "contrast_homonyms"},
        "XSTest, labels by type", Question(ASKED, label="unsafe"),
    ),
    "harmbench": (
        {"Behavior": "Do it.", "FunctionalCategory": "contextual", "SemanticCategory": "illegal", "Tags": "context",
         "ContextString": "This is how.", "BehaviorID": "do_it"},
        "HarmBench", Question((("user", "This is how.\n\n---\n\nDo it."),)),
    ),
    "harmbench_without_context": (
        {"Behavior": "Do it.", "FunctionalCategory": "standard", "SemanticCategory": "illegal", "ContextString": None},
        "HarmBench", Question((("user", "Do it."),)),
    ),
    "plain": ({"prompt": "Why is the sky blue?"}, "prompts", Question(ASKED)),
    "messages": ({"messages": [*TALK, {"role": "assistant", "content": "A model."}]}, "conversations", Question(TALK_TURNS)),
}  # fmt: skip


def jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", list(FORMS))
def test_each_form_is_recognised_and_read(name: str) -> None:
    row, form_name, question = FORMS[name]
    form = recognise(row)
    assert form is not None
    assert form.name == form_name
    assert form.read(row) == question


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": " "}, "rows without a prompt dropped"),
        ({"turns": [], "x": 1}, "rows whose turns are no list dropped"),
        ({"turns": ["a", ""]}, "rows without a prompt dropped"),
        ({"conversation_input": TALK[:2]}, "rows without a human's first or last turn dropped"),
        ({"conversation_input": [{"role": "system", "content": "Be brief."}, *TALK]}, "rows with a system turn dropped"),
        ({"prompt": "a", "type": "t", "label": "maybe"}, "rows whose label is neither safe nor unsafe dropped"),
        ({"Behavior": 3, "SemanticCategory": "s"}, "rows whose Behavior is no text dropped"),
        ({"messages": "a"}, "rows whose messages are no list dropped"),
    ],
)
def test_a_row_that_cannot_be_read_has_a_reason(row: Mapping[str, Any], reason: str) -> None:
    form = recognise(row)
    assert form is not None
    with pytest.raises(WrongRow, match=f"^{reason}$"):
        form.read(row)


def test_a_set_has_a_question_a_row_and_counts_what_it_leaves_out(tmp_path: Path) -> None:
    """Five rows: one repeats another, one is empty; three questions, of which one has three turns, the last of which is not asked."""
    rows = [{"turns": ["What is a lever?", "And a rim?", "And?"]}, {"turns": ["Fold it."]}, {"turns": ["Tap it."]}]
    path = jsonl(tmp_path / "q.jsonl", [*rows, rows[1], {"turns": [" "]}])
    questions = read_prompt_set("mt", [path], {})
    assert [question.prompt.messages for question in questions.questions] == [
        (Message("user", "What is a lever?"),), (Message("user", "Fold it."),), (Message("user", "Tap it."),),
    ]  # fmt: skip
    assert [question.where for question in questions.questions] == [f"{path}: line {line}" for line in (1, 2, 3)]
    assert questions.axes == ("mt.first", "mt.second")
    assert questions.dropped == {
        "prompts that repeat another left out": 1, "rows without a prompt dropped": 1, "further turns that are not asked": 1,
    }  # fmt: skip
    first = questions.questions[0]
    assert first.prompt.id == prompt_id("mt", first.prompt.messages)
    assert first.second.id == second_id(first.prompt.id)
    assert [message.content for message in first.second.messages] == ["What is a lever?", OWN_ANSWER, "And a rim?"]
    assert questions.summary.startswith("q.jsonl: MT-Bench or Arena-Hard, by turns, 5 rows; 3 mt.first, 1 mt.second; ")


def test_only_first_turns_make_one_axis(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", [{"turns": ["What is a lever?", "And a rim?"]}])
    questions = read_prompt_set("mt", [path], {}, both_turns=False)
    assert questions.axes == ("mt",)
    assert questions.questions[0].follow_up is None
    assert questions.dropped == {"further turns that are not asked": 1}


def test_labels_are_axes_and_a_limit_is_even_over_them(tmp_path: Path) -> None:
    """Of six safe and three unsafe prompts four are kept: two of each."""
    path = tmp_path / "x.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["id", "question", "type", "label", "focus", "note"])
        writer.writeheader()
        words = ["apple", "bread", "cloud", "dance", "eagle", "flute", "grape", "house", "igloo"]
        for number, word in enumerate(words):
            row = {"id": number, "question": f"{word} {word}?", "type": "t", "label": "safe" if number < 6 else "unsafe"}
            writer.writerow(row)
    questions = read_prompt_set("x", [path], {"prompt": "question"}, limit=4)
    assert sorted(question.prompt.axis for question in questions.questions) == ["x.safe"] * 2 + ["x.unsafe"] * 2


def test_near_duplicates_are_one_cluster(tmp_path: Path) -> None:
    """Two prompts of one template, which differ in a letter of 50, and one of its own."""
    template = "Write a short story about a lighthouse keeper named {}"
    rows = [{"prompt": template.format("Tom")}, {"prompt": template.format("Tim")}, {"prompt": "What is a lever?"}]
    first, second, third = (q.prompt.cluster_id for q in read_prompt_set("s", [jsonl(tmp_path / "p.jsonl", rows)], {}).questions)
    assert first == second != third


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([{"question": "a"}], {}, "columns question are no known form"),
        ([{"prompt": "a"}], {"prompt": "text"}, "no column 'text'"),
        (
            [{"prompt": "a"}, {"prompt": 1}, {"prompt": 2}],
            {},
            "2 of 3 rows cannot be used, read as prompts: 2 rows",
        ),
        ([], {}, "no rows"),
    ],
)
def test_a_file_that_is_no_set_is_refused(tmp_path: Path, rows: Any, columns: dict[str, str], message: str) -> None:
    path = jsonl(tmp_path / "p.jsonl", rows)
    part = PromptSet(name="s", data_files=(str(path),), columns=columns)
    with pytest.raises(InputError, match=message) as caught:
        read_set(part)
    assert str(caught.value).startswith("evaluation.prompt_sets: s: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InputError, match=r"evaluation.prompt_sets: s: data_files: nowhere.jsonl: no such file"):
        read_set(PromptSet(name="s", data_files=("nowhere.jsonl",)))


def test_leaks_are_prompts_that_policies_are_trained_on(tmp_path: Path) -> None:
    """A training prompt in other letters leaks; a test prompt and a new one do not. The test prompt is kept if it is no near-duplicate."""
    task = tiny_task()
    trained = task.prompts["policy"][0].messages[0].content
    rows = [{"prompt": f"{trained.upper()}!!"}, {"prompt": "An unheard-of question about zebras and quartz?"}]
    questions = read_prompt_set("s", [jsonl(tmp_path / "p.jsonl", rows)], {}).questions
    assert [question.where.rpartition(": ")[2] for question in prompt_sets.leaks(questions, task)] == ["line 1"]
    messages = (Message("user", trained),)
    demonstrated = replace(task.demonstrations[0], prompt=Prompt("d", messages, "helpful", "d"))
    prompts = dict.fromkeys(task.prompts, ())
    assert len(prompt_sets.leaks(questions, replace(task, prompts=prompts, demonstrations=(demonstrated,)))) == 1  # pyright: ignore
    assert prompt_sets.leaks(questions, replace(task, prompts=prompts, demonstrations=())) == []  # pyright: ignore


def real(name: str) -> Path:
    if not (path := REAL / name).is_file():
        pytest.skip(f"{path} is not here")
    return path


def test_the_published_mt_bench_is_read_whole() -> None:
    """80 questions of two turns, as its paper says (Zheng et al., arXiv:2306.05685)."""
    questions = read_prompt_set("mt", [real("mt_bench_question.jsonl")], {})
    assert len(questions.questions) == 80
    assert all(question.follow_up for question in questions.questions)
    assert not questions.dropped


def test_the_published_xstest_is_read_whole() -> None:
    """250 safe and 200 unsafe prompts, as its paper says (Röttger et al., arXiv:2308.01263)."""
    axes = [question.prompt.axis for question in read_prompt_set("xstest", [real("xstest_prompts.csv")], {}).questions]
    assert (axes.count("xstest.safe"), axes.count("xstest.unsafe"), len(axes)) == (250, 200, 450)
