"""A chat-completions server on 127.0.0.1 that knows which answer is right and misbehaves on demand.

    python tests/chat_server.py '{"latency_s": 0.1, "faults": {"429": 0.1, "hang": 0.02}}'

prints its port and serves until it is terminated. Responses say "worth N"; the server prefers the response that is worth more. It asks
nothing of a template but that both responses stand in the last message, in order. Of a single response it says how much it is worth.
GET /requests tells of every request in order of arrival: what was asked, what went wrong, and whether its answer was paid for: "billed"
(sent whole), "lost" (made, but not received whole) or "unbilled".

HTTP is done by hand: it has to answer 700 requests a second from a part of one core.
"""

import asyncio
import hashlib
import json
import math
import random
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from apo_bench.judging.judge_protocol import Question, both_orders
from apo_bench.types import Message, Prompt

STATUS_FAULTS = ("301", "400", "401", "402", "403", "404", "422", "429", "500", "503")
ANSWER_FAULTS = ("refuse", "filter", "empty", "malformed", "length", "echo")  # a whole reply, and paid for, without a verdict


@dataclass(frozen=True)
class Plan:
    """How the server behaves. A request's fault is drawn from `faults` (name: share) by its content and how often it came before.

    `script` names the faults of the first requests in order of arrival ("" for none) and overrides `faults` there; `about` names those
    of requests whose last message holds a text, and overrides both. `replies` are faults of one's own: name -> (status, body), in which
    ANSWER stands for the right answer.
    """

    latency_s: float = 0.0
    faults: Mapping[str, float] = field(default_factory=dict)
    script: Sequence[str] = ()
    about: Mapping[str, str] = field(default_factory=dict)
    replies: Mapping[str, tuple[int, Any]] = field(default_factory=dict)
    seed: int = 0
    retry_after: str = "0"
    usage: bool = True
    logprobs: bool = True  # of a single response's score, where a request asks for them
    completion_tokens: int = 1
    at_most: int | None = None  # requests at once; more are answered 429


def request_key(messages: Sequence[Mapping[str, str]]) -> str:
    """What a request asks, whatever its seed."""
    return hashlib.sha256(json.dumps([dict(message) for message in messages], sort_keys=True).encode()).hexdigest()[:16]


def worth_questions(comparisons: int, filler: str = "") -> list[Question]:
    """Both orders of so many comparisons, whose better response the server knows."""
    prompts = [Prompt(str(i), (Message("user", f"Question {i}?"),), "helpful", str(i)) for i in range(comparisons)]
    pairs = [both_orders(prompt, f"{filler}This is worth {i}.", f"{filler}This is worth {i + 1}.") for i, prompt in enumerate(prompts)]
    return [question for pair in pairs for question in pair]


def right_answer(text: str) -> str:
    """The label of the response that is worth more."""
    first, second = (int(worth) for worth in re.findall(r"worth (\d+)", text)[:2])
    return "tie" if first == second else "A" if first > second else "B"


def right_score(text: str) -> int:
    """What a single response is worth, at most 9; of another text its length decides."""
    worth = re.findall(r"worth (\d+)", text)
    return min(9, int(worth[0])) if worth else 1 + len(text) % 9


def is_about_two(text: str) -> bool:
    return "response_A" in text or len(re.findall(r"worth (\d+)", text)) > 1


def score_logprobs(score: int) -> dict[str, Any]:
    """60 % for the score, 20 % for the same after a space, 10 % for the next lower, 10 % for another word."""
    shares = {str(score): 0.6, f" {score}": 0.2, str(score - 1): 0.1, "The": 0.1}
    top = [{"token": token, "logprob": math.log(share)} for token, share in shares.items()]
    return {"content": [{"token": str(score), "logprob": math.log(0.6), "top_logprobs": top}]}


