"""Sides that hold whole transcripts: huggingface/trl#1886, huggingface/trl#1858, OpenRLHF/OpenRLHF#909."""

import json
from pathlib import Path
from typing import Any

import pytest

from apo_bench.data.task import Task, load_task
from apo_bench.types import Message

DROPPED = "pairs with a speaker's turn inside an answer dropped"
PROMPT = "\n\nHuman: Where is it?\n\nAssistant: What?\n\nHuman: The key."
TURNS = (Message("user", "Where is it?"), Message("assistant", "What?"), Message("user", "The key."))
OPEN = f"{PROMPT}\n\nAssistant:"


def load(folder: Path, *rows: dict[str, Any], **options: Any) -> Task:
    """hh on ordinary rows and on these."""
    ordinary = [
        {"prompt": f"\n\nHuman: Ask {i} {axis}?\n\nAssistant:", "chosen": " Yes.", "rejected": " No.", "subset": axis}
        for i in range(120)
        for axis in ("helpful", "harmless")
    ]
    lines = [json.dumps({"subset": "helpful", **row}) + "\n" for row in (*ordinary, *rows)]
    (folder / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
    return load_task("hh", {"data_files": ["pairs.jsonl"], **options}, base=folder)


def sides(task: Task) -> list[tuple[str, str]]:
    """Chosen and rejected of the pairs that share TURNS."""
    return [(pair.chosen, pair.rejected) for pairs in task.pairs.values() for pair in pairs if pair.prompt.messages == TURNS]


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        (" In the lock.", " No idea."),
        (f"{OPEN} In the lock.", f"{OPEN} No idea."),
        (f"{OPEN} In the lock.", " No idea."),
        (f"{OPEN.strip()}  In the lock.\n", f"\n{OPEN.replace(': ', ':  ').replace('?', '?  ')}No idea."),
        ("\n\nAssistant: In the lock.", "Assistant: No idea."),
        (f"{OPEN} In the lock.\n\nHuman: Thanks.", f"{OPEN} No idea.\n\nHuman: Oh.\n\nHuman: Really?"),
        (" In the lock.\n\nHuman: Thanks.", " No idea.\n \n Human: Oh."),
    ],
)
@pytest.mark.parametrize("prompt", [OPEN, PROMPT, f"{PROMPT}\nAssistant: "])
def test_answers_are_without_the_prompt_and_the_human_s_last_turn(prompt: str, chosen: str, rejected: str, tmp_path: Path) -> None:
    task = load(tmp_path, {"prompt": prompt, "chosen": chosen, "rejected": rejected})
    assert sides(task) == [("In the lock.", "No idea.")]
    assert task.counts.get(DROPPED, 0) == 0


def test_transcripts_that_end_with_a_human_s_turn(tmp_path: Path) -> None:
    task = load(tmp_path, {"chosen": f"{OPEN} In the lock.\n\nHuman: Thanks.", "rejected": f"{OPEN.lstrip()} No idea."})
    assert sides(task) == [("In the lock.", "No idea.")]


@pytest.mark.parametrize(
    "chosen",
    [
        "Human: In the lock?",
        " In the lock.\n\nHuman: Thanks.\n\nAssistant: My pleasure.",
        " In the lock.\n\nAssistant: Or not.",
        f"{OPEN} In the lock.\n\nHuman: Thanks.\n\nAssistant: My pleasure.",
        "\n\nHuman: Another prompt.\n\nAssistant: In the lock.",
        " In the lock.\nHuman: Thanks.",
        OPEN,
    ],
)
def test_a_turn_that_stays_inside_drops_the_pair_and_is_counted(chosen: str, tmp_path: Path) -> None:
    task = load(tmp_path, {"prompt": OPEN, "chosen": chosen, "rejected": " No idea."})
    assert (sides(task), task.counts[DROPPED]) == ([], 1)


def test_no_answer_holds_a_speaker_s_marker_and_ordinary_words_stay(tmp_path: Path) -> None:
    """A colon after a speaker's name within a line is no turn."""
    task = load(tmp_path, {"prompt": OPEN, "chosen": " Ask a Human: they know.", "rejected": " No idea."})
    assert sides(task) == [("Ask a Human: they know.", "No idea.")]


def test_golden_responses_too(tmp_path: Path) -> None:
    """The prompts of the rm split get what their responses hold beside the prompt and the human's turn; a response that goes on is left
    out and counted.
    """
    prompts = [f"\n\nHuman: Ask {i} helpful?\n\nAssistant:" for i in range(120)]
    tails = [" Golden.", " Golden.\n\nHuman: Thanks."]
    golden = [{"prompt": prompt, "response": f"{prompt}{tails[i % 2]}"} for i, prompt in enumerate(prompts)]
    golden[0]["response"] = golden[1]["response"] = " Golden.\n\nHuman: And?\n\nAssistant: More."
    (tmp_path / "golden.jsonl").write_text("".join(json.dumps(row) + "\n" for row in golden), encoding="utf-8")
    task = load(tmp_path, golden="golden.jsonl")
    assert set(task.golden.values()) == {"Golden."}
    assert task.counts["golden responses with a speaker's turn inside left out"] == 2
