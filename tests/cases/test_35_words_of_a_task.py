"""A task whose vocabulary holds what marks turns, ends and padding: refused by name, or texts would end in their middle."""

from pathlib import Path

import pytest

from apo_bench.data.task import load_task
from apo_bench.errors import InputError
from apo_bench.models.word_tokenizer import word_tokenizer
from apo_bench.types import SPECIAL_WORDS

ROWS = """
def rows():
    for number in range(200):
        yield {"messages": [("user", f"ask {number}")], "chosen": "yes", "rejected": "no", "axis": "a", "cluster": str(number)}

def vocabulary():
    return ["ask", "yes", "no", WORD]
"""
TASK = """
task: toy
custom_dataset: !function toy.rows
metadata:
  apo_bench: {axes: [a], splits: {rm: 0.2, policy: 0.2, dev: 0.2, test: 0.2, gold: 0.2}, salt: s, rows: toy.rows,
              vocabulary: toy.vocabulary, provenance: Own.}
"""


def task(folder: Path, word: str) -> Path:
    (folder / "toy").mkdir()
    (folder / "toy" / "toy.yaml").write_text(TASK, encoding="utf-8")
    (folder / "toy" / "toy.py").write_text(ROWS.replace("WORD", repr(word)), encoding="utf-8")
    return folder / "toy"


@pytest.mark.parametrize("word", [*SPECIAL_WORDS, "a<eos>", "two words", "", " ", "line\n"])
def test_it_is_refused_by_name(word: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"toy\.yaml: metadata\.apo_bench\.vocabulary: .* is no word of texts") as caught:
        load_task(str(task(tmp_path, word)), {}, base=None)
    assert repr(word) in str(caught.value)


def test_other_words_are_taken(tmp_path: Path) -> None:
    assert load_task(str(task(tmp_path, "<maybe>")), {}, base=None).vocabulary == ("ask", "yes", "no", "<maybe>")


@pytest.mark.slow
def test_the_names_are_those_of_the_tokenizer() -> None:
    assert set(word_tokenizer(["a"]).all_special_tokens) == set(SPECIAL_WORDS)
