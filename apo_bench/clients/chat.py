"""A client of the OpenAI chat-completions protocol: concurrent calls with retries and a cost limit."""

import asyncio
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Generic, TypeVar

from apo_bench.clients.circuit_breaker import CircuitBreaker
from apo_bench.clients.endpoint import Endpoint, Sampling, api_key
from apo_bench.clients.rate_limit import OVER_COST, ConcurrencyLimiter, Messages, SpendLimiter, most_tokens, wait_s
from apo_bench.clients.replies import SHOWN, CallError, Reply, read_reply, with_words
from apo_bench.clients.transport import Connection, proxy_for
from apo_bench.errors import NotHere

K = TypeVar("K")
OF_ITS_OWN = 10_000  # tokens that a server may add to a prompt or an answer; a larger count is not believed


class ChatClient:
    """Asks one endpoint. Raises NotHere where the key's variable is not set, or the `judge` extra not installed.

    Failures that no answer has contradicted are those of the set-up: after the first few no more calls are made, and all the others get
    the same reply. Once there was an answer, a failure is its own call's, but for several in a row that would be any call's.
    `sleep`, `now` (seconds since 1970) and `rng` (the jitter's) can be replaced.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        now: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self.endpoint, self.sleep, self.now = endpoint, sleep, now
        self.rng = rng or random.Random()  # unseeded, so that two processes do not come back in step
        self.breaker = CircuitBreaker()
        self._key = api_key(endpoint.api_key_env)
        try:
            import aiohttp  # noqa: F401
        except ImportError as error:
            raise NotHere(f"{error.name} is not installed: pip install 'apo-bench[judge]'") from None
        proxy_for(endpoint.base_url)
        self._tls = ssl.create_default_context()

    def reply(self, messages: Messages, sampling: Sampling, spent_usd: float = 0.0, fresh: bool = False) -> Reply:
        """One call."""
        return next(self.replies([(None, messages)], sampling, spent_usd, fresh))[1]

    def replies(
        self, calls: Iterable[tuple[K, Messages]], sampling: Sampling, spent_usd: float = 0.0, fresh: bool = False
    ) -> Generator[tuple[K, Reply], None, None]:
        """(key, reply) of (key, messages), each once, as they come in. Closing the iterator cancels what is under way.

        `calls` is read as places get free. `spent_usd` counts towards the endpoint's `max_usd`; `fresh` asks caches on the way to be
        passed by. Runs an event loop of its own in the thread that iterates, only while it waits for the next reply.
        """
        with asyncio.Runner() as runner:
            batch = _Batch(self, iter(calls), sampling, spent_usd, fresh)
            try:
                while arrived := runner.run(batch.next()):
                    yield from arrived
            finally:
                runner.run(batch.close())

    def connect(self, max_tokens: int, fresh: bool) -> Connection:
        """Connections of the running event loop."""
        return Connection(self.endpoint, self._key, self._tls, max_tokens, fresh)

    def clean(self, text: str) -> str:
        """A server's text without the key, should it repeat it, and without what UTF-8 cannot hold."""
        shown = text.replace(self._key, "***") if self._key else text
        return shown.encode("utf-8", "replace").decode("utf-8")


