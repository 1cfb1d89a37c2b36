"""Prompt sets in experiment files: what is refused, and what of them stands in keys."""

import json
from pathlib import Path
from typing import Any

import pytest

from apo_bench.config.load import dump_experiment
from apo_bench.config.prompt_sets import by_content, with_files
from apo_bench.config.schema import Experiment
from apo_bench.errors import InputError
from apo_bench.hashing import digest

SET = {"name": "xs", "data_files": ["xs.csv"]}


def experiment_of(tree: dict[str, Any], *sets: dict[str, Any]) -> Experiment:
    evaluation = tree["evaluation"] | ({"prompt_sets": list(sets)} if sets else {})
    return Experiment.model_validate_json(json.dumps(tree | {"evaluation": evaluation}))


def key_of(folder: Path, tree: dict[str, Any], **settings: Any) -> str:
    return digest(by_content(with_files(experiment_of(tree, SET | settings).evaluation, folder)))


def test_an_experiment_without_sets_has_no_word_of_them(tree: dict[str, Any]) -> None:
    experiment = experiment_of(tree)
    assert "prompt_sets" not in experiment.evaluation.model_dump()
    assert "prompt_sets" not in dump_experiment(experiment)
    assert by_content(experiment.evaluation) == {}


def test_a_key_holds_content_and_settings_but_no_place_and_nothing_of_refusals(tree: dict[str, Any], tmp_path: Path) -> None:
    here, there = tmp_path / "a", tmp_path / "b"
    for folder in (here, there):
        folder.mkdir()
        (folder / "xs.csv").write_text("prompt,type,label\na,t,safe\n")
        (folder / "other.csv").write_text("prompt,type,label\nb,t,safe\n")
    key = key_of(here, tree)
    assert key == key_of(there, tree) == key_of(here, tree, data_files="xs.csv")
    assert key == key_of(here, tree, scorers=["refusal", "gold"], refusal_labels="other.csv")
    changes: list[dict[str, Any]] = [
        {"data_files": ["other.csv"]}, {"data_files": ["xs.csv", "other.csv"]}, {"axis": "helpful"}, {"prompts": 4}, {"turns": "first"},
        {"round": "all"}, {"scorers": ["judge"]}, {"columns": {"prompt": "type"}}, {"name": "ys"},
    ]  # fmt: skip
    assert len({key, *(key_of(here, tree, **change) for change in changes)}) == 1 + len(changes)


def test_a_file_that_is_nowhere_is_named(tree: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"evaluation.prompt_sets: xs: data_files: xs.csv: No such file"):
        key_of(tmp_path, tree)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([SET, SET], "'xs' occurs twice"),
        ([SET | {"refusal_by": "nobody"}], "refusal_by: no judge named 'nobody'"),
        ([SET | {"name": "x.s"}], "name"),
        ([SET | {"data_files": []}], "data_files"),
        ([SET | {"scorers": ["proxy"]}], "scorers"),
    ],
)
def test_what_is_no_set_is_refused(tree: dict[str, Any], sets: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        experiment_of(tree, *sets)
