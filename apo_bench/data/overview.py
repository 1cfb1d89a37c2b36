"""What preference data hold, before anything is trained on them: splits, lengths, length bias, repeats, leaks between files."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

from apo_bench.data.preference_rows import PreferenceRow, Preferences
from apo_bench.data.splits import normalise, split_of
from apo_bench.types import SPLITS, Split


@dataclass(frozen=True)
class SplitCount:
    """Of an axis in a split."""

    axis: str
    split: Split
    prompts: int
    pairs: int
    clusters: int


@dataclass(frozen=True)
class Lengths:
    """Of a part of the rows of an axis: prompt, chosen or rejected. `cut_at` is the 95 % quantile, by nearest rank."""

    axis: str
    part: str
    median: float
    cut_at: int
    longest: int


@dataclass(frozen=True)
class LengthBias:
    """In how many of the pairs whose sides differ in length the chosen one is longer."""

    axis: str
    longer: int
    n: int


@dataclass(frozen=True)
class Leak:
    """How many clusters of a file stand in another one too, in equal words or nearly."""

    first: str
    second: str
    clusters: int
    of_first: int
    of_second: int


@dataclass(frozen=True)
class Overview:
    """`repeats`: counts by what is repeated; `pairs` by file's name."""

    pairs: Mapping[str, int]
    splits: tuple[SplitCount, ...]
    lengths: tuple[Lengths, ...]
    bias: tuple[LengthBias, ...]
    repeats: Mapping[str, int]
    leaks: tuple[Leak, ...]


def overview(
    preferences: Preferences,
    shares: Mapping[Split, float],
    salt: str,
    units: Callable[[str], Sequence[object]],
    cut: int | None = None,
) -> Overview:
    """The overview of data as the task `preferences` splits them. `units` of a text are its words or tokens.

    `cut`: also count the pairs whose sides are equal once they are cut after so many units.
    """

    def length(text: str) -> int:
        return len(units(text))

    rows = list(zip(preferences.rows, map(normalise, preferences.clusters), strict=True))
    place = {cluster: split_of(cluster, shares, salt) for cluster in {cluster for _, cluster in rows}}
    axes = sorted({row.axis for row, _ in rows})
    return Overview(
        pairs={name: sum(_is_pair(row) for row, _ in rows if row.source == name) for name in preferences.forms},
        splits=tuple(
            _split_count(axis, split, [(row, cluster) for row, cluster in rows if row.axis == axis and place[cluster] == split])
            for axis in axes
            for split in SPLITS
        ),
        lengths=tuple(line for axis in axes for line in _lengths(axis, [row for row, _ in rows if row.axis == axis], length)),
        bias=tuple(_bias(axis, [row for row, _ in rows if row.axis == axis and _is_pair(row)], length) for axis in axes),
        repeats=_repeats(rows) | ({} if cut is None else {f"pairs whose sides are equal when cut at {cut}": _alike(rows, units, cut)}),
        leaks=tuple(_leaks(rows, list(preferences.forms))),
    )


def _is_pair(row: PreferenceRow) -> bool:
    return row.chosen is not None


def _split_count(axis: str, split: Split, rows: Sequence[tuple[PreferenceRow, str]]) -> SplitCount:
    prompts, clusters = {row.messages for row, _ in rows}, {cluster for _, cluster in rows}
    return SplitCount(axis, split, len(prompts), sum(_is_pair(row) for row, _ in rows), len(clusters))


def _lengths(axis: str, rows: Sequence[PreferenceRow], length: Callable[[str], int]) -> Iterable[Lengths]:
    texts = {
        "prompt": ["\n".join(text for _, text in messages) for messages in dict.fromkeys(row.messages for row in rows)],
        "chosen": [row.chosen for row in rows if row.chosen is not None],
        "rejected": [row.rejected for row in rows if row.rejected is not None],
    }
    for part, members in texts.items():
        if counts := sorted(map(length, members)):
            yield Lengths(axis, part, median(counts), counts[-(-len(counts) * 95 // 100) - 1], counts[-1])


def _bias(axis: str, rows: Sequence[PreferenceRow], length: Callable[[str], int]) -> LengthBias:
    differences = [length(row.chosen or "") - length(row.rejected or "") for row in rows]
    return LengthBias(axis, sum(difference > 0 for difference in differences), sum(difference != 0 for difference in differences))


def _repeats(rows: Sequence[tuple[PreferenceRow, str]]) -> dict[str, int]:
    annotations = Counter((row.axis, row.messages, row.chosen, row.rejected) for row, _ in rows if _is_pair(row))
    turns: dict[str, set[str]] = defaultdict(set)
    for row, cluster in rows:
        turns[cluster].add(normalise(row.messages[0][1]))
    sizes = Counter(cluster for _, cluster in rows)
    return {
        "rows that repeat another": sum(n - 1 for n in annotations.values()),
        "pairs that another contradicts": sum(
            n for (axis, messages, a, b), n in annotations.items() if (axis, messages, b, a) in annotations
        ),
        "clusters that nearly equal first turns make": sum(len(members) > 1 for members in turns.values()),
        "rows in them": sum(sizes[cluster] for cluster, members in turns.items() if len(members) > 1),
        "rows of the largest cluster": max(sizes.values(), default=0),
    }


def _alike(rows: Sequence[tuple[PreferenceRow, str]], units: Callable[[str], Sequence[object]], cut: int) -> int:
    sides = ((units(row.chosen or ""), units(row.rejected or "")) for row, _ in rows if _is_pair(row))
    return sum(list(chosen[:cut]) == list(rejected[:cut]) for chosen, rejected in sides)


def _leaks(rows: Sequence[tuple[PreferenceRow, str]], names: Sequence[str]) -> Iterable[Leak]:
    clusters: dict[str, set[str]] = {name: set() for name in names}
    for row, cluster in rows:
        clusters[row.source].add(cluster)
    for first, second in combinations(names, 2):
        yield Leak(first, second, len(clusters[first] & clusters[second]), len(clusters[first]), len(clusters[second]))
