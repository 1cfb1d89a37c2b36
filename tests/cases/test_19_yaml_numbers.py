"""Numbers in YAML: huggingface/trl#1450, hiyouga/LLaMA-Factory#4014, speechbrain/HyperPyYAML#17."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from apo_bench.config.plain_yaml import PlainDumper, parse_yaml, read_yaml
from apo_bench.data.task_folder import read_description
from apo_bench.errors import InputError

NUMBERS: dict[str, Any] = {
    "5e-1": 0.5, "1e-3": 1e-3, "1E3": 1000.0, ".5": 0.5, "5.": 5.0, "+.5e3": 500.0, "-1": -1, "+1": 1, "0": 0, "0x1F": 31, "0o17": 15,
    "010.5": 10.5, ".inf": math.inf, "-.inf": -math.inf,
    "1:30": "1:30", "190:20:30": "190:20:30", "'010'": "010", "2024-01-01": "2024-01-01", "1.2.3": "1.2.3", "e5": "e5",
}  # fmt: skip
TASK = """
task: toy
custom_dataset: !function toy.rows
metadata:
  apo_bench: {{axes: [a], splits: {{rm: 1}}, salt: s, rows: toy.rows, provenance: Own., options: {{mistakes: {number}}}}}
"""


def task_options(folder: Path, number: str) -> Any:
    path = folder / "toy.yaml"
    path.write_text(TASK.format(number=number), encoding="utf-8")
    return read_description(path).options["mistakes"]


@pytest.mark.parametrize("text", NUMBERS)
def test_a_number_is_the_same_wherever_it_is_read(text: str, tmp_path: Path) -> None:
    """In an experiment file, on the command line and in a task's description."""
    (tmp_path / "experiment.yaml").write_text(f"a: {text}\n", encoding="utf-8")
    values = [read_yaml(tmp_path / "experiment.yaml", "file")["a"], parse_yaml(text, "--set a"), task_options(tmp_path, text)]
    assert values == [NUMBERS[text]] * 3
    assert {type(value) for value in values} == {type(NUMBERS[text])}


@pytest.mark.parametrize("text", ["010", "-010", "08", "00", "1_000", "0b11", "1e999", "!!int 010"])
def test_what_can_be_read_in_two_ways_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^seeds: .*number.*line 1"):
        parse_yaml(f"[{text}]", "seeds")
    with pytest.raises(InputError, match=r"toy\.yaml: .*number"):
        task_options(tmp_path, text)


def test_a_task_s_description_refuses_a_key_given_twice(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'mistakes' occurs twice"):
        task_options(tmp_path, "1, mistakes: 2")


@given(st.text(st.sampled_from("0123456789eE+-._:xob")) | st.integers() | st.floats(allow_nan=False))
def test_what_is_written_is_read_as_it_was(value: Any) -> None:
    read = parse_yaml(yaml.dump({"a": value}, Dumper=PlainDumper), "dump")["a"]
    assert (read, type(read)) == (value, type(value))
