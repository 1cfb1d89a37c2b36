"""Length-controlled win rates: two lengths by hand, statsmodels and scikit-learn, exchanged sides, degenerate data, real verdicts."""

import csv
import gzip
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression
from statsmodels.api import GLM, families

from apo_bench.stats.bootstrap import draw_counts
from apo_bench.stats.length_control import LABEL, length_controlled_win_rate
from apo_bench.stats.logistic_regression import fit_logit, row_products

DATA = Path(__file__).parents[3] / "shared" / "data" / "judging" / "alpaca_eval2"
MODELS = ["alpaca-7b", "gpt-3.5-turbo-0301", "phi-2-sft", "vicuna-7b-v1.5"]


def frame(value: Any, longer: Any, **columns: Any) -> pd.DataFrame:
    """a's answers are `longer` than b's, which have 100."""
    rows = pd.DataFrame({"prompt_id": range(len(value)), "value": value, "length_a": 100 + np.asarray(longer), "length_b": 100})
    return rows.assign(**columns)


def simulated(n: int, seed: int = 0) -> tuple[pd.DataFrame, dict[int, float]]:
    """Fractional preferences that depend on length and on difficulty."""
    generator = np.random.default_rng(seed)
    longer, hard = generator.integers(-90, 300, n), generator.normal(3, 2, n)
    value = expit(-0.5 + 0.01 * longer - 0.4 * hard + generator.normal(0, 1, n)).round(2)
    return frame(value, longer), dict(enumerate(hard.tolist()))


def test_two_lengths_by_hand():
    """Longer by 50: 9 of 10 won, odds 9. Shorter by 50: 1 of 2, odds 1. Log-odds are intercept +- phi tau, two equations for two
    unknowns: intercept = (log 9 + log 1)/2 = log 3, so 3/4 at equal lengths; phi tau = log 3. The differences' mean is 50 * 8/12, their
    variance 2500 * 12 (1 - 4/9)/11 = 2500 * 20/33, so tau = tanh(sqrt(33/20)). Raw: 10/12; a is longer in 10/12.
    """
    result = length_controlled_win_rate(frame([1] * 9 + [0, 1, 0], [50] * 10 + [-50] * 2), seed=0)
    assert result.win_rate == result.share_longer == pytest.approx(10 / 12)
    assert result.lc_win_rate == pytest.approx(0.75, abs=1e-4)
    phi = math.log(3) / math.tanh(math.sqrt(33 / 20))
    assert result.coefficients == pytest.approx({"intercept": math.log(3), "length": phi}, abs=1e-3)
    assert (result.n, result.n_missing, result.n_clusters, result.n_seeds, result.draws) == (12, 0, 12, 1, 1000)
    assert 0 < result.ci_low < 0.75 < result.ci_high < 1
    assert (result.label, result.note) == (LABEL, "no difficulty table: no difficulty term")
    assert result.scope.startswith("new prompts like these")


def test_against_statsmodels_and_sklearn():
    """The same quasi-likelihood maximised by others: binomial GLM of fractions; logistic regression of each row as win and loss."""
    rows, difficulty = simulated(400)
    result = length_controlled_win_rate(rows, difficulty=difficulty, draws=100, seed=0)
    longer, hard = (rows["length_a"] - 100).to_numpy(), np.array([*difficulty.values()])
    x = np.column_stack([np.ones(400), np.tanh(longer / longer.std(ddof=1)), (hard - hard.mean()) / hard.std()])
    glm = GLM(rows["value"].to_numpy(), x, family=families.Binomial()).fit(tol=1e-12)
    assert list(result.coefficients.values()) == pytest.approx(glm.params, abs=1e-4)  # the penalty's share
    level = x * [1, 0, 1]
    assert result.lc_win_rate == pytest.approx(expit(level @ glm.params).mean(), abs=1e-5)
    weight = np.r_[rows["value"], 1 - rows["value"]]
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000)
    model.fit(np.r_[x, x], np.repeat([1, 0], 400), sample_weight=weight)
    assert result.lc_win_rate == pytest.approx(model.predict_proba(level)[:, 1].mean(), abs=1e-5)


