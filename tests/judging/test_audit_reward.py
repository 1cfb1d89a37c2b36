"""Reward models audited on people's labels."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from foreign_models import reward_folder
from typer.testing import CliRunner

from apo_bench.cli.main import app
from apo_bench.errors import InputError
from apo_bench.judging.audit_reward import metrics, pair_frame, reward_spec
from apo_bench.judging.human_preferences import Labelled, LabelledPair, read_labelled
from apo_bench.stats import clustered_share
from apo_bench.types import Message, Prompt

HH = Path(__file__).parents[3] / "shared" / "data" / "hh" / "hh_helpful_base_test.jsonl"
ROWS = [
    {"prompt": "how do i wash wool", "chosen": "by hand", "rejected": "you boil it for an hour", "subset": "laundry"},
    {"prompt": "why is the sky blue", "chosen": "light scatters", "rejected": "paint", "subset": "physics"},
    {"prompt": [{"role": "user", "content": "hi"}], "chosen": "hello", "rejected": "go away now", "subset": "manners"},
    {"prompt": "how do i wash wool", "chosen": "with care", "rejected": "no", "subset": "laundry"},
]  # fmt: skip


def labelled_pair(number: int, axis: str, a: str, b: str, label: str) -> LabelledPair:
    return LabelledPair(Prompt(str(number), (Message("user", "q"),), axis, f"c{number // 2}"), a, b, label)  # pyright: ignore


PAIRS = (
    labelled_pair(0, "x", "one two", "one", "a"),  # margin 2: right, longer is better
    labelled_pair(1, "x", "one", "one two", "a"),  # margin 0: half right, shorter is better
    labelled_pair(2, "x", "one two", "one", "b"),  # margin 1: wrong, shorter is better
    labelled_pair(3, "y", "one", "two", "b"),  # margin -3: right, equally long
    labelled_pair(4, "y", "one", "one two", "tie"),  # margin -1: towards the longer; people call it a tie
)
SCORES = [2.0, 0.0, 0.5, 0.5, 1.0, 0.0, 0.0, 3.0, 0.0, 1.0]


def value(rows: pd.DataFrame, axis: str, metric: str) -> tuple[float, int]:
    row = rows[(rows["axis"] == axis) & (rows["metric"] == metric)].iloc[0]
    return row["value"], row["n"]


def test_metrics_by_hand() -> None:
    frame = pair_frame(Labelled("five", PAIRS, {}), SCORES, [False] * 9 + [True])
    rows = metrics(frame)
    assert value(rows, "all", "accuracy") == (2.5 / 4, 4)
    assert value(rows, "x", "accuracy") == (1.5 / 3, 3)
    assert value(rows, "y", "accuracy") == (1, 1)
    assert value(rows, "all", "accuracy_longer") == (1, 1)
    assert value(rows, "all", "accuracy_shorter") == (0.25, 2)
    assert value(rows, "all", "length_bias") == (0.75, 3)
    assert value(rows, "all", "prefers_longer") == ((1 + 0.5 + 1 + 1) / 4, 4)  # to the longer one in three of four, one of them a tie
    assert value(rows, "all", "ties") == (1 / 5, 5)
    assert value(rows, "all", "human_ties") == (1 / 5, 5)
    assert value(rows, "all", "truncated") == (1 / 5, 5)
    sure = [1 / (1 + math.exp(-margin)) for margin in (2, 0, 1, 3)]
    expected = np.mean(sure) - 2.5 / 4
    assert value(rows, "all", "overconfidence")[0] == pytest.approx(expected)
    accuracy = rows[(rows["axis"] == "all") & (rows["metric"] == "accuracy")].iloc[0]
    _, low, high, _ = clustered_share([1, 0.5, 0, 1], ["c0", "c0", "c1", "c1"])
    assert (accuracy["ci_low"], accuracy["ci_high"]) == pytest.approx((low, high))
    # sigmoid(2) = .88 is in [.8, .9), sigmoid(1) = .73 in [.7, .8), sigmoid(3) = .95 in [.9, 1]: each alone in its bin; the tie is left out
    assert value(rows, "all", "ece") == (pytest.approx((1 - sure[0] + sure[2] + 1 - sure[3]) / 3), 3)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_reward_benchs_form_is_read(tmp_path: Path, form: str) -> None:
    """A subset is an axis; rows of one question are one cluster; a hash decides which side is a."""
    rows = [row for row in ROWS if form == "jsonl" or isinstance(row["prompt"], str)]
    path = tmp_path / f"filtered.{form}"
    if form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pd.DataFrame(rows).to_parquet(path)
    pairs = read_labelled(path).pairs
    assert {pair.prompt.axis for pair in pairs} == {row["subset"] for row in rows}
    assert {(pair.a, pair.b)[pair.label == "b"] for pair in pairs} == {row["chosen"] for row in rows}
    wool = {pair.prompt.cluster_id for pair in pairs if pair.prompt.axis == "laundry"}
    assert len(wool) == 1


@pytest.mark.slow
@pytest.mark.parametrize("given", ["{folder}", "{{path: {folder}, template: transcript, max_tokens: 64}}"])
def test_the_command_writes_an_audit(tmp_path: Path, given: str) -> None:
    folder, path = reward_folder(tmp_path / "model"), tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    command = ["audit-reward", given.format(folder=folder), "--data", str(path), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    rows = pd.read_csv(tmp_path / "out" / "report" / "audit.csv")
    assert set(rows["axis"]) == {"laundry", "manners", "physics", "all"}
    assert value(rows, "all", "accuracy")[1] == 4
    assert "4 labelled pairs" in (tmp_path / "out" / "report" / "audit.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not HH.is_file(), reason="HH's test set is not here")
def test_a_random_model_is_near_chance_on_hh(tmp_path: Path) -> None:
    """Its interval holds 1/2 unless its taste for length, which people share in 59 % of these pairs, tells them apart."""
    folder = reward_folder(tmp_path / "model")
    result = CliRunner().invoke(app, ["audit-reward", str(folder), "--data", str(HH), "--n", "150", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    rows = pd.read_csv(tmp_path / "out" / "report" / "audit.csv")
    accuracy, n = value(rows, "all", "accuracy")
    assert n == 150
    assert 0.3 < accuracy < 0.7


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{output: 1}", "a mapping with path"),
        ("{path: org/model, template: chat, output: -1}", "output"),
        ("./absent", "no such model folder"),
    ],
)
def test_a_model_that_cannot_be_is_refused(given: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        reward_spec(given)
