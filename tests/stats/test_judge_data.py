"""Published numbers from real verdicts: AlpacaEval 2's leaderboard, PandaLM's annotators, GPT-3.5 as a judge."""

import csv
import gzip
import json
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import cohens_kappa

from apo_bench.stats.rater_agreement import agreement
from apo_bench.stats.win_rate_estimates import win_rate

DATA = Path(__file__).parents[3] / "shared" / "data" / "judging"
MODELS = ["alpaca-7b", "gpt-3.5-turbo-0301", "phi-2-sft", "vicuna-7b-v1.5"]
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the judge data are not beside the project (../shared/data/judging)")


@pytest.fixture(scope="module")
def pandalm() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The annotated items and GPT-3.5's verdicts on them."""
    names = "testset-v1.json", "gpt-3.5-turbo-testset-v1.json"
    humans, judge = (json.loads((DATA / "pandalm" / name).read_text(encoding="utf-8")) for name in names)
    assert [item["idx"] for item in humans] == [item["idx"] for item in judge]
    return humans, judge


@pytest.mark.parametrize("model", MODELS)
def test_alpaca_eval_leaderboard(model: str):
    """preference 1 = baseline wins, 2 = model wins, 0 or 1.5 = draw; score = preference - 1; the leaderboard is in percent."""
    with gzip.open(DATA / "alpaca_eval2" / f"{model}.jsonl.gz", "rt", encoding="utf-8") as lines:
        preferences = [json.loads(line)["preference"] for line in lines]
    with (DATA / "alpaca_eval2" / "published.csv").open(encoding="utf-8") as lines:
        row = next(row for row in csv.DictReader(lines) if row["model"] == model)
    result = win_rate(None if x is None else 0.5 if x == 0 else x - 1 for x in preferences)
    assert 100 * result.mean == pytest.approx(float(row["win_rate"]), abs=1e-6)
    assert 100 * result.standard_error == pytest.approx(float(row["standard_error"]), abs=1e-6)
    counts = [int(row[name]) for name in ("n_wins", "n_wins_base", "n_draws", "n_total")]
    assert [result.n_wins, result.n_losses, result.n_ties, result.n] == counts


def test_pandalm_annotators(pandalm: tuple[list[dict[str, Any]], list[dict[str, Any]]]):
    """The published kappas .852, .879, .862 are those of annotators 1 and 2, 1 and 3, 2 and 3."""
    labels = [[item[f"annotator{i}"] for item in pandalm[0]] for i in (1, 2, 3)]
    result = [agreement(a, b) for a, b in combinations(labels, 2)]
    assert [pair.kappa for pair in result] == pytest.approx([0.852, 0.879, 0.862], abs=5e-4)
    assert {(pair.n, pair.n_missing, pair.labels) for pair in result} == {(999, 0, (0, 1, 2))}


def test_gpt_against_the_majority_of_three(pandalm: tuple[list[dict[str, Any]], list[dict[str, Any]]]):
    """Every item has a majority; 25 of GPT-3.5's answers do not parse. Items share instructions: clustered, the error is 1.4 times."""
    humans, judge = pandalm
    votes = [Counter(item[f"annotator{i}"] for i in (1, 2, 3)).most_common(1)[0] for item in humans]
    majority = [label if n >= 2 else None for label, n in votes]
    verdicts = [{"1": 1, "2": 2, "Tie": 0}.get(item["gpt_result"]) for item in judge]
    both = [(a, b) for a, b in zip(majority, verdicts, strict=True) if a is not None and b is not None]

    result = agreement(majority, verdicts)
    assert (result.n, result.n_missing) == (len(both), 25)
    assert result.kappa == pytest.approx(float(cohen_kappa_score(*zip(*both, strict=True))), abs=1e-12)
    assert result.raw == pytest.approx(sum(a == b for a, b in both) / len(both))
    expected: Any = cohens_kappa(result.confusion)
    assert (result.ci_low, result.ci_high) == pytest.approx((expected.kappa_low, expected.kappa_upp), abs=0.004)

    clustered = agreement(majority, verdicts, clusters=[(item["instruction"], item["input"]) for item in humans])
    assert clustered.kappa == result.kappa
    assert clustered.n_clusters == 169
    assert clustered.standard_error / result.standard_error == pytest.approx(1.39, abs=0.01)