def test_the_error_is_the_refits_not_the_predictions():
    """Bootstrap against the cluster-robust delta method of statsmodels: the rate is expit(intercept), its error rate (1 - rate) times the
    intercept's. Each prompt comes four times over in its cluster, so the error is twice what rows would give. The standard error of
    the predictions' mean, as if coefficients were known, is 0 without difficulty and much too small with it.
    """
    once, table = simulated(200)
    rows = pd.concat([once] * 4, ignore_index=True).assign(prompt_id=range(800), cluster_id=np.tile(np.arange(200), 4))
    result = length_controlled_win_rate(rows, seed=1)
    longer = (rows["length_a"] - 100).to_numpy()
    x = np.column_stack([np.ones(800), np.tanh(longer / longer.std(ddof=1))])
    model = GLM(rows["value"].to_numpy(), x, family=families.Binomial())
    robust = model.fit(cov_type="cluster", cov_kwds={"groups": rows["cluster_id"].to_numpy()})
    slope = result.lc_win_rate * (1 - result.lc_win_rate)
    assert result.standard_error == pytest.approx(slope * robust.bse[0], rel=0.08)
    assert result.n_clusters == 200
    by_row = length_controlled_win_rate(rows.drop(columns="cluster_id"), seed=1)
    assert result.standard_error == pytest.approx(2 * by_row.standard_error, rel=0.1)

    weak = {prompt: value + 0.01 * prompt for prompt, value in table.items()}
    with_table = length_controlled_win_rate(once, difficulty=weak, seed=1)
    hard = np.array([*weak.values()])
    p = expit(with_table.coefficients["intercept"] + with_table.coefficients["difficulty"] * (hard - hard.mean()) / hard.std())
    assert p.std(ddof=1) / math.sqrt(200) < 0.75 * with_table.standard_error


def test_seeds_by_hand():
    """Equal lengths, 0.4 everywhere in seed 0 and 0.6 in seed 1: mean 1/2, seed variance A = 0.02, A/S = 0.01, so the error is 0.1 with one
    degree of freedom; the log-odds are 0 +- t * 0.1 / 0.25.
    """
    rows = pd.concat([frame([0.4] * 5, [0] * 5, seed=0), frame([0.6] * 5, [0] * 5, seed=1)])
    result = length_controlled_win_rate(rows, seed=0)
    half = student.ppf(0.975, 1) * 0.1 / 0.25
    numbers = [result.lc_win_rate, result.standard_error, result.ci_low, result.ci_high]
    assert numbers == pytest.approx([0.5, 0.1, expit(-half), expit(half)], rel=1e-3)
    assert (result.n_seeds, result.n_clusters) == (2, 5)
    assert result.scope.startswith("new seeds and new prompts")
    assert result.test.startswith("bootstrap of seeds and clusters")
    single = length_controlled_win_rate(rows[rows["seed"] == 1], seed=0)
    assert single.scope == "these checkpoints only; this judge"


def test_seeds_that_differ_widen_the_error():
    """Log-odds of three seeds one apart: a pooled bootstrap of prompts averages that away."""
    generator = np.random.default_rng(3)
    longer = generator.integers(-90, 90, 100)
    parts = [
        frame((generator.random(100) < expit(shift + longer / 60)).astype(float), longer, seed=i) for i, shift in enumerate((-1, 0, 1))
    ]
    rows = pd.concat(parts, ignore_index=True)
    pooled = length_controlled_win_rate(rows.drop(columns="seed").assign(cluster_id=rows["prompt_id"], prompt_id=range(300)), seed=0)
    result = length_controlled_win_rate(rows, seed=0)
    assert result.lc_win_rate == pytest.approx(pooled.lc_win_rate, abs=1e-12)
    assert result.standard_error > 2 * pooled.standard_error
    assert result.ci_high - result.ci_low > 4 * (pooled.ci_high - pooled.ci_low)


@pytest.mark.slow
@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.integers(-40, 40), st.integers(0, 3)), min_size=2, max_size=14),
    st.booleans(),
    st.booleans(),
)
def test_exchanging_sides_gives_the_complement(items: list[tuple[float, int, int]], with_difficulty: bool, with_seeds: bool):
    """Of every field; separated, constant and saturated data included."""
    value, longer, hard = (np.array(column) for column in zip(*items, strict=True))
    rows = frame(value, longer)
    if with_seeds:
        rows = pd.concat([rows.assign(seed=0), rows.assign(seed=1, value=rows["value"] * 0.5 + 0.2)])
    other = rows.assign(value=1 - rows["value"], length_a=rows["length_b"], length_b=rows["length_a"])
    table = dict(enumerate(hard.tolist())) if with_difficulty else None
    column, two = (asdict(length_controlled_win_rate(x, difficulty=table, draws=100, seed=5)) for x in (rows, other))
    for name, mirror in (("win_rate", "win_rate"), ("lc_win_rate", "lc_win_rate"), ("ci_low", "ci_high"), ("ci_high", "ci_low")):
        assert column[name] == pytest.approx(1 - two[mirror], abs=1e-9, nan_ok=True)
    assert column["standard_error"] == pytest.approx(two["standard_error"], abs=1e-9, nan_ok=True)
    signs = {"intercept": -1, "length": 1, "difficulty": -1}
    mirrored = {name: signs[name] * x for name, x in two["coefficients"].items()}
    assert column["coefficients"] == pytest.approx(mirrored, rel=1e-6, abs=1e-6, nan_ok=True)
    assert (column["n_unbounded"], column["test"], column["scope"]) == (two["n_unbounded"], two["test"], two["scope"])


