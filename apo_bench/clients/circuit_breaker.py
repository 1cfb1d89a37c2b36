"""Whether a set-up works: key, model, parameters, server. A failure is the set-up's until an answer contradicts it."""

import asyncio

from apo_bench.clients.replies import Reply

FEW = 6  # failures


class CircuitBreaker:
    """The calls under way and the failures since the last answer, of one batch.

    Before the first answer no more than FEW calls are under way or have failed. When FEW have failed, none begins until those under way
    are back; if none of them was answered either, the batch is stopped. A failure that would be any call's counts more before the first
    answer, and it alone counts afterwards. A batch goes on from the one `before` it: if that was stopped, with one call at a time.
    """

    def __init__(self, before: "CircuitBreaker | None" = None) -> None:
        self.has_answered = before.has_answered if before else False
        self.failures = min(before.failures, FEW - 1) if before else 0
        self.under_way = 0
        self.last_failure = Reply()
        self.changed = asyncio.Event()

    async def begin(self) -> Reply | None:
        """Wait for a call's turn, which `end` ends. Where the batch is stopped, the reply that the call gets instead."""
        while self.failures + (0 if self.has_answered else self.under_way) >= FEW:
            if not self.under_way:
                return self.last_failure
            self.changed.clear()
            await self.changed.wait()
        self.under_way += 1
        return None

    def end(self) -> None:
        self.under_way -= 1
        self.changed.set()

    def answered(self) -> None:
        self.has_answered, self.failures = True, 0

    def failed(self, reply: Reply, hopeless: bool) -> None:
        """`hopeless`: as any other call would."""
        self.failures += int(hopeless) if self.has_answered else FEW // 2 if hopeless else 1
        self.last_failure = reply
