"""What is spoken with a vLLM server: token ids in and out over the completions endpoint, one request a response. No torch here."""

import http.client
import json
import socket
import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from apo_bench.config.schema import Sampling
from apo_bench.errors import InputError

UNIX = "unix:"  # before the path of a socket, in place of a url
NEVER = -100.0  # the lowest bias of a logit that the protocol knows: below what fp32 probabilities tell from 0
ANSWER_S = 1800.0  # without a byte, after which a server is taken for lost


class ServerLost(Exception):
    """The server gave no answer: nobody listens, it ended, it hangs, or its engine is dead."""


@dataclass(frozen=True)
class Completion:
    """Sampled ids, the one that ended it included, and their log-probabilities (nats) before temperature, penalties and truncation."""

    token_ids: tuple[int, ...]
    logps: tuple[float, ...]


@dataclass(frozen=True)
class VllmClient:
    """A server at a url, without `/v1`, or at `unix:` and a socket's path.

    Methods raise ServerLost where no answer comes, and InputError, one line, for one that refuses or that is not as vLLM answers.
    """

    address: str

    def version(self) -> str:
        """The server's version of vLLM."""
        return str(_part(self._send("GET", "/version"), "version"))

    def is_ready(self) -> bool:
        """Whether it can be asked."""
        try:
            self._send("GET", "/health")
        except (ServerLost, InputError):
            return False
        return True

    def models(self) -> tuple[str, ...]:
        """Names that it serves weights and adapters under, the weights' first."""
        names = tuple(str(_part(model, "id")) for model in _part(self._send("GET", "/v1/models"), "data"))
        if not names:
            raise InputError(f"sampling.engine: {self.address} serves no model")
        return names

    def load_adapter(self, name: str, folder: Path) -> None:
        """Serve the LoRA adapters in a folder, which the server reads, under a name."""
        self._send("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})

    def complete(self, model: str, prompt: Sequence[int], seed: int, settings: Mapping[str, Any]) -> Completion:
        """One response; `settings` are those of `request_settings`."""
        choice = self._completion({**settings, "model": model, "prompt": list(prompt), "seed": seed})
        ids, logps = tuple(_part(choice, "token_ids")), tuple(_part(_part(choice, "logprobs"), "token_logprobs"))
        if not ids or len(ids) != len(logps):
            raise InputError(f"sampling.engine: {self.address}: {len(logps)} log-probabilities of {len(ids)} sampled ids")
        return Completion(ids, logps)

    def completions(
        self, model: str, requests: Mapping[Any, tuple[Sequence[int], int]], settings: Mapping[str, Any], at_a_time: int
    ) -> Iterator[tuple[Any, Completion]]:
        """The name and the response of each request (prompt, seed), as they come; at most `at_a_time` are asked for together."""
        with ThreadPoolExecutor(max_workers=max(1, min(at_a_time, len(requests)))) as threads:
            waiting = {threads.submit(self.complete, model, *request, settings): name for name, request in requests.items()}
            try:
                for answer in as_completed(waiting):
                    yield waiting[answer], answer.result()
            finally:
                threads.shutdown(wait=True, cancel_futures=True)

    def prompt_logps(self, model: str, ids: Sequence[int]) -> list[float]:
        """Log-probability of each id but the first, given those before it, (len(ids) - 1,)."""
        rows = _part(self._completion(_probe(model, ids)), "prompt_logprobs")
        return [float(_part(_part(row, str(token)), "logprob")) for token, row in zip(ids[1:], rows[1:], strict=True)]

    def knows(self, model: str, token: int) -> bool:
        """Whether a token is in its vocabulary: the padding that was added to ours is not in that of the model as its makers left it."""
        try:
            self._completion({**_probe(model, [0]), "logit_bias": {str(token): NEVER}})
        except InputError as error:
            if "out-of-vocab" in str(error):
                return False
            raise
        return True

    def _completion(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        choice = _part(self._send("POST", "/v1/completions", body), "choices")[0]
        if list(_part(choice, "prompt_token_ids")) != body["prompt"]:
            raise InputError(f"sampling.engine: {self.address}: the server read other ids than it was sent")
        return choice

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        connection, before = self._connection()
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, before + path, content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            status, text = response.status, response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise ServerLost(f"{self.address}: {type(error).__name__}: {error}") from None
        finally:
            connection.close()
        if status >= 500:
            raise ServerLost(f"{self.address}: HTTP {status}: {_message(text)}")
        if status != 200:
            raise InputError(f"sampling.engine: {self.address}{path}: HTTP {status}: {_message(text)}")
        return _json(text)

    def _connection(self) -> tuple[http.client.HTTPConnection, str]:
        """A new connection, and what stands before paths."""
        if self.address.startswith(UNIX):
            return _UnixConnection(self.address.removeprefix(UNIX)), ""
        url = urlsplit(self.address)
        kind: Callable[..., http.client.HTTPConnection] = http.client.HTTPConnection
        kind = http.client.HTTPSConnection if url.scheme == "https" else kind
        return kind(url.hostname or "", url.port, timeout=ANSWER_S), url.path.rstrip("/")


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a socket in the file system, which nobody from outside this machine can reach."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        limit = struct.pack("ll", int(ANSWER_S), 0)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)  # with python's own, a full queue is an error at once
        self.sock.connect(self._path)
        self.sock.settimeout(ANSWER_S)


def request_settings(sampling: Sampling, ends: Collection[int], turn: str | None, never: int | None) -> dict[str, Any]:
    """How a response is sampled, for every request: it ends at `ends`, with the text `turn` or at the limit; `never` is never drawn."""
    return {
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "repetition_penalty": sampling.repetition_penalty,
        "stop_token_ids": sorted(ends),
        "ignore_eos": True,  # what ends a response is said above, not by the model's folder
        "stop": [turn] if turn else [],
        "logit_bias": {} if never is None else {str(never): NEVER},
        "logprobs": 0,  # of the sampled token alone
        "return_token_ids": True,
    }


def _probe(model: str, ids: Sequence[int]) -> dict[str, Any]:
    """A request about a prompt, of which nothing is sampled."""
    return {"model": model, "prompt": list(ids), "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "return_token_ids": True}


def _part(value: Any, name: str) -> Any:
    if not isinstance(value, dict) or value.get(name) is None:
        raise InputError(f"sampling.engine: the answer has no {name}: it is not from a vLLM server that returns token ids")
    return value[name]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _message(text: str) -> str:
    """The server's own words."""
    value = _json(text)
    error = value.get("error", value) if isinstance(value, dict) else value
    return str(error.get("message", error) if isinstance(error, dict) else error)[:500]