def test_rescaled_lengths_and_difficulty_change_nothing():
    """Lengths in other units, difficulty on another scale: the same numbers."""
    rows, difficulty = simulated(60)
    plain = length_controlled_win_rate(rows, difficulty=difficulty, draws=100, seed=0)
    scaled = rows.assign(length_a=rows["length_a"] * 7.0, length_b=700.0)
    two = length_controlled_win_rate(scaled, difficulty=pd.Series(difficulty) * -1000 + 5, draws=100, seed=0)
    numbers = ("lc_win_rate", "standard_error", "ci_low", "ci_high")
    assert [getattr(plain, x) for x in numbers] == pytest.approx([getattr(two, x) for x in numbers], abs=1e-10)


def test_missing_values_are_counted():
    rows, _ = simulated(30)
    lacking = pd.concat([rows, rows.head(2).assign(prompt_id=[90, 91], value=math.nan, length_a=math.nan)])
    whole, partial = (length_controlled_win_rate(x, draws=100, seed=0) for x in (rows, lacking))
    assert (partial.n, partial.n_missing) == (30, 2)
    assert partial.lc_win_rate == whole.lc_win_rate


def test_equal_lengths_leave_the_plain_win_rate():
    """No length term, which the note says: the win rate at equal lengths is the win rate, here 3/4."""
    result = length_controlled_win_rate(frame([1, 1, 1, 0] * 5, [0] * 20), seed=0)
    assert result.lc_win_rate == pytest.approx(0.75, abs=1e-4)
    assert list(result.coefficients) == ["intercept"]
    assert "lengths are all equal: no length term" in result.note


@pytest.mark.parametrize(
    ("value", "longer"),
    [
        ([1, 0, 1, 0], [30] * 4),  # always 30 longer
        ([1, 0, 1, 0], [3000, 3001, 3000, 3001]),  # tanh is 1 to the last digit
        ([1, 1, 0, 0], [40, 30, 12, 10]),  # lengths separate wins from losses, both far from equal
        ([1, 1, 1, 1], [40, 30, 12, 10]),  # won everything, always the longer one
        ([1], [5]),
    ],
)
def test_what_the_data_do_not_say_is_not_available(value: list[int], longer: list[int]):
    result = length_controlled_win_rate(frame(value, longer), seed=0)
    assert result.win_rate == sum(value) / len(value)
    assert all(math.isnan(x) for x in (result.lc_win_rate, result.standard_error, result.ci_low, result.ci_high))
    assert "not available" in result.note
    assert result.test.startswith("none")


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_won_or_all_lost(value: float):
    """Longer or shorter, a always wins: so it does in between. Nothing varies, so there is no interval."""
    result = length_controlled_win_rate(frame([value] * 6, [30, -20, 10, 5, -5, -1]), seed=0)
    assert (result.win_rate, result.lc_win_rate, result.standard_error) == (value, value, 0)
    assert math.isnan(result.ci_low)
    assert math.isnan(result.coefficients["length"])
    assert f"every preference is {value:.0f}" in result.note


def test_all_tied_and_one_cluster():
    """Ties everywhere: 1/2 without an error to estimate. One cluster: a rate and no error."""
    tied = length_controlled_win_rate(frame([0.5] * 6, [30, -20, 10, 5, -5, -1]), seed=0)
    assert (tied.lc_win_rate, tied.standard_error) == (pytest.approx(0.5), 0)
    assert tied.test.startswith("none")
    rows, _ = simulated(30)
    result = length_controlled_win_rate(rows.assign(cluster_id="only"), seed=0)
    assert 0 < result.lc_win_rate < 1
    assert math.isnan(result.standard_error)
    assert result.n_clusters == 1


