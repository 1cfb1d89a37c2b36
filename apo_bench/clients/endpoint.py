"""Where a model is served, at what price, and how it is sampled: the settings of a chat client, checked."""

import ipaddress
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from apo_bench.errors import InputError, NotHere

NOT_GIVEN = ""
System = Literal["own", "merged", "none"]
_OWN_HEADERS = {"host", "content-length", "content-type", "transfer-encoding", "connection", "accept-encoding"}


@dataclass(frozen=True)
class Endpoint:
    """Where a model is served, what it costs, and how hard it may be asked.

    `api_key_env` names the environment variable with the API key; None: none is needed. `timeout_s` is for one attempt, answer
    included, and a call has at most `max_attempts`. `max_wait_s` is the longest wait between two, also where Retry-After asks for more.
    `system`: the system prompt is a message of its own, stands at the head of the first user message ("merged", for servers that refuse the
    role), or is left out. `headers` are sent too; {api_key} in one stands for the key, which is then sent nowhere else. `api_version` is
    sent as ?api-version=..., as Azure has it. Raises InputError that names the field.
    """

    base_url: str
    model: str
    api_key_env: str | None
    concurrency: int = 16
    timeout_s: float = 60.0
    max_attempts: int = 6
    max_wait_s: float = 60.0
    usd_per_million_prompt_tokens: float = 0.0
    usd_per_million_completion_tokens: float = 0.0
    max_usd: float | None = None
    system: System = "own"
    headers: Mapping[str, str] = field(default_factory=dict)
    api_version: str | None = None

    def __post_init__(self) -> None:
        _check_url(self.base_url)
        require(self.system in ("own", "merged", "none"), "system", "own, merged or none is wanted", self.system)
        for name, value in self.headers.items():
            require(re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) is not None, "headers", "not the name of a header", name)
            # The value is not shown: it may be a key.
            require(value.isascii() and value.isprintable(), f"headers.{name}", "characters that no header has")
            require(name.casefold() not in _OWN_HEADERS, f"headers.{name}", "is set by the request itself")
            require("{api_key}" not in value or self.api_key_env is not None, f"headers.{name}", "{api_key} needs api_key_env")
        require(bool(self.model), "model", "a name is wanted", self.model)
        # Not shown: it may be a key by mistake.
        name = self.api_key_env is None or re.fullmatch("[A-Z_][A-Z0-9_]*", self.api_key_env) is not None
        require(name, "api_key_env", "the name of an environment variable, in capitals, is wanted, not the key itself")
        for field_ in ("concurrency", "max_attempts"):
            require(getattr(self, field_) >= 1, field_, "must be at least 1", getattr(self, field_))
        for field_ in ("timeout_s", "max_wait_s"):
            require(0 < getattr(self, field_) < math.inf, field_, "must be above 0", getattr(self, field_))
        for field_ in ("usd_per_million_prompt_tokens", "usd_per_million_completion_tokens"):
            require(0 <= getattr(self, field_) < math.inf, field_, "must be at least 0", getattr(self, field_))
        if self.max_usd is not None:
            require(0 <= self.max_usd < math.inf, "max_usd", "must be at least 0", self.max_usd)
            require(self.priced, "max_usd", "a cost limit needs the prices, usd_per_million_prompt_tokens and ..._completion_tokens")

    @property
    def url(self) -> str:
        """Where requests go."""
        version = f"?api-version={quote(self.api_version)}" if self.api_version else ""
        return f"{self.base_url.rstrip('/')}/chat/completions{version}"

    def laid_out(self, messages: Sequence[Mapping[str, str]]) -> Sequence[Mapping[str, str]]:
        """The messages with the system prompt where this server takes it."""
        if self.system == "own" or not messages or messages[0]["role"] != "system":
            return messages
        system, *others = messages
        if self.system == "none" or not others:
            return others
        first, *rest = others
        if first["role"] != "user":
            return [{"role": "user", "content": system["content"]}, *others]
        return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]

    @property
    def priced(self) -> bool:
        return self.usd_per_million_prompt_tokens > 0 or self.usd_per_million_completion_tokens > 0

    def cost_usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self.usd_per_million_prompt_tokens + completion_tokens * self.usd_per_million_completion_tokens) / 1e6


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. None: not sent, for servers that refuse it. `max_tokens_key` is what the server calls `max_tokens`,
    `extra` further fields of the request, as they are. Raises InputError that names the field.
    """

    max_tokens: int = 512
    temperature: float | None = 0.0
    seed: int | None = 0
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.max_tokens >= 1, "max_tokens", "must be at least 1", self.max_tokens)
        require(self.temperature is None or 0 <= self.temperature < math.inf, "temperature", "must be at least 0", self.temperature)
        taken = {"model", "messages", "max_tokens", "max_completion_tokens", "temperature", "seed", "n", "stream"} & set(self.extra)
        require(not taken, "extra", f"not a place for {', '.join(sorted(taken))}")
        try:
            json.dumps(dict(self.extra), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"extra: no JSON: {error}") from None

    def body(self) -> dict[str, Any]:
        """These settings as fields of a request."""
        sent = {self.max_tokens_key: self.max_tokens, "temperature": self.temperature, "seed": self.seed}
        return {name: value for name, value in sent.items() if value is not None} | dict(self.extra)


@dataclass(frozen=True)
class ChatSettings:
    """A chat model as a user writes it down: where it is, how it is sampled, how hard it may be asked and what it costs.

    `api_key_env` names the environment variable with the API key; null: none is needed, which is the default for a server on this machine.
    `served_as` is a name for a server that moves: answers are kept under it instead of under `base_url`. Settings of sampling that a server
    refuses are null. The rest is as in Endpoint and Sampling. Raises InputError that names class and field.
    """

    model: str
    base_url: str
    api_key_env: str | None = NOT_GIVEN
    served_as: str | None = None
    temperature: float | None = 0.0
    max_tokens: int = 512
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    seed: int | None = 0
    extra: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 16
    timeout_s: float = 60.0
    max_attempts: int = 6
    max_wait_s: float = 60.0
    usd_per_million_prompt_tokens: float = 0.0
    usd_per_million_completion_tokens: float = 0.0
    max_usd: float | None = None
    system: System = "own"
    headers: Mapping[str, str] = field(default_factory=dict)
    api_version: str | None = None

    def __post_init__(self) -> None:
        try:
            self.check()
        except InputError as error:
            raise InputError(f"{type(self).__name__}: {error}") from None

    def check(self) -> None:
        """Raises InputError that names a field. A subclass checks its own fields too."""
        _ = self.endpoint, self.sampling

    @property
    def endpoint(self) -> Endpoint:
        settings = {part.name: getattr(self, part.name) for part in fields(Endpoint)}
        if self.api_key_env == NOT_GIVEN:
            _check_url(self.base_url)
            wanted = "the name of the environment variable with the API key is wanted; null: none is needed"
            require(is_loopback(self.base_url), "api_key_env", wanted)
            settings["api_key_env"] = None
        return Endpoint(**settings)

    @property
    def sampling(self) -> Sampling:
        return Sampling(**{part.name: getattr(self, part.name) for part in fields(Sampling)})

    @property
    def identity(self) -> Mapping[str, Any]:
        """What can change an answer. The server is part of it: many local ones answer to any model's name. Prices and pace are not."""
        own = {"system": self.system, "headers": dict(self.headers), "api_version": self.api_version}
        set_ = {name: value for name, value in own.items() if value and value != "own"}
        return {"model": self.model, "server": self.served_as or self.base_url.rstrip("/"), "sampling": self.sampling.body(), **set_}


def require(condition: bool, name: str, wanted: str, *got: object) -> None:
    """Raises InputError about the field `name` unless `condition`."""
    if not condition:
        raise InputError(f"{name}: {wanted}" + "".join(f", got {value!r}" for value in got))


def is_loopback(url: str) -> bool:
    """Whether the server of a URL is this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        raise InputError("base_url: not a URL") from None
    # The URL is not shown before it is known to hold no secret.
    require("@" not in parts.netloc, "base_url: credentials", "belong into the environment (api_key_env), not into the URL")
    require(not parts.query and not parts.fragment, "base_url", "must have no query and no fragment")
    require(whole and url.isascii() and url.isprintable() and " " not in url, "base_url", "must be http://... or https://...", url)


def api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "")
    if not key:
        raise NotHere(f"api_key_env: the environment variable {variable} is not set")
    require(key.isascii() and key.isprintable() and " " not in key, "api_key_env", f"{variable} holds characters that no key has")
    return key
