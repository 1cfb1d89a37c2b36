"""Near-duplicates among texts, by MinHash (Broder, 1997) with banding, and an exact check of every candidate.

Two texts are near-duplicates where the Jaccard index of their sets of five neighbouring letters is at least a threshold. Nothing is drawn:
the hash functions are fixed, so the same texts give the same groups on every machine.
"""

from collections.abc import Sequence
from typing import Any

WINDOW = 5  # letters
LETTERS = 10_000  # of a text, from its beginning, are compared
BANDS, ROWS = 32, 4  # a pair at .7 is missed with probability (1 - .7^4)^32 = 2e-4, one at .5 with .13
_ODD = 0x9E3779B97F4A7C15


def near_duplicates(texts: Sequence[str], threshold: float) -> list[int]:
    """For each text the place of the first text of its group. Groups are joined through chains: a like b and b like c are one group.

    Texts with fewer letters than WINDOW are alike only where they are equal. Raises ValueError for a threshold not in (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"a threshold above 0 and at most 1 is needed, got {threshold!r}")
    import numpy as np

    first = list(range(len(texts)))

    def root(place: int) -> int:
        while first[place] != place:
            first[place] = first[first[place]]
            place = first[place]
        return place

    def join(place: int, other: int) -> None:
        low, high = sorted((root(place), root(other)))
        first[high] = low

    places: dict[str, int] = {}
    for place, text in enumerate(texts):
        first[place] = places.setdefault(text, place)
    windows = {place: _windows(texts[place], np) for place in places.values() if len(texts[place]) >= WINDOW}
    multipliers = _mixed(np.arange(1, BANDS * ROWS + 1, dtype=np.uint64), np) | np.uint64(1)
    buckets: dict[tuple[int, bytes], list[int]] = {}
    for place, hashes in windows.items():
        smallest = np.min(multipliers[:, None] * hashes[None, :], axis=1).reshape(BANDS, ROWS)  # the hashes are mixed already
        for band in range(BANDS):
            candidates = buckets.setdefault((band, smallest[band].tobytes()), [])
            for other in candidates:
                if root(other) != root(place) and _jaccard(windows[other], hashes, np) >= threshold:
                    join(other, place)
            candidates.append(place)
    return [root(place) for place in range(len(texts))]


def _windows(text: str, np: Any) -> Any:
    """The distinct hashes of a text's windows, sorted, (n,) uint64."""
    letters = np.frombuffer(text[:LETTERS].encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    hashes = np.zeros(len(letters) - WINDOW + 1, dtype=np.uint64)
    for shift in range(WINDOW):
        hashes = _mixed(hashes + letters[shift : shift + len(hashes)], np)
    return np.unique(hashes)


def _mixed(values: Any, np: Any) -> Any:
    """splitmix64, a bijection of 64 bits."""
    values = values + np.uint64(_ODD)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _jaccard(a: Any, b: Any, np: Any) -> float:
    if min(len(a), len(b)) == 0:
        return 0.0
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)