def test_few_wins_leave_some_draws_to_the_penalty():
    """Two wins among 12: a quarter or so of the draws have one of them or none; they are counted and nothing blows up."""
    result = length_controlled_win_rate(frame([1, 1] + [0] * 10, [20, -30, 25, 10, 5, -5, -10, 15, -20, 40, 0, 3]), seed=0)
    assert 0 < result.n_unbounded < result.draws
    assert 0 <= result.ci_low < result.lc_win_rate < result.ci_high <= 1


def test_constant_difficulty_drops_out():
    rows, _ = simulated(30)
    result = length_controlled_win_rate(rows, difficulty=dict.fromkeys(range(30), 2.0), draws=100, seed=0)
    assert "difficulty is the same for every prompt: no difficulty term" in result.note
    assert list(result.coefficients) == ["intercept", "length"]


def test_difficulty_that_follows_length_is_not_available():
    """Difficulty = tanh of the difference: any share of the length effect may be difficulty's."""
    rows, _ = simulated(60)
    longer = rows["length_a"] - 100
    table = dict(enumerate(np.tanh(longer / longer.std()).tolist()))
    assert math.isnan(length_controlled_win_rate(rows, difficulty=table, draws=100, seed=0).lc_win_rate)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"value": 1.5}, "column value holds"),
        ({"value": math.inf}, "column value is NaN or infinite in 3 rows"),
        ({"value": "won"}, "column value is not numeric"),
        ({"value": "1"}, "column value is not numeric"),
        ({"value": pd.Timestamp("1970-01-01")}, "column value is not numeric"),
        ({"length_a": 1j}, "column length_a is not numeric"),
        ({"length_a": pd.Series([10**400] * 3, dtype=object)}, "column length_a is not numeric"),
        ({"prompt_id": [[0], [1], [2]]}, "column prompt_id holds a label that is not hashable"),
        ({"value": math.nan}, "no row has a value"),
        ({"length_b": math.nan}, "column length_b is NaN or infinite in 3 rows"),
        ({"length_a": -1}, "column length_a holds -1"),
        ({"prompt_id": 7}, "2 rows repeat a prompt"),
        ({"prompt_id": None}, "column prompt_id is empty in 3 rows"),
        ({"seed": [0, 0, None]}, "column seed is empty in 1 rows"),
        ({"prompt_id": [1, 1, 2], "seed": [0, 1, 0], "cluster_id": [1, 2, 2]}, "prompt 1 is in two clusters"),
    ],
)
def test_bad_rows(change: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=rf"^length_controlled_win_rate: .*{words}"):
        length_controlled_win_rate(frame([1, 0, 1], [1, 2, -3]).assign(**change), seed=0)


