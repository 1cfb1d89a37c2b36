"""The overview of preference data, counted by hand on a dozen rows."""

from apo_bench.data.overview import Leak, LengthBias, Lengths, overview
from apo_bench.data.preference_rows import PreferenceRow, Preferences
from apo_bench.data.splits import split_of
from apo_bench.types import SPLITS, Split

SHARES: dict[Split, float] = {"rm": 0.5, "test": 0.5}


def row(source: str, turn: str, chosen: str | None, rejected: str | None, axis: str = "x") -> PreferenceRow:
    return PreferenceRow(source, (("user", turn),), axis, chosen, rejected, None)


ROWS = (
    row("a", "Who?", "you and me", "you"),
    row("a", "Who?", "you and me", "you"),  # repeats
    row("a", "Who?", "you", "you and me"),  # contradicts both
    row("b", "Who now?", "nobody", "somebody else"),  # nearly the same turn
    row("b", "What?", "a", "b", "y"),
    row("b", "When?", None, None),
)
CLUSTERS = ("Who?", "Who?", "Who?", "Who?", "What?", "When?")
SEEN = overview(Preferences(ROWS, CLUSTERS, {"a": "form", "b": "form"}, {"a": 3, "b": 3}, {}), SHARES, "salt", str.split, cut=1)


def test_pairs_of_each_file() -> None:
    assert SEEN.pairs == {"a": 3, "b": 2}


def test_splits_are_those_of_the_clusters() -> None:
    for cluster, axis, prompts, pairs in (("Who?", "x", 2, 4), ("What?", "y", 1, 1)):
        (count,) = [c for c in SEEN.splits if c.axis == axis and c.split == split_of(cluster, SHARES, "salt")]
        both = axis == "x" and split_of("When?", SHARES, "salt") == count.split  # "When?" may share the split of "Who?"
        assert (count.prompts, count.pairs, count.clusters) == (prompts + both, pairs, 1 + both)
    assert len(SEEN.splits) == 2 * len(SPLITS)


def test_lengths_in_words() -> None:
    """x: prompts Who?, Who now?, When?; chosen of 3, 3, 1, 1 words; rejected of 1, 1, 3, 2. The 95 % quantile of so few is the longest."""
    assert SEEN.lengths[:3] == (Lengths("x", "prompt", 1, 2, 2), Lengths("x", "chosen", 2, 3, 3), Lengths("x", "rejected", 1.5, 3, 3))
    assert SEEN.bias == (LengthBias("x", 2, 4), LengthBias("y", 0, 0))


def test_repeats() -> None:
    """Equal when cut after a word: the three pairs of "Who?", which begin with "you"."""
    assert list(SEEN.repeats.values()) == [1, 3, 1, 4, 4, 3]


def test_leaks_between_files() -> None:
    assert SEEN.leaks == (Leak("a", "b", 1, 1, 3),)
