"""A client of the OpenAI chat-completions protocol: concurrent calls with retries and a cost limit."""

import asyncio
import json
import math
import random
import time
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from apo_bench.clients.endpoint import Endpoint, Sampling, api_key
from apo_bench.clients.rate_limit import OVER_COST, REFUSED, ConcurrencyLimiter, Messages, SpendLimiter, most_tokens, retry_after_s, wait_s
from apo_bench.errors import NotHere

if TYPE_CHECKING:
    import openai

K = TypeVar("K")
CUT_OFF = "cut off"
TRY_AGAIN = {408, 409, 425, 429}  # and all from 500
OVERLOADED = {429, 503, 529}
HOPELESS = {401, 402, 403, 404}  # as would every other call
SHOWN = 200  # characters of a server's error message


@dataclass(frozen=True)
class Reply:
    """The result of a call. `text` is the whole answer where `failure` is ""; otherwise `failure` is the reason why there is none.

    `answered` tells failures apart: there is an answer (the model's refusal, one cut off, the server's word that it will not take this
    request), or nobody answered, and a later run may ask again. Tokens are the server's count, None where it gave none. `lost_usd` is the
    most that attempts whose answer was lost on the way may have cost.
    """

    text: str = ""
    failure: str = ""
    answered: bool = True
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float = 0.0
    lost_usd: float = 0.0
    latency_s: float = math.nan


class ChatClient:
    """Asks one endpoint. Raises NotHere where the key's variable is not set, or the `judge` extra not installed.

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
        self._key = api_key(endpoint.api_key_env)
        try:
            import aiohttp  # noqa: F401
            import httpx2
            import openai  # noqa: F401
        except ImportError as error:
            raise NotHere(f"{error.name} is not installed: pip install 'apo-bench[judge]'") from None
        self._tls = httpx2.create_ssl_context()
        self.connect(fresh=False)  # loads now what openai's package loads late, before a call is timed

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

    def connect(self, fresh: bool) -> "openai.AsyncOpenAI":
        """openai's client on aiohttp, which needs half the time of its default transport. It belongs to the running event loop."""
        import httpx2
        import openai

        limits = httpx2.Limits(max_connections=self.endpoint.concurrency, max_keepalive_connections=self.endpoint.concurrency)
        key = self._key or "none"
        client = openai.AsyncOpenAI(
            base_url=self.endpoint.base_url,
            api_key=key,
            max_retries=0,  # ours are in _Batch
            timeout=None,
            # Set explicitly, so that OPENAI_CUSTOM_HEADERS cannot put another key in its place.
            default_headers={"Authorization": f"Bearer {key}"} | ({"Cache-Control": "no-cache"} if fresh else {}),
            http_client=openai.DefaultAioHttpClient(verify=self._tls, limits=limits, timeout=None, follow_redirects=False),
        )
        client._platform = "Unknown"  # or each of the first calls starts a thread to find out; nothing depends on it
        return client

    def clean(self, text: str) -> str:
        """A server's text without the key, should it repeat it, and without what UTF-8 cannot hold."""
        shown = text.replace(self._key, "***") if self._key else text
        return shown.encode("utf-8", "replace").decode("utf-8")


@dataclass(eq=False)
class _Trouble(Exception):
    """An attempt without a reply. `again`: another may do better. `hopeless`: if not, neither will other calls. `final`: the server will
    not take this very request, whenever it is sent. `lost`: it may have been paid for all the same. `wait_s`: what the server asked for,
    `detail` the rest of its message.
    """

    reason: str
    detail: str = ""
    again: bool = True
    hopeless: bool = False
    final: bool = False
    lost: bool = False
    overloaded: bool = False
    wait_s: float | None = None