def test_bad_arguments():
    rows = frame([1, 0, 1], [1, 2, -3])
    with pytest.raises(ValueError, match=r"^length_controlled_win_rate: column length_a is missing"):
        length_controlled_win_rate(rows.drop(columns="length_a"), seed=0)
    with pytest.raises(ValueError, match="confidence is between 0 and 1, got 1"):
        length_controlled_win_rate(rows, seed=0, confidence=1)
    with pytest.raises(ValueError, match=r"^length_controlled_win_rate: column seed occurs 2 times"):
        length_controlled_win_rate(rows.assign(seed=0).join(pd.DataFrame({"x": [0, 1, 2]})).rename(columns={"x": "seed"}), seed=0)
    with pytest.raises(ValueError, match="rows come as a DataFrame, got NoneType"):
        length_controlled_win_rate(None, seed=0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="difficulty is a table of prompts and numbers, got 5"):
        length_controlled_win_rate(rows, difficulty=5, seed=0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"difficulty is not numeric"):
        length_controlled_win_rate(rows, difficulty={0: "1", 1: "2", 2: "3"}, seed=0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"difficulty holds 1e\+300, too large"):
        length_controlled_win_rate(rows, difficulty={0: 1e300, 1: 0.0, 2: 1.0}, seed=0)
    with pytest.raises(ValueError, match="difficulty lacks prompt 1"):
        length_controlled_win_rate(rows, difficulty={0: 1.0}, seed=0)
    with pytest.raises(ValueError, match="difficulty is NaN or infinite in 1 rows"):
        length_controlled_win_rate(rows, difficulty={0: 1.0, 1: math.nan, 2: 0.0}, seed=0)
    with pytest.raises(ValueError, match="difficulty lists prompt 0 twice"):
        length_controlled_win_rate(rows, difficulty=pd.Series([1.0, 2.0, 3.0, 4.0], index=[0, 0, 1, 2]), seed=0)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        *(("draws", draws, "draws is a whole number of at least 100") for draws in (1, 1000.0, None, "1000", True, math.nan)),
        *(("seed", seed, "seed is a whole number of at least 0") for seed in (None, -1, 1.5, "x", True, np.random.default_rng(0))),
        *(("confidence", confidence, "confidence is between 0 and 1") for confidence in ("0.9", None, math.nan)),
    ],
)
def test_arguments_that_are_no_numbers(name: str, value: Any, words: str):
    with pytest.raises(ValueError, match=f"^length_controlled_win_rate: {words}, got .") as caught:
        length_controlled_win_rate(frame([1, 0, 1], [1, 2, -3]), **{"seed": 0, name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("table", [{0: 0.3, 1: 0.1 + 0.2, 2: 0.3, 3: 0.3}, {0: 1e-300, 1: 0.0, 2: 0.0, 3: 0.0}])
def test_difficulty_that_differs_by_rounding_drops_out(table: dict[int, float]):
    """Scaled by its SD, .1 + .2 against .3 would count as the hardest prompt, and 1e-300 against 0 divide by a variance of 0."""
    result = length_controlled_win_rate(frame([1, 0, 1, 0], [1, 2, -3, -1]), difficulty=table, draws=100, seed=0)
    assert "difficulty is the same for every prompt" in result.note


def test_refits_of_all_draws_are_single_refits():
    """Weights of a draw are rows repeated."""
    rows, _ = simulated(40)
    x = np.column_stack([np.ones(40), rows["length_a"] / 100])
    counts = draw_counts(np.random.default_rng(0), 5, 40).astype(float)
    assert (counts.sum(1) == 39).all()
    value = rows["value"].to_numpy()
    together = fit_logit(x, row_products(x), counts, counts * value, np.zeros(2))[0]
    for result, weights in zip(together, counts, strict=True):
        again = np.repeat(np.arange(40), weights.astype(int))
        glm = GLM(value[again], x[again], family=families.Binomial()).fit(tol=1e-12)
        assert result == pytest.approx(glm.params, abs=1e-3)


@pytest.mark.skipif(not DATA.is_dir(), reason="the judge data are not beside the project (../shared/data/judging)")
@pytest.mark.parametrize("model", MODELS)
def test_alpaca_eval_leaderboard(model: str):
    """The leaderboard's fit is another one: phi is pulled towards that of rewritten baseline answers, difficulty is in it, L1 penalty.
    All four models write shorter answers than the baseline (a is longer in 2 to 9 % of comparisons), so equal lengths lie at the data's
    edge and phi decides. Ours, without any pull, is 1.7 to 4.4 and theirs lies between the plain rate and ours. With phi held at 1 for all
    four, the intercept fitted as here, the published numbers come out within one point of a hundred.
    """
    with gzip.open(DATA / f"{model}.jsonl.gz", "rt", encoding="utf-8") as lines:
        items = [json.loads(line) for line in lines]
    with (DATA / "published.csv").open(encoding="utf-8") as lines:
        published = next(float(row["length_controlled_winrate"]) / 100 for row in csv.DictReader(lines) if row["model"] == model)
    value = np.array([0.5 if item["preference"] == 0 else item["preference"] - 1 for item in items])
    lengths = {f"length_{side}": [len(item[f"output_{i}"]) for item in items] for side, i in (("a", 2), ("b", 1))}
    rows = pd.DataFrame({"prompt_id": range(len(items)), "value": value, **lengths})
    result = length_controlled_win_rate(rows, draws=200, seed=0)
    assert result.win_rate < published < result.lc_win_rate
    assert 0.01 < result.standard_error < 0.06  # the two models of few wins and few longer answers are the least sure
    assert result.share_longer < 0.1

    longer = (rows["length_a"] - rows["length_b"]).to_numpy()
    t = np.tanh(longer / longer.std(ddof=1))
    glm = GLM(value, np.column_stack([np.ones(len(t)), t]), family=families.Binomial()).fit(tol=1e-12)
    assert result.lc_win_rate == pytest.approx(expit(glm.params[0]), abs=1e-4)
    intercept: Any = brentq(lambda b: float((expit(b + t) - value).sum()), -10, 10)
    assert expit(intercept) == pytest.approx(published, abs=0.01)
