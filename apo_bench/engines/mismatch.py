"""How far the log-probabilities of a server that samples are from those of the model that is trained."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MEASURED = 32  # responses of each sampled artifact that the trainer's model reads again
LARGEST = 700.0  # nats, whose exponential is still a number
ELSEWHERE = "elsewhere"  # among counts: they are of what was done before the run
PREFIX = "mismatch_"  # of its parts among an artifact's counts


@dataclass(frozen=True)
class Mismatch:
    """Over `tokens` sampled tokens of `responses` responses.

    `absolute`: sum of |difference| of log-probability, in nats; `largest` of them; `kl`: sum of the estimates exp(d) - 1 - d of
    KL(sampler || trainer), d the trainer's log-probability minus the sampler's (Schulman's k3, never negative); `reencoded`: responses
    whose text is encoded to other ids than they were sampled as.
    """

    responses: float
    tokens: float
    absolute: float
    largest: float
    kl: float
    reencoded: float

    @property
    def mean(self) -> float:
        """|difference| in nats a token."""
        return self.absolute / self.tokens if self.tokens else math.nan

    @property
    def counts(self) -> dict[str, float]:
        """For an artifact's manifest. They are no amounts spent, and no ledger charges them."""
        return {f"{PREFIX}{name}": float(value) for name, value in vars(self).items()}


def sampler_rows(purpose: str, artifacts: Iterable[Mapping[str, float]], server: str) -> list[dict[str, Any]]:
    """Rows of the table `samplers` for artifacts with these counts: of the server called so, and of the engine that trains."""
    sampled = [counts for counts in artifacts if counts.get("sampled_responses") and ELSEWHERE not in counts]
    rows = []
    for engine, served in ((server, True), ("transformers", False)):
        own = [counts for counts in sampled if (f"{PREFIX}tokens" in counts) == served]
        if own:
            total, nothing = mismatch_of(own), float("nan")
            rows.append({
                "purpose": purpose,
                "engine": engine,
                "responses": int(sum(counts["sampled_responses"] for counts in own)),
                "measured": total and int(total.responses),
                "tokens": total and int(total.tokens),
                "mean": total.mean if total else nothing,
                "largest": total.largest if total else nothing,
                "kl": total.kl / total.tokens if total else nothing,
                "reencoded": total.reencoded / total.responses if total else nothing,
            })  # fmt: skip
    return rows


def mismatch(sampler: Sequence[Sequence[float]], trainer: Sequence[Sequence[float]], reencoded: Sequence[bool]) -> Mismatch:
    """Of log-probabilities (nats), responses x tokens, and for each response whether its text is encoded to other ids."""
    pairs = [pair for rows in zip(sampler, trainer, strict=True) for pair in zip(*rows, strict=True)]
    differences = [theirs - ours for ours, theirs in pairs]
    sizes = [abs(difference) for difference in differences]
    kl = math.fsum(math.expm1(min(difference, LARGEST)) - difference for difference in differences)
    return Mismatch(len(sampler), len(pairs), math.fsum(sizes), max(sizes, default=0.0), kl, sum(reencoded))


def mismatch_of(artifacts: Sequence[Mapping[str, float]]) -> Mismatch | None:
    """Of all artifacts together, by their counts; None where none was sampled by a server."""
    parts = [{name.removeprefix(PREFIX): value for name, value in counts.items() if name.startswith(PREFIX)} for counts in artifacts]
    parts = [part for part in parts if part]
    if not parts:
        return None
    total = {name: math.fsum(part[name] for part in parts) for name in parts[0]}
    return Mismatch(**{**total, "largest": max(part["largest"] for part in parts)})


def chosen(n: int) -> list[int]:
    """Places of those of n responses that are measured: at most MEASURED, evenly spread."""
    return sorted({place * n // min(n, MEASURED) for place in range(min(n, MEASURED))})
