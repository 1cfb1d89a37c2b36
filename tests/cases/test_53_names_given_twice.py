"""A key or column that stands twice in what a user gives: Python's readers keep the last without a word, so it is refused by name."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from apo_bench.data.row_files import read_rows
from apo_bench.errors import InputError
from apo_bench.exchange.alpaca_eval_annotations import read_annotations
from apo_bench.judging.answer_parsing import parse_answer
from apo_bench.judging.human_preferences import read_labelled_votes
from apo_bench.lab.response_files import read_responses

PAIR = '{"prompt": "p", "chosen": "a", "rejected": "b", "chosen": "c"}'
ANNOTATION = {"instruction": "i", "output_1": "r", "output_2": "o", "generator_1": "g", "generator_2": "h", "preference": 1}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.jsonl", PAIR),
        ("rows.json", f"[{PAIR}]"),
        ("nested.jsonl", '{"prompt": [{"role": "user", "role": "assistant"}]}'),
        ("rows.csv", "prompt,chosen,chosen,rejected\np,a,c,b\n"),
        ("rows.tsv", "prompt\tchosen\tchosen\np\ta\tc\n"),
    ],
)
def test_rows_of_data(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=rf"{name}.*'(chosen|role)' occurs twice"):
        list(read_rows(tmp_path / name))


def test_columns_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table([pa.array(["p"]), pa.array(["a"]), pa.array(["c"])], names=["prompt", "chosen", "chosen"]), path)
    with pytest.raises(InputError, match=r"rows\.parquet: column 'chosen' occurs twice"):
        list(read_rows(path))


def test_two_empty_names_of_columns_are_a_spreadsheets_margin(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,chosen,,\np,a,,\n")
    assert [row["chosen"] for _, row in read_rows(path)] == ["a"]


def test_responses_annotations_and_votes(tmp_path: Path) -> None:
    responses, annotations, votes = (tmp_path / f"{name}.json" for name in ("responses", "annotations", "votes"))
    responses.write_text('[{"prompt": "p", "response": "a", "response": "b"}]')
    annotations.write_text(f'[{json.dumps(ANNOTATION)[:-1]}, "preference": 2}}]')
    votes.write_text('[{"idx": 1, "annotator1": 1, "annotator1": 2}]')
    with pytest.raises(InputError, match=r"responses\.json: .*'response' occurs twice"):
        read_responses(responses)
    with pytest.raises(InputError, match=r"annotations\.json: .*'preference' occurs twice"):
        read_annotations([annotations])
    with pytest.raises(InputError, match=r"votes\.json: .*'annotator1' occurs twice"):
        list(read_labelled_votes(votes))


@pytest.mark.parametrize("reasoned", [True, False])
def test_a_judges_answer_with_two_verdicts_under_one_key_has_none(reasoned: bool) -> None:
    assert parse_answer('{"verdict": "A", "verdict": "B"}', reasoned) is None
    assert parse_answer('{"verdict": "A", "verdict": "A"}', reasoned) == "first"
    assert parse_answer('{"verdict": {"winner": "A"}, "verdict": "B"}', reasoned) is None
