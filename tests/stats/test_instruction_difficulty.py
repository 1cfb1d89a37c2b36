"""How hard prompts are to win on, from several models at once."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from apo_bench.stats import instruction_difficulty, length_controlled_win_rate


def preferences(rng: np.random.Generator, n_models: int, n_prompts: int) -> tuple[pd.DataFrame, np.ndarray]:
    """0-1 verdicts with known ease of prompts, and that ease."""
    ease = rng.normal(size=n_prompts)
    rows = []
    for model in range(n_models):
        lengths = rng.integers(50, 150, size=(2, n_prompts))
        z = -0.5 + 0.3 * model + 0.8 * np.tanh((lengths[0] - lengths[1]) / 40) + ease
        won = (rng.random(n_prompts) < 1 / (1 + np.exp(-z))).astype(float)
        rows.append(
            pd.DataFrame(
                {"model": f"m{model}", "prompt_id": range(n_prompts), "value": won, "length_a": lengths[0], "length_b": lengths[1]}
            )
        )
    return pd.concat(rows, ignore_index=True), ease


def test_the_fit_is_scikit_learns_penalised_logistic_regression() -> None:
    """The same columns with the same ridge: those of models scaled up by sqrt(1000) are hardly penalised."""
    rows, _ = preferences(np.random.default_rng(0), 3, 12)
    models, prompts = (pd.get_dummies(rows[name]).to_numpy(dtype=float) for name in ("model", "prompt_id"))
    longer = rows["length_a"] - rows["length_b"]
    length = np.tanh(longer / longer.groupby(rows["model"]).transform("std")).to_numpy()
    scaled = np.sqrt(1000) * np.column_stack([models, models * length[:, None]])
    fit = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-12, max_iter=10_000).fit(np.column_stack([scaled, prompts]), rows["value"])
    np.testing.assert_allclose(list(instruction_difficulty(rows).values()), fit.coef_[0, 6:], atol=1e-4)


def test_it_finds_what_is_easy() -> None:
    """Of 30 models a prompt's table value is its ease but for sampling error; verdicts that are missing do not count."""
    rows, ease = preferences(np.random.default_rng(1), 30, 40)
    rows.loc[::7, "value"] = np.nan
    table = instruction_difficulty(rows)
    assert np.corrcoef([table[prompt] for prompt in range(40)], ease)[0, 1] > 0.7
    single = rows[rows["model"] == "m0"]
    assert "difficulty" in length_controlled_win_rate(single, difficulty=table, draws=100).coefficients


def test_errors_name_the_column() -> None:
    rows, _ = preferences(np.random.default_rng(2), 2, 5)
    for change, message in (
        (rows[rows["model"] == "m0"], r"1 model\(s\) \(column model\)"),
        (rows.drop(columns="value"), "column value is missing"),
        (rows.assign(value=2.0), r"values in \[0, 1\]"),
        (rows.assign(length_a=np.inf), "finite lengths"),
    ):
        with pytest.raises(ValueError, match=f"instruction_difficulty: .*{message}"):
            instruction_difficulty(change)
    with pytest.raises(ValueError, match="prior_variance is above 0"):
        instruction_difficulty(rows, prior_variance=0)
