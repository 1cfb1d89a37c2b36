"""Limits on calls to a server: back-off, concurrent calls, and cost."""

import asyncio
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

Messages = Sequence[Mapping[str, str]]
FIRST_WAIT_S = 0.5
OVER_COST = "over the cost limit"


class ConcurrencyLimiter:
    """Limits the number of concurrent calls. Overload halves the limit, once for all calls that were under way together; every answer
    raises it by a quarter, up to `most`.
    """

    def __init__(self, most: int) -> None:
        self.most, self.allowed = most, float(most)
        self.busy = self.cuts = 0
        self.freed = asyncio.Event()

    async def __aenter__(self) -> "Slot":
        while self.busy >= int(self.allowed):
            self.freed.clear()
            await self.freed.wait()
        self.busy += 1
        return Slot(self, self.cuts)

    async def __aexit__(self, *_: object) -> None:
        self.busy -= 1
        self.freed.set()


@dataclass(frozen=True)
class Slot:
    """A call under way, and how often its limiter had been cut when it began."""

    limiter: ConcurrencyLimiter
    cuts: int

    def answered(self) -> None:
        self.limiter.allowed = min(self.limiter.most, self.limiter.allowed + 0.25)

    def overloaded(self) -> None:
        if self.cuts == self.limiter.cuts:
            self.limiter.allowed = max(1.0, self.limiter.allowed / 2)
            self.limiter.cuts += 1


class SpendLimiter:
    """Keeps the amount spent, and the most that calls under way may still cost, within a limit in USD; None: no limit."""

    def __init__(self, max_usd: float | None, spent_usd: float = 0.0) -> None:
        self.max_usd, self.spent_usd, self.reserved_usd = max_usd, spent_usd, 0.0
        self.under_way = 0
        self.settled = asyncio.Event()

    async def reserve(self, usd: float) -> bool:
        """Reserve the most that a call may cost, waiting for room; False where there will be none, whatever the calls under way cost."""
        while self.max_usd is not None and self.spent_usd + self.reserved_usd + usd > self.max_usd:
            if not self.under_way:
                return False
            self.settled.clear()
            await self.settled.wait()
        self.under_way += 1
        self.reserved_usd += usd
        return True

    def settle(self, reserved_usd: float, usd: float) -> None:
        """End a call that was reserved for and cost `usd`."""
        self.under_way -= 1
        self.reserved_usd = self.reserved_usd - reserved_usd if self.under_way else 0.0  # drops accumulated rounding
        self.spent_usd += usd
        self.settled.set()


def wait_s(attempt: int, server_s: float | None, most_s: float, rng: random.Random) -> float:
    """Seconds to wait after attempt 0, 1, ...: exponential back-off with full jitter, uniform between 0 and FIRST_WAIT_S 2^attempt.

    The time the server asks for, if any, comes first and the jitter on top, so that calls do not all retry at once. Never more than
    `most_s`. Source: M. Brooker, Exponential Backoff and Jitter, AWS Architecture Blog, 2015.
    """
    jitter = rng.uniform(0.0, min(most_s, FIRST_WAIT_S * 2.0 ** min(attempt, 60)))
    return min(most_s, (server_s or 0.0) + jitter)


def retry_after_s(value: str | None, now: float) -> float | None:
    """The seconds that a Retry-After header asks for, as a number or as a date (RFC 9110, 10.2.3); None for anything else."""
    if value is None:
        return None
    if re.fullmatch(r"\s*[0-9]{1,9}(\.[0-9]*)?\s*", value):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def most_tokens(messages: Messages) -> int:
    """An upper bound on the prompt's tokens without its tokenizer: a token is at least one byte, and a message adds a few."""
    return 64 + sum(16 + len(message["content"].encode("utf-8", "replace")) for message in messages)
