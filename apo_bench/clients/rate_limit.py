"""How fast a server is asked and how much may be spent on it: back-off, places for calls under way, and a cost limit."""

import asyncio
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

Messages = Sequence[Mapping[str, str]]
FIRST_WAIT_S = 0.5
REFUSED = "refused"  # the judge's model, or a filter before it, would not answer
OVER_COST = "over the cost limit"


class Gate:
    """How many calls may be under way. Overload halves it, once for all calls that were under way together; every answer adds a quarter of
    a place again, up to `most`.
    """

    def __init__(self, most: int) -> None:
        self.most, self.allowed = most, float(most)
        self.busy = self.cuts = 0
        self.freed = asyncio.Event()

    async def __aenter__(self) -> "Place":
        while self.busy >= int(self.allowed):
            self.freed.clear()
            await self.freed.wait()
        self.busy += 1
        return Place(self, self.cuts)

    async def __aexit__(self, *_: object) -> None:
        self.busy -= 1
        self.freed.set()


@dataclass(frozen=True)
class Place:
    """A call that is under way, and how often its gate had been narrowed when it began."""

    gate: Gate
    cuts: int

    def answered(self) -> None:
        self.gate.allowed = min(self.gate.most, self.gate.allowed + 0.25)

    def overloaded(self) -> None:
        if self.cuts == self.gate.cuts:
            self.gate.allowed = max(1.0, self.gate.allowed / 2)
            self.gate.cuts += 1


class Purse:
    """Keeps what is spent and what calls under way may yet cost within a limit in USD; None: no limit."""

    def __init__(self, max_usd: float | None, spent_usd: float = 0.0) -> None:
        self.max_usd, self.spent_usd, self.reserved_usd = max_usd, spent_usd, 0.0
        self.under_way = 0
        self.settled = asyncio.Event()

    async def reserve(self, usd: float) -> bool:
        """Set aside what a call may cost at worst, once there is room; False where there will be none, whatever is under way costs."""
        while self.max_usd is not None and self.spent_usd + self.reserved_usd + usd > self.max_usd:
            if not self.under_way:
                return False
            self.settled.clear()
            await self.settled.wait()
        self.under_way += 1
        self.reserved_usd += usd
        return True

    def settle(self, reserved_usd: float, usd: float) -> None:
        """A call that was reserved for is over and did cost `usd`."""
        self.under_way -= 1
        self.reserved_usd = self.reserved_usd - reserved_usd if self.under_way else 0.0  # no rounding is carried on
        self.spent_usd += usd
        self.settled.set()


def wait_s(attempt: int, asked_s: float | None, most_s: float, rng: random.Random) -> float:
    """Seconds to wait after attempt 0, 1, ...: exponential back-off with full jitter, uniform between 0 and FIRST_WAIT_S 2^attempt.

    What the server asked for, if anything, comes first and the jitter on top, so that not all come back at one moment. Never more than
    `most_s`. Source: M. Brooker, Exponential Backoff and Jitter, AWS Architecture Blog, 2015.
    """
    jitter = rng.uniform(0.0, min(most_s, FIRST_WAIT_S * 2.0 ** min(attempt, 60)))
    return min(most_s, (asked_s or 0.0) + jitter)


def retry_after_s(value: str | None, now: float) -> float | None:
    """The seconds that a Retry-After header asks for, as a number or as a date (RFC 9110, 10.2.3); None where it says neither."""
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
    """No fewer than the prompt has, without its tokenizer: a token is at least one byte, and the chat format adds a few to a message."""
    return 64 + sum(16 + len(message["content"].encode("utf-8", "replace")) for message in messages)