class _Batch(Generic[K]):
    """Calls under way, within one event loop."""

    def __init__(self, client: ChatClient, calls: Iterator[tuple[K, Messages]], sampling: Sampling, spent_usd: float, fresh: bool) -> None:
        self.client, self.endpoint, self.calls = client, client.endpoint, calls
        self.max_tokens, self.body = sampling.max_tokens, {"model": client.endpoint.model, **sampling.body()}
        self.fresh = fresh
        self.concurrency, self.spending = ConcurrencyLimiter(client.endpoint.concurrency), SpendLimiter(client.endpoint.max_usd, spent_usd)
        self.breaker = client.breaker = CircuitBreaker(client.breaker)
        self.arrived: list[tuple[K, Reply]] = []
        self.changed = asyncio.Event()
        self.workers: list[asyncio.Task[None]] = []

    async def next(self) -> list[tuple[K, Reply]]:
        """What has arrived since, at least one; nothing after the last."""
        if not self.workers:
            self.connection = self.client.connect(self.max_tokens, self.fresh)
            self.working = self.endpoint.concurrency
            for _ in range(self.working):
                self.workers.append(asyncio.create_task(self._work()))
                await asyncio.sleep(0)  # its request is on its way while the next is built
        while not self.arrived and self.working:
            self.changed.clear()
            await self.changed.wait()
        if not self.arrived:
            await asyncio.gather(*self.workers)  # raises what a worker raised
        arrived, self.arrived = self.arrived, []
        return arrived

    async def close(self) -> None:
        for worker in self.workers:
            worker.cancel()
        await asyncio.gather(*self.workers, return_exceptions=True)
        if self.workers:
            await self.connection.close()

    async def _work(self) -> None:
        try:
            while await self._take():
                pass
        finally:
            self.working -= 1
            self.changed.set()

    async def _take(self) -> bool:
        """Make the next call, of which all workers have one iterator; whether there was one."""
        stopped = await self.breaker.begin()
        try:
            call = next(self.calls, None)
            if call is not None:
                key, messages = call
                reply = stopped or await self._call(messages)
                self.arrived.append((key, reply))
                self.changed.set()
            return call is not None
        finally:
            if stopped is None:
                self.breaker.end()

    async def _call(self, messages: Messages) -> Reply:
        """One call with its attempts."""
        body = {**self.body, "messages": self.endpoint.laid_out(messages)}
        worst_usd = self.endpoint.cost_usd(most_tokens(messages), self.max_tokens)
        attempt, lost_usd = 0, 0.0
        while isinstance(got := await self._attempt(body, worst_usd), CallError):
            attempt += 1
            lost_usd += worst_usd if got.lost else 0.0
            if not got.again or attempt == self.endpoint.max_attempts:
                reason, words = self.client.clean(got.reason), self.client.clean(got.words)
                failed = Reply(failure=with_words(reason, words), answered=False)
                self.breaker.failed(failed, got.hopeless)
                return replace(Reply(words, reason, False, rejected=True) if got.rejected else failed, lost_usd=lost_usd)
            await self.client.sleep(wait_s(attempt - 1, got.wait_s, self.endpoint.max_wait_s, self.client.rng))
        if got.answered:
            self.breaker.answered()
        return replace(got, lost_usd=lost_usd)

    async def _attempt(self, body: Mapping[str, Any], worst_usd: float) -> "Reply | CallError":
        """One request in its place, if there is money for it."""
        async with self.concurrency as slot:
            if not await self.spending.reserve(worst_usd):
                return Reply(failure=OVER_COST, answered=False)
            paid_usd = worst_usd  # should this be cancelled, nobody knows
            try:
                reply = await self._request(body, worst_usd)
                paid_usd = reply.cost_usd
                slot.answered()
                return reply
            except CallError as error:
                paid_usd = worst_usd if error.lost else 0.0
                if error.overloaded:
                    slot.overloaded()
                return error
            finally:
                self.spending.settle(worst_usd, paid_usd)

    async def _request(self, body: Mapping[str, Any], worst_usd: float) -> Reply:
        """Raises CallError."""
        start = time.perf_counter()
        content = await self.connection.post(body, self.client.now())
        try:
            reply = read_reply(content)
        except ValueError:
            raise CallError("unreadable reply", _page(content), lost=True) from None
        prompt, completion = reply.prompt_tokens or 0, reply.completion_tokens or 0
        if prompt > most_tokens(body["messages"]) + OF_ITS_OWN or completion > self.max_tokens + OF_ITS_OWN:
            reply = replace(reply, prompt_tokens=None, completion_tokens=None)
        # Without a count that can be, a reply costs the most that it can.
        cost_usd = worst_usd if reply.prompt_tokens is None else self.endpoint.cost_usd(prompt, completion)
        return replace(reply, text=self.client.clean(reply.text), cost_usd=cost_usd, latency_s=time.perf_counter() - start)


def _page(content: bytes) -> str:
    """How a page begins that came instead of JSON; nothing of a reply that was torn."""
    text = " ".join(content[:1000].decode("utf-8", "replace").split())
    return "" if text[:1] in "{[" else text[:SHOWN]
