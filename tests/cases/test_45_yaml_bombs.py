"""YAML that is small and stands for much: refused, wherever YAML is read, before anything is made of it."""

import json
from pathlib import Path

import pytest

from apo_bench.config.load import read_experiment
from apo_bench.config.plain_yaml import MOST_CHARACTERS, MOST_LEVELS, MOST_VALUES, parse_yaml
from apo_bench.data.task_folder import read_description
from apo_bench.errors import InputError

BOMB = "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10))])  # 10^9 values
MERGED = "\n".join(["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{{', '.join(f'k{i}: *a{n - 1}' for i in range(10))}}}" for n in range(1, 10))])
TEXTS = {
    "aliases": (BOMB, "values"),
    "aliases in mappings": (MERGED, "values"),
    "merge keys": (MERGED.replace("{k0:", "{<<:"), "values|occurs"),
    "itself": ("a: &a [*a]", "holds itself"),
    "itself as a key": ("&a {? *a : 1}", "holds itself|recursive|not valid|is not text"),
    "depth": ("[" * 5000 + "]" * 5000, f"more than {MOST_LEVELS} levels"),
    "depth in blocks": ("\n".join(" " * n + "a:" for n in range(300)), f"more than {MOST_LEVELS} levels"),
    "size": ("a: " + "x" * MOST_CHARACTERS, "characters"),
    "values": ("[" + "1," * (MOST_VALUES + 1) + "]", "values"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_it_is_refused_in_an_experiment_a_task_and_an_option(name: str, tmp_path: Path) -> None:
    text, reason = TEXTS[name]
    path = tmp_path / "toy.yaml"
    path.write_text(text, encoding="utf-8")
    for read in (lambda: parse_yaml(text, "--set a"), lambda: read_experiment(path), lambda: read_description(path)):
        with pytest.raises(InputError, match=reason) as caught:
            read()
        assert len(str(caught.value).splitlines()) == 1


def test_a_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match="1099511627776 bytes"):
        read_experiment(path)


def test_aliases_in_reason_are_read() -> None:
    text = "base: &base {a: 1, b: [2, 3]}\nsame: *base\nmore: {<<: *base, c: 4}"
    assert json.dumps(parse_yaml(text, "text")) == json.dumps(
        {"base": {"a": 1, "b": [2, 3]}, "same": {"a": 1, "b": [2, 3]}, "more": {"a": 1, "b": [2, 3], "c": 4}}
    )
