"""A template that writes the date gets the same day at every run of a folder.

Reported of others: oobabooga/text-generation-webui#6692, sgl-project/sglang#3296.
"""

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from chat_families import family_policy, family_tokenizer
from tiny_tokenizers import prompt

from apo_bench.errors import InputError
from apo_bench.models.pretrained_weights import reads_clock
from apo_bench.models.tokenize import ChatFormat
from apo_bench.run.experiment import FIRST_DAY, ResolvedExperiment, resolve_experiment


def header(chat: ChatFormat) -> str:
    return chat.tokenizer.decode(chat.encode_prompt(prompt("how"), 999).ids).split("<|eot|>")[0]


def test_the_day_is_the_settings() -> None:
    day = date(2020, 2, 29)
    assert header(ChatFormat(family_tokenizer("dated"), date=day)).endswith("Today: 29 Feb 2020")
    assert header(ChatFormat(family_tokenizer("dated"))) == header(ChatFormat(family_tokenizer("dated")))  # never the machine's day


def test_a_call_that_cannot_be_pinned_is_refused() -> None:
    tokenizer = family_tokenizer("dated")
    tokenizer.chat_template = "{% set form = '%d' %}{{ strftime_now(form) }}"
    with pytest.raises(InputError, match="strftime_now"):
        ChatFormat(tokenizer).encode_prompt(prompt("how"), 99)


@pytest.fixture
def dated(tree: dict[str, Any], write_experiment: Callable[[dict[str, Any]], Path], tmp_path: Path) -> Callable[..., ResolvedExperiment]:
    """An experiment with a policy whose template writes the date, in the folder `run`."""
    policy = tree["models"]["policy"]
    del policy["architecture"], policy["warmup"]
    policy["path"] = str(family_policy("dated", tmp_path / "dated"))
    path = write_experiment(tree)
    return lambda **overrides: resolve_experiment(path, overrides, tmp_path / "run")


def test_by_default_it_is_the_day_of_the_first_run(dated: Callable[..., ResolvedExperiment], tmp_path: Path) -> None:
    assert dated().experiment.models.policy.template_date in (date.today(), date.today() - timedelta(days=1))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / FIRST_DAY).write_text("2024-05-06\n")
    resolved = dated()
    assert resolved.experiment.models.policy.template_date == date(2024, 5, 6)
    assert getattr(resolved.experiment.models.reward, "template_date", None) is None  # its template writes no date
    named = dated(**{"models.policy.template_date": "2021-01-02"})
    assert named.experiment.models.policy.template_date == date(2021, 1, 2)


def test_the_day_is_in_the_record_key(dated: Callable[..., ResolvedExperiment], tmp_path: Path) -> None:
    from apo_bench.run.records import record_key

    (tmp_path / "run").mkdir()
    keys = []
    for day in ("2024-05-06", "2024-05-07", "2024-05-06"):
        (tmp_path / "run" / FIRST_DAY).write_text(day)
        resolved = dated()
        keys.append(record_key(resolved.job("rjs", 0), resolved))
    assert keys[0] != keys[1]
    assert keys[0] == keys[2]


def test_a_damaged_day_is_one_line(dated: Callable[..., ResolvedExperiment], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / FIRST_DAY).write_text("yesterday")
    with pytest.raises(InputError, match=r"first_day\.txt: not a date"):
        dated()


def test_which_templates_read_the_clock(tmp_path: Path) -> None:
    assert reads_clock(str(family_policy("dated", tmp_path / "dated")))
    assert not reads_clock(str(family_policy("llama3", tmp_path / "llama3")))
    assert reads_clock("somebody/something")  # a hub id: nobody knows yet
