"""Near-duplicates: what the index is by hand, every pair above the threshold against a comparison of all, chains."""

from itertools import combinations

import pytest

from apo_bench.data.near_duplicates import near_duplicates


def jaccard(a: str, b: str) -> float:
    x, y = ({text[i : i + 5] for i in range(len(text) - 4)} for text in (a, b))
    return len(x & y) / len(x | y)


def test_by_hand() -> None:
    """Of abcde bcdef cdefg defgh and abcde bcdef cdefg defgx three are shared, of five: .6."""
    assert near_duplicates(["abcdefgh", "abcdefgx"], 0.6) == [0, 0]
    assert near_duplicates(["abcdefgh", "abcdefgx"], 0.61) == [0, 1]


def test_equal_texts_are_of_one_group_however_short() -> None:
    assert near_duplicates(["hi", "", "hi", "ho", ""], 0.7) == [0, 1, 0, 3, 1]


def test_every_pair_above_the_threshold_is_joined() -> None:
    """Against a union over all pairs."""
    words = "please write me a short poem about the cold sea and its many green islands far away in the north".split()
    texts = [" ".join([*words[:i], "xxxx", *words[i + 1 :]]) for i in range(len(words))]
    texts += [f"question number {i} is about {word} and nothing else" for i, word in enumerate(words)]
    texts += ["what is the capital of france", "who wrote the iliad"]
    group = list(range(len(texts)))
    for i, j in combinations(range(len(texts)), 2):
        if jaccard(texts[i], texts[j]) >= 0.7:
            low, high = sorted((group[i], group[j]))
            group = [low if place == high else place for place in group]
    assert near_duplicates(texts, 0.7) == group
    assert 2 < len(set(group)) < len(texts)


def test_a_chain_is_one_group_whatever_the_order() -> None:
    texts = ["abcdefghijkl", "bcdefghijklm", "cdefghijklmn"]
    assert jaccard(texts[0], texts[2]) < 0.7 <= jaccard(texts[0], texts[1])
    assert near_duplicates(texts, 0.7) == [0, 0, 0] == near_duplicates([texts[0], texts[2], texts[1]], 0.7)


@pytest.mark.parametrize("threshold", [0, -1, 1.5, float("nan")])
def test_thresholds(threshold: float) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        near_duplicates(["a"], threshold)