class _Batch(Generic[K]):
    """Calls under way, within one event loop."""

    def __init__(self, client: ChatClient, calls: Iterator[tuple[K, Messages]], sampling: Sampling, spent_usd: float, fresh: bool) -> None:
        self.client, self.endpoint, self.calls = client, client.endpoint, calls
        self.max_tokens, self.body = sampling.max_tokens, {"model": client.endpoint.model, **sampling.body()}
        self.url = f"{client.endpoint.base_url.rstrip('/')}/chat/completions"  # whole, or openai's client parses it three times a call
        self.fresh = fresh
        self.concurrency, self.spending = ConcurrencyLimiter(client.endpoint.concurrency), SpendLimiter(client.endpoint.max_usd, spent_usd)
        self.arrived: list[tuple[K, Reply]] = []
        self.stopped: Reply | None = None  # what every further call gets
        self.changed = asyncio.Event()
        self.workers: list[asyncio.Task[None]] = []

    async def next(self) -> list[tuple[K, Reply]]:
        """What has arrived since, at least one; nothing after the last."""
        if not self.workers:
            self.openai = self.client.connect(self.fresh)
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
            await self.openai.close()

    async def _work(self) -> None:
        try:
            for key, messages in self.calls:  # one iterator for all workers
                reply = await self._call(messages)
                self.arrived.append((key, reply))
                self.changed.set()
        finally:
            self.working -= 1
            self.changed.set()

    async def _call(self, messages: Messages) -> Reply:
        """One call with its attempts."""
        body = {**self.body, "messages": messages}
        worst_usd = self.endpoint.cost_usd(most_tokens(messages), self.max_tokens) if self.endpoint.max_usd is not None else 0.0
        attempt, lost_usd = 0, 0.0
        while isinstance(got := await self._attempt(body, worst_usd), _Trouble):
            attempt += 1
            lost_usd += worst_usd if got.lost else 0.0
            if not got.again or attempt == self.endpoint.max_attempts:
                reply = Reply(self.client.clean(got.detail), self.client.clean(got.reason), answered=got.final, lost_usd=lost_usd)
                if got.hopeless:
                    self.stopped = self.stopped or replace(reply, lost_usd=0.0)
                return reply
            await self.client.sleep(wait_s(attempt - 1, got.wait_s, self.endpoint.max_wait_s, self.client.rng))
        return replace(got, lost_usd=lost_usd)

    async def _attempt(self, body: Mapping[str, Any], worst_usd: float) -> "Reply | _Trouble":
        """One request in its place, if there is money for it and the batch has not been stopped."""
        async with self.concurrency as slot:
            if self.stopped:
                return self.stopped
            if not await self.spending.reserve(worst_usd):
                return Reply(failure=OVER_COST, answered=False)
            paid_usd = worst_usd  # should this be cancelled, nobody knows
            try:
                reply = await self._request(body)
                paid_usd = reply.cost_usd
                slot.answered()
                return reply
            except _Trouble as trouble:
                paid_usd = worst_usd if trouble.lost else 0.0
                if trouble.overloaded:
                    slot.overloaded()
                return trouble
            finally:
                self.spending.settle(worst_usd, paid_usd)

    async def _request(self, body: Mapping[str, Any]) -> Reply:
        """Raises _Trouble."""
        import httpx2
        import openai

        start = time.perf_counter()
        try:
            async with asyncio.timeout(self.endpoint.timeout_s):
                response = await self.openai.post(self.url, body=body, cast_to=httpx2.Response)
        except TimeoutError:
            raise _Trouble(f"no answer within {self.endpoint.timeout_s:g} s", lost=True) from None
        except openai.APIStatusError as error:
            if _code(error) == "content_filter":
                return Reply(failure=REFUSED, latency_s=time.perf_counter() - start)
            raise self._status(error) from None
        except Exception as error:  # of openai, or of the transport, which does not translate all of its own
            if _never_connected(error):
                raise _Trouble(f"cannot connect to {self.endpoint.base_url}", hopeless=True) from None
            raise _Trouble("connection lost", lost=True) from None
        try:
            reply = read_reply(response.content)
        except ValueError:
            raise _Trouble("unreadable reply", lost=True) from None
        if reply.prompt_tokens is None and self.endpoint.priced:
            raise _Trouble("no token usage in the reply, so its cost is unknown", again=False, hopeless=True, lost=True)
        cost_usd = self.endpoint.cost_usd(reply.prompt_tokens or 0, reply.completion_tokens or 0)
        return replace(reply, text=self.client.clean(reply.text), cost_usd=cost_usd, latency_s=time.perf_counter() - start)

    def _status(self, error: "openai.APIStatusError") -> _Trouble:
        status, detail = error.status_code, self.client.clean(_message(error))[:SHOWN]
        broke = _code(error) == "insufficient_quota"  # a 429 that no waiting cures
        if broke or not (status in TRY_AGAIN or status >= 500):
            if not (broke or status in HOPELESS or status < 400):  # such as a prompt that is too long
                return _Trouble(f"HTTP {status}", detail, again=False, final=True)
            return _Trouble(f"HTTP {status}: {detail}" if detail else f"HTTP {status}", again=False, hopeless=True)
        wait = retry_after_s(error.response.headers.get("retry-after"), self.client.now())
        return _Trouble(f"HTTP {status}", overloaded=status in OVERLOADED, wait_s=wait)


def read_reply(content: bytes) -> Reply:
    """The reply in a response's body, without its cost. Raises ValueError where there is none."""
    try:
        data = json.loads(content)
        choice = data["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        refusal, text, usage = message.get("refusal"), message.get("content"), data.get("usage")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError("not a chat completion") from None
    if not isinstance(text or "", str) or not isinstance(refusal or "", str):
        raise ValueError("not a text")
    failure = REFUSED if refusal or finish == "content_filter" else CUT_OFF if finish == "length" else ""
    prompt, completion = _tokens(usage)
    return Reply(text or refusal or "", failure, True, prompt, completion)


def _never_connected(error: BaseException | None) -> bool:
    """Whether an error comes from one of connecting. The transport in between calls every lost connection a time-out of connecting."""
    import aiohttp

    return error is not None and (isinstance(error, aiohttp.ClientConnectorError) or _never_connected(error.__cause__))


def _code(error: "openai.APIStatusError") -> str | None:
    return error.body.get("code") if isinstance(error.body, Mapping) else None


def _message(error: "openai.APIStatusError") -> str:
    """The server's message about an error, on one line."""
    message = error.body.get("message") or error.body.get("detail") if isinstance(error.body, Mapping) else error.body
    return " ".join(str(message or "").split())


def _tokens(usage: Any) -> tuple[int, int] | tuple[None, None]:
    """Prompt and completion tokens, where a reply tells both."""
    if isinstance(usage, Mapping):
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if type(prompt) is int and type(completion) is int and min(prompt, completion) >= 0:
            return prompt, completion
    return None, None
