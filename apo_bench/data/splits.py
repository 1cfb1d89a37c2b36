"""Splits by conversation: which split a conversation falls into, and a check that none falls into two."""

import hashlib
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from apo_bench.errors import InputError
from apo_bench.types import SPLITS, Prompt, Split, identity


def normalise(text: str) -> str:
    """The text without what makes no different conversation: Unicode form (NFKC), case, punctuation, symbols, white space."""
    if text.isascii():  # by far the most, which has one Unicode form
        return " ".join(text.lower().translate(_LEFT_OUT).split())
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join("".join(letter for letter in folded if not _is_left_out(letter)).split())


def _is_left_out(letter: str) -> bool:
    return not letter.isspace() and unicodedata.category(letter)[0] in "PSC"


_LEFT_OUT = dict.fromkeys(code for code in range(128) if _is_left_out(chr(code)))


def split_of(cluster: str, shares: Mapping[Split, float], salt: str) -> Split:
    """The split of a cluster: a salted hash of its normalised string against the cumulated shares.

    It depends on nothing else, so a cluster stays in its split when data are added. Raises ValueError unless the shares sum to 1.
    """
    check_shares(shares)
    digest = hashlib.sha256(f"{salt}\0{normalise(cluster)}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    wanted: list[Split] = [split for split in SPLITS if shares.get(split, 0) > 0]
    edge = 0.0
    for split in wanted:
        edge += shares[split]
        if place < edge:
            return split
    return wanted[-1]  # the shares' sum may be rounded down


def check_leaks(name: str, prompts: Mapping[Split, Iterable[Prompt]]) -> None:
    """Raise InputError if a cluster, or a normalised first human turn, is in two splits."""
    seen: dict[tuple[str, str], tuple[Split, Prompt]] = {}
    for split, members in prompts.items():
        for prompt in members:
            turn = normalise(next(message.content for message in prompt.messages if message.role == "user"))
            for key in (("cluster", prompt.cluster_id), ("first human turn", turn)):
                other, first = seen.setdefault(key, (split, prompt))
                if other != split:
                    raise InputError(f"{name}: splits: one {key[0]} is in {other} (prompt {first.id}) and in {split} (prompt {prompt.id})")


def check_shares(shares: Mapping[Split, float]) -> None:
    """Raise ValueError unless the shares of the splits sum to 1."""
    if not all(share >= 0 for share in shares.values()) or not math.isclose(sum(shares.values()), 1, abs_tol=1e-9):
        raise ValueError(f"shares are 0 or more and sum to 1, got {dict(shares)}")


def balanced(prompts: Sequence[Prompt], n: int | None) -> tuple[Prompt, ...]:
    """At most n prompts, as evenly over the axes as they allow, in an order that depends on their ids alone."""
    order = sorted(prompts, key=lambda prompt: identity("balanced", prompt.id))
    if n is None or n >= len(order):
        return tuple(order)
    rank: dict[str, int] = {}
    ranked = []
    for prompt in order:
        rank[prompt.axis] = rank.get(prompt.axis, 0) + 1
        ranked.append((rank[prompt.axis], prompt))
    return tuple(prompt for _, prompt in sorted(ranked, key=lambda pair: pair[0])[:n])