class Connection(asyncio.Protocol):
    """HTTP/1.1, one request at a time."""

    def __init__(self, plan: Plan, requests: list[dict[str, Any]], counts: Counter[str]) -> None:
        self.plan, self.requests, self.counts = plan, requests, counts
        self.buffer = b""
        self.busy: asyncio.TimerHandle | None = None
        self.waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self.busy:
            self.busy.cancel()
        self._done()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, separator, rest = self.buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return
        self.buffer = rest[length:]
        if lines[0].startswith("GET /requests"):
            self._send("200 OK", json.dumps(self.requests))
        elif lines[0].startswith("POST /v1/chat/completions "):
            self._take(json.loads(rest[:length]), headers)
        else:
            self._send("404 Not Found", "{}")

    def _take(self, body: dict[str, Any], headers: dict[str, str]) -> None:
        key = request_key(body["messages"])
        self.counts[key] += 1
        n = len(self.requests)
        seen = {
            "key": key, "at": time.monotonic(), "end": "unbilled", "fault": self._fault(key, n, body["messages"][-1]["content"]),
            "seed": body.get("seed"), "authorization": headers.get("authorization"), "cache_control": headers.get("cache-control"),
        }  # fmt: skip
        self.requests.append(seen)
        self.counts["at once"] += 1
        self.waiting = True
        seen["at_once"] = self.counts["at once"]
        if self.plan.at_most is not None and self.counts["at once"] > self.plan.at_most:
            seen["fault"] = "429"
        if seen["fault"] == "drop":
            self._done()
            self.transport.abort()
        elif seen["fault"] in STATUS_FAULTS:
            self._refuse(seen)
        elif seen["fault"] != "hang":
            # The event loop counts whole milliseconds and rounds up: half of one off, and the mean is right.
            latency_s = max(0.0, self.plan.latency_s - 0.0005)
            self.busy = asyncio.get_running_loop().call_later(latency_s, self._answer, body, seen)

    def _fault(self, key: str, n: int, text: str) -> str:
        for about, fault in self.plan.about.items():
            if about in text:
                return fault
        if n < len(self.plan.script):
            return self.plan.script[n]
        if not self.plan.faults:
            return ""
        draw = random.Random(f"{self.plan.seed}/{key}/{self.counts[key]}").random()
        for name, share in self.plan.faults.items():
            if draw < share:
                return name
            draw -= share
        return ""

    def _done(self) -> None:
        self.counts["at once"] -= self.waiting
        self.waiting = False

    def _refuse(self, seen: dict[str, Any]) -> None:
        """An error that, as some real servers do, repeats the key it was given."""
        self._done()
        message = f"fault {seen['fault']}\nfor {seen['authorization']}"
        extra = f"Retry-After: {self.plan.retry_after}\r\n" if seen["fault"] in ("429", "503") else ""
        self._send(f"{seen['fault']} Fault", json.dumps({"error": {"message": message}}), extra)

    def _answer(self, body: dict[str, Any], seen: dict[str, Any]) -> None:
        self._done()
        seen["took_s"] = time.monotonic() - seen["at"]
        fault, text = seen["fault"], body["messages"][-1]["content"]
        if fault in self.plan.replies:
            status, own = self.plan.replies[fault]
            seen["end"] = "billed" if status == 200 else "unbilled"
            self._send(f"{status} Own", json.dumps(own).replace("ANSWER", right_answer(text)))
            return
        content = {
            "refuse": None, "empty": "", "malformed": "Both A and B have their merits.", "echo": f"You are {seen['authorization']}."
        }.get(fault, right_answer(text) if is_about_two(text) else str(right_score(text)))  # fmt: skip
        message = {"role": "assistant", "content": content, "refusal": "I would rather not." if fault == "refuse" else None}
        finish = {"length": "length", "filter": "content_filter"}.get(fault, "stop")
        reply: dict[str, Any] = {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": finish}]}
        if not fault and body.get("logprobs") and self.plan.logprobs and not is_about_two(text):
            reply["choices"][0]["logprobs"] = score_logprobs(right_score(text))
        if self.plan.usage:
            reply["usage"] = {"prompt_tokens": len(text) // 4, "completion_tokens": self.plan.completion_tokens}
        whole = json.dumps(reply)
        seen["end"] = "lost" if fault in ("truncate", "garbage") else "billed"
        if fault == "garbage":
            self._send("200 OK", whole[: len(whole) // 2])
        elif fault == "truncate":
            self.transport.write(self._packet("200 OK", whole)[:-20])
            self.transport.close()
        else:
            self._send("200 OK", whole)

    def _send(self, status: str, body: str, extra: str = "") -> None:
        self.transport.write(self._packet(status, body, extra))

    @staticmethod
    def _packet(status: str, body: str, extra: str = "") -> bytes:
        content = body.encode()
        return f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{extra}Content-Length: {len(content)}\r\n\r\n".encode() + content


async def serve(plan: Plan) -> None:
    requests: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(plan, requests, counts), "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@dataclass(frozen=True)
class Served:
    """A running server."""

    base_url: str

    def requests(self) -> list[dict[str, Any]]:
        """All requests so far, in order of arrival."""
        local = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with local.open(self.base_url.removesuffix("/v1") + "/requests", timeout=30) as answer:
            return json.load(answer)

    def ends(self, end: str) -> Counter[str]:
        """How many requests of each key ended so."""
        return Counter(request["key"] for request in self.requests() if request["end"] == end)


@contextmanager
def serving(plan: Plan | None = None) -> Iterator[Served]:
    """The server in a process of its own."""
    command = [sys.executable, __file__, json.dumps(asdict(plan or Plan()))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Served(f"http://127.0.0.1:{int(process.stdout.readline())}/v1")
        finally:
            process.terminate()


if __name__ == "__main__":
    asyncio.run(serve(Plan(**json.loads(sys.argv[1]))))
