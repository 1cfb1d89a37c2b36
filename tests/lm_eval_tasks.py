"""A folder of lm-eval tasks over a few words, as a user writes it: YAML, and JSON lines beside it."""

import json
from pathlib import Path
from typing import Any, cast

import yaml

WORDS = "how do i wash it rinse and dry no boil".split()


def write_tasks(folder: Path, n: int = 8) -> Path:
    """`choose`, multiple choice, and `finish`, a generated answer with two filters; their data are named relative to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, (name, own) in enumerate((("choose", _CHOOSE), ("finish", _FINISH))):
        rows = [
            {
                "question": f"how do i {WORDS[(number + place) % 10]} {WORDS[number % 7]}",
                "options": [WORDS[number % 10], WORDS[(number + 3) % 10], f"{WORDS[(number + 5) % 10]} it"],
                "label": number % 3,
                "answer": WORDS[number % 10],
            }
            for number in range(n)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        files = {"data_files": {"test": f"{name}.jsonl"}}
        tree = {"task": name, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test", **own, "metadata": {"version": 2.0}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return folder


def hugging_face_model(**options: Any) -> Any:
    """lm-eval's own model, whose decorators hide its parameters from type checkers."""
    import lm_eval.models.huggingface as models

    return cast(Any, models.HFLM)(**options)


def lm_eval_results(model: Any, **options: Any) -> Any:
    """`lm_eval.simple_evaluate`."""
    import lm_eval

    return cast(Any, lm_eval.simple_evaluate)(model, **options)


_CHOOSE = {
    "output_type": "multiple_choice", "doc_to_text": "question", "doc_to_choice": "options", "doc_to_target": "label",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}  # fmt: skip
_FINISH = {
    "output_type": "generate_until", "doc_to_text": "question", "doc_to_target": "answer",
    "generation_kwargs": {"until": ["boil"], "max_gen_toks": 4, "do_sample": False},
    "filter_list": [
        {"name": "first", "filter": [{"function": "regex", "regex_pattern": r"(\w+)"}, {"function": "take_first"}]},
        {"name": "whole", "filter": [{"function": "take_first"}]},
    ],
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}  # fmt: skip
