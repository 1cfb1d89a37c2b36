"""What rows are refused, and how the rest is laid out."""

import math

import numpy as np
import pandas as pd
import pytest
from score_frames import frame

from apo_bench.stats import contrast, lay_out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s[s.arm == "a"], "arm 'b' has no rows"),
        (lambda s: s.drop(columns="value"), "arm 'a': column value is missing"),
        (lambda s: s[s.prompt_id == "p0"], r"1 cluster\(s\) \(column prompt_id\)"),
        (lambda s: s.assign(cluster_id="one"), r"1 cluster\(s\) \(column cluster_id\)"),
        (lambda s: s.assign(cluster_id=range(len(s))), "arms 'a' and 'b': a prompt is in two clusters"),
        (lambda s: s.assign(cluster_id=None), "arm 'a': column cluster_id is empty in 9 rows"),
        (lambda s: s.assign(value=s.value.where(s.index != 4)), "arm 'a': column value is NaN or infinite in 1 rows"),
        (lambda s: s.assign(value=s.value.where(s.arm == "a", math.inf)), "arm 'b': column value is NaN or infinite in 9 rows"),
        (lambda s: s.assign(value=s.value * 1e-200), "arms 'a' and 'b': column value is too small"),
        (lambda s: s.assign(value="x"), "arm 'a': column value is not numeric"),
        (lambda s: pd.concat([s, s.tail(2)]), "arm 'b': 2 rows repeat a seed and prompt"),
        (lambda s: s[(s.arm == "a") | (s.seed != 2)], "arm 'a' has seed 2 .* arm 'b' has not"),
        (lambda s: s[s.prompt_id == s.arm.map({"a": "p0", "b": "p1"})], "0 cluster"),
        (lambda s: s.iloc[:0], "arm 'a' has no rows"),
        (lambda s: pd.concat([s, s[["value"]]], axis=1), "arm 'a': column value occurs 2 times"),
        (lambda s: s.assign(arm=s.arm.where(s.index != 1)), "column arm is empty in 1 rows"),
        (lambda s: s.assign(value=pd.Timestamp("2020-01-01")), "arm 'a': column value is not numeric"),
        (lambda s: s.assign(value=s.value.astype(str)), "arm 'a': column value is not numeric"),
        (lambda s: s.assign(value=10**400), "arm 'a': column value is not numeric"),
        (lambda s: s.assign(value=s.value * 1e300), "arms 'a' and 'b': column value is too small or too large"),
        (lambda s: s.assign(seed=[[seed] for seed in s.seed]), "arm 'a': column seed holds a label that is not hashable"),
        (
            lambda s: s.assign(seed=[seed if arm == "a" else str(seed) for arm, seed in zip(s.arm, s.seed, strict=True)]),
            "seeds .column seed. are text in one of the arms",
        ),
        (
            lambda s: s.assign(seed=s.seed.astype(float).astype(object).where(s.arm == "a", s.seed.astype(str))),
            "are text in one of the arms",
        ),
        (lambda s: s.assign(seed=[seed if seed else f"{arm}!" for arm, seed in zip(s.arm, s.seed, strict=True)]), "arm 'a' has seed 'a!'"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_rows_are_refused_by_arm_and_column(change, message: str) -> None:
    rng = np.random.default_rng(4)
    scores = frame(rng.normal(size=(3, 3)), rng.normal(size=(3, 3)))
    with pytest.raises(ValueError, match=message):
        contrast(change(scores), "a", "b")


def test_an_arm_is_not_compared_with_itself() -> None:
    with pytest.raises(ValueError, match="itself"):
        contrast(frame(np.eye(3), np.eye(3)), "a", "a")


def test_clusters_weigh_alike_whatever_their_prompts() -> None:
    """p0 and p1 in cluster x, p2 in y: weights 1/4, 1/4, 1/2; the weighted prompts give the clusters' mean."""
    a, b = np.random.default_rng(8).normal(size=(2, 3, 3))
    result = lay_out(frame(a, b).assign(cluster_id=lambda s: s.prompt_id.map({"p0": "x", "p1": "x", "p2": "y"})), "a", "b")
    assert result.weights.tolist() == [0.25, 0.25, 0.5]
    np.testing.assert_allclose(result.prompts[0] @ result.weights, result.first.mean(1))
    assert (result.paired, result.n_seeds, result.n_clusters) == (True, 3, 2)
    np.testing.assert_allclose(result.differences, result.first - result.second)


def test_the_caller_is_named() -> None:
    with pytest.raises(ValueError, match=r"^somebody: arm 'c' has no rows \(column arm\)$"):
        lay_out(frame(np.eye(3), np.eye(3)), "a", "c", caller="somebody")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.convert_dtypes(),
        lambda s: s.astype({"arm": "category", "seed": "category", "prompt_id": "category"}),
        lambda s: s.astype(object),
        lambda s: s.set_index("seed", drop=False).rename_axis(None),
        lambda s: s.assign(seed=s.seed.map({0: 0, 1: "one", 2: (2,)})),
        lambda s: s.sample(frac=1, random_state=1),
        lambda s: s.assign(extra=None),
    ],
)
def test_what_a_frame_is_made_of_does_not_matter(change) -> None:
    scores = frame(*np.random.default_rng(9).normal(size=(2, 3, 5)))
    plain, other = contrast(scores, "a", "b"), contrast(change(scores), "a", "b")
    assert (other.difference, other.p_value) == pytest.approx((plain.difference, plain.p_value))


@pytest.mark.parametrize(("given", "name"), [({"arm": ["a", "b"]}, "dict"), (None, "NoneType"), ([1], "list")])
def test_scores_come_as_a_frame(given, name: str) -> None:
    with pytest.raises(ValueError, match=f"contrast: arm 'a': rows come as a DataFrame, got {name}"):
        contrast(given, "a", "b")


@pytest.mark.parametrize("arm", [["a"], {"a": 1}, None])
def test_an_arm_is_one_label(arm) -> None:
    with pytest.raises(ValueError, match=r"^contrast: an arm is one label \(column arm\), got"):
        contrast(frame(np.eye(3), np.eye(3)), arm, "b")


def test_the_order_of_rows_changes_nothing() -> None:
    scores = frame(*np.random.default_rng(11).normal(size=(2, 3, 12)))
    result, other = (lay_out(rows, "a", "b") for rows in (scores, scores.sample(frac=1, random_state=1)))
    np.testing.assert_array_equal(result.differences, other.differences)
    np.testing.assert_array_equal(result.prompts, other.prompts)


def test_paired_seeds_is_a_truth_value_or_none() -> None:
    scores = frame(*np.random.default_rng(10).normal(size=(2, 3, 5)))
    assert "not paired" in contrast(scores, "a", "b", paired_seeds=np.False_).test  # pyright: ignore[reportArgumentType]
    for odd in (0, "no", 1.0):
        with pytest.raises(ValueError, match="contrast: paired_seeds is True, False or None"):
            contrast(scores, "a", "b", paired_seeds=odd)  # pyright: ignore[reportArgumentType]


def test_equal_seeds_of_other_types_are_paired_with_each_other() -> None:
    """numpy's 1 and Python's 1 are one seed, in whatever order they come."""
    a, b = np.random.default_rng(11).normal(size=(2, 3, 4))
    scores = frame(a, b).astype({"seed": object})
    scores.loc[(scores.arm == "b") & (scores.seed == 1), "seed"] = np.int64(1)
    np.testing.assert_allclose(lay_out(scores.iloc[::-1], "a", "b").differences.mean(1), (a - b).mean(1))
